"""What the native operator does, vectorised in numpy: for machines without it, and for the messages of errors."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from snn_core.errors import ArgumentError
from snn_core.kernels.event_frames.schema import EQUAL_COUNT, EQUAL_TIME, INDEX_FROM


def add_events(
    frames: NDArray[Any], events: NDArray[Any], by: int, start: int, step: int, rest: bool, first: int = 0
) -> NDArray[np.int64]:
    """Count the events into ``frames`` [T, 2, H, W] and return the flat indices of the cells that were clipped.

    ``by``, ``start``, ``step`` and ``rest`` as of the operator (schema.py); ``first`` is added to the index of an event
    in messages.

    Raises:
        ArgumentError: coordinates or polarities outside the frames, time stamps that go backwards.
    """
    bins, polarities, height, width = frames.shape
    if len(events) == 0:
        return np.empty(0, np.int64)
    x, y, p = (_checked_range(events, name, size, first) for name, size in (("x", width), ("y", height), ("p", 2)))
    t = events["t"].astype(np.int64)
    if by == EQUAL_TIME:
        start, step = int(t[0]), (int(t[-1]) - int(t[0])) // bins
    elif by == EQUAL_COUNT:
        start, step = 0, len(events) // bins
    if by in (EQUAL_COUNT, INDEX_FROM):
        distance = np.arange(start, start + len(events), dtype=np.uint64)
    else:
        _check_order(t, first)
        # Unsigned: the difference of any two time stamps fits.
        distance = t.view(np.uint64) - np.array(start).astype(np.int64).view(np.uint64)
    bin_of = np.minimum(distance // np.uint64(step), np.uint64(bins)) if step else np.full(len(t), bins, np.uint64)
    if rest:
        bin_of = np.minimum(bin_of, np.uint64(bins - 1))
    kept = int(np.searchsorted(bin_of, bins))
    cell = ((bin_of[:kept].astype(np.int64) * polarities + p[:kept]) * height + y[:kept]) * width + x[:kept]
    counts = np.bincount(cell, minlength=frames.size).reshape(frames.shape) + frames
    limit = np.iinfo(frames.dtype).max
    clipped = np.flatnonzero(counts > limit)
    frames[...] = np.minimum(counts, limit)
    return clipped


def _check_order(t: NDArray[np.int64], first: int) -> None:
    backwards = t[1:] < t[:-1]
    if backwards.any():
        index = int(backwards.argmax()) + 1
        raise ArgumentError(
            f"events['t'] must ascend for bins of time, but event {first + index} is at {t[index]} us after "
            f"{t[index - 1]} us; sort the events by time first"
        )


def _checked_range(events: NDArray[Any], name: str, size: int, first: int) -> NDArray[np.int64]:
    """Field ``name`` as int64, all within 0 .. size - 1."""
    values = events[name].astype(np.int64)
    # A negative number read as unsigned is huge, so one maximum checks both ends.
    if values.view(np.uint64).max() >= size:
        index = int(((values < 0) | (values >= size)).argmax())
        raise ArgumentError(
            f"events[{name!r}] must lie in 0..{size - 1}, but event {first + index} has {values[index]}"
        )
    return values
