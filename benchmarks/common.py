"""What the benchmark scripts share: a description of the machine, medians, cells run in parallel processes."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import source_tree  # noqa: F401  makes snn_core importable
import torch

import snn_core
from snn_core.files import sha256_json, write_json
from snn_core.kernels.native import cpu_library

RESULTS = Path(__file__).resolve().parent / "results"
Cell = dict[str, Any]


def machine() -> dict[str, Any]:
    """Processor, versions and commit, as every result file records them."""
    cuda = torch.cuda.is_available()
    return {
        **({"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda} if cuda else {}),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "snn_core": snn_core.__version__,
        "native_isa": cpu_library().isa or "none",
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def commit() -> str:
    """What git calls this checkout; "unknown" without git or outside a repository."""
    folder = Path(__file__).resolve().parent
    command = ["git", "describe", "--always", "--dirty"]
    with contextlib.suppress(OSError):
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        return result.stdout.strip() or "unknown"
    return "unknown"


def code_version() -> str:
    """Hash of the package's sources and of torch's version: what a finished cell was computed with."""
    digest = hashlib.sha256(torch.__version__.encode())
    for package in ("snn_core", "snn_core.kernels", "snn_core.datasets"):
        # Found, not imported: the datasets need libraries that a bare machine lacks.
        found = importlib.util.find_spec(package)
        assert found is not None
        folder = Path(str(found.origin)).resolve().parent
        for path in sorted(folder.rglob("*")):
            if path.suffix in (".py", ".cpp", ".h", ".cu", ".cuh"):
                digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def command_line() -> str:
    """The command that made the result, from the repository's root."""
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def write_result(path: Path, body: dict[str, Any]) -> None:
    """Write a result file with machine and command, atomically."""
    write_json(path, {"command": command_line(), "machine": machine()} | body)
    print(f"wrote {path}")


def add_json_option(parser: argparse.ArgumentParser, name: str) -> None:
    """``--json``: where the result goes."""
    parser.add_argument("--json", type=Path, default=RESULTS / name, help="result file")


def median_seconds(run: Callable[[], Any], repeats: int) -> float:
    """Median wall-clock of ``repeats`` calls, after one that is not counted."""
    run()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def summary(values: list[float]) -> dict[str, float]:
    """Mean, sample standard deviation and count."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "std": deviation, "count": len(values)}


def run_cells(
    cells: list[Cell],
    work: Callable[[Cell], Cell],
    folder: Path,
    processes: int,
    fresh: bool = False,
    describe: Callable[[Cell], str] = str,
) -> list[Cell]:
    """Run the cells in other processes with one torch thread each; finished ones are kept in ``folder``, not rerun.

    Args:
        cells: JSON-serialisable descriptions; ``work(cell)`` returns the result.
        folder: one small file a finished cell, so that an interrupted grid goes on where it stopped.
        processes: how many at once; 0: in this process, one after the other.
        fresh: a new process for every cell, one at a time; one that is killed (out of memory) gets the result
            ``{"failed": ...}`` and does not end the others.
        describe: what is printed of a finished cell.

    Returns:
        ``cell | {"result": ...}`` in the order of ``cells``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [_cell_file(folder, cell) for cell in cells]
    todo = [(cell, file) for cell, file in zip(cells, files, strict=True) if not file.is_file()]
    print(f"{len(cells)} cells, {len(cells) - len(todo)} finished before; {processes} processes", flush=True)
    context = multiprocessing.get_context("spawn")
    started = time.perf_counter()
    failed: dict[Path, Cell] = {}  # not kept: another call tries them again

    def report(number: int, cell: Cell) -> None:
        left = (time.perf_counter() - started) / number * (len(todo) - number)
        print(f"{number}/{len(todo)} {describe(cell)}; about {left / 60:.0f} min left", flush=True)

    if fresh:
        for number, (cell, file) in enumerate(todo, 1):
            child = context.Process(target=_Keeper(work, folder), args=(cell,))
            child.start()
            child.join()
            if not file.is_file():
                failed[file] = cell | {"result": {"failed": f"the process ended with exit code {child.exitcode}"}}
            report(number, cell)
    elif processes == 0:
        _one_thread()
        for number, (cell, _) in enumerate(todo, 1):
            report(number, _Keeper(work, folder)(cell))
    elif todo:
        with context.Pool(processes, initializer=_one_thread) as pool:
            for number, cell in enumerate(pool.imap_unordered(_Keeper(work, folder), [cell for cell, _ in todo]), 1):
                report(number, cell)
    return [failed[file] if file in failed else json.loads(file.read_text()) for file in files]


def finished_cells(folder: Path, cells: list[Cell]) -> list[Cell]:
    """``cell | {"result": ...}`` of those that were finished in ``folder``, in the order of ``cells``."""
    files = [_cell_file(folder, cell) for cell in cells]
    return [json.loads(file.read_text()) for file in files if file.is_file()]


class _Keeper:
    """Runs a cell and writes its file in the worker, so that nothing finished waits for anything else."""

    def __init__(self, work: Callable[[Cell], Cell], folder: Path) -> None:
        self.work, self.folder = work, folder

    def __call__(self, cell: Cell) -> Cell:
        write_json(_cell_file(self.folder, cell), cell | {"result": self.work(cell)})
        return cell


def _cell_file(folder: Path, cell: Cell) -> Path:
    return folder / f"{sha256_json(cell)[:24]}.json"


def _one_thread() -> None:
    torch.set_num_threads(1)
