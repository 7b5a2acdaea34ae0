"""Dispatch and the public function of the ``lif`` operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from snn_core.kernels.lif import reference
from snn_core.kernels.lif.checks import (
    NATIVE_DTYPES,
    check_output_form,
    check_tensors,
    checked_options,
    refuse_forward_mode,
)
from snn_core.kernels.lif.schema import COMPILED, TRITON, LifOperators, gradients_of
from snn_core.kernels.native import resolve_backend

#: Time steps between saved potentials where a gradient will be needed. On a GPU the h of a chunk lives in registers;
#: on the CPU it lives in the L2 cache, which holds more steps.
GPU_CHECKPOINT_EVERY = 16
CPU_CHECKPOINT_EVERY = 64


class _EagerLif(torch.autograd.Function):
    """The registered autograd formula without torch.library's wrapper, which costs more than a small forward
    (docs/notes/lif.md); compiled graphs and function transforms take the registered one."""

    @staticmethod
    def forward(
        ctx: Any,
        operators: LifOperators,
        x_seq: Tensor,
        v0: Tensor | None,
        reciprocal_tau: Tensor | None,
        options: tuple[Any, ...],  # as one argument: autograd's cost grows with their number
        every: int,
        return_v_seq: bool,
    ) -> tuple[Tensor, ...]:
        with torch._C._AutoDispatchBelowAutograd():
            s_seq, v_last, v_seq, checkpoints = operators.forward(
                x_seq, v0, reciprocal_tau, *options, every, return_v_seq
            )
        ctx.operators, ctx.options, ctx.checkpoint_every, ctx.return_v_seq = operators, options, every, return_v_seq
        ctx.save_for_backward(x_seq, v0, reciprocal_tau, checkpoints)
        ctx.set_materialize_grads(False)
        return (s_seq, v_last, v_seq) if return_v_seq else (s_seq, v_last)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Any, ...]:
        grad_s, grad_v_last = grad_outputs[:2]
        grad_v_seq = grad_outputs[2] if ctx.return_v_seq else None
        if torch.is_grad_enabled():  # create_graph=True: the registered formula refuses a second derivative
            gradients = gradients_of(ctx.operators, ctx, grad_s, grad_v_last, grad_v_seq)
        else:
            with torch._C._AutoDispatchBelowAutograd():
                gradients = gradients_of(ctx.operators, ctx, grad_s, grad_v_last, grad_v_seq)
        return None, *gradients, None, None, None


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
    backend: str = "auto",
    return_v_seq: bool = False,
    pack_spikes_dim: int | None = None,
    inplace: bool = False,
) -> tuple[Tensor, ...]:
    """Leaky integrate-and-fire dynamics over time, forward and surrogate-gradient backward.

    ::

        h[t] = v[t-1] + (x[t] - (v[t-1] - v_reset)) / tau      decay_input=True
        h[t] = v[t-1] - (v[t-1] - v_reset) / tau + x[t]        decay_input=False
        s[t] = 1 if h[t] >= v_threshold else 0
        v[t] = s[t] * v_reset + (1 - s[t]) * h[t]              hard reset
        v[t] = h[t] - s[t] * v_threshold                       soft reset (v_reset=None; the decay then pulls to 0)

    The backward pass recomputes ``h`` from ``x_seq``, so that nothing of its size is kept; for long sequences the
    potential is kept at every 16th (GPU) or 64th (CPU) step. Spikes are the same bits on every backend.

    Args:
        x_seq: input current, ``[T, ...]``, any strides; float32, bfloat16 or float16 (float64 through the reference).
        v0: initial membrane potential ``[...]`` in float32 (float64 for float64 input); default ``v_reset`` or 0.
        tau: membrane time constant in time steps, > 1; ``float("inf")`` with ``decay_input=False`` is the IF neuron.
        reciprocal_tau: learned ``1 / tau`` (a tensor with one element), in place of ``tau``, which then is not used;
            gets a gradient. Its value is not checked: that would wait for the device.
        v_threshold: firing threshold, > 0.
        v_reset: potential after a spike; None subtracts ``v_threshold`` instead.
        decay_input: whether the input is divided by ``tau`` too.
        detach_reset: drop the gradient through the spike in the reset.
        surrogate: derivative of the spike: ``atan``, ``sigmoid``, ``triangle``, ``rectangle``, ``fast_sigmoid``.
        alpha: width parameter of the surrogate (SpikingJelly's ``alpha``), > 0.
        backend: ``auto``, ``cpp`` (CPU), ``cuda``, ``triton`` or ``reference``. ``auto`` takes the reference inside
            ``torch.func.grad``; ``vmap`` alone runs in every backend.
        return_v_seq: also return the membrane potential after reset at every step.
        pack_spikes_dim: return the spikes eight a byte along this dimension of ``x_seq`` (not 0), as
            :func:`snn_core.kernels.pack_spikes` would; only where no gradient is needed.
        inplace: write the spikes over ``x_seq``, which saves their memory; only where no gradient is needed.

    Returns:
        ``s_seq [T, ...]`` (0 or 1, dtype of ``x_seq``; uint8 with ``ceil(K / 8)`` in place of the K elements of the
        packed dimension), ``v_last [...]`` (float32), and with ``return_v_seq`` also ``v_seq [T, ...]`` (dtype of
        ``x_seq``). Every time step of them is laid out in memory as that of ``x_seq``.

    Raises:
        ArgumentError: a shape, dtype, device or value that is not allowed.
        BackendUnavailableError: the backend asked for cannot run here.

    Source: Gerstner et al., Neuronal Dynamics (2014), in the discrete form of SpikingJelly (Fang et al. 2023), whose
    conventions and order of operations are kept.
    """
    check_tensors(x_seq, v0, reciprocal_tau)
    options = checked_options(tau, v_threshold, v_reset, decay_input, detach_reset, surrogate, alpha)
    needs_gradient = torch.is_grad_enabled() and (
        x_seq.requires_grad
        or (v0 is not None and v0.requires_grad)
        or (reciprocal_tau is not None and reciprocal_tau.requires_grad)
    )
    if pack_spikes_dim is not None or inplace:
        pack_spikes_dim = check_output_form(x_seq, pack_spikes_dim, inplace, return_v_seq, needs_gradient)
    if reciprocal_tau is not None and (reciprocal_tau.ndim > 0 or reciprocal_tau.dtype != torch.float32):
        state_dtype = torch.float64 if x_seq.dtype == torch.float64 else torch.float32
        reciprocal_tau = reciprocal_tau.reshape(()).to(state_dtype)
    state = (x_seq, v0, reciprocal_tau)
    if forward_ad._current_level >= 0:
        refuse_forward_mode(*state)
    chosen = _choose_backend(backend, x_seq, needs_gradient, pack_spikes_dim is not None or inplace)
    if chosen == "reference":
        output = reference.lif(
            *state[:2], tau=tau, reciprocal_tau=reciprocal_tau, v_threshold=v_threshold, v_reset=v_reset,
            decay_input=decay_input, detach_reset=detach_reset, surrogate=surrogate, alpha=alpha,
        )  # fmt: skip
        return _reference_form(x_seq, *output, return_v_seq, pack_spikes_dim, inplace)
    operators = TRITON if chosen == "triton" else COMPILED
    if pack_spikes_dim is not None:
        return operators.packed(*state, *options, pack_spikes_dim)
    if inplace:
        return x_seq, operators.inplace(*state, *options)
    return _run(operators, state, options, needs_gradient, return_v_seq)


def _choose_backend(backend: str, x_seq: Tensor, needs_gradient: bool, without_gradient_form: bool) -> str:
    """As :func:`resolve_backend`; inside torch.func's transforms only what takes part in them."""
    chosen = resolve_backend(backend, x_seq.device, x_seq.dtype, NATIVE_DTYPES)
    if not torch._C._are_functorch_transforms_active():
        return chosen
    if without_gradient_form:
        raise NotImplementedError("pack_spikes_dim and inplace of lif take no part in torch.func's transforms")
    if needs_gradient and chosen != "reference":
        if backend != "auto":
            raise NotImplementedError(
                f"backend {backend!r} of lif inside torch.func.grad or vjp: torch.library's operators take no part in "
                "them; use torch.autograd, or backend='reference'"
            )
        return "reference"
    return chosen


def _run(
    operators: LifOperators,
    state: tuple[Tensor, Tensor | None, Tensor | None],
    options: tuple[Any, ...],
    needs_gradient: bool,
    return_v_seq: bool,
) -> tuple[Tensor, ...]:
    """Call the forward operator by the shortest way that keeps the gradient."""
    every = _checkpoint_every(state[0]) if needs_gradient else 0
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        s_seq, v_last, v_seq, _ = operators.forward(*state, *options, every, return_v_seq)
    elif needs_gradient:
        return _EagerLif.apply(operators, *state, options, every, return_v_seq)
    else:
        with torch._C._AutoDispatchBelowAutograd():
            s_seq, v_last, v_seq, _ = operators.forward(*state, *options, every, return_v_seq)
    return (s_seq, v_last, v_seq) if return_v_seq else (s_seq, v_last)


def _checkpoint_every(x_seq: Tensor) -> int:
    return CPU_CHECKPOINT_EVERY if x_seq.is_cpu else GPU_CHECKPOINT_EVERY


def _reference_form(
    x_seq: Tensor, s_seq: Tensor, v_last: Tensor, v_seq: Tensor, return_v_seq: bool, dim: int | None, inplace: bool
) -> tuple[Tensor, ...]:
    """What the reference computed, in the form that was asked for."""
    if dim is not None:
        from snn_core.kernels.spike_pack import reference as spike_pack

        return spike_pack.pack_spikes(s_seq, dim), v_last
    if inplace:
        return x_seq.copy_(s_seq), v_last
    return (s_seq, v_last, v_seq.to(x_seq.dtype)) if return_v_seq else (s_seq, v_last)
