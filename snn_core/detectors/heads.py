"""What a detector ends with: is the picture real, and where is it not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snn_core.backbones import FeatureInfo
from snn_core.errors import ArgumentError


class ImageHead(nn.Module):
    """Real or forged: mean and maximum of the last feature map over the picture, normalised, to one logit.

    The maximum is there because a splice may be a small part of a picture, which a mean hardly shows.

    Args:
        feature_info: of the backbone.
    """

    def __init__(self, feature_info: Sequence[FeatureInfo]) -> None:
        super().__init__()
        channels = 2 * _last(feature_info).channels
        self.norm, self.linear = nn.LayerNorm(channels), nn.Linear(channels, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Maps ``[B, c, h, w]`` -> logits ``[B]``, positive: forged."""
        last = features[-1]
        logits: Tensor = self.linear(self.norm(torch.cat([last.mean((2, 3)), last.amax((2, 3))], 1)))
        return logits.squeeze(-1)


class MaskHead(nn.Module):
    """Which pixels are forged: each feature map normalised and brought to ``hidden`` channels, enlarged to the finest
    of them, summed, one 3x3 convolution, and the logits enlarged to the picture.

    Args:
        feature_info: of the backbone.
        hidden: channels.
    """

    def __init__(self, feature_info: Sequence[FeatureInfo], hidden: int = 64) -> None:
        super().__init__()
        _last(feature_info)
        if not isinstance(hidden, int) or isinstance(hidden, bool) or hidden < 1:
            raise ArgumentError(f"hidden is {hidden!r}; it must be a positive integer")
        self.norms = nn.ModuleList(nn.GroupNorm(1, info.channels) for info in feature_info)
        self.laterals = nn.ModuleList(nn.Conv2d(info.channels, hidden, 1) for info in feature_info)
        self.conv, self.last = nn.Conv2d(hidden, hidden, 3, padding=1), nn.Conv2d(hidden, 1, 1)

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Maps ``[B, c, h, w]``, and height and width of the picture -> logits ``[B, 1, H, W]``."""
        finest = max((f.shape[2:] for f in features), key=lambda shape: shape[0] * shape[1])
        total: Tensor | None = None
        for norm, lateral, feature in zip(self.norms, self.laterals, features, strict=True):
            part = lateral(norm(feature))
            if part.shape[2:] != finest:
                part = F.interpolate(part, size=finest, mode="bilinear", align_corners=False)
            total = part if total is None else total + part
        assert total is not None
        logits = self.last(F.gelu(self.conv(F.gelu(total))))
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def _last(feature_info: Sequence[FeatureInfo]) -> FeatureInfo:
    if not feature_info:
        raise ArgumentError("feature_info is empty: the backbone gives no feature maps")
    return feature_info[-1]
