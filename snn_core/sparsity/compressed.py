"""Compressed N:M weights: the kept values and their positions, log2(M) bits each."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from snn_core.errors import ArgumentError
from snn_core.sparsity.packing import pack_bits, packed_size, unpack_bits
from snn_core.sparsity.pattern import NMPattern, check_nm, from_blocks, to_blocks


@dataclass(frozen=True)
class CompressedNM:
    """A weight that obeys an N:M pattern, stored as N values and N positions for each block of M.

    Attributes:
        values: ``[blocks, N]``, the weight's dtype. Blocks in the order of :func:`snn_core.sparsity.to_blocks`:
            output channel, kernel position, then block along the reduction dimension.
        indices: uint8, the positions in each block (ascending) as a stream of ``ceil(log2(M))``-bit numbers.
        shape: shape of the dense weight.
        pattern: the N:M pattern.

    A block with fewer than N non-zeros is filled up with zeros at positions of its own.
    """

    values: torch.Tensor
    indices: torch.Tensor
    shape: tuple[int, ...]
    pattern: NMPattern

    def __post_init__(self) -> None:
        pattern, blocks = self.pattern, self.num_blocks
        if self.values.shape != (blocks, pattern.n):
            raise ArgumentError(
                f"values: expected shape [{blocks}, {pattern.n}] for a {pattern} weight of shape {list(self.shape)}, "
                f"got {list(self.values.shape)}"
            )
        positions = self.positions()
        if blocks and int(positions.max()) >= pattern.m:
            raise ArgumentError(f"indices: position {int(positions.max())} is outside a block of {pattern.m}")
        if (positions[:, 1:] <= positions[:, :-1]).any():
            raise ArgumentError("indices: the positions inside a block must ascend without repetition")

    @property
    def num_blocks(self) -> int:
        """Number of blocks; raises ArgumentError when ``shape`` cannot be cut into blocks of M."""
        if len(self.shape) < 2 or self.shape[1] <= 0 or self.shape[1] % self.pattern.m or min(self.shape) < 0:
            raise ArgumentError(
                f"shape {list(self.shape)} cannot be cut into blocks of {self.pattern.m} along dimension 1"
            )
        return torch.Size(self.shape).numel() // self.pattern.m

    @classmethod
    def from_dense(
        cls, weight: torch.Tensor, pattern: NMPattern | str = "2:4", mask: torch.Tensor | None = None
    ) -> CompressedNM:
        """Compress a dense weight.

        Args:
            weight: ``[out, in]``, ``[out, in, k]`` or ``[out, in, kh, kw]``, any floating dtype.
            pattern: N:M.
            mask: boolean of the same shape: the kept positions; weights outside it are dropped. Without it, all
                non-zero weights are kept, and negative zeros wherever a block has room.

        Raises:
            ArgumentError: the shape cannot be blocked, the mask has another shape or dtype, or a block holds more
                than N weights (the message says how many blocks do).
        """
        pattern = NMPattern.parse(pattern)
        weight = weight.detach()
        if mask is not None and (mask.shape != weight.shape or mask.dtype != torch.bool):
            raise ArgumentError(
                f"mask: expected bool {list(weight.shape)} like the weight, got {mask.dtype} {list(mask.shape)}"
            )
        violations = check_nm(weight if mask is None else mask, pattern)
        if violations:
            total = weight.numel() // pattern.m
            source = "weight" if mask is None else "mask"
            raise ArgumentError(f"{source} breaks the {pattern} pattern: {violations} of {total} blocks keep too many")
        blocks = to_blocks(weight, pattern.m).reshape(-1, pattern.m)
        if mask is None:
            # Non-zeros first, then negative zeros, so that the round trip keeps their sign where there is room.
            rank = (blocks != 0).to(torch.int8) * 2 + ((blocks == 0) & torch.signbit(blocks)).to(torch.int8)
        else:
            rank = to_blocks(mask, pattern.m).reshape(-1, pattern.m).to(torch.int8)
            blocks = torch.where(rank > 0, blocks, torch.zeros_like(blocks))
        order = rank.sort(dim=1, descending=True, stable=True).indices
        positions = order[:, : pattern.n].sort(dim=1).values
        values = blocks.gather(1, positions).contiguous()
        return cls(values, pack_bits(positions.reshape(-1), pattern.index_bits), tuple(weight.shape), pattern)

    def positions(self) -> torch.Tensor:
        """Positions of the values in their blocks: int64 ``[blocks, N]``, ascending in each row."""
        count = self.num_blocks * self.pattern.n
        return unpack_bits(self.indices, self.pattern.index_bits, count).view(-1, self.pattern.n)

    def to_dense(self) -> torch.Tensor:
        """The dense weight of ``shape``, bit for bit the compressed one (dropped entries are +0)."""
        blocks = self.values.new_zeros(self.num_blocks, self.pattern.m)
        blocks.scatter_(1, self.positions(), self.values)
        return from_blocks(blocks, self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of values and packed indices."""
        return self.values.nbytes + self.indices.nbytes

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weight."""
        return self.values.dtype

    def __repr__(self) -> str:
        dense = torch.Size(self.shape).numel() * self.values.element_size()
        return (
            f"CompressedNM({self.pattern}, shape={list(self.shape)}, dtype={self.dtype}, "
            f"nbytes={self.nbytes} of {dense} dense)"
        )


def compressed_nbytes(shape: tuple[int, ...] | torch.Size, pattern: NMPattern | str, element_size: int) -> int:
    """Bytes a weight of ``shape`` takes compressed: values of ``element_size`` bytes plus packed indices."""
    pattern = NMPattern.parse(pattern)
    kept = torch.Size(shape).numel() // pattern.m * pattern.n
    return kept * element_size + packed_size(kept, pattern.index_bits)
