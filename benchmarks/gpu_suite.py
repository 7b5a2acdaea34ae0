"""One command for a GPU machine: build, check on the device, measure against peers, write JSON.

    python benchmarks/gpu_suite.py [--parts environment lif ...] [--json FILE]

Needs torch and numpy; triton, nvcc, pytest, SpikingJelly and compute-sanitizer are used where they are. Every part
(gpu_parts.py) runs in a process of its own, because after an error on the device nothing more runs in the process that
met it; it has a share of the time and is stopped when that is used up. One that fails, crashes or is stopped is
recorded with the end of its output, and the next one starts. JSON is written after every part and every LIF cell.

Run again, with the same code on the same kind of device, the suite goes on from the JSON: what failed or is missing is
done, the rest kept; parts that are named are done anew. ``--device cpu --quick --minutes 0`` is a dry run of the logic
on any machine. Inputs are random and rotate over buffers larger than the L2 cache; times are medians of event timings,
contenders in turn (see measure.Clock).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import source_tree
from common import code_version, command_line, commit
from watched import end_on_request, watched

ROOT = source_tree.ROOT
Report = dict[str, Any]
#: The parts in their order, and the seconds that each may take; the last one, unless it is LAST, may take what is left.
SHARES = {
    "environment": 30, "build": 100, "check": 60, "lif": 75, "matmul": 60, "tests": 50, "sanitizer": 50, "memory": 15,
    "launches": 15, "open_neuromorphic": 30, "training_step": 15, "grid": 20,
    "pruning": 300,
}  # fmt: skip
#: Trains for minutes what a later run goes on with: done when it is named, or when nothing else is open.
LAST = "pruning"
#: Needed in every run, though they were done in an earlier one: a machine may be new.
ALWAYS = ("environment", "build")
#: Less time than this is of use to no part.
LEAST_SECONDS = 10.0


def device_name(device: str) -> str:
    """The GPU's name, asked in a process of its own: this one never touches the device. Empty without a GPU."""
    if device == "cpu":
        return "cpu"
    ask = "import torch; print('device:', torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
    tail = watched([sys.executable, "-P", "-c", ask], 60.0).tail
    return tail.rpartition("device:")[2].strip()


def identity(name: str, quick: bool) -> Report:
    """What must agree for figures of two runs to stand in one file."""
    scripts = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        scripts.update(path.read_bytes())
    return {"device": name, "code": code_version(), "scripts": scripts.hexdigest()[:12], "quick": quick}


def earlier(path: Path, about: Report) -> Report:
    """The report in ``path`` if it is of the same code and device; else nothing."""
    try:
        report = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return report if all(report.get(key) == value for key, value in about.items()) else {}


def save(report: Report, path: Path) -> None:
    """Write the file in one step: whenever the time is over, what was measured before is there."""
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps(report, indent=2, sort_keys=True) + "\n")
    beside.replace(path)


def state(entry: Report) -> str:
    """A part in a word or two."""
    for word in ("failed", "left_out", "skipped"):
        if entry.get(word):
            return {"failed": "FAILED", "left_out": "incomplete"}.get(word, word)
    return "done"


def child_command(name: str, arguments: argparse.Namespace) -> list[str]:
    """The process that runs a part; the file of its report and its end are added."""
    options = ["--device", arguments.device, "--commit", arguments.commit, *["--quick"] * arguments.quick]
    return [sys.executable, str(ROOT / "benchmarks/gpu_suite.py"), "--part-child", name, *options]


def plan(named: list[str] | None, report: Report) -> list[str]:
    """The parts to run, in their order: those named, else what the report lacks, LAST only when it is all it lacks."""
    open_ones = [part for part in SHARES if state(report.get(part, {"failed": True})) in ("FAILED", "incomplete")]
    if open_ones != [LAST]:
        open_ones = [part for part in open_ones if part not in (LAST, *ALWAYS)]
    chosen = named or [*ALWAYS, *open_ones]
    return [part for part in SHARES if part in chosen]


