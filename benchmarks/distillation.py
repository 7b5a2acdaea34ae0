"""Distilled sets against comparisons at the same budget: methods x IPC x distilled sets, each judged by fresh networks.

Networks are trained on the product alone and tested on the official test recordings after their last epoch. The
full-data reference uses the same networks, trained well. Interrupt it at will: finished cells are kept.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from common import Cell, add_json_option, run_cells, summary, write_result

from snn_core.datasets import load_frames
from snn_core.distillation import (
    DistillConfig,
    EvaluationConfig,
    create_method,
    evaluate_full,
    evaluate_product,
    train_teachers,
    write_product,
)
from snn_core.files import sha256_json
from snn_core.training import TrainConfig


def run(cell: Cell) -> Cell:
    """Make one product (or take all data) and evaluate it."""
    train_set = load_frames(cell["data"], "train", T=cell["T"], quiet=True)
    test_set = load_frames(cell["data"], "test", T=cell["T"], quiet=True)
    evaluation = EvaluationConfig(networks=cell["networks"])
    if cell["method"] == "full":
        return evaluate_full(train_set, test_set, config=evaluation, seed=cell["seed"], quiet=True).to_dict()
    config = DistillConfig(ipc=cell["ipc"])
    method = create_method(cell["method"])
    # The pool is the same for every seed: distilled sets differ by their own draws, as from one user's teachers.
    teachers = train_teachers(train_set, config.teachers, seed=0, quiet=True) if method.needs_teachers else None
    product = method(train_set, config, teachers=teachers, seed=cell["seed"], quiet=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "product.h5"
        write_product(path, product)
        result = evaluate_product(product, test_set, config=evaluation, seed=cell["seed"], path=path, quiet=True)
    return result.to_dict() | {
        "distillation_seconds": product.provenance.seconds,
        "teacher_seconds": product.provenance.teacher_seconds,
    }


def tabulate(finished: list[Cell]) -> list[dict[str, Any]]:
    """Per method and IPC: accuracy over all networks of all sets, beside full data and random selection."""
    groups: dict[tuple[str, int], list[Cell]] = {}
    for cell in finished:
        groups.setdefault((cell["method"], cell["ipc"]), []).append(cell["result"])

    def mean(key: tuple[str, int]) -> float | None:
        return statistics.fmean(a for result in groups[key] for a in result["accuracies"]) if key in groups else None

    full = next((key for key in groups if key[0] == "full"), None)
    rows = []
    for (method, ipc), results in groups.items():
        accuracy, random = mean((method, ipc)), mean(("random", ipc))
        row: dict[str, Any] = {
            "method": method,
            "ipc": ipc,
            "accuracy": summary([value for result in results for value in result["accuracies"]]),
            "train_seconds": statistics.median(result["train_seconds"] for result in results),
            "samples": results[0]["samples"],
            "frame_bytes": results[0]["frame_bytes"],
            "file_bytes": results[0]["file_bytes"],
        }
        if method != "full":
            row["distillation_seconds"] = statistics.median(result["distillation_seconds"] for result in results)
            row["teacher_seconds"] = statistics.median(result["teacher_seconds"] for result in results)
            if full is not None:
                reference = groups[full]
                row["fraction_of_full"] = accuracy / mean(full)
                row["training_speedup"] = (
                    statistics.median(result["train_seconds"] for result in reference) / row["train_seconds"]
                )
                row["bytes_ratio"] = reference[0]["frame_bytes"] / row["frame_bytes"]
            if random is not None:
                row["minus_random"] = accuracy - random
        rows.append(row)
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    print(f"{'method':8} {'ipc':>4} {'accuracy':>17} {'of full':>8} {'- random':>8} {'train s':>8} {'bytes':>10}")
    for row in rows:
        accuracy = f"{row['accuracy']['mean']:.4f} ± {row['accuracy']['std']:.4f}"
        fraction = f"{row['fraction_of_full']:.3f}" if "fraction_of_full" in row else "-"
        gain = f"{row['minus_random']:+.3f}" if "minus_random" in row else "-"
        print(
            f"{row['method']:8} {row['ipc']:4d} {accuracy:>17} {fraction:>8} {gain:>8} "
            f"{row['train_seconds']:8.2f} {row['frame_bytes']:10,}"
        )


def main() -> None:
    """Run the grid and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="nmnist")
    parser.add_argument("--methods", nargs="+", default=["pace", "herding", "random"])
    parser.add_argument("--ipc", type=int, nargs="+", default=[1])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="distilled sets")
    parser.add_argument("--networks", type=int, default=3, help="fresh networks a set")
    parser.add_argument("--time-steps", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-distillation"), help="finished cells")
    add_json_option(parser, "distillation_nmnist.json")
    arguments = parser.parse_args()
    settings = {
        "distill": DistillConfig().model_dump(mode="json"),
        "evaluate": EvaluationConfig().model_dump(mode="json"),
        "full": TrainConfig().model_dump(),
    }
    base = {
        "data": arguments.data, "T": arguments.time_steps, "networks": arguments.networks,
        "settings": sha256_json(settings)[:12],  # a cell of other defaults is another cell
    }  # fmt: skip
    # Once, before the parallel processes would each train the same pool.
    train_set = load_frames(arguments.data, "train", T=arguments.time_steps)
    train_teachers(train_set, DistillConfig().teachers, seed=0)
    cells = [base | {"method": "full", "ipc": 0, "seed": 0}]
    cells += [
        base | {"method": method, "ipc": ipc, "seed": seed}
        for ipc in arguments.ipc
        for method in arguments.methods
        for seed in arguments.seeds
    ]
    finished = run_cells(cells, run, arguments.work, arguments.processes)
    rows = tabulate(finished)
    show(rows)
    write_result(arguments.json, {"settings": settings, "rows": rows, "cells": finished})


if __name__ == "__main__":
    main()
