"""LIF forward and backward: snn_core's backends beside SpikingJelly, other libraries, plain and compiled loops.

    python benchmarks/lif.py                             CPU grid in float32, all cores
    python benchmarks/lif.py --device cuda               the same on a GPU, with larger cells
    python benchmarks/lif.py --dtypes bfloat16 --groups spikingjelly compiled

Every cell (T x neurons x dtype) runs in a process of its own; finished cells are kept under --work, so that an
interrupted grid goes on. First the spikes and gradients of all who solve the same equation are compared with ours, then
everyone is timed in turn: medians in milliseconds. The limit is the fewest bytes (forward 2, backward 3 sequences) over
the bandwidth of a copy of the cell's size to a tensor that exists, in the same process with as many threads. On the CPU
the C library is told to keep memory that is freed (see keep_memory).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, Cell, code_version, run_cells, write_result
from lif_cell import Settings, memory_cell, time_cell, why
from lif_contenders import contenders, our_backends, version
from measure import limit_address_space

GROUPS = ["spikingjelly", "compiled", "loop", "other"]
NEURONS = [16_384, 262_144, 2_097_152]
GPU_NEURONS = [1 << 24, 1 << 26]


def settings_of(cell: Cell) -> Settings:
    """How this cell is measured."""
    keys = ("repeats", "seconds", "patience", "unroll", "groups")
    return Settings(torch.device(cell["device"]), **{key: cell[key] for key in keys})


def work(cell: Cell) -> Cell:
    """Measure one cell, in a process of its own."""
    torch.set_num_threads(cell["threads"])
    settings = settings_of(cell)
    limit_address_space(settings.device)
    shape = (cell["T"], cell["N"], getattr(torch, cell["dtype"]))
    try:
        if "contender" in cell:
            settings.groups = [cell["kind"]]
            return memory_cell(*shape, cell["contender"], settings)
        return time_cell(*shape, settings)
    except Exception as error:  # told in the result, as what it is; the other cells go on
        return dict(why(error))


def grid(arguments: argparse.Namespace) -> list[Cell]:
    """The cells: smallest first, then peak memory."""
    base = {key: getattr(arguments, key) for key in ("device", "threads", "repeats", "seconds", "patience", "unroll")}
    base |= {"groups": arguments.groups, "code": code_version()}
    shapes = sorted(((t, n) for t in arguments.steps for n in arguments.neurons), key=lambda shape: shape[0] * shape[1])
    cells = [base | {"T": t, "N": n, "dtype": dtype} for dtype in arguments.dtypes for t, n in shapes]
    return cells + [
        base | {"T": t, "N": n, "dtype": dtype, "contender": name, "kind": kind}
        for dtype in arguments.dtypes
        for t, n in memory_shapes(arguments)
        for name, kind in differentiable(arguments, dtype, t)
    ]


def memory_shapes(arguments: argparse.Namespace) -> list[tuple[int, int]]:
    """Shapes for which peak memory is measured: T = 64 with the most neurons, every one, or none."""
    if arguments.memory == "none":
        return []
    if arguments.memory == "all":
        return [(t, n) for t in arguments.steps for n in arguments.neurons]
    return [(64 if 64 in arguments.steps else max(arguments.steps), min(max(arguments.neurons), 2_097_152))]


def differentiable(arguments: argparse.Namespace, dtype: str, steps: int) -> list[tuple[str, str]]:
    """Name and kind of everyone with a backward pass."""
    everyone, _ = contenders(
        torch.device(arguments.device), getattr(torch, dtype), steps, arguments.unroll, arguments.groups
    )
    return [(contender.name, contender.kind) for contender in everyone if not contender.forward_only]


def _order(cell: Cell) -> tuple[int, int, str]:
    return cell["T"], cell["N"], cell["dtype"]


def show(cells: Iterable[Cell]) -> None:
    """The table on the screen."""
    columns = f"{'contender':34} {'forward':>9} {'backward':>9} {'both ms':>9} limit  ours x"
    print(f"{'T':>4} {'N':>9} {'dtype':>9}  {columns}")
    for cell in cells:
        result = cell["result"]
        place = f"{cell['T']:4d} {cell['N']:9,d} {cell['dtype']:>9}"
        if "contenders" not in result:
            print(place, result)
            continue
        our = result["contenders"].get(result["ours"] or "", {}).get("both_ms")
        print(place, f" ratios to: {result['ours'] or 'nothing, for ours did not run'}")
        ranked = sorted(result["contenders"].items(), key=lambda item: _rank(item[1]))
        for name, entry in ranked:
            print(place, f" {name:34}", _line(entry, our))


def _rank(entry: dict[str, Any]) -> tuple[int, float]:
    kinds = ["ours", "forward", "spikingjelly", "compiled", "loop", "other"]
    kind = entry.get("kind")
    return kinds.index(kind) if kind in kinds else len(kinds), entry.get("both_ms", float("inf"))


def _line(entry: dict[str, Any], our: float | None) -> str:
    if "failed" in entry:
        return f"FAILED {entry['failed'][:90]}"
    if "skipped" in entry:
        return f"- {entry['skipped'][:90]}"
    if "both_ms" not in entry:
        return f"{entry['forward_ms']:9.3f} {'':9} {'':9} {entry['of_limit']['forward']:5.2f}"
    times = " ".join(f"{entry[key]:9.3f}" for key in ("forward_ms", "backward_ms", "both_ms"))
    ratio = f"{entry['both_ms'] / our:7.2f}" if our else ""
    wrong = f"  {entry['spikes_differ']} spikes differ" if entry.get("spikes_differ") else ""
    return f"{times} {entry['of_limit']['both']:5.2f} {ratio}{wrong}"


def body(arguments: argparse.Namespace, finished: list[Cell]) -> dict[str, Any]:
    """What the result file says."""
    shared = ("device", "threads", "repeats", "seconds", "patience", "unroll", "groups", "code")

    def own(cell: Cell) -> Cell:
        return {key: value for key, value in cell.items() if key not in (*shared, "result")} | cell["result"]

    libraries = ("spikingjelly", "snntorch", "norse", "sinabs", "triton")
    return {
        **{key: finished[0][key] for key in shared},
        "allocator": arguments.allocator if arguments.device == "cpu" else None,
        "versions": {name: version(name) for name in libraries},
        "cells": sorted((own(cell) for cell in finished if "contender" not in cell), key=_order),
        "memory": [own(cell) for cell in finished if "contender" in cell],
        "goals": goals(finished),
    }


#: What is aimed at: times as long as ours that the best of a kind takes in every cell, and bytes of peak memory an
#: element and step at T = 64.
RATIO_GOALS = {"cpu": {"spikingjelly": 8.0, "compiled": 1.3}, "cuda": {"spikingjelly": 1.0}}
BYTES_GOAL = 9.0


def goals(finished: list[Cell]) -> dict[str, Any]:
    """Smallest ratios and largest peak memory, and where they fall short of what is aimed at."""
    report: dict[str, Any] = {"short": []}
    device = torch.device(finished[0]["device"])
    for kind, goal in RATIO_GOALS[device.type].items():
        timed = [cell for cell in finished if "contender" not in cell]
        ratios = {_place(cell): cell["result"].get("ratio", {}).get(kind) for cell in timed}
        measured = {place: ratio for place, ratio in ratios.items() if ratio is not None}
        if measured:
            report[f"smallest_ratio_{kind}"] = min(measured.values())
        report["short"] += [
            f"{place}: {kind} takes {r:.2f} times as long, not {goal}" for place, r in measured.items() if r < goal
        ]
    used = {
        _place(cell): cell["result"]["bytes_per_element_step"]
        for cell in finished
        if cell.get("contender") == f"snn_core {our_backends(device)[0]}" and "bytes_per_element_step" in cell["result"]
    }
    if used:
        report["largest_bytes_per_element_step"] = max(used.values())
    report["short"] += [
        f"{place}: {peak:.2f} bytes an element and step, not {BYTES_GOAL}"
        for place, peak in used.items()
        if peak > BYTES_GOAL and place.startswith("T=64 ")
    ]
    return report


def _place(cell: Cell) -> str:
    return f"T={cell['T']} N={cell['N']} {cell['dtype']}"


MUST_AGREE = ("ours", "forward", "spikingjelly", "loop")


def wrong(cells: Iterable[Cell], kinds: tuple[str, ...] = MUST_AGREE) -> list[str]:
    """Where someone failed who must not, or spikes or gradients of the same equation are not ours.

    A compiler may round otherwise, so that compiled loops may differ in a few spikes: the table says in how many.
    """
    problems = []
    for cell in cells:
        place, result = _place(cell), cell["result"]
        if "failed" in result:
            problems.append(f"{place} {cell.get('contender', '')}: {result['failed']}")
        tolerance = 1e-5 if cell["dtype"] == "float32" else 1e-2
        for name, entry in result.get("contenders", {}).items():
            if entry.get("kind") not in kinds:
                continue
            if "failed" in entry:
                problems.append(f"{place}: {name} failed: {entry['failed']}")
            # "not <=": NaN is wrong, too
            if entry.get("spikes_differ") or not entry.get("gradient_relative_error", 0) <= tolerance:
                problems.append(f"{place}: {name} differs from ours: {entry}")
    return problems


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=9, help="calls of each contender, after one that is not timed")
    parser.add_argument("--seconds", type=float, default=6.0, help="after so many, three calls are enough")
    parser.add_argument("--patience", type=float, default=25.0, help="a call that takes longer is not repeated")
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 16, 64, 500])
    parser.add_argument("--neurons", type=int, nargs="+")
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16", "float16"], default=["float32"])
    parser.add_argument("--groups", nargs="*", choices=GROUPS, default=GROUPS, help="who is compared with ours")
    parser.add_argument("--unroll", type=int, default=64, help="largest T that is compiled as a whole")
    parser.add_argument("--memory", choices=["largest", "all", "none"], default="largest", help="its shapes")
    parser.add_argument(
        "--allocator", choices=("keep", "default"), default="keep", help="CPU: whether freed memory is kept for reuse"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-lif"), help="finished cells")
    parser.add_argument("--json", type=Path, help="result file; default benchmarks/results/lif_<device>.json")
    arguments = parser.parse_args()
    if arguments.neurons is None:
        arguments.neurons = NEURONS if arguments.device == "cpu" else NEURONS + GPU_NEURONS
    return arguments


def keep_memory() -> None:
    """Make the C library of the processes that measure keep the memory that is freed, as torch does on a GPU.

    Else every tensor of more than 32 MB is new memory at every call, and what is measured is how quickly the operating
    system zeroes pages (docs/notes/lif.md). Holds for all contenders alike.
    """
    os.environ.setdefault("MALLOC_MMAP_MAX_", "0")
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(1 << 46))


def main() -> int:
    """Measure every cell and write the result. Returns 1 when something was not equal or failed."""
    arguments = parse()
    if arguments.device == "cpu" and arguments.allocator == "keep":
        keep_memory()
    finished = run_cells(grid(arguments), work, arguments.work, processes=1, fresh=True)
    show(cell for cell in finished if "contender" not in cell)
    for cell in finished:
        if "contender" in cell:
            print(f"peak memory, T={cell['T']} N={cell['N']}", f"{cell['contender']:34}", cell["result"])
    result = body(arguments, finished)
    write_result(arguments.json or RESULTS / f"lif_{arguments.device}.json", result)
    for name, value in result["goals"].items():
        print(name, *(value if name == "short" else [f"{value:.2f}"]), sep="\n  ")
    problems = wrong(finished)
    print(*problems, sep="\n")
    return int(bool(problems))


if __name__ == "__main__":
    raise SystemExit(main())
