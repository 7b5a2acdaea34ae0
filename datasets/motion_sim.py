"""``motion-sim``: handwritten digits whose *motion* is the class, seen through a *simulated* event sensor.

Gesture-like: the picture says nothing of the class, its motion everything, and the two classes of a pair are the same
motions played forwards and backwards (see motion_paths.py). A linear read-out of time-averaged frames is at chance
within the pairs; docs/notes/motion_sim.md has the measurements. All parameters are our own choice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from snn_core.datasets.dataset_info import DatasetInfo, RegisteredDataset
from snn_core.datasets.event_sensor import EventSensor
from snn_core.datasets.motion_paths import (
    CHIRP,
    CLASS_NAMES,
    NOMINAL_PIXELS,
    RANGES,
    ROLL,
    SHAKE_AMPLITUDE,
    SHAKES,
    TREMOR_CYCLES,
    Motions,
    draw_motions,
    place,
    place_of_distractor,
)
from snn_core.datasets.moving_pictures import (
    BACKGROUND,
    FINE,
    FRACTION_BITS,
    RENDER_US,
    SENSOR,
    STEP_US,
    WEIGHT_UNIT,
    MovingPictures,
)
from snn_core.datasets.pictures import HOW_TO_GET_MNIST, MNIST_FILE, LabelledPictures, load_mnist
from snn_core.datasets.roots import data_root
from snn_core.datasets.source import Recording, check_split
from snn_core.errors import ArgumentError, DataError
from snn_core.files import sha256_json
from snn_core.seeding import derive_seed

#: Raised whenever the simulation would give other events for the same parameters: part of every cache key.
SIMULATION_VERSION = 1
#: Of the choice of pictures and motions; the seed of a source changes the sensor only.
SET_SEED = 2026
PER_CLASS = {"train": 500, "test": 100}
SIZES = (34, 128)

DURATION_US = 1_000_000
BATCH = 16
DIGITS = 10


class MotionSimSource:
    """Simulated recordings of moving digits, 12 classes in 6 pairs: 500 / 100 a class, train from MNIST's training
    pictures and test from its test pictures.

    Args:
        root: folder that holds mnist.npz.
        size: pixels of the square sensor, 34 or 128.
        seed: of the simulated sensor's mismatch and noise. Pictures and motions do not depend on it.

    Raises:
        ArgumentError: another size.
        DataError: mnist.npz is not there (says where to get it), or has too few pictures.
    """

    simulated = True
    class_names: tuple[str, ...] = CLASS_NAMES

    def __init__(self, root: Path, size: int = 34, seed: int = 0) -> None:
        if size not in SIZES:
            raise ArgumentError(f"size must be one of {', '.join(map(str, SIZES))}, got {size!r}")
        self.size, self.seed = int(size), int(seed)
        self.name = f"motion-sim {size} x {size} (simulated)"
        self.sensor_size = (self.size, self.size, 2)
        self.mnist = load_mnist(root)
        self._chosen = {split: _choose_pictures(self.mnist, split) for split in PER_CLASS}

    def recordings(self, split: str) -> list[Recording]:
        """Recordings of "train", "test" or "all" (train, then test); the classes take turns."""
        check_split(split)
        parts = ("train", "test") if split == "all" else (split,)
        return [
            Recording(f"{part}/{index:05d}", index % len(CLASS_NAMES), (part, index))
            for part in parts
            for index in range(PER_CLASS[part] * len(CLASS_NAMES))
        ]

    def content_hash(self, split: str) -> str:
        """SHA-256 of the pictures and of every parameter of the simulation."""
        check_split(split)
        motion = [list(RANGES.items()), SHAKES, SHAKE_AMPLITUDE, CHIRP, TREMOR_CYCLES, DURATION_US, RENDER_US, STEP_US]
        picture = [self.mnist.content_hash(), SET_SEED, FINE, FRACTION_BITS, WEIGHT_UNIT, BACKGROUND, PER_CLASS]
        return sha256_json([SIMULATION_VERSION, self.size, self.seed, asdict(SENSOR), motion, picture])

    def read(self, recordings: Sequence[Recording]) -> Iterator[NDArray[np.void]]:
        """Events of each recording; simulated in batches, each the same whatever batch it falls in."""
        sensor = self.sensor()
        for first in range(0, len(recordings), BATCH):
            batch = recordings[first : first + BATCH]
            names: list[str | int] = [recording.id for recording in batch]
            yield from sensor.record(self.log_brightness(batch), STEP_US, names)

    def sensor(self) -> EventSensor:
        """The simulated sensor that sees all of these recordings."""
        return EventSensor(self.size, self.size, SENSOR, self.seed)

    def motions(self, recordings: Sequence[Recording]) -> Motions:
        """How the pictures of these recordings move."""
        return draw_motions([r.label for r in recordings], [r.id for r in recordings], SET_SEED)

    def log_brightness(
        self, recordings: Sequence[Recording], motions: Motions | None = None
    ) -> Iterator[NDArray[np.float32]]:
        """What the sensor sees: float32 [num, size * size] every STEP_US.

        ``motions`` replaces those of the recordings.
        """
        motions = self.motions(recordings) if motions is None else motions
        scene = _Scene(motions, *self._pictures(recordings), self.size)
        before = scene.log_brightness(0)
        yield before
        for frame in range(1, DURATION_US // RENDER_US + 1):
            after = scene.log_brightness(frame)
            for step in range(1, RENDER_US // STEP_US):
                part = np.float32(step * STEP_US / RENDER_US)
                yield before + part * (after - before)
            yield after
            before = after

    def _pictures(self, recordings: Sequence[Recording]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """uint8 [num, 28, 28] of the moving pictures and of the distractors."""
        picked = [self._chosen[split][:, index] for split, index in (recording.key for recording in recordings)]
        pairs = [self.mnist.pictures[r.key[0]][pair] for r, pair in zip(recordings, picked, strict=True)]
        both = np.stack(pairs) if pairs else np.empty((0, 2, 28, 28), np.uint8)
        return both[:, 0], both[:, 1]

    def __repr__(self) -> str:
        return f"MotionSimSource(simulated recordings of moving digits, size={self.size}, seed={self.seed})"


class _Scene:
    """A batch of pictures with their distractors; of two that overlap the one with more ink is seen."""

    def __init__(
        self, motions: Motions, pictures: NDArray[np.uint8], distractors: NDArray[np.uint8], size: int
    ) -> None:
        scale, middle = size / NOMINAL_PIXELS, (size - 1) / 2
        fractions = np.arange(DURATION_US // RENDER_US + 1) * RENDER_US / DURATION_US
        self.x, self.y, self.angle = place(motions, fractions)
        self.distractor_x, self.distractor_y = place_of_distractor(motions, fractions)
        for positions in (self.x, self.y, self.distractor_x, self.distractor_y):
            positions *= scale
            positions += middle
        self.turning = np.flatnonzero(motions.label // 2 == ROLL)
        drawn = motions.drawn
        self.upright = MovingPictures(pictures, drawn["size"] * scale, drawn["contrast"], size, size)
        chosen = self.turning
        self.turned = MovingPictures(
            pictures[chosen], drawn["size"][chosen] * scale, drawn["contrast"][chosen], size, size
        )
        self.distractors = MovingPictures(
            distractors, drawn["distractor_size"] * scale, drawn["distractor_contrast"], size, size
        )
        # Bits of every brightness that are turned over: all of them where ink is dark.
        self.inverted = np.where(drawn["dark"] < 0.5, 255, 0).astype(np.uint8)[:, None, None]
        # A table instead of np.log: the same numbers on every processor, and faster.
        self.table = np.log(BACKGROUND + np.arange(256) / 255).astype(np.float32)

    def log_brightness(self, frame: int) -> NDArray[np.float32]:
        """Float32 [num, size * size] of the frame at ``frame * RENDER_US``."""
        x, y = self.x[frame], self.y[frame]
        seen = self.upright.brightness(x, y)
        if len(self.turning):
            chosen = self.turning
            seen[chosen] = self.turned.brightness(x[chosen], y[chosen], self.angle[frame, chosen])
        np.maximum(seen, self.distractors.brightness(self.distractor_x[frame], self.distractor_y[frame]), out=seen)
        seen ^= self.inverted
        return self.table.take(seen.reshape(len(seen), -1))


def _choose_pictures(mnist: LabelledPictures, split: str) -> NDArray[np.int64]:
    """[2, recordings]: the picture and the distractor of each recording; every class has as many of each digit."""
    number = PER_CLASS[split] * len(CLASS_NAMES)
    chosen = np.empty((2, number), np.int64)
    index = np.arange(number)
    digit = index // len(CLASS_NAMES) % DIGITS
    for value in range(DIGITS):
        members = np.flatnonzero(mnist.labels[split] == value)
        wanted = index[digit == value]
        if len(members) < 2 * len(wanted):
            raise DataError(
                f"{mnist.origin}: motion-sim needs {2 * len(wanted)} pictures of digit {value} for {split}, "
                f"found {len(members)}"
            )
        order = np.random.default_rng(derive_seed(SET_SEED, "pictures", split, value)).permutation(members)
        chosen[0, wanted] = order[: len(wanted)]
        # Distractors of any digit: dealt to the recordings in another random order below.
        chosen[1, wanted] = order[len(wanted) : 2 * len(wanted)]
    chosen[1] = np.random.default_rng(derive_seed(SET_SEED, "distractors", split)).permutation(chosen[1])
    return chosen


def _open(root: Path | None = None, *, size: int = 34, seed: int = 0) -> MotionSimSource:
    """See :class:`MotionSimSource`."""
    return MotionSimSource(data_root() if root is None else root, size, seed)


DATASET = RegisteredDataset(
    DatasetInfo(
        name="motion-sim",
        title="motion-sim (simulated)",
        class_names=CLASS_NAMES,
        sensor_size=(34, 34, 2),
        splits={"fixed": {part: number * len(CLASS_NAMES) for part, number in PER_CLASS.items()}},
        split_rules={"fixed": "train shows MNIST's training pictures, test its test pictures"},
        simulated=True,
        citation=(
            "Pictures: Y. LeCun, L. Bottou, Y. Bengio, P. Haffner: Gradient-Based Learning Applied to Document "
            "Recognition. Proceedings of the IEEE 86, 2278-2324 (1998). doi:10.1109/5.726791"
        ),
        how_to_get=HOW_TO_GET_MNIST + " The recordings are simulated; size=34 (as told here) or 128 pixels a side.",
        where_to_put=MNIST_FILE,
    ),
    _open,
)
