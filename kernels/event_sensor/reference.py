"""The simulated event sensor in numpy: what the native operators compute, number by number."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from snn_core.kernels.event_sensor.schema import FRACTION_BITS, PHASE_BITS, PIXEL_BITS, SEEING

Floats = NDArray[np.float32]
Keys = NDArray[np.int64]
NEVER_KEY, NEVER = np.int64(2**62), np.int64(2**44)


def sensor_step_reference(
    before: Floats,
    after: Floats,
    reference: Floats,
    blind_until: NDArray[np.int32],
    threshold_on: Floats,
    threshold_off: Floats,
    refractory: NDArray[np.int32],
    noise: Keys,
    noise_bounds: Keys,
    start: int,
    end: int,
) -> list[Keys]:
    """Keys of the events of each recording after ``start`` and up to ``end``; arguments as of the operator (schema.py).

    ``reference`` and ``blind_until`` [B, P] are updated.
    """
    batch, pixels = before.shape
    state = _Step(before, after, reference, blind_until, start, end)
    cell_of_noise = np.repeat(np.arange(batch), np.diff(noise_bounds)) * pixels + _pixel(noise)
    inside = (_time(noise) > start) & (_time(noise) <= end)
    pending, pending_cell = noise[inside], cell_of_noise[inside]
    on, off, rest = np.tile(threshold_on, batch), np.tile(threshold_off, batch), np.tile(refractory, batch)
    change = state.after - state.reference
    busy = (change >= on) | (change <= -off) | (state.blind_until <= end)
    cells = np.union1d(np.flatnonzero(busy), pending_cell)
    since = np.full(len(state.before), start, np.int64)
    found: list[tuple[NDArray[np.int64], Keys]] = []
    while len(cells):
        cells = state.release(cells, since)
        crossing, p = state.crossings(cells, on, off, since)
        # Noise while a pixel is blind is not seen; of the rest each pixel takes its next.
        awake = (_time(pending) >= since[pending_cell]) & np.isin(pending_cell, cells)
        pending, pending_cell = pending[awake], pending_cell[awake]
        spurious = np.full(len(state.before), NEVER_KEY)
        np.minimum.at(spurious, pending_cell, pending)
        key = crossing << PIXEL_BITS + 1 | (cells % pixels) << 1 | p
        noisy = (spurious[cells] < NEVER_KEY) & (_time(spurious[cells]) < crossing)
        key = np.where(noisy, spurious[cells], key)
        fired = noisy | (crossing < NEVER)
        cells, key = cells[fired], key[fired]
        found.append((cells // pixels, key))
        state.reference[cells] = np.nan
        state.blind_until[cells] = _time(key) + rest[cells]
    sample = np.concatenate([item[0] for item in found] or [np.empty(0, np.int64)])
    keys = np.concatenate([item[1] for item in found] or [np.empty(0, np.int64)])
    return [np.sort(keys[sample == index]) for index in range(batch)]


class _Step:
    """State and brightness of all pixels of all recordings, flat."""

    def __init__(
        self, before: Floats, after: Floats, reference: Floats, blind_until: NDArray[np.int32], start: int, end: int
    ) -> None:
        self.before, self.after = before.reshape(-1), after.reshape(-1)
        self.reference, self.blind_until = reference.reshape(-1), blind_until.reshape(-1)
        self.start, self.end = start, end

    def release(self, cells: NDArray[np.int64], since: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of the cells that see, in this step, after their blindness where it ends in it."""
        blind = self.blind_until[cells] != SEEING
        due = cells[blind & (self.blind_until[cells] <= self.end)]
        since[due] = self.blind_until[due]
        fraction = ((since[due] - self.start) / np.float64(self.end - self.start)).astype(np.float32)
        self.reference[due] = self.before[due] + fraction * (self.after[due] - self.before[due])
        self.blind_until[due] = SEEING
        return cells[self.blind_until[cells] == SEEING]

    def crossings(
        self, cells: NDArray[np.int64], on: Floats, off: Floats, since: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """When each of the cells crosses a threshold (NEVER where it does not), and polarities."""
        change = self.after[cells] - self.reference[cells]
        rises, falls = change >= on[cells], change <= -off[cells]
        level = self.reference[cells] + np.where(rises, on[cells], -off[cells])
        with np.errstate(divide="ignore", invalid="ignore"):
            fraction = (level - self.before[cells]) / (self.after[cells] - self.before[cells])
        fraction = np.where(fraction > 0, np.minimum(fraction, np.float32(1)), np.float32(0)).astype(np.float64)
        time = self.start + np.ceil(fraction * np.float64(self.end - self.start)).astype(np.int64)
        time = np.maximum(np.maximum(time, self.start + 1), since[cells])
        return np.where(rises | falls, time, NEVER), rises.astype(np.int64)


def _time(key: Any) -> Any:
    return key >> PIXEL_BITS + 1


def _pixel(key: Any) -> Any:
    return key >> 1 & (1 << PIXEL_BITS) - 1


def look_reference(
    picture: NDArray[np.uint8],
    x: int,
    y: int,
    size: tuple[int, int],
    stride: tuple[int, int],
    taps: Floats,
    brightness: Floats,
    response: Floats,
) -> Floats:
    """Log brightness float32 [height * width] of a sensor whose pixel (0, 0) looks at (x, y) of the picture [h, w]."""
    width, height = size
    shown = brightness[picture]
    across = _interpolate(np.ascontiguousarray(shown.T), x + np.arange(width) * stride[0], taps)
    lit = _interpolate(np.ascontiguousarray(across.T), y + np.arange(height) * stride[1], taps)
    levels = len(response) - 1
    level = np.clip(lit * np.float32(levels) + np.float32(0.5), np.float32(0), np.float32(levels))
    return response[level.astype(np.int32)].reshape(-1)


def _interpolate(lines: Floats, positions: NDArray[np.int64], taps: Floats) -> Floats:
    """Weighted sums [len(positions), n] of ``lines`` [count, n] around each position."""
    count, tap_count = len(lines), taps.shape[1]
    padded = np.pad(lines, ((tap_count, tap_count), (0, 0)))
    first = np.clip((positions >> FRACTION_BITS) - tap_count // 2 + 1, -tap_count, count) + tap_count
    weights = taps[positions >> FRACTION_BITS - PHASE_BITS & (1 << PHASE_BITS) - 1]
    total = np.zeros((len(positions), lines.shape[1]), np.float32)
    for k in range(tap_count):  # one after the other: sums must round alike
        total += weights[:, k : k + 1] * padded[first + k]
    return total
