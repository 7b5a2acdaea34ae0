"""One command for a GPU machine: build, check on the device, measure against peers, write JSON.

    python benchmarks/gpu_suite.py [--parts environment lif ...] [--json FILE]

Needs torch and numpy; triton, nvcc, pytest, SpikingJelly and compute-sanitizer are used where they are. Safe to run
again; every part is timed, has a share of the time (--minutes in all, then the process ends itself), and one that fails
or cannot run is reported and does not stop the others. JSON is written after every part. ``--device cpu --quick`` is a
dry run of the logic on any machine. Inputs are random and rotate over buffers larger than the L2 cache; times are
medians of event timings, contenders in turn.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import source_tree
import torch
from lif_cell import Settings, time_cell
from lif_contenders import version
from measure import Clock, copy_seconds, medians, random_inputs

ROOT = source_tree.ROOT
#: Without the working directory on the path: in a bare checkout, snn_core there has no kernels.
PYTHON = (sys.executable, "-P")
GROUPS = ["spikingjelly", "compiled"]
Report = dict[str, Any]


@dataclass
class Suite:
    """Where the parts run, and until when."""

    device: torch.device
    quick: bool
    ends: float
    seconds: float = 0.0  # the share of the part that runs

    @property
    def cuda(self) -> bool:
        """On a GPU, rather than a dry run."""
        return self.device.type == "cuda"

    def left(self, reserve: float = 0.0) -> float:
        """Seconds until the end, less a reserve."""
        return self.ends - time.monotonic() - reserve

    def settings(self, repeats: int, groups: list[str]) -> Settings:
        """For the LIF cells."""
        return Settings(self.device, repeats=2 if self.quick else repeats, seconds=1.5, patience=5.0, unroll=16,
                        groups=groups)  # fmt: skip


def environment(suite: Suite) -> Report:
    """Device, driver, compiler, versions, commit and measured copy bandwidth (bytes read plus written)."""
    sources = random_inputs((64, (1 << 12) if suite.quick else (1 << 22)), torch.float32, suite.device, 0)
    seconds = copy_seconds(sources, 3 if suite.quick else 30)
    driver = ["nvidia-smi", "--query-gpu=name,driver_version,clocks.sm,clocks.mem,power.limit", "--format=csv,noheader"]
    return {
        "device": torch.cuda.get_device_name() if suite.cuda else "cpu",
        "capability": list(torch.cuda.get_device_capability()) if suite.cuda else None,
        "memory_bytes": torch.cuda.get_device_properties(0).total_memory if suite.cuda else None,
        "nvidia_smi": _output(driver),
        "nvcc": _output([_tool("nvcc") or "nvcc", "--version"])[-120:],
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": sys.version.split()[0],
        "versions": {name: version(name) for name in ("triton", "numpy", "pytest", "spikingjelly")},
        "commit": _output(["git", "-C", str(ROOT), "describe", "--always", "--dirty"]) or "unknown",
        "copy_bytes": sources[0].nbytes,
        "copy_gigabytes_per_second": 2 * sources[0].nbytes / seconds / 1e9,
    }


def _output(command: list[str]) -> str:
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=20).stdout.strip()
    return ""


def _tool(name: str) -> str | None:
    """A CUDA tool on the path or where the toolkit usually is."""
    usual = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin", *Path("/usr/local").glob("cuda-*/bin")]
    return shutil.which(name) or next((str(folder / name) for folder in usual if (folder / name).is_file()), None)


def build(suite: Suite) -> Report:
    """Build the native libraries unless both are there and load; then say which backends run."""
    from gpu_checks import why_not

    # In a process of its own, because a library that is not there is remembered as such.
    ask = "from snn_core.kernels.native import cpu_library as cpu, cuda_library as cuda; "
    ask += "raise SystemExit(not (cpu().available and cuda().available))"
    report: Report = {"skipped": "the libraries that are there"}
    if not suite.quick and subprocess.run([*PYTHON, "-c", ask], check=False).returncode:
        command = [*PYTHON, "-m", "snn_core.kernels.native"]
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=suite.seconds)
        report = {"built": result.returncode == 0, "output": (result.stdout + result.stderr).strip()[-1500:]}
    places = [(torch.device("cpu"), "cpp"), (suite.device, "triton"), (suite.device, "cuda")]
    # The libraries are loaded at the first question, so after they are built.
    report["backends"] = {backend: why_not(place, backend) or "runs" for place, backend in places}
    return report


def check(suite: Suite) -> Report:
    """Every backend against the CPU reference, and what GPU code must survive: see gpu_checks.py."""
    from gpu_checks import CHECKS

    report: Report = {}
    ends = time.monotonic() + suite.seconds
    for name, one in CHECKS.items():
        began = time.monotonic()
        try:
            if began > ends:
                report[name] = {"left_out": "the time was used up"}
                continue
            # Triton compiles for every set of options, so the first check can take most of the time.
            report[name] = one(suite.device, 0.6 * suite.seconds)
        except Exception:
            report[name] = {"failed": traceback.format_exc()[-1500:]}
        report[name]["seconds"] = round(time.monotonic() - began, 2)
        _release()
    failed = [name for name, entry in report.items() if "failed" in entry]
    return {"checks": report} | ({"failed": f"{', '.join(failed)}"} if failed else {})


def lif(suite: Suite) -> Report:
    """The grid against the byte limit, SpikingJelly and compiled loops; the most telling cells first."""
    cells: list[Report] = []
    todo = _shapes(suite.quick)
    ends = time.monotonic() + suite.seconds
    while todo and time.monotonic() < ends:
        steps, neurons, dtype, groups = todo.pop(0)
        cell: Report = {"T": steps, "N": neurons, "dtype": str(dtype).removeprefix("torch.")}
        try:
            cell |= time_cell(steps, neurons, dtype, suite.settings(25, groups))
        except Exception as error:
            cell["failed"] = f"{type(error).__name__}: {error}"[:500]
        cells.append(cell)
        print(_cell_line(cell), flush=True)
        _release()
    failed = [f"T={cell['T']} N={cell['N']}: {cell['failed']}" for cell in cells if "failed" in cell]
    left = [f"T={steps} N={neurons} {dtype}" for steps, neurons, dtype, _ in todo]
    return {"cells": cells, "left_out": left} | ({"failed": failed} if failed else {})


def _shapes(quick: bool) -> list[tuple[int, int, torch.dtype, list[str]]]:
    """T, N, dtype and who is compared. Compiled loops cost seconds a form, so they take part in few cells."""
    if quick:
        return [(4, 1024, dtype, ["spikingjelly"]) for dtype in (torch.float32, torch.bfloat16)]
    single, half = torch.float32, torch.bfloat16
    million = 1 << 20
    first = [(16, 2 * million, single, GROUPS), (4, 16 * million, single, GROUPS), (64, 2 * million, single, GROUPS),
             (16, 2 * million, half, GROUPS), (500, 2 * million, single, GROUPS)]  # fmt: skip
    shapes = list(first)
    for neurons in (16 * million, 2 * million, 1 << 18, 1 << 14, 64 * million):
        for steps in (16, 4, 64, 500):
            shapes += [(steps, neurons, dtype, ["spikingjelly"]) for dtype in (single, half)]
    done = {shape[:3] for shape in first}
    return first + [shape for shape in shapes[len(first) :] if shape[:3] not in done]


def _cell_line(cell: Report) -> str:
    place = f"T={cell['T']} N={cell['N']} {cell['dtype']}: "
    if "contenders" not in cell:
        return place + str(cell)[:200]
    figures = [
        f"{name} {entry['both_ms']:.3f} ms ({entry['of_limit']['both']:.2f})"
        for name, entry in cell["contenders"].items()
        if "both_ms" in entry
    ]
    return place + "; ".join(figures)


def launches(suite: Suite) -> Report:
    """Small cells, where launches cost more than bytes: an ordinary call, and the replay of a CUDA graph."""
    if not suite.cuda:
        return {"skipped": "CUDA graphs are CUDA's"}
    from gpu_checks import _gradient, graph_of, kernels

    cells = []
    for steps, neurons in ((4, 1 << 14), (16, 1 << 14), (64, 1 << 14), (16, 1 << 18)):
        for backend in kernels(suite.device):
            x = torch.randn(steps, neurons, device=suite.device)
            graph, _ = graph_of(x, backend)
            eager = functools.partial(_gradient, x, backend)
            times: dict[str, Callable[[], Any]] = {"eager": eager, "graph": graph.replay}
            cell: Report = {"T": steps, "N": neurons, "backend": backend}
            cells.append(cell | {f"{name}_ms": _median_ms(run, suite) for name, run in times.items()})
    return {"cells": cells, "timed": "forward, backward, and the cosine that stands for the gradient's source"}


def _median_ms(run: Callable[[], Any], suite: Suite) -> float:
    clock = Clock(suite.device)
    times = []
    for _ in range(5 if suite.quick else 50):
        clock.mark()
        run()
        clock.mark()
        times.append(clock.stages())
    return medians(times[2:])[0] * 1e3


def open_neuromorphic(suite: Suite) -> Report:
    """The Open Neuromorphic benchmark's task: see open_neuromorphic.py."""
    from open_neuromorphic import time_task

    shape = (20, 2, 32) if suite.quick else (500, 16, 512)
    groups = ["spikingjelly", "loop"] if suite.quick else ["spikingjelly", "loop", "compiled", "other"]
    return time_task(shape, suite.settings(15, groups))


