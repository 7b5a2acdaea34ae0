"""Two processes that train one model: the same masks and logits, and those of one process with the whole batch."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from snn_core import LIF, reset_net
from snn_core.errors import ArgumentError
from snn_core.pruning import PruneConfig, SpikeNMPruner
from snn_core.pruning.distributed import checksum, inner_model
from snn_core.seeding import seeded

STEPS, BATCH, T = 5, 6, 3
pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch without torch.distributed")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        with seeded(0):
            self.first, self.neuron1 = nn.Linear(6, 16), LIF()
            self.middle, self.neuron2 = nn.Linear(16, 16), LIF()
            self.inner, self.neuron3 = nn.Linear(16, 16), LIF()
            self.last = nn.Linear(16, 3)

    def forward(self, x_seq):
        reset_net(self)
        x_seq = self.neuron1(4 * self.first(x_seq))
        return self.last(self.neuron3(6 * self.inner(self.neuron2(4 * self.middle(x_seq))))).mean(0)


CONFIG = PruneConfig(
    layer_patterns={"inner": "1:8"}, eid_interval=2, eid_weight=1.0, logit_learning_rate=0.1, freeze=1.0
)


def batch(step, part=0):
    generator = torch.Generator().manual_seed(1000 * part + step)
    return torch.rand(T, BATCH, 6, generator=generator) * 2, torch.randint(0, 3, (BATCH,), generator=generator)


def loss_of(model, step, part=0, rank=0, world=1):
    x_seq, labels = batch(step, part)
    rows = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    return nn.functional.cross_entropy(model(x_seq[:, rows]), labels[rows])


def train(model, inner, rank=0, world=1, parts=1):
    """SGD over STEPS batches, each of ``parts`` backward passes; all but the last without reducing gradients."""
    optimizer = torch.optim.SGD(inner.parameters(), lr=0.1)
    pruner = SpikeNMPruner(model, "2:4", config=CONFIG, optimizer=optimizer, total_steps=10 * STEPS)
    for step in range(STEPS):
        optimizer.zero_grad()
        if parts == 2:
            with model.no_sync() if isinstance(model, DistributedDataParallel) else torch.enable_grad():
                loss_of(model, step, 1, rank, world).backward()
        loss_of(model, step, 0, rank, world).backward()
        optimizer.step()
        pruner.step()
    return pruner


def result_of(pruner):
    searches = pruner._searches.values()
    return {
        "masks": pruner.masks,
        "logits": pruner.logits,
        "credit": [search.credit for search in searches],
        "targets": [search.targets for search in searches],
        "weights": [layer.weight.detach() for layer in pruner.layers],
    }


def run_two(folder):
    """This file as two processes, which meet in a file; what each of them found."""
    processes = [subprocess.Popen([sys.executable, __file__, str(folder), str(rank)]) for rank in range(2)]
    try:
        assert [process.wait(120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def everything(rank):
    """All that the tests below look at: processes take seconds to start."""
    found = {}
    for parts in (1, 2):
        inner = Net()
        found[parts] = result_of(train(DistributedDataParallel(inner), inner, rank, 2, parts))
    # Made from the inner model, without DistributedDataParallel in sight: the default group.
    found["group"] = SpikeNMPruner(Net(), config=CONFIG)._ranks.size
    found["alone"] = SpikeNMPruner(Net(), config=CONFIG, distributed=False)._ranks.size
    found["errors"] = [_error(rank, case) for case in ("seed", "weights", "config", "alone")]
    return found


def _error(rank, case):
    model = Net()
    with torch.no_grad():
        model.inner.weight.mul_(-1 if rank and case == "weights" else 1)
        model.middle.weight.copy_(model.middle.weight.flip(1) if rank and case == "weights" else model.middle.weight)
    changes = {"seed": {"seed": rank}, "config": {"rho": 1.0 + rank}}.get(case, {})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = SpikeNMPruner(
        model, config=CONFIG.model_copy(update=changes), optimizer=optimizer, total_steps=STEPS,
        distributed=case != "alone",
    )  # fmt: skip
    loss_of(model, 0, rank=rank, world=2).backward()
    try:
        optimizer.step()
        pruner.step()
    except ArgumentError as error:
        return str(error)
    return None


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return run_two(tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("parts", [1, 2])
def test_masks_logits_and_credits_are_the_same_bits_on_every_rank(ranks, parts):
    first, second = ranks[0][parts], ranks[1][parts]
    for kind in ("masks", "logits"):
        assert list(first[kind]) == ["middle", "inner"]
        assert all(torch.equal(value, second[kind][name]) for name, value in first[kind].items()), kind
    for kind in ("credit", "targets", "weights"):
        assert all(torch.equal(a, b) for a, b in zip(first[kind], second[kind], strict=True)), kind


@pytest.mark.parametrize("parts", [1, 2])
def test_two_ranks_equal_one_with_the_whole_batch(ranks, parts):
    """Sums over the batch are split in two, so that only their rounding differs. ``parts = 2``: under no_sync."""
    inner = Net()
    alone = result_of(train(inner, inner, parts=parts))
    for a, b in zip(ranks[0][parts]["credit"], alone["credit"], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)
        assert float(b.min()) >= 0
        assert float(b.max()) > 1e-4
    for name, logits in alone["logits"].items():
        torch.testing.assert_close(ranks[0][parts]["logits"][name], logits, rtol=1e-3, atol=1e-4)
        assert float(logits.std()) > 0.05
    assert all(torch.equal(mask, ranks[0][parts]["masks"][name]) for name, mask in alone["masks"].items())


def test_credits_of_one_rank_alone_would_differ(ranks):
    """What the reduction is for: the targets of half the batch are others."""
    inner = Net()
    half = result_of(train(inner, inner, 0, 2))
    assert not torch.allclose(half["credit"][0], ranks[0][1]["credit"][0], rtol=0.05)


def test_ranks_that_disagree_are_told_so(ranks):
    for rank in range(2):
        seed, weights, config, alone = ranks[rank]["errors"]
        assert "pruning: the config of rank 1 and rank 0 differ" in seed
        assert "the mask of layer 'middle' of rank 1 and rank 0 differ" in weights
        assert "the config of rank 1" in config
        assert alone is None
        assert (ranks[rank]["group"], ranks[rank]["alone"]) == (2, 1)


def test_checksums_see_every_bit():
    values = torch.rand(50, generator=torch.Generator().manual_seed(0))
    changed, swapped = values.clone(), values.clone()
    changed[3] = torch.nextafter(changed[3], torch.tensor(2.0))
    swapped[[1, 2]] = values[[2, 1]]
    assert len({checksum(values), checksum(changed), checksum(swapped)}) == 3
    assert checksum(values) == checksum(values.clone())
    assert checksum(values > 0.5) != checksum(values > 0.6)


def test_the_inside_of_a_wrapped_model_is_what_is_pruned():
    model = Net()
    assert inner_model(model) is model
    with pytest.raises(ArgumentError, match="DataParallel cannot be pruned"):
        inner_model(nn.DataParallel(model))


class WrappedOptimizer(torch.optim.Optimizer):
    """As accelerate wraps an optimiser: a subclass that holds one and steps it only when gradients are complete."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.complete = True

    state = property(lambda self: self.optimizer.state)
    param_groups = property(lambda self: self.optimizer.param_groups)
    defaults = property(lambda self: self.optimizer.defaults)

    def zero_grad(self, set_to_none=None):
        if self.complete:
            self.optimizer.zero_grad()

    def step(self, closure=None):
        if self.complete:
            self.optimizer.step(closure)