def run_part(command: list[str], seconds: float, before: Report, changed: Callable[[Report], None]) -> Report:
    """Run a part. ``before`` is what an earlier run left of it; ``changed`` gets the report whenever it grows."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "part.json"
        file.write_text(json.dumps(before))
        read = file.stat()

        def look() -> None:
            nonlocal read
            now = file.stat()
            if (now.st_mtime_ns, now.st_ino) != (read.st_mtime_ns, read.st_ino):
                read = now
                # Should this process be ended now, the next one must know that there is more to do.
                changed({"left_out": "not finished"} | json.loads(file.read_text()))

        # The part is to end by itself a little before it is stopped.
        ends = time.time() + seconds - 4
        ended = watched([*command, "--part-file", str(file), "--ends", str(ends)], seconds, meanwhile=look)
        entry: Report = json.loads(file.read_text())
    if ended.code != 0:
        entry.setdefault("failed", ended.how)
        entry["output"] = ended.tail[-3000:]
    return entry | {"part_seconds": round(ended.seconds, 2)}


def run(names: list[str], report: Report, path: Path, ends: float, command: Callable[[str], list[str]]) -> Report:
    """Run the parts, each into the report and the file.

    Args:
        names: the parts, in their order.
        report: what is there already; added to.
        path: the file.
        ends: on the monotonic clock; inf for no limit.
        command: from the name of a part to the command that runs it.
    """
    takes_the_rest = ([part for part in names if part != LAST] or names)[-1:]
    for name in names:
        left = ends - time.monotonic()
        share = left if name in takes_the_rest or left == math.inf else min(SHARES[name], left)
        print(f"--- {name}", flush=True)
        if share < LEAST_SECONDS:
            report[name] = report.get(name, {}) | {"left_out": "the time was used up"}
            save(report, path)
            continue
        # Cells of the grid that were measured are not measured again.
        before = {"cells": report.get(name, {}).get("cells", [])} if name in ("lif", "matmul", "grid") else {}

        def changed(entry: Report, name: str = name) -> None:
            report[name] = entry
            save(report, path)

        changed(run_part(command(name), share, before, changed))
        print(f"--- {name}: {state(report[name])} {report[name].get('failed', '')}", flush=True)
    return report


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(SHARES), help="default: all that are not there yet")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the script itself")
    parser.add_argument("--minutes", type=float, default=8.8, help="of all parts together; 0: no limits")
    parser.add_argument("--plan", action="store_true", help="print the parts that a run would make, and end")
    parser.add_argument("--commit", default="", help="what the JSON says it measured, where git cannot tell")
    parser.add_argument("--json", type=Path, help="result file; default benchmarks/results/gpu_<device>.json")
    for option, kind in (("--part-child", str), ("--part-file", Path), ("--ends", float)):
        parser.add_argument(option, type=kind, help=argparse.SUPPRESS)  # the process of one part
    return parser.parse_args()


def main() -> int:
    """Run the parts. Returns 1 when one of them failed."""
    ends = time.monotonic()
    arguments = parse()
    end_on_request()
    if arguments.part_child:
        from gpu_parts import run_child

        return run_child(arguments)
    ends += 60 * arguments.minutes if arguments.minutes else math.inf
    name = device_name(arguments.device)
    if not name:
        print("no CUDA device here; --device cpu --quick --minutes 0 is a dry run")
        return 1
    about = identity(name, arguments.quick)
    path = arguments.json or ROOT / "benchmarks/results" / f"gpu_{name.lower().replace(' ', '_')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    report = earlier(path, about) | about
    arguments.commit = arguments.commit or commit()
    report |= {"commit": arguments.commit, "command": command_line()}
    names = plan(arguments.parts, report)
    if arguments.plan:
        print(
            "\n".join(f"{part}: at most {SHARES[part]} s; {state(report.get(part, {'left_out': 1}))}" for part in names)
        )
        return 0
    for part in arguments.parts or []:
        report.pop(part, None)
    run(names, report, path, ends, lambda part: child_command(part, arguments))
    parts = {part: report[part] for part in SHARES if part in report}
    print({part: f"{state(entry)}, {entry.get('part_seconds', 0)} s" for part, entry in parts.items()})
    print(f"wrote {path}")
    return int(any(state(entry) == "FAILED" for entry in parts.values()))


if __name__ == "__main__":
    raise SystemExit(main())
