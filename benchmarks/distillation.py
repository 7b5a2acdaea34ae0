"""Distilled sets against comparisons at the same budget: method x IPC x distilled set x networks, on studies by name.

    python benchmarks/distillation.py --studies nmnist --processes 2
    python benchmarks/distillation.py --studies motion-sim --tuning 3 --methods pace random \\
        --set distill.beta=0.5 methods.pace='{"gamma": 0}' --work runs/tuning
    python benchmarks/distillation.py --studies nmnist gesture-size --cost
    python benchmarks/distillation.py --show motion-sim

Studies (distillation_studies.py): nmnist, nmnist-sim, motion-sim, digits; for a GPU dvs-gesture, cifar10-dvs and
nmnist-sim-gpu; for --cost gesture-size. Methods: those of snn_core.distillation.list_methods(), ablations as
"pace/no-dft". Networks are trained on the product alone and tested after their last step, beside networks trained on
all data. --tuning never loads the test split. Interrupt it at will: finished parts are kept, sets are made seed by
seed, --report makes the tables of what is there. Data lie in $SNN_DATA.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from pathlib import Path
from typing import Any

from common import RESULTS, Cell, code_version, finished_cells, run_cells, write_result
from distillation_report import plot, show
from distillation_run import data_facts, free_data, run
from distillation_statistics import flatten, production, tabulate
from distillation_studies import OTHER_NETWORKS, STUDIES, Study, get_study
from studies import add_grid_options, make_all

from snn_core.backbones import list_backbones
from snn_core.distillation import DistillConfig, create_method, list_methods
from snn_core.distillation.methods.matched import MatchedMethod
from snn_core.errors import InterruptedRunError

#: Of a cell, what all cells of a study share.
_SHARED = ("data", "tuning", "code", "keys", "device", "settings", "evaluation", "training", "teachers", "pairs")
Grid = list[tuple[str, list[Cell]]]


class Planner:
    """The cells of a study, in the order in which they are run."""

    def __init__(self, study: Study, methods: list[str], tuning: int, code: str, keys: list[str]) -> None:
        self.study, self.methods, self.tuning = study, methods, bool(tuning)
        self.seeds = list(range(tuning)) if tuning else [study.first_seed + i for i in range(study.sets)]
        self.base = {
            "data": study.data_settings(), "tuning": self.tuning, "code": code, "keys": keys, "device": study.device,
        }  # fmt: skip
        self.networks = ["same", *(name for name in study.networks_also if OTHER_NETWORKS[name][0] in list_backbones())]

    def grid(self) -> Grid:
        """(what, cells): first teachers and full-data references, then set by set."""
        phases = [("teachers and all data", [*self.teachers(), *self.full()])]
        for number, seed in enumerate(self.seeds, 1):
            products = self.products(seed)
            where = f"set {number} of {len(self.seeds)}"
            phases += [(f"products, {where}", products), (f"networks, {where}", self.evaluations(products))]
        return phases

    def teachers(self) -> list[Cell]:
        """One cell for each fold and each kind of teachers."""
        kinds = {}
        for ipc, method in self.entries():
            pool = self.study.distill_config(method, ipc).teachers.model_dump(mode="json")
            kinds[json.dumps(pool, sort_keys=True)] = pool
        folds = self.study.fold_names(self.tuning)
        return [self.base | {"kind": "teachers", "fold": fold, "teachers": pool} for fold in folds
                for pool in kinds.values()]  # fmt: skip

    def entries(self, fold: int | str = "test") -> list[tuple[int, str]]:
        """(IPC, method) of a fold."""
        entries = [(int(ipc), method) for ipc, methods in self.study.grid.items() for method in methods]
        if fold != "test" and not self.tuning:
            entries = [(ipc, method) for ipc, method in entries if ipc == 1 and method in self.study.cross_validated]
        return [
            (ipc, method) for ipc, method in entries if method in self.methods and not self.is_pace(method, ipc)
        ]  # fmt: skip

    def full(self) -> list[Cell]:
        """The full-data reference: a cell for each network."""
        study = self.study
        if "full" not in self.methods:
            return []
        return [
            self.base
            | {
                "kind": "full", "fold": fold, "network": network, "seed": number, "training": study.full,
                "evaluation": self.evaluation(0, network), "pairs": study.pairs,
                "curve_points": study.curve_points if network == "same" else 0,
            }
            for fold in study.fold_names(self.tuning)
            for network in (self.networks if fold == "test" and study.full_also else ["same"])
            for number in range(study.full_networks)
        ]  # fmt: skip

    def products(self, seed: int) -> list[Cell]:
        """The distilled sets of a seed."""
        return [
            self.base
            | {
                "kind": "product", "fold": fold, "method": method, "ipc": ipc, "seed": seed,
                "settings": self.study.distill_config(method, ipc).model_dump(mode="json"),
            }
            for fold in self.study.fold_names(self.tuning)
            for ipc, method in self.entries(fold)
        ]  # fmt: skip

    def evaluations(self, products: list[Cell]) -> list[Cell]:
        """What they are worth, on every network."""
        cells = []
        for made in products:
            transfers = made["method"] in self.study.transferred and made["ipc"] == 1 and made["fold"] == "test"
            for network in self.networks if transfers else ["same"]:
                cells.append(
                    {
                        "kind": "evaluate", "product": made, "network": network, "pairs": self.study.pairs,
                        "evaluation": self.evaluation(made["ipc"], network),
                        "curve_points": self.study.curve_points if network == "same" else 0,
                    }
                )  # fmt: skip
        return cells

    def evaluation(self, ipc: int, network: str) -> dict[str, Any]:
        """Settings of the fresh networks."""
        return self.study.evaluation_config(ipc, network).model_dump(mode="json")

    def left_out(self) -> dict[str, str]:
        """What the study names and this code does not have, and what would only be PACE again."""
        named = {method for methods in self.study.grid.values() for method in methods}
        return dict.fromkeys(sorted(named - set(list_methods())), "no such method here") | {
            f"network {name}": f"no backbone {OTHER_NETWORKS[name][0]} here"
            for name in self.study.networks_also
            if name not in self.networks
        } | {f"{method}, IPC {ipc}": "the same settings as pace"
             for ipc, methods in self.study.grid.items() for method in methods
             if method in self.methods and self.is_pace(method, int(ipc))}  # fmt: skip

    def is_pace(self, method: str, ipc: int) -> bool:
        """Whether an ablation takes away what the study's settings do not use, so that PACE is left."""
        return method.startswith("pace/") and self.effective(method, ipc) == self.effective("pace", ipc)

    def effective(self, method: str, ipc: int) -> DistillConfig:
        """The settings that a form of PACE comes to run with."""
        made, config = create_method(method), self.study.distill_config(method, ipc)
        return made.config_of(config) if isinstance(made, MatchedMethod) else config


