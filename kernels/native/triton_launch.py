"""What every Triton kernel here shares: walking operands by stride, launching, and the choice among configurations.

Imports without a GPU and without a driver, but only where triton is installed.
"""

from __future__ import annotations

import functools
import math
import os
import statistics
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Dimensions, after merging, that the kernels walk by stride; an operand that needs more is copied.
MAX_DIMS = 4
VECTOR_BYTES = 16
#: Environment variable: 0 keeps the configuration of each size class fixed instead of timing a few at first use.
AUTOTUNE_VARIABLE = "SNN_TRITON_AUTOTUNE"

Strides = tuple[int, ...]


def interpreted() -> bool:
    """Whether triton's interpreter runs the kernels (on CPU tensors): the variable counts when triton is imported."""
    return bool(triton.knobs.runtime.interpret)


@triton.jit
def aligned(value, ALIGN: tl.constexpr):  # type: ignore[no-untyped-def]
    """``value``, a multiple of ALIGN, in a form from which the compiler knows that (multiple_of on an argument of the
    kernel did not make vector loads: seen in SASS, triton 3.6 and 3.7)."""
    return value // ALIGN * ALIGN if ALIGN > 1 else value


@triton.jit
def block_offsets(  # type: ignore[no-untyped-def]
    start, lane, sizes, strides, DIMS: tl.constexpr, WIDE: tl.constexpr, ALIGN: tl.constexpr, HINT: tl.constexpr
):
    """Where the elements ``start + lane`` of the walk lie in an operand: a scalar and a block of offsets to add.

    ``sizes`` are those of the last three of four merged dimensions, ``strides`` of all four; only the last DIMS count.
    An innermost stride of None is 1; a second-innermost one of None says that the operand is dense in walking order.
    The innermost size is a multiple of ALIGN, and the strides, but for an innermost one of None, are multiples of HINT.
    """
    base, offset = start, lane.to(tl.int64) if WIDE else lane
    if DIMS == 1:
        if strides[3] is not None:
            base, offset = start * aligned(strides[3], HINT), offset * aligned(strides[3], HINT)
    elif strides[2] is not None:
        # Without WIDE every offset fits 32 bits, where integer division takes fewer instructions.
        index = start + offset if WIDE else start.to(tl.int32) + offset
        inner = aligned(sizes[2], ALIGN)
        base, offset = start * 0, index % inner
        if strides[3] is not None:
            offset = offset * aligned(strides[3], HINT)
        index = index // inner
        if DIMS > 2:
            offset += (index % sizes[1]) * aligned(strides[2], HINT)
            index = index // sizes[1]
            if DIMS > 3:
                offset += (index % sizes[0]) * aligned(strides[1], HINT)
                index = index // sizes[0]
                offset += index * aligned(strides[0], HINT)
            else:
                offset += index * aligned(strides[1], HINT)
        else:
            offset += index * aligned(strides[2], HINT)
    return base, offset


@functools.lru_cache(maxsize=4096)
def merge_dimensions(
    size: tuple[int, ...], order: Strides, operands: tuple[Strides, ...]
) -> tuple[tuple[int, ...], tuple[Strides, ...]]:
    """Sort the dimensions by descending ``order`` and merge neighbours where every operand allows.

    Returns:
        The sizes, outermost first (at least one), and the strides of each operand in them.
    """
    dims = [d for d in range(len(size)) if size[d] != 1]
    dims.sort(key=lambda d: (order[d], *(strides[d] for strides in operands)), reverse=True)
    sizes: list[int] = []
    merged: list[list[int]] = [[] for _ in operands]
    for d in dims:
        if sizes and all(m[-1] == strides[d] * size[d] for m, strides in zip(merged, operands, strict=True)):
            sizes[-1] *= size[d]
            for m, strides in zip(merged, operands, strict=True):
                m[-1] = strides[d]
        else:
            sizes.append(size[d])
            for m, strides in zip(merged, operands, strict=True):
                m.append(strides[d])
    if not sizes:
        return (1,), tuple((1,) for _ in operands)
    return tuple(sizes), tuple(tuple(m) for m in merged)


def reaches_beyond_32_bits(sizes: Sequence[int], operands: Sequence[Strides], beyond: int = 0) -> bool:
    """Whether an index or an offset of the walk, or one that is ``beyond`` more, needs 64 bits."""
    limit = 2**31 - 2**16  # indices of a whole last block are computed, and only then masked
    return math.prod(sizes) >= limit or any(
        sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True)) + beyond >= limit
        for strides in operands
    )


def kernel_strides(sizes: tuple[int, ...], strides: Strides | None) -> tuple[int | None, ...]:
    """The four stride arguments of :func:`block_offsets`; all None for an absent operand or a dense one."""
    if strides is None:
        return (None,) * MAX_DIMS
    dense = 1
    for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
        if stride != dense:
            break
        dense *= size
    else:
        return (None,) * MAX_DIMS
    inner = None if strides[-1] == 1 else strides[-1]
    return (*(None,) * (MAX_DIMS - len(strides)), *strides[:-1], inner)


def kernel_sizes(sizes: tuple[int, ...]) -> tuple[int | None, ...]:
    """The three size arguments of :func:`block_offsets`: without the outermost, and None where there is none."""
    inner = sizes[1:]
    return (*(None,) * (MAX_DIMS - 1 - len(inner)), *inner)


@dataclass(frozen=True)
class Walk:
    """How a kernel walks its operands: arguments and constants of :func:`block_offsets`."""

    count: int  # elements
    inner: int  # elements of the innermost dimension
    sizes: tuple[int | None, ...]
    strides: tuple[tuple[int | None, ...], ...]  # of each operand
    constants: dict[str, Any]  # DIMS, WIDE
    aligned_strides: tuple[int, ...]  # those that access by vectors needs to be multiples


