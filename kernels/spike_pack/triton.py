"""Packing of spikes, eight a byte, in Triton: kernels, launchers and registration.

Import only where triton is installed; no GPU and no driver are needed for that.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from snn_core.kernels.native.library import dense_strides, packed_size
from snn_core.kernels.native.triton_launch import (
    Config,
    bit_offsets,
    block_offsets,
    interpreted,
    last_bit,
    launch,
    packed_alignment,
    plan_walk,
)

_RUNTIME = ["N", "K", "n1", "n2", "n3", "bit_stride", *(f"{name}_{d}" for name in ("s", "p", "i") for d in range(4))]
CONFIG = Config(4)


@triton.jit
def _tile(N, ALIGN: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """First byte of this program, its bytes, which of them exist, and the eight bits."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    count = tl.multiple_of(tl.minimum(N - start, BLOCK).to(tl.int32), ALIGN)
    lane = tl.arange(0, BLOCK)
    return start, lane, lane < count, tl.arange(0, 8)[None, :]


@triton.jit
def _spike_pointers(  # type: ignore[no-untyped-def]
    s, start, lane, bit, mask, sizes, s_strides, i_strides, bit_stride, K,
    TAIL: tl.constexpr, DIMS: tl.constexpr, WIDE: tl.constexpr, ALIGN: tl.constexpr, BIT_ALIGN: tl.constexpr,
):  # fmt: skip
    """Pointers to the eight spikes of each byte, and which of them exist."""
    base, offset = block_offsets(start, lane, sizes, s_strides, DIMS, WIDE, ALIGN, ALIGN * BIT_ALIGN)
    row = s + base
    if ALIGN * BIT_ALIGN > 1:
        row = tl.multiple_of(row, 16)
    offset = offset[:, None] + bit_offsets(bit, bit_stride, ALIGN, WIDE)
    exists = mask[:, None]
    if TAIL:
        i_base, i_offset = block_offsets(start, lane, sizes, i_strides, DIMS, WIDE, ALIGN, 1)
        exists = exists & ((i_base + i_offset)[:, None] * 8 + bit < K)
    return row + offset, exists


