"""The one event format inside the package."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from snn_core.errors import ArgumentError

#: One event: ``t`` in microseconds, ``x`` column, ``y`` row (both from 0, top left), ``p`` 1 = ON, 0 = OFF.
EVENT_DTYPE = np.dtype([("t", "<i8"), ("x", "<i2"), ("y", "<i2"), ("p", "<i1")])


def make_events(t: ArrayLike, x: ArrayLike, y: ArrayLike, p: ArrayLike) -> NDArray[np.void]:
    """Structured array [num_events] of EVENT_DTYPE from four arrays [num_events].

    Raises:
        ArgumentError: the four differ in length.
    """
    columns = {"t": np.asarray(t), "x": np.asarray(x), "y": np.asarray(y), "p": np.asarray(p)}
    shapes = {name: column.shape for name, column in columns.items()}
    if len(set(shapes.values())) != 1 or columns["t"].ndim != 1:
        raise ArgumentError(f"t, x, y and p must be one-dimensional and of equal length, got {shapes}")
    events = np.empty(len(columns["t"]), EVENT_DTYPE)
    for name, column in columns.items():
        events[name] = column
    return events
