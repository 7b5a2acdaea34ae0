"""Drawing distilled sets: a grid of classes over time, the same as GIF, spectra along time beside the real data's.

matplotlib is imported only when something is drawn; a GIF needs pillow, which comes with it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snn_core.errors import ArgumentError

_TINY = 1e-12
#: What a grid or a figure of spectra shows at most.
MAX_ROWS, MAX_STEPS = 40, 40


def _figure(width: float, height: float, layout: str | None = "constrained") -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ArgumentError(f"drawing needs matplotlib: pip install 'snn-core[plots]' ({error})") from error
    return Figure(figsize=(width, height), layout=layout)  # type: ignore[arg-type]


def _check(frames: NDArray[np.uint8], names: Sequence[str]) -> None:
    if frames.ndim != 5 or frames.shape[2] not in (1, 2) or 0 in frames.shape or len(names) != len(frames):
        raise ArgumentError(f"frames must be [num, T, 1 or 2, H, W] with {len(names)} names, got {list(frames.shape)}")


def pictures(frames: NDArray[np.uint8]) -> NDArray[np.float64]:
    """``[num, T, H, W, 3]`` in 0 .. 1: ON events red, OFF events blue on black, by the log of their counts.

    Each sample's brightest pixel (of all its frames) is 1. One polarity is drawn white.
    """
    counts = np.log1p(frames.astype(np.float64))
    off, on = counts[:, :, 0], counts[:, :, -1]
    scale = np.maximum(counts.max(axis=(1, 2, 3, 4)), _TINY)[:, None, None, None, None]
    middle = on if frames.shape[2] == 1 else np.minimum(on, off)
    return np.asarray(np.stack([on, middle, off], axis=-1) / scale)


def plot_grid(frames: NDArray[np.uint8], names: Sequence[str], *, title: str = "") -> Any:
    """A matplotlib figure: a row a sample, a column a time step.

    Args:
        frames: uint8 ``[num, T, P, H, W]``. names: one a sample. title: what stands above.

    Raises:
        ArgumentError: frames of another shape, more than 40 samples or time steps, or matplotlib is not installed.
    """
    _check(frames, names)
    rows, columns = frames.shape[:2]
    if rows > MAX_ROWS or columns > MAX_STEPS:
        raise ArgumentError(f"a grid of {rows} x {columns} pictures is too large to draw (at most 40 each way)")
    height, width = frames.shape[3:]
    figure = _figure(0.9 * columns + 0.5 + 0.07 * max(map(len, names)), 0.9 * rows * height / width + 0.6)
    # One picture: an axes for each of them takes a hundred times as long.
    axes = figure.add_subplot()
    axes.imshow(mosaic(pictures(frames)), interpolation="nearest")
    axes.set_xticks(_middles(columns, width), [str(step) for step in range(columns)], fontsize=7)
    axes.set_yticks(_middles(rows, height), names, fontsize=7)
    axes.tick_params(length=0)
    axes.set_xlabel("time step", fontsize=8)
    axes.set_title(f"{title}{': ' if title else ''}ON red, OFF blue, both white", fontsize=8)
    return figure


def mosaic(drawn: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pictures ``[rows, columns, H, W, 3]`` as one picture, with grey lines between."""
    padded = np.pad(drawn, ((0, 0), (0, 0), (0, 1), (0, 1), (0, 0)), constant_values=0.6)
    rows, columns, height, width, _ = padded.shape
    return padded.swapaxes(1, 2).reshape(rows * height, columns * width, 3)[:-1, :-1].astype(np.float64)


def _middles(count: int, size: int) -> NDArray[np.float64]:
    """Where the middles of a mosaic's pictures lie."""
    return np.asarray(np.arange(count) * (size + 1) + (size - 1) / 2, np.float64)


