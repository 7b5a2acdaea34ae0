"""``nmnist-sim``: all of MNIST in front of a *simulated* event sensor, on N-MNIST's saccades. Not recordings.

60,000 / 10,000 recordings, one a picture, of 34 x 34 pixels and 0.31 s. Path, framing, timing and the sensor's
parameters were fitted to 850 real recordings of N-MNIST (Orchard et al. 2015); docs/notes/simulator.md says how near
they come.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from snn_core.datasets.dataset_info import DatasetInfo, RegisteredDataset
from snn_core.datasets.event_sensor import EventSensor, SensorParameters, batches
from snn_core.datasets.pictures import HOW_TO_GET_MNIST, MNIST_FILE, load_mnist
from snn_core.datasets.roots import data_root
from snn_core.datasets.simulate import BATCH, Scene, simulate_images
from snn_core.datasets.source import Recording, check_split
from snn_core.files import sha256_json
from snn_core.seeding import derive_seed

#: Raised whenever the simulation would give other events for the same parameters: part of every cache key.
SIMULATION_VERSION = 1
WIDTH = HEIGHT = 34
STEP_US, DURATION_US = 2500, 307_500
#: Where the picture's centre is, in sensor pixels (x, y) from the sensor's, every 5 ms: measured on the real recordings
#: by correlating their events with the gradients of their pictures.
PATH = (
    (-2.63, -1.54), (-2.58, -1.68), (-2.54, -1.81), (-2.55, -1.73), (-2.59, -1.49), (-2.65, -1.12), (-2.70, -0.65),
    (-2.72, -0.11), (-2.69, 0.46), (-2.60, 1.04), (-2.45, 1.60), (-2.24, 2.12), (-2.01, 2.58), (-1.77, 2.98),
    (-1.54, 3.30), (-1.35, 3.51), (-1.20, 3.61), (-1.10, 3.60), (-1.04, 3.54), (-1.00, 3.46), (-0.96, 3.40),
    (-0.92, 3.37), (-0.84, 3.36), (-0.72, 3.33), (-0.54, 3.29), (-0.30, 3.19), (-0.02, 3.01), (0.29, 2.74),
    (0.61, 2.35), (0.91, 1.84), (1.19, 1.27), (1.43, 0.68), (1.62, 0.10), (1.78, -0.43), (1.90, -0.87),
    (2.01, -1.20), (2.10, -1.42), (2.20, -1.54), (2.31, -1.60), (2.43, -1.63), (2.57, -1.65), (2.70, -1.65),
    (2.81, -1.64), (2.87, -1.63), (2.86, -1.61), (2.77, -1.60), (2.58, -1.59), (2.28, -1.59), (1.90, -1.59),
    (1.46, -1.60), (0.97, -1.62), (0.46, -1.64), (-0.07, -1.67), (-0.57, -1.70), (-1.05, -1.73), (-1.47, -1.76),
    (-1.81, -1.80), (-2.07, -1.84), (-2.21, -1.88), (-2.22, -1.92), (-2.08, -1.96), (-1.95, -1.98), (-1.95, -1.98),
)  # fmt: skip
PATH_STEP_US = 5000
#: Real recordings differ in framing (pixels) and start (microseconds); the official test recordings also lie higher.
FRAMING_DEVIATION, START_DEVIATION_US = 0.13, 1500.0
SPLIT_OFFSET = {"train": (0.0, 0.0), "test": (0.0, -0.8)}
SENSOR = SensorParameters(
    threshold_on=0.30,
    threshold_off=0.28,
    threshold_mismatch=0.10,
    refractory_us=700,
    noise_rate_hz=0.38,
    leak_rate_hz=0.3,
    refractory_mismatch=0.2,
)
SCENE = Scene(background=0.156, blur=0.38, gamma=4.35)


class NMNISTSimSource:
    """Simulated recordings of all MNIST pictures; 60,000 train, 10,000 test, each in MNIST's order.

    ``id`` is the name of the real recording of the same picture in N-MNIST's layout, as "Train/5/00001".

    Args:
        path: the file mnist.npz, or the folder that holds it.
        seed: of the simulated sensor's mismatch and noise, and of framing and start.

    Raises:
        DataError: no such file, or another content; says where to get it.
    """

    name = "nmnist-sim (simulated)"
    simulated = True
    sensor_size = (WIDTH, HEIGHT, 2)
    class_names = tuple(str(digit) for digit in range(10))

    def __init__(self, path: Path, seed: int = 0) -> None:
        self.mnist = load_mnist(path)
        counts = {part: len(labels) for part, labels in self.mnist.labels.items()}
        if counts != DATASET.info.splits["official"]:
            self.name = f"nmnist-sim (simulated; part: {counts['train']} train, {counts['test']} test)"
        self.seed = int(seed)

    def recordings(self, split: str) -> list[Recording]:
        """Recordings of "train", "test" or "all" (train, then test), each in MNIST's order."""
        parts = ("train", "test") if check_split(split) == "all" else (split,)
        return [
            Recording(f"{part.capitalize()}/{label}/{index + 1:05d}", label, (part, index))
            for part in parts
            for index, label in enumerate(self.mnist.labels[part].tolist())
        ]

    def content_hash(self, split: str) -> str:
        """SHA-256 of the pictures and of every parameter of the simulation."""
        check_split(split)
        motion = [WIDTH, HEIGHT, STEP_US, DURATION_US, PATH, PATH_STEP_US, SPLIT_OFFSET]
        spread = [FRAMING_DEVIATION, START_DEVIATION_US]
        sensor = [asdict(SENSOR), asdict(SCENE), self.seed]
        return sha256_json([SIMULATION_VERSION, self.mnist.content_hash(), motion, spread, sensor])

    def read(self, recordings: Sequence[Recording]) -> Iterator[NDArray[np.void]]:
        """Events of each recording; simulated in batches, each the same whatever batch it falls in."""
        sensor = EventSensor(WIDTH, HEIGHT, SENSOR, self.seed)
        times = np.arange(0, DURATION_US + 1, STEP_US)
        framings = {part: self._framings(part) for part in ("train", "test")}
        for chosen in batches(len(recordings), BATCH):
            some = recordings[chosen]
            pictures = np.stack([self.mnist.pictures[part][index] for part, index in (item.key for item in some)])
            path = saccades(times, np.stack([framings[part][index] for part, index in (item.key for item in some)]))
            yield from simulate_images(pictures, path, times, sensor, scene=SCENE, names=[item.id for item in some])

    def _framings(self, part: str) -> NDArray[np.float64]:
        """[num, 3]: offset x and y in pixels and start in microseconds of every recording of a split."""
        generator = np.random.default_rng(derive_seed(self.seed, "framing", part))
        spread = generator.standard_normal((len(self.mnist.labels[part]), 3)).clip(-3, 3)
        return spread * [FRAMING_DEVIATION, FRAMING_DEVIATION, START_DEVIATION_US] + [*SPLIT_OFFSET[part], 0.0]

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(labels)} {part}" for part, labels in self.mnist.labels.items())
        return f"NMNISTSimSource(simulated recordings of MNIST: {counts}, seed={self.seed})"


