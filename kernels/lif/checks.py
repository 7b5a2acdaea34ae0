"""What the ``lif`` operator refuses, and the options of a neuron in the order of the schema."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from snn_core.errors import ArgumentError
from snn_core.kernels.lif.reference import SURROGATE_CODES
from snn_core.kernels.native.library import may_overlap

NATIVE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FLOAT_DTYPES = (*NATIVE_DTYPES, torch.float64)
#: Options that were checked before. A network has few of them and calls with them at every layer and step.
_CHECKED: dict[tuple[Any, ...], tuple[Any, ...]] = {}
_MOST_CHECKED = 1024


def checked_options(*neuron: Any) -> tuple[Any, ...]:
    """Check ``(tau, v_threshold, v_reset, decay_input, detach_reset, surrogate, alpha)`` and give them as the schema's
    OPTIONS: the surrogate by its code. Raises ArgumentError for what no neuron has."""
    if not torch.compiler.is_compiling():
        try:
            return _CHECKED[neuron]
        except (KeyError, TypeError):  # new, or not hashable, which the checks name
            pass
    tau, v_threshold, v_reset, decay_input, detach_reset, surrogate, alpha = neuron
    check_neuron(tau, v_threshold, v_reset, decay_input)
    check_surrogate(surrogate, alpha)
    options = (tau, v_threshold, v_reset, decay_input, detach_reset, SURROGATE_CODES[surrogate], alpha)
    if not torch.compiler.is_compiling():
        if len(_CHECKED) >= _MOST_CHECKED:
            _CHECKED.clear()
        _CHECKED[neuron] = options
    return options


def refuse_forward_mode(*inputs: Tensor | None) -> None:
    """Raise NotImplementedError where an input carries a tangent."""
    if any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in inputs):
        raise NotImplementedError(
            "lif has no forward-mode derivative (torch.func.jvp, jacfwd, forward_ad); use reverse mode"
        )


def check_output_form(
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


def check_tensors(x_seq: Tensor, v0: Tensor | None, reciprocal_tau: Tensor | None) -> None:
    if not isinstance(x_seq, Tensor):
        raise ArgumentError(f"x_seq is a {type(x_seq).__name__}; it must be a torch.Tensor")
    if x_seq.dtype not in FLOAT_DTYPES:
        raise ArgumentError(f"x_seq has dtype {x_seq.dtype}; allowed: {', '.join(map(str, FLOAT_DTYPES))}")
    if x_seq.layout is not torch.strided or x_seq.is_meta:
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


def check_surrogate(surrogate: str, alpha: float) -> None:
    if surrogate not in SURROGATE_CODES:
        raise ArgumentError(f"surrogate is {surrogate!r}; allowed: {', '.join(SURROGATE_CODES)}")
    if not isinstance(alpha, (int, float)):
        raise ArgumentError(f"alpha is {alpha!r}; it must be a number")
    if not 0 < alpha < math.inf:
        raise ArgumentError(f"alpha is {alpha}; it must be positive and finite")
