"""Distilled sets against comparisons at the same budget: methods x IPC x distilled sets, each judged by fresh networks.

Networks are trained on the product alone and tested after their last epoch: on the official test recordings, and in
5-fold cross-validation on the training split (teachers and products then see the other four folds only). The full-data
reference uses the same networks, trained well. Interrupt it at will: finished cells are kept.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from common import Cell, add_json_option, code_version, run_cells, summary, write_result

from snn_core.datasets import FrameDataset, load_frames, stratified_folds
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

FOLDS = 5


def data(cell: Cell) -> tuple[FrameDataset, FrameDataset]:
    """The official splits, or a fold of the training split."""
    train_set = load_frames(cell["data"], "train", T=cell["T"], quiet=True)
    if cell["fold"] == "test":
        return train_set, load_frames(cell["data"], "test", T=cell["T"], quiet=True)
    train_part, test_part = stratified_folds(train_set.labels, FOLDS, seed=0)[cell["fold"]]
    return train_set.subset(train_part), train_set.subset(test_part)


def train_pool(cell: Cell) -> Cell:
    """Train the teachers of a fold into the cache, before several cells would each do it."""
    return {"seconds": train_teachers(data(cell)[0], DistillConfig().teachers, seed=0, quiet=True).seconds}


def run(cell: Cell) -> Cell:
    """Make one product (or take all data) and evaluate it."""
    train_set, test_set = data(cell)
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
    """One row per protocol (``test``, ``5-fold``), method and IPC: accuracy over all networks of all sets."""
    groups: dict[tuple[str, str, int], list[Cell]] = {}
    for cell in finished:
        protocol = "test" if cell["fold"] == "test" else "5-fold"
        groups.setdefault((protocol, cell["method"], cell["ipc"]), []).append(cell["result"])
    return [_row(key, groups) for key in groups]


def _row(key: tuple[str, str, int], groups: dict[tuple[str, str, int], list[Cell]]) -> dict[str, Any]:
    protocol, method, ipc = key
    results = groups[key]

    def accuracies(of: tuple[str, str, int]) -> list[float]:
        return [value for result in groups[of] for value in result["accuracies"]]

    accuracy = summary(accuracies(key))
    sets = [statistics.fmean(result["accuracies"]) for result in results]
    row: dict[str, Any] = {
        "protocol": protocol,
        "method": method,
        "ipc": ipc,
        "accuracy": accuracy,
        "sets": summary(sets),
        "train_seconds": statistics.median(result["train_seconds"] for result in results),
        "samples": results[0]["samples"],
        "frame_bytes": results[0]["frame_bytes"],
        "file_bytes": results[0]["file_bytes"],
    }
    if method == "full":
        return row
    row["distillation_seconds"] = statistics.median(result["distillation_seconds"] for result in results)
    row["teacher_seconds"] = statistics.median(result["teacher_seconds"] for result in results)
    full = (protocol, "full", 0)
    if full in groups:
        row["fraction_of_full"] = accuracy["mean"] / statistics.fmean(accuracies(full))
        full_seconds = statistics.median(result["train_seconds"] for result in groups[full])
        row["training_speedup"] = full_seconds / row["train_seconds"]
        row["bytes_ratio"] = groups[full][0]["frame_bytes"] / row["frame_bytes"]
    random = (protocol, "random", ipc)
    if random in groups and method != "random":
        row["minus_random"] = accuracy["mean"] - statistics.fmean(accuracies(random))
    return row


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    titles = f"{'accuracy':>17} {'of full':>8} {'- random':>8} {'train s':>8} {'bytes':>10}"
    print(f"{'protocol':8} {'method':8} {'ipc':>4} {titles}")
    for row in rows:
        accuracy = f"{row['accuracy']['mean']:.4f} ± {row['accuracy']['std']:.4f}"
        fraction = f"{row['fraction_of_full']:.3f}" if "fraction_of_full" in row else "-"
        gain = f"{row['minus_random']:+.3f}" if "minus_random" in row else "-"
        print(
            f"{row['protocol']:8} {row['method']:8} {row['ipc']:4d} {accuracy:>17} {fraction:>8} {gain:>8} "
            f"{row['train_seconds']:8.2f} {row['frame_bytes']:10,}"
        )


def main() -> None:
    """Run the grid and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="nmnist")
    parser.add_argument("--methods", nargs="+", default=["pace", "herding", "random"])
    parser.add_argument("--ipc", type=int, nargs="+", default=[1])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="distilled sets of a fold")
    parser.add_argument("--test-seeds", type=int, nargs="+", default=list(range(6)), help="sets for the test split")
    parser.add_argument("--folds", nargs="+", default=["test", *map(str, range(FOLDS))])
    parser.add_argument("--networks", type=int, default=3, help="fresh networks a set")
    parser.add_argument("--time-steps", type=int, default=6)
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
        "settings": sha256_json(settings)[:12], "code": code_version(),  # of other code, it is another cell
    }  # fmt: skip
    folds = ["test" if fold == "test" else int(fold) for fold in arguments.folds]
    run_cells(
        [base | {"teachers": True, "fold": fold} for fold in folds], train_pool, arguments.work, arguments.processes
    )
    cells = [base | {"method": "full", "ipc": 0, "seed": 0, "fold": fold} for fold in folds]
    cells += [
        base | {"method": method, "ipc": ipc, "seed": seed, "fold": fold}
        for fold in folds
        for ipc in arguments.ipc
        for seed in (arguments.test_seeds if fold == "test" else arguments.seeds)
        for method in arguments.methods
    ]
    finished = run_cells(cells, run, arguments.work, arguments.processes)
    rows = tabulate(finished)
    show(rows)
    write_result(arguments.json, {"settings": settings, "rows": rows, "cells": finished})


if __name__ == "__main__":
    main()
