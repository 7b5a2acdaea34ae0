"""Frozen vision transformers of timm by name. What they are made of is imported where one is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from snn_core.backbones.registry import register


@register("vit-tiny", model="vit_tiny_patch16_224")
@register("vit-small", model="vit_small_patch16_224")
@register("vit-base", model="vit_base_patch16_224")
@register("vit-large", model="vit_large_patch16_224")
@register("samvit-base", model="samvit_base_patch16")
@register("vit")
def frozen_vit(
    model: str = "vit_base_patch16_224",
    in_channels: int = 3,
    num_classes: int = 10,
    image_size: int | Sequence[int] | None = None,
    pattern: str | None = "2:4",
    dtype: str | None = None,
    adapters: str | Sequence[Any] | Mapping[str, Any] = (),
    out_indices: Sequence[int] | None = None,
    backend: str = "compressed",
    model_options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A :class:`snn_core.detectors.FrozenViT`; options as there. Needs timm."""
    from snn_core.detectors import FrozenViT

    seed = int(torch.randint(2**31, ()))  # create() has seeded torch's generator
    return FrozenViT(
        model, None, in_channels, num_classes, image_size=image_size, pattern=pattern, dtype=dtype, adapters=adapters,
        out_indices=out_indices, backend=backend, seed=seed, model_options=model_options,
    )  # fmt: skip
