"""How long a pruned network takes on this machine, dense and compressed, called in turn."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from snn_core.errors import ArgumentError, SnnCoreError
from snn_core.reports.machine import describe_machine
from snn_core.reports.run_folder import COMPRESSED_FILE, MODEL_FILE, RunFolder, number, records, section
from snn_core.seeding import make_generator
from snn_core.sparsity import fuse, load_compressed
from snn_core.training import load_model

BATCH_SIZES = (1, 32)
BURST_SECONDS, BURST_CALLS = 0.02, 10


def load_contenders(run: RunFolder) -> dict[str, nn.Module]:
    """The run's network in the forms that are timed, each in evaluation mode on the CPU.

    ``dense``: torch's layers; ``dense, fused`` and ``compressed, fused``: :func:`snn_core.sparsity.fuse` of it and of
    the compressed file, where the network can be fused (else ``compressed``: layer by layer).

    Raises:
        CheckpointError: a file is missing or damaged, or names no backbone.
    """
    dense = load_model(run.path / MODEL_FILE)[0]
    contenders = {"dense": dense}
    compressed = load_compressed(run.path / COMPRESSED_FILE, dense=False)
    try:
        contenders |= {"dense, fused": fuse(dense), "compressed, fused": fuse(compressed)}
    except ArgumentError:
        contenders["compressed"] = compressed
    return contenders


def random_frames(run: RunFolder, model: nn.Module, count: int) -> Tensor:
    """Made-up counts ``uint8 [T, count, C, H, W]``: as many are not zero as in the test set, in no order.

    For machines that do not have the data: what the layers behind the first one get is then not what they get of real
    frames.

    Raises:
        ArgumentError: neither run nor network says how the frames look.
    """
    steps = number(section(run.result, "data").get("T"))
    channels, size = getattr(model, "in_channels", None), getattr(model, "input_size", None)
    if steps is None or channels is None or size is None:
        raise ArgumentError(f"{run.path} does not say what its frames look like")
    energies = records(section(run.result, "energy").get("layers"))
    rate = number(energies[0].get("input_rate")) if energies else None
    active = torch.rand((int(steps), count, channels, *size), generator=make_generator(0, "report-frames"))
    return (active < (0.1 if rate is None else rate)).to(torch.uint8)


def measure_latency(
    contenders: Mapping[str, nn.Module], frames: Tensor, *, seconds: float = 1.0, minimum: int = 5
) -> dict[str, Any]:
    """Median time of a call, the contenders in turn so that a slow spell of the machine hits all alike.

    Args:
        contenders: name -> network; the first one is what the others are compared with.
        frames: ``[T, B, ...]`` on the networks' device; the batches are its first samples.
        seconds: roughly, a contender and batch size.
        minimum: calls of each, at least.

    Returns:
        ``machine``; ``load_before``, how many processes ran in the minute before, where the system says it;
        ``batches``, a list of {batch_size, contenders: a list of {name, median_ms, p25_ms, p75_ms, calls,
        times_as_fast}}; ``agreement``: name -> {largest_difference of the logits on
        all frames, same_class, fraction of the samples}.

    Raises:
        ArgumentError: no contender, or no frames.
    """
    if not contenders or frames.ndim < 2 or frames.shape[1] == 0:
        raise ArgumentError(f"nothing to time: {len(contenders)} contenders, frames of shape {list(frames.shape)}")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    sizes = sorted({min(size, frames.shape[1]) for size in BATCH_SIZES})
    with torch.no_grad():
        logits = {name: model(frames).float() for name, model in contenders.items()}
        batches = [_time_batch(contenders, frames[:, :size].contiguous(), seconds, minimum) for size in sizes]
    first = next(iter(logits.values()))
    agreement = {
        name: {
            "largest_difference": float((value - first).abs().max()),
            "same_class": float((value.argmax(1) == first.argmax(1)).float().mean()),
        }
        for name, value in logits.items()
    }
    return {
        "machine": describe_machine(),
        "load_before": load,
        "T": frames.shape[0],
        "batches": batches,
        "agreement": agreement,
    }


def _time_batch(contenders: Mapping[str, nn.Module], frames: Tensor, seconds: float, minimum: int) -> dict[str, Any]:
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for model in contenders.values():
        model(frames)  # the first call of a shape measures candidates, and is not counted
    began = time.perf_counter()
    while True:
        for name, model in contenders.items():
            times[name] += _turn(model, frames)
        enough = all(len(found) >= minimum for found in times.values())
        if enough and time.perf_counter() - began >= seconds * len(contenders):
            break
    base = statistics.median(next(iter(times.values())))
    return {
        "batch_size": frames.shape[1],
        "contenders": [{"name": name} | _summary(found, base) for name, found in times.items()],
    }


def _turn(model: nn.Module, frames: Tensor) -> list[float]:
    """A few calls behind each other; the first finds the caches as another contender left them and is not counted."""
    found: list[float] = []
    began = time.perf_counter()
    while len(found) < 2 or (len(found) <= BURST_CALLS and time.perf_counter() - began < BURST_SECONDS):
        started = time.perf_counter()
        model(frames)
        found.append(time.perf_counter() - started)
    return found[1:]


def _summary(times: list[float], base: float) -> dict[str, Any]:
    median = statistics.median(times)
    quartiles = statistics.quantiles(times, n=4, method="inclusive")
    return {
        "median_ms": median * 1e3,
        "p25_ms": quartiles[0] * 1e3,
        "p75_ms": quartiles[2] * 1e3,
        "calls": len(times),
        "times_as_fast": base / median,
    }


def run_latency(run: RunFolder, frames: Tensor | None, *, seconds: float = 1.0) -> tuple[dict[str, Any] | None, str]:
    """:func:`measure_latency` of a run, or None and why not.

    Args:
        run: a finished run of ``snn prune``.
        frames: test frames ``[T, B, ...]``; None: :func:`random_frames`.
        seconds: as there.
    """
    if run.command != "prune" or not run.finished:
        return None, ""
    if run.unstructured:
        return None, "The latency was not measured: masks without an N:M pattern have no compressed form."
    try:
        contenders = load_contenders(run)
        shown = random_frames(run, contenders["dense"], max(BATCH_SIZES)) if frames is None else frames
        measured = measure_latency(contenders, shown, seconds=seconds)
    except SnnCoreError as error:
        return None, f"The latency was not measured: {error}"
    source = "random counts, as many of them not zero as in the test set" if frames is None else "test recordings"
    return measured | {"frames": source}, ""
