"""README's table of the pruning methods on pictures."""

from __future__ import annotations

from typing import Any

from readme_events import table

Row = dict[str, Any]


def pictures(result: Row) -> str:
    """A row for each pattern and method: accuracy, paired differences to SR-STE and dense, SpikeNM's to the method."""
    rows = sorted(result["rows"], key=lambda row: (_sparsity(row["pattern"]), row["pattern"]))
    cells = [
        [
            row["pattern"],
            row["method"],
            f"{100 * row['accuracy']['mean']:.2f} ± {100 * row['accuracy']['std']:.2f} ({row['accuracy']['count']})",
            _paired(row.get("minus_sr_ste")),
            _paired(row.get("minus_dense"), bound=False),
            _paired(row.get("spikenm_minus")),
        ]
        for row in rows
    ]
    header = ["pattern", "method", "test accuracy %", "minus sr-ste", "minus dense", "spikenm minus it"]
    return table(header, cells)


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
    mean = f"{100 * row['mean']:+.2f}"
    if row["standard_error"] is None:
        return f"{mean} (1)"
    shown = f"{mean} ± {100 * row['standard_error']:.2f} ({row['count']})"
    return f"{shown}, > {100 * row['lower_95']:+.2f}" if bound else shown