def training_step(suite: Suite) -> Report:
    """One optimiser step of the ConvSNN on random frames of N-MNIST's size, with each backend of the neurons."""
    from gpu_checks import available_backends

    from snn_core.backbones import create

    batch = 8 if suite.quick else 256
    frames = torch.randn(3, batch, 2, 34, 34, device=suite.device).abs()
    labels = torch.arange(batch, device=suite.device) % 10
    milliseconds = {}
    for place, backend in available_backends(suite.device):
        if place != suite.device:
            continue
        torch.manual_seed(0)
        model = create("conv-snn", backend=backend).to(suite.device)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

        def step(model: torch.nn.Module = model, optimizer: torch.optim.Optimizer = optimizer) -> None:
            optimizer.zero_grad(set_to_none=True)
            torch.nn.functional.cross_entropy(model(frames), labels).backward()
            optimizer.step()

        milliseconds[backend] = _median_ms(step, suite)
    return {"batch": batch, "T": 3, "step_ms": milliseconds}


def tests(suite: Suite) -> Report:
    """The tests of the operators that have GPU kernels, where pytest is installed."""
    if not importlib.util.find_spec("pytest"):
        return {"skipped": "pytest is not installed"}
    # The others test CPU code, against libraries that a bare machine lacks.
    about = ("lif", "spike", "triton", "cuda")
    files = [
        str(path) for path in sorted(ROOT.glob("tests/kernels/test_*.py")) if any(word in path.name for word in about)
    ]
    command = [*PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--noconftest",
               *("-k", "test_errors") * suite.quick, *files]  # fmt: skip
    environment = os.environ | {"CUDA_LAUNCH_BLOCKING": "0"}
    try:
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment,
                                timeout=suite.seconds)  # fmt: skip
    except subprocess.TimeoutExpired as error:
        return {"left_out": f"not finished after {suite.seconds:.0f} s", "output": str(error.stdout)[-1500:]}
    report: Report = {"passed": result.returncode in (0, 5), "output": result.stdout.strip()[-3000:]}
    return report if report["passed"] else report | {"failed": f"pytest ended with {result.returncode}"}


