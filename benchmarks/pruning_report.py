"""Tables and plots of pruning.py's results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from studies import Row, difference, formatted, save_plots


def show(name: str, body: Row) -> None:
    """Print the tables of a study."""
    print(f"\n{name}: {body['about']['finished']}{', TUNING seeds' if body['about']['tuning'] else ''}")
    titles = ("accuracy %", "test %", "minus dense", "minus sr-ste (bound)", "kept", "rate", "over N:M", "s/run")
    widths = (17, 14, 16, 25, 7, 6, 8, 7)
    print(f"{'method':20} {'pattern':>7} " + " ".join(f"{t:>{w}}" for t, w in zip(titles, widths, strict=True)))
    for row in body["rows"]:
        cells = (
            _mean(row["accuracy"]), _mean(row.get("test")), _difference(row.get("minus_dense")),
            _difference(row.get("minus_sr_ste"), bound=True), formatted(row.get("kept_fraction"), ".4f"),
            formatted(row.get("firing_rate"), ".3f"), str(row["blocks_over_pattern"]), f"{row['seconds']:.1f}",
        )  # fmt: skip
        line = " ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        lost = f"  {row['failed']} FAILED" if row["failed"] else ""
        print(f"{row['method']:20} {row['pattern']:>7} {line}{lost}")
    others = [row for row in body["rows"] if "spikenm_minus" in row]
    if others:
        print("\nspikenm minus: points, standard error (pairs), lower bound of 95 %")
    for row in others:
        print(f"  {row['pattern']:>6} {row['method']:20} {_difference(row['spikenm_minus'], bound=True)}")
    if body["agreement"]:
        print(
            "\nagreement of masks from the same initial weights: overlap of kept positions (chance), share above chance"
        )
    for row in body["agreement"]:
        if "overlap" in row:
            print(f"  {row['pattern']:>6} {row['method']:20} {row['overlap']['mean']:.3f} ({row['chance']:.3f}), "
                  f"{row['above_chance']:.3f}; with the largest initial weights {row['initial']:.3f}")  # fmt: skip
    for cell in body["failed"]:
        print(f"failed: {cell['method']} {cell['pattern']} seed {cell['seed']}: {cell['result']['failed']}")


def _mean(row: Row | None) -> str:
    return "-" if row is None else f"{100 * row['mean']:.2f} ± {100 * row['std']:.2f} ({row['count']})"


def _difference(row: Row | None, *, bound: bool = False) -> str:
    return difference(row, 2, bound=bound)


def plot(folder: Path, name: str, body: Row) -> list[Path]:
    """Accuracy against sparsity, and SpikeNM's paired differences to each method; as NAME_*.svg. Their paths.

    Nothing without matplotlib, which it says, or without a finished run.
    """
    return save_plots(folder, name, body, {"accuracy": _accuracies, "differences": _differences})


def _sparsity(pattern: str) -> float:
    n, m = (int(part) for part in pattern.split(":"))
    return 1 - n / m


def _accuracies(body: Row) -> Any:
    """Mean accuracy with its standard error, a line a method; dense as a band."""
    from matplotlib.figure import Figure

    rows = [row for row in body["rows"] if row["pattern"] != "-"]
    if not rows:
        return None
    figure = Figure(figsize=(6.4, 4.2))
    axes = figure.add_subplot()
    dense = [row["accuracy"] for row in body["rows"] if row["method"] == "dense"]
    if dense:
        error = dense[0]["standard_error"] or 0.0
        axes.axhline(100 * dense[0]["mean"], color="black", linewidth=1, label="dense")
        axes.axhspan(*(100 * (dense[0]["mean"] + side * error) for side in (-1, 1)), color="black", alpha=0.12)
    patterns = sorted({row["pattern"] for row in rows}, key=lambda pattern: (_sparsity(pattern), pattern))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for number, method in enumerate(methods):
        mine = sorted((row for row in rows if row["method"] == method), key=lambda row: patterns.index(row["pattern"]))
        shift = 0.5 * (number / max(1, len(methods) - 1) - 0.5) if len(methods) > 1 else 0.0
        places = [patterns.index(row["pattern"]) + shift for row in mine]
        errors = [100 * (row["accuracy"]["standard_error"] or 0.0) for row in mine]
        heights = [100 * row["accuracy"]["mean"] for row in mine]
        axes.errorbar(places, heights, errors, marker="o", markersize=4, linewidth=1, capsize=2, label=method)
    axes.set_xticks(range(len(patterns)), [f"{pattern}\n{100 * _sparsity(pattern):.4g} %" for pattern in patterns])
    axes.set_xlabel("pattern, weights dropped")
    axes.set_ylabel("accuracy %, mean ± standard error")
    axes.set_title(body["study"]["name"])
    axes.legend(fontsize=8)
    return figure


def _differences(body: Row) -> Any:
    """SpikeNM minus each method of the same pattern: mean and two-sided interval of 95 %."""
    from matplotlib.figure import Figure

    rows = [row for row in body["rows"] if row.get("spikenm_minus", {}).get("two_sided_95") is not None]
    if not rows:
        return None
    rows.sort(key=lambda row: (_sparsity(row["pattern"]), row["pattern"], row["method"]))
    figure = Figure(figsize=(6.4, 0.8 + 0.28 * len(rows)))
    axes = figure.add_subplot()
    means = [100 * row["spikenm_minus"]["mean"] for row in rows]
    widths = [100 * row["spikenm_minus"]["two_sided_95"] for row in rows]
    axes.errorbar(means, range(len(rows)), xerr=widths, fmt="o", markersize=4, capsize=2, color="black")
    axes.axvline(0, color="grey", linewidth=1)
    axes.set_yticks(
        range(len(rows)), [f"{row['pattern']}  {row['method']} ({row['spikenm_minus']['count']})" for row in rows]
    )
    axes.invert_yaxis()
    axes.set_xlabel("SpikeNM minus the method, points; mean and 95 % interval of the paired differences")
    axes.set_title(body["study"]["name"])
    return figure
