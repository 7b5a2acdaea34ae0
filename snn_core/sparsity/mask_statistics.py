"""What an N:M mask looks like: how varied its blocks are, which positions it keeps, how much two masks differ."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from snn_core.errors import ArgumentError
from snn_core.kernels.nm_compress import NMPattern, to_blocks

_WORD_BITS = 62  # positions of a block that one int64 code holds


@dataclass(frozen=True)
class MaskStatistics:
    """Figures of one layer's mask; see :func:`mask_statistics`.

    Attributes:
        pattern: ``"N:M"``.
        blocks: blocks of M weights.
        kept: true entries.
        pattern_entropy: Shannon entropy, in bits a block, of the distribution of patterns over the layer's blocks: 0
            where all blocks are alike.
        max_entropy: the largest value that it could have: log2 of the number of patterns with as many kept weights as
            the mask's blocks have (log2 C(M, N) where all have N), or of the number of blocks where that is smaller.
        position_frequency: ``[M]``, fraction of the blocks that keep each position; N / M each where none is preferred.
        distinct_patterns: how many different patterns occur.
        blocks_over_pattern: blocks that keep more than N.
    """

    pattern: str
    blocks: int
    kept: int
    pattern_entropy: float
    max_entropy: float
    position_frequency: tuple[float, ...]
    distinct_patterns: int
    blocks_over_pattern: int

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON-serialisable values."""
        return asdict(self) | {"position_frequency": list(self.position_frequency)}


def mask_statistics(mask: Tensor, pattern: NMPattern | str) -> MaskStatistics:
    """Statistics of the blocks of one layer's mask.

    The entropy is that of the observed frequencies (plug-in estimate), which is too low by about
    ``(distinct patterns - 1) / (2 ln 2 blocks)`` bits (Miller, "Note on the bias of information estimates", 1955):
    compare layers of like size, or with many blocks a pattern.

    Args:
        mask: boolean, of the weight's shape ``[out, in, *kernel]``; true where a weight is kept. Any device.
        pattern: N:M; blocks are cut as :func:`snn_core.sparsity.to_blocks` does.

    Raises:
        ArgumentError: the mask is not boolean, or cannot be cut into blocks of M.
    """
    pattern = NMPattern.parse(pattern)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        given = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise ArgumentError(f"mask must be a boolean tensor, got {given}")
    blocks = to_blocks(mask, pattern.m).reshape(-1, pattern.m)
    count = len(blocks)
    if count == 0:
        raise ArgumentError(f"mask of shape {list(mask.shape)} has no block")
    occurrences = _occurrences(blocks)
    probability = occurrences.double() / count
    kept_in_block = blocks.sum(dim=1)
    possible = sum(math.comb(pattern.m, kept) for kept in kept_in_block.unique().tolist())
    return MaskStatistics(
        pattern=str(pattern),
        blocks=count,
        kept=int(kept_in_block.sum()),
        # Not -sum: a single pattern must give 0, not -0.
        pattern_entropy=float((probability * (1 / probability).log2()).sum()),
        max_entropy=min(math.log2(possible), math.log2(count)),
        position_frequency=tuple(blocks.sum(dim=0).div(count).tolist()),
        distinct_patterns=len(occurrences),
        blocks_over_pattern=int((kept_in_block > pattern.n).sum()),
    )


def _occurrences(blocks: Tensor) -> Tensor:
    """How often each pattern occurs among the rows of boolean ``[blocks, M]``."""
    words = []
    for part in blocks.split(_WORD_BITS, dim=1):
        place = torch.ones(part.shape[1], dtype=torch.int64, device=part.device).cumsum(0) - 1
        words.append((part.to(torch.int64) << place).sum(dim=1))
    if len(words) == 1:
        return words[0].unique(return_counts=True)[1]
    return torch.stack(words, dim=1).unique(dim=0, return_counts=True)[1]


def flips(old: Tensor, new: Tensor) -> float:
    """Fraction of a mask's entries that differ between two masks of the same layer, 0 to 1.

    A weight that takes the place of another one is two flips, so that 2 N / M is the most for N:M with N <= M / 2.

    Raises:
        ArgumentError: not two boolean tensors of one shape.
    """
    if old.dtype != torch.bool or new.dtype != torch.bool or old.shape != new.shape:
        raise ArgumentError(
            f"old and new must be boolean masks of one shape, got {old.dtype} {list(old.shape)} and "
            f"{new.dtype} {list(new.shape)}"
        )
    if old.numel() == 0:
        return 0.0
    return int((old != new).sum()) / old.numel()