def sanitizer(suite: Suite) -> Report:
    """compute-sanitizer's memcheck and racecheck over a small run of every kernel."""
    script = [sys.executable, str(ROOT / "benchmarks/gpu_sanitizer_run.py"), "--device", str(suite.device)]
    tool = _tool("compute-sanitizer")
    if not suite.cuda:
        script += ["--backends", "reference"]
        tool = None
    elif tool is None:
        return {"skipped": "compute-sanitizer is not installed"}
    report: Report = {}
    for check_name in ("memcheck", "racecheck") if tool else ("plain",):
        under = [tool, "--tool", check_name, "--error-exitcode", "99", "--kernel-name", "regex:lif|spike|pack"]
        command = [*(str(part) for part in under), *script] if tool else script
        try:
            result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False,
                                    timeout=suite.seconds / 2)  # fmt: skip
        except subprocess.TimeoutExpired:
            report[check_name] = {"left_out": f"not finished after {suite.seconds / 2:.0f} s"}
            continue
        output = (result.stdout + result.stderr).strip()[-1500:]
        report[check_name] = {"passed": result.returncode == 0, "output": output}
    failed = [name for name, entry in report.items() if not entry.get("passed", True)]
    return report | ({"failed": failed} if failed else {})


def _release() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


#: The parts in their order, and the seconds that each may take at most.
PARTS: dict[Callable[[Suite], Report], float] = {
    environment: 30, build: 150, check: 90, lif: 160, launches: 15, open_neuromorphic: 45, training_step: 15,
    tests: 75, sanitizer: 80,
}  # fmt: skip


def run(suite: Suite, names: list[str], path: Path) -> Report:
    """Run the parts, each into the report and the file."""
    report: Report = {}
    for part, share in PARTS.items():
        name = part.__name__
        if name not in names:
            continue
        suite.seconds = min(share, suite.left(reserve=5))
        began = time.perf_counter()
        try:
            # What is left to a late part may be too little to be of use.
            report[name] = part(suite) if suite.seconds > 5 else {"left_out": "the time was used up"}
        except Exception:
            report[name] = {"failed": traceback.format_exc()[-2000:]}
        report[name]["part_seconds"] = round(time.perf_counter() - began, 2)
        print(name, json.dumps(report[name], indent=1)[:6000], flush=True)
        _release()
        # After every part: a time limit must not take what was measured before it.
        beside = path.with_suffix(".tmp")
        beside.write_text(json.dumps(report, indent=2, sort_keys=True) + "\n")
        beside.replace(path)
    return report


def main() -> int:
    """Run the parts. Returns 1 when one of them failed."""
    names = [part.__name__ for part in PARTS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=names, default=names)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the script itself")
    parser.add_argument("--minutes", type=float, default=8.8, help="the process ends after so many")
    parser.add_argument("--json", type=Path, help="result file; default benchmarks/results/gpu_<device>.json")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here; --device cpu --quick is a dry run")
        return 1
    faulthandler.dump_traceback_later(60 * arguments.minutes, exit=True)
    suite = Suite(torch.device(arguments.device), arguments.quick, time.monotonic() + 60 * arguments.minutes)
    device = "cpu" if arguments.device == "cpu" else torch.cuda.get_device_name().lower().replace(" ", "_")
    path = arguments.json or ROOT / "benchmarks/results" / f"gpu_{device}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    report = run(suite, arguments.parts, path)
    faulthandler.cancel_dump_traceback_later()
    print({name: "FAILED" if "failed" in part else part["part_seconds"] for name, part in report.items()})
    print(f"wrote {path}")
    return int(any("failed" in part for part in report.values()))


if __name__ == "__main__":
    raise SystemExit(main())
