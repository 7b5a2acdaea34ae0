"""The N:M operators in Triton: launchers and registration. The kernels are in ``triton_kernels.py``.

Import only where triton is installed; no GPU and no driver are needed for that. Sums are cut by shape alone and added
in a fixed order: the same bits at every call.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from snn_core.kernels.native.library import LIBRARY, packed_size
from snn_core.kernels.native.triton_launch import interpreted
from snn_core.kernels.nm_matmul.schema import TAGS
from snn_core.kernels.nm_matmul.triton_kernels import (
    E4M3,
    INT8,
    PLAIN,
    compress_kernel,
    decompress_kernel,
    dense_kernel,
    mask_kernel,
    pack_positions_kernel,
    reduce_kernel,
)

#: Largest N that is unrolled and largest M that is laid out over registers.
MAX_N, MAX_M = 16, 64
VALUE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.float8_e4m3fn)
X_DTYPES = VALUE_DTYPES[:3]
#: Programs that the reduction is split for: about two a multiprocessor of the GPUs of today, whatever this one has.
WANTED_PROGRAMS = 256
#: Elements, with padding, that a program of the kernels without a product handles.
FLAT_ELEMENTS = 4096

_COMPUTE = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
_STORED = {torch.int8: INT8.value, torch.float8_e4m3fn: E4M3.value}
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def why_not(n: int, m: int) -> str:
    """Why the kernels do not take a pattern; empty where they do."""
    return "" if n <= MAX_N and m <= MAX_M else f"{n}:{m} is beyond {MAX_N}:{MAX_M} in Triton"


@dataclass(frozen=True)
class Tiling:
    """Rows, outputs and weights (with padding) along the reduction that a program takes at once, its warps, and loads
    that are in flight."""

    rows: int
    outputs: int
    size: int
    warps: int
    stages: int


def tiling(rows: int, fours: bool) -> Tiling:
    """By rows: few are limited by the bytes of the weight, many by decompressing it again and again.

    ``fours``: 2:4 or 1:4 in 16 bits; the others need more registers. From machine code without spills; speed is not yet
    measured on a GPU.
    """
    if interpreted():
        return Tiling(16, 32, 128, 4, 1)
    if not fours:
        return Tiling(16, 32, 64, 4, 2) if rows <= 16 else Tiling(64, 32, 64, 4, 2)
    if rows <= 16:
        return Tiling(16, 64, 128, 4, 4)
    if rows <= 32:
        return Tiling(32, 64, 128, 4, 4)
    return Tiling(64, 64, 128, 4, 3) if rows <= 64 else Tiling(128, 64, 128, 8, 3)


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)


def launch(kernel: Any, grid: Sequence[int], arguments: Sequence[Any], options: dict[str, Any]) -> None:
    """Run ``kernel`` on the current stream of the device of its first argument."""
    device = arguments[0].device
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[tuple(grid)](*arguments, **options)
        return
    kernel[tuple(grid)](*arguments, **options)


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise RuntimeError(message)


def _check_weight(values: Tensor, indices: Tensor | None, n: int, m: int, rows: int, scale: Tensor | None) -> int:
    """Blocks of a row. What does not fit would be read beyond its end."""
    _check(indices is not None, "indices is None; Triton takes compressed weights")
    assert indices is not None
    _check(not why_not(n, m) and 1 <= n <= m and m >= 2, f"n, m: {why_not(n, m) or f'{n}:{m} is no pattern'}")
    _check(values.dtype in VALUE_DTYPES, f"values has dtype {values.dtype}")
    blocks = values.shape[0]
    _check(values.dim() == 2 and values.shape[1] == n and values.is_contiguous(), "values must be [blocks, n], dense")
    _check(rows >= 0 and (blocks % rows == 0 if rows else blocks == 0), "values has no whole number of blocks a row")
    size = packed_size(blocks * n * (m - 1).bit_length())
    fits = indices.dtype == torch.uint8 and indices.shape == (size,) and indices.is_contiguous()
    _check(fits and indices.device == values.device, f"indices must be uint8 [{size}] beside values")
    _check_row(scale, "scale", rows, values.device)
    return blocks // rows if rows else 0


def _check_row(row: Tensor | None, name: str, size: int, device: torch.device) -> None:
    if row is not None:
        fits = row.dtype == torch.float32 and row.shape == (size,) and row.is_contiguous() and row.device == device
        _check(fits, f"{name} must be float32 [{size}] beside values")


def _weight(
    values: Tensor, indices: Tensor, n: int, m: int, row_blocks: int, compute: torch.dtype
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Values and indices as the kernels read them, and the constants that say how."""
    stored = _STORED.get(values.dtype, PLAIN.value)
    whole_words = m == 4 and n <= 2 and row_blocks % (16 // n) == 0 and indices.data_ptr() % 4 == 0
    fours = whole_words and compute.itemsize == 2 and values.data_ptr() % (n * values.element_size()) == 0
    constants = {
        "N": n, "M": m, "MP": 1 << (m - 1).bit_length(), "BITS": (m - 1).bit_length(), "FOURS": fours,
        "STORED": stored, "COMPUTE": _COMPUTE[compute],
    }  # fmt: skip
    if fours:
        return values.view(_INTEGERS[n * values.element_size()]), indices.view(torch.int32), constants
    return (values.view(torch.uint8) if stored == E4M3.value else values), indices, constants


def _product_dtype(x: torch.dtype, values: torch.dtype) -> torch.dtype:
    """Type in which both operands are exact; 8-bit values are so in every one."""
    return x if values in (x, torch.int8, torch.float8_e4m3fn) else torch.float32


def nm_dense_triton(
    x: Tensor, values: Tensor, indices: Tensor | None, n: int, m: int, weight_shape: Sequence[int],
    scale: Tensor | None, bias: Tensor | None, path: int,
) -> Tensor:  # fmt: skip
    """``snn_core::nm_dense_triton``."""
    outputs, size = weight_shape[0], weight_shape[1]
    _check(len(weight_shape) == 4 and weight_shape[2:] == [1, 1], f"weight_shape is {weight_shape}; need [O, K, 1, 1]")
    row_blocks = _check_weight(values, indices, n, m, outputs, scale)
    _check_row(bias, "bias", outputs, values.device)
    _check(path == 0, f"path is {path}; Triton has one way")
    _check(x.dtype in X_DTYPES, f"x has dtype {x.dtype}")
    _check(x.dim() == 2 and x.is_contiguous() and x.device == values.device, "x must be [R, K], dense, beside values")
    _check(x.shape[1] == size and (row_blocks * m == size or not outputs), "x, values and weight_shape differ in K")
    rows = x.shape[0]
    y = x.new_empty(rows, outputs)
    if y.numel() == 0:
        return y
    if size == 0:
        return y.zero_() if bias is None else y.copy_(bias.expand_as(y))
    assert indices is not None
    product_dtype = _product_dtype(x.dtype, values.dtype)
    stored, positions, constants = _weight(values, indices, n, m, row_blocks, product_dtype)
    chosen = tiling(rows, constants["FOURS"])
    blocks = max(1, chosen.size // constants["MP"])
    grid = (_cdiv(outputs, chosen.outputs), _cdiv(rows, chosen.rows))
    tiles = _cdiv(row_blocks, blocks)
    splits = max(1, min(WANTED_PROGRAMS // (grid[0] * grid[1]), tiles // 2))
    split_tiles = _cdiv(tiles, splits)
    splits = _cdiv(tiles, split_tiles)
    partials = x.new_empty((splits, rows, outputs), dtype=torch.float32) if splits > 1 else None
    launch(
        dense_kernel, (*grid, splits),
        (x, stored, positions, scale, bias, y, partials, rows, outputs, row_blocks, size, row_blocks * n,
         indices.numel(), split_tiles),
        {**constants, "BR": chosen.rows, "BO": chosen.outputs, "NB": blocks, "num_warps": chosen.warps,
         "num_stages": chosen.stages},
    )  # fmt: skip
    if partials is not None:
        block = 256
        arguments = (partials, scale, bias, y, rows, outputs, splits)
        launch(reduce_kernel, (_cdiv(outputs, block), rows), arguments, {"BLOCK": block, "num_warps": 4})
    return y


def nm_decompress_triton(
    values: Tensor, indices: Tensor, n: int, m: int, rows: int, scale: Tensor | None, out_dtype: torch.dtype
) -> Tensor:
    """``snn_core::nm_decompress_triton``."""
    row_blocks = _check_weight(values, indices, n, m, rows, scale)
    _check(out_dtype in X_DTYPES, f"out_dtype is {out_dtype}")
    dense = values.new_empty((rows, row_blocks * m), dtype=out_dtype)
    if dense.numel() == 0:
        return dense
    exact = values.dtype if values.dtype in X_DTYPES else torch.bfloat16
    stored, positions, constants = _weight(values, indices, n, m, row_blocks, exact)
    blocks = max(1, 256 // constants["MP"])
    tile_rows = max(1, FLAT_ELEMENTS // (blocks * constants["MP"]))
    launch(
        decompress_kernel, (_cdiv(row_blocks, blocks), _cdiv(rows, tile_rows)),
        (stored, positions, scale, dense, rows, row_blocks, row_blocks * m, row_blocks * n, indices.numel()),
        {**constants, "ROWS": tile_rows, "NB": blocks, "num_warps": 4},
    )  # fmt: skip
    return dense


def _check_dense(dense: Tensor, n: int, m: int) -> int:
    _check(not why_not(n, m) and 1 <= n <= m and m >= 2, f"n, m: {why_not(n, m) or f'{n}:{m} is no pattern'}")
    _check(
        dense.dim() == 2 and dense.is_contiguous() and dense.shape[1] % m == 0, "dense must be [rows, K], K % m == 0"
    )
    _check(dense.is_floating_point(), f"dense has dtype {dense.dtype}")
    return dense.numel() // m


def _flat(dense: Tensor, n: int, m: int, per_block: int) -> tuple[Tensor, dict[str, Any]]:
    """The weight as integers, and constants for programs of about FLAT_ELEMENTS / per_block blocks' lanes."""
    integers = dense.view(_INTEGERS[dense.element_size()])
    padded = 1 << (m - 1).bit_length()
    blocks = max(8, FLAT_ELEMENTS // (padded * per_block))
    return integers, {"SIGN": torch.iinfo(integers.dtype).min, "N": n, "M": m, "MP": padded, "NB": blocks}


def nm_compress_triton(dense: Tensor, mask: Tensor | None, n: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """``snn_core::nm_compress_triton``."""
    blocks, bits = _check_dense(dense, n, m), (m - 1).bit_length()
    if mask is not None:
        fits = mask.shape == dense.shape and mask.dtype == torch.bool and mask.device == dense.device
        _check(fits, "mask must be bool of the shape of dense, beside it")
        mask = mask.contiguous().view(torch.uint8)
    values = dense.new_empty((blocks, n))
    indices = dense.new_empty(packed_size(blocks * n * bits), dtype=torch.uint8)
    if blocks == 0:
        return values, indices, dense.new_zeros((), dtype=torch.int64)
    integers, constants = _flat(dense, n, m, 1)
    programs = _cdiv(blocks, constants["NB"])
    positions = dense.new_empty((blocks, n), dtype=torch.uint8)
    violations = dense.new_empty(programs, dtype=torch.int32)
    arguments = (integers, mask, values.view(integers.dtype), positions, violations, blocks)
    launch(compress_kernel, (programs,), arguments, {**constants, "num_warps": 4})
    packing = (positions, indices, positions.numel(), indices.numel())
    launch(pack_positions_kernel, (_cdiv(indices.numel(), 1024),), packing, {"BITS": bits, "BLOCK": 1024})
    return values, indices, violations.sum(dtype=torch.int64)


def nm_mask_triton(dense: Tensor, n: int, m: int) -> Tensor:
    """``snn_core::nm_mask_triton``: bool of the shape of ``dense [rows, K]``, as nm_mask_by_magnitude."""
    blocks = _check_dense(dense, n, m)
    mask = torch.empty_like(dense, dtype=torch.bool)
    if blocks:
        integers, constants = _flat(dense, n, m, 1 << (m - 1).bit_length())
        arguments = (integers, mask.view(torch.uint8), blocks)
        launch(mask_kernel, (_cdiv(blocks, constants["NB"]),), arguments, {**constants, "num_warps": 4})
    return mask


LIBRARY.define("nm_mask_triton(Tensor dense, int n, int m) -> Tensor", tags=TAGS)
torch.library.register_fake(
    "snn_core::nm_mask_triton", lambda dense, n, m: torch.empty_like(dense, dtype=torch.bool), lib=LIBRARY
)


@functools.cache
def register() -> None:
    """Register the operators for CUDA tensors, and for CPU tensors where triton's interpreter is on. Idempotent."""
    for key in ("CUDA", "CPU") if interpreted() else ("CUDA",):
        for operator in (nm_dense_triton, nm_decompress_triton, nm_compress_triton, nm_mask_triton):
            torch.library.impl(f"snn_core::{operator.__name__}", key, operator)
