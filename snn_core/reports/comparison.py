"""Several runs side by side: groups of one method, and differences between runs of the same seed and data."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Any

from snn_core.errors import ArgumentError
from snn_core.reports.run_folder import section
from snn_core.reports.run_report import plain

FORMAT, VERSION = "snn_core.comparison", 1
#: Sections of the configuration that runs of one comparison should share.
SHARED = ("data", "model", "train")


def label_of(report: dict[str, Any]) -> str:
    """Method and pattern: what a run is called among others."""
    return report["method"] if report["pattern"] is None else f"{report['method']} {report['pattern']}"


def compare_runs(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Tables over runs, from what :func:`snn_core.reports.run_report.report_run` says of each.

    Returns:
        JSON values: ``runs``; ``groups`` (same method, pattern and data set: means, sample standard deviation);
        ``pairs`` (group minus the base on the same data set, which is the dense one or else the first, and SpikeNM
        minus the other methods of its pattern: mean of the paired differences, its standard error, wins, ties and
        losses); ``notes``. A pair is two runs with the same
        seed, training and test data; where a group has several such runs, the first one counts, and a note says so.

    Raises:
        ArgumentError: fewer than two runs.
    """
    if len(reports) < 2:
        raise ArgumentError(f"a comparison needs at least two runs, got {len(reports)}")
    runs = [report | {"label": label_of(report)} for report in reports]
    notes: list[str] = [f"{run['name']}: {note}" for run in runs for note in run["notes"]]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault((_data_name(run), run["label"]), []).append(run)
    tables = [_group(label, data, members) for (data, label), members in groups.items()]
    pairs = []
    for data in dict.fromkeys(data for data, _ in groups):
        inside = {label: members for (name, label), members in groups.items() if name == data}
        for label, base in _what_to_pair(inside):
            pairs.append(_pair(label, inside[label], base, inside[base], data, notes))
    notes += _different_settings(runs)
    return plain(
        {
            "format": FORMAT,
            "report_version": VERSION,
            "runs": runs,
            "groups": tables,
            "pairs": [pair for pair in pairs if pair is not None],
            "notes": notes,
        }
    )


def _what_to_pair(groups: dict[str, list[dict[str, Any]]]) -> list[tuple[str, str]]:
    """Every group with the base; then, among those of one pattern, SpikeNM (or else the first) with every other."""
    base = "dense" if "dense" in groups else next(iter(groups))
    chosen = [(label, base) for label in groups if label != base]
    patterns: dict[str, list[str]] = {}
    for label, members in groups.items():
        if members[0]["pattern"] is not None:
            patterns.setdefault(members[0]["pattern"], []).append(label)
    for pattern, labels in patterns.items():
        lead = f"spikenm {pattern}" if f"spikenm {pattern}" in labels else labels[0]
        others = [(lead, label) for label in labels if label != lead]
        chosen += [pair for pair in others if pair not in chosen and pair[::-1] not in chosen]
    return chosen


def pairing_key(report: dict[str, Any]) -> tuple[Any, ...] | None:
    """What two runs must share to be a pair; None where it is not known."""
    data = report["data"]
    if not data.get("train_key") or not data.get("test_key") or report["accuracy"] is None:
        return None
    return (report["seed"], data["train_key"], data["test_key"])


def _data_name(report: dict[str, Any]) -> str:
    return str(report["data"].get("name") or "unknown data")


def _group(label: str, data: str, members: list[dict[str, Any]]) -> dict[str, Any]:
    accuracies = [run["accuracy"] for run in members if run["accuracy"] is not None]
    return {
        "label": label,
        "data": data,
        "simulated": members[0]["data"].get("simulated"),
        "runs": len(members),
        "seeds": [run["seed"] for run in members],
        "accuracy": statistics.fmean(accuracies) if accuracies else None,
        "accuracy_std": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        "kept_fraction": _mean([run["totals"]["pruned_kept_fraction"] for run in members]),
        "synops": _mean([run["totals"]["synops"] for run in members]),
        "microjoule": _mean([section(run, "energy").get("microjoule") for run in members]),
        "bytes_file_compressed": _mean([run["totals"]["bytes_file_compressed"] for run in members]),
    }


def _mean(values: list[Any]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _pair(
    label: str, members: list[dict[str, Any]], base: str, others: list[dict[str, Any]], data: str, notes: list[str]
) -> dict[str, Any] | None:
    ours, theirs = _by_key(label, members, notes), _by_key(base, others, notes)
    keys = [key for key in ours if key in theirs]
    if not keys:
        return None
    differences = [ours[key]["accuracy"] - theirs[key]["accuracy"] for key in keys]
    error = statistics.stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else None
    return {
        "label": label,
        "base": base,
        "data": data,
        "pairs": len(differences),
        "seeds": [key[0] for key in keys],
        "differences": differences,
        "mean": statistics.fmean(differences),
        "standard_error": error,
        "wins": sum(value > 0 for value in differences),
        "ties": sum(value == 0 for value in differences),
        "losses": sum(value < 0 for value in differences),
    }


def _by_key(label: str, members: list[dict[str, Any]], notes: list[str]) -> dict[tuple[Any, ...], dict[str, Any]]:
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for run in members:
        key = pairing_key(run)
        if key is None:
            continue
        if key in found:
            note = f"{label}, seed {key[0]}: {found[key]['name']} is paired, {run['name']} has the same seed and data"
            if note not in notes:
                notes.append(note)
            continue
        found[key] = run
    return found


def _different_settings(runs: list[dict[str, Any]]) -> list[str]:
    """A sentence on each setting beside method and seed in which finished runs differ."""
    finished = [run for run in runs if run["finished"]]
    flat = [dict(_flatten({key: section(run, "config").get(key) for key in SHARED})) for run in finished]
    names = dict.fromkeys(itertools.chain.from_iterable(flat))
    sentences = []
    for name in names:
        values = dict.fromkeys(str(settings.get(name)) for settings in flat)
        if len(values) > 1 and name not in ("train.seed", "data.fold", "data.cache_dir", "data.root"):
            sentences.append(f"The runs differ in {name}: {', '.join(values)}.")
    return sentences


def _flatten(value: Any, path: str = "") -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        return [(path, value)]
    parts = [_flatten(item, f"{path}.{key}" if path else str(key)) for key, item in value.items()]
    return list(itertools.chain.from_iterable(parts))
