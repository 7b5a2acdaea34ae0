"""Search for the form of PACE that a data set needs: form x distilled set on tuning folds, in bounded time.

    python benchmarks/distillation_search.py --study motion-sim-single --sets 2 --minutes 60
    python benchmarks/distillation_search.py --study motion-sim-single --forms dm aligned/spikes \\
        --add mine='{"time_matching": "aligned", "gamma": 0.5}' --sets 4
    python benchmarks/distillation_search.py --study motion-sim-single --report

A form is a method with changed settings (FORMS; --add gives others); they are meant for motion-sim-single, whose own
settings are the defaults. Everything is tested on folds of the training
split that no reported figure uses (distillation_run.py), so what comes out is guidance for choosing settings, not a
result. One process, set by set, so that every form has been seen once before any is seen twice; teachers come first and
are cached by content. Interrupt it at will, or give it --minutes: what is finished is kept, the same command goes on.
Real features are shared by all forms, in at most --megabytes.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from common import RESULTS, Cell, code_version, finished_cells, run_cells, write_result
from distillation import Planner, described
from distillation_run import OWN_TEACHER, data_facts, run
from distillation_statistics import accuracy_of
from distillation_studies import GENTLE, Study, get_study, merged
from pruning_statistics import spread
from studies import Row, Settings

from snn_core.distillation import DistillConfig, create_method
from snn_core.distillation.real_features import shared_features
from snn_core.errors import ArgumentError, InterruptedRunError

_NO_CF: Settings = {"cf_weight": 0.0}
_DM: Settings = _NO_CF | {"dm_weight": 1.0, "dm_beta": 0.0}
#: 32 binary clips of half the size, and the steps that leave them what they are.
_DIGITS: Settings = {"formation_space": 2, "formation_digits": 8, "formation_gain": 3}
_CLIPS: Settings = _DIGITS | GENTLE

#: Name -> (method, changes of the study's settings of PACE). docs/notes/pace.md says what came of them.
FORMS: dict[str, tuple[str, Settings]] = {
    "random": ("random", {}),
    "dm": ("dm/time-mean", {}),
    "herding": ("herding", {}),
    "literal": ("pace", {}),
    "dm+coherent": ("pace", _DM | {"time_matching": "coherent"}),
    "dm+coherent/spikes": ("pace", _DM | {"time_matching": "coherent", "beta": 0.0}),
    "aligned": ("pace", _NO_CF | {"time_matching": "aligned"}),
    "aligned/spikes": ("pace", _NO_CF | {"time_matching": "aligned", "beta": 0.0}),
    "aligned-coherent": ("pace", _NO_CF | {"time_matching": "aligned-coherent"}),
    "aligned-coherent/spikes": ("pace", _NO_CF | {"time_matching": "aligned-coherent", "beta": 0.0}),
    "dm+aligned-coherent/spikes": ("pace", _DM | {"time_matching": "aligned-coherent", "beta": 0.0}),
    "dm, then coherent": ("pace", _DM | {"time_matching": "coherent", "dm_stage": [0, 0.5], "dft_stage": [0.5, 1]}),
    "dm, coherent later": ("pace", _DM | {"time_matching": "coherent", "dft_stage": [0.3, 1]}),
    "cf auto+coherent": ("pace", {"sigma": "auto", "time_matching": "coherent"}),
    "cf auto+aligned": ("pace", {"sigma": "auto", "time_matching": "aligned-coherent"}),
    "multi, dm+coherent": ("pace", _DM | {"time_matching": "coherent", "formation_space": 2}),
    "multi, aligned/spikes": (
        "pace", _NO_CF | {"time_matching": "aligned", "beta": 0.0, "formation_space": 2},
    ),
    "multi, literal": ("pace", {"formation_space": 2}),
    "multi, dm": ("dm/time-mean", {"formation_space": 2}),
    "aligned/spikes, herding": ("pace", _NO_CF | {"time_matching": "aligned", "beta": 0.0, "init": "herding"}),
    "digits, random": ("random", _DIGITS),
    "digits of whole clips, random": ("random", _DIGITS | {"formation_space": 1}),
    "digits, herding": ("herding", _DIGITS),
    "digits, dm": ("dm/time-mean", _CLIPS),
    "digits, coherent": ("pace", _CLIPS),
    "digits, coherent, no phase": ("pace/amplitude-only", _CLIPS),
    "digits, coherent, herding": ("pace", _CLIPS | {"init": "herding"}),
    "aligned/spikes, longer": ("pace", _NO_CF | {"time_matching": "aligned", "beta": 0.0, "iterations": 1000}),
}  # fmt: skip


def form_cells(planner: Planner, form: tuple[str, Settings], ipc: int, seed: int, fold: int) -> list[Cell]:
    """Product of a form and its evaluation."""
    method, changes = form
    config = planner.study.distill_config(method, ipc).model_dump(mode="json")
    settings = DistillConfig.model_validate(merged(config, changes)).model_dump(mode="json")
    made = planner.base | {
        "kind": "product", "fold": fold, "method": method, "ipc": ipc, "seed": seed, "settings": settings,
    }  # fmt: skip
    judged = {"kind": "evaluate", "product": made, "network": "same", "pairs": planner.study.pairs,
              "evaluation": planner.evaluation(ipc, "same"), "curve_points": 0}  # fmt: skip
    return [made, judged]


def table(results: dict[str, list[tuple[Row, Row]]]) -> list[Row]:
    """A row a form, the best first: figures over the means of its sets, from (product, evaluation) results."""
    rows = []
    for form, pairs in results.items():
        judged = [evaluation for _, evaluation in pairs if "accuracies" in evaluation]
        if not judged:
            failure = next((found["failed"] for pair in pairs for found in pair if "failed" in found), "not finished")
            rows.append({"form": form, "failed": failure})
            continue
        row: Row = {"form": form, "accuracy": spread([accuracy_of(result) for result in judged])}
        for name in judged[0]["measures"]:
            row[name] = spread([statistics.fmean(result["measures"][name]) for result in judged])
        row["networks_a_set"] = len(judged[0]["accuracies"])
        row["distillation_seconds"] = statistics.median(
            made["distillation_seconds"] for made, _ in pairs if "distillation_seconds" in made
        )
        rows.append(row)
    return sorted(rows, key=lambda row: row["accuracy"]["mean"] if "accuracy" in row else -1.0, reverse=True)


def markdown(rows: list[Row]) -> str:
    """The rows as a table in percent; deviations are over sets."""
    measures = [name for name in ("shape", "within_pair") if any(name in row for row in rows)]
    lines = [f"| form | sets | accuracy | {' | '.join(name.replace('_', ' ') for name in measures)} |"]
    lines.append("|" + "---|" * (3 + len(measures)))
    for row in rows:
        if "failed" in row:
            lines.append(f"| {row['form']} | 0 | {row['failed']} |" + " |" * len(measures))
            continue
        accuracy = row["accuracy"]
        figures = [f"{100 * accuracy['mean']:.1f} ± {100 * accuracy['std']:.1f}"]
        figures += [f"{100 * row[name]['mean']:.1f}" for name in measures]
        lines.append(f"| {row['form']} | {accuracy['count']} | {' | '.join(figures)} |")
    return "\n".join(lines)


def write(study: Study, planner: Planner, arguments: argparse.Namespace, forms: dict[str, Any], grid: Any) -> None:
    """JSON and table of what is finished."""
    folder = arguments.work / study.name
    results = {}
    for (form, _), cells in grid.items():
        found = finished_cells(folder, cells)
        if len(found) == len(cells):
            results.setdefault(form, []).append((found[0]["result"], found[1]["result"]))
    rows = table(results)
    print(markdown(rows), flush=True)
    body = {
        "study": json.loads(json.dumps(vars(study))),
        "about": {
            "what": "GUIDANCE from tuning folds, not a result: settings were looked at on these samples",
            "fold": arguments.fold,
            "ipc": arguments.ipc,
            "accuracy": "over the means of the sets; shape: of the pair; within_pair: of the true pair's two classes",
            "finished": f"{sum(map(len, results.values()))} of {len(grid)} (form, set)",
            "code": planner.base["code"],
        },
        "forms": {name: {"method": form[0], "settings": form[1]} for name, form in forms.items()},
        "rows": rows,
    }
    write_result(arguments.results / f"distillation_search_{study.name.replace('-', '_')}.json", body)


def share_teachers(forms: dict[str, tuple[str, Settings]]) -> bool:
    """Whether any of them uses the study's pool of teachers."""
    return any(
        changes.get("init") in OWN_TEACHER or (create_method(method).needs_teachers and method not in OWN_TEACHER)
        for method, changes in forms.values()
    )


