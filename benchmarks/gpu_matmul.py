"""The part of gpu_suite.py that times products and convolutions with N:M weights: see nm_cell.py."""

from __future__ import annotations

import time

from gpu_common import Report, Suite, release, usable
from lif_cell import why
from nm_cell import time_cell
from nm_matmul import goals, place, wrong

#: Rows, then K and N: what one token, a few and many do with a large layer; then the spiking shapes.
DENSE = [[1, 4096, 4096], [16, 4096, 4096], [64, 4096, 4096], [4096, 4096, 4096], [1024, 2048, 2048]]
SPIKES = [[4096, 4096, 4096], [1024, 2048, 2048], [16, 4096, 4096], [256, 1024, 1024]]
CONV = [[128, 128, 32, 32, 128, 3, 1, 1], [128, 256, 16, 16, 256, 3, 1, 1]]


def _cells(quick: bool) -> list[Report]:
    if quick:
        dense, spikes, conv = [[2, 64, 64]], [[70, 64, 64]], [[2, 16, 6, 6, 32, 3, 1, 1]]
    else:
        dense, spikes, conv = DENSE, SPIKES, CONV
    cells: list[Report] = [{"part": "dense", "shape": shape, "rate": None} for shape in dense]
    cells[1:1] = [{"part": "linear", "shape": shape, "rate": 0.05} for shape in spikes]
    cells += [{"part": "conv", "shape": shape, "rate": 0.05} for shape in conv]
    return [cell | {"pattern": "2:4", "dtype": "bfloat16"} for cell in cells]


def matmul(suite: Suite) -> Report:
    """Products of dense activations and of packed spikes with 2:4 weights, beside cuBLAS, cuSPARSELt and CUTLASS."""
    settings = suite.settings(20, [])
    done: list[Report] = [cell for cell in suite.earlier.get("cells", []) if not _problems(cell)]
    places = [place(cell) for cell in done]
    todo = [cell for cell in _cells(suite.quick) if place(cell) not in places]
    failed: list[str] = []
    longest = 0.0
    while todo and suite.left() > longest:
        cell = todo.pop(0)
        began = time.monotonic()
        try:
            result = time_cell(cell, settings)
            release()
        except Exception as error:
            result = dict(why(error))
        done.append(cell | result)
        failed += _problems(done[-1])
        longest = max(longest, time.monotonic() - began)
        ratio = {kind: round(value, 2) for kind, value in result.get("ratio", {}).items()}
        print(place(cell), ratio or str(result)[:200], flush=True)
        suite.tell({"cells": done} | ({"failed": failed} if failed else {}))
        if failed and not usable(suite):
            break
    report = {"cells": done, "goals": goals(map(_as_cell, done)), "left_out": [place(cell) for cell in todo]}
    return report | ({"failed": failed} if failed else {})


def _as_cell(cell: Report) -> Report:
    return cell | {"device": "cuda", "result": cell}


def _problems(cell: Report) -> list[str]:
    return wrong([_as_cell(cell)])
