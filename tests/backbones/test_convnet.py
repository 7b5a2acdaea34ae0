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


def pictures(steps: int, *, copied: bool = False) -> torch.Tensor:
    one = torch.randint(0, 256, (1, 5, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return one.repeat(steps, 1, 1, 1, 1) if copied else one.expand(steps, -1, -1, -1, -1)


PICTURES = {"in_channels": 3, "input_size": (16, 16), "input_transform": "standardise", "stem_kernel": 3}


def sides(**options: Any) -> list[int]:
    """Of what the blocks of a network for pictures give."""
    model = create("conv-snn", channels=(8,) * 4, **(PICTURES | {"stem_stride": 1} | options))
    seen: list[int] = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, output: seen.append(output.shape[-1]))
    model(pictures(2))
    return seen


def test_strides_and_pools_of_every_block() -> None:
    assert sides() == [8, 4, 2, 1]
    assert sides(strides=(1, 2, 2, 1), pools=(1, 1, 1, 1)) == [16, 8, 4, 4]
    assert sides(pools=(1, 2, 2, 1)) == [16, 8, 4, 4]
    assert sides(pools=(4, 1, 1, 4)) == [4, 4, 4, 1]


def test_pictures_are_standardised_channel_by_channel() -> None:
    encoder = create("conv-snn", channels=[4], **PICTURES).encoder
    x = pictures(2)
    expected = (x / 255 - torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1)) / torch.tensor(
        [0.2470, 0.2435, 0.2616]
    ).view(3, 1, 1)
    torch.testing.assert_close(encoder(x, torch.float32), expected, atol=1e-6, rtol=1e-6)
    assert encoder(x, torch.float32).stride(0) == 0
    own = create("conv-snn", channels=[4], **(PICTURES | {"input_mean": [0, 0.5, 1], "input_std": [1, 0.5, 0.25]}))
    full = own.encoder(torch.full((1, 1, 3, 16, 16), 255, dtype=torch.uint8), torch.float32)
    torch.testing.assert_close(full[0, 0, :, 0, 0], torch.tensor([1.0, 1.0, 0.0]))
    assert not any("encoder" in key for key in own.state_dict())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("neuron", ["lif", "plif", "if"])
def test_pictures_convolved_once_give_the_same(training: bool, neuron: str) -> None:
    """Against T copies, which go the usual way: spikes to the last bit, gradients but for the order of sums."""
    models = [create("conv-snn", channels=(8, 8), neuron=neuron, dropout=0.0, **PICTURES) for _ in range(2)]
    outcomes = []
    for model, copied in zip(models, (False, True), strict=True):
        model.train(training)
        logits = model.forward_steps(pictures(3, copied=copied))
        logits.square().mean().backward()
        outcomes.append((logits, {name: parameter.grad for name, parameter in model.named_parameters()}))
    assert torch.equal(outcomes[0][0], outcomes[1][0])
    assert outcomes[0][0].std() > 0
    for name, gradient in outcomes[0][1].items():
        torch.testing.assert_close(gradient, outcomes[1][1][name], atol=1e-6, rtol=1e-4, msg=name)
    for buffer, other in zip(models[0].buffers(), models[1].buffers(), strict=True):
        assert torch.equal(buffer, other)


def test_a_hook_on_the_first_layer_sees_all_time_steps() -> None:
    model = create("conv-snn", channels=[4], **PICTURES)
    seen: list[int] = []
    model.blocks[0].conv.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    model(pictures(3))
    assert seen == [15]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strides": (1,)}, "strides is"),
        ({"strides": (1, 0)}, "strides is"),
        ({"pools": "22"}, "pools is"),
        ({"pools": (16, 2)}, "pools is"),
        ({"input_mean": (0.5, 0.5)}, "input_mean must be 3 numbers"),
        ({"input_std": (1, 1, 0)}, "input_std must be positive"),
        ({"input_transform": "log1p", "input_std": (1, 1, 1)}, "go with input_transform 'standardise'"),
        ({"in_channels": 1}, "input_mean must be 1 numbers.*CIFAR-10's three"),
    ],
)
def test_bad_options_for_pictures(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        create("conv-snn", channels=(4, 4), **(PICTURES | options))


def test_a_network_for_pictures_fused() -> None:
    """Its encoder differs from channel to channel, so the first layer has no table of counts."""
    from snn_core.sparsity import fuse

    model = create("conv-snn", channels=(8, 8), **PICTURES)
    model.train()(pictures(2))
    model.eval()
    fused = fuse(model)
    for x in (pictures(3), pictures(3, copied=True)):
        torch.testing.assert_close(fused(x), model(x), atol=1e-4, rtol=1e-4)
