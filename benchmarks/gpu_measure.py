"""The parts of gpu_suite.py that take times and memory."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import torch
from gpu_common import Report, Suite, release, usable
from lif import wrong
from lif_cell import memory_cell, time_cell, why
from lif_contenders import contenders
from measure import Clock, medians

GROUPS = ["spikingjelly", "compiled"]
Shape = tuple[int, int, torch.dtype, list[str]]


def lif(suite: Suite) -> Report:
    """The most telling cells: against the byte limit, SpikingJelly, compiled loops and the plain one."""
    return _cells(suite, _first_shapes(suite.quick))


def grid(suite: Suite) -> Report:
    """The rest of the grid, against the byte limit and SpikingJelly."""
    if suite.quick:
        return _cells(suite, [(2, 512, torch.float32, [])])
    done = [shape[:3] for shape in _first_shapes(False)]
    million = 1 << 20
    shapes = [
        (steps, neurons, dtype, ["spikingjelly"])
        for neurons in (16 * million, 2 * million, 1 << 18, 1 << 14, 64 * million)
        for steps in (16, 4, 64, 500)
        for dtype in (torch.float32, torch.bfloat16)
    ]
    return _cells(suite, [shape for shape in shapes if shape[:3] not in done])


def _first_shapes(quick: bool) -> list[Shape]:
    """T, N, dtype and who is compared. Compiled loops cost seconds a form, so they take part in few cells."""
    single, half = torch.float32, torch.bfloat16
    if quick:
        return [(4, 1024, single, ["spikingjelly", "loop"]), (4, 1024, half, ["spikingjelly"])]
    million = 1 << 20
    return [(16, 2 * million, single, [*GROUPS, "loop"]), (4, 16 * million, single, [*GROUPS, "loop"]),
            (64, 2 * million, single, GROUPS), (16, 2 * million, half, GROUPS),
            (500, 2 * million, single, GROUPS)]  # fmt: skip


def _cells(suite: Suite, todo: list[Shape]) -> Report:
    """Time the shapes that an earlier run did not, until the time is used up."""
    cells: list[Report] = [cell for cell in suite.earlier.get("cells", []) if not _problems(cell)]
    failed: list[str] = []
    longest = 0.0
    done = [(cell["T"], cell["N"], cell["dtype"]) for cell in cells]
    names = {shape[2]: str(shape[2]).removeprefix("torch.") for shape in todo}
    todo = [shape for shape in todo if (*shape[:2], names[shape[2]]) not in done]
    while todo and suite.left() > longest:
        steps, neurons, dtype, groups = todo.pop(0)
        began = time.monotonic()
        place: Report = {"T": steps, "N": neurons, "dtype": names[dtype]}
        try:
            result = time_cell(steps, neurons, dtype, suite.settings(25, groups))
            release()
        except Exception as error:
            result = dict(why(error))
        cells.append(place | result)
        failed += _problems(cells[-1])
        longest = max(longest, time.monotonic() - began)
        print(_cell_line(cells[-1]), flush=True)
        suite.tell({"cells": cells} | ({"failed": failed} if failed else {}))
        if failed and not usable(suite):
            break
    left = [f"T={steps} N={neurons} {names[dtype]}" for steps, neurons, dtype, _ in todo]
    return {"cells": cells, "left_out": left} | ({"failed": failed} if failed else {})


def _problems(cell: Report) -> list[str]:
    """What is wrong with ours in a cell. Differences of the others are shown in the tables."""
    return wrong([cell | {"result": cell}], kinds=("ours", "forward"))


def _cell_line(cell: Report) -> str:
    place = f"T={cell['T']} N={cell['N']} {cell['dtype']}: "
    if "contenders" not in cell:
        return place + str(cell)[:200]
    figures = [
        f"{name} {entry['both_ms']:.3f} ms ({entry['of_limit']['both']:.2f})" if "both_ms" in entry else
        f"{name} FAILED {entry['failed'][:80]}"
        for name, entry in cell["contenders"].items()
        if "both_ms" in entry or "failed" in entry
    ]  # fmt: skip
    return place + "; ".join(figures)


def memory(suite: Suite) -> Report:
    """Peak memory of one forward and backward (max_memory_allocated), of ours, SpikingJelly and the plain loop."""
    groups = ["spikingjelly", "loop"]
    shapes = (
        [(4, 1024, torch.float32)] if suite.quick else [(64, 1 << 21, torch.float32), (64, 1 << 21, torch.bfloat16)]
    )
    cells: list[Report] = []
    for steps, neurons, dtype in shapes:
        everyone, _ = contenders(suite.device, dtype, steps, 0, groups)
        for one in everyone:
            if one.forward_only or suite.left() < 0:
                continue
            try:
                result = memory_cell(steps, neurons, dtype, one.name, suite.settings(1, groups))
            except Exception as error:
                result = dict(why(error))
            place = {"T": steps, "N": neurons, "dtype": str(dtype).removeprefix("torch."), "contender": one.name}
            cells.append(place | {"kind": one.kind} | result)
            suite.tell({"cells": cells})
    failed = [f"{cell['contender']}: {cell['failed']}" for cell in cells if "failed" in cell]
    return {"cells": cells} | ({"failed": failed} if failed else {})


def launches(suite: Suite) -> Report:
    """Small cells, where launches cost more than bytes: an ordinary call, and the replay of a CUDA graph."""
    if not suite.cuda:
        return {"skipped": "CUDA graphs are CUDA's"}
    from gpu_checks import _gradient, graph_of, kernels

    cells: list[Report] = []
    for steps, neurons in ((4, 1 << 14), (16, 1 << 14), (64, 1 << 14), (16, 1 << 18)):
        for backend in kernels(suite.device):
            x = torch.randn(steps, neurons, device=suite.device)
            graph, _ = graph_of(x, backend)
            cell: Report = {"T": steps, "N": neurons, "backend": backend}
            runs: dict[str, Callable[[], Any]] = {"eager": functools.partial(_gradient, x, backend)}
            for name, run in (runs | {"graph": graph.replay}).items():
                cell |= {f"{name}_ms": _median_ms(run, suite), f"{name}_device_ms": _median_ms(run, suite, host=False)}
            cells.append(cell)
            suite.tell({"cells": cells})
    about = "forward, backward, and the cosine that stands for the gradient's source; _ms: what the caller waits for"
    return {"cells": cells, "timed": about}


def _median_ms(run: Callable[[], Any], suite: Suite, host: bool = True) -> float:
    """Of the host's clock, until the device has finished; or of the device's."""
    clock = Clock(suite.device, host)
    times = []
    for _ in range(5 if suite.quick else 50):
        clock.mark()
        run()
        clock.mark()
        times.append(clock.stages())
    return medians(times[2:])[0] * 1e3


def open_neuromorphic(suite: Suite) -> Report:
    """The Open Neuromorphic benchmark's task: see open_neuromorphic.py."""
    from open_neuromorphic import differences, time_task

    shape = (20, 2, 32) if suite.quick else (500, 16, 512)
    groups = ["spikingjelly", "loop"] if suite.quick else ["spikingjelly", "loop", "compiled", "other"]
    report = time_task(shape, suite.settings(15, groups))
    problems = differences(report, kinds=("ours",))
    return report | ({"failed": problems} if problems else {})


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