def compact(cell: Cell) -> Cell:
    """A finished evaluation without what all cells share, and curves to four digits."""
    flat = flatten(cell)
    result = dict(flat["result"])
    result["curves"] = [[[round(x, 4) for x in point] for point in curve] for curve in result.get("curves", [])]
    return flat | {"result": result}


def run_study(study: Study, planner: Planner, arguments: argparse.Namespace) -> bool:
    """Run what is missing. False: it was interrupted."""
    folder = arguments.work / study.name
    for what, cells in planner.grid():
        print(f"{study.name}: {what}")
        try:
            run_cells(cells, functools.partial(run, folder), folder, arguments.processes, describe=described)
        except (KeyboardInterrupt, InterruptedRunError):
            print("interrupted; the same command goes on, --report shows what is there", file=sys.stderr)
            return False
    return True


def make_study(study: Study, arguments: argparse.Namespace) -> bool:
    """Run what is missing of a study, write its JSON, tables and plots. False: it was interrupted."""
    facts = data_facts(study.data_settings(), bool(arguments.tuning))
    keys = [facts[split]["content_key"][:16] for split in facts]
    free_data()  # the workers load their own
    known = [*list_methods(), "full"]
    methods = [name for name in arguments.methods or known if name in known]
    planner = Planner(study, methods, arguments.tuning, arguments.code or code_version(), keys)
    left_out = planner.left_out()
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}")
    whole = arguments.report or run_study(study, planner, arguments)
    cells = [cell for _, part in planner.grid() for cell in part]
    finished = finished_cells(arguments.work / study.name, cells)
    judged = [cell for cell in finished if cell["kind"] in ("evaluate", "full")]
    failed = [cell for cell in finished if "failed" in cell["result"]]
    body = {
        "study": json.loads(json.dumps(vars(study))),
        "about": {
            "accuracy": "over all networks of all distilled sets; sets: over the means of the sets",
            "pair": "a distilled set: one seed for initial samples, draws and the fresh networks",
            "tuning": bool(arguments.tuning),
            "finished": f"{len(finished)} of {len(cells)} parts",
            "code": planner.base["code"],
        },
        "data": facts,
        "settings": {method: study.distill_config(method, ipc).model_dump(mode="json")
                     for ipc, method in planner.entries()},
        "networks": {name: planner.evaluation(1, name) for name in planner.networks},
        "left_out": left_out,
        "failed": [{key: value for key, value in cell.items() if key not in _SHARED} for cell in failed],
        "rows": tabulate(map(flatten, judged)),
        "production": production(cell for cell in finished if cell["kind"] == "product"),
        "cells": [compact(cell) for cell in judged if "failed" not in cell["result"]],
    }  # fmt: skip
    show(study.name, body)
    name = f"distillation_{study.name.replace('-', '_')}{'_tuning' if arguments.tuning else ''}"
    write_result(arguments.results / f"{name}.json", body)
    if not arguments.no_plots:
        plot(arguments.results, name, body)
    return whole


