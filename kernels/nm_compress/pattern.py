"""N:M patterns: at most N non-zero weights in every block of M consecutive weights along the reduction dimension."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from snn_core.errors import ArgumentError

MAX_BLOCK = 256  # so that a position in a block always fits one byte


@dataclass(frozen=True)
class NMPattern:
    """At most ``n`` non-zeros in each block of ``m`` weights.

    Raises:
        ArgumentError: unless ``1 <= n <= m`` and ``2 <= m <= 256``.
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        for name, value in (("N", self.n), ("M", self.m)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise ArgumentError(f"N:M pattern: {name} must be an integer, got {value!r}")
        if not 2 <= self.m <= MAX_BLOCK:
            raise ArgumentError(f"N:M pattern '{self.n}:{self.m}': M must be from 2 to {MAX_BLOCK}, got {self.m}")
        if self.n < 1:
            raise ArgumentError(f"N:M pattern '{self.n}:{self.m}': N must be at least 1, got {self.n}")
        if self.n > self.m:
            raise ArgumentError(f"N:M pattern '{self.n}:{self.m}': N must not exceed M, got N={self.n} > M={self.m}")

    @classmethod
    def parse(cls, text: str | NMPattern) -> NMPattern:
        """The pattern written as ``"N:M"`` (for example ``"2:4"``); a pattern is returned as it is.

        Raises:
            ArgumentError: the text is not two positive integers with a colon between them, or breaks the limits.
        """
        if isinstance(text, NMPattern):
            return text
        match = (
            re.fullmatch(r"\s*([0-9]{1,9})\s*:\s*([0-9]{1,9})\s*", text, re.ASCII) if isinstance(text, str) else None
        )
        if match is None:
            raise ArgumentError(f"N:M pattern: expected text such as '2:4' (N non-zeros of M weights), got {text!r}")
        return cls(int(match[1]), int(match[2]))

    @property
    def index_bits(self) -> int:
        """Bits that hold one position in a block: log2(M), rounded up (2 for 2:4)."""
        return (self.m - 1).bit_length()

    @property
    def density(self) -> float:
        """N / M, the largest fraction of weights that can be kept."""
        return self.n / self.m

    def divides(self, weight: torch.Tensor) -> bool:
        """Whether ``weight`` can be cut into whole blocks: at least 2-D, and dimension 1 a multiple of M."""
        return weight.ndim >= 2 and weight.shape[1] > 0 and weight.shape[1] % self.m == 0

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


def to_blocks(weight: torch.Tensor, m: int) -> torch.Tensor:
    """The weight as blocks ``[O, *kernel, in / M, M]`` (a view: no copy), same dtype and device.

    Linear ``[out, in]``: blocks along ``in``. Conv1d ``[out, in, k]`` and Conv2d ``[out, in, kh, kw]``: along ``in`` at
    one kernel position, which a channels-last im2col puts side by side. ``in`` is per group for grouped convolutions.
    Our reading of "block" (the SpikeNM abstract does not fix it).

    Raises:
        ArgumentError: ``weight`` has fewer than 2 dimensions, or dimension 1 is not a multiple of ``m``.
    """
    if weight.ndim < 2 or weight.shape[1] == 0 or weight.shape[1] % m:
        raise ArgumentError(
            f"weight of shape {tuple(weight.shape)} cannot be cut into blocks of {m}: "
            f"it needs at least 2 dimensions and a reduction dimension (dimension 1) that is a multiple of {m}"
        )
    split = weight.unflatten(1, (weight.shape[1] // m, m))
    return split.permute(0, *range(3, split.ndim), 1, 2)


def from_blocks(blocks: torch.Tensor, shape: torch.Size | tuple[int, ...]) -> torch.Tensor:
    """Inverse of :func:`to_blocks`: blocks ``[..., M]`` -> a contiguous tensor of ``shape``."""
    result = blocks.new_empty(tuple(shape))
    view = to_blocks(result, blocks.shape[-1])
    view.copy_(blocks.reshape(view.shape))
    return result


def nm_mask_by_magnitude(weight: torch.Tensor, pattern: NMPattern | str) -> torch.Tensor:
    """Boolean mask of ``weight``'s shape: the N largest magnitudes of each block of M, ties to the lower index.

    Exactly N entries of each block are true.

    Raises:
        ArgumentError: the weight cannot be cut into blocks of M, or is not finite.
    """
    pattern = NMPattern.parse(pattern)
    magnitude = to_blocks(weight.detach(), pattern.m).abs()
    if not torch.isfinite(magnitude).all():
        raise ArgumentError(
            f"weight of shape {tuple(weight.shape)} holds NaN or infinite values; cannot rank magnitudes"
        )
    order = magnitude.sort(dim=-1, descending=True, stable=True).indices
    mask = torch.zeros_like(magnitude, dtype=torch.bool).scatter_(-1, order[..., : pattern.n], True)
    return from_blocks(mask, weight.shape)


def check_nm(weight: torch.Tensor, pattern: NMPattern | str) -> int:
    """Number of blocks of ``weight`` (or of a boolean mask) with more than N non-zeros: 0 when it obeys the pattern.

    Raises:
        ArgumentError: the weight cannot be cut into blocks of M.
    """
    pattern = NMPattern.parse(pattern)
    kept = (to_blocks(weight.detach(), pattern.m) != 0).sum(dim=-1)
    return int((kept > pattern.n).sum())
