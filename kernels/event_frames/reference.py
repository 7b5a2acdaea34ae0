"""Events -> frames, one event at a time: short and obviously right, the oracle of the tests."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def event_frames_reference(
    events: NDArray[Any],
    sensor_size: tuple[int, int, int],
    *,
    by: str,
    number: int,
    convention: str = "tonic",
    include_incomplete: bool = False,
    dtype: Any = np.uint8,
) -> tuple[NDArray[Any], int]:
    """Count events per bin, polarity and pixel, in plain Python.

    Args:
        events: structured array with integer fields ``t x y p``, ``t`` ascending.
        sensor_size: (width, height, 2).
        by: ``"time"`` (equal time), ``"count"`` (equal number of events) or ``"window"`` (fixed time).
        number: of frames T; for ``"window"`` the microseconds of one.
        convention, include_incomplete, dtype: as of :func:`snn_core.kernels.event_frames`.

    Returns:
        frames [T, 2, H, W] of ``dtype``, clipped at its largest value, and the number of cells that were clipped.
    """
    width, height, polarities = sensor_size
    span = int(events["t"][-1]) - int(events["t"][0]) if len(events) else 0
    incomplete = by == "window" and (include_incomplete or convention == "spikingjelly")
    bins = number if by != "window" else max(1, -(-span // number) if incomplete else span // number)
    step = {"time": span // bins, "count": len(events) // bins, "window": number}[by]
    counts = np.zeros((bins, polarities, height, width), np.int64)
    for index, event in enumerate(events):
        position = index if by == "count" else int(event["t"]) - int(events["t"][0])
        for k in range(bins):
            takes_rest = convention == "spikingjelly" and k == bins - 1
            if k * step <= position and (position < (k + 1) * step or takes_rest):
                counts[k, int(event["p"]), int(event["y"]), int(event["x"])] += 1
    limit = np.iinfo(dtype).max
    return np.minimum(counts, limit).astype(dtype), int((counts > limit).sum())
