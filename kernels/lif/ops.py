"""The ``lif`` operator: schema, fake kernels, autograd, dispatch and the public function."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from snn_core.errors import ArgumentError
from snn_core.kernels.lif import reference
from snn_core.kernels.native import resolve_backend

NATIVE_DTYPES = (torch.float32, torch.bfloat16)
FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

_OPTIONS = (
    "float tau, float v_threshold, float? v_reset, bool decay_input, bool detach_reset, int surrogate, float alpha"
)
_LIBRARY = torch.library.Library("snn_core", "FRAGMENT")
_LIBRARY.define(
    f"lif(Tensor x_seq, Tensor? v0, Tensor? reciprocal_tau, {_OPTIONS}, bool return_v_seq) -> (Tensor, Tensor, Tensor)"
)
_LIBRARY.define(
    "lif_backward(Tensor? grad_s, Tensor? grad_v_last, Tensor? grad_v_seq, Tensor x_seq, Tensor? v0, "
    f"Tensor? reciprocal_tau, {_OPTIONS}) -> (Tensor, Tensor, Tensor)"
)


def _empty_sequence_like(x_seq: Tensor) -> Tensor:
    """[T, ...] with the layout of one time step of ``x_seq`` inside and time outermost."""
    step = torch.empty_like(x_seq[0])
    return x_seq.new_empty_strided(x_seq.shape, (step.numel(), *step.stride()))


@torch.library.register_fake("snn_core::lif", lib=_LIBRARY)
def _lif_fake(x_seq: Tensor, v0: Any, reciprocal_tau: Any, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    return_v_seq = options[-1]
    v_seq = _empty_sequence_like(x_seq) if return_v_seq else x_seq.new_empty(0)
    return _empty_sequence_like(x_seq), torch.empty_like(x_seq[0], dtype=torch.float32), v_seq


@torch.library.register_fake("snn_core::lif_backward", lib=_LIBRARY)
def _lif_backward_fake(
    grad_s: Any, grad_v_last: Any, grad_v_seq: Any, x_seq: Tensor, v0: Any, reciprocal_tau: Any, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    grad_v0 = torch.empty_like(x_seq[0], dtype=torch.float32)
    return _empty_sequence_like(x_seq), grad_v0, x_seq.new_empty((), dtype=torch.float32)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x_seq, v0, reciprocal_tau, *options = inputs
    ctx.save_for_backward(x_seq, v0, reciprocal_tau)
    *ctx.options, ctx.return_v_seq = options
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, grad_s: Tensor | None, grad_v_last: Tensor | None, grad_v_seq: Tensor | None
) -> tuple[Any, ...]:
    x_seq, v0, reciprocal_tau = ctx.saved_tensors
    nothing = (None,) * 8
    if not ctx.return_v_seq:
        grad_v_seq = None  # of the empty tensor that stands for it
    if grad_s is None and grad_v_last is None and grad_v_seq is None:
        return None, None, None, *nothing
    grad_x, grad_v0, grad_reciprocal_tau = torch.ops.snn_core.lif_backward(
        grad_s, grad_v_last, grad_v_seq, x_seq, v0, reciprocal_tau, *ctx.options
    )
    return (
        grad_x,
        None if v0 is None else grad_v0,
        None if reciprocal_tau is None else grad_reciprocal_tau,
        *nothing,
    )


torch.library.register_autograd("snn_core::lif", _backward, setup_context=_setup_context, lib=_LIBRARY)


def _refuse_double_backward(ctx: Any, *gradients: Any) -> Any:
    raise RuntimeError(
        "the surrogate gradient of lif is not differentiated again (double backward); use backend='reference' for it"
    )


torch.library.register_autograd("snn_core::lif_backward", _refuse_double_backward, lib=_LIBRARY)


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
) -> tuple[Tensor, ...]:
    """Leaky integrate-and-fire dynamics over time, forward and surrogate-gradient backward.

    ::

        h[t] = v[t-1] + (x[t] - (v[t-1] - v_reset)) / tau      decay_input=True
        h[t] = v[t-1] - (v[t-1] - v_reset) / tau + x[t]        decay_input=False
        s[t] = 1 if h[t] >= v_threshold else 0
        v[t] = s[t] * v_reset + (1 - s[t]) * h[t]              hard reset
        v[t] = h[t] - s[t] * v_threshold                       soft reset (v_reset=None; the decay then pulls to 0)

    The backward pass recomputes ``h`` from ``x_seq``, so that nothing of its size is kept.

    Args:
        x_seq: input current, ``[T, ...]``, any strides; float32 and bfloat16 in native code, float16 and float64
            through the reference.
        v0: initial membrane potential ``[...]`` in float32 (float64 for float64 input); default ``v_reset`` or 0.
        tau: membrane time constant in time steps, >= 1; ``float("inf")`` with ``decay_input=False`` is the IF neuron.
        reciprocal_tau: learned ``1 / tau`` (a tensor with one element), in place of ``tau``; gets a gradient.
        v_threshold: firing threshold, > 0.
        v_reset: potential after a spike; None subtracts ``v_threshold`` instead.
        decay_input: whether the input is divided by ``tau`` too.
        detach_reset: drop the gradient through the spike in the reset.
        surrogate: derivative of the spike: ``atan``, ``sigmoid``, ``triangle``, ``rectangle``, ``fast_sigmoid``.
        alpha: width parameter of the surrogate (SpikingJelly's ``alpha``), > 0.
        backend: ``auto``, ``cpp`` or ``reference``.
        return_v_seq: also return the membrane potential after reset at every step.

    Returns:
        ``s_seq [T, ...]`` (0 or 1, dtype of ``x_seq``), ``v_last [...]`` (float32), and with ``return_v_seq`` also
        ``v_seq [T, ...]`` (dtype of ``x_seq``).

    Raises:
        ArgumentError: a shape, dtype or value that is not allowed.
        BackendUnavailableError: the backend asked for cannot run here.

    Source: Gerstner et al., Neuronal Dynamics (2014), in the discrete form of SpikingJelly (Fang et al. 2023), whose
    conventions and order of operations are kept.
    """
    _check(x_seq, v0, tau, reciprocal_tau, v_threshold, surrogate, alpha)
    if reciprocal_tau is not None:
        state_dtype = torch.float64 if x_seq.dtype == torch.float64 else torch.float32
        reciprocal_tau = reciprocal_tau.reshape(()).to(state_dtype)
    chosen = resolve_backend(backend, x_seq.device, x_seq.dtype, NATIVE_DTYPES)
    if chosen == "reference":
        s_seq, v_last, v_seq = reference.lif(
            x_seq, v0, tau=tau, reciprocal_tau=reciprocal_tau, v_threshold=v_threshold, v_reset=v_reset,
            decay_input=decay_input, detach_reset=detach_reset, surrogate=surrogate, alpha=alpha,
        )  # fmt: skip
        v_seq = v_seq.to(x_seq.dtype)
    else:
        s_seq, v_last, v_seq = torch.ops.snn_core.lif(
            x_seq, v0, reciprocal_tau, tau, v_threshold, v_reset, decay_input, detach_reset,
            reference.SURROGATE_CODES[surrogate], alpha, return_v_seq,
        )  # fmt: skip
    return (s_seq, v_last, v_seq) if return_v_seq else (s_seq, v_last)


def _check(
    x_seq: Tensor, v0: Tensor | None, tau: float, reciprocal_tau: Tensor | None, v_threshold: float, surrogate: str,
    alpha: float,
) -> None:  # fmt: skip
    if x_seq.dtype not in FLOAT_DTYPES:
        raise ArgumentError(f"x_seq has dtype {x_seq.dtype}; allowed: {', '.join(map(str, FLOAT_DTYPES))}")
    if x_seq.ndim < 1 or x_seq.shape[0] < 1:
        raise ArgumentError(f"x_seq has shape {tuple(x_seq.shape)}; it needs a leading time dimension of at least 1")
    if v0 is not None:
        state_dtype = torch.float64 if x_seq.dtype == torch.float64 else torch.float32
        if v0.shape != x_seq.shape[1:] or v0.dtype != state_dtype or v0.device != x_seq.device:
            raise ArgumentError(
                f"v0 is {v0.dtype} {tuple(v0.shape)} on {v0.device}; for this x_seq it must be "
                f"{state_dtype} {tuple(x_seq.shape[1:])} on {x_seq.device}"
            )
    if reciprocal_tau is not None and (reciprocal_tau.numel() != 1 or reciprocal_tau.device != x_seq.device):
        raise ArgumentError(
            f"reciprocal_tau has shape {tuple(reciprocal_tau.shape)} on {reciprocal_tau.device}; it must hold one "
            f"element on {x_seq.device}"
        )
    if not tau >= 1:
        raise ArgumentError(f"tau is {tau}; it must be at least 1")
    if not v_threshold > 0:
        raise ArgumentError(f"v_threshold is {v_threshold}; it must be positive")
    if surrogate not in reference.SURROGATE_CODES:
        raise ArgumentError(f"surrogate is {surrogate!r}; allowed: {', '.join(reference.SURROGATE_CODES)}")
    if not alpha > 0:
        raise ArgumentError(f"alpha is {alpha}; it must be positive")
