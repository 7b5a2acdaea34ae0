"""Packing of 0/1 spikes into bytes in plain torch: the oracle of the tests."""

from __future__ import annotations

import torch
from torch import Tensor


def pack_spikes(s: Tensor, dim: int) -> Tensor:
    """``[..., K, ...] -> uint8 [..., ceil(K / 8), ...]``: bit j of byte i is element 8 i + j along ``dim``."""
    bits = (s != 0).movedim(dim, -1)
    bytes_along = -(-s.shape[dim] // 8)
    bits = torch.nn.functional.pad(bits, (0, 8 * bytes_along - s.shape[dim]))
    weights = 1 << torch.arange(8, dtype=torch.uint8, device=s.device)
    grouped = bits.unflatten(-1, (bytes_along, 8)).to(torch.uint8)
    return (grouped * weights).sum(-1, dtype=torch.uint8).movedim(-1, dim)


def unpack_spikes(packed: Tensor, size: int, dim: int, dtype: torch.dtype) -> Tensor:
    """The inverse: 0 or 1 in ``dtype``, ``size`` elements along ``dim``."""
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    bits = (packed.movedim(dim, -1).unsqueeze(-1) >> shifts) & 1
    return bits.flatten(-2)[..., :size].movedim(-1, dim).to(dtype)
