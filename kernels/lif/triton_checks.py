"""What the Triton operators of LIF refuse: what the compiled ones do (``options.h``), in the same words.

The public function checks too, but the operators can be called without it, and kernels take addresses and strides
without a question.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_tensor(tensor: Tensor | None, x_seq: Tensor, name: str, shape: Sequence[int], dtype: torch.dtype) -> None:
    """As ``check_sequence`` and ``check_state``; None passes.

    Raises:
        RuntimeError: another shape, dtype or device.
    """
    if tensor is None:
        return
    if tensor.shape != shape or tensor.dtype != dtype or tensor.device != x_seq.device:
        raise RuntimeError(f"lif: {name} has another shape, dtype or device than x_seq asks for")


def check_inputs(x_seq: Tensor, v0: Tensor | None, reciprocal_tau: Tensor | None) -> None:
    """As ``check_x_seq``, and ``make_options`` for ``reciprocal_tau``.

    Raises:
        RuntimeError: a dtype, shape or device that is not allowed.
    """
    if x_seq.dtype not in DTYPES:
        raise RuntimeError("lif: x_seq must be float32, bfloat16 or float16")
    if x_seq.ndim < 1 or x_seq.shape[0] < 1:
        raise RuntimeError("lif: x_seq needs a leading time dimension of at least 1")
    check_tensor(v0, x_seq, "v0", x_seq.shape[1:], torch.float32)
    if reciprocal_tau is not None:
        if reciprocal_tau.dtype != torch.float32 or reciprocal_tau.numel() != 1:
            raise RuntimeError("lif: reciprocal_tau must be one float32 element")
        if reciprocal_tau.device != x_seq.device:
            raise RuntimeError("lif: reciprocal_tau is not on the device of x_seq")
