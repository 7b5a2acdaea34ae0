"""One cell of the LIF benchmark: check, then time, every contender on one shape and type; and their peak memory."""

from __future__ import annotations

import functools
import gc
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from lif_contenders import Contender, contenders
from measure import (
    Clock,
    Stages,
    available_bytes,
    copy_seconds,
    interleave,
    medians,
    peak_bytes,
    random_inputs,
)
from torch import Tensor

#: Share of the memory at hand that a contender is let take.
MEMORY_SHARE = 0.85
#: Neurons at either end of a large cell whose results are compared, where those of all do not fit.
CHECKED_ENDS = 65_536
#: How often the host's clock is read, beside the device's, on CUDA.
HOST_REPEATS = 7
#: Of the spikes, how many may differ before a contender is not counted: a compiler may round ``h`` differently.
DIFFERING_SPIKES = 1e-4


@dataclass
class Settings:
    """What is measured and how: see the options of lif.py."""

    device: torch.device
    repeats: int
    seconds: float
    patience: float
    unroll: int
    groups: list[str]


class Expected:
    """Our spikes and gradients, against which the others are compared; the ends of a cell too large to keep whole."""

    def __init__(self, s_seq: Tensor, grad_x: Tensor) -> None:
        neurons = s_seq.shape[1]
        whole = 5 * s_seq.numel() < 0.3 * available_bytes(s_seq.device) or neurons <= 2 * CHECKED_ENDS
        ends = [(0, neurons)] if whole else [(0, CHECKED_ENDS), (neurons - CHECKED_ENDS, neurons)]
        self.parts = [(first, last, s_seq[:, first:last] != 0, grad_x[:, first:last].clone()) for first, last in ends]
        self.neurons = sum(last - first for first, last in ends)
        self.differ, self.compared, self.error, self.norm = 0, 0, 0.0, 0.0

    def compare(self, offset: int, s_seq: Tensor, grad_x: Tensor) -> None:
        """Add the neurons ``offset ...`` of a contender to the tallies, step by step: temporaries stay small."""
        for first, last, spikes, gradient in self.parts:
            begin, end = max(first, offset), min(last, offset + s_seq.shape[1])
            if begin >= end:
                continue
            kept, given = slice(begin - first, end - first), slice(begin - offset, end - offset)
            for t in range(s_seq.shape[0]):
                self.differ += int((spikes[t, kept] != (s_seq[t, given] != 0)).sum())
                wanted, got = gradient[t, kept].float(), grad_x[t, given].float()
                self.error += float((got - wanted).square().sum())
                self.norm += float(wanted.square().sum())
            self.compared += s_seq.shape[0] * (end - begin)

    def verdict(self) -> dict[str, Any]:
        """The tallies, which start anew."""
        error = (self.error / self.norm) ** 0.5 if self.norm else float("nan")
        result = {"spikes_differ": self.differ, "compared": self.compared, "gradient_relative_error": error}
        self.differ, self.compared, self.error, self.norm = 0, 0, 0.0, 0.0
        return result


class Task:
    """A contender on the inputs of a cell."""

    def __init__(self, contender: Contender, inputs: list[Tensor], gradients: list[Tensor], slices: int) -> None:
        self.contender, self.inputs, self.gradients, self.slices = contender, inputs, gradients, slices
        self.clock = Clock(inputs[0].device)
        self.calls = 0

    def once(self, seen: Callable[[int, Tensor, Tensor], None] | None = None, only: int | None = None) -> Stages:
        """Seconds of one forward and one backward (of one forward, where there is no more).

        In slices, these are sums over the slices of the neurons, or the first ``only`` of them.
        """
        index = self.calls % len(self.inputs)
        self.calls += 1
        x_seq, gradient = self.inputs[index], self.gradients[index]
        if self.contender.forward_only:
            return self._forward(x_seq)
        width = x_seq.shape[1] // self.slices
        total = [0.0, 0.0]
        for number in range(self.slices if only is None else only):
            part = slice(number * width, (number + 1) * width) if self.slices > 1 else slice(None)
            leaf = x_seq[:, part].detach().requires_grad_()
            self.clock.mark()
            s_seq = self.contender.run(leaf)
            self.clock.mark()
            s_seq.backward(gradient[:, part])
            self.clock.mark()
            total = [before + stage for before, stage in zip(total, self.clock.stages(), strict=True)]
            if seen is not None:
                assert leaf.grad is not None
                seen(number * width, s_seq.detach(), leaf.grad)
        return tuple(total)

    def _forward(self, x_seq: Tensor) -> Stages:
        with torch.no_grad():
            if self.contender.overwrites:
                x_seq = x_seq.clone()
            self.clock.mark()
            self.contender.run(x_seq)
            self.clock.mark()
        return self.clock.stages()


