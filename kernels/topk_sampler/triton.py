"""Launchers of the Triton kernels of the top-k sampler, and their registration.

Import only where triton is installed; no GPU and no driver are needed for that.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from snn_core.kernels.native.triton_launch import VECTOR_BYTES, Config, interpreted, is_vectorisable, launch
from snn_core.kernels.topk_sampler.columns import fake_like
from snn_core.kernels.topk_sampler.triton_kernels import backward_kernel, sample_kernel, soft_kernel

CONFIG = Config(4)
#: Elements a program holds at once: sixteen a thread (four vectors of 16 bytes where positions lie outermost).
ELEMENTS = 2048


def _strides(tensor: Tensor | None) -> tuple[int | None, int | None]:
    """Between blocks and between positions; None for 1, and for both where there is no tensor."""
    if tensor is None:
        return None, None
    block, position = tensor.stride()
    if block == 1:
        return None, position
    return block, None if position == 1 else position


def _alignment(tensors: Sequence[Tensor | None]) -> int:
    """Elements in 16 bytes of float32 where all tensors have positions outermost and may be read so, else 1."""
    present = [tensor for tensor in tensors if tensor is not None]
    per_vector = VECTOR_BYTES // 4
    if any(tensor.stride(0) != 1 for tensor in present):
        return 1
    extents = [tensor.stride(1) for tensor in present if tensor.shape[1] > 1]
    return per_vector if is_vectorisable(present, per_vector, [*extents, present[0].shape[0]]) else 1


def _run(
    kernel: Any, inputs: Sequence[Tensor | None], out: Tensor, extra: Sequence[Any], options: tuple[Any, ...],
    temperature: float | None,
) -> None:  # fmt: skip
    """Launch over the blocks of ``out``; ``extra`` are pointers behind it."""
    n, kappa, rho, eta, seed, offset = options
    blocks, m = out.shape
    if blocks == 0:
        return
    if not 1 <= n <= m <= 32:
        raise RuntimeError(f"topk_sampler: n must be 1 to M and M at most 32, got {n} and {m}")
    padded = 1 << (m - 1).bit_length()
    block = ELEMENTS // padded
    strides = [stride for tensor in (*inputs, out) for stride in _strides(tensor)]
    scalars = [kappa, rho, eta] if temperature is None else [kappa, rho, eta, 1.0 / temperature]
    word = 0xFFFFFFFF
    arguments = (
        *inputs, out, *extra, blocks, n, *strides, *scalars, seed, offset & word, offset >> 32 & word
    )  # fmt: skip
    launch(
        kernel, -(-blocks // block), arguments, CONFIG,
        M=m, PADDED=padded, NOISE=eta != 0, ALIGN=_alignment([*inputs, out]), BLOCK=block,
    )  # fmt: skip


def topk_sample_triton(
    logits: Tensor, anchor: Tensor | None, n: int, kappa: float, rho: float, eta: float, seed: int, offset: int
) -> tuple[Tensor, Tensor]:
    """``snn_core::topk_sample_triton``: mask and number of blocks that are not finite."""
    mask, wrong = fake_like(logits, torch.uint8), logits.new_zeros((), dtype=torch.int64)
    _run(sample_kernel, (logits, anchor), mask, (wrong,), (n, kappa, rho, eta, seed, offset), None)
    return mask, wrong


def topk_sample_triton_soft(
    logits: Tensor, anchor: Tensor | None, n: int, kappa: float, rho: float, eta: float, seed: int, offset: int,
    temperature: float,
) -> Tensor:  # fmt: skip
    """``snn_core::topk_sample_triton_soft``."""
    soft = fake_like(logits, torch.float32)
    _run(soft_kernel, (logits, anchor), soft, (), (n, kappa, rho, eta, seed, offset), temperature)
    return soft


def topk_sample_triton_backward(
    grad: Tensor, logits: Tensor, anchor: Tensor | None, n: int, kappa: float, rho: float, eta: float, seed: int,
    offset: int, temperature: float,
) -> Tensor:  # fmt: skip
    """``snn_core::topk_sample_triton_backward``."""
    result = fake_like(logits, torch.float32)
    _run(backward_kernel, (grad, logits, anchor), result, (), (n, kappa, rho, eta, seed, offset), temperature)
    return result


@functools.cache
def register() -> None:
    """Register the operators for CUDA tensors, and for CPU tensors where triton's interpreter is on. Idempotent."""
    operators = (topk_sample_triton, topk_sample_triton_soft, topk_sample_triton_backward)
    for operator in operators:
        for key in ("CUDA", "CPU") if interpreted() else ("CUDA",):
            torch.library.impl(f"snn_core::{operator.__name__}", key, operator)
