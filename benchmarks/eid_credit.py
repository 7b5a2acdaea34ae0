"""Cheaper estimates of EID's credit: how much they change it, and what a training step costs with them.

    python benchmarks/eid_credit.py [--quick]

A network trains on simulated recordings of digits; every few steps each estimate is made from the same backward pass
and compared with the exact credit: mean Spearman correlation within blocks of 16, and how often the largest entry of a
block is the same; ``mean`` after the running mean that the soft targets are made of. The exact credit of the batch
before is the yardstick: an estimate that changes less is within the noise of the data. Costs: processor time of whole
training steps with EID at every step, all variants in turn in one process; medians, and the median of the ratios to
the dense step next in time. ``--quick``: a few steps; nothing is written.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from common import add_json_option, write_result
from torch import Tensor, nn

from snn_core.backbones import create
from snn_core.datasets import load_frames
from snn_core.kernels import topk_sampler  # noqa: F401  loads the operators before anything is timed
from snn_core.pruning import PruneConfig, create_pruner
from snn_core.pruning.eligibility import CreditCapture, trace, weight_gradient
from snn_core.seeding import make_generator, seeded
from snn_core.sparsity import to_blocks

M, BATCH, STEPS, WARM_UP, EVERY = 16, 25, 120, 20, 10
VARIANTS: dict[str, dict[str, Any]] = {
    "no EID": {"eid_weight": 0.0},
    "exact": {},
    "bfloat16": {"eid_credit": "bfloat16"},
    "sums": {"eid_credit": "sums"},
    "gradient": {"eid_credit": "gradient"},
}
COST_CELLS = {
    "T=3, 32-64-64": {"T": 3, "batch": 25, "channels": (32, 64, 64)},
    "T=4, 64-128-128": {"T": 4, "batch": 16, "channels": (64, 128, 128)},
}


class Comparing(CreditCapture):
    """Makes every estimate of the credit from one backward pass."""

    generator = make_generator(0, "estimates")

    def take_all(self) -> dict[str, Tensor]:
        """Estimate -> ``|credit| |w|`` in blocks ``[blocks, M]``, of the last backward pass."""
        weight = self.module.get_parameter("weight").detach().abs()
        return {name: to_blocks(value.abs() * weight, M).reshape(-1, M) for name, value in self.found.items()}

    def _add_sequence(self, x: Tensor, grad: Tensor, lagged: bool) -> None:
        steps = self._steps(len(x))
        x_seq, delta = x.unflatten(0, (steps, -1)), grad.unflatten(0, (steps, -1))
        e = trace(x_seq, self._trace_decay())
        batch = x_seq.shape[1]
        half = torch.randperm(batch, generator=self.generator)[: batch // 2]
        signs = torch.randint(0, 2, (steps,), generator=self.generator).mul_(2).sub_(1).float()

        def product(x_seq: Tensor, delta: Tensor) -> Tensor:
            return weight_gradient(self.module, x_seq.flatten(0, 1), delta.flatten(0, 1)).float()

        def over_time(values: Tensor, factors: Tensor) -> Tensor:
            return torch.tensordot(factors, values, 1).unsqueeze(0)

        decay, ones, now, later = self._trace_decay(), torch.ones(steps), product(x_seq, delta), steps - 1
        lag = e[:-1] * decay, delta[1:]  # the credit is the gradient and the product of these
        sums = over_time(lag[0], ones[:later]), over_time(lag[1], ones[:later] / later)
        self.found = {
            "exact": product(e, delta),
            "bfloat16": now + decay * product(trace(x_seq[:-1].bfloat16(), decay), delta[1:].bfloat16()),
            "gradient": now,
            "sums": now + product(*sums),
            "gradient, and memory from half the batch": now + 2 * product(lag[0][:, half], lag[1][:, half]),
            "half of the batch": product(e[:, half], delta[:, half]),
            "sums over time of everything": product(over_time(e, ones), over_time(delta, ones)),
            "random signs over time of everything": product(over_time(e, signs), over_time(delta, signs)),
        }


def spearman(a: Tensor, b: Tensor) -> float:
    """Mean over blocks of the rank correlation."""
    ranks = [value.argsort(1).argsort(1).double() - (M - 1) / 2 for value in (a, b)]
    return float(((ranks[0] * ranks[1]).sum(1) / ranks[0].square().sum(1)).mean())


def same_largest(a: Tensor, b: Tensor) -> float:
    """Fraction of blocks whose largest entry is at the same position."""
    return float((a.argmax(1) == b.argmax(1)).double().mean())


def compare(time_steps: int, steps: int) -> dict[str, Any]:
    """Train and compare; estimate -> figures, means over layers and moments."""
    data = load_frames("digits-dvs", "train", T=time_steps)
    model = create("conv-snn", input_size=tuple(data.frames.shape[-2:]), channels=(16, 32, 32), num_classes=10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    config = PruneConfig(pattern=f"1:{M}", freeze=1.0, eid_weight=0.0)
    pruner = create_pruner("spikenm", model, config, optimizer=optimizer, total_steps=400)
    captures = [Comparing(layer.name, layer.module, model, decay=None, time_steps=None) for layer in pruner.layers]
    order = make_generator(0, "order")
    means: dict[tuple[str, str], Tensor] = {}
    figures: dict[str, list[tuple[float, ...]]] = {}
    model.train()
    before: dict[str, Tensor] = {}
    for step in range(steps):
        for capture in captures:
            capture.due = True
        rows = torch.randperm(len(data), generator=order)[:BATCH]
        optimizer.zero_grad()
        with seeded(0, "dropout", step):
            logits = model.forward_steps(data.frames[rows].transpose(0, 1).float())
        nn.functional.cross_entropy(logits.mean(0), data.labels[rows]).backward()
        optimizer.step()
        pruner.step()
        for capture in captures:
            found = capture.take_all()
            for name, value in found.items():
                mean = means.setdefault((capture.name, name), value.clone())
                mean.mul_(config.eid_momentum).add_(value, alpha=1 - config.eid_momentum)
            if step >= WARM_UP and step % EVERY == 0:
                for name, value in found.items():
                    pair = means[capture.name, name], means[capture.name, "exact"]
                    now = spearman(value, found["exact"]), same_largest(value, found["exact"])
                    figures.setdefault(name, []).append((*now, spearman(*pair), same_largest(*pair)))
                now = spearman(before[capture.name], found["exact"]), same_largest(before[capture.name], found["exact"])
                figures.setdefault("exact, of the batch before", []).append(now)
            before[capture.name] = found["exact"]
    names = ("spearman", "same_largest", "mean_spearman", "mean_same_largest")
    return {
        estimate: dict(
            zip(names, (round(statistics.fmean(column), 4) for column in zip(*rows, strict=True)), strict=False)
        )
        for estimate, rows in figures.items()
    }


def costs(cell: dict[str, Any], repeats: int) -> dict[str, float]:
    """Variant -> processor time of a training step, in ms and of the dense one."""
    with seeded(0):
        x_seq = (torch.rand(cell["T"], cell["batch"], 2, 34, 34) < 0.15).float() * 2
        labels = torch.randint(0, 10, (cell["batch"],))

    def prepare(changes: dict[str, Any] | None) -> Any:
        model = create("conv-snn", input_size=(34, 34), channels=cell["channels"], num_classes=10).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        if changes is None:
            return model, optimizer, None
        config = PruneConfig(pattern="2:4", freeze=1.0, eid_interval=1, **changes)
        return model, optimizer, create_pruner("spikenm", model, config, optimizer=optimizer, total_steps=10**6)

    def step(model: Any, optimizer: torch.optim.Optimizer, pruner: Any) -> float:
        started = time.process_time()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model.forward_steps(x_seq).mean(0), labels).backward()
        optimizer.step()
        if pruner is not None:
            pruner.step()
        return time.process_time() - started

    runs = {"dense": prepare(None)} | {name: prepare(changes) for name, changes in VARIANTS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 3):
        for name, run in runs.items():
            seconds[name].append(step(*run))
    seconds = {name: values[3:] for name, values in seconds.items()}
    result = {f"{name}, ms": round(1e3 * statistics.median(values), 2) for name, values in seconds.items()}
    for name, values in seconds.items():  # ratios of neighbours in time: others' load changes slowly
        ratio = statistics.median(value / dense for value, dense in zip(values, seconds["dense"], strict=True))
        result[f"{name}, of dense"] = round(ratio, 3)
    return result


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs; writes nothing")
    add_json_option(parser, "eid_credit.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    steps, repeats = (WARM_UP + 1, 2) if arguments.quick else (STEPS, 41)
    result = {
        "estimates": {f"T={T}": compare(T, steps) for T in ((3,) if arguments.quick else (3, 8))},
        "costs": {name: costs(cell, repeats) for name, cell in COST_CELLS.items()},
    }
    for part in result.values():
        for name, figures in part.items():
            print(name, *(f"  {key:30} {value}" for key, value in figures.items()), sep="\n")
    if not arguments.quick:
        write_result(arguments.json, result)


if __name__ == "__main__":
    main()
