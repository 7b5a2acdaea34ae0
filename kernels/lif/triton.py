"""The LIF operators in Triton: launchers and registration. The kernels are in ``triton_kernels.py``.

Import only where triton is installed; no GPU and no driver are needed for that.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from snn_core.kernels.lif.triton_checks import check_inputs, check_tensor
from snn_core.kernels.lif.triton_kernels import CHUNK, backward_kernel, forward_kernel, packed_kernel
from snn_core.kernels.native.library import dense_strides, empty_sequence_like, may_overlap, packed_size
from snn_core.kernels.native.triton_launch import (
    VECTOR_BYTES,
    Config,
    Walk,
    choose_config,
    interpreted,
    is_vectorisable,
    last_bit,
    launch,
    packed_alignment,
    plan_walk,
)

#: First: what is used where nothing is timed.
FORWARD_CONFIGS = (Config(4), Config(1), Config(8), Config(4, 0.5), Config(4, 2))
BACKWARD_CONFIGS = (Config(4), Config(1), Config(2), Config(8), Config(4, 0.5))
#: A whole chunk: 128 registers hold it without spilling and leave room for 16 warps a multiprocessor; the compiler left
#: alone takes 159 (from SASS; speed not yet measured on a GPU).
CHUNK_CONFIGS = (Config(4, 1, 128), Config(1, 1, 128), Config(2), Config(8, 1, 128), Config(4, 0.5))
#: The same for 16-bit storage, where a whole vector is eight neurons a thread (254 registers) and 128 registers spill.
CHUNK_CONFIGS_16_BIT = (Config(4, 0.5), Config(1, 0.5), Config(2, 0.5), Config(4, 0.5, 128), Config(4))
#: Two neurons a thread, because x of the chunk is in registers too; fixed, because the order of the sum for
#: grad_reciprocal_tau depends on it.
LEARNED_TAU_CONFIGS = {4: Config(4, 0.5), 2: Config(4, 0.25)}
#: Few neurons: small programs, so that every multiprocessor has some.
SMALL_CONFIG = Config(1, 0.5)
SMALL_NEURONS = 2**15
#: A program costs the interpreter the same whatever its size.
INTERPRETER_CONFIG = Config(8)
#: Neuron steps below which a launch is not worth timing.
TUNED_NEURON_STEPS = 2**20


@dataclass(frozen=True)
class Parameters:
    """Scalars of the kernels, rounded to float32, and the constants they are compiled for."""

    charge: tuple[float, float, float, float]  # tau, reciprocal_tau, v_threshold, v_reset
    surrogate: tuple[float, float]  # alpha, width
    forward: dict[str, Any]
    backward: dict[str, Any]


def _float32(value: float) -> float:
    return ctypes.c_float(value).value


@functools.lru_cache(maxsize=256)
def _parameters(
    tau: float, v_threshold: float, v_reset: float | None, decay_input: bool, detach_reset: bool, surrogate: int,
    alpha: float, learned: bool,
) -> Parameters:  # fmt: skip
    """As ``make_options`` in options.h: 1 / tau is a factor only where that rounds like the division by tau."""
    tau, alpha = _float32(tau), _float32(alpha)
    divide = not learned and math.isfinite(tau) and math.frexp(tau)[0] != 0.5
    width = {2: 1.0, 3: 0.5}.get(surrogate, 0.0) / alpha
    forward = {"DECAY_INPUT": decay_input, "DIVIDE": divide, "SOFT_RESET": v_reset is None}
    return Parameters(
        (tau, _float32(1.0 / tau), _float32(v_threshold), _float32(v_reset or 0.0)),
        (alpha, _float32(width)),
        forward,
        {**forward, "DETACH_RESET": detach_reset, "SURROGATE": surrogate},
    )


@dataclass(frozen=True)
class Operand:
    """An input that is walked by stride: ``[T, ...]`` or, a state, ``[...]``; None where the call has none."""

    tensor: Tensor | None
    is_sequence: bool


def _step_strides(operand: Operand) -> tuple[int, ...] | None:
    if operand.tensor is None:
        return None
    return operand.tensor.stride()[1:] if operand.is_sequence else operand.tensor.stride()


def _plan(step: Tensor, operands: list[Operand]) -> tuple[Walk, list[Operand]]:
    """The walk over operands of any strides; where that takes too many dimensions, the last of them are copied."""
    dense = step.stride()
    while (walk := plan_walk(tuple(step.shape), dense, tuple(_step_strides(o) for o in operands))) is None:
        index = max(i for i, o in enumerate(operands) if o.tensor is not None and _step_strides(o) != dense)
        source = operands[index].tensor
        assert source is not None
        steps = [source.shape[0]] if operands[index].is_sequence else []
        stride = (step.numel(), *dense) if steps else dense
        copy = source.new_empty_strided((*steps, *step.shape), stride).copy_(source)
        operands = [*operands[:index], Operand(copy, operands[index].is_sequence), *operands[index + 1 :]]
    return walk, operands


def _alignment(walk: Walk, operands: Sequence[Operand], element_size: int, checkpoints: Tensor | None) -> int:
    """Elements in 16 bytes of x where every operand with unit stride, and ``checkpoints``, can be read so, else 1."""
    per_vector = VECTOR_BYTES // element_size
    unit = [o for o, strides in zip(operands, walk.strides, strict=True) if o.tensor is not None and strides[3] is None]
    tensors = [o.tensor for o in unit if o.tensor is not None]
    time_strides = [o.tensor.stride(0) for o in unit if o.tensor is not None and o.is_sequence]
    tensors += [] if checkpoints is None else [checkpoints]  # dense: neurons are a multiple where walk.inner is one
    extents = (walk.inner, *walk.aligned_strides, *time_strides)
    return per_vector if is_vectorisable(tensors, per_vector, extents) else 1


def _steps_class(steps: int, largest: int) -> int:
    """The smallest power of two that holds ``steps``, at most ``largest``."""
    return min(largest, 1 << (steps - 1).bit_length())


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)


def _config(name: str, x_seq: Tensor, walk: Walk, configs: Sequence[Config], steps_class: int, run: Any) -> Config:
    """Few keys: kernel, dtype, class of T, class of size, dense or not."""
    if interpreted():
        return INTERPRETER_CONFIG
    neurons = x_seq.numel() // x_seq.shape[0]
    if neurons <= SMALL_NEURONS:
        return SMALL_CONFIG
    key = (name, x_seq.device.index, x_seq.dtype, steps_class, neurons >= 2**21, walk.constants["DIMS"] == 1)
    tunable = run is not None and x_seq.numel() >= TUNED_NEURON_STEPS
    return choose_config(key, configs, run, tunable=tunable, device=x_seq.device)


def _run_forward(
    x_seq: Tensor, v0: Tensor | None, reciprocal_tau: Tensor | None, parameters: Parameters, step: Tensor,
    outputs: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None], every: int, inplace: bool = False,
) -> None:  # fmt: skip
    """``outputs``: s_seq, v_last, v_seq, checkpoints; those that are None are not written."""
    walk, operands = _plan(step, [Operand(x_seq, True), Operand(v0, False)])
    x, v0 = operands[0].tensor, operands[1].tensor
    assert x is not None
    if inplace:
        outputs = (x, *outputs[1:])
    steps = x.shape[0]
    checkpoints = outputs[3]
    unroll = _steps_class(steps, 8)
    constants = {
        **parameters.forward, **walk.constants, "ALIGN": _alignment(walk, operands, x.element_size(), None),
        "UNROLL": unroll, "INPLACE": inplace,
    }  # fmt: skip
    arguments = (
        x, v0, reciprocal_tau, *outputs, steps, walk.count, x.stride(0), every,
        0 if checkpoints is None else checkpoints.shape[0], *parameters.charge, *walk.sizes, *walk.strides[0],
        *walk.strides[1],
    )  # fmt: skip

    def run(config: Config) -> None:
        block = config.block(x.element_size())
        launch(forward_kernel, _cdiv(walk.count, block), arguments, config, **constants, BLOCK=block)

    # In place a second run would read spikes for x, and a backward that rebuilds checkpoints writes less than a forward
    # does: what is fastest for that must not stay. So nothing is timed then.
    timed = run if outputs[0] is not None and not inplace else None
    run(_config("forward", x, walk, FORWARD_CONFIGS, unroll, timed))
    if inplace and x is not x_seq:
        x_seq.copy_(x)


def lif_triton(
    x_seq: Tensor, v0: Tensor | None, reciprocal_tau: Tensor | None, tau: float, v_threshold: float,
    v_reset: float | None, decay_input: bool, detach_reset: bool, surrogate: int, alpha: float, checkpoint_every: int,
    return_v_seq: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """``snn_core::lif_triton``: s_seq, v_last, v_seq, checkpoints."""
    check_inputs(x_seq, v0, reciprocal_tau)
    s_seq = empty_sequence_like(x_seq)
    v_last = torch.empty_like(x_seq[0], dtype=torch.float32)
    v_seq = torch.empty_like(s_seq) if return_v_seq else x_seq.new_empty(0)
    count = (x_seq.shape[0] - 1) // checkpoint_every if checkpoint_every > 0 else 0
    checkpoints = x_seq.new_empty(0, dtype=torch.float32)
    if checkpoint_every > 0:
        checkpoints = empty_sequence_like(x_seq, count, torch.float32)
    if v_last.numel() > 0:
        parameters = _parameters(
            tau, v_threshold, v_reset, decay_input, detach_reset, surrogate, alpha, reciprocal_tau is not None
        )
        outputs = (s_seq, v_last, v_seq if return_v_seq else None, checkpoints if count > 0 else None)
        _run_forward(x_seq, v0, reciprocal_tau, parameters, v_last, outputs, checkpoint_every)
    return s_seq, v_last, v_seq, checkpoints


def lif_triton_inplace(
    x_seq: Tensor, v0: Tensor | None, reciprocal_tau: Tensor | None, tau: float, v_threshold: float,
    v_reset: float | None, decay_input: bool, detach_reset: bool, surrogate: int, alpha: float,
) -> Tensor:  # fmt: skip
    """``snn_core::lif_triton_inplace``: spikes over ``x_seq``; returns v_last."""
    check_inputs(x_seq, v0, reciprocal_tau)
    if may_overlap(x_seq):
        raise RuntimeError("lif_inplace: elements of x_seq share memory")
    v_last = torch.empty_like(x_seq[0], dtype=torch.float32)
    if v_last.numel() > 0:
        parameters = _parameters(
            tau, v_threshold, v_reset, decay_input, detach_reset, surrogate, alpha, reciprocal_tau is not None
        )
        _run_forward(x_seq, v0, reciprocal_tau, parameters, v_last, (None, v_last, None, None), 0, inplace=True)
    return v_last


def _checkpoints(
    x_seq: Tensor, v0: Tensor | None, reciprocal_tau: Tensor | None, parameters: Parameters, step: Tensor,
    checkpoints: Tensor | None, checkpoint_every: int,
) -> Tensor | None:  # fmt: skip
    """v with which every chunk but the first starts; None where one chunk is all. Computed if absent, of another
    distance or not laid out as the forward does."""
    count = (x_seq.shape[0] - 1) // CHUNK
    if count == 0:
        return None
    if checkpoints is not None and checkpoint_every == CHUNK and checkpoints.numel() > 0:
        check_tensor(checkpoints, x_seq, "checkpoints", (count, *step.shape), torch.float32)
        if checkpoints.stride() == (step.numel(), *step.stride()):
            return checkpoints
    rebuilt = empty_sequence_like(x_seq, count, torch.float32)
    last = x_seq[: count * CHUNK]
    _run_forward(last, v0, reciprocal_tau, parameters, step, (None, None, None, rebuilt), CHUNK)
    return rebuilt


def lif_triton_backward(
    grad_s: Tensor | None, grad_v_last: Tensor | None, grad_v_seq: Tensor | None, x_seq: Tensor, v0: Tensor | None,
    reciprocal_tau: Tensor | None, checkpoints: Tensor | None, tau: float, v_threshold: float, v_reset: float | None,
    decay_input: bool, detach_reset: bool, surrogate: int, alpha: float, checkpoint_every: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """``snn_core::lif_triton_backward``: gradients of x_seq, v0 and reciprocal_tau.

    Checkpoints of another distance than 16, or none, are computed anew from ``x_seq``.
    """
    check_inputs(x_seq, v0, reciprocal_tau)
    check_tensor(grad_v_last, x_seq, "grad_v_last", x_seq.shape[1:], torch.float32)
    check_tensor(grad_s, x_seq, "grad_s", x_seq.shape, x_seq.dtype)
    check_tensor(grad_v_seq, x_seq, "grad_v_seq", x_seq.shape, x_seq.dtype)
    grad_x = empty_sequence_like(x_seq)
    # Without v0 nothing is written to the step, which then only says how one is laid out.
    step = torch.empty_like(x_seq[0], dtype=torch.float32, device=None if v0 is not None else "meta")
    grad_v0 = step if v0 is not None else x_seq.new_empty(0, dtype=torch.float32)
    if step.numel() == 0:
        return grad_x, grad_v0, x_seq.new_zeros((), dtype=torch.float32)
    parameters = _parameters(
        tau, v_threshold, v_reset, decay_input, detach_reset, surrogate, alpha, reciprocal_tau is not None
    )
    checkpoints = _checkpoints(x_seq, v0, reciprocal_tau, parameters, step, checkpoints, checkpoint_every)
    walk, operands = _plan(
        step,
        [Operand(x_seq, True), Operand(v0, False), Operand(grad_s, True), Operand(grad_v_last, False),
         Operand(grad_v_seq, True)],
    )  # fmt: skip
    partials = _run_backward(
        walk, operands, reciprocal_tau, parameters, checkpoints, grad_x, None if v0 is None else grad_v0
    )
    if partials is None:
        return grad_x, grad_v0, x_seq.new_zeros((), dtype=torch.float32)
    return grad_x, grad_v0, partials.sum().to(torch.float32)


def _run_backward(
    walk: Walk, operands: list[Operand], reciprocal_tau: Tensor | None, parameters: Parameters,
    checkpoints: Tensor | None, grad_x: Tensor, grad_v0: Tensor | None,
) -> Tensor | None:  # fmt: skip
    """Returns the sums of the gradient of reciprocal_tau, one a program."""
    x, v0, grad_s, grad_v_last, grad_v_seq = (operand.tensor for operand in operands)
    assert x is not None
    steps, size = x.shape[0], x.element_size()
    steps_class = _steps_class(steps, CHUNK)
    constants = {
        **parameters.backward, **walk.constants, "ALIGN": _alignment(walk, operands, size, checkpoints),
        "STEPS": steps_class, "AHEAD": min(steps_class, 4),
    }  # fmt: skip
    times = (0 if t is None else t.stride(0) for t in (x, grad_s, grad_v_seq))
    scalars = (steps, walk.count, *times, *parameters.charge, *parameters.surrogate, *walk.sizes)
    strides = [stride for operand in walk.strides for stride in operand]

    def run(config: Config, partials: Tensor | None = None) -> None:
        block = config.block(size)
        tensors = (
            x, v0, reciprocal_tau, checkpoints, grad_s, grad_v_last, grad_v_seq, grad_x, grad_v0, partials,
        )  # fmt: skip
        programs = _cdiv(walk.count, block)
        launch(backward_kernel, programs, (*tensors, *scalars, *strides), config, **constants, BLOCK=block)

    if reciprocal_tau is None:
        configs = BACKWARD_CONFIGS
        if steps_class == CHUNK:
            configs = CHUNK_CONFIGS if size == 4 else CHUNK_CONFIGS_16_BIT
        run(_config("backward", x, walk, configs, steps_class, run))
        return None
    config = LEARNED_TAU_CONFIGS[size]
    partials = x.new_empty(_cdiv(walk.count, config.block(size)), dtype=torch.float64)
    run(config, partials)
    return partials


def _byte_strides(tensor: Tensor | None, dim: int) -> tuple[tuple[int, ...] | None, int | None]:
    """Strides of one step between groups of eight along ``dim``, and inside a group (None: 1, or no tensor)."""
    if tensor is None:
        return None, None
    stride = list(tensor.stride())
    bit = stride[dim]
    stride[dim] *= 8
    return tuple(stride), None if bit == 1 else bit


def lif_triton_packed(
    x_seq: Tensor, v0: Tensor | None, reciprocal_tau: Tensor | None, tau: float, v_threshold: float,
    v_reset: float | None, decay_input: bool, detach_reset: bool, surrogate: int, alpha: float, dim: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``snn_core::lif_triton_packed``: spikes, eight a byte along ``dim``, and v_last."""
    check_inputs(x_seq, v0, reciprocal_tau)
    if not 0 < dim < x_seq.ndim:
        raise RuntimeError("lif: dim to pack must be a dimension after the first")
    v_last = torch.empty_like(x_seq[0], dtype=torch.float32)
    size = [packed_size(extent) if d == dim - 1 else extent for d, extent in enumerate(v_last.shape)]
    stride = (math.prod(size), *dense_strides(size, v_last.stride()))
    packed = x_seq.new_empty_strided((x_seq.shape[0], *size), stride, dtype=torch.uint8)
    if v_last.numel() > 0:
        parameters = _parameters(
            tau, v_threshold, v_reset, decay_input, detach_reset, surrogate, alpha, reciprocal_tau is not None
        )
        _run_packed(x_seq, v0, reciprocal_tau, parameters, packed, v_last, dim)
    return packed, v_last


