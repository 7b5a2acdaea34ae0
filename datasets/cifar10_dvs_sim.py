"""``cifar10-dvs-sim``: CIFAR-10's pictures on a closed loop, seen through a *simulated* event sensor. Not CIFAR10-DVS.

Of the structure of CIFAR10-DVS (Li et al., CIFAR10-DVS: An Event-Stream Dataset for Object Classification, Frontiers in
Neuroscience 11:309, 2017): ten classes of natural pictures, 128 x 128 pixels, a picture that moves smoothly round the
same closed loop again and again. Path, speed and sensor are our own choice; docs/notes/motion_sim.md has the figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from snn_core.datasets.dataset_info import DatasetInfo, RegisteredDataset
from snn_core.datasets.event_sensor import EventSensor, SensorParameters
from snn_core.datasets.moving_pictures import WEIGHT_UNIT, corner_path, whole_weights
from snn_core.datasets.pictures import (
    CIFAR10_CLASSES,
    CIFAR10_FILES,
    CIFAR10_FOLDER,
    HOW_TO_GET_CIFAR10,
    load_cifar10,
)
from snn_core.datasets.roots import data_root
from snn_core.datasets.source import Recording, check_split
from snn_core.errors import ArgumentError
from snn_core.files import sha256_json

#: Raised whenever the simulation would give other events for the same parameters: part of every cache key.
SIMULATION_VERSION = 1
#: Recordings a class, 1,000 together as in CIFAR10-DVS; fewer where there are fewer pictures.
PER_CLASS = {"train": 900, "test": 100}
SIZES = (48, 64, 128)
NOMINAL_PIXELS = 128

SENSOR = SensorParameters(
    threshold_on=0.3, threshold_off=0.3, threshold_mismatch=0.1, refractory_us=2000, noise_rate_hz=0.3
)
#: Corners of the loop in pixels of a sensor of NOMINAL_PIXELS: a diamond, so that edges of every direction are crossed.
CORNERS = ((0.0, -6.0), (6.0, 0.0), (0.0, 6.0), (-6.0, 0.0), (0.0, -6.0))
LEG_US, STEP_US = 50_000, 2000
LOOPS = 6
PICTURE_CELLS = 32
BACKGROUND = 0.1  # brightness of black beside that of white, 1
LEVELS = 1024  # brightness is quantised to 1 / LEVELS
BATCH = 8


class Cifar10DVSSimSource:
    """Simulated recordings of CIFAR-10's pictures: the first 900 / 100 a class of its training and test pictures.

    Args:
        root: folder that holds CIFAR-10, see :func:`snn_core.datasets.pictures.load_cifar10`; a part of it gives fewer
            recordings, of the same events.
        size: pixels of the square sensor: 48, 64 or 128.
        seed: of the simulated sensor's mismatch and noise.

    Raises:
        ArgumentError: another size.
        DataError: CIFAR-10 is not there (says where to get it) or damaged.
    """

    simulated = True
    class_names: tuple[str, ...] = CIFAR10_CLASSES

    def __init__(self, root: Path, size: int = 128, seed: int = 0) -> None:
        if size not in SIZES:
            raise ArgumentError(f"size must be one of {', '.join(map(str, SIZES))}, got {size!r}")
        self.size, self.seed = int(size), int(seed)
        self.sensor_size = (self.size, self.size, 2)
        self.cifar10 = load_cifar10(root)
        self._recordings = {split: self._listed(split) for split in PER_CLASS}
        counts = [len(self._recordings[split]) for split in PER_CLASS]
        whole = counts == [number * len(CIFAR10_CLASSES) for number in PER_CLASS.values()]
        part = "" if whole else f"; part: {counts[0]} train, {counts[1]} test"
        self.name = f"cifar10-dvs-sim {size} x {size} (simulated{part})"

    def _listed(self, split: str) -> list[Recording]:
        labels, index = self.cifar10.labels[split], self.cifar10.index[split]
        order = np.argsort(index, kind="stable")
        members = [order[labels[order] == label][: PER_CLASS[split]] for label in range(len(CIFAR10_CLASSES))]
        chosen = order[np.isin(order, np.concatenate(members))]
        return [
            Recording(f"{split}/{index[place]:05d}", int(labels[place]), (split, place)) for place in chosen.tolist()
        ]

    def recordings(self, split: str) -> list[Recording]:
        """Recordings of "train", "test" or "all" (train, then test), in CIFAR-10's order."""
        check_split(split)
        return [*self._recordings["train"], *self._recordings["test"]] if split == "all" else self._recordings[split]

    def content_hash(self, split: str) -> str:
        """SHA-256 of the pictures and of every parameter of the simulation."""
        check_split(split)
        motion = [CORNERS, LEG_US, STEP_US, LOOPS, BACKGROUND, LEVELS, WEIGHT_UNIT, PER_CLASS]
        pictures = self.cifar10.content_hash()
        return sha256_json([SIMULATION_VERSION, pictures, self.size, self.seed, asdict(SENSOR), motion])

    def read(self, recordings: Sequence[Recording]) -> Iterator[NDArray[np.void]]:
        """Events of each recording; simulated in batches, each the same whatever batch it falls in."""
        sensor = EventSensor(self.size, self.size, SENSOR, self.seed)
        weights = [self._weights(*position) for position in loop_path()]
        for first in range(0, len(recordings), BATCH):
            batch = recordings[first : first + BATCH]
            names: list[str | int] = [recording.id for recording in batch]
            yield from sensor.record(self._log_brightness(batch, weights), STEP_US, names)

    def _weights(self, dx: float, dy: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Whole weights [cells, size] of the columns and of the rows of a picture displaced by so many pixels."""
        scale = self.size / NOMINAL_PIXELS
        pixels = (np.arange(self.size) + 0.5) * PICTURE_CELLS / self.size - 0.5
        found = []
        for offset in (dx, dy):
            # The picture's rim goes on outwards, so that its border is no edge.
            position = np.clip(pixels - offset * scale * PICTURE_CELLS / self.size, 0, PICTURE_CELLS - 1)
            found.append(whole_weights(position, PICTURE_CELLS))
        return found[0], found[1]

    def _log_brightness(
        self, recordings: Sequence[Recording], weights: list[tuple[NDArray[np.float32], NDArray[np.float32]]]
    ) -> Iterator[NDArray[np.float32]]:
        """Log brightness float32 [batch, size * size] at every time step; one loop is drawn, then shown again."""
        colour = np.stack([self.cifar10.pictures[split][place] for split, place in (r.key for r in recordings)])
        grey = luminance(colour).astype(np.float32)
        table = np.log(BACKGROUND + np.arange(LEVELS + 1) / LEVELS).astype(np.float32)
        frames = []
        for columns, rows in weights:
            # Sums of whole numbers below 2**24: exact in float32, whatever the order in which a BLAS adds.
            shown = rows.T @ (grey @ columns)
            level = (shown * np.float32(LEVELS / (255 * WEIGHT_UNIT**2))).astype(np.int32)
            frames.append(table.take(level.reshape(len(grey), -1), mode="clip"))
        yield frames[0]
        for _ in range(LOOPS):
            yield from frames[1:]
            yield frames[0]

    def __repr__(self) -> str:
        return f"Cifar10DVSSimSource({self.name}, seed={self.seed})"


def luminance(colour: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Grey values of pictures [..., 3], red green blue, weighted as in ITU-R BT.601."""
    weighted = colour.astype(np.int32) @ np.array([299, 587, 114], np.int32)
    return ((weighted + 500) // 1000).astype(np.uint8)


def loop_path() -> list[tuple[float, float]]:
    """Displacement (x, y) of the picture at every time step of one loop; each leg is a minimum-jerk motion."""
    return corner_path(CORNERS, LEG_US, LEG_US, STEP_US)[:-1]


def _open(root: Path | None = None, *, size: int = 128, seed: int = 0) -> Cifar10DVSSimSource:
    """See :class:`Cifar10DVSSimSource`."""
    return Cifar10DVSSimSource(data_root() if root is None else root, size, seed)


DATASET = RegisteredDataset(
    DatasetInfo(
        name="cifar10-dvs-sim",
        title="cifar10-dvs-sim (simulated)",
        class_names=CIFAR10_CLASSES,
        sensor_size=(128, 128, 2),
        splits={"fixed": {part: number * len(CIFAR10_CLASSES) for part, number in PER_CLASS.items()}},
        split_rules={"fixed": "the first 900 / 100 a class of CIFAR-10's training / test pictures"},
        simulated=True,
        citation=(
            "Pictures: A. Krizhevsky: Learning Multiple Layers of Features from Tiny Images. Technical report, "
            "University of Toronto (2009)."
        ),
        home_page="https://www.cs.toronto.edu/~kriz/cifar.html",
        how_to_get=HOW_TO_GET_CIFAR10
        + " The recordings are simulated; size=48, 64 or 128 (as told here) pixels a side.",
        where_to_put=f"{CIFAR10_FOLDER}/ or {' or '.join(CIFAR10_FILES)} (the last is a part: 500 / 100 a class)",
    ),
    _open,
)
