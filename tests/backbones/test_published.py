"""Networks of the published sizes: parameters counted, and outputs compared with SpikingJelly's models."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snn_core.backbones import create
from snn_core.backbones.norm import make_norm
from snn_core.errors import ArgumentError

IMAGENET = {"in_channels": 3, "num_classes": 1000}


def on_meta(name: str, **options: Any) -> nn.Module:
    with torch.device("meta"):
        return create(name, **options)


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        # SpikingJelly's models of these names, and torchvision's resnet18 and resnet34
        ("spiking_resnet18", IMAGENET, 11_689_512),
        ("spiking_resnet34", IMAGENET, 21_797_672),
        ("sew_resnet18", IMAGENET, 11_689_512),
        ("sew_resnet34", IMAGENET, 21_797_672),
        # code of MS-ResNet, and SpikingJelly
        ("ms_resnet18", IMAGENET, 11_693_736),
        ("ms_resnet34", IMAGENET, 21_801_896),
        # ResNet-19 in the code of TET
        ("spiking_resnet19", {"in_channels": 3}, 12_630_858),
        # SpikingJelly's spiking_vgg11_bn and spiking_vgg16_bn, torchvision's vgg11_bn and vgg16_bn
        ("spiking_vgg11", IMAGENET | {"hidden": [4096, 4096], "pool_to": 7}, 132_868_840),
        ("spiking_vgg16", IMAGENET | {"hidden": [4096, 4096], "pool_to": 7}, 138_365_992),
    ],
)
def test_parameters(name: str, options: dict[str, Any], count: int) -> None:
    assert sum(parameter.numel() for parameter in on_meta(name, **options).parameters()) == count


def test_weights_of_vgg9() -> None:
    """Those of SNN_VGG9_BNTT, whose norms are others."""
    model = on_meta("spiking_vgg9", in_channels=3, hidden=[1024], pool_to=4)
    shapes = [tuple(p.weight.shape) for p in model.modules() if isinstance(p, (nn.Conv2d, nn.Linear))]
    widths = [3, 64, 64, 128, 128, 256, 256, 256]
    assert shapes[:7] == [(out, size, 3, 3) for size, out in pairwise(widths)]
    assert shapes[7:] == [(1024, 4096), (10, 1024)]


@pytest.mark.parametrize("name", ["spiking_resnet18", "sew_resnet18", "ms_resnet18"])
def test_outputs_are_those_of_spikingjelly(name: str) -> None:
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    from spikingjelly.activation_based import functional
    from spikingjelly.activation_based.model import ms_resnet, sew_resnet, spiking_resnet

    options: dict[str, Any] = {"tau": 2.0, "decay_input": False, "detach_reset": True}
    if name == "ms_resnet18":
        theirs = ms_resnet.ms_resnet18(num_classes=10, spiking_neuron=neuron.LIFNode, step_mode="m", **options)
    else:
        make = sew_resnet.sew_resnet18 if name == "sew_resnet18" else spiking_resnet.spiking_resnet18
        cnf = {"cnf": "ADD"} if name == "sew_resnet18" else {}
        theirs = make(spiking_neuron=neuron.LIFNode, num_classes=10, **cnf, **options)
    functional.set_step_mode(theirs, "m")
    ours = create(name, in_channels=3)
    with torch.no_grad():
        for mine, their in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
            their.copy_(mine)
        x = torch.randn(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        # In training mode: the norms see these pictures, and neurons fire in all layers.
        expected: Tensor = theirs(x)
        got = ours.forward_steps(x)
    assert got.std() > 0.01
    expected = expected if expected.ndim == 3 else expected.unsqueeze(0)
    got = got if len(expected) > 1 else got.mean(0, keepdim=True)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_norms() -> None:
    """The current that feeds a neuron has the size of the threshold."""
    x = torch.randn(512, 4, 3, 3, generator=torch.Generator().manual_seed(0)) * 7 + 3
    assert make_norm("bn", 4, v_threshold=0.5)(x).std().item() == pytest.approx(1, abs=0.01)
    assert make_norm("tdbn", 4, v_threshold=0.5)(x).std().item() == pytest.approx(0.5, abs=0.01)
    block = create("spiking_resnet18", channels=[8] * 4, v_threshold=0.5).layer2[0]
    assert [block.first.norm.weight[0].item(), block.second.norm.weight[0].item()] == pytest.approx([0.5, 0.5**1.5])
    assert block.shortcut.norm.weight[0].item() == pytest.approx(0.5**1.5)


@pytest.mark.parametrize(
    ("connect_f", "expected"), [("ADD", [0, 1, 1, 2]), ("AND", [0, 0, 0, 1]), ("IAND", [0, 0, 1, 0])]
)
def test_connections_of_sew(connect_f: str, expected: list[int]) -> None:
    block = create("sew_resnet18", channels=[8] * 4, connect_f=connect_f).layer1[0]
    shortcut, branch = torch.tensor([0.0, 0, 1, 1]), torch.tensor([0.0, 1, 0, 1])
    block.first, block.second = nn.Identity(), nn.Identity()
    block.second.forward = lambda _: branch  # type: ignore[method-assign]
    assert block(shortcut).tolist() == expected


def test_width() -> None:
    assert [info.channels for info in on_meta("sew_resnet18", width=0.25).feature_info] == [16, 32, 64, 128]
    assert [info.channels for info in on_meta("spiking_vgg9", width=0.01).feature_info] == [8, 8, 8]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sew_resnet18", {"connect_f": "OR"}, "connect_f is 'OR'; allowed: ADD, AND, IAND"),
        ("spiking_resnet18", {"connect_f": "ADD"}, "has no option connect_f"),
        ("sew_resnet18", {"depth": 50}, "has no option depth"),
        ("sew_resnet18", {"stem": "mnist"}, "stem is 'mnist'"),
        ("sew_resnet18", {"stem_channels": 0}, "stem_channels is 0"),
        ("sew_resnet18", {"channels": [8, 8]}, "must be 4 positive integers"),
        ("sew_resnet18", {"width": 0}, "width is 0"),
        ("sew_resnet18", {"norm": "layer"}, "norm is 'layer'; allowed: tdbn, bn"),
        ("sew_resnet18", {"surrogate": "step"}, "surrogate_function is 'step'"),
        ("sew_resnet18", {"surogate": "ATan"}, "did you mean surrogate"),
        ("sew_resnet8", {}, "did you mean sew_resnet"),
        ("spiking_vgg9", {"hidden": [0]}, "hidden is"),
        ("spiking_vgg9", {"pool_to": 0}, "pool_to is 0"),
        ("spiking_vgg9", {"pools": 4}, "pools is 4"),
        ("spiking_vgg9", {"pool": "min"}, "pool is 'min'"),
        ("spiking_vgg9", {"input_size": [4, 4]}, "at least 8 each"),
        ("spiking_vgg9", {"input_transform": "sqrt"}, "input_transform is 'sqrt'"),
    ],
)
def test_options_that_are_not_allowed(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        on_meta(name, **options)


def test_frames_that_are_too_small() -> None:
    with pytest.raises(ArgumentError, match="H and W at least 8"):
        create("spiking_vgg9", channels=[8, 8, 8])(torch.zeros(2, 1, 2, 16, 7))
