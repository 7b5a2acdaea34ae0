"""``moving-digits``: one or two handwritten digits that cross a field of 64 x 64 pixels, with their boxes; *simulated*.

For localisation: where is which digit? Every digit goes straight at its own speed and is reflected at the rim, as in
Moving MNIST (Srivastava, Mansimov, Salakhutdinov, Unsupervised Learning of Video Representations using LSTMs, 2015);
a simulated event sensor sees them. Boxes are the extent of the digit's ink. All parameters are our own choice.

Boxes come with :func:`snn_core.datasets.load_boxes`. Loaded as a plain data set a recording's label is the class of its
first digit, which tells only half of a recording with two.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from snn_core.datasets.dataset_info import DatasetInfo, RegisteredDataset
from snn_core.datasets.event_sensor import EventSensor
from snn_core.datasets.moving_digit_paths import (
    INK,
    MOST_OVERLAP,
    RANGES,
    SINGLE,
    Crossings,
    draw_crossings,
    draw_single,
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
from snn_core.datasets.pictures import HOW_TO_GET_MNIST, MNIST_FILE, load_mnist
from snn_core.datasets.roots import data_root
from snn_core.datasets.source import Recording, check_split
from snn_core.datasets.splits import stratified_folds, stratified_subset
from snn_core.errors import ArgumentError
from snn_core.files import sha256_json
from snn_core.seeding import derive_seed

#: Raised whenever the simulation would give other events or boxes for the same parameters: part of every cache key.
SIMULATION_VERSION = 1
#: Of the choice of pictures and paths; the seed of a source changes the sensor only.
SET_SEED = 64
SIDE = 64  # pixels of the square field
NUMBER = {"train": 4000, "test": 800}
DIGITS, OBJECTS = 10, 2
#: Each split's pictures are cut into so many groups, and no recording mixes them: a fold by groups shares no picture.
GROUPS = 5
PICTURES = ("digits", "mnist")
#: scikit-learn's digits have no published split: this many of the 1,797 are for the test, as in digits-dvs.
SPLIT_SEED, TEST_PICTURES = 1797, 360

DURATION_US = 320_000
BATCH = 32
#: Recordings of a split whose boxes are part of the content's hash.
HASHED = 8

Pictures = dict[str, tuple[NDArray[np.uint8], NDArray[np.int64]]]


class MovingDigitsSource:
    """Simulated recordings of one or two moving digits: 4,000 train, 800 test; no picture is in both.

    Args:
        root: folder that holds mnist.npz; only for ``pictures="mnist"``.
        pictures: "digits", scikit-learn's 1,797 of 8 x 8, or "mnist".
        seed: of the simulated sensor's mismatch and noise. Pictures and paths do not depend on it.

    Raises:
        ArgumentError: another value of ``pictures``.
        DataError: mnist.npz is not there (says where to get it).
    """

    simulated = True
    sensor_size = (SIDE, SIDE, 2)
    class_names = tuple(str(digit) for digit in range(DIGITS))

    def __init__(self, root: Path | None = None, pictures: str = "digits", seed: int = 0) -> None:
        if pictures not in PICTURES:
            raise ArgumentError(f"pictures must be one of {', '.join(PICTURES)}, got {pictures!r}")
        self.of, self.seed = pictures, int(seed)
        self.name = f"moving-digits of {'scikit-learn' if pictures == 'digits' else 'MNIST'} (simulated)"
        self._pictures: Pictures = _digits() if pictures == "digits" else _mnist(data_root() if root is None else root)
        self._chosen = {split: _choose(self._pictures[split][1], split) for split in NUMBER}

    def recordings(self, split: str) -> list[Recording]:
        """Recordings of "train", "test" or "all" (train, then test); the label is the first digit's class."""
        parts = ("train", "test") if check_split(split) == "all" else (split,)
        return [
            Recording(f"{part}/{index:05d}", int(self._pictures[part][1][first]), (part, index))
            for part in parts
            for index, first in enumerate(self._chosen[part][0].tolist())
        ]

    def content_hash(self, split: str) -> str:
        """SHA-256 of the pictures, of every parameter of the simulation, and of the boxes of some recordings."""
        check_split(split)
        motion = [
            SET_SEED,
            list(RANGES.items()),
            SINGLE,
            INK,
            MOST_OVERLAP,
            DURATION_US,
            RENDER_US,
            STEP_US,
            SIDE,
            NUMBER,
            GROUPS,
        ]
        arrays = [values.tobytes() for part in NUMBER for values in self._pictures[part]]
        pictures = [hashlib.sha256(values).hexdigest() for values in arrays]
        picture = [pictures, FINE, FRACTION_BITS, WEIGHT_UNIT, BACKGROUND]
        # Boxes are computed anew and frames come from a cache: of other paths than these they must not. In 1/8 pixel:
        # the last bit of a cosine, which may differ from machine to machine, does not count.
        some = [recording for part in NUMBER for recording in self.recordings(part)[:HASHED]]
        paths = [np.rint(8 * self.boxes(some, self.step_ends_us(HASHED))).tolist(), self.box_labels(some).tolist()]
        return sha256_json([SIMULATION_VERSION, self.seed, asdict(SENSOR), motion, picture, paths])

    def read(self, recordings: Sequence[Recording]) -> Iterator[NDArray[np.void]]:
        """Events of each recording; simulated in batches, each the same whatever batch it falls in."""
        sensor = EventSensor(SIDE, SIDE, SENSOR, self.seed)
        for first in range(0, len(recordings), BATCH):
            batch = recordings[first : first + BATCH]
            names: list[str | int] = [recording.id for recording in batch]
            yield from sensor.record(self.log_brightness(batch), STEP_US, names)

    def boxes(self, recordings: Sequence[Recording], times_us: Sequence[int]) -> NDArray[np.float32]:
        """float32 [num, times, 2, 4]: x0, y0, x1, y1 of both digits at these times; 0 where there is no second one.

        In pixels; pixel k of a row covers k .. k + 1, so that the whole field is 0, 0, 64, 64.
        """
        return self.crossings(recordings).boxes(np.asarray(times_us) / 1e6).astype(np.float32)

    def box_labels(self, recordings: Sequence[Recording]) -> NDArray[np.int64]:
        """int64 [num, 2]: classes of both digits; -1 where there is no second one."""
        labels = np.empty((len(recordings), OBJECTS), np.int64)
        for row, (part, index) in enumerate(recording.key for recording in recordings):
            labels[row] = self._pictures[part][1][self._chosen[part][:, index]]
        labels[draw_single([recording.id for recording in recordings], SET_SEED), 1] = -1
        return labels

    def step_ends_us(self, T: int) -> list[int]:
        """Times at which the steps of ``T`` equal parts of a recording end."""
        return [(step + 1) * DURATION_US // T for step in range(T)]

    def groups(self, recordings: Sequence[Recording]) -> NDArray[np.int64]:
        """int64 [num]: recordings of different groups of a split share no picture."""
        return np.array([recording.key[1] % GROUPS for recording in recordings], np.int64)

    def crossings(self, recordings: Sequence[Recording]) -> Crossings:
        """How the digits of these recordings move."""
        shown = self._shown(recordings)
        return draw_crossings(shown, [recording.id for recording in recordings], SET_SEED, SIDE, DURATION_US / 1e6)

    def log_brightness(self, recordings: Sequence[Recording]) -> Iterator[NDArray[np.float32]]:
        """What the sensor sees: float32 [num, 64 * 64] every STEP_US."""
        crossings, shown = self.crossings(recordings), self._shown(recordings)
        moving = [
            MovingPictures(shown[:, number], crossings.size[:, number], crossings.contrast[:, number], SIDE, SIDE)
            for number in range(OBJECTS)
        ]
        middles = crossings.middles(np.arange(DURATION_US // RENDER_US + 1) * RENDER_US / 1e6)
        # A table instead of np.log: the same numbers on every processor, and faster.
        table = np.log(BACKGROUND + np.arange(256) / 255).astype(np.float32)

        def frame(at: int) -> NDArray[np.float32]:
            # Of two that overlap the one with more ink is seen.
            layers = [digit.brightness(*middles[:, at, number].T) for number, digit in enumerate(moving)]
            return table.take(np.maximum(*layers).reshape(len(shown), -1))

        before = frame(0)
        yield before
        for at in range(1, DURATION_US // RENDER_US + 1):
            after = frame(at)
            for step in range(1, RENDER_US // STEP_US):
                part = np.float32(step * STEP_US / RENDER_US)
                yield before + part * (after - before)
            yield after
            before = after

    def _shown(self, recordings: Sequence[Recording]) -> NDArray[np.uint8]:
        """uint8 [num, 2, s, s]: the pictures of both digits, also where the second is not shown."""
        side = self._pictures["train"][0].shape[1]
        shown = np.empty((len(recordings), OBJECTS, side, side), np.uint8)
        for row, (part, index) in enumerate(recording.key for recording in recordings):
            shown[row] = self._pictures[part][0][self._chosen[part][:, index]]
        return shown

    def __repr__(self) -> str:
        return f"MovingDigitsSource(simulated recordings of moving digits, pictures={self.of!r}, seed={self.seed})"


def _digits() -> Pictures:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # ink 0 .. 16
    labels = digits.target.astype(np.int64)
    test = stratified_subset(labels, TEST_PICTURES, SPLIT_SEED)
    train = np.setdiff1d(np.arange(len(labels)), test)
    return {"train": (images[train], labels[train]), "test": (images[test], labels[test])}


def _mnist(root: Path) -> Pictures:
    mnist = load_mnist(root)
    return {split: (mnist.pictures[split], mnist.labels[split]) for split in NUMBER}


def _choose(labels: NDArray[np.int64], split: str) -> NDArray[np.int64]:
    """[2, recordings]: pictures of both digits, out of the recording's group; first digits have every class in turn."""
    chosen = np.empty((OBJECTS, NUMBER[split]), np.int64)
    for group, (_, members) in enumerate(stratified_folds(labels, GROUPS, SET_SEED)):
        generator = np.random.default_rng(derive_seed(SET_SEED, "pictures", split, group))
        of_class = [members[labels[members] == digit] for digit in range(DIGITS)]
        for turn, index in enumerate(range(group, NUMBER[split], GROUPS)):
            chosen[0, index] = generator.choice(of_class[turn % DIGITS])
            chosen[1, index] = generator.choice(of_class[generator.integers(DIGITS)])
    return chosen


def _open(root: Path | None = None, *, pictures: str = "digits", seed: int = 0) -> MovingDigitsSource:
    """See :class:`MovingDigitsSource`."""
    return MovingDigitsSource(root, pictures, seed)


DATASET = RegisteredDataset(
    DatasetInfo(
        name="moving-digits",
        title="moving-digits (simulated)",
        class_names=MovingDigitsSource.class_names,
        sensor_size=MovingDigitsSource.sensor_size,
        splits={"fixed": NUMBER},
        split_rules={"fixed": f"no picture is in both; of scikit-learn's digits {TEST_PICTURES} are for the test"},
        simulated=True,
        citation=(
            "Pictures: E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits. UCI Machine Learning "
            "Repository (1998). Paths after: N. Srivastava, E. Mansimov, R. Salakhutdinov: Unsupervised Learning of "
            "Video Representations using LSTMs. ICML (2015)"
        ),
        how_to_get=(
            "Nothing to get: scikit-learn brings the pictures, the recordings are simulated. With pictures='mnist': "
            + HOW_TO_GET_MNIST
        ),
        where_to_put=f"{MNIST_FILE}, with pictures='mnist'",
    ),
    _open,
)
