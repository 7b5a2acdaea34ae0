"""Augmentation with shared draws: real and synthetic frames of a step are moved by the same shift.

A small fixed set of shifts (not a fresh one a step) lets the real features of each (teacher, shift) be computed once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from snn_core.errors import ArgumentError

Shift = tuple[int, int]


def shift_frames(frames: Tensor, shift: Shift) -> Tensor:
    """Move frames ``[..., H, W]`` by ``(dx, dy)`` pixels (right and down are positive); what enters is 0.

    Any dtype; differentiable. The result has the input's shape.

    Raises:
        ArgumentError: a shift as large as the frame.
    """
    dx, dy = shift
    height, width = frames.shape[-2:]
    if abs(dx) >= width or abs(dy) >= height:
        raise ArgumentError(f"shift: ({dx}, {dy}) leaves nothing of a {width} x {height} frame")
    if dx == 0 and dy == 0:
        return frames
    # negative padding crops: content leaves on one side, zeros enter on the other
    return F.pad(frames, (dx, -dx, dy, -dy))


def choose_shifts(count: int, max_shift: int, *, generator: torch.Generator) -> list[Shift]:
    """``count`` different shifts of at most ``max_shift`` pixels in x and y, the first always ``(0, 0)``.

    Raises:
        ArgumentError: fewer than one, or more than ``(2 max_shift + 1)^2`` shifts.
    """
    span = range(-max_shift, max_shift + 1)
    others = [(dx, dy) for dx in span for dy in span if (dx, dy) != (0, 0)]
    if max_shift < 0 or not 1 <= count <= len(others) + 1:
        raise ArgumentError(f"count: got {count}; max_shift={max_shift} allows 1 to {len(others) + 1} shifts")
    order: Sequence[int] = torch.randperm(len(others), generator=generator).tolist()
    return [(0, 0)] + [others[i] for i in order[: count - 1]]
