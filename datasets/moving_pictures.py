"""Pictures that move and turn before a simulated sensor, in whole numbers: the same brightness on every machine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from snn_core.datasets.event_sensor import SensorParameters

#: A picture is enlarged so many times; a pixel then sees the nearest of the fine points.
FINE = 16
#: Coordinates in the fine picture are whole multiples of 1 / 2**FRACTION_BITS of a fine point.
FRACTION_BITS = 8
#: Interpolation weights are whole multiples of 1 / WEIGHT_UNIT. 255 * (1.25 * WEIGHT_UNIT)**2 < 2**24: then the sums of
#: float32 products are exact, whatever the order in which a BLAS adds.
WEIGHT_UNIT = 128

#: The sensor, the rhythm and the light of the sets of moving digits. A picture is drawn every RENDER_US; log brightness
#: in between is linear, and given to the sensor every STEP_US.
SENSOR = SensorParameters(
    threshold_on=0.3, threshold_off=0.3, threshold_mismatch=0.1, refractory_us=2000, noise_rate_hz=0.3
)
RENDER_US, STEP_US = 4000, 2000
BACKGROUND = 0.13  # brightness of black beside that of full ink, 1


def corner_path(
    corners: Sequence[tuple[float, float]], leg_us: int, motion_us: int, step_us: int
) -> list[tuple[float, float]]:
    """Places (x, y) every ``step_us`` from the first corner to the last, both among them.

    A leg from corner to corner takes ``leg_us``: minimum-jerk motion for ``motion_us`` of them, then rest.
    """
    path = []
    for time in range(0, leg_us * (len(corners) - 1) + 1, step_us):
        leg = min(time // leg_us, len(corners) - 2)
        s = min((time - leg * leg_us) / motion_us, 1.0)
        progress = s**3 * (10 - 15 * s + 6 * s * s)
        (x0, y0), (x1, y1) = corners[leg], corners[leg + 1]
        path.append((x0 + progress * (x1 - x0), y0 + progress * (y1 - y0)))
    return path


def cubic_weights(position: NDArray[np.float64], cells: int) -> NDArray[np.float64]:
    """[cells, points]: Keys' cubic interpolation (a = -1/2) of a row of cells, whose centres lie at 0 .. cells - 1.

    Source: Keys, Cubic convolution interpolation for digital image processing, 1981.
    """
    d = np.abs(position[None, :] - np.arange(cells)[:, None])
    near = 1.5 * d**3 - 2.5 * d**2 + 1
    far = -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
    return np.where(d < 1, near, np.where(d < 2, far, 0.0))


def whole_weights(position: NDArray[np.float64], cells: int) -> NDArray[np.float32]:
    """:func:`cubic_weights` as whole numbers, float32, that stand for multiples of 1 / WEIGHT_UNIT."""
    return np.rint(cubic_weights(position, cells) * WEIGHT_UNIT).astype(np.float32)


def enlarge(pictures: NDArray[np.uint8], contrast: NDArray[np.float64]) -> NDArray[np.uint8]:
    """uint8 [num, S, S] of pictures uint8 [num, s, s]: FINE times larger, a dark rim of one cell, S = FINE (s + 2).

    ``contrast`` [num], 0 .. 1, is multiplied in.
    """
    side = pictures.shape[1] + 2
    padded = np.zeros((len(pictures), side, side), np.float32)
    padded[:, 1:-1, 1:-1] = pictures
    weights = whole_weights((np.arange(side * FINE) + 0.5) / FINE - 0.5, side)
    fine = (weights.T @ padded @ weights).astype(np.int32)
    factor = np.rint(contrast * 128).astype(np.int32)[:, None, None]
    # 14 bits are WEIGHT_UNIT squared; 8 are left for the product with the contrast, so that nothing overflows.
    scaled = (np.clip(fine >> 6, 0, 255 << 8) * factor) >> 15
    return scaled.astype(np.uint8)


class MovingPictures:
    """Pictures uint8 [num, s, s], one a recording, each shown at a place, an angle and a size of its own.

    Args:
        pictures: brightness 0 .. 255.
        size: float64 [num], sensor pixels that a picture's side covers.
        contrast: float64 [num], 0 .. 1.
        width, height: of the sensor, in pixels.
    """

    def __init__(
        self,
        pictures: NDArray[np.uint8],
        size: NDArray[np.float64],
        contrast: NDArray[np.float64],
        width: int,
        height: int,
    ) -> None:
        fine = enlarge(pictures, contrast)
        self.side = fine.shape[1]
        self.fine = fine.reshape(-1)
        self.first = (np.arange(len(pictures)) * self.side**2).astype(np.int32)[:, None, None]
        self.scale = pictures.shape[1] * FINE / size * (1 << FRACTION_BITS)
        self.columns = np.arange(width, dtype=np.int32)
        self.rows = np.arange(height, dtype=np.int32)

    def brightness(
        self, x: NDArray[np.float64], y: NDArray[np.float64], angle: NDArray[np.float64] | None = None
    ) -> NDArray[np.uint8]:
        """uint8 [num, H, W] with the pictures' middles at ``x``, ``y`` [num] (pixels; pixel 0's centre is 0).

        ``angle`` [num] in radians turns them, clockwise as seen (y points down); None leaves them upright.
        """
        if angle is None:
            columns = self._points(self.scale, -self.scale * x, self.columns)
            rows = self._points(self.scale, -self.scale * y, self.rows)
            return self.fine.take((self.first + (rows * self.side)[:, :, None]) + columns[:, None, :])
        cosine, sine = self.scale * np.cos(angle), self.scale * np.sin(angle)
        across = self._turned(cosine, sine, -cosine * x - sine * y)
        down = self._turned(-sine, cosine, sine * x - cosine * y)
        down *= self.side
        down += across
        down += self.first
        return self.fine.take(down)

    def _points(
        self, step: NDArray[np.float64], start: NDArray[np.float64], pixel: NDArray[np.int32]
    ) -> NDArray[np.int32]:
        """Fine points [num, pixels] at ``start + step * pixel`` from the middle, kept inside the picture."""
        at = np.rint(step).astype(np.int32)[:, None] * pixel + self._middle(start)[:, None]
        return np.clip(at >> FRACTION_BITS, 0, self.side - 1)

    def _turned(self, a: NDArray[np.float64], b: NDArray[np.float64], start: NDArray[np.float64]) -> NDArray[np.int32]:
        """Fine points [num, H, W] at ``start + a * column + b * row`` from the middle, kept inside the picture."""
        along_columns = np.rint(a).astype(np.int32)[:, None] * self.columns + self._middle(start)[:, None]
        along_rows = np.rint(b).astype(np.int32)[:, None] * self.rows
        at = along_rows[:, :, None] + along_columns[:, None, :]
        at >>= FRACTION_BITS
        return np.clip(at, 0, self.side - 1, out=at)

    def _middle(self, start: NDArray[np.float64]) -> NDArray[np.int32]:
        return np.rint(start + (self.side << FRACTION_BITS) / 2).astype(np.int32)