def inputs_of(steps: int, neurons: int, dtype: torch.dtype, device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
    """Input currents and gradients of the spikes."""
    return tuple(random_inputs((steps, neurons), dtype, device, seed) for seed in (0, 1))  # type: ignore[return-value]


def time_cell(steps: int, neurons: int, dtype: torch.dtype, settings: Settings) -> dict[str, Any]:
    """Check and time everyone on one shape and type.

    Returns:
        Copy bandwidth, limits, and for every contender its medians or the reason why it has none.
    """
    device, itemsize = settings.device, dtype.itemsize
    # x, gradient, spikes, gradient of x; the first two several times where inputs rotate
    need = 4.2 * itemsize * steps * neurons
    if need > MEMORY_SHARE * available_bytes(device):
        return {"skipped": f"needs {need:.3g} bytes, {available_bytes(device):.3g} are available"}
    torch._dynamo.reset()
    inputs, gradients = inputs_of(steps, neurons, dtype, device)
    copy = copy_seconds(inputs, settings.repeats if device.type == "cuda" else min(settings.repeats, 5))
    everyone, missing = contenders(device, dtype, steps, settings.unroll, settings.groups)
    report: dict[str, Any] = {name: {"skipped": reason} for name, reason in missing.items()}
    expected: Expected | None = None
    tasks: dict[str, Task] = {}
    for contender in everyone:
        task, entry = _prepare(contender, inputs, gradients, settings)
        report[contender.name] = entry | {"kind": contender.kind}
        if task is None:
            continue
        try:
            expected = _check(task, expected, report[contender.name], settings)
        except Exception as error:  # whoever fails in one cell is reported there, and the others go on
            report[contender.name] |= why(error)
        if not report[contender.name].keys() & {"skipped", "failed"}:
            tasks[contender.name] = task
        _free()
    checked = expected.neurons if expected else 0
    del expected

    def failed(name: str, error: Exception) -> None:
        report[name] |= why(error)

    runs = {name: task.once for name, task in tasks.items()}
    with torch.compiler.set_stance("fail_on_recompile"):
        times = interleave(runs, settings.repeats, settings.seconds, failed=failed)
    bandwidth = 2 * inputs[0].nbytes / copy
    limits = _limits(steps * neurons * itemsize, bandwidth)
    for name, stages in times.items():
        report[name] |= _figures(stages, limits)
    if device.type == "cuda":
        for name, milliseconds in _host_milliseconds({name: tasks[name] for name in times}, settings).items():
            report[name]["host_ms"] = milliseconds
    return {
        "copy_ms": copy * 1e3, "copy_gigabytes_per_second": bandwidth / 1e9, "checked_neurons": checked,
        "limit_ms": {key: seconds * 1e3 for key, seconds in limits.items()}, "contenders": report,
    } | summarise(report)  # fmt: skip


def why(error: BaseException) -> dict[str, str]:
    """``skipped`` where there was not enough memory, else ``failed``, with the reason."""
    text = f"{type(error).__name__}: {error}"
    # torch says it with a RuntimeError of many texts, a compiler that it started with those of its own.
    memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or re.search(
        r"out of memory|(can't|cannot|failed to) allocate|not enough memory|bad_alloc|memory exhausted", text, re.I
    )
    return {"skipped" if memory else "failed": text[:300]}


def _host_milliseconds(tasks: dict[str, Task], settings: Settings) -> dict[str, dict[str, float]]:
    """What a caller waits for, launches included: the host's clock, the device idle before and after each stage."""
    for task in tasks.values():
        task.clock = Clock(settings.device, host=True)
    times = interleave({name: task.once for name, task in tasks.items()}, HOST_REPEATS, settings.seconds / 4)

    def by_name(stages: Stages) -> dict[str, float]:
        return {key: 1e3 * seconds for key, seconds in zip(("forward", "backward"), stages, strict=False)}

    return {name: by_name(medians(stages)) for name, stages in times.items()}


def _limits(sequence_bytes: int, bandwidth: float) -> dict[str, float]:
    """Seconds that the fewest bytes take: forward reads x, writes s; backward reads x and gradient, writes one."""
    return {"forward": 2 * sequence_bytes / bandwidth, "backward": 3 * sequence_bytes / bandwidth,
            "both": 5 * sequence_bytes / bandwidth}  # fmt: skip


def _figures(stages: list[Stages], limits: dict[str, float]) -> dict[str, Any]:
    figures = {"forward": medians(stages)[0]}
    if len(stages[0]) == 2:
        figures |= {"backward": medians(stages)[1], "both": medians([(sum(pair),) for pair in stages])[0]}
    entry: dict[str, Any] = {f"{key}_ms": seconds * 1e3 for key, seconds in figures.items()}
    return entry | {
        "of_limit": {key: limits[key] / seconds for key, seconds in figures.items()},
        "repeats": len(stages),
    }


def _prepare(
    contender: Contender, inputs: list[Tensor], gradients: list[Tensor], settings: Settings
) -> tuple[Task | None, dict[str, Any]]:
    """The task, in slices of the neurons where the whole does not fit; None with the reason where it has no figure."""
    neurons = inputs[0].shape[1]
    need = contender.bytes_per_element_step * inputs[0].numel() * inputs[0].itemsize / 4
    room = MEMORY_SHARE * available_bytes(settings.device)
    slices = 1
    while need / slices > room:
        slices *= 2
    if slices > 1 and (contender.kind not in ("spikingjelly", "loop", "compiled") or neurons % slices):
        return None, {"skipped": f"about {need:.3g} bytes needed, {room:.3g} available"}
    return Task(contender, inputs, gradients, slices), {} if slices == 1 else {"slices": slices}


def _check(task: Task, expected: Expected | None, entry: dict[str, Any], settings: Settings) -> Expected | None:
    """First call: compiles, compares with ours, and tells who is too slow for this cell."""
    contender = task.contender
    if contender.forward_only:
        _check_forward(task)
        return expected
    estimate = _estimate(task)
    if estimate > settings.patience:
        entry["skipped"] = f"about {estimate:.0f} s a call, {settings.patience:.0f} allowed"
        return expected
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    held: list[Expected] = []

    def first(offset: int, s_seq: Tensor, grad_x: Tensor) -> None:
        held.append(Expected(s_seq, grad_x))

    compares = contender.kind != "other"
    seen = None if not compares else first if expected is None else expected.compare
    began = time.perf_counter()
    seconds = task.once(seen)
    entry["first_call_seconds"] = time.perf_counter() - began
    if expected is None and held:
        return held[0]
    if contender.kind == "compiled":
        entry["graphs"] = torch._dynamo.utils.counters["stats"]["unique_graphs"] - graphs
        seconds = task.once()  # the first one compiled
    if compares and expected is not None:
        verdict = expected.verdict()
        entry |= verdict
        if verdict["spikes_differ"] > DIFFERING_SPIKES * verdict["compared"]:
            entry["skipped"] = f"{verdict['spikes_differ']} of {verdict['compared']} spikes differ from ours"
    if sum(seconds) > settings.patience:
        entry["skipped"] = f"{sum(seconds):.0f} s a call, {settings.patience:.0f} allowed"
    return expected


def _estimate(task: Task) -> float:
    """Seconds that one call is going to take, from a part of a large cell; 0 where it is small enough to just try."""
    inputs = task.inputs[0]
    slices = task.slices if task.slices > 1 else 16
    if inputs.numel() < 1 << 24 or inputs.shape[1] % slices:
        return 0.0
    if task.contender.kind == "compiled" and task.slices == 1:
        return 0.0  # would compile for the part's shape
    part = Task(task.contender, task.inputs, task.gradients, slices)
    part.once(only=1)
    return sum(part.once(only=1)) * slices


def _check_forward(task: Task) -> None:
    """The forward-only variant gives the spikes of the ordinary call (packed ones: bit j of byte i is spike 8i+j)."""
    x = task.inputs[0][:, :4096]
    with torch.no_grad():
        wanted = _plain(task.contender.name)(x) != 0
        got = task.contender.run(x.clone())
    if got.dtype == torch.uint8:
        bits = torch.arange(8, device=got.device)
        got = (got.unsqueeze(-1) >> bits & 1).flatten(-2)[:, : wanted.shape[1]]
    if not torch.equal(got != 0, wanted):
        raise AssertionError(f"{task.contender.name}: other spikes than the ordinary call")
    task.once()


def _plain(name: str) -> Callable[[Tensor], Tensor]:
    from snn_core.kernels import lif

    backend = name.removeprefix("snn_core ").split(",")[0]
    return lambda x_seq: lif(x_seq, backend=backend)[0]


def summarise(report: dict[str, Any]) -> dict[str, Any]:
    """Fastest of every kind in forward plus backward, and how many times longer than ours it takes."""
    best: dict[str, str] = {}
    for name, entry in report.items():
        kind = entry.get("kind")
        if "both_ms" in entry and (kind not in best or entry["both_ms"] < report[best[kind]]["both_ms"]):
            best[kind] = name
    # The first one that is there is what users get; where it failed, another of ours is not shown in its place.
    our = next((name for name, entry in report.items() if entry.get("kind") == "ours"), None)
    if our is None or "both_ms" not in report[our]:
        return {"best": best, "ours": None, "ratio": {}}
    ratios = {kind: report[name]["both_ms"] / report[our]["both_ms"] for kind, name in best.items() if kind != "ours"}
    return {"best": best, "ours": our, "ratio": ratios}


def memory_cell(steps: int, neurons: int, dtype: torch.dtype, name: str, settings: Settings) -> dict[str, Any]:
    """Peak memory of one forward and backward of one contender, in bytes per element and step.

    Counted: everything held at a time beyond x and the gradient of the spikes, which were there before: the spikes,
    the gradient of x, what is saved for the backward pass, temporaries. In a fresh process, after a warm-up.
    """
    device = settings.device
    everyone, _ = contenders(device, dtype, steps, settings.unroll, settings.groups)
    contender = next(one for one in everyone if one.name == name)
    elements = steps * neurons
    need = (contender.bytes_per_element_step + 8) * elements * dtype.itemsize / 4
    if need > available_bytes(device):
        return {"skipped": f"about {need:.3g} bytes needed, {available_bytes(device):.3g} available"}
    (x_seq, *_), (gradient, *_) = inputs_of(steps, neurons, dtype, device)

    def run(x_seq: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
        leaf = x_seq.detach().requires_grad_()
        s_seq = contender.run(leaf)
        s_seq.backward(gradient)
        return s_seq, leaf.grad

    # A compiled form compiles for its shape; the others warm up on little, which leaves the allocator untouched.
    few = slice(None) if contender.kind == "compiled" else slice(0, 64)
    run(x_seq[:, few], gradient[:, few])
    _free()
    peak = peak_bytes(functools.partial(run, x_seq, gradient), device)
    if peak is None:
        return {"skipped": "this system does not tell peak memory"}
    return {"peak_bytes": peak, "bytes_per_element_step": peak / elements, "kind": contender.kind}


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
