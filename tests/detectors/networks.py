"""Transformers small enough for a test."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from snn_core.detectors import FrozenViT

TINY: dict[str, Any] = {
    "model_options": {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2},
    "image_size": 16,
}
SAM: dict[str, Any] = {
    "embed_dim": 32, "depth": 2, "num_heads": 2, "window_size": 3, "global_attn_indexes": (1,), "neck_chans": 16,
}  # fmt: skip


def tiny(**options: Any) -> FrozenViT:
    """A ViT of two blocks for 16 x 16 grey pictures."""
    return FrozenViT("vit_tiny_patch16_224", **({"in_channels": 1} | TINY | options))


def tiny_sam(**options: Any) -> FrozenViT:
    """SAM's encoder with one block of windows (which do not divide the grid) and one of global attention."""
    return FrozenViT("samvit_base_patch16", image_size=64, model_options=SAM, **options)


def pictures() -> Tensor:
    """Three of them."""
    return torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(1))
