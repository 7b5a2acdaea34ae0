"""ConvSNN and the registry."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from snn_core import IF, LIF, PLIF
from snn_core.backbones import ConvSNN, create, list_backbones
from snn_core.errors import ArgumentError


def frames(steps: int = 3) -> torch.Tensor:
    return torch.randint(0, 5, (steps, 2, 2, 34, 34), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize(("kind", "neuron"), [("lif", LIF), ("plif", PLIF), ("if", IF)])
@pytest.mark.parametrize("pool", ["max", "avg"])
def test_shapes_and_mean_over_time(kind: str, neuron: type, pool: str) -> None:
    model = create("conv-snn", channels=[4, 6], neuron=kind, pool=pool).eval()
    assert isinstance(model, ConvSNN)
    assert [type(layer) for _, layer in model.spiking_layers()] == [neuron, neuron]
    steps = model.forward_steps(frames())
    assert steps.shape == (3, 2, 10)
    assert torch.equal(model(frames()), steps.mean(0))


def test_calls_do_not_depend_on_each_other() -> None:
    model = create("conv-snn", channels=[4]).eval()
    first = model(frames())
    model(frames() * 3)
    assert torch.equal(model(frames()), first)


def test_later_layers_see_only_spikes() -> None:
    model = create("conv-snn", channels=[4, 6, 8]).eval()
    seen: list[torch.Tensor] = []
    for block in list(model.blocks)[1:]:
        block.conv.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(frames())
    assert len(seen) == 2
    assert all(set(x.unique().tolist()) <= {0.0, 1.0} for x in seen)


def test_seed_decides_the_initialisation_alone() -> None:
    state = torch.get_rng_state()
    a, b, c = (create("conv-snn", seed=seed, channels=[4]) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(a.readout.weight, b.readout.weight)
    assert not torch.equal(a.readout.weight, c.readout.weight)
    assert a.backbone_options == {"channels": [4]}


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"neuron": "izhikevich"}, "neuron"),
        ({"pool": "median"}, "pool"),
        ({"input_transform": "sqrt"}, "input_transform"),
        ({"channels": []}, "channels"),
        ({"depth": 3}, "depth"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], word: str) -> None:
    with pytest.raises(ArgumentError, match=word):
        create("conv-snn", **options)


def test_unknown_backbone_lists_those_there_are() -> None:
    with pytest.raises(ArgumentError, match=", ".join(list_backbones())):
        create("vgg-99")


@pytest.mark.parametrize("shape", [(2, 2, 34, 34), (3, 2, 1, 34, 34), (3, 2, 2, 32, 34)])
def test_wrong_frames_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ArgumentError, match="expected"):
        create("conv-snn", channels=[4])(torch.zeros(shape))
