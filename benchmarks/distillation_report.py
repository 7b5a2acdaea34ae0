"""Tables and plots of distillation.py's results."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from studies import Row, difference, formatted, save_plots


def show(name: str, body: Row) -> None:
    """Print the tables of a study."""
    print(f"\n{name}: {body['about']['finished']}{', TUNING folds' if body['about']['tuning'] else ''}")
    titles = ("accuracy % (sets)", "of full", "- random", "- herding", "pace minus (bound)", "pair", "within",
              "train s", "bytes")  # fmt: skip
    widths = (19, 8, 9, 9, 27, 6, 6, 8, 11)
    print(f"{'tested':12} {'network':15} {'method':18} {'ipc':>4} "
          + " ".join(f"{t:>{w}}" for t, w in zip(titles, widths, strict=True)))  # fmt: skip
    for row in body["rows"]:
        cells = (
            _mean(row["accuracy"]["mean"], row["sets"]), formatted(row.get("fraction_of_full"), ".3f"),
            _points(row.get("minus_random")), _points(row.get("minus_herding")), difference(row.get("pace_minus"), 1),
            _percent(row.get("shape")), _percent(row.get("within_pair")), f"{row['train_seconds']:.2f}",
            f"{row['frame_bytes']:,}",
        )  # fmt: skip
        line = " ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        print(f"{row['protocol']:12} {row['network']:15} {row['method']:18} {row['ipc']:4d} {line}")
    others = [row for row in body["rows"] if "gain_kept" in row]
    if others:
        print("\ngain over random on another network, as part of the gain on the same")
    for row in others:
        print(f"  {row['network']:15} {row['method']:18} {row['gain_kept']:.2f}")
    print("\nmaking a set: seconds of the method, of its teachers; bytes of the file (medians)")
    for row in body["production"]:
        print(f"  {row['protocol']:12} {row['method']:18} {row['ipc']:4d} {row['distillation_seconds']:9.1f} "
              f"{row['teacher_seconds']:9.1f} {row['file_bytes']:11,}")  # fmt: skip
    for cell in body["failed"]:
        print(f"failed: {cell.get('method', cell['kind'])}: {cell['result']['failed']}")


def _points(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:+.1f}"


def _percent(row: Row | None) -> str:
    return "-" if row is None else f"{100 * row['mean']:.1f}"


def _mean(mean: float, sets: Row) -> str:
    return f"{100 * mean:.1f} ± {100 * sets['std']:.1f} ({sets['count']})"


def plot(folder: Path, name: str, body: Row) -> list[Path]:
    """Accuracy of every method, accuracy against training time, and transfer; as NAME_*.svg. Their paths.

    Nothing without matplotlib, which it says, or without a finished part.
    """
    return save_plots(folder, name, body, {"accuracy": _accuracies, "time": _curves, "transfer": _transfer})


def _protocol(body: Row) -> str | None:
    """The test split where it was touched, else the folds."""
    names = {row["protocol"] for row in body["rows"]}
    return "test" if "test" in names else min(names, default=None)


def _points_of(body: Row, row: Row) -> list[float]:
    """Mean accuracy of each distilled set, in percent."""
    sets: dict[int, list[float]] = {}
    for cell in body["cells"]:
        if all(cell[key] == row[key] for key in ("protocol", "network", "method", "ipc")):
            sets.setdefault(cell["seed"], []).append(statistics.fmean(cell["result"]["accuracies"]))
    return [100 * statistics.fmean(values) for values in sets.values()]


def _accuracies(body: Row) -> Any:
    """A panel for each IPC: every set as a point, their mean as a line; all data as a dashed line."""
    from matplotlib.figure import Figure

    protocol = _protocol(body)
    rows = [row for row in body["rows"] if row["protocol"] == protocol and row["network"] == "same"]
    full = [row for row in rows if row["method"] == "full"]
    rows = [row for row in rows if row["method"] != "full"]
    if not rows:
        return None
    panels = sorted({row["ipc"] for row in rows})
    most = max(sum(row["ipc"] == ipc for row in rows) for ipc in panels)
    figure = Figure(figsize=(4.4 * len(panels), 1.2 + 0.26 * most), layout="constrained")
    for number, ipc in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), number)
        mine = sorted((row for row in rows if row["ipc"] == ipc), key=lambda row: row["accuracy"]["mean"])
        for place, row in enumerate(mine):
            colour = "tab:red" if row["method"] == "pace" else "tab:blue"
            points = _points_of(body, row)
            axes.plot(points, [place] * len(points), "o", markersize=3.5, color=colour, alpha=0.6)
            axes.plot([statistics.fmean(points)] * 2, [place - 0.35, place + 0.35], color=colour, linewidth=2)
        if full:
            axes.axvline(100 * full[0]["accuracy"]["mean"], color="black", linestyle="--", linewidth=1)
        axes.set_yticks(range(len(mine)), [row["method"] for row in mine], fontsize=8)
        axes.set_xlabel("accuracy %: sets, mean; dashed: all data")
        axes.set_title(f"{body['study']['name']}, {ipc} a class", fontsize=9)
        axes.grid(axis="x", alpha=0.3)
    return figure


def _curves(body: Row) -> Any:
    """Accuracy against training time, of distilled sets and of all data."""
    from matplotlib.figure import Figure

    protocol = _protocol(body)
    rows = [
        row for row in body["rows"]
        if row["protocol"] == protocol and row["network"] == "same" and row.get("curve")
        and row["method"] in ("full", "pace", "random", "herding")
    ]  # fmt: skip
    if not rows:
        return None
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    colours = {"full": "black", "pace": "tab:red", "random": "tab:grey", "herding": "tab:blue"}
    styles = ["-", "--", ":", "-."]
    numbers = sorted({row["ipc"] for row in rows if row["method"] != "full"})
    for row in sorted(rows, key=lambda row: (row["method"], row["ipc"])):
        whole = row["method"] == "full"
        axes.plot(
            [point[0] for point in row["curve"]], [100 * point[1] for point in row["curve"]],
            marker=".", color=colours[row["method"]], linewidth=1.3,
            linestyle="-" if whole else styles[numbers.index(row["ipc"]) % len(styles)],
            label=f"all {row['samples']:,} recordings" if whole else f"{row['method']}, {row['ipc']} a class",
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlabel("seconds of training one network (mean; tests on the way left out)")
    axes.set_ylabel("accuracy %")
    axes.set_title(body["study"]["name"])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def _transfer(body: Row) -> Any:
    """Accuracy on networks that took no part in distillation, IPC 1."""
    from matplotlib.figure import Figure

    protocol = _protocol(body)
    rows = [row for row in body["rows"] if row["protocol"] == protocol and row["ipc"] in (0, 1)]
    networks = list(dict.fromkeys(row["network"] for row in rows))
    if len(networks) < 2:
        return None
    # "same" shows all methods elsewhere: here those that were transferred.
    methods = list(dict.fromkeys(row["method"] for row in rows if row["network"] != "same"))
    figure = Figure(figsize=(1.6 + 1.5 * len(networks), 3.6), layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / len(methods)
    for number, method in enumerate(methods):
        mine = {row["network"]: row for row in rows if row["method"] == method}
        places = [index + (number + 0.5) * width - 0.4 for index, name in enumerate(networks) if name in mine]
        found = [mine[name] for name in networks if name in mine]
        heights, errors = (
            [100 * row[of][name] for row in found] for of, name in (("accuracy", "mean"), ("sets", "std"))
        )
        label = "all data" if method == "full" else method
        axes.bar(places, heights, width * 0.9, yerr=errors, capsize=2, label=label)
    axes.set_xticks(range(len(networks)), networks, fontsize=8)
    axes.set_ylabel("accuracy %, mean; deviation over sets")
    axes.set_title(f"{body['study']['name']}: other networks, one sample a class", fontsize=9)
    figure.legend(fontsize=8, ncols=len(methods), loc="outside lower center")
    return figure
