"""A forgery detector: any backbone with feature maps, and heads for the picture and its pixels."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from snn_core.detectors.heads import ImageHead, MaskHead
from snn_core.errors import ArgumentError
from snn_core.seeding import seeded


class Detection(NamedTuple):
    """What a detector says.

    Attributes:
        image: logits ``[B]``, positive: forged.
        mask: logits ``[B, 1, H, W]``, positive: forged.
        balance: loss of the routers, a number; 0 where there are none.
        adversary: logits ``[B]`` of the adversary detector, or None.
    """

    image: Tensor
    mask: Tensor
    balance: Tensor
    adversary: Tensor | None


class Detector(nn.Module):
    """A backbone and two heads.

    Args:
        backbone: with ``forward_features`` and ``feature_info``: a :class:`FrozenViT`, or one of
            ``snn_core.backbones.create``, spiking ones included (the features of all time steps are averaged).
        hidden: channels of the mask head.
        seed: of the heads.

    Raises:
        ArgumentError: a backbone without features.
    """

    def __init__(self, backbone: nn.Module, hidden: int = 64, seed: int = 0) -> None:
        super().__init__()
        info: Any = getattr(backbone, "feature_info", None)
        if not info or not callable(getattr(backbone, "forward_features", None)):
            raise ArgumentError(f"backbone: {type(backbone).__name__} has no forward_features with feature_info")
        self.backbone: Any = backbone
        with seeded(seed, "detector"):
            self.image_head, self.mask_head = ImageHead(info), MaskHead(info, hidden)
        classifier = getattr(getattr(backbone, "vit", None), "get_classifier", None)
        behind = [] if classifier is None else [classifier()]
        behind += [getattr(backbone, name, None) for name in getattr(backbone, "head_names", ())]
        for head in behind:  # no loss reaches what stands behind the features
            for parameter in () if head is None else head.parameters():
                parameter.requires_grad_(False)

    def forward(self, x: Tensor) -> Detection:
        """Pictures ``[B, C, H, W]``, or ``[T, B, C, H, W]`` for a spiking backbone -> :class:`Detection`."""
        if hasattr(self.backbone, "forward_detector"):
            features, more = self.backbone.forward_detector(x)
        else:
            features, more = self.backbone.forward_features(x), {}
        features = [feature.mean(0) if feature.ndim == 5 else feature for feature in features]
        size = (int(x.shape[-2]), int(x.shape[-1]))
        image, mask = self.image_head(features), self.mask_head(features, size)
        balance = more.get("balance")
        return Detection(image, mask, image.new_zeros(()) if balance is None else balance, more.get("adversary"))

    def trained_parameters(self) -> list[nn.Parameter]:
        """What an optimiser is given: adapters and heads (of a spiking backbone, all but its own head)."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]


def dice_loss(mask: Tensor, truth: Tensor) -> Tensor:
    """``1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1)`` over all pixels of a batch, ``p`` the sigmoid of the logits.

    Does not weigh the many pixels that are real against the few that are not. Source: Milletari et al. 2016, "V-Net".
    """
    probability, truth = mask.sigmoid(), truth.to(mask.dtype)
    return 1 - (2 * (probability * truth).sum() + 1) / (probability.sum() + truth.sum() + 1)


def detection_loss(
    found: Detection, forged: Tensor, mask: Tensor, *, balance: float = 0.01, adversarial: Tensor | None = None
) -> Tensor:
    """Cross entropy of pictures, of pixels, and of the adversary detector where it is told; :func:`dice_loss` of the
    pixels, since few of them are forged; and the routers' loss.

    Args:
        found: of the detector.
        forged: ``[B]``, 1 for a forged picture.
        mask: ``[B, 1, H, W]``, 1 for a forged pixel.
        balance: weight of the routers' loss.
        adversarial: ``[B]``, 1 for a picture that was altered to mislead; None: not told.

    Returns:
        A number.

    Raises:
        ArgumentError: targets of another shape, or ``adversarial`` for a detector that has no adversary detector.
    """
    for name, value, like in (("forged", forged, found.image), ("mask", mask, found.mask)):
        if value.shape != like.shape:
            raise ArgumentError(f"{name} has shape {list(value.shape)}; expected {list(like.shape)}")
    loss = F.binary_cross_entropy_with_logits(found.image, forged.to(found.image.dtype))
    loss = loss + F.binary_cross_entropy_with_logits(found.mask, mask.to(found.mask.dtype))
    loss = loss + dice_loss(found.mask, mask)
    if adversarial is not None:
        if found.adversary is None:
            raise ArgumentError("adversarial: the detector has no adversary detector (adapters of form 'forensics')")
        loss = loss + F.binary_cross_entropy_with_logits(found.adversary, adversarial.to(found.adversary.dtype))
    return loss + balance * found.balance
