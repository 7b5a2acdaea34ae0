"""How the digits of ``moving-digits`` move: straight, each at its own speed, reflected at the rim of the field."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from snn_core.datasets.moving_pictures import FINE, enlarge
from snn_core.seeding import derive_seed

#: Name of each drawn parameter -> range. The order is that of the draws: append only.
RANGES: dict[str, tuple[float, float]] = {
    "length": (14.0, 26.0),  # of the box's longer side, in pixels
    "start_x": (0.0, 1.0),  # of the room there is
    "start_y": (0.0, 1.0),
    "speed": (30.0, 90.0),  # in pixels a second
    "direction": (0.0, 1.0),  # in turns
    "contrast": (0.6, 1.0),
}
SINGLE = 0.5  # of the recordings have one digit
#: Ink is where brightness is at least so much of that of full ink, 255.
INK = 64
#: Two digits are drawn again until their boxes, when the recording ends, have at most this intersection over union.
MOST_OVERLAP, DRAWS = 0.1, 64
#: Pictures that are enlarged at once, to bound memory.
CHUNK = 64

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Crossings:
    """Two digits a recording, of which the second may be missing; lengths in pixels, times in seconds.

    Attributes:
        ink: [num, 2, 4], x0, y0, x1, y1 of the ink from the picture's middle.
        low, room: [num, 2, 2], least x and y of the picture's middle, and how far it may go from there.
        start: [num, 2, 2], place x and y at time 0, from ``low``.
        velocity: [num, 2, 2], pixels a second.
        size: [num, 2], length of the whole picture's side.
        contrast: [num, 2]; 0 where there is no digit.
        single: bool [num], whether there is only one.
    """

    ink: Floats
    low: Floats
    room: Floats
    start: Floats
    velocity: Floats
    size: Floats
    contrast: Floats
    single: NDArray[np.bool_]

    def middles(self, seconds: Floats) -> Floats:
        """[num, times, 2, 2]: x, y of the pictures' middles, where the centre of pixel 0 is 0."""
        way = self.start[:, None] + self.velocity[:, None] * seconds[:, None, None]
        room = self.room[:, None]
        return self.low[:, None] - 0.5 + room - np.abs(np.mod(way, 2 * room) - room)

    def boxes(self, seconds: Floats) -> Floats:
        """[num, times, 2, 4]: x0, y0, x1, y1, where pixel 0 covers 0 .. 1; 0 where there is no digit."""
        middles = self.middles(seconds) + 0.5
        boxes = np.concatenate([middles, middles], -1) + self.ink[:, None]
        boxes[self.single, :, 1] = 0
        return boxes


def draw_crossings(shown: NDArray[np.uint8], names: list[str], seed: int, side: int, duration: float) -> Crossings:
    """Paths of the pictures ``shown`` uint8 [num, 2, s, s]; they depend on the recording's name and the seed.

    Args:
        side: of the field, in pixels, within which all ink stays.
        duration: in seconds; boxes do not overlap much at its end.
    """
    extent = ink_extents(shown.reshape(-1, *shown.shape[2:])).reshape(len(shown), 2, 4)
    longest = np.maximum(extent[..., 2] - extent[..., 0], extent[..., 3] - extent[..., 1])
    parts = [
        _draw(extent[row : row + 1], longest[row : row + 1], name, seed, side, duration)
        for row, name in enumerate(names)
    ]
    if not parts:
        pair, place = np.empty((0, 2)), np.empty((0, 2, 2))
        return Crossings(np.empty((0, 2, 4)), place, place, place, place, pair, pair, np.empty(0, np.bool_))
    return Crossings(
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in Crossings.__dataclass_fields__}
    )


def draw_single(names: list[str], seed: int) -> NDArray[np.bool_]:
    """bool [num]: which recordings show one digit only; for itself, since it needs no picture."""
    chances = [np.random.default_rng(derive_seed(seed, "single", name)).random() for name in names]
    return np.array(chances) < SINGLE


def _draw(extent: Floats, longest: Floats, name: str, seed: int, side: int, duration: float) -> Crossings:
    """One recording's."""
    generator = np.random.default_rng(derive_seed(seed, "path", name))
    single = draw_single([name], seed)
    low, high = np.array(list(RANGES.values())).T
    for _ in range(DRAWS):
        uniform = generator.random((2, len(RANGES)))
        drawn = dict(zip(RANGES, (low + (high - low) * uniform).T[:, None], strict=True))  # each [1, 2]
        scale = drawn["length"] / longest  # pixels of a side of the picture
        ink = extent * scale[..., None]
        least, room = -ink[..., :2], side - (ink[..., 2:] - ink[..., :2])
        turn = 2 * np.pi * drawn["direction"]
        crossing = Crossings(
            ink=ink,
            low=least,
            room=room,
            start=np.stack([drawn["start_x"], drawn["start_y"]], -1) * room,
            velocity=drawn["speed"][..., None] * np.stack([np.cos(turn), np.sin(turn)], -1),
            size=scale,
            contrast=drawn["contrast"] * np.array([1.0, 0.0 if single[0] else 1.0]),
            single=single,
        )
        if single[0] or _overlap(crossing.boxes(np.array([duration]))[0, 0]) <= MOST_OVERLAP:
            break
    return crossing


def _overlap(boxes: Floats) -> float:
    """Intersection over union of two boxes [2, 4]."""
    sides = np.minimum(*boxes[:, 2:]) - np.maximum(*boxes[:, :2])
    common = float(np.prod(np.maximum(sides, 0)))
    return common / (float(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1).sum()) - common)


def ink_extents(pictures: NDArray[np.uint8]) -> Floats:
    """[num, 4]: x0, y0, x1, y1 of the ink of pictures uint8 [num, s, s], enlarged as they are shown.

    From the picture's middle, where its side is 1.
    """
    distinct, inverse = np.unique(pictures, axis=0, return_inverse=True)
    side, number = pictures.shape[1], len(distinct)
    extent = np.empty((number, 4))
    for first in range(0, number, CHUNK):
        fine = np.asarray(enlarge(distinct[first : first + CHUNK], np.ones(min(CHUNK, number - first))) >= INK)
        for axis in (0, 1):
            rows: NDArray[np.bool_] = np.any(fine, axis=axis + 1)
            # Fine points from .. to; the middle of the enlarged picture, with its rim, is the picture's.
            extent[first : first + CHUNK, axis] = rows.argmax(1) - rows.shape[1] / 2
            extent[first : first + CHUNK, axis + 2] = rows.shape[1] / 2 - rows[:, ::-1].argmax(1)
    return extent[inverse.reshape(-1)] / (side * FINE)
