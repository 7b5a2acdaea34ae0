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


def spike_im2col(bits: Tensor, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int]) -> Tensor:
    """``[B, H, W, bytes] -> [B * OH * OW, kh * kw * bytes]``: the bytes under each window, outside the image 0."""
    images = bits.permute(0, 3, 1, 2).double()  # unfold takes no integers; 8 bits are exact
    columns = torch.nn.functional.unfold(images, tuple(kernel), tuple(dilation), tuple(padding), tuple(stride))
    positions = kernel[0] * kernel[1]
    return columns.unflatten(1, (-1, positions)).permute(0, 3, 2, 1).flatten(2).flatten(0, 1).to(torch.uint8)


def spike_max_pool(bits: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> Tensor:
    """``[B, H, W, bytes] -> [B, OH, OW, bytes]``: a spike where the window has one."""
    spikes = unpack_spikes(bits, 8 * bits.shape[-1], -1, torch.float32).permute(0, 3, 1, 2)
    pooled = torch.nn.functional.max_pool2d(spikes, kernel, stride, padding)
    return pack_spikes(pooled.permute(0, 2, 3, 1), -1)