def search(study: Study, arguments: argparse.Namespace, forms: dict[str, tuple[str, Settings]]) -> None:
    """Teachers, then form by form and set by set until the time is over; what is there is written after every set."""
    facts = data_facts(study.data_settings(), True)
    planner = Planner(
        study, ["pace"], 1, arguments.code or code_version(), [facts["train"]["content_key"][:16]]
    )  # fmt: skip
    grid = {
        (name, seed): form_cells(planner, form, arguments.ipc, seed, arguments.fold)
        for seed in range(arguments.sets)
        for name, form in forms.items()
    }
    if not arguments.report:
        work, folder = functools.partial(run, arguments.work / study.name), arguments.work / study.name
        deadline = time.monotonic() + 60 * arguments.minutes
        cells = [cell | {"fold": arguments.fold} for cell in planner.teachers()[:1] if share_teachers(forms)]
        with shared_features(arguments.megabytes):
            for todo in (cells, *grid.values()):
                if time.monotonic() > deadline:
                    print("the time is over; the same command goes on")
                    break
                fresh = len(finished_cells(folder, todo)) < len(todo)
                run_cells(todo, work, folder, 0, describe=described)
                if fresh and todo is not cells:
                    write(study, planner, arguments, forms, grid)
    write(study, planner, arguments, forms, grid)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", default="motion-sim-single", help="of distillation.py, or a JSON file")
    parser.add_argument("--forms", nargs="+", help=f"of {', '.join(FORMS)}; default: all")
    parser.add_argument("--add", nargs="+", default=[], metavar="NAME=JSON", help="further forms of PACE")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="change the study, for all forms")
    parser.add_argument("--ipc", type=int, default=1)
    parser.add_argument("--sets", type=int, default=2)
    parser.add_argument("--fold", type=int, default=0, help="of the tuning folds")
    parser.add_argument("--minutes", type=float, default=60.0, help="no set is begun later than this")
    parser.add_argument("--megabytes", type=int, default=6000, help="for real features")
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--code", help="name of the code that kept parts belong to; default: a hash of all sources")
    parser.add_argument("--work", type=Path, default=Path("runs/search-distillation"), help="finished parts")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    return parser.parse_args()


def chosen_forms(arguments: argparse.Namespace) -> dict[str, tuple[str, Settings]]:
    """Those asked for. ArgumentError: unknown ones, or --add without a JSON object."""
    unknown = set(arguments.forms or ()) - set(FORMS)
    if unknown:
        raise ArgumentError(f"--forms: {', '.join(sorted(unknown))}; there are {', '.join(FORMS)}")
    forms = {name: FORMS[name] for name in (FORMS if arguments.forms is None else arguments.forms)}
    for added in arguments.add:
        name, _, text = added.partition("=")
        try:
            settings = json.loads(text)
        except json.JSONDecodeError:
            settings = None
        if not isinstance(settings, dict):
            raise ArgumentError(f"--add {added}: NAME=JSON, an object of settings")
        forms[name] = ("pace", settings)
    return forms


def main() -> int:
    """Search. 0; 130 after an interrupt."""
    arguments = parse_arguments()
    study = get_study(arguments.study).changed(arguments.set)
    try:
        search(study, arguments, chosen_forms(arguments))
    except (KeyboardInterrupt, InterruptedRunError):
        print("interrupted; the same command goes on, --report shows what is there", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
