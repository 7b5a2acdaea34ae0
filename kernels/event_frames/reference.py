"""Events -> frames, one event at a time: short and obviously right, the oracle of the tests."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def event_frames_reference(
    events: NDArray[Any], sensor_size: tuple[int, int, int], *, bins: int, by: str
) -> tuple[NDArray[np.uint8], int]:
    """Count events per bin, polarity and pixel, in plain Python.

    Args:
        events: structured array with integer fields ``t x y p``, ``t`` ascending.
        sensor_size: (width, height, 2).
        bins: number of frames T.
        by: ``"time"`` (equal time) or ``"count"`` (equal number of events).

    Returns:
        frames uint8 [T, 2, H, W] clipped at 255, and the number of cells that were clipped.
    """
    width, height, polarities = sensor_size
    counts = np.zeros((bins, polarities, height, width), np.int64)
    if len(events):
        start = int(events["t"][0])
        window = (int(events["t"][-1]) - start) // bins
        share = len(events) // bins
        for index, event in enumerate(events):
            for step in range(bins):
                if by == "time":
                    inside = start + step * window <= int(event["t"]) < start + (step + 1) * window
                else:
                    inside = step * share <= index < (step + 1) * share
                if inside:
                    counts[step, int(event["p"]), int(event["y"]), int(event["x"])] += 1
    return np.minimum(counts, 255).astype(np.uint8), int((counts > 255).sum())
