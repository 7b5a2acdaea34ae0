"""What N:M pruning adds to a training step: time beside the dense step, and memory.

    python benchmarks/pruning_cost.py                        three networks, 2:4, one thread; Linear layers
                                                             with 200 and with 1,000 rows (T x batch) a step
    python benchmarks/pruning_cost.py --pattern 1:8 --networks linear

Contenders of a network take turns in one process, `--steps` training steps each (forward, backward, AdamW, pruner), a
different one first every time, so that a slow spell of the machine hits all alike; a turn's time is divided by the
dense one's of the same turn. Medians over the turns, of wall-clock and of the processor's time, which other processes
disturb less. Sampler and EID work on weights, whatever the rows: the fewer rows, the more they weigh. A network has
`--turns`, or as many (five at least) as fit in `--seconds`. Memory: bytes of the pruner's tensors, and what four steps
hold at most beyond the model, in a process of its own. Some four minutes in all.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from common import add_json_option, write_result
from measure import peak_bytes
from torch import Tensor, nn

from snn_core.backbones import create
from snn_core.neurons import LIF, reset_net
from snn_core.pruning import PruneConfig, create_pruner
from snn_core.pruning.spikenm import SpikeNMPruner

CONTENDERS: dict[str, tuple[str, dict[str, Any]] | None] = {
    "dense": None,
    "sr-ste": ("sr-ste", {}),
    "spikenm, sampler only": ("spikenm", {"eid_weight": 0.0}),
    "spikenm, EID every 4 steps": ("spikenm", {"eid_interval": 4}),
    "spikenm, EID every step": ("spikenm", {"eid_interval": 1}),
    "spikenm, EID every step, sums": ("spikenm", {"eid_interval": 1, "eid_credit": "sums"}),
}
#: Whose memory is measured, each in a process of its own.
WEIGHED = ("dense", "spikenm, sampler only", "spikenm, EID every step")
#: Turns of a network that are made however long they take.
LEAST_TURNS = 5
#: Steps of the run that a step is measured in: all of it in the search phase, far from its end.
TOTAL_STEPS = 1_000_000


class SpikingMLP(nn.Module):
    """Linear layers with LIF neurons between them, ``[T, B, width]`` in, logits out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.time_steps = 4
        layers = [part for _ in range(3) for part in (nn.Linear(width, width, bias=False), LIF(tau=2.0))]
        self.body = nn.Sequential(*layers)
        self.readout = nn.Linear(width, 10)

    def forward(self, x_seq: Tensor) -> Tensor:
        """The mean of the read-out over time."""
        reset_net(self)
        return self.readout(self.body(x_seq)).mean(0)


def network(name: str) -> tuple[nn.Module, Tensor]:
    """A model and a batch of its inputs."""
    generator = torch.Generator().manual_seed(0)
    if name == "nmnist":  # conv-snn as the N-MNIST runs train it
        return create("conv-snn", seed=0), torch.randint(0, 3, (3, 25, 2, 34, 34), generator=generator)
    if name == "cifar":  # a picture repeated over time
        model = create(
            "conv-snn", seed=0, in_channels=3, input_size=(32, 32), channels=(64, 128, 128, 256), stem_kernel=3,
            stem_stride=1, input_transform="none",
        )  # fmt: skip
        return model, torch.rand(1, 25, 3, 32, 32, generator=generator).expand(4, -1, -1, -1, -1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SpikingMLP(64 if name == "linear-small" else 1024)
    width, batch = model.readout.in_features, 250 if name == "linear-1000" else 50
    return model, (torch.rand(4, batch, int(width), generator=generator) < 0.3).float()


class Contender:
    """One network with one way of pruning; :meth:`step` is a whole training step."""

    def __init__(self, name: str, contender: str, pattern: str) -> None:
        self.model, self.x_seq = network(name)
        self.labels = torch.arange(self.x_seq.shape[1]) % 10
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.pruner = None
        chosen = CONTENDERS[contender]
        if chosen is not None:
            config = PruneConfig(pattern=pattern, **chosen[1])
            self.pruner = create_pruner(
                chosen[0], self.model, config, optimizer=self.optimizer, total_steps=TOTAL_STEPS
            )

    def step(self) -> None:
        """Forward, backward, optimiser, pruner."""
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.model(self.x_seq), self.labels).backward()
        self.optimizer.step()
        if self.pruner is not None:
            self.pruner.step()

    def state_bytes(self) -> dict[str, float]:
        """Bytes a block of what SpikeNM's pruner holds between steps."""
        if not isinstance(self.pruner, SpikeNMPruner):
            return {}
        found: dict[str, float] = {}
        for search in self.pruner._searches.values():
            for tensor in ("logits", "exp_avg", "exp_avg_sq", "credit", "targets"):
                value = getattr(search, tensor)
                if value is not None:
                    found[tensor] = value.numel() * value.element_size() / search.group.num_blocks
        return found


