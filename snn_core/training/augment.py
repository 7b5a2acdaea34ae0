"""Augmentation of batches of event frames by the name of a policy."""

from __future__ import annotations

import torch
from torch import Tensor

from snn_core.errors import ArgumentError


def augment_batch(frames: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Transform every sample of a batch by its own draw.

    Args:
        frames: float ``[T, B, C, H, W]``.
        kind: ``"affine"`` (rotation, scale, shift, bilinear), ``"shift"`` (whole pixels), ``"none"`` or another of the
            policies of :func:`snn_core.datasets.augment.policy` that keeps labels.
        generator: source of the draws, on the CPU.

    Returns:
        Float ``[T, B, C, H, W]``; what moves in from outside is 0.

    Raises:
        ArgumentError: unknown ``kind``, or one that changes labels.
    """
    from snn_core.datasets.augment import policy

    if kind == "dvs-gesture-mirror":
        raise ArgumentError(f"augment is {kind!r}, which changes labels; use FrameLoader")
    return policy(kind)(frames, generator)
