"""README's tables of the pruning methods."""

from __future__ import annotations

from typing import Any

from readme_events import table

Row = dict[str, Any]


def recordings(result: Row) -> str:
    """A row for each method and pattern: accuracy in cross-validation, paired differences, the test recordings."""
    cells = [
        [
            row["pattern"],
            row["method"],
            _accuracy(row["accuracy"], 1),
            _paired(row.get("minus_dense"), bound=False),
            _paired(row.get("minus_sr_ste"), bound=False),
            _accuracy(row["test"], 1),
            str(row["blocks_over_pattern"]) if row["method"] != "dense" else "",
        ]
        for row in _by_sparsity(result)
    ]
    seen = ["5-fold accuracy %", "minus dense", "minus sr-ste", "100 test recordings %", "blocks over N:M"]
    return table(["pattern", "method", *seen], cells)


def pictures(result: Row) -> str:
    """A row for each pattern and method: accuracy, paired differences to SR-STE and dense, SpikeNM's to the method."""
    cells = [
        [
            row["pattern"],
            row["method"],
            _accuracy(row["accuracy"], 2),
            _paired(row.get("minus_sr_ste")),
            _paired(row.get("minus_dense"), bound=False),
            _paired(row.get("spikenm_minus")),
        ]
        for row in _by_sparsity(result)
    ]
    header = ["pattern", "method", "test accuracy %", "minus sr-ste", "minus dense", "spikenm minus it"]
    return table(header, cells)


def _by_sparsity(result: Row) -> list[Row]:
    return sorted(result["rows"], key=lambda row: (_sparsity(row["pattern"]), row["pattern"]))


def _accuracy(value: Row, digits: int) -> str:
    return f"{100 * value['mean']:.{digits}f} ± {100 * value['std']:.{digits}f} ({value['count']})"


def _sparsity(pattern: str) -> float:
    """Fraction of the weights that are dropped; dense comes first."""
    if pattern == "-":
        return -1.0
    n, m = (int(part) for part in pattern.split(":"))
    return 1 - n / m


def _paired(row: Row | None, bound: bool = True) -> str:
    """Mean, its standard error, pairs, and the lower bound of 95 % if ``bound``."""
    if row is None:
        return ""
    mean = f"{round(100 * row['mean'], 2) + 0.0:+.2f}"  # not -0.00
    if row["standard_error"] is None:
        return f"{mean} (1)"
    shown = f"{mean} ± {100 * row['standard_error']:.2f} ({row['count']})"
    return f"{shown}, > {100 * row['lower_95']:+.2f}" if bound else shown
