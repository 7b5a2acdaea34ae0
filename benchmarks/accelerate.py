"""Training step of SpikingJelly's own networks before and after ``accelerate()``, on the CPU, in one process, in turn.

Forward, cross entropy, backward and SGD. Equal logits and gradients are checked first. ``neurons_ms`` is what the
neurons alone take on the inputs they had in that network (forward and backward, one after the other).
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from common import add_json_option, write_result
from spikingjelly.activation_based import functional, neuron
from spikingjelly_zoo import NETWORKS
from torch import Tensor, nn

from snn_core.interop.spikingjelly import accelerate

#: T, batch, image side.
SIZES = ((4, 16, 32), (8, 16, 48))
QUICK_SIZES = ((2, 2, 32),)
#: Relative, of all parameters: float32 through every layer of a network, whose sums may be taken in another order.
GRADIENT_TOLERANCE = 1e-4


def training_step(net: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, labels: Tensor) -> tuple[Tensor, float]:
    """One step; returns the logits and the seconds it took."""
    started = time.perf_counter()
    functional.reset_net(net)
    optimizer.zero_grad()
    logits = net(x).mean(0)
    nn.functional.cross_entropy(logits, labels).backward()
    optimizer.step()
    return logits.detach(), time.perf_counter() - started


def neuron_inputs(net: nn.Module, x: Tensor) -> list[Tensor]:
    """The input of every neuron, in the order of ``net.modules()``."""
    nodes = [module for module in net.modules() if isinstance(module, neuron.BaseNode)]
    inputs: dict[nn.Module, Tensor] = {}
    hooks = [node.register_forward_pre_hook(lambda module, args: inputs.update({module: args[0]})) for node in nodes]
    functional.reset_net(net)
    with torch.no_grad():
        net(x)
    functional.reset_net(net)
    for hook in hooks:
        hook.remove()
    return [inputs[node] for node in nodes]


def neurons_alone(net: nn.Module, inputs: list[Tensor]) -> Callable[[], float]:
    """A function that runs every neuron's forward and backward and returns the seconds it took."""
    nodes = [module for module in net.modules() if isinstance(module, neuron.BaseNode)]
    leaves = [x.detach().requires_grad_() for x in inputs]

    def run() -> float:
        seconds = 0.0
        for node, leaf in zip(nodes, leaves, strict=True):
            node.reset()
            leaf.grad = None
            gradient = torch.ones_like(leaf)
            started = time.perf_counter()
            node(leaf).backward(gradient)
            seconds += time.perf_counter() - started
        return seconds

    return run


def in_turn(functions: dict[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """Median milliseconds of each function, called A B A B after one round that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats + 1):
        for name, function in functions.items():
            times[name].append(function())
    return {name: statistics.median(values[1:]) * 1e3 for name, values in times.items()}


def compare(name: str, steps: int, batch: int, side: int, repeats: int) -> dict[str, Any]:
    """One cell: the network as it is and an accelerated copy."""
    torch.manual_seed(0)
    net = NETWORKS[name]()
    x, labels = torch.rand(steps, batch, 3, side, side), torch.randint(0, 10, (batch,))
    inputs = neuron_inputs(net, x)
    fast = copy.deepcopy(net)
    report = accelerate(fast, strict=True)
    nets = {"before": net, "after": fast}
    optimizers = {key: torch.optim.SGD(value.parameters(), lr=0.01) for key, value in nets.items()}
    logits = {key: training_step(nets[key], optimizers[key], x, labels)[0] for key in nets}
    gradients = {
        key: torch.cat([p.grad.flatten() for p in value.parameters() if p.grad is not None])
        for key, value in nets.items()
    }
    error = ((gradients["after"] - gradients["before"]).norm() / gradients["before"].norm()).item()

    def step(key: str) -> Callable[[], float]:
        return lambda: training_step(nets[key], optimizers[key], x, labels)[1]

    step_ms = in_turn({key: step(key) for key in nets}, repeats)
    neurons_ms = in_turn({key: neurons_alone(value, inputs) for key, value in nets.items()}, repeats)
    return {
        "network": name, "T": steps, "batch": batch, "side": side, "neurons": len(report.replaced),
        "logits_equal": torch.equal(logits["before"], logits["after"]), "gradient_relative_error": error,
        "speedup": step_ms["before"] / step_ms["after"],
        "neurons_speedup": neurons_ms["before"] / neurons_ms["after"],
    } | {
        f"{key}_{what}": value
        for key in nets
        for what, value in (("ms", step_ms[key]), ("neurons_ms", neurons_ms[key]),
                            ("neurons_share", neurons_ms[key] / step_ms[key]))
    }  # fmt: skip


def main() -> int:
    """Measure every cell and write the result. Returns 1 when accelerated logits or gradients are not the same."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--quick", action="store_true", help="one small size, once: only that the script works")
    add_json_option(parser, "accelerate_cpu.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    repeats = 1 if arguments.quick else arguments.repeats
    cells = []
    print(f"{'network':>14} {'T':>3} {'batch':>5} {'side':>4} {'before ms':>10} {'after ms':>9} {'ratio':>6}  neurons")
    for name in arguments.networks:
        for steps, batch, side in QUICK_SIZES if arguments.quick else SIZES:
            cell = compare(name, steps, batch, side, repeats)
            cells.append(cell)
            print(
                f"{name:>14} {steps:3d} {batch:5d} {side:4d} {cell['before_ms']:10.1f} {cell['after_ms']:9.1f} "
                f"{cell['speedup']:6.2f}  {cell['before_neurons_ms']:.1f} -> {cell['after_neurons_ms']:.1f} ms, "
                f"{cell['before_neurons_share']:.0%} -> {cell['after_neurons_share']:.0%} of the step",
                flush=True,
            )
    write_result(arguments.json, {
        "threads": arguments.threads, "repeats": repeats, "quick": arguments.quick,
        "spikingjelly": importlib.metadata.version("spikingjelly"), "cells": cells,
    })  # fmt: skip
    problems = [
        f"{cell['network']} T={cell['T']}: logits equal: {cell['logits_equal']}, "
        f"gradients differ by {cell['gradient_relative_error']:.1e} relative"
        for cell in cells
        # "not <=": NaN is wrong, too
        if not cell["logits_equal"] or not cell["gradient_relative_error"] <= GRADIENT_TOLERANCE
    ]
    print(*problems, sep="\n")
    return int(bool(problems))


if __name__ == "__main__":
    raise SystemExit(main())
