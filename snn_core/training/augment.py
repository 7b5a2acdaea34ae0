"""Augmentation of batches of event frames, the same draw at every time step of a sample."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from snn_core.errors import ArgumentError

#: Ranges of the affine draw: rotation in degrees, relative scale, shift in pixels.
ROTATION_DEGREES, SCALE, SHIFT_PIXELS = 10.0, 0.12, 2.0


def augment_batch(frames: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Move every sample of a batch by its own random transform.

    Args:
        frames: float ``[T, B, C, H, W]``.
        kind: ``"affine"`` (rotation, scale, shift, bilinear), ``"shift"`` (whole pixels), ``"none"``.
        generator: source of the draws, on the CPU.

    Returns:
        Float ``[T, B, C, H, W]``; what moves in from outside is 0.

    Raises:
        ArgumentError: unknown ``kind``.
    """
    if kind == "none":
        return frames
    if kind == "affine":
        return _affine(frames, generator)
    if kind == "shift":
        return _shift(frames, generator)
    raise ArgumentError(f"augment is {kind!r}; allowed: affine, shift, none")


def _uniform(count: int, limit: float, generator: torch.Generator) -> Tensor:
    return (torch.rand(count, generator=generator) * 2 - 1) * limit


def _affine(frames: Tensor, generator: torch.Generator) -> Tensor:
    steps, batch, channels, height, width = frames.shape
    angle = _uniform(batch, math.radians(ROTATION_DEGREES), generator)
    scale = 1 + _uniform(batch, SCALE, generator)
    cosine, sine = torch.cos(angle) / scale, torch.sin(angle) / scale
    shift_x = _uniform(batch, 2 * SHIFT_PIXELS / width, generator)
    shift_y = _uniform(batch, 2 * SHIFT_PIXELS / height, generator)
    rows = torch.stack([cosine, -sine, shift_x, sine, cosine, shift_y], 1)
    theta = rows.view(batch, 2, 3).to(frames.device, frames.dtype)
    images = frames.transpose(0, 1).reshape(batch, steps * channels, height, width)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    moved = functional.grid_sample(images, grid, padding_mode="zeros", align_corners=False)
    return moved.view(batch, steps, channels, height, width).transpose(0, 1)


def _shift(frames: Tensor, generator: torch.Generator) -> Tensor:
    reach = int(SHIFT_PIXELS)
    height, width = frames.shape[-2:]
    padded = functional.pad(frames, (reach,) * 4)
    offsets = torch.randint(0, 2 * reach + 1, (frames.shape[1], 2), generator=generator).tolist()
    return torch.stack([padded[:, i, :, y : y + height, x : x + width] for i, (y, x) in enumerate(offsets)], 1)
