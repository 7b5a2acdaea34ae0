"""README's tables of distilled sets (see readme.py)."""

from __future__ import annotations

from typing import Any

from readme_events import table

#: Where a study compares more methods than README has room for; the others are in its JSON file.
SHOWN = (
    "full", "pace", "pace/multi", "pace/amplitude-only", "pace/no-decoder-matching", "pace/no-decoder",
    "herding", "dm/time-mean", "dm/time-mean-sdr", "random",
)  # fmt: skip


def distillation(result: dict[str, Any]) -> str:
    """Accuracy, time and bytes of the main methods beside the full set, per protocol and IPC; then other networks."""
    rows = [row for row in result["rows"] if row["network"] == "same" and row["method"] in SHOWN]
    rows.sort(key=lambda row: (row["protocol"] != "test", row["ipc"], SHOWN.index(row["method"])))
    pairs = any("within_pair" in row for row in rows)
    header = ["trained on", "per class", "tested on", "accuracy %", *(["within pair %"] if pairs else []), "% of full"]
    header += ["minus random", "training s", "bytes of frames"]
    lines = []
    for row in rows:
        full = row["method"] == "full"
        within = [f"{100 * row['within_pair']['mean']:.1f}"] if pairs else []
        lines.append(
            [
                "all data" if full else row["method"],
                "" if full else str(row["ipc"]),
                _tested_on(result, row["protocol"]),
                f"{100 * row['accuracy']['mean']:.1f} ± {100 * row['sets']['std']:.1f} ({row['sets']['count']})",
                *within,
                "" if full else f"{100 * row['fraction_of_full']:.1f}",
                f"{100 * row['minus_random']:+.1f}" if "minus_random" in row else "",
                f"{row['train_seconds']:.1f}",
                f"{row['frame_bytes']:,}",
            ]
        )
    parts = [table(header, lines), _seconds(result), _other_networks(result)]
    return "\n\n".join(part for part in parts if part)


def _tested_on(result: dict[str, Any], protocol: str) -> str:
    """What the accuracies are of: the test split, or those folds of the training split that are reported."""
    if protocol == "test":
        return f"{result['data']['test']['samples']:,} test recordings"
    return f"{protocol}, {result['data']['train']['samples']:,} recordings"


def _seconds(result: dict[str, Any]) -> str:
    """Wall-clock of making PACE's sets."""
    return "\n".join(
        f"Making a set of {row['ipc']} a class: {row['distillation_seconds']:.0f} s after {row['teacher_seconds']:.0f} "
        f"s of teachers (medians of {row['sets']}); a file of {row['file_bytes']:,} bytes."
        for row in result["production"]
        if row["method"] == "pace" and row["protocol"] == "test"
    )


def _other_networks(result: dict[str, Any]) -> str:
    """Networks that took no part in distillation, one sample a class."""
    accuracy: dict[str, dict[str, dict[str, Any]]] = {}
    for row in result["rows"]:
        if row["network"] != "same" and row["protocol"] == "test":
            accuracy.setdefault(row["network"], {})[row["method"]] = row
    lines = [
        [network, *(f"{100 * rows[method]['accuracy']['mean']:.1f}" for method in ("pace", "random")),
         f"{rows['pace']['gain_kept']:.2f}" if "gain_kept" in rows["pace"] else ""]
        for network, rows in accuracy.items()
        if {"pace", "random"} <= set(rows)
    ]  # fmt: skip
    return table(["other network, 1 a class", "pace %", "random %", "of the gain"], lines) if lines else ""