def _run_packed(
    x: Tensor, v0: Tensor | None, reciprocal_tau: Tensor | None, parameters: Parameters, packed: Tensor,
    v_last: Tensor, dim: int,
) -> None:  # fmt: skip
    size = x.shape[dim]
    count = tuple(1 if d == dim - 1 else 0 for d in range(x.ndim - 1)) if size % 8 else None
    pairs = [_byte_strides(t, dim - 1) for t in (x[0], v0, v_last)]
    operands = (*(strides for strides, _ in pairs), count)
    bits = [bit for _, bit in pairs]
    walk = plan_walk(tuple(packed.shape[1:]), packed.stride()[1:], operands, last_bit(*bits))
    if walk is None:
        if x.stride() == (v_last.numel(), *v_last.stride()):
            raise RuntimeError(f"lif: a step of shape {tuple(x.shape[1:])} has too many dimensions to be packed")
        dense = v_last.new_empty_strided(x.shape, (v_last.numel(), *v_last.stride()), dtype=x.dtype).copy_(x)
        v0 = None if v0 is None else torch.empty_like(v_last).copy_(v0)
        return _run_packed(dense, v0, reciprocal_tau, parameters, packed, v_last, dim)
    align, bit_align = packed_alignment(walk, x, (x.stride(0),), bits[0])
    across = bits[0] is not None  # the neurons of a byte are far apart: a thread takes all eight
    unroll = 1 if across else _steps_class(x.shape[0], 4)
    constants = {
        **parameters.forward, **walk.constants, "TAIL": count is not None, "ALIGN": align, "BIT_ALIGN": bit_align,
        "LAST_ALIGN": align * bit_align if walk.strides[2] == walk.strides[0] and bits[2] == bits[0] else 1,
        "UNROLL": unroll,
    }  # fmt: skip
    arguments = (
        x, v0, reciprocal_tau, packed, v_last, x.shape[0], walk.count, x.stride(0), size, *parameters.charge,
        *walk.sizes, *(stride for operand in walk.strides for stride in operand), *bits,
    )  # fmt: skip
    config = _config("packed", x, walk, FORWARD_CONFIGS[:1], unroll, None)
    block = 32 * config.warps * align if across else config.block(x.element_size()) // 8
    launch(packed_kernel, _cdiv(walk.count, block), arguments, config, **constants, BLOCK=block)
    return None


IMPLEMENTATIONS: dict[str, Callable[..., object]] = {
    "lif_triton": lif_triton,
    "lif_triton_backward": lif_triton_backward,
    "lif_triton_packed": lif_triton_packed,
    "lif_triton_inplace": lif_triton_inplace,
}


@functools.cache
def register() -> None:
    """Register the operators for CUDA tensors, and for CPU tensors where triton's interpreter is on. Idempotent."""
    for name, implementation in IMPLEMENTATIONS.items():
        for key in ("CUDA", "CPU") if interpreted() else ("CUDA",):
            torch.library.impl(f"snn_core::{name}", key, implementation)