def saccades(times: NDArray[np.int64], framings: NDArray[np.float64]) -> NDArray[np.float64]:
    """Displacement [num, len(times), 2] in pixels of the picture's centre from the sensor's.

    Args:
        times: microseconds [S].
        framings: [num, 3]: offset x and y in pixels, and how many microseconds later the motion starts.
    """
    knots = np.arange(len(PATH)) * PATH_STEP_US
    path = np.array(PATH)
    moments = times[None, :] - framings[:, 2:]
    return np.stack([np.interp(moments, knots, path[:, axis]) + framings[:, axis, None] for axis in (0, 1)], -1)


def _open(root: Path | None = None, *, seed: int = 0) -> NMNISTSimSource:
    return NMNISTSimSource(data_root() if root is None else root, seed)


DATASET = RegisteredDataset(
    DatasetInfo(
        name="nmnist-sim",
        title="nmnist-sim (simulated)",
        class_names=NMNISTSimSource.class_names,
        sensor_size=NMNISTSimSource.sensor_size,
        splits={"official": {"train": 60000, "test": 10000}},
        split_rules={"official": "MNIST's own"},
        simulated=True,
        citation=(
            "Pictures: Y. LeCun, L. Bottou, Y. Bengio, P. Haffner: Gradient-based learning applied to document "
            "recognition. Proceedings of the IEEE 86 (1998). Path and sensor fitted to: G. Orchard, A. Jayawant, G. K. "
            "Cohen, N. Thakor: Converting static image datasets to spiking neuromorphic datasets using saccades. "
            "Frontiers in Neuroscience 9 (2015)"
        ),
        how_to_get=HOW_TO_GET_MNIST,
        where_to_put=MNIST_FILE,
    ),
    _open,
)
