"""Clocks, interleaved repeats, copy bandwidth and peak memory, on the CPU and on CUDA."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import os
import random
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROTATION_BYTES = 256 << 20  # more than the L2 cache of any GPU
QUICK_SECONDS = 0.2
#: A turn of a quick contender.
BURST_SECONDS, BURST_CALLS = 0.02, 10
#: Calls up to so long are made twice in a turn.
TWICE_SECONDS = 1.0
#: How long the device is kept busy before a timed call, so that Python is ahead of it when the first kernel starts.
HEAD_START_SECONDS = 300e-6
Stages = tuple[float, ...]


class Clock:
    """Times consecutive stages of one call: the host clock on the CPU, events on CUDA.

    On CUDA the call is queued behind a kernel that only waits, so that the events measure the device and not how
    quickly Python launches (calls that take Python longer than HEAD_START_SECONDS still wait for it). With ``host`` the
    host's clock is read with the device idle at every border: what a caller waits for, launches included.
    """

    def __init__(self, device: torch.device, host: bool = False) -> None:
        self.cuda = device.type == "cuda"
        self.host = host or not self.cuda
        self.marks: list[Any] = []

    def mark(self) -> None:
        """The border of a stage."""
        if self.host:
            if self.cuda:
                torch.cuda.synchronize()
            self.marks.append(time.perf_counter())
            return
        if not self.marks:
            torch.cuda._sleep(head_start_cycles())
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self.marks.append(event)

    def stages(self) -> Stages:
        """Seconds between the marks; forgets them."""
        marks, self.marks = self.marks, []
        if self.host:
            return tuple(after - before for before, after in itertools.pairwise(marks))
        marks[-1].synchronize()
        return tuple(before.elapsed_time(after) / 1e3 for before, after in itertools.pairwise(marks))


@functools.cache
def head_start_cycles() -> int:
    """Cycles of the device's clock in HEAD_START_SECONDS, measured when 50 ms of work have raised the clock."""
    cycles = 2_000_000
    seconds = []
    for _ in range(50):
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        before.record()
        torch.cuda._sleep(cycles)
        after.record()
        after.synchronize()
        seconds.append(before.elapsed_time(after) / 1e3)
    return int(cycles * HEAD_START_SECONDS / statistics.median(seconds[-10:]))


def interleave(
    runs: Mapping[str, Callable[[], Stages]],
    repeats: int,
    seconds: float,
    minimum: int = 3,
    failed: Callable[[str, Exception], None] | None = None,
) -> dict[str, list[Stages]]:
    """Stage times of every contender, in turn, so that a slow spell of the machine hits all alike.

    Every round has an order of its own: what a contender leaves behind (allocated memory, caches, the processor's
    clock) is not always met by the same one. A convolution of 0.4 ms took 1.25 times as long behind one neighbour.

    A turn is several calls, in BURST_SECONDS or at least two: the first is not counted, because it finds the caches,
    memory that the system has taken back meanwhile, and cores on which another runtime's threads still spin, as the
    contender before left them. Calls of more than TWICE_SECONDS are made once.
    A contender leaves the round after ``repeats`` calls that took QUICK_SECONDS in total (quick ones are called more
    often, at most 20 times ``repeats``), or after ``seconds`` in total and at least ``minimum`` calls. One that raises
    is told to ``failed``, has no times, and does not stop the others; without ``failed`` its exception goes on.
    """
    times: dict[str, list[Stages]] = {name: [] for name in runs}
    spent = dict.fromkeys(runs, 0.0)
    active = dict(runs)
    order = random.Random(0)
    while active:
        for name in order.sample(list(active), len(active)):
            run = active[name]
            began = time.perf_counter()
            try:
                times[name] += _turn(run)
            except Exception as error:
                if failed is None:
                    raise
                failed(name, error)
                del active[name], times[name]
                continue
            spent[name] += time.perf_counter() - began
            done = len(times[name])
            enough = spent[name] > QUICK_SECONDS or done >= 20 * repeats
            if (done >= repeats and enough) or (spent[name] > seconds and done >= min(minimum, repeats)):
                del active[name]
    return times


def _turn(run: Callable[[], Stages]) -> list[Stages]:
    began = time.perf_counter()
    stages = [run()]
    if time.perf_counter() - began > TWICE_SECONDS:
        return stages
    while len(stages) < 2 or (time.perf_counter() - began < BURST_SECONDS and len(stages) < 1 + BURST_CALLS):
        stages.append(run())
    return stages[1:]


def medians(times: list[Stages]) -> Stages:
    """Median of every stage."""
    return tuple(statistics.median(stage) for stage in zip(*times, strict=True))


def random_inputs(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, seed: int) -> list[Tensor]:
    """Normal tensors: one on the CPU; on CUDA enough to rotate through more than the L2 cache (2 to 8)."""
    generator = torch.Generator(device).manual_seed(seed)
    size = dtype.itemsize * torch.Size(shape).numel()
    count = max(2, min(8, ROTATION_BYTES // max(size, 1) + 1)) if device.type == "cuda" else 1
    if size > 1 << 33:
        count = 1  # far more than the cache by itself, and memory is short
    inputs = []
    for _ in range(count):
        x = torch.empty(shape, dtype=dtype, device=device)
        for step in x:  # a float32 draw of the whole would need memory that a large cell does not have
            step.copy_(torch.randn(step.shape, generator=generator, device=device))
        inputs.append(x)
    return inputs


def copy_seconds(sources: list[Tensor], repeats: int) -> float:
    """Median time of copying one of ``sources`` to a tensor that exists already, after two copies not counted."""
    target = torch.empty_like(sources[0])
    clock = Clock(target.device)
    times = []
    for index in range(repeats + 2):
        source = sources[index % len(sources)]
        clock.mark()
        target.copy_(source)
        clock.mark()
        times.append(clock.stages()[0])
    return statistics.median(times[2:])


def available_bytes(device: torch.device) -> int:
    """Memory that new tensors on ``device`` can take."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def limit_address_space(device: torch.device) -> None:
    """On Linux, make an allocation that does not fit raise in this process, before the system kills it.

    CUDA reserves address space far beyond any memory, and its own allocator raises by itself.
    """
    status = _status()
    if device.type == "cpu" and "VmSize" in status:
        limit = status["VmSize"] + int(0.97 * available_bytes(device))
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        if hard == resource.RLIM_INFINITY or limit < hard:
            resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _status() -> dict[str, int]:
    """Memory sizes of this process in bytes, from Linux; empty elsewhere."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return {}
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith("Vm")}


def peak_bytes(run: Callable[[], Any], device: torch.device) -> int | None:
    """Largest memory that ``run`` held at a time, beyond what was held before it; None where it cannot be told.

    CPU: resident memory of the process (VmHWM after a reset, less VmRSS before), so it counts temporaries and
    allocator waste, and asks for a fresh process. CUDA: bytes in torch's tensors (max_memory_allocated).
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        keep = run()
        torch.cuda.synchronize()
        del keep
        return torch.cuda.max_memory_allocated() - before
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what a warm-up freed and glibc kept would hide as much of the peak
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _status()["VmRSS"]
        keep = run()
        peak = _status()["VmHWM"]
    except (OSError, KeyError):
        return None
    del keep
    return peak - before
