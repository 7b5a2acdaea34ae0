"""The parts of gpu_suite.py, each run in a process of its own: see there."""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import source_tree
import torch
from gpu_common import Report, Suite, release, usable
from gpu_matmul import matmul
from gpu_measure import grid, launches, lif, memory, open_neuromorphic, training_step
from gpu_pruning import pruning
from lif_contenders import version
from measure import copy_seconds, random_inputs
from watched import watched

ROOT = source_tree.ROOT
#: Without the working directory on the path: in a bare checkout, snn_core there has no kernels.
PYTHON = (sys.executable, "-P")


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
        "nvcc": _output([tool("nvcc") or "nvcc", "--version"])[-120:],
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": sys.version.split()[0],
        "versions": {name: version(name) for name in ("triton", "numpy", "pytest", "spikingjelly")},
        "commit": suite.commit or "unknown",
        "copy_bytes": sources[0].nbytes,
        "copy_gigabytes_per_second": 2 * sources[0].nbytes / seconds / 1e9,
    }


def _output(command: list[str]) -> str:
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=10).stdout.strip()
    return ""


def tool(name: str) -> str | None:
    """A CUDA tool on the path or where the toolkit usually is."""
    usual = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin", *Path("/usr/local").glob("cuda-*/bin")]
    return shutil.which(name) or next((str(folder / name) for folder in usual if (folder / name).is_file()), None)


def build(suite: Suite) -> Report:
    """Build the native libraries unless both are there and load; then say which backends run. On a GPU all must."""
    from gpu_checks import why_not

    # In a process of its own, because a library that is not there is remembered as such.
    ask = "from snn_core.kernels.native import cpu_library as cpu, cuda_library as cuda; "
    ask += "raise SystemExit(not (cpu().available and cuda().available))"
    report: Report = {"built": None}
    if not suite.quick and subprocess.run([*PYTHON, "-c", ask], check=False).returncode:
        nvcc = os.environ.get("NVCC") or tool("nvcc")
        ended = watched([*PYTHON, "-m", "snn_core.kernels.native"], suite.left(), cwd=ROOT,
                        environment={"NVCC": nvcc} if nvcc else {})  # fmt: skip
        report = {"built": ended.code == 0, "output": ended.tail[-1500:]}
    places = [(torch.device("cpu"), "cpp"), (suite.device, "triton"), (suite.device, "cuda")]
    # The libraries are loaded at the first question, so after they are built.
    report["backends"] = {backend: why_not(place, backend) or "runs" for place, backend in places}
    absent = [backend for backend, answer in report["backends"].items() if answer != "runs"] if suite.cuda else []
    if report["built"] is False or absent:
        report["failed"] = f"built: {report['built']}; backends that do not run: {', '.join(absent) or 'none'}"
    return report


def check(suite: Suite) -> Report:
    """Every backend against the CPU reference, and what GPU code must survive: see gpu_checks.py."""
    from gpu_checks import CHECKS

    report: Report = {"checks": {}}
    available = suite.left()
    left_out = []
    for name, one in CHECKS.items():
        began = time.monotonic()
        entry: Report = {"left_out": "the time was used up"}
        if suite.left() > 0:
            try:
                # Triton compiles for every set of options, so the first check can take most of the time.
                entry = one(suite.device, 0.6 * available)
                release()
            except Exception:
                entry = {"failed": traceback.format_exc()[-1500:]}
        report["checks"][name] = entry | {"seconds": round(time.monotonic() - began, 2)}
        left_out += [name] if entry.get("left_out") else []
        suite.tell(report)
        if "failed" in entry and not usable(suite):
            return report | {"failed": f"{name}, after which the device takes nothing more"}
    failed = [name for name, entry in report["checks"].items() if "failed" in entry]
    return report | ({"failed": ", ".join(failed)} if failed else {}) | ({"left_out": left_out} if left_out else {})


