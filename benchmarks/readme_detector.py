"""README's tables of benchmarks/detector.py."""

from __future__ import annotations

from typing import Any

from readme_events import table


def detector(result: dict[str, Any]) -> str:
    """What was learned, what a training step costs, and how small the frozen weights are."""
    return "\n\n".join([_learning(result["learning"]["summary"]), _cost(result["cost"]), _size(result["size"])])


def _learning(summary: dict[str, Any]) -> str:
    points, less = summary["points"], summary["less_dense_points"]
    rows = [
        [f"frozen weights {arm}", *(_entry(points[arm][score]) for score in _SCORES), _less(less.get(arm))]
        for arm in sorted(points, key=lambda arm: (arm in less, arm))
    ]
    rows.append(["chance", *(f"{summary['chance_points'][score]:.1f}" for score in _SCORES), ""])
    header = ["", *_SCORES.values(), "AUC, F1 minus dense, paired"]
    return table(header, rows)


_SCORES = {"auc": "pictures: AUC", "accuracy": "accuracy %", "f1": "pixels: F1", "iou": "IoU"}


def _entry(score: dict[str, float], sign: str = "") -> str:
    return f"{score['mean']:{sign}.1f} ± {score['std']:.1f}"


def _less(less: dict[str, Any] | None) -> str:
    return f"{_entry(less['auc'], '+')}, {_entry(less['f1'], '+')}" if less else ""


def _cost(cells: list[dict[str, Any]]) -> str:
    rows = [
        [
            cell["form"],
            *(f"{cell['result'][key] / 1e6:.0f}" for key in ("weight_bytes", "kept_for_backward_bytes", "peak_bytes")),
            f"{cell['result']['seconds']:.2f}",
        ]
        for cell in cells
    ]
    batch, threads = cells[0]["batch"], cells[0]["result"]["threads"]
    header = [f"training step of {batch} pictures", "weights MB", "kept for backward MB", "peak of the process MB", "s"]
    return table(header, rows) + (
        f"\n\nThe step: ViT-B/16 with LoRA experts, float32, {threads} thread{'s' if threads > 1 else ''}; the peak "
        "holds the dense weights before compression."
    )


def _size(cells: list[dict[str, Any]]) -> str:
    shares = ", ".join(f"{100 * cell['result']['trained_share']:.1f} % ({cell['form']})" for cell in cells)
    first = cells[0]["result"]
    return (
        f"ViT-B/16 in 16 bits: frozen weights {first['bytes_ratio']:.3f} of their dense bytes in memory, "
        f"{first['file_ratio']:.3f} in the file; trained {shares}; largest difference to the masked dense network "
        f"{first['output_error']['largest_difference']:.1g}."
    )