def write_gif(
    path: str | os.PathLike[str], frames: NDArray[np.uint8], names: Sequence[str], *, milliseconds: int = 150
) -> None:
    """Write the samples side by side, moving: a GIF that repeats for ever.

    Args:
        path: written as it is (the caller makes it atomic). frames, names: as of :func:`plot_grid`.
        milliseconds: a time step lasts, at least 20.

    Raises:
        ArgumentError: as :func:`plot_grid`, or ``milliseconds`` below 20.
    """
    _check(frames, names)
    if len(frames) > MAX_ROWS or milliseconds < 20:
        raise ArgumentError(f"milliseconds ({milliseconds}) must be at least 20, samples ({len(frames)}) at most 40")
    columns = int(np.ceil(np.sqrt(len(frames) * 1.6)))
    rows = -(-len(frames) // columns)
    height, width = frames.shape[3:]
    figure = _figure(1.3 * columns + 0.2, 1.3 * rows * height / width + 0.4)
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from PIL import Image
    except ImportError as error:
        raise ArgumentError(f"a GIF needs pillow: pip install pillow ({error})") from error
    drawn = np.zeros((rows * columns, *frames.shape[1:2], height, width, 3))
    drawn[: len(frames)] = pictures(frames)
    drawn = drawn.reshape(rows, columns, *drawn.shape[1:])
    axes = figure.add_subplot()
    shown = axes.imshow(mosaic(drawn[:, :, 0]), interpolation="nearest")
    axes.axis("off")
    for index, name in enumerate(names):
        row, column = divmod(index, columns)
        place = (column * (width + 1), row * (height + 1))
        axes.text(*place, name, color="white", fontsize=7, ha="left", va="top")
    canvas = FigureCanvasAgg(figure)
    steps = []
    for step in range(frames.shape[1]):
        shown.set_data(mosaic(drawn[:, :, step]))
        canvas.draw()
        steps.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy()))
    steps[0].save(path, format="gif", save_all=True, append_images=steps[1:], duration=milliseconds, loop=0)


