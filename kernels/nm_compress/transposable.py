"""Masks that obey an N:4 pattern along rows and columns at once, so that the transposed weight is sparse too.

Training with sparse weights multiplies by the weight forward and by its transpose backward; both can be compressed only
if every 4 x 4 tile keeps N in each row and each column (Hubara et al., "Accelerated Sparse Neural Training: A Provable
and Efficient Method to Find N:M Transposable Masks", NeurIPS 2021, who solve a flow problem; for M = 4 there are at
most 90 masks, and all are tried here).
"""

from __future__ import annotations

import functools
import itertools

import torch
from torch import Tensor

from snn_core.errors import ArgumentError
from snn_core.kernels.nm_compress.pattern import NMPattern, from_blocks, to_blocks

_CHUNK = 1 << 16  # tiles at once: 47 MB of scores


def transposable_mask(weight: Tensor, pattern: NMPattern | str = "2:4") -> Tensor:
    """The mask of largest kept magnitude with exactly N of 4 in each row and each column of every 4 x 4 tile.

    Args:
        weight: ``[out, in, *kernel]``, ``out`` and ``in`` multiples of 4. Tiles are cut over ``out`` and ``in``, for
            convolutions at each kernel position.
        pattern: ``"1:4"``, ``"2:4"``, ``"3:4"`` or ``"4:4"``.

    Returns:
        Boolean, of the weight's shape. Sums are formed in float64; of equal ones the mask with the earlier positions
        wins.

    Raises:
        ArgumentError: another M, a shape that cannot be cut, or weights that are not finite.
    """
    pattern = NMPattern.parse(pattern)
    if pattern.m != 4:
        raise ArgumentError(f"pattern: transposable masks are N:4, got {pattern}")
    if weight.ndim < 2 or weight.shape[0] % 4:
        raise ArgumentError(f"weight of shape {tuple(weight.shape)}: output channels must be a multiple of 4")
    blocks = to_blocks(weight.detach(), 4)
    if not torch.isfinite(blocks).all():
        raise ArgumentError(
            f"weight of shape {tuple(weight.shape)} holds NaN or infinite values; cannot rank magnitudes"
        )
    tiles = blocks.unflatten(0, (-1, 4)).movedim(1, -2)  # [out / 4, *kernel, in / 4, 4, 4]
    magnitude = tiles.reshape(-1, 16).abs()
    candidates = _candidates(pattern.n).to(weight.device)
    chosen = [candidates[(part.double() @ candidates.double().T).argmax(1)] for part in magnitude.split(_CHUNK)]
    mask = torch.cat(chosen).view(tiles.shape) if chosen else torch.zeros_like(tiles, dtype=torch.bool)
    return from_blocks(mask.movedim(-2, 1).flatten(0, 1), weight.shape)


@functools.cache
def _candidates(n: int) -> Tensor:
    """Every 4 x 4 mask with n in each row and column, bool ``[masks, 16]``, earlier positions first."""
    rows = [tuple(int(j in kept) for j in range(4)) for kept in itertools.combinations(range(4), n)]
    masks = [
        tile
        for tile in itertools.product(rows, repeat=4)
        if all(sum(column) == n for column in zip(*tile, strict=True))
    ]
    return torch.tensor(masks, dtype=torch.bool).view(-1, 16)