def timed(run: Callable[[], None], steps: int) -> tuple[float, float]:
    """Wall-clock and processor seconds of one step."""
    wall, processor = time.perf_counter(), time.process_time()
    for _ in range(steps):
        run()
    return (time.perf_counter() - wall) / steps, (time.process_time() - processor) / steps


def measure(name: str, pattern: str, turns: int, steps: int, seconds: float) -> list[dict[str, Any]]:
    """A row a contender: medians over the turns and of the ratios to the dense turn."""
    contenders = {contender: Contender(name, contender, pattern) for contender in CONTENDERS}
    times: dict[str, list[tuple[float, float]]] = {contender: [] for contender in contenders}
    for one in contenders.values():
        one.step()  # the first finds nothing warm
    order, began = list(contenders), time.monotonic()
    for turn in range(turns):
        if turn >= LEAST_TURNS and time.monotonic() > began + seconds:
            break
        for contender in order:
            times[contender].append(timed(contenders[contender].step, steps))
        order.append(order.pop(0))
    rows = []
    for contender, one in contenders.items():
        row: dict[str, Any] = {"network": name, "pattern": pattern, "contender": contender}
        for index, clock in enumerate(("wall", "processor")):
            own = [measured[index] for measured in times[contender]]
            ratios = sorted(a / b[index] for a, b in zip(own, times["dense"], strict=True))
            row |= {f"{clock}_ms": 1e3 * statistics.median(own), f"{clock}_ratio": statistics.median(ratios)}
            row[f"{clock}_ratio_quartiles"] = [ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]]
        weights = [layer.weight.numel() for layer in one.pruner.layers] if one.pruner is not None else []
        row["turns"] = len(times[contender])
        rows.append(row | {"pruned_weights": sum(weights), "bytes_a_block": one.state_bytes()})
    return rows


def peak(name: str, contender: str, pattern: str) -> int | None:
    """Largest memory of four steps beyond model and data."""
    torch.set_num_threads(1)
    one = Contender(name, contender, pattern)

    def run() -> None:
        for _ in range(4):
            one.step()

    return peak_bytes(run, torch.device("cpu"))


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    print(f"{'network':12} {'contender':30} {'ms/step':>9} {'x dense':>8} {'x dense, cpu':>12} {'peak MiB':>9}")
    for row in rows:
        memory = "-" if row.get("peak_bytes") is None else f"{row['peak_bytes'] / 2**20:.1f}"
        print(
            f"{row['network']:12} {row['contender']:30} {row['wall_ms']:9.2f} {row['wall_ratio']:8.3f} "
            f"{row['processor_ratio']:12.3f} {memory:>9}"
        )


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["nmnist", "cifar", "linear", "linear-1000"])
    parser.add_argument("--pattern", default="2:4")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=40.0, help="after which a network gets no more turns")
    parser.add_argument("--steps", type=int, default=4, help="training steps a turn; EID's longest interval")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak of memory")
    add_json_option(parser, "pruning_cost_cpu.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for name in arguments.networks:
        found = measure(name, arguments.pattern, arguments.turns, arguments.steps, arguments.seconds)
        if not arguments.no_memory:
            for row in found:
                if row["contender"] not in WEIGHED:
                    continue
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    row["peak_bytes"] = pool.apply(peak, (name, row["contender"], arguments.pattern))
        show(found)
        rows += found
    write_result(arguments.json, {"turns": arguments.turns, "steps": arguments.steps, "rows": rows})


if __name__ == "__main__":
    main()
