"""What is made of finished runs: accuracy of every method, paired differences, agreement of masks."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Row = dict[str, Any]
#: (method, pattern)
Group = tuple[str, str]
#: (seed, fold)
Key = tuple[int, Any]
CONFIDENCE = 0.95


def spread(values: list[float]) -> Row:
    """Mean, sample standard deviation, standard error of the mean (None of one value) and count."""
    several = len(values) > 1
    deviation = statistics.stdev(values) if several else 0.0
    error = deviation / len(values) ** 0.5 if several else None
    return {"mean": statistics.fmean(values), "std": deviation, "standard_error": error, "count": len(values)}


def paired(differences: list[float]) -> Row:
    """:func:`spread` of paired differences, and what the true mean lies above with 95 % confidence.

    ``lower_95``: the one-sided bound of Student's t with count - 1 degrees of freedom; None of fewer than two pairs.
    ``two_sided_95``: half the width of the two-sided interval, for plots.
    """
    row = spread(differences)
    row["lower_95"] = row["two_sided_95"] = None
    if row["count"] > 1:
        degrees = row["count"] - 1
        row["lower_95"] = row["mean"] - float(stats.t.ppf(CONFIDENCE, degrees)) * row["standard_error"]
        row["two_sided_95"] = float(stats.t.ppf((1 + CONFIDENCE) / 2, degrees)) * row["standard_error"]
    return row


def by_group(cells: Iterable[Row]) -> dict[Group, dict[Key, Row]]:
    """Results of the finished cells: (method, pattern) -> (seed, fold) -> result."""
    groups: dict[Group, dict[Key, Row]] = {}
    for cell in cells:
        if "accuracy" in cell["result"]:
            groups.setdefault((cell["method"], cell["pattern"]), {})[cell["seed"], cell["fold"]] = cell["result"]
    return groups


def differences(groups: Mapping[Group, Mapping[Key, Row]], group: Group, reference: Group) -> list[float]:
    """Accuracy of ``group`` minus that of ``reference``: one a seed, over what both have run.

    Folds of a seed share training samples and are averaged; where there are any, the test split stands apart.
    """
    mine, others = groups.get(group, {}), groups.get(reference, {})
    seeds: dict[int, list[float]] = {}
    for key in measured(key for key in mine if key in others):
        seeds.setdefault(key[0], []).append(mine[key]["accuracy"] - others[key]["accuracy"])
    return [statistics.fmean(folds) for folds in seeds.values()]


def measured(keys: Iterable[Key]) -> list[Key]:
    """What accuracy is averaged over: the folds where there are any, else the test split (or the validation part)."""
    chosen = sorted(keys, key=str)
    folds = [key for key in chosen if isinstance(key[1], int)]
    return folds or chosen


def tabulate(cells: list[Row]) -> list[Row]:
    """A row for each method and pattern.

    ``failed``: runs that ended without an accuracy, whose pairs are missing (a method whose every run failed has no
    row). ``accuracy``: over seeds, each averaged over its folds. ``test``: on the test split where there are folds
    beside it.
    ``minus_dense``, ``minus_sr_ste``, ``spikenm_minus``: :func:`paired` differences of this method to dense, to SR-STE
    of the same pattern, and of SpikeNM to this method; a pair is a seed.
    """
    groups = by_group(cells)
    failed = Counter((cell["method"], cell["pattern"]) for cell in cells if "accuracy" not in cell["result"])
    rows: list[Row] = []
    for (method, pattern), results in groups.items():
        keys = measured(results)
        seeds = sorted({seed for seed, _ in keys})
        means = [statistics.fmean(results[key]["accuracy"] for key in keys if key[0] == seed) for seed in seeds]
        row: Row = {"method": method, "pattern": pattern, "seeds": seeds, "accuracy": spread(means)}
        row["failed"] = failed[method, pattern]
        tests = [result["accuracy"] for key, result in results.items() if key not in keys]
        if tests:
            row["test"] = spread(tests)
        pairs = {
            "minus_dense": ((method, pattern), ("dense", "-")),
            "minus_sr_ste": ((method, pattern), ("sr-ste", pattern)),
            "spikenm_minus": (("spikenm", pattern), (method, pattern)),
        }
        for name, (group, reference) in pairs.items():
            found = [] if group == reference or method == "dense" else differences(groups, group, reference)
            if found:
                row[name] = paired(found)
        rows.append(row | _figures(list(results.values())))
    return rows


def _figures(results: list[Row]) -> Row:
    """What else is known of the runs: kept weights, blocks over the pattern (all of them), activity, time."""
    figures: Row = {"seconds": statistics.median(result["seconds"] for result in results)}
    for name in ("kept_fraction", "firing_rate", "synops", "train_accuracy", "overlap_initial"):
        values = [result[name] for result in results if name in result]
        if values:
            figures[name] = statistics.fmean(values)
    figures["blocks_over_pattern"] = sum(result.get("blocks_over_pattern", 0) for result in results)
    return figures


def overlap(masks: Mapping[str, NDArray[np.bool_]], others: Mapping[str, NDArray[np.bool_]]) -> float:
    """Share of the kept positions of ``masks`` that ``others`` keep too, over all layers together."""
    shared = sum(int((mask & others[name]).sum()) for name, mask in masks.items())
    return shared / max(1, sum(int(mask.sum()) for mask in masks.values()))


def agreement(masks: Mapping[int, list[Mapping[str, NDArray[np.bool_]]]]) -> Row:
    """How far runs from the same initial weights keep the same positions.

    Args:
        masks: initialisation -> the masks (layer name -> bool) of runs that began with its weights and trained on its
            samples, in other orders, with other augmentation and other noise of the sampler.

    Returns:
        ``overlap``: mean over the pairs of runs of an initialisation, then :func:`spread` over initialisations (pairs
        that share a run are not independent). ``chance``: what masks that know nothing of each other would have, the
        kept fraction. ``above_chance``: (overlap - chance) / (1 - chance). Much of an overlap may come from the shared
        initial weights, see ``overlap_initial`` of the runs.
    """
    means, kept = [], []
    for runs in masks.values():
        pairs = list(itertools.combinations(runs, 2))
        if pairs:
            means.append(statistics.fmean((overlap(a, b) + overlap(b, a)) / 2 for a, b in pairs))
        kept += [sum(int(m.sum()) for m in run.values()) / sum(m.size for m in run.values()) for run in runs]
    if not means:
        return {}
    chance, mean = statistics.fmean(kept), statistics.fmean(means)
    row = {"overlap": spread(means), "chance": chance, "above_chance": (mean - chance) / (1 - chance)}
    return row | {"runs": [len(runs) for runs in masks.values()]}
