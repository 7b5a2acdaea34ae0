"""``digits-dvs``: scikit-learn's handwritten digits seen through a *simulated* event sensor. Not recordings.

The 1,797 digits of 8 x 8 pixels are enlarged smoothly onto 34 x 34 pixels and moved through the three saccades of
N-MNIST (Orchard et al. 2015) in front of :class:`snn_core.datasets.event_sensor.EventSensor`. Figures beside real
N-MNIST's are in docs/notes/simulator.md. All parameters here are our own choice, made to come near those figures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from snn_core.datasets.dataset_info import DatasetInfo, RegisteredDataset
from snn_core.datasets.event_sensor import EventSensor, SensorParameters
from snn_core.datasets.moving_pictures import corner_path
from snn_core.datasets.simulate import Scene, simulate_images
from snn_core.datasets.source import Recording, check_split
from snn_core.datasets.splits import stratified_subset
from snn_core.files import sha256_json

#: Raised whenever the simulation would give other events for the same parameters: part of every cache key.
SIMULATION_VERSION = 2
#: The published split: ``stratified_subset(labels, TEST_SIZE, SPLIT_SEED)`` is the test part, the rest trains.
SPLIT_SEED = 1797
TEST_SIZE = 360

SENSOR = SensorParameters(
    threshold_on=0.25, threshold_off=0.25, threshold_mismatch=0.1, refractory_us=2000, noise_rate_hz=0.3
)
WIDTH = HEIGHT = 34
STEP_US = 2000
SACCADE_US = 100_000
MOTION_US = 90_000  # of each saccade; then the picture rests
#: Corners of the path in pixels (x, y): N-MNIST's triangle, as tonic's ``stabilize`` undoes it.
CORNERS = ((0.0, 0.0), (3.5, 7.0), (7.0, 0.0), (0.0, 0.0))
SCENE = Scene(background=0.13, pixels_a_cell=2.25, white=16)  # full ink is 16


class DigitsDVSSource:
    """Simulated recordings of scikit-learn's digits; 1,437 train, 360 test, fixed stratified split.

    Args:
        seed: of the simulated sensor's mismatch and noise. The split does not depend on it.
    """

    name = "digits-dvs (simulated)"
    simulated = True
    sensor_size = (WIDTH, HEIGHT, 2)
    class_names = tuple(str(digit) for digit in range(10))

    def __init__(self, seed: int = 0) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        self.images = digits.images.astype(np.uint8)  # [1797, 8, 8], ink 0 .. 16
        self.labels = digits.target.astype(np.int64)
        self.seed = int(seed)

    def recordings(self, split: str) -> list[Recording]:
        """Recordings of "train", "test" or "all" (train, then test), each in scikit-learn's order."""
        check_split(split)
        test = stratified_subset(self.labels, TEST_SIZE, SPLIT_SEED)
        train = np.setdiff1d(np.arange(len(self.labels)), test)
        chosen = {"train": train, "test": test, "all": np.concatenate([train, test])}[split]
        return [Recording(f"digits/{index:04d}", int(self.labels[index]), index) for index in chosen.tolist()]

    def content_hash(self, split: str) -> str:
        """SHA-256 of the pictures and of every parameter of the simulation."""
        check_split(split)
        pictures = hashlib.sha256(self.images.tobytes() + self.labels.astype("<i8").tobytes()).hexdigest()
        motion = [WIDTH, HEIGHT, STEP_US, SACCADE_US, MOTION_US, CORNERS]
        split_parameters = [TEST_SIZE, SPLIT_SEED]
        sensor = [asdict(SENSOR), asdict(SCENE), self.seed]
        return sha256_json([SIMULATION_VERSION, pictures, sensor, motion, split_parameters])

    def read(self, recordings: Sequence[Recording]) -> Iterator[NDArray[np.void]]:
        """Events of each recording; simulated in batches, each the same whatever batch it falls in."""
        sensor = EventSensor(WIDTH, HEIGHT, SENSOR, self.seed)
        chosen = [recording.key for recording in recordings]
        path = np.array(saccade_path()) - max(max(corner) for corner in CORNERS) / 2  # all of it centred on the sensor
        times = np.arange(len(path)) * STEP_US
        yield from simulate_images(self.images[chosen], path, times, sensor, scene=SCENE, names=chosen)

    def __repr__(self) -> str:
        return f"DigitsDVSSource(simulated recordings of {len(self.labels)} handwritten digits, seed={self.seed})"


def saccade_path() -> list[tuple[float, float]]:
    """Displacement (x, y) in pixels of the picture at every time step, corner to corner by minimum-jerk motion."""
    return corner_path(CORNERS, SACCADE_US, MOTION_US, STEP_US)


def _open(root: Path | None = None, *, seed: int = 0) -> DigitsDVSSource:
    """scikit-learn brings the pictures: there is nothing to look for in ``root``."""
    return DigitsDVSSource(seed)


DATASET = RegisteredDataset(
    DatasetInfo(
        name="digits-dvs",
        title="digits-dvs (simulated)",
        class_names=DigitsDVSSource.class_names,
        sensor_size=DigitsDVSSource.sensor_size,
        splits={"fixed": {"train": 1437, "test": TEST_SIZE}},
        split_rules={"fixed": f"stratified_subset(labels, {TEST_SIZE}, seed={SPLIT_SEED}) is the test part"},
        simulated=True,
        citation=(
            "Pictures: E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits. UCI Machine Learning "
            "Repository (1998)"
        ),
        home_page="https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits",
        how_to_get="Nothing to get: scikit-learn brings the pictures, the recordings are simulated.",
    ),
    _open,
)
