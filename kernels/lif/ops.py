"""Dispatch and the public function of the ``lif`` operator."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from snn_core.errors import ArgumentError
from snn_core.kernels.lif import reference
from snn_core.kernels.lif.schema import COMPILED, OPTION_COUNT, TRITON, LifOperators, gradients_of
from snn_core.kernels.native import resolve_backend
from snn_core.kernels.native.library import may_overlap

NATIVE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FLOAT_DTYPES = (*NATIVE_DTYPES, torch.float64)

#: Time steps between saved potentials where a gradient will be needed. On a GPU the h of a chunk lives in registers;
#: on the CPU it lives in the L2 cache, which holds more steps.
GPU_CHECKPOINT_EVERY = 16
CPU_CHECKPOINT_EVERY = 64


class _EagerLif(torch.autograd.Function):
    """The registered autograd formula without torch.library's wrapper, which costs more than a small forward
    (docs/notes/lif.md); compiled graphs and function transforms take the registered one."""

    @staticmethod
    def forward(
        ctx: Any, operators: LifOperators, x_seq: Tensor, v0: Tensor | None, reciprocal_tau: Tensor | None, *rest: Any
    ) -> tuple[Tensor, ...]:
        with torch._C._AutoDispatchBelowAutograd():
            s_seq, v_last, v_seq, checkpoints = operators.forward(x_seq, v0, reciprocal_tau, *rest)
        *ctx.options, ctx.checkpoint_every, ctx.return_v_seq = rest
        ctx.operators = operators
        ctx.save_for_backward(x_seq, v0, reciprocal_tau, checkpoints if ctx.checkpoint_every > 0 else None)
        ctx.set_materialize_grads(False)
        return (s_seq, v_last, v_seq) if ctx.return_v_seq else (s_seq, v_last)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Any, ...]:
        grad_s, grad_v_last = grad_outputs[:2]
        grad_v_seq = grad_outputs[2] if ctx.return_v_seq else None
        if torch.is_grad_enabled():  # create_graph=True: the registered formula refuses a second derivative
            gradients = gradients_of(ctx.operators, ctx, grad_s, grad_v_last, grad_v_seq)
        else:
            with torch._C._AutoDispatchBelowAutograd():
                gradients = gradients_of(ctx.operators, ctx, grad_s, grad_v_last, grad_v_seq)
        return None, *gradients, *(None,) * (OPTION_COUNT + 2)


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
    _check_tensors(x_seq, v0, reciprocal_tau)
    check_neuron(tau, v_threshold, v_reset, decay_input)
    _check_surrogate(surrogate, alpha)
    needs_gradient = torch.is_grad_enabled() and (
        x_seq.requires_grad
        or (v0 is not None and v0.requires_grad)
        or (reciprocal_tau is not None and reciprocal_tau.requires_grad)
    )
    if pack_spikes_dim is not None or inplace:
        pack_spikes_dim = _check_output_form(x_seq, pack_spikes_dim, inplace, return_v_seq, needs_gradient)
    if reciprocal_tau is not None and (reciprocal_tau.ndim > 0 or reciprocal_tau.dtype != torch.float32):
        state_dtype = torch.float64 if x_seq.dtype == torch.float64 else torch.float32
        reciprocal_tau = reciprocal_tau.reshape(()).to(state_dtype)
    chosen = resolve_backend(backend, x_seq.device, x_seq.dtype, NATIVE_DTYPES)
    transformed = torch._C._are_functorch_transforms_active()
    if forward_ad._current_level >= 0:
        _refuse_forward_mode(x_seq, v0, reciprocal_tau)
    if transformed and (pack_spikes_dim is not None or inplace):
        raise NotImplementedError("pack_spikes_dim and inplace of lif take no part in torch.func's transforms")
    if transformed and needs_gradient and chosen != "reference":
        if backend != "auto":
            raise NotImplementedError(
                f"backend {backend!r} of lif inside torch.func.grad or vjp: torch.library's operators take no part in "
                "them; use torch.autograd, or backend='reference'"
            )
        chosen = "reference"
    if chosen == "reference":
        output = reference.lif(
            x_seq, v0, tau=tau, reciprocal_tau=reciprocal_tau, v_threshold=v_threshold, v_reset=v_reset,
            decay_input=decay_input, detach_reset=detach_reset, surrogate=surrogate, alpha=alpha,
        )  # fmt: skip
        return _reference_form(x_seq, *output, return_v_seq, pack_spikes_dim, inplace)
    operators = TRITON if chosen == "triton" else COMPILED
    state = (x_seq, v0, reciprocal_tau)
    options = (
        tau, v_threshold, v_reset, decay_input, detach_reset, reference.SURROGATE_CODES[surrogate], alpha,
    )  # fmt: skip
    if pack_spikes_dim is not None:
        return operators.packed(*state, *options, pack_spikes_dim)
    if inplace:
        return x_seq, operators.inplace(*state, *options)
    every = _checkpoint_every(x_seq) if needs_gradient else 0
    if transformed or torch.compiler.is_compiling():
        s_seq, v_last, v_seq, _ = operators.forward(*state, *options, every, return_v_seq)
    elif needs_gradient:
        return _EagerLif.apply(operators, *state, *options, every, return_v_seq)
    else:
        with torch._C._AutoDispatchBelowAutograd():
            s_seq, v_last, v_seq, _ = operators.forward(*state, *options, every, return_v_seq)
    return (s_seq, v_last, v_seq) if return_v_seq else (s_seq, v_last)


def _refuse_forward_mode(*inputs: Tensor | None) -> None:
    if any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in inputs):
        raise NotImplementedError(
            "lif has no forward-mode derivative (torch.func.jvp, jacfwd, forward_ad); use reverse mode"
        )


def _checkpoint_every(x_seq: Tensor) -> int:
    return CPU_CHECKPOINT_EVERY if x_seq.device.type == "cpu" else GPU_CHECKPOINT_EVERY


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


def _check_output_form(
    x_seq: Tensor, dim: int | None, inplace: bool, return_v_seq: bool, needs_gradient: bool
) -> int | None:
    name = "inplace" if dim is None else "pack_spikes_dim"
    if dim is not None and inplace:
        raise ArgumentError("pack_spikes_dim and inplace are both given; packed spikes do not fit over x_seq")
    if return_v_seq:
        raise ArgumentError(f"return_v_seq is True and {name} is given; only s_seq and v_last can be had with it")
    if needs_gradient:
        raise ArgumentError(
            f"{name} is given where a gradient is needed: "
            + ("the backward needs x_seq unchanged" if inplace else "packed spikes carry no gradient")
            + "; call lif under torch.no_grad(), or without it"
        )
    if inplace and x_seq.requires_grad and x_seq.is_leaf:
        raise ArgumentError("inplace is True and x_seq is a leaf that requires a gradient; detach it first")
    if inplace and may_overlap(x_seq):
        raise ArgumentError(
            f"inplace is True and elements of x_seq share memory (shape {tuple(x_seq.shape)}, strides {x_seq.stride()})"
        )
    if dim is None:
        return None
    if not isinstance(dim, int):
        raise ArgumentError(f"pack_spikes_dim is {dim!r}; it must be an integer")
    if not -x_seq.ndim <= dim < x_seq.ndim or dim % x_seq.ndim == 0:
        raise ArgumentError(
            f"pack_spikes_dim is {dim}; it must name a dimension of x_seq {tuple(x_seq.shape)} after the first"
        )
    return dim % x_seq.ndim


def _check_tensors(x_seq: Tensor, v0: Tensor | None, reciprocal_tau: Tensor | None) -> None:
    if not isinstance(x_seq, Tensor):
        raise ArgumentError(f"x_seq is a {type(x_seq).__name__}; it must be a torch.Tensor")
    if x_seq.dtype not in FLOAT_DTYPES:
        raise ArgumentError(f"x_seq has dtype {x_seq.dtype}; allowed: {', '.join(map(str, FLOAT_DTYPES))}")
    if x_seq.layout is not torch.strided or x_seq.device.type == "meta":
        raise ArgumentError(
            f"x_seq has layout {x_seq.layout} on device {x_seq.device}; it must be a strided tensor with data"
        )
    if x_seq.ndim < 1 or x_seq.shape[0] < 1:
        raise ArgumentError(f"x_seq has shape {tuple(x_seq.shape)}; it needs a leading time dimension of at least 1")
    if v0 is not None:
        if not isinstance(v0, Tensor):
            raise ArgumentError(f"v0 is a {type(v0).__name__}; it must be a torch.Tensor")
        state_dtype = torch.float64 if x_seq.dtype == torch.float64 else torch.float32
        if (
            v0.shape != x_seq.shape[1:]
            or v0.dtype != state_dtype
            or v0.device != x_seq.device
            or v0.layout is not torch.strided
        ):
            raise ArgumentError(
                f"v0 is {v0.dtype} {tuple(v0.shape)} ({v0.layout}) on {v0.device}; for this x_seq it must be "
                f"{state_dtype} {tuple(x_seq.shape[1:])} (torch.strided) on {x_seq.device}"
            )
    if reciprocal_tau is not None and not isinstance(reciprocal_tau, Tensor):
        raise ArgumentError(f"reciprocal_tau is a {type(reciprocal_tau).__name__}; it must be a torch.Tensor")
    if reciprocal_tau is not None and (
        reciprocal_tau.numel() != 1
        or reciprocal_tau.device != x_seq.device
        or not reciprocal_tau.is_floating_point()
        or reciprocal_tau.layout is not torch.strided
    ):
        raise ArgumentError(
            f"reciprocal_tau is {reciprocal_tau.dtype} {tuple(reciprocal_tau.shape)} on {reciprocal_tau.device}; it "
            f"must hold one floating-point element on {x_seq.device}"
        )


def check_neuron(tau: float, v_threshold: float, v_reset: float | None, decay_input: bool) -> None:
    """Raise ArgumentError for parameters that no neuron has."""
    # Comparisons alone: torch.compile traces no math.isfinite() of a symbolic number.
    for name, value in (("tau", tau), ("v_threshold", v_threshold), ("v_reset", v_reset)):
        if not isinstance(value, (int, float)) and not (name == "v_reset" and value is None):
            raise ArgumentError(f"{name} is {value!r}; it must be a number")
    if not tau > 1:
        raise ArgumentError(f"tau is {tau}; it must be greater than 1")
    if decay_input and tau == math.inf:
        raise ArgumentError(
            "tau is inf with decay_input=True, which ignores the input; decay_input=False is the IF neuron"
        )
    if not 0 < v_threshold < math.inf:
        raise ArgumentError(f"v_threshold is {v_threshold}; it must be positive and finite")
    if v_reset is not None and not -math.inf < v_reset < math.inf:
        raise ArgumentError(f"v_reset is {v_reset}; it must be finite, or None for soft reset")


def _check_surrogate(surrogate: str, alpha: float) -> None:
    if surrogate not in reference.SURROGATE_CODES:
        raise ArgumentError(f"surrogate is {surrogate!r}; allowed: {', '.join(reference.SURROGATE_CODES)}")
    if not isinstance(alpha, (int, float)):
        raise ArgumentError(f"alpha is {alpha!r}; it must be a number")
    if not 0 < alpha < math.inf:
        raise ArgumentError(f"alpha is {alpha}; it must be positive and finite")
