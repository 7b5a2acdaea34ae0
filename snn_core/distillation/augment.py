"""Augmentation with shared draws: real and synthetic frames of a step are seen in the same way.

A view is a shift, and what chance decided of mirror image, polarity, shift in time and lost events. A small fixed set
of views (not a fresh one a step) lets the real features of each (teacher, view) be computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from snn_core.datasets import augment
from snn_core.datasets.augment import Augmentation, Draw
from snn_core.errors import ArgumentError

if TYPE_CHECKING:
    from snn_core.distillation.config import DistillConfig

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


@dataclass(frozen=True)
class View:
    """One way to see frames, the same for real and synthetic ones: a draw of augmentations, then a shift."""

    shift: Shift = (0, 0)
    augmentation: Augmentation | None = None
    draw: Draw | None = None

    def apply(self, frames: Tensor) -> Tensor:
        """Frames ``[T, B, P, H, W]``, floating point (differentiable) or integers; the shape stays.

        Raises:
            ArgumentError: frames of another size than the view was drawn for.
        """
        if self.augmentation is not None and self.draw is not None:
            frames = self.augmentation.apply(frames, self.draw)
        return shift_frames(frames, self.shift)


def shared_augmentation(
    *, flip: bool = False, polarity: bool = False, time_shift: float = 0.0, drop: float = 0.0
) -> Augmentation | None:
    """Mirror image and exchange of polarity (each half of the time), shift in time by at most ``time_shift`` of the
    recording, and each event lost with a probability of at most ``drop``. None when nothing is asked for.

    A mirror image may be of another class (digits, directions of motion): only where labels allow it.

    Raises:
        ArgumentError: a ratio outside 0 .. 1.
    """
    parts: list[Augmentation] = []
    if flip:
        parts.append(augment.Flip())
    if polarity:
        parts.append(augment.PolarityFlip())
    if time_shift:
        parts.append(augment.TimeShift(time_shift))
    if drop:
        parts.append(augment.DropEvents((0.0, drop)))
    return augment.Compose(parts) if parts else None


def choose_views(
    shifts: Sequence[Shift], augmentation: Augmentation | None, size: tuple[int, int], *, generator: torch.Generator
) -> list[View]:
    """A view for every shift, the first one plain; ``size`` is the frames' (W, H).

    Without an augmentation nothing is drawn.
    """
    if augmentation is None:
        return [View(shift) for shift in shifts]
    return [View(shifts[0])] + [
        View(shift, augmentation, augmentation.draw(generator, 1, size)) for shift in shifts[1:]
    ]


def views_of(config: DistillConfig, size: tuple[int, int], *, generator: torch.Generator) -> list[View]:
    """The views that a configuration asks for, of frames of ``size`` (W, H): every method draws them alike."""
    shifts = choose_shifts(config.num_shifts, config.max_shift, generator=generator)
    augmentation = shared_augmentation(
        flip=config.flip, polarity=config.polarity, time_shift=config.time_shift, drop=config.drop
    )
    return choose_views(shifts, augmentation, size, generator=generator)
