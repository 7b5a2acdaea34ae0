"""Compression of matrices and back in plain torch: the oracle of the tests."""

from __future__ import annotations

import torch
from torch import Tensor

from snn_core.kernels.nm_compress.packing import pack_bits, unpack_bits
from snn_core.kernels.nm_compress.pattern import NMPattern


def compress(matrix: Tensor, mask: Tensor | None, pattern: NMPattern) -> tuple[Tensor, Tensor, Tensor]:
    """``[rows, K]`` -> values ``[blocks, N]``, packed positions, and the number of blocks that hold too many (int64).

    Without a mask, non-zeros come first, then negative zeros, so that the way back keeps their sign where there is
    room; the lower positions win.
    """
    blocks = matrix.reshape(-1, pattern.m)
    if mask is None:
        kept = blocks != 0
        rank = kept.to(torch.int8) * 2 + (~kept & torch.signbit(blocks)).to(torch.int8)
    else:
        kept = mask.reshape(-1, pattern.m)
        rank = kept.to(torch.int8)
        blocks = torch.where(kept, blocks, torch.zeros_like(blocks))
    violations = (kept.sum(dim=1) > pattern.n).sum()
    order = rank.sort(dim=1, descending=True, stable=True).indices
    positions = order[:, : pattern.n].sort(dim=1).values
    return blocks.gather(1, positions), pack_bits(positions.reshape(-1), pattern.index_bits), violations


def positions(indices: Tensor, pattern: NMPattern, blocks: int) -> Tensor:
    """Positions of the values in their blocks: int64 ``[blocks, N]``."""
    return unpack_bits(indices, pattern.index_bits, blocks * pattern.n).view(blocks, pattern.n)


def decompress(
    values: Tensor, indices: Tensor, pattern: NMPattern, rows: int, scale: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """``[blocks, N]`` -> ``[rows, K]`` in ``dtype``; the product with the scale is formed in float32."""
    blocks = len(values)
    if scale is not None:
        values = (values.to(torch.float32).view(rows, -1) * scale[:, None]).view(blocks, pattern.n)
    values = values.to(dtype)
    dense = values.new_zeros(blocks, pattern.m).scatter(1, positions(indices, pattern, blocks), values)
    return dense.view(rows, blocks // max(1, rows) * pattern.m)
