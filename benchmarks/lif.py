"""LIF forward and backward on the CPU against SpikingJelly's, in one process, in turn.

Equal spikes and gradients are checked first. Medians in milliseconds; the ratio is of forward plus backward.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from common import add_json_option, median_seconds, write_result
from spikingjelly.activation_based import neuron
from spikingjelly.activation_based.surrogate import ATan

import snn_core


def measure(layer: Any, x: torch.Tensor, gradient: torch.Tensor) -> tuple[float, float, torch.Tensor, torch.Tensor]:
    """Seconds of one forward and one backward, the spikes and the gradient of ``x``."""
    layer.reset()
    leaf = x.detach().requires_grad_()
    started = time.perf_counter()
    spikes = layer(leaf)
    between = time.perf_counter()
    spikes.backward(gradient)
    ended = time.perf_counter()
    return between - started, ended - between, spikes.detach(), leaf.grad


def compare(steps: int, neurons: int, dtype: torch.dtype, repeats: int) -> dict[str, Any]:
    """One cell: ours and theirs in turn on the same input."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(steps, neurons, generator=generator).to(dtype)
    gradient = torch.randn(steps, neurons, generator=generator).to(dtype)
    ours, theirs = snn_core.LIF(), neuron.LIFNode(step_mode="m", surrogate_function=ATan())
    mine, other = measure(ours, x, gradient), measure(theirs, x, gradient)
    spikes_equal = torch.equal(mine[2], other[2])
    error = ((mine[3] - other[3]).float().norm() / other[3].float().norm()).item()
    times: dict[str, list[float]] = {
        "ours_forward": [],
        "ours_backward": [],
        "theirs_forward": [],
        "theirs_backward": [],
    }
    for _ in range(repeats):
        for name, layer in (("ours", ours), ("theirs", theirs)):
            forward, backward, *_ = measure(layer, x, gradient)
            times[f"{name}_forward"].append(forward)
            times[f"{name}_backward"].append(backward)
    medians = {f"{key}_ms": statistics.median(values) * 1e3 for key, values in times.items()}
    target = torch.empty_like(x)
    copy = median_seconds(lambda: target.copy_(x), repeats)
    ratio = (medians["theirs_forward_ms"] + medians["theirs_backward_ms"]) / (
        medians["ours_forward_ms"] + medians["ours_backward_ms"]
    )
    return {
        "T": steps, "N": neurons, "dtype": str(dtype).removeprefix("torch."), "ratio": ratio, **medians,
        "copy_ms": copy * 1e3, "spikes_equal": spikes_equal, "gradient_relative_error": error,
    }  # fmt: skip


def main() -> None:
    """Measure every cell and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--neurons", type=int, nargs="+", default=[16_384, 262_144, 2_097_152])
    add_json_option(parser, "lif_cpu.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cells = []
    print(f"{'T':>4} {'N':>8} {'dtype':>9} {'ours f+b ms':>16} {'SpikingJelly f+b ms':>22} {'ratio':>6} {'copy ms':>8}")
    for dtype in (torch.float32, torch.bfloat16):
        for steps in arguments.steps:
            for neurons in arguments.neurons:
                cell = compare(steps, neurons, dtype, arguments.repeats)
                cells.append(cell)
                print(
                    f"{steps:4d} {neurons:8d} {cell['dtype']:>9} {cell['ours_forward_ms']:7.2f} "
                    f"{cell['ours_backward_ms']:8.2f} {cell['theirs_forward_ms']:11.2f} "
                    f"{cell['theirs_backward_ms']:10.2f} {cell['ratio']:6.1f} {cell['copy_ms']:8.2f}",
                    flush=True,
                )
    write_result(arguments.json, {"threads": arguments.threads, "repeats": arguments.repeats, "cells": cells})


if __name__ == "__main__":
    main()
