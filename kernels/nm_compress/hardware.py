"""The order in which sparse tensor cores want 2:4 metadata, and torch's semi-structured tensors in and out.

Two positions of two bits make four bits a block, which is how the instructions take them; only the order of the
metadata words differs: ``reorder_meta`` of CUTLASS (tools/util/include/cutlass/util/host_reorder.h) interleaves rows,
transposes 2 x 2 tiles and stores pairs of columns column by column. float32 is 1:2, written as if each value were two
16-bit ones.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from snn_core.errors import ArgumentError
from snn_core.kernels.nm_compress.compressed import CompressedNM
from snn_core.kernels.nm_compress.packing import pack_bits
from snn_core.kernels.nm_compress.pattern import NMPattern

if TYPE_CHECKING:
    from torch.sparse import SparseSemiStructuredTensor

_HALVES = (torch.float16, torch.bfloat16)
_BYTES = (torch.int8, torch.float8_e4m3fn)
#: 1:2 positions as pairs of 16-bit positions: 0 -> (0, 1), 1 -> (2, 3).
_FLOAT_CODES = (0b0100, 0b1110)


def hardware_metadata(weight: CompressedNM) -> tuple[Tensor, Tensor]:
    """Values and metadata as the sparse tensor-core kernels of CUTLASS, and torch's, take them.

    Args:
        weight: 2:4 in 16 or 8 bits, or 1:2 in float32. With K = in * kernel size: 16 bit: out a multiple of 32, K of
            32; 8 bit: 16 and 64; float32: 32 and 16. The scale is not looked at.

    Returns:
        values ``[out, K / 2]`` in the weight's dtype, and metadata in hardware order: int16 ``[out, K / 16]`` for 16
        bit, int32 ``[out, K / 32]`` for 8 bit, int16 ``[out, K / 8]`` for float32.

    Raises:
        ArgumentError: another pattern, dtype or size.
    """
    pattern, word = _expected(weight.dtype)
    if weight.pattern != pattern:
        raise ArgumentError(f"weight: {weight.dtype} tensor cores take {pattern}, got {weight.pattern}")
    rows = weight.shape[0]
    columns = torch.Size(weight.shape[1:]).numel()
    _check_size(rows, columns, weight.dtype, word)
    if pattern.m == 4:
        # Already one nibble a block, low bits first: only words have to be made of the bytes.
        words = weight.indices.clone().view(word)
    else:
        codes = torch.tensor(_FLOAT_CODES, device=weight.device)[weight.positions().reshape(-1)]
        words = pack_bits(codes, 4).view(word)
    return weight.values.reshape(rows, -1), _reorder(words.view(rows, -1))


def from_hardware_metadata(values: Tensor, metadata: Tensor, shape: tuple[int, ...] | None = None) -> CompressedNM:
    """Inverse of :func:`hardware_metadata`.

    Args:
        values: ``[out, K / 2]``.
        metadata: int16 or int32 in hardware order.
        shape: of the dense weight; by default ``[out, K]``.

    Raises:
        ArgumentError: dtypes and sizes that do not belong together, or metadata that is no position code.
    """
    pattern, word = _expected(values.dtype)
    if values.ndim != 2 or metadata.ndim != 2:
        raise ArgumentError(f"values and metadata: expected two matrices, got {values.ndim}-D and {metadata.ndim}-D")
    rows, columns = values.shape[0], 2 * values.shape[1]
    _check_size(rows, columns, values.dtype, word)
    expected = (rows, columns * 4 // pattern.m // (8 * word.itemsize))
    if metadata.dtype != word or metadata.shape != expected or metadata.device != values.device:
        raise ArgumentError(
            f"metadata: expected {word} {list(expected)} on {values.device}, got {metadata.dtype} "
            f"{list(metadata.shape)} on {metadata.device}"
        )
    shape = (rows, columns) if shape is None else tuple(shape)
    if torch.Size(shape).numel() != rows * columns or shape[0] != rows:
        raise ArgumentError(f"shape: {list(shape)} does not have {rows} rows of {columns} weights")
    stream = _restore(metadata).view(torch.uint8).reshape(-1)
    if pattern.m == 2:
        codes = torch.stack((stream & 15, stream >> 4), 1).reshape(-1)
        positions = (codes == _FLOAT_CODES[1]).to(torch.int64)
        if not torch.isin(codes, torch.tensor(_FLOAT_CODES, dtype=torch.uint8, device=codes.device)).all():
            raise ArgumentError("metadata: a code that stands for no position in a 1:2 block")
        stream = pack_bits(positions, 1)
    return CompressedNM(values.reshape(-1, pattern.n), stream, shape, pattern)


def to_semi_structured(weight: CompressedNM) -> SparseSemiStructuredTensor:
    """The weight as torch's semi-structured tensor in its CUTLASS form, ``[out, K]``; values are shared, not copied.

    Convolutions come as matrices whose columns are ordered kernel position first, channel last. Everything but a
    matrix product on a GPU works on the CPU too (``to_dense``, for example).

    Raises:
        ArgumentError: as :func:`hardware_metadata`; float8 values, which torch's form does not hold; or a scale, which
            it cannot say.
    """
    if weight.scale is not None:
        raise ArgumentError("weight: torch's form has no scale; multiply it in, or take it off with with_scale(None)")
    if weight.dtype == torch.float8_e4m3fn:
        raise ArgumentError("weight: torch's CUTLASS form does not hold float8 values")
    from torch.sparse import SparseSemiStructuredTensorCUTLASS

    values, metadata = hardware_metadata(weight)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*SparseSemiStructuredTensor is in prototype stage.*")
        return SparseSemiStructuredTensorCUTLASS(
            torch.Size((weight.shape[0], 2 * values.shape[1])),
            packed=values,
            meta=metadata,
            packed_t=None,
            meta_t=None,
            compressed_swizzled_bitmask=None,
        )


def from_semi_structured(tensor: SparseSemiStructuredTensor, shape: tuple[int, ...] | None = None) -> CompressedNM:
    """A weight from torch's semi-structured tensor.

    Args:
        tensor: CUTLASS form, read as it is; or cuSPARSELt form, whose metadata is opaque: it is multiplied out on its
            GPU.
        shape: of the dense weight; by default that of ``tensor``.

    Raises:
        ArgumentError: no such tensor, or one that holds only its transpose; and as :func:`from_hardware_metadata`.
    """
    from torch.sparse import SparseSemiStructuredTensor

    if not isinstance(tensor, SparseSemiStructuredTensor):
        raise ArgumentError(f"tensor: expected torch's SparseSemiStructuredTensor, got {type(tensor).__name__}")
    if tensor.packed is None:
        raise ArgumentError("tensor: holds only the transposed weight; pass tensor.t()")
    if tensor.meta is not None and tensor.meta.ndim == 2:
        return from_hardware_metadata(tensor.packed, tensor.meta, shape or tuple(tensor.shape))
    dense = tensor.to_dense()
    pattern, _ = _expected(dense.dtype)
    if dense.dtype == torch.int8:
        raise ArgumentError("tensor: int8 in cuSPARSELt form cannot be read; its metadata is opaque")
    weight = CompressedNM.from_dense(dense, pattern)
    return weight if shape is None else CompressedNM(weight.values, weight.indices, tuple(shape), pattern)


def _expected(dtype: torch.dtype) -> tuple[NMPattern, torch.dtype]:
    """Pattern and metadata word of a value dtype."""
    if dtype == torch.float32:
        return NMPattern(1, 2), torch.int16
    if dtype in _HALVES:
        return NMPattern(2, 4), torch.int16
    if dtype in _BYTES:
        return NMPattern(2, 4), torch.int32
    raise ArgumentError(f"values: sparse tensor cores take float32, 16-bit floats, int8 and e4m3, not {dtype}")


def _check_size(rows: int, columns: int, dtype: torch.dtype, word: torch.dtype) -> None:
    row_step = _interleaved(word) * 8
    column_step = 64 // dtype.itemsize
    if rows % row_step or columns % column_step or rows == 0 or columns == 0:
        raise ArgumentError(
            f"weight: a matrix of {rows} x {columns} has no metadata order for {dtype}: rows must be a multiple of "
            f"{row_step}, columns of {column_step}"
        )


def _interleaved(word: torch.dtype) -> int:
    """Rows of 8 apart that become neighbours."""
    return 4 if word.itemsize == 2 else 2


def _reorder(words: Tensor) -> Tensor:
    rows, columns = words.shape
    interleaved = words.view(-1, _interleaved(words.dtype), 8, columns).transpose(1, 2)
    tiles = interleaved.reshape(rows // 2, 2, columns // 2, 2)
    return tiles.permute(2, 0, 3, 1).contiguous().view(rows, columns)


def _restore(words: Tensor) -> Tensor:
    rows, columns = words.shape
    tiles = words.reshape(columns // 2, rows // 2, 2, 2).permute(1, 3, 0, 2)
    interleaved = tiles.reshape(-1, 8, _interleaved(words.dtype), columns)
    return interleaved.transpose(1, 2).contiguous().view(rows, columns)
