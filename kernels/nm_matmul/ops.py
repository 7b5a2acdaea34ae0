"""The public functions on N:M weights: products, convolutions, and both with LIF behind them."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from snn_core.errors import ArgumentError, BackendUnavailableError
from snn_core.kernels.lif import lif
from snn_core.kernels.native import BACKENDS, wanted_backend
from snn_core.kernels.nm_compress.compressed import CompressedNM
from snn_core.kernels.nm_matmul import plans, reference
from snn_core.kernels.nm_matmul.candidates import MORE_BACKENDS, Explanation, Problem, solve
from snn_core.kernels.nm_matmul.operands import (
    Pair,
    Weight,
    check_convolution,
    check_input,
    check_out_dtype,
    check_pair,
    check_weight,
)
from snn_core.kernels.spike_pack.packed import PackedSpikes

Activations = Tensor | PackedSpikes
_is_compiling = torch.compiler.is_compiling  # found once: asked in every call


@overload
def nm_matmul(
    x: Activations,
    weight: Tensor | CompressedNM,
    bias: Tensor | None = ...,
    *,
    out_dtype: torch.dtype | None = ...,
    backend: str = ...,
    explain: Literal[False] = ...,
) -> Tensor: ...
@overload
def nm_matmul(
    x: Activations,
    weight: Tensor | CompressedNM,
    bias: Tensor | None = ...,
    *,
    out_dtype: torch.dtype | None = ...,
    backend: str = ...,
    explain: Literal[True],
) -> tuple[Tensor, Explanation]: ...
def nm_matmul(
    x: Activations,
    weight: Tensor | CompressedNM,
    bias: Tensor | None = None,
    *,
    out_dtype: torch.dtype | None = None,
    backend: str = "auto",
    explain: bool = False,
) -> Tensor | tuple[Tensor, Explanation]:
    """Matrix product ``x @ weight.T + bias`` with a dense or N:M sparse weight and dense or packed activations.

    The fastest way that is there is taken, the dense product included: measured once per shape, pattern, type and
    firing rate (to a factor of 2), then remembered (:mod:`snn_core.kernels.nm_matmul.dispatch`). For dense activations
    that may be torch's product with a dense copy of the compressed weight, which is then kept as long as the weight
    (``dense:kept``, or in oneDNN's order ``dense:onednn``); the environment variable SNN_KEEP_DENSE=0 forbids it.

    Args:
        x: dense activations ``[..., K]`` (float32, bfloat16, float16; float64 through the reference), or spikes:
            :class:`PackedSpikes` or the uint8 tensor ``[..., ceil(K / 8)]`` of :func:`pack_spikes`.
        weight: ``[O, K]``, dense or :class:`CompressedNM`.
        bias: ``[O]``.
        out_dtype: of the result; default that of dense ``x``, and float32 for spikes. Sums are float32.
        backend: ``auto``, ``cpp`` (CPU), ``cuda``, ``triton``, ``torch`` (torch's semi-structured kernels, CUDA),
            ``dense`` (torch on the dense weight) or ``reference``.
        explain: also return what was taken and why.

    Returns:
        ``[..., O]``; with ``explain`` also an :class:`Explanation`.

    Gradients: to dense ``x``, to ``bias``, to a dense ``weight`` and to the kept values of a compressed one (where they
    require it), through torch's product on the dense weight. Under autocast dense ``x`` and the weight are cast as by
    ``torch.nn.functional.linear``.

    Raises:
        ArgumentError: an argument of another type, shape, dtype or device than allowed.
        BackendUnavailableError: the backend asked for cannot run here or on these arguments.
    """
    if not explain and not _is_compiling():
        planned = plans.run(x, weight, bias, None, out_dtype, backend)
        if planned is not None:
            return planned
    operand = check_weight(weight, bias, dims=2)
    x = check_input(x, operand)
    dtype = check_out_dtype(out_dtype, x)
    if _needs_gradient(x, operand) or _autocasts(x):
        _check_differentiable(backend)
        y = _dense_product(x, operand, None, out_dtype)
        return (y, Explanation("dense", "gradient or autocast", {})) if explain else y
    y, explanation = solve(Problem(x, operand, dtype), backend)
    plans.remember(x, operand, None, None, dtype, backend, explanation)
    return (y, explanation) if explain else y


def nm_conv2d(
    x: Activations,
    weight: Tensor | CompressedNM,
    bias: Tensor | None = None,
    stride: int | Pair = 1,
    padding: int | Pair = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
    *,
    out_dtype: torch.dtype | None = None,
    backend: str = "auto",
    explain: bool = False,
) -> Any:
    """Convolution with a dense or N:M sparse weight of dense or packed images.

    Args:
        x: dense ``[..., C, H, W]`` (at least one dimension before C), or spikes: :class:`PackedSpikes` with
            ``channels_last=True``, or uint8 ``[..., H, W, ceil(C / 8)]``.
        weight: ``[O, C / groups, kh, kw]``, dense or :class:`CompressedNM`.
        bias: ``[O]``.
        stride, padding, dilation: integers or pairs (height, width); zero padding.
        groups: divides C and O.
        out_dtype, backend, explain: as in :func:`nm_matmul`.

    Returns:
        ``[..., O, OH, OW]``, channels-last in memory where it was computed by this package; with ``explain`` also an
        :class:`Explanation`.

    Raises:
        ArgumentError, BackendUnavailableError: as :func:`nm_matmul`.
    """
    given = (stride, padding, dilation, groups)
    if not explain and not _is_compiling():
        planned = plans.run(x, weight, bias, given, out_dtype, backend)
        if planned is not None:
            return planned
    x, operand, convolution = _checked_convolution(x, weight, bias, stride, padding, dilation, groups)
    dtype = check_out_dtype(out_dtype, x)
    if _needs_gradient(x, operand) or _autocasts(x):
        _check_differentiable(backend)
        y = _dense_product(x, operand, convolution, out_dtype)
        return (y, Explanation("dense", "gradient or autocast", {})) if explain else y
    y, explanation = solve(Problem(x, operand, dtype, convolution), backend)
    plans.remember(x, operand, given, convolution, dtype, backend, explanation)
    return (y, explanation) if explain else y


def nm_matmul_lif(
    x: PackedSpikes | Tensor,
    weight: Tensor | CompressedNM,
    bias: Tensor | None = None,
    v0: Tensor | None = None,
    *,
    tau: float = 2.0,
    v_threshold: float = 1.0,
    v_reset: float | None = 0.0,
    decay_input: bool = True,
    packed: bool = True,
    out_dtype: torch.dtype = torch.float32,
    backend: str = "auto",
) -> tuple[PackedSpikes | Tensor, Tensor]:
    """:func:`nm_matmul` over ``[T, ..., K]`` followed by :func:`lif`, for inference: where it is compiled, the
    pre-activations of a layer never reach memory.

    Args:
        x, weight, bias: as in :func:`nm_matmul`; the first dimension of ``x`` is time.
        v0: initial membrane potential ``[..., O]`` float32; default ``v_reset`` or 0.
        tau, v_threshold, v_reset, decay_input: as in :func:`lif`.
        packed: return the spikes packed along their last dimension.
        out_dtype: of spikes that are not packed.
        backend: as in :func:`nm_matmul`.

    Returns:
        Spikes ``[T, ..., O]`` and the last potential ``[..., O]`` (float32).

    Raises:
        ArgumentError, BackendUnavailableError: as :func:`nm_matmul` and :func:`lif`.
    """
    neuron = {"tau": tau, "v_threshold": v_threshold, "v_reset": v_reset, "decay_input": decay_input}
    problem = None if _is_compiling() else plans.fused(x, weight, bias, None, packed, backend)
    if problem is not None:
        return _fused(problem, v0, neuron, packed, out_dtype)
    operand = check_weight(weight, bias, dims=2)
    problem = Problem(check_input(x, operand), operand, torch.float32)
    return _with_lif(problem, None, v0, neuron, packed, out_dtype, backend)


def nm_conv2d_lif(
    x: PackedSpikes | Tensor,
    weight: Tensor | CompressedNM,
    bias: Tensor | None = None,
    stride: int | Pair = 1,
    padding: int | Pair = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
    v0: Tensor | None = None,
    *,
    tau: float = 2.0,
    v_threshold: float = 1.0,
    v_reset: float | None = 0.0,
    decay_input: bool = True,
    packed: bool = True,
    out_dtype: torch.dtype = torch.float32,
    backend: str = "auto",
) -> tuple[PackedSpikes | Tensor, Tensor]:
    """:func:`nm_conv2d` over ``[T, ..., C, H, W]`` followed by :func:`lif`; see :func:`nm_matmul_lif`.

    Returns:
        Spikes ``[T, ..., O, OH, OW]`` (packed: channels last) and the last potential ``[..., O, OH, OW]`` (float32).
    """
    neuron = {"tau": tau, "v_threshold": v_threshold, "v_reset": v_reset, "decay_input": decay_input}
    given = (stride, padding, dilation, groups)
    problem = None if _is_compiling() else plans.fused(x, weight, bias, given, packed, backend)
    if problem is not None:
        return _fused(problem, v0, neuron, packed, out_dtype)
    x, operand, convolution = _checked_convolution(x, weight, bias, *given)
    problem = Problem(x, operand, torch.float32, convolution)
    return _with_lif(problem, given, v0, neuron, packed, out_dtype, backend)


def _checked_convolution(
    x: Activations,
    weight: Tensor | CompressedNM,
    bias: Tensor | None,
    stride: int | Pair,
    padding: int | Pair,
    dilation: int | Pair,
    groups: int,
) -> tuple[Activations, Weight, tuple[Pair, Pair, Pair, int]]:
    operand = check_weight(weight, bias, dims=4)
    if not isinstance(groups, int) or isinstance(groups, bool) or groups < 1:
        raise ArgumentError(f"groups is {groups!r}; it must be a positive integer")
    x = check_input(x, operand, groups)
    pairs = (
        check_pair(stride, "stride", 1),
        check_pair(padding, "padding", 0),
        check_pair(dilation, "dilation", 1),
    )
    check_convolution(x, operand, *pairs, groups)
    return x, operand, (*pairs, groups)


def _with_lif(
    problem: Problem,
    given: Any,
    v0: Tensor | None,
    neuron: dict[str, Any],
    packed: bool,
    out_dtype: torch.dtype,
    backend: str,
) -> tuple[PackedSpikes | Tensor, Tensor]:
    """``given``: options of the convolution as the caller gave them."""
    x, weight, convolution = problem.x, problem.weight, problem.convolution
    if not problem.lead_shape or problem.lead_shape[0] == 0:
        raise ArgumentError(f"x has shape {list(x.shape)}; it needs a time dimension of at least 1 before the others")
    if isinstance(x, PackedSpikes) and problem.fuses(backend, packed):
        plans.remember_fused(problem, given, packed, backend)
        return _fused(problem, v0, neuron, packed, out_dtype)
    if _needs_gradient(x, weight):
        raise ArgumentError("nm_matmul_lif and nm_conv2d_lif are for inference; call them under torch.no_grad()")
    _check_state(v0, problem)
    current, _ = solve(problem, backend)
    spikes, v_last = lif(current, v0, **neuron, backend=backend if backend in ("reference", "cpp", "cuda") else "auto")
    spikes = spikes.to(out_dtype)
    if not packed:
        return spikes, v_last
    return PackedSpikes.from_dense(spikes, -1 if convolution is None else -3, check=False), v_last


def _fused(
    problem: Problem, v0: Tensor | None, neuron: dict[str, Any], packed: bool, out_dtype: torch.dtype
) -> tuple[PackedSpikes | Tensor, Tensor]:
    _check_state(v0, problem)
    return problem.run_with_lif(v0, neuron, packed, out_dtype)


def _check_state(v0: Tensor | None, problem: Problem) -> None:
    shape, device = problem.output_shape[1:], problem.device
    if v0 is not None and (tuple(v0.shape) != shape or v0.dtype != torch.float32 or v0.device != device):
        raise ArgumentError(
            f"v0 is {v0.dtype} {list(v0.shape)} on {v0.device}; it must be float32 {list(shape)} on {device}"
        )


def _check_differentiable(backend: str) -> None:
    wanted = wanted_backend(backend, (*BACKENDS, *MORE_BACKENDS))
    if wanted not in ("auto", "dense", "reference") and backend != "auto":
        raise BackendUnavailableError(
            f"backend {backend!r} computes no gradient and takes no part in autocast; 'auto' and 'dense' do"
        )


def _needs_gradient(x: Activations, weight: Weight) -> bool:
    tensors = (x if isinstance(x, Tensor) else None, weight.values, weight.bias)
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _autocasts(x: Activations) -> bool:
    return isinstance(x, Tensor) and torch.is_autocast_enabled(x.device.type)


def _dense_product(
    x: Activations, weight: Weight, convolution: tuple[Pair, Pair, Pair, int] | None, out_dtype: torch.dtype | None
) -> Tensor:
    """torch's product on the dense weight: differentiable, and cast by autocast."""
    if isinstance(x, PackedSpikes):
        x = x.to_dense(torch.float32)
    dense = reference.dense_weight(weight.source, x.dtype)
    bias = None if weight.bias is None else weight.bias.to(x.dtype)
    if convolution is None:
        y = F.linear(x, dense, bias)
    else:
        y = F.conv2d(x.flatten(0, -4), dense, bias, *convolution).unflatten(0, x.shape[:-3])
    return y if out_dtype is None else y.to(out_dtype)
