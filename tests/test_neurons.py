"""Neuron modules: state, step modes, learned tau."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import snn_core
from snn_core import IF, LIF, PLIF
from snn_core.errors import ArgumentError
from snn_core.surrogate import ATan, Sigmoid, as_surrogate


def currents(steps: int = 6) -> torch.Tensor:
    return torch.randn(steps, 3, 10, generator=torch.Generator().manual_seed(0)) * 2


@pytest.mark.parametrize("make", [LIF, IF, PLIF])
def test_single_steps_equal_many(make: type[nn.Module]) -> None:
    x = currents()
    many, single = make(store_v_seq=True), make(step_mode="s", store_v_seq=True)
    expected = many(x)
    assert torch.equal(torch.stack([single(step) for step in x]), expected)
    assert torch.equal(single.v, many.v)
    assert torch.equal(single.v_seq, many.v_seq)


def test_reset_forgets_and_reset_net_reaches_every_neuron() -> None:
    net = nn.Sequential(LIF(), nn.Sequential(nn.Identity(), PLIF(v_threshold=0.4)))
    first = net(currents())
    assert first.sum() > 0
    assert not torch.equal(net(currents()), first)
    snn_core.reset_net(net)
    assert net[0].v is None
    assert torch.equal(net(currents()), first)


def test_detach_cuts_the_graph() -> None:
    layer = LIF()
    layer(currents().requires_grad_())
    assert layer.v.requires_grad
    layer.detach()
    assert not layer.v.requires_grad


def test_stored_potentials_carry_gradients() -> None:
    layer, x = LIF(store_v_seq=True), currents().requires_grad_()
    layer(x)
    layer.v_seq.sum().backward()
    assert x.grad.abs().sum() > 0


def test_plif_learns_tau() -> None:
    layer = PLIF(init_tau=3.0)
    assert layer.leak == pytest.approx(1 - 1 / 3)
    layer(currents()).sum().backward()
    assert layer.w.grad.abs() > 0
    assert [name for name, _ in layer.named_parameters()] == ["w"]


def test_neurons_can_be_copied_between_samples() -> None:
    """Also right after a forward pass with gradients, whose graph cannot be copied."""
    layer = LIF(store_v_seq=True)
    layer(currents().requires_grad_())
    other = copy.deepcopy(layer)
    assert torch.equal(other.v, layer.v)
    assert not other.v_seq.requires_grad
    other.reset()
    assert layer.v is not None


@pytest.mark.parametrize(
    ("make", "options", "word"),
    [
        (LIF, {"tau": 0.9}, "tau"),
        (PLIF, {"init_tau": 1.0}, "init_tau"),
        (LIF, {"step_mode": "x"}, "step_mode"),
        (LIF, {"tau": 1.0}, "tau is 1"),
        (LIF, {"tau": float("inf")}, "tau is inf"),
        (LIF, {"tau": float("nan")}, "tau is nan"),
        (LIF, {"tau": "2"}, "tau is '2'"),
        (PLIF, {"init_tau": float("inf")}, "init_tau is inf"),
        (IF, {"v_threshold": float("inf")}, "v_threshold is inf"),
        (IF, {"v_threshold": "1"}, "v_threshold is '1'"),
        (LIF, {"v_reset": float("nan")}, "v_reset is nan"),
        (LIF, {"v_reset": float("-inf")}, "v_reset is -inf"),
        (LIF, {"v_threshold": -1.0}, "v_threshold"),
        (LIF, {"backend": "zz"}, "backend"),
        (IF, {"surrogate_function": "Cosine"}, "surrogate_function"),
    ],
)
def test_bad_arguments(make: type[nn.Module], options: dict[str, object], word: str) -> None:
    with pytest.raises(ArgumentError, match=word):
        make(**options)


def test_input_of_another_shape_names_the_state_that_is_left() -> None:
    layer = LIF()
    layer(currents())
    with pytest.raises(ArgumentError, match=r"v left from the last call has shape \(3, 10\); call reset"):
        layer(currents()[:, :2])
    layer.reset()
    assert layer(currents()[:, :2]).shape == (6, 2, 10)


def test_surrogates_by_name_and_as_functions() -> None:
    assert as_surrogate("Sigmoid") == Sigmoid()
    u = torch.tensor([-1.0, 0.0, 1.0], requires_grad=True)
    ATan(3.0)(u).sum().backward()
    assert ATan(3.0)(u).tolist() == [0, 1, 1]
    torch.testing.assert_close(u.grad, ATan(3.0).gradient(u.detach()))
