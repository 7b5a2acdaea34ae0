"""Dispatch of compression and decompression; the operators are defined in ``nm_matmul/schema.py``."""

from __future__ import annotations

import torch
from torch import Tensor

from snn_core.errors import ArgumentError, BackendUnavailableError
from snn_core.kernels.native import resolve_backend
from snn_core.kernels.nm_compress import reference
from snn_core.kernels.nm_compress.pattern import NMPattern

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_VALUES = (*_FLOATS, torch.int8, torch.float8_e4m3fn)


def compress(
    matrix: Tensor, mask: Tensor | None, pattern: NMPattern, backend: str = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`reference.compress` by a backend, of contiguous matrices.

    Raises:
        BackendUnavailableError: the backend asked for cannot run here or on these arguments.
    """
    chosen = _choose("nm_compress", backend, matrix, pattern, _FLOATS)
    if chosen == "reference":
        return reference.compress(matrix, mask, pattern)
    operator = torch.ops.snn_core.nm_compress_triton if chosen == "triton" else torch.ops.snn_core.nm_compress
    return operator(matrix, mask, pattern.n, pattern.m)


def decompress(
    values: Tensor,
    indices: Tensor,
    pattern: NMPattern,
    rows: int,
    scale: Tensor | None,
    dtype: torch.dtype,
    backend: str = "auto",
) -> Tensor:
    """:func:`reference.decompress` by a backend; differentiable in the values.

    Raises:
        BackendUnavailableError: the backend asked for cannot run here or on these arguments.
    """
    differentiable = values.requires_grad and torch.is_grad_enabled()
    chosen = "reference" if differentiable else _choose("nm_decompress", backend, values, pattern, _VALUES, dtype)
    if chosen == "reference":
        return reference.decompress(values, indices, pattern, rows, scale, dtype)
    operator = torch.ops.snn_core.nm_decompress_triton if chosen == "triton" else torch.ops.snn_core.nm_decompress
    return operator(values, indices, pattern.n, pattern.m, rows, scale, dtype)


def _choose(
    name: str,
    backend: str,
    operand: Tensor,
    pattern: NMPattern,
    dtypes: tuple[torch.dtype, ...],
    out_dtype: torch.dtype = torch.float32,
) -> str:
    if torch.compiler.is_compiling() or operand.device.type not in ("cpu", "cuda"):
        return "reference"
    try:
        chosen = resolve_backend(backend, operand.device, operand.dtype, dtypes)
    except (ArgumentError, BackendUnavailableError):
        if backend != "auto":
            raise
        # SNN_BACKEND is about products; weights change their form everywhere, to the same bits.
        return "reference"
    if chosen == "reference":
        return chosen
    obstacle = "" if out_dtype in _FLOATS else f"no results in {out_dtype}"
    if chosen == "triton" and not obstacle:
        from snn_core.kernels.nm_matmul.triton import why_not

        obstacle = why_not(pattern.n, pattern.m)
    if not obstacle:
        return chosen
    if backend == "auto":
        return "reference"
    raise BackendUnavailableError(f"backend {chosen!r} cannot run {name} with {pattern}: {obstacle}")
