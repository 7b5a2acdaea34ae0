"""What masks look like: how many patterns of a block are in use, and which positions are kept."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb, log2

import torch
from torch import Tensor

from snn_core.errors import ArgumentError
from snn_core.sparsity import NMPattern, to_blocks


@dataclass(frozen=True)
class MaskStatistics:
    """Statistics of the blocks of one mask.

    Attributes:
        pattern_entropy: Shannon entropy, in bits, of how often each block pattern occurs among the mask's blocks.
        max_pattern_entropy: the most it can be: log2 of the number of patterns with N of M, or of the number of blocks
            where that is smaller.
        position_frequency: for each of the M positions, the fraction of blocks that keep it; sums to M * kept.
        kept: fraction of all weights that are kept.
    """

    pattern_entropy: float
    max_pattern_entropy: float
    position_frequency: list[float]
    kept: float


def mask_statistics(mask: Tensor, pattern: NMPattern | str) -> MaskStatistics:
    """Statistics of a boolean mask of a weight's shape ``[out, in, *kernel]``, blocks as in ``sparsity.to_blocks``.

    Raises:
        ArgumentError: the mask is not boolean, or cannot be cut into blocks of M.
    """
    pattern = NMPattern.parse(pattern)
    if mask.dtype != torch.bool:
        raise ArgumentError(f"mask: expected bool, got {mask.dtype} {list(mask.shape)}")
    blocks = to_blocks(mask, pattern.m).reshape(-1, pattern.m)
    counts = _pattern_counts(blocks).double()
    frequency = counts / counts.sum()
    return MaskStatistics(
        pattern_entropy=abs(float(-(frequency * frequency.log2()).sum())),  # abs: no -0.0
        max_pattern_entropy=min(log2(comb(pattern.m, pattern.n)), log2(len(blocks))),
        position_frequency=blocks.double().mean(0).tolist(),
        kept=float(blocks.double().mean()),
    )


def _pattern_counts(blocks: Tensor) -> Tensor:
    """How often each row of bool ``[blocks, M]`` occurs. Up to 62 positions fit an integer."""
    if blocks.shape[1] <= 62:
        codes = (blocks.long() << torch.arange(blocks.shape[1], device=blocks.device)).sum(1)
        return torch.unique(codes, return_counts=True)[1]
    return torch.unique(blocks, dim=0, return_counts=True)[1]


def flipped_fraction(before: dict[str, Tensor], after: dict[str, Tensor]) -> float:
    """Fraction of mask entries that differ, over all layers."""
    changed = sum(int((before[name].to(mask.device) != mask).sum()) for name, mask in after.items())
    return changed / sum(mask.numel() for mask in after.values())