def test_a_loop_in_the_style_of_accelerate():
    """zero_grad, step and pruner.step() after every part of a batch; only complete batches count."""
    models = [Net(), Net()]
    pruners = []
    for model, wrapped in zip(models, (True, False), strict=True):
        plain = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer = WrappedOptimizer(plain) if wrapped else plain
        pruner = SpikeNMPruner(model, config=CONFIG, optimizer=optimizer, total_steps=STEPS)
        for step in range(3):
            for part in (1, 0):
                if wrapped:
                    optimizer.complete = part == 0
                (loss_of(model, step, part) / 2).backward()
                if wrapped:
                    optimizer.step()
                    pruner.step()
                    optimizer.zero_grad()
            if not wrapped:
                optimizer.step()
                pruner.step()
                optimizer.zero_grad()
        pruners.append(result_of(pruner) | {"steps": pruner.steps_done})
    assert pruners[0]["steps"] == pruners[1]["steps"] == 3
    assert all(torch.equal(value, pruners[1]["logits"][name]) for name, value in pruners[0]["logits"].items())
    assert all(torch.equal(a, b) for a, b in zip(pruners[0]["credit"], pruners[1]["credit"], strict=True))


if __name__ == "__main__":
    torch.set_num_threads(1)
    target, own_rank = Path(sys.argv[1]), int(sys.argv[2])
    dist.init_process_group("gloo", init_method=f"file://{target}/meet", rank=own_rank, world_size=2)
    torch.save(everything(own_rank), target / f"{own_rank}.pt")
    dist.destroy_process_group()