def measure_cost(study: Study, arguments: argparse.Namespace) -> bool:
    """Wall-clock and peak memory of teachers and distillation, each in a process of its own, nothing cached."""
    planner = Planner(study, ["pace"], 1, arguments.code or code_version(), [])
    base = planner.base | {"kind": "cost", "fold": "all", "seed": 0, "threads": arguments.threads}
    data_facts(study.data_settings(), True)
    free_data()
    cells = [
        base | {"method": "pace", "ipc": int(ipc),
                "settings": study.distill_config("pace", int(ipc)).model_dump(mode="json")}
        for ipc in study.grid
    ]  # fmt: skip
    folder = arguments.work / f"{study.name}-cost"
    finished = run_cells(cells, functools.partial(run, folder), folder, 1, fresh=True, describe=described)
    body = {
        "study": json.loads(json.dumps(vars(study))),
        "about": "peak_bytes: most memory of the process (or of the device), teachers and data included",
        "rows": [{"ipc": cell["ipc"], "threads": cell["threads"]} | cell["result"] for cell in finished],
    }
    for row in body["rows"]:
        print(json.dumps(row))
    write_result(arguments.results / f"distillation_cost_{study.name.replace('-', '_')}.json", body)
    return True


def described(cell: Cell) -> str:
    """A finished cell in a line."""
    made = cell.get("product", cell)
    names = [cell["kind"], made.get("method", ""), f"ipc {made['ipc']}" if "ipc" in made else "",
             cell.get("network", ""), f"seed {made['seed']}" if "seed" in made else "", str(made["fold"])]  # fmt: skip
    return " ".join(name for name in names if name)


def parse_arguments() -> argparse.Namespace:
    """The command line; unknown methods end it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = ["full", *list_methods()]
    parser.add_argument("--studies", nargs="+", default=["nmnist"], help=f"{', '.join(STUDIES)}, or JSON files")
    parser.add_argument("--methods", nargs="+", choices=known, metavar="METHOD", help=f"of {', '.join(known)}")
    parser.add_argument("--ipc", type=int, nargs="+", help="of the study's")
    parser.add_argument("--sets", type=int, default=0, help="distilled sets a method, instead of the study's")
    parser.add_argument("--networks", type=int, default=0, help="fresh networks a set, instead of the study's")
    parser.add_argument(
        "--tuning", type=int, default=0, metavar="COUNT",
        help="sets 0 .. COUNT - 1 instead, on folds of the training split: for choosing settings",
    )  # fmt: skip
    parser.add_argument("--cost", action="store_true", help="measure time and memory of PACE instead")
    parser.add_argument("--threads", type=int, default=1, help="of torch, for --cost")
    add_grid_options(parser, Path("runs/benchmark-distillation"), RESULTS, "parts")
    return parser.parse_args()


def chosen(arguments: argparse.Namespace) -> list[Study]:
    """The studies, as the command line changes them."""
    counts = [f"{key}={value}" for key, value in (("sets", arguments.sets), ("networks", arguments.networks)) if value]
    studies = [get_study(name).changed([*arguments.set, *counts]) for name in arguments.studies]
    if arguments.ipc:
        kept = [{ipc: study.grid[ipc] for ipc in study.grid if int(ipc) in arguments.ipc} for study in studies]
        studies = [
            study.changed([f"grid={json.dumps(grid)}"]) for study, grid in zip(studies, kept, strict=True)
        ]  # fmt: skip
    return studies


def main() -> int:
    """Make the studies, one after the other. 0; 1 where data are missing; 130 after an interrupt."""
    arguments = parse_arguments()
    if arguments.show:
        print(json.dumps(vars(get_study(arguments.show)), indent=2))
        return 0
    make = measure_cost if arguments.cost else make_study
    return make_all(chosen(arguments), lambda study: make(study, arguments))


if __name__ == "__main__":
    sys.exit(main())
