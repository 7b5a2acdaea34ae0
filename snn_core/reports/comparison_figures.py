"""Figures of a comparison of runs."""

from __future__ import annotations

import math
from typing import Any

from snn_core.reports.comparison import pairing_key
from snn_core.reports.figures import WIDTH, short_name
from snn_core.reports.run_folder import number
from snn_core.reports.svg import GRID, INK, MUTED, SERIES, new_figure, style


def _colors(comparison: dict[str, Any]) -> dict[str, str]:
    """Group label -> color; the groups beyond the palette are grey."""
    labels = dict.fromkeys(group["label"] for group in comparison["groups"])
    return {label: SERIES[min(index, len(SERIES) - 1)] for index, label in enumerate(labels)}


def accuracies(comparison: dict[str, Any]) -> Any | None:
    """Accuracy of every run by group, with the mean; pairs joined. None where no run has one."""
    groups = [(group["data"], group["label"]) for group in comparison["groups"]]
    place = {group: index for index, group in enumerate(groups)}
    colors = _colors(comparison)
    points: dict[Any, list[tuple[int, float]]] = {}
    figure = new_figure(min(WIDTH, 2.2 + 1.3 * len(groups)), 3.2)
    axes = figure.add_subplot(1, 1, 1)
    style(axes, "Test accuracy, %")
    drawn = False
    for run in comparison["runs"]:
        if run["accuracy"] is None:
            continue
        x, y = place[(str(run["data"].get("name") or "unknown data"), run["label"])], 100 * run["accuracy"]
        points.setdefault(pairing_key(run), []).append((x, y))
        axes.plot([x], [y], "o", color=colors[run["label"]], markersize=5, alpha=0.85, zorder=3)
        drawn = True
    if not drawn:
        return None
    for key, ends in points.items():
        if key is not None and len(ends) > 1:
            ends = sorted(ends)
            axes.plot([x for x, _ in ends], [y for _, y in ends], color=GRID, linewidth=0.9, zorder=1)
    for index, group in enumerate(comparison["groups"]):
        if group["accuracy"] is not None:
            mean = 100 * group["accuracy"]
            axes.plot([index - 0.22, index + 0.22], [mean, mean], color=INK, linewidth=1.6, zorder=2)
    several = len({data for data, _ in groups}) > 1
    names = [f"{label}\n{short_name(data, 16)}" if several else label for data, label in groups]
    crowded = len(groups) > 8
    axes.set_xticks(range(len(groups)), names, fontsize=7.5, color=INK, rotation=45 if crowded else 0,
                    ha="right" if crowded else "center")  # fmt: skip
    axes.set_xlim(-0.6, len(groups) - 0.4)
    return figure


def curves(comparison: dict[str, Any]) -> Any | None:
    """Loss, training accuracy, flips and EID of all runs over one another, a color a group."""
    panels = [
        ("Loss", "loss"),
        ("Training accuracy", "train_accuracy"),
        ("Mask entries flipped", "flips"),
        ("EID", "eid"),
    ]
    known = [
        (title, key)
        for title, key in panels
        if any(number(record.get(key)) is not None for run in comparison["runs"] for record in run["history"])
    ]
    if not known:
        return None
    colors = _colors(comparison)
    columns = min(2, len(known))
    rows = math.ceil(len(known) / columns)
    figure = new_figure(WIDTH, 2.6 * rows + 0.4)
    handles: dict[str, Any] = {}
    for index, (title, key) in enumerate(known):
        axes = figure.add_subplot(rows, columns, index + 1)
        style(axes, title)
        for run in comparison["runs"]:
            values = [number(record.get(key)) for record in run["history"]]
            found = [(epoch, value) for epoch, value in enumerate(values, start=1) if value is not None]
            if found:
                (line,) = axes.plot(*zip(*found, strict=True), color=colors[run["label"]], linewidth=1.1, alpha=0.8)
                handles.setdefault(run["label"], line)
        if index >= len(known) - columns:
            axes.set_xlabel("epoch", fontsize=8, color=MUTED)
    figure.legend(handles.values(), [short_name(label) for label in handles], loc="outside lower center",
                  ncols=min(6, len(handles)), fontsize=8, frameon=False, labelcolor=INK)  # fmt: skip
    return figure
