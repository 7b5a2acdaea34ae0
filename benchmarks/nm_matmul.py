"""Spikes or dense activations times N:M weights: snn_core beside dense products of torch and its sparse ones.

    python benchmarks/nm_matmul.py                       CPU grid, all cores
    python benchmarks/nm_matmul.py --device cuda         the same on a GPU
    python benchmarks/nm_matmul.py --parts linear --rates 0.05

Every cell (shape x rate) runs in a process of its own; finished cells are kept under --work, so that an interrupted
grid goes on. All multiply with the same weights, numbers that bfloat16 holds exactly; errors are those against float64.
Then everyone is timed in turn: medians in milliseconds. Dense contenders get the spikes in the type they multiply in,
"snn_core" gets them packed; "with packing" starts from float32 spikes, "packing alone" is that part. What the
dispatcher remembers lies under --work, too. Up to 64 rows, weights rotate through more than the caches hold.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, Cell, code_version, run_cells, write_result
from lif_cell import why
from measure import limit_address_space
from nm_cell import Settings, time_cell

RATES = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5]
LINEAR = [[256, 1024, 1024], [1024, 2048, 2048], [4096, 4096, 4096]]
ROWS = [1, 2, 4, 8, 16, 32, 64]
FEW_ROWS_SIZE = [2048, 2048]
#: B, C, H, W, O, kernel, stride, padding: the built-in conv-snn (T x B = 96 frames), and layers of the VGG and ResNet
#: kind at 32 x 32.
CONV = [
    [96, 32, 8, 8, 64, 3, 1, 1], [96, 64, 4, 4, 64, 3, 1, 1], [16, 64, 32, 32, 64, 3, 1, 1],
    [16, 128, 16, 16, 256, 3, 1, 1], [16, 256, 8, 8, 512, 3, 2, 1], [16, 512, 4, 4, 512, 3, 1, 1],
]  # fmt: skip
PATTERNS = ["1:4", "2:8", "1:8", "1:16"]
PARTS = ["linear", "few", "dense", "conv", "patterns"]
#: At least so many times oneDNN's bfloat16, at rates up to 50 % and up to 5 %, and of the best dense call everywhere.
GOALS = {"every rate": 1.3, "up to 5 %": 3.0, "best dense": 0.95}


def work(cell: Cell) -> Cell:
    """Measure one cell, in a process of its own."""
    torch.set_num_threads(cell["threads"])
    settings = Settings(torch.device(cell["device"]), cell["repeats"], cell["seconds"], cell["patience"])
    limit_address_space(settings.device)
    try:
        return time_cell(cell, settings)
    except Exception as error:  # told in the result, as what it is; the other cells go on
        return dict(why(error))


def grid(arguments: argparse.Namespace) -> list[Cell]:
    """The cells, part by part."""
    base = {key: getattr(arguments, key) for key in ("device", "threads", "repeats", "seconds", "patience", "dtype")}
    base["code"] = code_version()
    return [base | cell for part in arguments.parts for cell in _part(part, arguments)]


def _part(part: str, arguments: argparse.Namespace) -> Iterator[Cell]:
    rates = arguments.rates
    if part == "linear":
        for shape in arguments.shapes or LINEAR:
            yield from ({"part": part, "shape": shape, "pattern": "2:4", "rate": rate} for rate in rates)
    elif part == "few":
        for rows in arguments.rows:
            for rate in (0.05, 0.2):
                yield {"part": part, "shape": [rows, *FEW_ROWS_SIZE], "pattern": "2:4", "rate": rate}
    elif part == "dense":
        for rows in arguments.rows:
            yield {"part": part, "shape": [rows, *FEW_ROWS_SIZE], "pattern": "2:4", "rate": None}
    elif part == "conv":
        for shape in CONV:
            yield from ({"part": part, "shape": shape, "pattern": "2:4", "rate": rate} for rate in rates)
    else:
        for pattern in PATTERNS:
            for rate in (0.05, 0.2):
                yield {"part": part, "shape": LINEAR[1], "pattern": pattern, "rate": rate}


def place(cell: Cell) -> str:
    """The cell in words."""
    shape = cell["shape"]
    size = " x ".join(map(str, shape[:3]))
    if len(shape) == 8:
        batch, channels, height, width, out, kernel, stride, _ = shape
        size = f"{batch} x {channels} x {height} x {width}, {kernel} x {kernel} to {out}" + f" by {stride}" * (
            stride > 1
        )
    rate = "dense" if cell["rate"] is None else f"{100 * cell['rate']:g} %"
    return f"{size}, {cell['pattern']}, {rate}"


def show(cells: Iterable[Cell]) -> None:
    """The table on the screen."""
    for cell in cells:
        result = cell["result"]
        if "contenders" not in result:
            print(place(cell), result)
            continue
        ours = result["contenders"]["snn_core"].get("ms")
        print(f"{place(cell)}: took {result['taken']}")
        ranked = sorted(result["contenders"].items(), key=lambda item: item[1].get("ms", float("inf")))
        for name, entry in ranked:
            if "ms" in entry:
                ratio = f"{entry['ms'] / ours:7.2f} x" if ours else ""
                error = f"error {entry['relative_error']:.1e}" if "relative_error" in entry else ""
                print(f"    {name:28} {entry['ms']:10.4f} ms {ratio}  {error}")
            else:
                print(f"    {name:28} {str(entry)[:110]}")


def goals(cells: Iterable[Cell]) -> dict[str, Any]:
    """Smallest ratios, and where they fall short of what is aimed at."""
    smallest: dict[str, float] = {}
    short: list[str] = []
    for cell in cells:
        ratio = cell["result"].get("ratio", {})
        checks: list[tuple[str, str]] = [("best dense", "dense")]
        if cell["part"] in ("linear", "conv") and cell["device"] == "cpu":
            checks.append(("every rate", "dense bfloat16"))
            checks += [("up to 5 %", "dense bfloat16")] if cell["rate"] <= 0.05 else []
        for goal, kind in checks:
            if kind not in ratio:
                continue
            name = f"{cell['part']}: {goal}"
            smallest[name] = min(smallest.get(name, float("inf")), ratio[kind])
            if ratio[kind] < GOALS[goal]:
                short.append(f"{place(cell)}: {kind} takes {ratio[kind]:.2f} times as long, not {GOALS[goal]}")
    return {"smallest_ratio": smallest, "short": short}


#: Relative error that is allowed, by type of the result (the type of the product, where it is an 8-bit one).
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 2e-3}
_COARSE = {"snn_core, int8 weight": 2e-2, "cuBLAS float8": 1e-1}


def wrong(cells: Iterable[Cell]) -> list[str]:
    """Where one of ours failed, or a result is not the product."""
    problems = []
    for cell in cells:
        result = cell["result"]
        if "contenders" not in result:
            problems.append(f"{place(cell)}: {result}")
            continue
        for name, entry in result["contenders"].items():
            if "failed" in entry and entry.get("kind") in ("ours", "packing", "path"):
                problems.append(f"{place(cell)}: {name} failed: {entry['failed']}")
            # "not <=": NaN is wrong, too
            allowed = _COARSE.get(name, TOLERANCE.get(entry.get("dtype", ""), 0.0))
            if "relative_error" in entry and not entry["relative_error"] <= allowed:
                problems.append(f"{place(cell)}: {name} has a relative error of {entry['relative_error']:.1e}")
        if "ms" not in result["contenders"].get("snn_core", {}):
            problems.append(f"{place(cell)}: snn_core has no time: {result['contenders'].get('snn_core')}")
    return problems


def body(finished: list[Cell]) -> dict[str, Any]:
    """What the result file says."""
    shared = ("device", "threads", "repeats", "seconds", "patience", "dtype", "code")

    def own(cell: Cell) -> Cell:
        return {key: value for key, value in cell.items() if key not in (*shared, "result")} | cell["result"]

    return {
        **{key: finished[0][key] for key in shared},
        "cells": [own(cell) for cell in finished],
        "goals": goals(finished),
    }


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=9, help="calls of each contender, at least")
    parser.add_argument("--seconds", type=float, default=2.0, help="after so many, three calls are enough")
    parser.add_argument("--patience", type=float, default=6.0, help="a call that takes longer is not repeated")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, help="of the parts few and dense")
    parser.add_argument("--shapes", type=_shape, nargs="+", help="M,K,N of the part linear")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16", help="of the values")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-nm-matmul"), help="finished cells")
    parser.add_argument("--json", type=Path, help="result file; default benchmarks/results/nm_matmul_<device>.json")
    return parser.parse_args()


def _shape(text: str) -> list[int]:
    return [int(size) for size in text.split(",")]


def main() -> int:
    """Measure every cell and write the result. Returns 1 when something was wrong or failed."""
    arguments = parse()
    os.environ["SNN_DISPATCH_FILE"] = str(arguments.work.resolve() / "dispatch" / "dispatch.json")
    finished = run_cells(grid(arguments), work, arguments.work, processes=1, fresh=True)
    show(finished)
    result = body(finished)
    write_result(arguments.json or RESULTS / f"nm_matmul_{arguments.device}.json", result)
    print("smallest ratios", result["goals"]["smallest_ratio"])
    print(*result["goals"]["short"], sep="\n  ")
    problems = wrong(finished)
    print(*problems, sep="\n")
    return int(bool(problems))


if __name__ == "__main__":
    raise SystemExit(main())
