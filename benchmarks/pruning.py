"""N:M pruning from scratch against its comparisons: method x pattern x seed, on one or several studies.

    python benchmarks/pruning.py --studies cifar10-small --processes 2
    python benchmarks/pruning.py --studies nmnist --methods dense spikenm sr-ste --patterns 2:4 1:16 --seeds 3
    python benchmarks/pruning.py --studies cifar10-small --tuning 5 --set methods.spikenm.eta=0.15 --work runs/tuning
    python benchmarks/pruning.py --studies cifar10-small --agreement-runs 4 --methods spikenm spikenm/no-eid sr-ste
    python benchmarks/pruning.py --show cifar10-small

Studies (pruning_studies.py): nmnist, cifar10-small, motion-sim, nmnist-sim, cifar10-gpu, dvs-gesture, cifar10-dvs,
digits. Methods: dense, those of snn_core.pruning.METHODS, and ablations of SpikeNM as "spikenm/no-eid". Every method
sees the same seeds, initial weights, samples and order of data. Interrupt it at will: finished runs are kept, runs are
made seed by seed, and --report makes the tables of what is there. Data lie in $SNN_DATA.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from common import RESULTS, Cell, code_version, finished_cells, run_cells, write_result
from pruning_report import plot, show
from pruning_run import data_facts, free_data, load_masks, mask_file, new_network, new_pruner, run, whole_split
from pruning_statistics import agreement, tabulate
from pruning_studies import ABLATIONS, STUDIES, Study, get_study
from studies import add_grid_options, make_all

from snn_core.errors import ArgumentError, InterruptedRunError
from snn_core.pruning import METHODS

#: Of a cell, what all cells of a method share.
_SHARED = ("settings", "code", "study", "data", "tuning", "keep_masks")
#: Runs of an agreement differ from those of the comparison in all but their initial weights and samples.
AGREEMENT_SEEDS = 10_000


def grid(study: Study, methods: list[str], seeds: list[int], code: str) -> list[Cell]:
    """The runs of a comparison: for each seed and fold, dense and then pattern by pattern all methods."""
    cells = []
    for seed in seeds:
        for fold in study.fold_names(seed):
            for pattern in ("-", *study.patterns):
                for method in methods:
                    if (method == "dense") == (pattern == "-"):
                        cells.append(_cell(study, method, pattern, seed, seed, fold, code))
    return cells


def agreement_grid(study: Study, methods: list[str], seeds: list[int], runs: int, code: str) -> list[Cell]:
    """For the agreement of masks: ``runs`` runs from the initial weights of each seed, with seeds of their own."""
    pruned = [(pattern, method) for pattern in study.patterns for method in methods if method != "dense"]
    return [
        _cell(study, method, pattern, AGREEMENT_SEEDS + 100 * init + number, init, study.fold_names(init)[-1], code)
        | {"keep_masks": True}
        for init in seeds
        for number in range(runs)
        for pattern, method in pruned
    ]


def _cell(study: Study, method: str, pattern: str, seed: int, init: int, fold: int | str, code: str) -> Cell:
    return {
        "study": study.name, "method": method, "pattern": pattern, "seed": seed, "init": init, "fold": fold,
        "tuning": init < study.first_seed, "keep_masks": False, "settings": study.cell_settings(method), "code": code,
    }  # fmt: skip


def possible(cells: list[Cell]) -> tuple[list[Cell], dict[str, str]]:
    """The cells whose method can do their pattern on their network, and why the others cannot.

    An ablation that changes nothing (what it takes away is off) is left out, too.
    """
    reasons: dict[tuple[str, str], str] = {}
    seen: set[tuple[str, str]] = set()
    for cell in cells:
        key = (cell["method"], cell["pattern"])
        if key in seen or cell["method"] == "dense":
            continue
        seen.add(key)
        base = next((c for c in cells if c["method"] == "spikenm"), None)
        if "/" in cell["method"] and base is not None and base["settings"] == cell["settings"]:
            reasons[key] = "the same settings as spikenm"
            continue
        try:
            new_pruner(cell, new_network(cell["settings"], whole_split(cell["settings"], "train"), 0))
        except ArgumentError as error:
            reasons[key] = str(error)
    left_out = {" ".join(key): reason for key, reason in reasons.items()}
    return [cell for cell in cells if (cell["method"], cell["pattern"]) not in reasons], left_out


def agreements(folder: Path, finished: list[Cell]) -> list[dict[str, Any]]:
    """Agreement of the masks of every method and pattern; ``initial``: with the largest initial weights, on average.

    Two masks that both kept what was largest at the start agree without having found anything.
    """
    groups: dict[tuple[str, str], dict[int, list[Any]]] = {}
    initial: dict[tuple[str, str], list[float]] = {}
    for cell in finished:
        described = {name: value for name, value in cell.items() if name != "result"}
        if "accuracy" in cell["result"] and mask_file(folder, described).is_file():
            runs = groups.setdefault((cell["method"], cell["pattern"]), {}).setdefault(cell["init"], [])
            runs.append(load_masks(mask_file(folder, described)))
            initial.setdefault((cell["method"], cell["pattern"]), []).append(cell["result"]["overlap_initial"])
    return [
        {"method": method, "pattern": pattern, "initial": statistics.fmean(initial[method, pattern])} | agreement(masks)
        for (method, pattern), masks in groups.items()
    ]


def compact(cell: Cell) -> Cell:
    """Without what all cells of a method share."""
    return {name: value for name, value in cell.items() if name not in _SHARED}


def make_study(study: Study, arguments: argparse.Namespace) -> bool:
    """Run what is missing of a study, write its JSON, tables and plots. False: it was interrupted."""
    first, count = study.first_seed, arguments.seeds or study.seeds
    seeds = list(range(arguments.tuning)) if arguments.tuning else list(range(first, first + count))
    code = arguments.code or code_version()
    methods = list(dict.fromkeys(arguments.methods))
    settings = study.cell_settings("dense")
    facts = data_facts(settings)
    cells, more = grid(study, methods, seeds, code), []
    if arguments.agreement_runs:
        more = agreement_grid(study, methods, seeds[: arguments.agreement_inits], arguments.agreement_runs, code)
    for cell in (*cells, *more):
        cell["data"] = [facts[split]["content_key"][:16] for split in facts]
    cells, left_out = possible(cells)
    more = [cell for cell in more if f"{cell['method']} {cell['pattern']}" not in left_out]
    free_data()  # the workers load their own
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}")
    folder, whole = arguments.work / study.name, True
    if not arguments.report:
        try:
            work = functools.partial(run, folder)
            run_cells([*cells, *more], work, folder, arguments.processes, describe=_described)
        except (KeyboardInterrupt, InterruptedRunError):
            whole = False
            print("interrupted; the same command goes on, --report shows what is there", file=sys.stderr)
    finished, agreed = finished_cells(folder, cells), finished_cells(folder, more)
    rows = tabulate(finished)
    body = {
        "study": json.loads(json.dumps(vars(study))),
        "about": {
            "pair": "one seed, its folds averaged: the same initial weights, samples and order for every method",
            "agreement": "share of kept positions that two runs share which began with the same weights and samples, "
            "but had other seeds for order, augmentation, dropout and the pruner's draws; chance: the kept fraction; "
            "initial: the share that is kept of the largest initial weights",
            "bounds": "of the mean over seeds (weights, samples, order); the choice of the test set is not in them",
            "first_reported_seed": first,
            "tuning": bool(arguments.tuning),
            "finished": f"{len(finished) + len(agreed)} of {len(cells) + len(more)} runs",
            "code": code,
        },
        "data": facts,
        "settings": {method: study.cell_settings(method) for method in methods},
        "left_out": left_out,
        "failed": [compact(cell) for cell in (*finished, *agreed) if "failed" in cell["result"]],
        "rows": rows,
        "agreement": agreements(folder, agreed),
        "cells": [compact(cell) for cell in (*finished, *agreed)],
    }
    show(study.name, body)
    name = f"pruning_{study.name.replace('-', '_')}{'_tuning' if arguments.tuning else ''}"
    write_result(arguments.results / f"{name}.json", body)
    if not arguments.no_plots:
        plot(arguments.results, name, body)
    return whole


def _described(cell: Cell) -> str:
    init = "" if cell["init"] == cell["seed"] else f" from {cell['init']}"
    return f"{cell['method']} {cell['pattern']}, seed {cell['seed']}{init}, {cell['fold']}"


def parse_arguments() -> argparse.Namespace:
    """The command line; unknown methods end it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = ["dense", *METHODS, *(f"spikenm/{name}" for name in ABLATIONS)]
    parser.add_argument("--studies", nargs="+", default=["nmnist"], help=f"{', '.join(STUDIES)}, or JSON files")
    parser.add_argument("--methods", nargs="+", choices=known, default=["dense", *METHODS], metavar="METHOD",
                        help=f"of {', '.join(known)}")  # fmt: skip
    parser.add_argument("--patterns", nargs="+", help="N:M, instead of the study's")
    parser.add_argument("--seeds", type=int, default=0, help="how many, instead of the study's")
    parser.add_argument("--tuning", type=int, default=0, metavar="COUNT",
                        help="seeds 0 .. COUNT - 1 instead, on the validation part: for choosing settings")  # fmt: skip
    parser.add_argument(
        "--agreement-runs", type=int, default=0, help="runs from the same weights, for masks' agreement"
    )
    parser.add_argument("--agreement-inits", type=int, default=2, help="initial weights for that")
    add_grid_options(parser, Path("runs/benchmark-pruning"), RESULTS, "runs")
    return parser.parse_args()


def main() -> int:
    """Make the studies, one after the other. 0; 1 where data are missing; 130 after an interrupt."""
    arguments = parse_arguments()
    if arguments.show:
        print(json.dumps(vars(get_study(arguments.show)), indent=2))
        return 0
    studies = [get_study(name).changed(arguments.set) for name in arguments.studies]
    if arguments.patterns:
        studies = [study.changed([f"patterns={json.dumps(arguments.patterns)}"]) for study in studies]
    return make_all(studies, lambda study: make_study(study, arguments))


if __name__ == "__main__":
    sys.exit(main())
