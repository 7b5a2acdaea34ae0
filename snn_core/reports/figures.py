"""Figures of a run: training curves, layers, masks, weights. Each is a matplotlib figure; ``svg.to_svg`` embeds it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snn_core.reports.run_folder import RunFolder, number
from snn_core.reports.run_report import kept_magnitudes
from snn_core.reports.svg import GRID, INK, MUTED, SERIES, new_figure, panel_grid, style

WIDTH = 11.2
MARGINS = (0.6, 0.1, 0.5, 0.3, 0.6, 0.55)  # inches: left, right, bottom, top, between panels across and down
MAX_PICTURES, MAX_HISTOGRAMS, MAX_BARS = 6, 12, 80
WINDOW = (32, 64)  # rows and columns of a mask that are shown weight by weight
OVERVIEW = (96, 256)  # cells that a whole layer is averaged to
#: Figures of an epoch's record that share a panel: title, keys with their names.
PANELS = (
    ("Loss", {"loss": "training"}),
    ("Accuracy", {"train_accuracy": "training", "val_accuracy": "validation"}),
    ("Temperature", {"temperature": "temperature"}),
    ("Noise", {"eta": "eta"}),
    ("EID", {"eid": "EID"}),
    ("Entropy of the choice", {"entropy": "entropy"}),
    ("Mask entries flipped an epoch", {"flips": "flips"}),
    ("Weights kept", {"kept": "kept"}),
)


def short_name(name: str, limit: int = 28) -> str:
    """The name, or its two ends, for matplotlib, to which a dollar sign would begin a formula."""
    whole = name if len(name) <= limit else f"{name[: limit // 3]}…{name[-(limit - limit // 3 - 1) :]}"
    return whole.replace("$", r"\$")


def spread_choice(names: Sequence[str], limit: int) -> list[str]:
    """At most ``limit`` of the names, first and last among them, evenly spread."""
    if len(names) <= limit:
        return list(names)
    return [names[round(index * (len(names) - 1) / (limit - 1))] for index in range(limit)]


def training_curves(history: list[dict[str, Any]], accuracy: float | None) -> Any | None:
    """A panel for each kind of figure in the history; None where there is no epoch."""
    panels = [(title, _curves(history, keys)) for title, keys in _panels(history)]
    panels = [(title, curves) for title, curves in panels if curves]
    if not panels:
        return None
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = new_figure(WIDTH, 2.2 * rows + 0.2, MARGINS)
    grid = panel_grid(figure, rows, columns, MARGINS)
    for index, (title, curves) in enumerate(panels):
        axes = figure.add_subplot(grid[index])
        style(axes, title)
        _plot_curves(axes, curves)
        axes.set_xlim(0.5, len(history) + 0.5)  # the same for all, so that what ends early is seen to
        if title == "Accuracy" and accuracy is not None:
            axes.plot([len(history)], [accuracy], "o", color=SERIES[1], markersize=5, label="test")
        if title == "Accuracy" or len(curves) > 1:
            axes.legend(fontsize=7.5, frameon=False, labelcolor=INK)
        if index >= len(panels) - columns:
            axes.set_xlabel("epoch", fontsize=8, color=MUTED)
    return figure


def _panels(history: list[dict[str, Any]]) -> list[tuple[str, dict[str, str]]]:
    """The known panels, and one for each figure that this release does not know."""
    known = {key for _, keys in PANELS for key in keys} | {"epoch"}
    others = dict.fromkeys(key for record in history for key in record if key not in known)
    return [*PANELS, *((short_name(str(key), 60), {key: short_name(str(key), 60)}) for key in list(others)[:6])]


def _curves(history: list[dict[str, Any]], keys: dict[str, str]) -> dict[str, tuple[list[int], list[float]]]:
    """Label -> epochs and values, of the keys that have a finite value."""
    curves = {}
    for key, label in keys.items():
        points = [(epoch, number(record.get(key))) for epoch, record in enumerate(history, start=1)]
        found = [(epoch, float(value)) for epoch, value in points if value is not None]
        if found:
            curves[label] = ([epoch for epoch, _ in found], [value for _, value in found])
    return curves


def _plot_curves(axes: Any, curves: dict[str, tuple[list[int], list[float]]]) -> None:
    from matplotlib.ticker import MaxNLocator

    for index, (label, (epochs, values)) in enumerate(curves.items()):
        few = len(epochs) < 15
        color = SERIES[0] if index == 0 else SERIES[index + 1]
        axes.plot(epochs, values, color=color, linewidth=1.6, marker="o" if few else "", markersize=3, label=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))


def layer_bars(layers: list[dict[str, Any]]) -> Any | None:
    """Operations a sample with and without pruning, and firing rates, a row a layer; None where they are not known."""
    shown = [layer for layer in layers if layer["synops"] is not None and layer["macs"] is not None]
    if not shown:
        return None
    if len(shown) > MAX_BARS:
        busiest = sorted(shown, key=lambda layer: -(layer["synops_dense"] + layer["macs_dense"]))[:MAX_BARS]
        shown = [layer for layer in shown if layer in busiest]
    figure = new_figure(WIDTH, 0.24 * len(shown) + 1.2)
    rows = np.arange(len(shown))
    left, right = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    style(left, "Operations a sample", grid="x")
    unpruned = [layer["synops_dense"] + layer["macs_dense"] for layer in shown]
    pruned = [layer["synops"] + layer["macs"] for layer in shown]
    left.barh(rows, unpruned, height=0.72, color=GRID, label="same spikes, no pruning")
    left.barh(rows, pruned, height=0.44, color=SERIES[0], label="as trained")
    left.set_yticks(rows, [_bar_name(layer) for layer in shown], fontsize=7.5, color=INK)
    left.xaxis.set_major_formatter(_si_formatter())
    style(right, "Firing rate of the neuron behind", grid="x")
    rates = [layer["firing_rate"] for layer in shown]
    right.barh(rows, [rate or 0 for rate in rates], height=0.44, color=SERIES[2])
    right.set_yticks(rows, ["" for _ in shown])
    right.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    # Runs of the first releases did not record which neuron stands behind a layer.
    none = "no neuron" if any(layer["neuron"] for layer in shown) else "not recorded"
    for row, rate in enumerate(rates):
        text = none if rate is None else f" {100 * rate:.1f} %"
        right.annotate(text, (rate or 0, row), fontsize=7, color=MUTED, va="center", xytext=(2, 0),
                       textcoords="offset points")  # fmt: skip
    right.margins(x=0.18)
    for axes in (left, right):
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=2, fontsize=7.5, frameon=False,
                  labelcolor=INK)  # fmt: skip
    return figure


def _bar_name(layer: dict[str, Any]) -> str:
    return short_name(layer["name"]) + ("" if layer["binary_input"] else " (MACs)")


def _si_formatter() -> Any:
    from matplotlib.ticker import EngFormatter

    return EngFormatter(sep=" ")


def as_matrix(weight: Tensor) -> Tensor:
    """``[out, in, *kernel]`` -> ``[out, *kernel * in]``: the weights of a block of N:M stand side by side."""
    return weight.movedim(1, -1).reshape(weight.shape[0], -1)


def pictured_layers(run: RunFolder) -> list[str]:
    """Layers whose masks are drawn."""
    return spread_choice([name for name in run.weights if name in run.masks], MAX_PICTURES)


def mask_picture(run: RunFolder, name: str) -> Any:
    """The mask of a whole layer, averaged to few cells; its corner weight by weight; the weights of the same corner."""
    mask, weight = as_matrix(run.masks[name]), as_matrix(run.weights[name])
    rows, columns = min(WINDOW[0], mask.shape[0]), min(WINDOW[1], mask.shape[1])
    pattern = run.patterns.get(name)
    block = int(pattern.split(":")[1]) if pattern else 0
    whole = mask.shape == (rows, columns)
    figure = new_figure(WIDTH, 2.75, MARGINS)
    grid = panel_grid(figure, 1, 2 if whole else 3, MARGINS)
    panels = [figure.add_subplot(part) for part in grid]
    if not whole:
        density = average_cells(mask.float(), OVERVIEW)
        axes = panels.pop(0)
        _show(axes, _colored(density / max(float(density.max()), 1e-12), SERIES[0]), mask.shape)
        axes.set_title(f"whole layer, {mask.shape[0]} x {mask.shape[1]}: share kept", fontsize=8.5, color=INK)
    corner = "mask" if whole else f"mask, outputs 0..{rows - 1}, inputs 0..{columns - 1}"
    _show(panels[0], _colored(mask[:rows, :columns].float(), SERIES[0]), (rows, columns), block)
    panels[0].set_title(corner, fontsize=8.5, color=INK)
    _show(panels[1], _signed(weight[:rows, :columns] * mask[:rows, :columns]), (rows, columns), block)
    panels[1].set_title("its weights: blue above 0, red below", fontsize=8.5, color=INK)
    return figure


def average_cells(matrix: Tensor, limit: tuple[int, int]) -> Tensor:
    """Means over cells of equal size where a side is longer than its limit; the last ones may be smaller."""
    for side in (0, 1):
        size = math.ceil(matrix.shape[side] / limit[side])
        if size > 1:
            parts = matrix.split(size, dim=side)
            matrix = torch.stack([part.mean(dim=side) for part in parts], dim=side)
    return matrix


def _colored(level: Tensor, color: str) -> np.ndarray[Any, Any]:
    """``[rows, columns]`` in 0..1 -> RGBA, transparent at 0."""
    from matplotlib.colors import to_rgb

    picture = np.zeros((*level.shape, 4))
    picture[..., :3] = to_rgb(color)
    picture[..., 3] = level.numpy()
    return picture


def _signed(values: Tensor) -> np.ndarray[Any, Any]:
    """Values -> RGBA by sign; transparent at 0, full from the 98 % quantile of the magnitudes on."""
    values = torch.nan_to_num(values.float(), nan=0.0, posinf=0.0, neginf=0.0)
    magnitude = values.abs()
    present = magnitude[magnitude > 0]
    scale = float(present.quantile(0.98)) if present.numel() else 1.0
    picture = _colored((magnitude / scale).clamp(max=1), SERIES[0])
    picture[values.numpy() < 0] = _colored((magnitude / scale).clamp(max=1), SERIES[4])[values.numpy() < 0]
    return picture


def _show(axes: Any, picture: np.ndarray[Any, Any], shape: Sequence[int], block: int = 0) -> None:
    axes.set_facecolor("none")
    axes.imshow(picture, interpolation="none", aspect="auto", extent=(0, shape[1], shape[0], 0))
    axes.tick_params(colors=MUTED, labelsize=7, length=2)
    axes.locator_params(axis="both", nbins=5, integer=True)
    axes.set_xlabel("input", fontsize=7.5, color=MUTED)
    axes.set_ylabel("output", fontsize=7.5, color=MUTED)
    for spine in axes.spines.values():
        spine.set_color(MUTED)
        spine.set_linewidth(0.6)
    if block:
        axes.vlines(range(block, shape[1], block), 0, shape[0], color=MUTED, linewidth=0.4)


def weight_histograms(run: RunFolder, names: Sequence[str]) -> Any | None:
    """Histograms of the kept magnitudes, a panel a layer, for at most MAX_HISTOGRAMS layers spread over the network."""
    kept = {name: kept_magnitudes(run.weights[name], run.masks.get(name)) for name in names if name in run.weights}
    chosen = spread_choice([name for name, values in kept.items() if values.numel()], MAX_HISTOGRAMS)
    if not chosen:
        return None
    columns = min(4, len(chosen))
    rows = math.ceil(len(chosen) / columns)
    figure = new_figure(WIDTH, 1.75 * rows + 0.3, MARGINS)
    grid = panel_grid(figure, rows, columns, MARGINS)
    for index, name in enumerate(chosen):
        axes = figure.add_subplot(grid[index])
        style(axes, short_name(name))
        axes.title.set_fontsize(8)
        values = kept[name].numpy()
        # The few largest would squeeze all others into one bar: they stand in the last one.
        top = float(np.quantile(values, 0.995)) or float(values.max()) or 1.0
        color = SERIES[0] if name in run.masks else SERIES[5]
        axes.hist(np.minimum(values, top), bins=40, range=(0, top), color=color, histtype="stepfilled")
        axes.yaxis.set_major_formatter(_si_formatter())
        axes.locator_params(axis="both", nbins=4)
        if index >= len(chosen) - columns:
            axes.set_xlabel("|w|", fontsize=8, color=MUTED)
    return figure
