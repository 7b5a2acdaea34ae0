"""N:M pruning from scratch against its comparisons on N-MNIST recordings: methods x patterns x seeds x folds.

Every method sees the same seeds, folds and order of data. Fold ``test`` trains on the whole training split and tests on
the official test recordings; the numbered folds are cross-validation on the training split. Interrupt it at will:
finished cells are kept.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from common import Cell, add_json_option, code_version, run_cells, summary, write_result

from snn_core.backbones import create
from snn_core.datasets import load_frames, stratified_folds
from snn_core.files import sha256_json
from snn_core.pruning import METHODS, PruneConfig, create_pruner
from snn_core.sparsity import check_nm
from snn_core.training import TrainConfig, evaluate_accuracy, train_classifier

FOLDS = 5


def run(cell: Cell) -> Cell:
    """Train one network and test it at its last epoch."""
    train_set = load_frames(cell["data"], "train", T=cell["T"], quiet=True)
    if cell["fold"] == "test":
        test_set = load_frames(cell["data"], "test", T=cell["T"], quiet=True)
    else:
        train_part, test_part = stratified_folds(train_set.labels, FOLDS, seed=0)[cell["fold"]]
        train_set, test_set = train_set.subset(train_part), train_set.subset(test_part)
    model = create("conv-snn", seed=cell["seed"], channels=cell["channels"])
    hooks = []
    if cell["method"] != "dense":
        hooks = [create_pruner(cell["method"], model, PruneConfig(pattern=cell["pattern"], seed=cell["seed"]))]
    config = TrainConfig(seed=cell["seed"], epochs=cell["epochs"])
    outcome = train_classifier(model, train_set, config, hooks=hooks, quiet=True)
    result: dict[str, Any] = {"accuracy": evaluate_accuracy(model, test_set), "seconds": outcome.seconds}
    for hook in hooks:
        weights = {name: model.get_parameter(f"{name}.weight") for name in hook.patterns}
        result["blocks_over_pattern"] = sum(check_nm(weight, cell["pattern"]) for weight in weights.values())
        result["kept"] = sum(int((weight != 0).sum()) for weight in weights.values())
        result["weights"] = sum(weight.numel() for weight in weights.values())
    return result


def tabulate(finished: list[Cell]) -> list[dict[str, Any]]:
    """Per method and pattern: accuracy over folds (averaged within each seed), on the test split, against dense."""
    groups: dict[tuple[str, str], dict[tuple[int, Any], Cell]] = {}
    for cell in finished:
        groups.setdefault((cell["method"], cell["pattern"]), {})[cell["seed"], cell["fold"]] = cell["result"]
    dense = groups.get(("dense", "-"), {})
    rows = []
    for (method, pattern), cells in groups.items():
        seeds = sorted({seed for seed, _ in cells})
        folds = [key for key in cells if key[1] != "test"]
        row: dict[str, Any] = {"method": method, "pattern": pattern, "seeds": seeds}
        if folds:
            means = [statistics.fmean(cells[key]["accuracy"] for key in folds if key[0] == seed) for seed in seeds]
            row["cross_validation"] = summary(means)
            paired = [cells[key]["accuracy"] - dense[key]["accuracy"] for key in folds if key in dense]
            if paired and method != "dense":
                row["minus_dense"] = summary(paired)
        tests = [cell["accuracy"] for (_, fold), cell in cells.items() if fold == "test"]
        if tests:
            row["test"] = summary(tests)
        row["seconds"] = statistics.median(cell["seconds"] for cell in cells.values())
        row["blocks_over_pattern"] = sum(cell.get("blocks_over_pattern", 0) for cell in cells.values())
        if "kept" in next(iter(cells.values())):
            row["kept_fraction"] = statistics.fmean(cell["kept"] / cell["weights"] for cell in cells.values())
        rows.append(row)
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    titles = f"{'5-fold accuracy':>17} {'minus dense':>17} {'test':>15} {'over N:M':>8} {'s/run':>6}"
    print(f"{'method':10} {'pattern':>7} {titles}")
    for row in rows:
        parts = [
            f"{row[key]['mean']:.4f} ± {row[key]['std']:.4f}" if key in row else "-"
            for key in ("cross_validation", "minus_dense", "test")
        ]
        print(
            f"{row['method']:10} {row['pattern']:>7} {parts[0]:>17} {parts[1]:>17} {parts[2]:>15} "
            f"{row['blocks_over_pattern']:8d} {row['seconds']:6.1f}"
        )


def main() -> None:
    """Run the grid and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="nmnist")
    parser.add_argument("--methods", nargs="+", default=["dense", *METHODS])
    parser.add_argument("--patterns", nargs="+", default=["2:4"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folds", nargs="+", default=[*map(str, range(FOLDS)), "test"])
    parser.add_argument("--time-steps", type=int, default=3)
    parser.add_argument("--channels", type=int, nargs="+", default=[32, 64, 64])
    parser.add_argument("--epochs", type=int, default=TrainConfig().epochs)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-pruning"), help="finished cells")
    add_json_option(parser, "pruning_nmnist.json")
    arguments = parser.parse_args()
    settings = {"train": TrainConfig().model_dump(), "prune": PruneConfig().model_dump(mode="json")}
    base = {
        "data": arguments.data, "T": arguments.time_steps, "channels": arguments.channels, "epochs": arguments.epochs,
        "settings": sha256_json(settings)[:12],  # a cell of other defaults, or other code, is another cell
        "code": code_version(),
    }  # fmt: skip
    cells = [
        base | {"method": method, "pattern": pattern, "seed": seed, "fold": "test" if fold == "test" else int(fold)}
        for seed in arguments.seeds
        for fold in arguments.folds
        for method in arguments.methods
        for pattern in (["-"] if method == "dense" else arguments.patterns)
    ]
    finished = run_cells(cells, run, arguments.work, arguments.processes)
    rows = tabulate(finished)
    show(rows)
    write_result(arguments.json, {"settings": settings, "rows": rows, "cells": finished})


if __name__ == "__main__":
    main()