@triton.jit(do_not_specialize=_RUNTIME)
def pack_kernel(  # type: ignore[no-untyped-def]
    s, packed, N: tl.int64, K, n1, n2, n3, s_0, s_1, s_2, s_3, p_0, p_1, p_2, p_3, i_0, i_1, i_2, i_3, bit_stride,
    TAIL: tl.constexpr, DIMS: tl.constexpr, WIDE: tl.constexpr, ALIGN: tl.constexpr, BIT_ALIGN: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """N bytes. ``s_*``, ``p_*``: strides between bytes, ``bit_stride`` between the spikes of one (None for 1);
    TAIL: K, the size of the packed dimension, is no multiple of 8, and ``i_*`` count bytes along it."""
    start, lane, mask, bit = _tile(N, ALIGN, BLOCK)
    sizes = (n1, n2, n3)
    pointers, exists = _spike_pointers(
        s, start, lane, bit, mask, sizes, (s_0, s_1, s_2, s_3), (i_0, i_1, i_2, i_3), bit_stride, K,
        TAIL, DIMS, WIDE, ALIGN, BIT_ALIGN,
    )  # fmt: skip
    spikes = tl.load(pointers, mask=exists, other=0.0).to(tl.float32) != 0.0
    byte = tl.sum(tl.where(spikes, 1 << bit, 0), axis=1)
    base, offset = block_offsets(start, lane, sizes, (p_0, p_1, p_2, p_3), DIMS, WIDE, ALIGN, 1)
    tl.store(packed + base + offset, byte.to(tl.uint8), mask=mask)


@triton.jit(do_not_specialize=_RUNTIME)
def unpack_kernel(  # type: ignore[no-untyped-def]
    s, packed, N: tl.int64, K, n1, n2, n3, s_0, s_1, s_2, s_3, p_0, p_1, p_2, p_3, i_0, i_1, i_2, i_3, bit_stride,
    TAIL: tl.constexpr, DIMS: tl.constexpr, WIDE: tl.constexpr, ALIGN: tl.constexpr, BIT_ALIGN: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The inverse of :func:`pack_kernel`, with the same arguments."""
    start, lane, mask, bit = _tile(N, ALIGN, BLOCK)
    sizes = (n1, n2, n3)
    pointers, exists = _spike_pointers(
        s, start, lane, bit, mask, sizes, (s_0, s_1, s_2, s_3), (i_0, i_1, i_2, i_3), bit_stride, K,
        TAIL, DIMS, WIDE, ALIGN, BIT_ALIGN,
    )  # fmt: skip
    base, offset = block_offsets(start, lane, sizes, (p_0, p_1, p_2, p_3), DIMS, WIDE, ALIGN, 1)
    byte = tl.load(packed + base + offset, mask=mask, other=0).to(tl.int32)
    tl.store(pointers, ((byte[:, None] >> bit) & 1).to(tl.float32).to(s.dtype.element_ty), mask=exists)


def _run(kernel: Any, s: Tensor, packed: Tensor, dim: int) -> bool:
    """Launch over the bytes of ``packed``; False, and nothing done, where the strides take too many dimensions."""
    stride = list(s.stride())
    bit_stride = None if stride[dim] == 1 else stride[dim]
    stride[dim] *= 8
    size = s.shape[dim]
    count = tuple(int(d == dim) for d in range(s.ndim)) if size % 8 else None
    order = packed.stride() if kernel is pack_kernel else tuple(stride)
    walk = plan_walk(tuple(packed.shape), order, (tuple(stride), packed.stride(), count), last_bit(bit_stride))
    if walk is None:
        return False
    align, bit_align = packed_alignment(walk, s, (), bit_stride)
    strides = [stride for operand in walk.strides for stride in operand]
    # A thread takes 16 bytes of s along the packed dimension, or, where its elements are far apart, whole bytes.
    block = 32 * CONFIG.warps * 2 // s.element_size() if bit_stride is None else 32 * CONFIG.warps * align
    launch(
        kernel, -(-walk.count // block), (s, packed, walk.count, size, *walk.sizes, *strides, bit_stride), CONFIG,
        TAIL=count is not None, **walk.constants, ALIGN=align, BIT_ALIGN=bit_align, BLOCK=block,
    )  # fmt: skip
    return True


def _resized_like(like: Tensor, size: int, dim: int, dtype: torch.dtype) -> Tensor:
    """Dense, with the dimensions in the order of those of ``like``: what the other backends give."""
    shape = [size if d == dim else extent for d, extent in enumerate(like.shape)]
    return like.new_empty_strided(shape, dense_strides(shape, like.stride()), dtype=dtype)


def spike_pack_triton(s: Tensor, dim: int) -> Tensor:
    """``snn_core::spike_pack_triton``."""
    packed = _resized_like(s, packed_size(s.shape[dim]), dim, torch.uint8)
    if packed.numel() > 0 and not _run(pack_kernel, s, packed, dim):
        packed.copy_(spike_pack_triton(s.contiguous(), dim))
    return packed


def spike_unpack_triton(packed: Tensor, size: int, dim: int, dtype: torch.dtype) -> Tensor:
    """``snn_core::spike_unpack_triton``."""
    s = _resized_like(packed, size, dim, dtype)
    if s.numel() > 0 and not _run(unpack_kernel, s, packed, dim):
        s.copy_(spike_unpack_triton(packed.contiguous(), size, dim, dtype))
    return s


@functools.cache
def register() -> None:
    """Register the operators for CUDA tensors, and for CPU tensors where triton's interpreter is on. Idempotent."""
    for key in ("CUDA", "CPU") if interpreted() else ("CUDA",):
        torch.library.impl("snn_core::spike_pack_triton", key, spike_pack_triton)
        torch.library.impl("snn_core::spike_unpack_triton", key, spike_unpack_triton)
