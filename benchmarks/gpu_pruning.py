"""The last part of gpu_suite.py: the study cifar10-gpu of pruning.py, as far as the time goes.

A few methods at one pattern and one seed. Finished runs and the state of the one that was stopped, kept after every
epoch, stay in ``runs/gpu-suite``: the next call goes on. On a machine that keeps nothing, carry that folder along.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import source_tree
from gpu_common import Report, Suite
from pruning_studies import get_study
from watched import Ended, watched

ROOT = source_tree.ROOT
STUDY, RESULT = "cifar10-gpu", "pruning_cifar10_gpu.json"
CHOSEN = ("--methods", "dense", "spikenm", "sr-ste", "--patterns", "1:16", "--seeds", "1")
#: Of the time that is left at the start, kept for writing the result.
REPORT_SECONDS = 20.0


def pruning_command(work: Path, *more: str) -> list[str]:
    """The study in one process; ``code`` is named, so that a change elsewhere does not throw finished runs away."""
    script = [sys.executable, str(ROOT / "benchmarks/pruning.py"), "--studies", STUDY, *CHOSEN]
    places = ["--work", str(work), "--results", str(work), "--no-plots", "--code", "gpu-suite", "--processes", "0"]
    return [*script, *places, *more]


def epochs_done(work: Path) -> dict[str, int]:
    """Of every unfinished run, the epochs in its state."""
    from safetensors import safe_open

    found = {}
    for state in sorted(work.glob(f"{STUDY}/states/*/*.safetensors")):
        with safe_open(state, framework="pt") as source:
            found[state.parent.name] = len(json.loads(source.metadata()["progress"])["history"])
    return found


def summary(ended: Ended, body: dict[str, Any], unfinished: dict[str, int]) -> Report:
    """What the part says, from the end of the study's process and its JSON."""
    about = body.get("about", {})
    report: Report = {"study": STUDY, "finished": about.get("finished", "0 runs"), "rows": body.get("rows", []),
                      "epochs_of_unfinished": unfinished, "how": ended.how}  # fmt: skip
    if body.get("failed"):
        return report | {"failed": body["failed"]}
    if ended.code not in (0, None):
        # 1: the data are not there, which the machine cannot help.
        missing = f"left out: {STUDY}:" in ended.tail
        return report | ({"skipped": "its data are not there"} if missing else {"failed": ended.how})
    done, _, wanted = str(report["finished"]).removesuffix(" runs").partition(" of ")
    return report if done == wanted else report | {"left_out": "the time was used up; run again to go on"}


def pruning(suite: Suite) -> Report:
    """Train until the time is up, then report what is finished."""
    work = ROOT / "runs/gpu-suite"
    if not suite.cuda:
        return {"plan": pruning_command(work)[2:], "study": vars(get_study(STUDY))}
    ended = watched(pruning_command(work), max(1.0, suite.left() - REPORT_SECONDS), cwd=ROOT)
    if ended.code is None:
        watched(pruning_command(work, "--report"), suite.left(), cwd=ROOT)
    result = work / RESULT
    body = json.loads(result.read_text()) if result.is_file() else {}
    return summary(ended, body, epochs_done(work))
