"""The report of accelerate(), its errors, restore(): what is kept and why, and a model that stays as it was."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import nn

from snn_core.errors import ArgumentError
from snn_core.interop.spikingjelly import SpikingJellyMissingError, accelerate, restore

functional = pytest.importorskip("spikingjelly.activation_based.functional", reason="SpikingJelly is not installed")
from spikingjelly.activation_based import neuron, surrogate  # noqa: E402

from snn_core.interop import spikingjelly_neuron  # noqa: E402
from snn_core.interop.spikingjelly_neuron import AcceleratedNeuron  # noqa: E402

CURRENTS = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)) * 2


class Renamed(neuron.LIFNode):
    """A subclass that changes nothing that matters."""


class OtherCharge(neuron.LIFNode):
    def neuronal_charge(self, x: torch.Tensor) -> None:
        self.v = self.v + 2 * x


class OtherForward(neuron.LIFNode):
    def single_step_functional_forward(self, inputs: Any, states: Any, **kwargs: Any) -> Any:
        return inputs, states


class TwoMemories(neuron.LIFNode):
    def __init__(self) -> None:
        super().__init__()
        self.register_memory("trace", 0.0)


def test_what_cannot_be_replaced_is_kept_and_named() -> None:
    # A surrogate of its own: SpikingJelly's default argument is one object that all neurons share.
    hooked, parametrized = neuron.LIFNode(surrogate_function=surrogate.Sigmoid()), neuron.ParametricLIFNode()
    hooked.surrogate_function.register_forward_hook(lambda *arguments: None)
    nn.utils.parametrize.register_parametrization(parametrized, "w", nn.Identity())
    own_method, per_channel, tensor_threshold = neuron.LIFNode(), neuron.ParametricLIFNode(), neuron.LIFNode()
    own_method.single_step_forward = lambda x: x
    per_channel.w = nn.Parameter(torch.zeros(3))
    tensor_threshold.v_threshold = nn.Parameter(torch.tensor(1.0))
    smooth = surrogate.ATan()
    smooth.set_spiking_mode(False)
    nodes: dict[str, tuple[nn.Module, str]] = {
        "good": (neuron.LIFNode(), ""),
        "qif": (neuron.QIFNode(), "other dynamics"),
        "simple": (neuron.SimpleLIFNode(2.0, True), "other dynamics"),
        "half_threshold": (neuron.HalfThresholdIFNode(), "other dynamics"),
        "liaf": (neuron.LIAFNode(torch.relu, False), "overrides"),
        "charge": (OtherCharge(), "neuronal_charge"),
        "other_forward": (OtherForward(), "single_step_functional_forward"),
        "two_memories": (TwoMemories(), "trace"),
        "erf": (neuron.LIFNode(surrogate_function=surrogate.Erf()), "Erf"),
        "soft_sign": (neuron.LIFNode(surrogate_function=surrogate.SoftSign()), "SoftSign"),
        "smooth": (neuron.LIFNode(surrogate_function=smooth), "spiking=False"),
        "negative": (neuron.IFNode(v_threshold=-1.0), "v_threshold"),
        "hooked": (hooked, "hooks"),
        "parametrized": (parametrized, "is parametrized"),
        "own_method": (own_method, "single_step_forward"),
        "per_channel": (per_channel, "w is"),
        "tensor_threshold": (tensor_threshold, "v_threshold"),
    }
    net = nn.ModuleDict({name: node for name, (node, _) in nodes.items()})
    types = [type(module) for module in net.modules()]
    with pytest.raises(ArgumentError, match=r"strict.*(?s:.)*kept qif \(QIFNode\)"):
        accelerate(net, strict=True)
    assert [type(module) for module in net.modules()] == types
    report = accelerate(net)
    assert [item.name for item in report.replaced] == ["good"]
    reasons = {item.name: item.reason for item in report.kept}
    assert list(reasons) == list(nodes)[1:]
    for name, reason in reasons.items():
        assert nodes[name][1] in reason, name
    assert str(report).startswith("1 of 17 SpikingJelly neurons")
    assert [type(module) for name, module in net.named_modules() if name != "good"] == [
        cls for cls, (name, _) in zip(types, net.named_modules(), strict=True) if name != "good"
    ]


def test_restore_and_repeat() -> None:
    net = nn.Sequential(neuron.LIFNode(step_mode="m"), Renamed(v_threshold=0.4, step_mode="m"))
    before = [set(vars(module)) for module in net]
    assert accelerate(net) == accelerate(net, backend="reference")
    assert torch.equal(net(CURRENTS), restored(net)(CURRENTS))
    assert [type(module) for module in net] == [neuron.LIFNode, Renamed]
    assert [set(vars(module)) for module in net] == before
    assert restore(net) == 0
    single = neuron.IFNode()
    assert accelerate(single).replaced[0].name == "(the model itself)"
    assert isinstance(single, AcceleratedNeuron)


def restored(net: nn.Module) -> nn.Module:
    assert restore(net) == 2
    functional.reset_net(net)
    return net


def test_an_error_half_way_leaves_the_model_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    """The third neuron gets a class that Python refuses to give it."""
    make = spikingjelly_neuron.accelerated_class
    monkeypatch.setattr(spikingjelly_neuron, "accelerated_class", lambda cls: dict if cls is Renamed else make(cls))
    net = nn.Sequential(neuron.LIFNode(), neuron.IFNode(), Renamed())
    accelerate(net[1], backend="reference")
    with pytest.raises(TypeError, match="__class__"):
        accelerate(net)
    assert [type(module) for module in net] == [neuron.LIFNode, make(neuron.IFNode), Renamed]
    assert [vars(module).get("_snn_core_backend") for module in net] == [None, "reference", None]


def test_bad_arguments() -> None:
    with pytest.raises(ArgumentError, match="model"):
        accelerate("net")  # type: ignore[arg-type]
    node = neuron.LIFNode()
    with pytest.raises(ArgumentError, match="backend"):
        accelerate(node, backend="zz")
    assert type(node) is neuron.LIFNode


def test_missing_spikingjelly_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "snn_core.interop.spikingjelly_neuron")
    monkeypatch.delattr("snn_core.interop.spikingjelly_neuron", raising=False)
    monkeypatch.setitem(sys.modules, "spikingjelly.activation_based", None)
    with pytest.raises(SpikingJellyMissingError, match="pip install"):
        accelerate(nn.Linear(1, 1))