@functools.lru_cache(maxsize=4096)
def plan_walk(
    size: tuple[int, ...], order: Strides, operands: tuple[Strides | None, ...], beyond: int = 0
) -> Walk | None:
    """The walk over elements of shape ``size`` by descending ``order``; None where it takes more than four dimensions.

    ``order`` are the strides of the outputs (dense, unless they are among the operands too). ``beyond``: how far from
    an element of the walk a kernel goes, at most (to the last bit of a byte).
    """
    sizes, merged = merge_dimensions(size, order, (order, *(strides for strides in operands if strides is not None)))
    if len(sizes) > MAX_DIMS:
        return None
    found = iter(merged[1:])
    strides = tuple(kernel_strides(sizes, None if operand is None else next(found)) for operand in operands)
    aligned = tuple(stride for operand in merged if operand[-1] == 1 for stride in operand[:-1])
    if len(sizes) == 1:  # only lane * stride (and what is beyond) is computed in 32 bits then
        wide = any(operand[0] >= 2**15 for operand in merged) or beyond >= 2**30
    else:
        wide = reaches_beyond_32_bits(sizes, merged, beyond)
    constants = {"DIMS": len(sizes), "WIDE": wide}
    return Walk(math.prod(size), sizes[-1], kernel_sizes(sizes), strides, constants, aligned)


def is_vectorisable(tensors: Sequence[Tensor], per_vector: int, extents: Sequence[int | None]) -> bool:
    """Whether ``tensors`` may be read 16 bytes, ``per_vector`` elements, at a time: they start at a multiple of that,
    and ``extents`` (sizes and strides in elements, those that there are) are multiples."""
    if any(extent is not None and extent % per_vector for extent in extents):
        return False
    return all(tensor.data_ptr() % VECTOR_BYTES == 0 for tensor in tensors)


def packed_alignment(walk: Walk, tensor: Tensor, extra: Sequence[int], bit_stride: int | None) -> tuple[int, int]:
    """ALIGN and BIT_ALIGN of kernels whose elements are bytes of a packed tensor.

    ``tensor`` is the unpacked one, operand 0 of the walk; ``extra`` are further strides of it, ``bit_stride`` that of
    the packed dimension (None for 1). Vectors lie along neighbouring bytes, or along the neurons of a byte.
    """
    strides = walk.strides[0]
    if strides[3] is None and bit_stride is not None:
        per_vector = VECTOR_BYTES // tensor.element_size()
        extents = (walk.inner, *strides, *extra, bit_stride)
        return (per_vector if is_vectorisable([tensor], per_vector, extents) else 1), 1
    return 1, 8 if bit_stride is None and is_vectorisable([tensor], 8, (*strides, *extra)) else 1


@triton.jit
def bit_offsets(bit, stride, ALIGN: tl.constexpr, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Where the elements of a byte lie, from the first: ``bit`` is their number. A stride of None is 1."""
    offset = bit
    if stride is not None:
        offset = (bit.to(tl.int64) if WIDE else bit) * aligned(stride, ALIGN)
    return offset


def last_bit(*bit_strides: int | None) -> int:
    """The furthest of :func:`bit_offsets`: ``beyond`` of :func:`plan_walk`."""
    return max(7 * (1 if stride is None else stride) for stride in bit_strides)


@dataclass(frozen=True)
class Config:
    """Warps a program, 16-byte vectors a thread at once (a fraction halves or quarters the vector), and the most
    registers a thread may use."""

    warps: int
    vectors: float = 1
    registers: int | None = None

    def block(self, element_size: int) -> int:
        """Elements a program handles at once."""
        return max(32 * self.warps, int(32 * self.warps * self.vectors * VECTOR_BYTES) // element_size)


_choices: dict[Hashable, Config] = {}


def choose_config(
    key: Hashable, configs: Sequence[Config], run: Callable[[Config], Any], *, tunable: bool, device: torch.device
) -> Config:
    """The fastest of ``configs`` for this key, timed at first use; the first of them where nothing can be timed.

    Results do not depend on the choice. ``run`` must be repeatable. Nothing is timed while a CUDA graph is captured
    (warm up before, as for any graph), nor on the CPU, nor with SNN_TRITON_AUTOTUNE=0.
    """
    chosen = _choices.get(key)
    if chosen is not None:
        return chosen
    if not tunable or device.type != "cuda" or os.environ.get(AUTOTUNE_VARIABLE) == "0":
        return configs[0]
    if torch.cuda.is_current_stream_capturing():
        return configs[0]
    with torch.cuda.device(device):
        chosen = min(configs, key=lambda config: _milliseconds(lambda: run(config)))
    _choices[key] = chosen
    return chosen


def _milliseconds(run: Callable[[], Any], repeats: int = 7) -> float:
    try:
        run()  # compiles
    except triton.runtime.errors.OutOfResources:
        return float("inf")
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for begin, end in events:
        begin.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in events)


def launch_options(config: Config) -> dict[str, Any]:
    """The compiler's options: multiplications and additions are not fused, so that spikes are the same bits on every
    backend (lif.h); num_stages=1, because the kernels load ahead themselves."""
    options: dict[str, Any] = {"num_warps": config.warps, "num_stages": 1, "enable_fp_fusion": False}
    return options if config.registers is None else options | {"maxnreg": config.registers}


def launch(kernel: Any, programs: int, arguments: Sequence[Any], config: Config, **constants: Any) -> None:
    """Run ``kernel`` on the current stream of the device of its first argument."""
    options = launch_options(config)
    device = arguments[0].device
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[(programs,)](*arguments, **options, **constants)
        return
    kernel[(programs,)](*arguments, **options, **constants)