def signals(frames: NDArray[np.uint8], cells: int = 4) -> NDArray[np.float64]:
    """``[num, T, D]``: events of each polarity in each of ``cells`` x ``cells`` parts of the picture."""
    num, steps, polarities, height, width = frames.shape
    rows = np.minimum(np.arange(height) * cells // height, cells - 1)
    columns = np.minimum(np.arange(width) * cells // width, cells - 1)
    by_row, by_column = np.eye(cells)[rows], np.eye(cells)[columns]
    summed = np.einsum("ntphw,hi,wj->ntpij", frames.astype(np.float64), by_row, by_column, optimize=True)
    return summed.reshape(num, steps, polarities * cells * cells)


def spectra(real: NDArray[np.float64], own: NDArray[np.float64]) -> dict[str, NDArray[Any]]:
    """Spectra along time of real ``[B, T, D]`` and synthetic ``[S, T, D]`` signals of one class.

    Returns:
        By name, for each frequency 0 .. T // 2: ``real`` and ``own``, amplitude (root of the sum over D of squares,
        mean over samples); ``real_mean``, that of the mean signal: what of it has the same phase in every sample;
        ``aligned`` complex: sum_d conj(mean real) own / sum_d |mean real| |own|, length 1 and angle 0 where the phases
        agree; ``real_aligned`` complex [B, frequencies], the same of single recordings (each beside the mean of
        others).
    """
    transformed, of_own = np.fft.rfft(real, axis=1), np.fft.rfft(own, axis=1)
    mean, mean_own = transformed.mean(0), of_own.mean(0)

    def amplitude(values: NDArray[Any]) -> NDArray[np.float64]:
        return np.asarray(np.sqrt((np.abs(values) ** 2).sum(-1)))

    def aligned(reference: NDArray[Any], values: NDArray[Any]) -> NDArray[Any]:
        weight = (np.abs(reference) * np.abs(values)).sum(-1)
        return np.asarray((reference.conj() * values).sum(-1) / np.maximum(weight, _TINY))

    others = (transformed.sum(0) - transformed) / max(1, len(transformed) - 1)
    return {
        "real": amplitude(transformed).mean(0),
        "own": amplitude(of_own).mean(0),
        "real_mean": amplitude(mean),
        "aligned": aligned(mean, mean_own),
        "real_aligned": aligned(others, transformed),
    }


def plot_spectra(
    frames: NDArray[np.uint8], labels: NDArray[np.int64], real_frames: NDArray[np.uint8],
    real_labels: NDArray[np.int64], class_names: Sequence[str], *, title: str = "", cells: int = 4,
) -> Any:  # fmt: skip
    """A matplotlib figure, a row a class: events over time, amplitude by frequency, phase beside the real data's.

    The third column is the unit disk of ``aligned`` (see :func:`spectra`): a coloured dot is a frequency of the
    distilled class, at (1, 0) where its phases agree with the real ones; grey dots are single real recordings.

    Args:
        frames, labels: of the distilled set. real_frames, real_labels: real samples of the same shape and classes.
        class_names: K names. title: what stands above. cells: parts a side in which events are counted.

    Raises:
        ArgumentError: shapes that differ, a class without real samples, one time step only, more than 40 classes.
    """
    shown = sorted(set(labels.tolist()))
    if frames.shape[1:] != real_frames.shape[1:] or frames.ndim != 5:
        raise ArgumentError(f"frames {list(frames.shape[1:])} and real {list(real_frames.shape[1:])} must be equal")
    if frames.shape[1] < 2 or len(shown) > MAX_ROWS:
        raise ArgumentError(f"spectra need 2 time steps and at most 40 classes, got {frames.shape[1]} and {len(shown)}")
    missing = [class_names[k] for k in shown if not (real_labels == k).any()]
    if missing:
        raise ArgumentError(f"the real data hold no sample of {', '.join(missing)}")
    own, real = signals(frames, cells), signals(real_frames, cells)
    height = 1.9 * len(shown) + 0.8
    figure = _figure(9.0, height, layout=None)  # a constrained layout of so many axes takes minutes
    figure.suptitle(title, fontsize=9, y=1 - 0.2 / height)
    grid = figure.subplots(len(shown), 3, squeeze=False)
    figure.subplots_adjust(left=0.08, right=0.98, top=1 - 0.6 / height, bottom=0.3 / height, hspace=0.25, wspace=0.25)
    for row, k in enumerate(shown):
        panels = list(grid[row])
        _draw_class(panels, real[real_labels == k], own[labels == k], class_names[k], first=row == 0)
    return figure


def _draw_class(panels: list[Any], real: NDArray[Any], own: NDArray[Any], name: str, *, first: bool) -> None:
    """One row of :func:`plot_spectra`."""
    over_time, amplitude, phase = panels
    found = spectra(real, own)
    steps, frequencies = np.arange(real.shape[1]), np.arange(len(found["own"]))
    totals = real.sum(-1)
    low, high = np.quantile(totals, [0.1, 0.9], axis=0)
    over_time.fill_between(steps, low, high, color="0.85", label="real, 10 to 90 %")
    over_time.plot(steps, totals.mean(0), color="0.4", label="real, mean")
    over_time.plot(steps, own.sum(-1).mean(0), color="tab:red", label="distilled")
    over_time.set_ylabel(name, fontsize=8)
    amplitude.bar(frequencies - 0.27, found["real"], 0.25, color="0.75", label="real samples")
    amplitude.bar(frequencies, found["real_mean"], 0.25, color="0.4", label="their mean")
    amplitude.bar(frequencies + 0.27, found["own"], 0.25, color="tab:red", label="distilled")
    amplitude.set_yscale("log")
    circle = np.exp(1j * np.linspace(0, 2 * np.pi, 100))
    phase.plot(circle.real, circle.imag, color="0.7", linewidth=0.8)
    single = found["real_aligned"][:, 1:].ravel()
    phase.plot(single.real, single.imag, ".", color="0.7", markersize=2)
    colours = [f"C{(number - 1) % 10}" for number in frequencies[1:]]
    phase.scatter(found["aligned"].real[1:], found["aligned"].imag[1:], c=colours, s=24, zorder=3)
    for number in frequencies[1:]:
        place = (found["aligned"].real[number], found["aligned"].imag[number])
        phase.annotate(str(number), place, fontsize=6, xytext=(3, 3), textcoords="offset points")
    phase.set_aspect("equal")
    for axes in panels:
        axes.tick_params(labelsize=6)
    if first:
        over_time.set_title("events a time step", fontsize=8)
        amplitude.set_title("amplitude by frequency", fontsize=8)
        phase.set_title("phase beside the real mean's: (1, 0) agrees", fontsize=8)
        over_time.legend(fontsize=6)
        amplitude.legend(fontsize=6)
