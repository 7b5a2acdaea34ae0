"""Drawing recordings. matplotlib is imported here alone, and only when something is drawn."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snn_core.errors import ArgumentError

#: Largest sensor that is drawn, in pixels a side: every panel is a picture of that size.
MAX_SIDE = 4096


def plot_events(
    events: NDArray[Any], sensor_size: tuple[int, int] | None = None, *, panels: int = 4, title: str = ""
) -> Any:
    """A matplotlib figure of a recording: ``panels`` parts of equal time, ON events red, OFF events blue.

    Args:
        events: structured array [num_events] with fields ``t x y p`` as :func:`snn_core.datasets.read_events` gives it.
        sensor_size: (width, height); by default just large enough for the events.
        panels: number of parts, at least 1.
        title: what stands above.

    Raises:
        ArgumentError: no panel, a sensor too large to draw, or matplotlib is not installed.
    """
    if panels < 1:
        raise ArgumentError(f"panels must be at least 1, got {panels}")
    try:
        from matplotlib.figure import Figure
        from matplotlib.pyplot import figure as new_figure
    except ImportError as error:
        raise ArgumentError(f"drawing needs matplotlib: pip install 'snn-core[plots]' ({error})") from error
    width, height = sensor_size or (int(events["x"].max(initial=0)) + 1, int(events["y"].max(initial=0)) + 1)
    if max(width, height) > MAX_SIDE:
        raise ArgumentError(f"a sensor of {width} x {height} pixels is too large to draw (at most {MAX_SIDE} a side)")
    columns = min(panels, 4)
    rows = -(-panels // columns)
    figure: Figure = new_figure(figsize=(3.2 * columns, 3.2 * rows * height / width + 0.6), layout="constrained")
    figure.suptitle(f"{title}: {len(events):,} events; ON red, OFF blue")
    for index, (label, picture) in enumerate(_pictures(events, width, height, panels)):
        axes = figure.add_subplot(rows, columns, index + 1)
        axes.imshow(picture, interpolation="nearest")
        axes.set_title(label, fontsize=8)
        axes.set_xticks([])
        axes.set_yticks([])
    return figure


def _pictures(events: NDArray[Any], width: int, height: int, panels: int) -> list[tuple[str, NDArray[np.float64]]]:
    """Label and picture [height, width, 3] of each part; each pixel as bright as the log of its events."""
    t = events["t"].astype(np.int64)
    begin, end = (int(t.min()), int(t.max()) + 1) if len(t) else (0, panels)
    edges = [begin + (end - begin) * index // panels for index in range(panels + 1)]
    pixel = events["y"].astype(np.int64) * width + events["x"]
    pictures = []
    for low, high in itertools.pairwise(edges):
        inside = (t >= low) & (t < high)
        counts = [
            np.bincount(pixel[inside & (events["p"] == p)], minlength=width * height).reshape(height, width)
            for p in (0, 1)
        ]
        off, on = (np.log1p(count) for count in counts)
        scale = max(float(off.max()), float(on.max()), 1.0)
        picture = np.stack([on, np.minimum(on, off), off], axis=-1) / scale
        pictures.append((f"{(low - begin) / 1000:.1f} .. {(high - begin) / 1000:.1f} ms", picture))
    return pictures
