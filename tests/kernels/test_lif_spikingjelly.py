"""SpikingJelly as a second opinion: equal spikes, equal gradients, over every combination of options."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

import snn_core
from snn_core import surrogate as ours

neuron = pytest.importorskip("spikingjelly.activation_based.neuron", reason="SpikingJelly is not installed")
theirs = pytest.importorskip("spikingjelly.activation_based.surrogate")

SURROGATES = ["ATan", "Sigmoid", "PiecewiseQuadratic", "Rect", "SuperSpike"]
OPTIONS = list(itertools.product((True, False), (0.0, None, -0.4), (0.7, 1.0)))


def pair(kind: str, surrogate: str, **options: Any) -> tuple[Any, Any]:
    mine = {**options, "surrogate_function": getattr(ours, surrogate)(), "step_mode": "m"}
    other = {**options, "surrogate_function": getattr(theirs, surrogate)(), "step_mode": "m"}
    if kind == "lif":
        return snn_core.LIF(**mine), neuron.LIFNode(**other)
    if kind == "plif":
        return snn_core.PLIF(**mine), neuron.ParametricLIFNode(**other)
    return snn_core.IF(**mine), neuron.IFNode(**other)


def assert_agree(mine: Any, other: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(7, 5, 33, generator=generator) * 2
    weight = torch.randn(7, 5, 33, generator=generator)
    inputs = [base.clone().requires_grad_() for _ in range(2)]
    outputs = [mine(inputs[0]), other(inputs[1])]
    assert torch.equal(*outputs)
    assert torch.equal(mine.v, other.v)
    for output in outputs:
        (output * weight).sum().backward()
    difference = torch.linalg.vector_norm(inputs[0].grad - inputs[1].grad)
    assert difference <= 1e-5 * torch.linalg.vector_norm(inputs[1].grad)
    for mine_parameter, other_parameter in zip(mine.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine_parameter.grad, other_parameter.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("kind", ["lif", "plif"])
def test_leaky_neurons(kind: str, backend: str, surrogate: str) -> None:
    for number, (detach_reset, v_reset, v_threshold) in enumerate(OPTIONS):
        for decay_input in (True, False):
            mine, other = pair(
                kind, surrogate, decay_input=decay_input, v_threshold=v_threshold, v_reset=v_reset,
                detach_reset=detach_reset,
            )  # fmt: skip
            mine.backend = backend
            assert_agree(mine, other, number)


@pytest.mark.parametrize("tau", [1.1, 2.0, 3.7, 100.0])
def test_time_constants(tau: float) -> None:
    assert_agree(*pair("lif", "ATan", tau=tau), seed=1)


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_integrate_and_fire(surrogate: str) -> None:
    for number, (detach_reset, v_reset, v_threshold) in enumerate(OPTIONS):
        assert_agree(
            *pair("if", surrogate, v_threshold=v_threshold, v_reset=v_reset, detach_reset=detach_reset), number
        )


def test_two_calls_carry_the_state_on_and_v_seq_agrees() -> None:
    mine, other = pair("lif", "ATan", tau=3.0)
    mine.store_v_seq = other.store_v_seq = True
    for seed in (0, 1):
        x = torch.randn(4, 50, generator=torch.Generator().manual_seed(seed)) * 2
        assert torch.equal(mine(x), other(x))
        assert torch.equal(mine.v_seq, other.v_seq)


def test_spikingjelly_surrogates_are_taken_as_they_are() -> None:
    for name in SURROGATES:
        layer = snn_core.LIF(surrogate_function=getattr(theirs, name)(alpha=3.0))
        assert layer.surrogate_function == getattr(ours, name)(alpha=3.0)
