"""States that a pruner must not resume from, and the length of the run as a part of the state."""

import pytest
import torch
from torch import nn

from snn_core.errors import ArgumentError, CheckpointError
from snn_core.pruning import PruneConfig, SpikeNMPruner
from snn_core.seeding import seeded

STEPS = 10
CONFIG = PruneConfig(include=("0",), eid_weight=0)


def make(total_steps=STEPS):
    with seeded(0):
        model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"optimizer": optimizer, "total_steps": total_steps} if total_steps else {}
    return model, optimizer, SpikeNMPruner(model, config=CONFIG, **options)


def state_after(steps):
    model, optimizer, pruner = make()
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(3, 8)).square().sum().backward()
        optimizer.step()
        pruner.step()
    return pruner.state_dict()


def test_a_state_of_the_search_is_refused_once_the_masks_are_final():
    state = state_after(2)
    _, _, pruner = make()
    masks = pruner.finalize()
    with pytest.raises(CheckpointError, match="masks are final"):
        pruner.load_state_dict(state)
    assert pruner.steps_done == 0
    assert torch.equal(pruner.masks["0"], masks["0"])
    frozen = state_after(9)
    assert frozen["frozen"]
    pruner.load_state_dict(frozen)
    assert torch.equal(pruner.masks["0"], frozen["mask/0"])


@pytest.mark.parametrize("steps", [2, 9])
def test_a_state_of_a_run_of_another_length_is_refused(steps):
    state = state_after(steps)
    _, _, pruner = make(2 * STEPS)
    with pytest.raises(CheckpointError, match="total_steps differ; total_steps in the state: 10, here: 20"):
        pruner.load_state_dict(state)
    assert pruner.steps_done == 0
    assert not pruner.frozen


def test_the_length_is_compared_by_begin_where_that_comes_later():
    model, optimizer, pruner = make(None)
    pruner.load_state_dict(state_after(2))
    with pytest.raises(ArgumentError, match="total_steps: the loaded state is of 10, got 20"):
        pruner.begin(model, optimizer, 2 * STEPS)
    pruner.begin(model, optimizer, STEPS)
    assert (pruner.steps_done, pruner.total_steps) == (2, STEPS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("identity", torch.tensor([1.5, 2.5])),
        ("identity", torch.tensor(7)),
        ("identity", torch.tensor(list(b"[1, 2]"), dtype=torch.uint8)),
        ("identity", torch.tensor(list(b"null"), dtype=torch.uint8)),
        ("identity", torch.tensor(list(b"{}"), dtype=torch.uint8)),
        ("identity", None),
        ("steps_done", torch.tensor([1, 2])),
        ("mask/0", torch.ones(3, dtype=torch.bool)),
        ("mask/0", torch.ones(4, 8)),
        ("logits/0", torch.zeros(3)),
    ],
)
@pytest.mark.parametrize("total_steps", [STEPS, None])
def test_a_damaged_state_is_refused_as_such(name, value, total_steps):
    _, _, pruner = make(total_steps)
    with pytest.raises(CheckpointError, match="pruning state is"):
        pruner.load_state_dict(state_after(9) | {name: value})
    assert not pruner.frozen
    assert pruner.steps_done == 0
