"""What is made of finished cells: accuracy of every method and IPC, paired differences, transfer, cost, curves."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterable
from typing import Any

from pruning_statistics import paired, spread

Row = dict[str, Any]
#: (protocol, network, method, ipc)
Group = tuple[str, str, str, int]
#: (seed of the set, fold)
Key = tuple[int, Any]
FULL = "full"


def protocol_of(cell: Row) -> str:
    """Where a set or reference is tested: "test", or on how many folds of the training split."""
    if cell["fold"] == "test":
        return "test"
    count, held = cell["data"]["folds"], cell["data"]["held_folds"]
    return f"{count}-fold" if cell["tuning"] or not held else f"{count - held} of {count} folds"


def flatten(cell: Row) -> Row:
    """A finished evaluation in one level: protocol, network, method, ipc, seed, fold, result of set and networks."""
    made = cell.get("product", cell)
    return {
        "protocol": protocol_of(made),
        "network": cell["network"],
        "method": made.get("method", FULL),
        "ipc": made.get("ipc", 0),
        "seed": made["seed"],
        "fold": made["fold"],
        "result": cell["result"],
    }


def by_group(cells: Iterable[Row]) -> dict[Group, dict[Key, Row]]:
    """Results of the finished evaluations (as :func:`flatten` gives them): group -> (seed, fold) -> result."""
    groups: dict[Group, dict[Key, Row]] = {}
    for cell in cells:
        if "accuracies" in cell["result"]:
            key = (cell["protocol"], cell["network"], cell["method"], cell["ipc"])
            groups.setdefault(key, {})[cell["seed"], cell["fold"]] = cell["result"]
    return groups


def set_means(results: dict[Key, Row], value: Callable[[Row], float]) -> dict[int, float]:
    """One number a distilled set: mean over its networks, then over folds."""
    seeds = sorted({seed for seed, _ in results})
    return {seed: statistics.fmean(value(result) for key, result in results.items() if key[0] == seed)
            for seed in seeds}  # fmt: skip


def accuracy_of(result: Row) -> float:
    """Mean of the networks."""
    return statistics.fmean(result["accuracies"])


def _measure(name: str, result: Row) -> float:
    return statistics.fmean(result["measures"][name])


def differences(groups: dict[Group, dict[Key, Row]], group: Group, reference: Group) -> list[float]:
    """Accuracy of ``group`` minus that of ``reference``, one a seed, over the (seed, fold) that both have."""
    mine, others = groups.get(group, {}), groups.get(reference, {})
    shared = {key: {"accuracies": [accuracy_of(mine[key]) - accuracy_of(others[key])]} for key in mine if key in others}
    return list(set_means(shared, accuracy_of).values())


def tabulate(cells: Iterable[Row]) -> list[Row]:
    """A row for each protocol, network, method and IPC.

    ``accuracy``: over all networks of all sets; ``sets``: over the means of the sets (the honest deviation).
    ``shape``, ``within_pair``: over sets, where classes come in pairs. ``minus_random``, ``minus_herding``: of the
    means; ``pace_minus``: :func:`paired` differences of PACE to this method, a pair is a distilled set of the same
    seed. ``fraction_of_full``, ``training_speedup``, ``bytes_ratio``: beside all data; ``full_seconds_to_this``:
    training on all data until it is as good. ``gain_kept``: on another network, the gain over random there by that on
    the same network.
    """
    groups = by_group(cells)
    return [_row(groups, group) for group in groups]


def _row(groups: dict[Group, dict[Key, Row]], group: Group) -> Row:
    protocol, network, method, ipc = group
    results = list(groups[group].values())
    means = list(set_means(groups[group], accuracy_of).values())
    row: Row = {
        "protocol": protocol, "network": network, "method": method, "ipc": ipc,
        "accuracy": spread([value for result in results for value in result["accuracies"]]),
        "sets": spread(means),
        "train_seconds": statistics.median(result["train_seconds"] for result in results),
        "train_cpu_seconds": statistics.median(result["train_cpu_seconds"] for result in results),
        "steps": results[0]["steps"],
        "samples": results[0]["samples"],
        "frame_bytes": results[0]["frame_bytes"],
        "file_bytes": results[0]["file_bytes"],
    }  # fmt: skip
    for name in results[0]["measures"]:
        row[name] = spread(list(set_means(groups[group], functools.partial(_measure, name)).values()))
    curve = mean_curve(results)
    if curve:
        row["curve"] = curve
    if method != FULL:
        row |= _beside(groups, group, row)
    return row


def _beside(groups: dict[Group, dict[Key, Row]], group: Group, row: Row) -> Row:
    """The row beside all data, random selection, herding and PACE."""
    protocol, network, method, ipc = group
    beside: Row = {}
    full = groups.get((protocol, network, FULL, 0))
    mean = row["accuracy"]["mean"]
    if full:
        reference = statistics.fmean(accuracy_of(result) for result in full.values())
        seconds = statistics.median(result["train_seconds"] for result in full.values())
        beside["fraction_of_full"] = mean / reference
        beside["training_speedup"] = seconds / row["train_seconds"]
        beside["bytes_ratio"] = next(iter(full.values()))["frame_bytes"] / row["frame_bytes"]
        enough = [point for point in mean_curve(list(full.values())) if point[1] >= mean]
        if enough:
            beside["full_seconds_to_this"] = enough[0][0]
    for other in ("random", "herding"):
        found = groups.get((protocol, network, other, ipc))
        if found and method != other:
            accuracies = [value for result in found.values() for value in result["accuracies"]]
            beside[f"minus_{other}"] = mean - statistics.fmean(accuracies)
    if method != "pace":
        pairs = differences(groups, (protocol, network, "pace", ipc), group)
        if pairs:
            beside["pace_minus"] = paired(pairs)
    if network != "same":
        here = differences(groups, group, (protocol, network, "random", ipc))
        there = differences(groups, (protocol, "same", method, ipc), (protocol, "same", "random", ipc))
        if method != "random" and here and there and statistics.fmean(there) > 0:
            beside["gain_kept"] = statistics.fmean(here) / statistics.fmean(there)
    return beside


def mean_curve(results: list[Row]) -> list[list[float]]:
    """Mean over networks of [seconds, accuracy], where all were tested at the same number of points."""
    curves = [curve for result in results for curve in result.get("curves", [])]
    if not curves or len({len(curve) for curve in curves}) > 1:
        return []
    return [[statistics.fmean(axis) for axis in zip(*points, strict=True)] for points in zip(*curves, strict=True)]


def production(cells: Iterable[Row]) -> list[Row]:
    """What making a set took: a row for each protocol, method and IPC; medians over sets."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for cell in cells:
        if "distillation_seconds" in cell["result"]:
            groups.setdefault((protocol_of(cell), cell["method"], cell["ipc"]), []).append(cell["result"])
    return [
        {"protocol": key[0], "method": key[1], "ipc": key[2], "sets": len(results)}
        | {"file_bytes": round(statistics.median(result["file_bytes"] for result in results))}
        | {
            name: statistics.median(result[name] for result in results)
            for name in ("distillation_seconds", "teacher_seconds")
        }
        for key, results in groups.items()
    ]
