"""Operator ``event_frames``: a recording's events counted into T frames, vectorised in numpy.

Bin edges are those of tonic 1.6 (``tonic.transforms.ToFrame`` without overlap, to which the tests compare):

* Equal time: ``window = (t_last - t_first) // T`` in whole microseconds; bin k holds the events with
  ``t_first + k * window <= t < t_first + (k + 1) * window``. Half-open bins of equal length: events at or after
  ``t_first + T * window`` belong to no bin. So the last event (and all at its time stamp) is always dropped, together
  with a remainder of at most T - 1 microseconds; a recording shorter than T microseconds gives empty frames.
* Equal count: ``share = number of events // T``; bin k holds the events ``k * share`` to ``(k + 1) * share - 1`` in
  file order. The last ``number of events mod T`` events belong to no bin; fewer than T events give empty frames.

Channel 0 counts OFF events (p = 0), channel 1 ON events (p = 1). Zero events give empty frames of shape [T, 2, H, W]
(tonic gives [T, 2, W, H] there, which differs for sensors that are not square).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from snn_core.errors import ArgumentError

MAX_COUNT = 255
FIELDS = ("t", "x", "y", "p")


def event_frames(
    events: NDArray[Any],
    sensor_size: tuple[int, int, int],
    *,
    n_time_bins: int | None = None,
    n_event_bins: int | None = None,
) -> tuple[NDArray[np.uint8], int]:
    """Count the events of one recording per bin, polarity and pixel.

    Args:
        events: structured array [num_events] with integer (or, for ``p``, boolean) fields ``t x y p``; ``t`` in
            microseconds and ascending for ``n_time_bins``; 0 <= x < W, 0 <= y < H, p 0 (OFF) or 1 (ON).
        sensor_size: (W, H, 2), as tonic writes it.
        n_time_bins: T frames of equal length in time.
        n_event_bins: T frames of equal number of events. Exactly one of the two is given.

    Returns:
        frames uint8 [T, 2, H, W], counts clipped at 255; and how many cells of these frames were clipped
        (0 means that the counts are exact). The bin edges are described at the top of this module.

    Raises:
        ArgumentError: not exactly one of the two bin arguments, a number of bins below 1, an array without the four
            integer fields, coordinates or polarities outside the sensor, time stamps that go backwards.

    Source: the convention of tonic's ``ToFrame`` (Lenz et al., tonic, doi 10.5281/zenodo.5079802).
    """
    width, height, polarities = _checked_sensor_size(sensor_size)
    bins = _checked_bins(n_time_bins, n_event_bins)
    _check_fields(events)
    shape = (bins, polarities, height, width)
    if len(events) == 0:
        return np.zeros(shape, np.uint8), 0

    x, y, p = (_checked_range(events, *bound) for bound in (("x", width), ("y", height), ("p", polarities)))
    cell = (p * height + y) * width + x
    if n_time_bins is not None:
        step, kept = _time_bins(events["t"], bins)
    else:
        step, kept = _count_bins(len(events), bins)
    frame_size = polarities * height * width
    counts = np.bincount(step * frame_size + cell[:kept], minlength=bins * frame_size).reshape(shape)
    saturated = int(np.count_nonzero(counts > MAX_COUNT)) if kept > MAX_COUNT else 0
    if saturated:
        np.minimum(counts, MAX_COUNT, out=counts)
    return counts.astype(np.uint8), saturated


def _time_bins(t: NDArray[Any], bins: int) -> tuple[NDArray[np.int64], int]:
    """Bin of each event that lies in a bin, and how many (the first so many) do. ``t`` must ascend."""
    t = t.astype(np.int64)
    backwards = t[1:] < t[:-1]
    if backwards.any():
        index = int(backwards.argmax()) + 1
        raise ArgumentError(
            f"events['t'] must ascend for n_time_bins, but event {index} is at {t[index]} us after {t[index - 1]} us; "
            "sort the events by time first"
        )
    window = (int(t[-1]) - int(t[0])) // bins
    edges = np.searchsorted(t, t[0] + window * np.arange(bins + 1))
    return np.repeat(np.arange(bins), np.diff(edges)), int(edges[-1])


def _count_bins(num_events: int, bins: int) -> tuple[NDArray[np.int64], int]:
    """Bin of each event that lies in a bin, and how many (the first so many) do."""
    share = num_events // bins
    return np.repeat(np.arange(bins), share), bins * share


def _checked_bins(n_time_bins: int | None, n_event_bins: int | None) -> int:
    if (n_time_bins is None) == (n_event_bins is None):
        raise ArgumentError(
            f"give exactly one of n_time_bins and n_event_bins, got n_time_bins={n_time_bins}, "
            f"n_event_bins={n_event_bins}"
        )
    name, bins = ("n_time_bins", n_time_bins) if n_time_bins is not None else ("n_event_bins", n_event_bins)
    if isinstance(bins, bool) or not isinstance(bins, (int, np.integer)) or bins < 1:
        raise ArgumentError(f"{name} must be an integer of at least 1, got {bins!r}")
    return int(bins)


def _checked_sensor_size(sensor_size: tuple[int, int, int]) -> tuple[int, int, int]:
    if len(sensor_size) != 3 or sensor_size[0] < 1 or sensor_size[1] < 1 or sensor_size[2] != 2:
        raise ArgumentError(f"sensor_size must be (width, height, 2), got {sensor_size!r}")
    width, height, polarities = (int(size) for size in sensor_size)
    return width, height, polarities


def _check_fields(events: NDArray[Any]) -> None:
    names = events.dtype.names if isinstance(events, np.ndarray) else None
    if names is None or not set(FIELDS) <= set(names) or events.ndim != 1:
        raise ArgumentError(f"events must be a one-dimensional structured array with fields t, x, y, p, got {names}")
    for name in FIELDS:
        allowed = "iub" if name == "p" else "iu"
        if events.dtype[name].kind not in allowed:
            raise ArgumentError(f"events[{name!r}] must hold integers, got {events.dtype[name]}")


def _checked_range(events: NDArray[Any], name: str, size: int) -> NDArray[np.int64]:
    """Field ``name`` as int64, all within 0 .. size - 1."""
    values = events[name].astype(np.int64)
    # A negative number read as unsigned is huge, so one maximum checks both ends.
    if values.view(np.uint64).max() >= size:
        index = int(((values < 0) | (values >= size)).argmax())
        raise ArgumentError(f"events[{name!r}] must lie in 0..{size - 1}, but event {index} has {values[index]}")
    return values
