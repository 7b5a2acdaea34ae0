"""Columns under the names people give them -> events, with nothing guessed: what is unclear is refused."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snn_core.datasets.events import EVENT_DTYPE
from snn_core.datasets.readers.event_file import MAX_COORDINATE, EventFile

NAMES = {
    "t": ("t", "ts", "time", "timestamp", "timestamps"),
    "x": ("x", "xs", "x_pos"),
    "y": ("y", "ys", "y_pos"),
    "p": ("p", "ps", "pol", "polarity", "polarities", "on"),
}
#: Far beyond any recording (292 years are 2**63 us), and far from where whole numbers overflow.
MAX_TIME = 1 << 62


def find_columns(names: Iterable[str]) -> dict[str, str] | None:
    """Which of ``names`` are t, x, y and p; None where one of the four is missing or there twice."""
    there = {name.lower(): name for name in names}
    found = {field: [there[name] for name in known if name in there] for field, known in NAMES.items()}
    return {field: hits[0] for field, hits in found.items()} if all(len(hits) == 1 for hits in found.values()) else None


def events_from_columns(
    file: EventFile, columns: dict[str, NDArray[Any]], first: int = 0, origin: int = 0
) -> NDArray[np.void]:
    """EVENT_DTYPE array of four arrays ``t x y p``.

    Args:
        file: for error messages.
        columns: one-dimensional, of equal length; whole numbers (floating point is allowed where every value is a whole
            number). ``t`` in us. ``p`` 0 or -1 for OFF, 1 for ON, or boolean.
        first: index of the first event in the file, for error messages.
        origin: the coordinate of the first pixel, 0 or 1.

    Raises:
        DataError: values that are no such numbers, e.g. a time in seconds.
    """
    lengths = {name: column.shape for name, column in columns.items()}
    if len(set(lengths.values())) != 1 or columns["t"].ndim != 1:
        raise file.error(0, f"t, x, y and p must be one-dimensional and of equal length, got {lengths}")
    events = np.empty(len(columns["t"]), EVENT_DTYPE)
    bounds = {"t": (-MAX_TIME, MAX_TIME), "x": (origin, MAX_COORDINATE), "y": (origin, MAX_COORDINATE), "p": (-1, 1)}
    for name, (low, high) in bounds.items():
        column = columns[name]
        if column.dtype.kind not in "iubf":
            raise file.error(0, f"{name} must hold whole numbers, got {column.dtype}")
        bad = ~((column >= low) & (column <= high))  # so that NaN is bad too
        if column.dtype.kind == "f":
            bad |= column != np.floor(column)
        if bad.any():
            index = int(bad.argmax())
            hint = " (in microseconds)" if name == "t" else ""
            raise file.error(
                0,
                f"{name} must be a whole number of {low}..{high}{hint}, but event {first + index} has {column[index]}",
            )
        events[name] = column > 0 if name == "p" else column.astype(np.int64) - (origin if name in "xy" else 0)
    return events
