"""Leaky integrate-and-fire dynamics in plain torch: the oracle of every test, differentiable by autograd.

Arithmetic and its order are SpikingJelly 2.0's, so that spikes agree bit for bit. Equations: docs/methods.md and
``lif.h`` beside this file.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

#: Name -> code in ``lif.h``.
SURROGATE_CODES = {"atan": 0, "sigmoid": 1, "triangle": 2, "rectangle": 3, "fast_sigmoid": 4}


def surrogate_gradient(u: Tensor, surrogate: str, alpha: float) -> Tensor:
    """Derivative that stands in for that of the Heaviside step at ``u = h - v_threshold`` (same shape and dtype)."""
    if surrogate == "atan":
        return (alpha / 2) / (1 + (math.pi / 2 * alpha * u).square())
    if surrogate == "sigmoid":
        s = torch.sigmoid(alpha * u)
        return alpha * s * (1 - s)
    if surrogate == "triangle":
        return torch.where(u.abs() > 1 / alpha, torch.zeros_like(u), alpha - alpha * alpha * u.abs())
    if surrogate == "rectangle":
        return torch.where(u.abs() < 0.5 / alpha, torch.full_like(u, alpha), torch.zeros_like(u))
    if surrogate == "fast_sigmoid":
        return alpha / (1 + u.abs()).square()
    raise ValueError(f"unknown surrogate {surrogate!r}; known: {', '.join(SURROGATE_CODES)}")


class _SurrogateSpike(torch.autograd.Function):
    generate_vmap_rule = True  # serves torch.func too

    @staticmethod
    def forward(u: Tensor, surrogate: str, alpha: float) -> Tensor:
        return (u >= 0).to(u.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        u, ctx.surrogate, ctx.alpha = inputs
        ctx.save_for_backward(u)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (u,) = ctx.saved_tensors
        return grad_outputs[0] * surrogate_gradient(u, ctx.surrogate, ctx.alpha), None, None


def spike(u: Tensor, surrogate: str, alpha: float) -> Tensor:
    """Heaviside step of ``u`` (1 where ``u >= 0``) with the surrogate's derivative."""
    return _SurrogateSpike.apply(u, surrogate, alpha)


def lif(
    x_seq: Tensor,
    v0: Tensor | None = None,
    *,
    tau: float = 2.0,
    reciprocal_tau: Tensor | None = None,
    v_threshold: float = 1.0,
    v_reset: float | None = 0.0,
    decay_input: bool = True,
    detach_reset: bool = False,
    surrogate: str = "atan",
    alpha: float = 2.0,
    spike_function: Callable[[Tensor, str, float], Tensor] = spike,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the neuron over ``x_seq [T, ...]``; arguments as in :func:`snn_core.kernels.lif`.

    ``spike_function`` replaces the step (the tests pass a smooth one, whose derivative the surrogate then truly is).

    Returns:
        ``s_seq [T, ...]`` in the dtype of ``x_seq``; ``v_last [...]`` and ``v_seq [T, ...]`` in the state's dtype
        (float32, or float64 for float64 input): the membrane potential after reset.
    """
    state_dtype = torch.float64 if x_seq.dtype == torch.float64 else torch.float32
    reset = 0.0 if v_reset is None else v_reset
    v = torch.full_like(x_seq[0], reset, dtype=state_dtype) if v0 is None else v0.to(state_dtype)
    # A tensor, because torch on CUDA multiplies by the reciprocal of a number, which rounds differently.
    divisor = torch.full((), tau, dtype=state_dtype, device=x_seq.device)
    largest = torch.finfo(state_dtype).max
    spikes, potentials = [], []
    for x in x_seq.to(state_dtype):
        leak = v - reset
        drive = x - leak if decay_input else leak
        scaled = drive / divisor if reciprocal_tau is None else drive * reciprocal_tau.to(state_dtype)
        h = v + scaled if decay_input else v - scaled + x
        s = spike_function(h - v_threshold, surrogate, alpha)
        gate = s.detach() if detach_reset else s
        # An infinite h spikes and is reset; only the product 0 * inf must not make it NaN.
        kept = torch.where(h > largest, largest, h)
        v = h - gate * v_threshold if v_reset is None else gate * v_reset + (1 - gate) * kept
        spikes.append(s.to(x_seq.dtype))
        potentials.append(v)
    return torch.stack(spikes), v, torch.stack(potentials)