def tests(suite: Suite) -> Report:
    """The tests that need a GPU, where pytest is installed. The others are for a machine that builds the rest."""
    if not importlib.util.find_spec("pytest"):
        return {"skipped": "pytest is not installed"}
    emulated = ["-k", "not emulated"]
    files = {"test_lif_cuda.py": emulated, "test_nm_cuda.py": emulated, "test_triton_cuda.py": [],
             "test_nm_triton_cuda.py": []}  # fmt: skip
    report: Report = {}
    for name, options in files.items():
        command = [*PYTHON, "-m", "pytest", "-v", "-p", "no:cacheprovider", "--noconftest", *options,
                   str(ROOT / "tests/kernels" / name)]  # fmt: skip
        ended = watched(command, suite.left(), cwd=ROOT)
        # On a GPU something must have run; a dry run without one finds nothing to collect.
        passed = (ended.code == 0 and (" passed" in ended.tail or not suite.cuda)) or (suite.quick and ended.code == 5)
        report[name] = {"passed": passed, "how": ended.how, "output": ended.tail[-3000:]}
        suite.tell(report)
    failed = [f"{name} {entry['how']}" for name, entry in report.items() if not entry["passed"]]
    return report | ({"failed": failed} if failed else {})


#: Backend and tool. Our CUDA kernels first; a Triton kernel is compiled anew under the tool.
SANITIZED = (("cuda", "memcheck"), ("cuda", "initcheck"), ("cuda", "racecheck"), ("triton", "memcheck"))


def sanitizer(suite: Suite) -> Report:
    """compute-sanitizer's tools over a small run of every kernel, each backend by itself."""
    script = [sys.executable, str(ROOT / "benchmarks/gpu_sanitizer_run.py"), "--device", str(suite.device)]
    if not suite.cuda:
        ended = watched([*script, "--backends", "reference"], suite.left(), cwd=ROOT)
        return {"plain": {"passed": ended.code == 0}} | ({} if ended.code == 0 else {"failed": ended.how})
    program = tool("compute-sanitizer")
    if program is None:
        return {"skipped": "compute-sanitizer is not installed"}
    report: Report = {}
    settings = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "SNN_TRITON_AUTOTUNE": "0"}
    for backend, check_name in SANITIZED:
        name = f"{backend} {check_name}"
        if suite.left() < 5:
            report[name] = {"left_out": "the time was used up"}
            continue
        # Every kernel is watched, torch's too: initcheck must see who wrote what ours read.
        under = [program, "--tool", check_name, "--error-exitcode", "99"]
        ended = watched([*under, *script, "--backends", backend], suite.left(), cwd=ROOT, environment=settings)
        if "Device not supported" in ended.tail:
            return report | {"skipped": f"{name}: Device not supported"}
        if ended.code is None:
            report[name] = {"left_out": ended.how, "output": ended.tail[-3000:]}
        else:
            report[name] = {"passed": ended.code == 0, "output": ended.tail[-3000:]}
        suite.tell(report)
    failed = [name for name, entry in report.items() if entry.get("passed") is False]
    left_out = [name for name, entry in report.items() if "left_out" in entry]
    return report | ({"failed": failed} if failed else {}) | ({"left_out": left_out} if left_out else {})


PARTS: dict[str, Callable[[Suite], Report]] = {
    part.__name__: part
    for part in (environment, build, check, lif, matmul, tests, sanitizer, memory, launches, open_neuromorphic,
                 training_step, grid, pruning)
}  # fmt: skip


def run_child(arguments: argparse.Namespace) -> int:
    """Run one part in this process and write its report. Returns 1 when it raised."""
    file: Path = arguments.part_file
    last: Report = json.loads(file.read_text())

    def tell(report: Report) -> None:
        nonlocal last
        last = report
        beside = file.with_suffix(".new")
        beside.write_text(json.dumps(report))
        beside.replace(file)

    suite = Suite(torch.device(arguments.device), arguments.quick, arguments.ends, arguments.commit, last, tell)
    if suite.left() < math.inf:
        faulthandler.dump_traceback_later(max(1.0, suite.left() + 2), exit=False)  # where it hung, if it is stopped
    try:
        tell(PARTS[arguments.part_child](suite))
    except Exception:
        tell(last | {"failed": traceback.format_exc()[-2000:]})
        return 1
    return 0
