"""The torch.library fragment that operators are defined in, and the layouts of their outputs.

``tensors.h`` beside this file lays outputs out in the same way; fake kernels must agree with it stride by stride.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

LIBRARY = torch.library.Library("snn_core", "FRAGMENT")
#: Inputs are taken by stride, so a compiler may lay them out as it likes and need not copy them back.
TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout)


def empty_sequence_like(x_seq: Tensor, steps: Any = None, dtype: torch.dtype | None = None) -> Tensor:
    """``[steps, ...]`` with the layout of one time step of ``x_seq`` inside and time outermost."""
    step = torch.empty_like(x_seq[0])
    steps = x_seq.shape[0] if steps is None else steps
    return x_seq.new_empty_strided((steps, *step.shape), (step.numel(), *step.stride()), dtype=dtype or x_seq.dtype)


def dense_strides(size: Sequence[Any], like: Sequence[Any]) -> list[Any]:
    """Strides of a dense tensor whose dimensions lie in memory in the order of ``like`` (ties: as they come)."""
    order = sorted(range(len(size)), key=lambda d: like[d], reverse=True)
    strides: list[Any] = [1] * len(size)
    stride: Any = 1
    for d in reversed(order):
        strides[d] = stride
        stride = stride * torch.sym_max(1, size[d])
    return strides


def packed_size(size: Any) -> Any:
    """Bytes that hold ``size`` spikes."""
    return (size + 7) // 8


def may_overlap(tensor: Tensor) -> bool:
    """Whether two elements may lie at one address: a dimension must step over all that is inside it."""
    if tensor.numel() == 0:
        return False
    reach = 0
    for stride, size in sorted((stride, size) for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
        if size > 1 and stride <= reach:
            return True
        reach += stride * (size - 1)
    return False
