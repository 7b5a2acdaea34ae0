"""Mixing two samples of a batch into one, with labels in proportion."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from snn_core.datasets.augment.base import Draw, check_count, check_frames, check_range, interval
from snn_core.errors import ArgumentError


class Mix(ABC):
    """Cells of every sample are replaced by those of a partner in the batch, with probability ``p`` for a batch.

    :meth:`draw` and :meth:`apply` are apart, as in :class:`Augmentation`; a draw is for one batch of its size.
    """

    p: float
    alpha: float

    def draw(self, generator: torch.Generator, count: int, size: tuple[int, int]) -> Draw:
        """Draw for a batch of ``count`` samples on a sensor of ``size`` (W, H): partners, shares and places."""
        on = torch.rand(1, generator=generator) < self.p
        values = {"partner": torch.randperm(count, generator=generator), "on": on.expand(count)}
        values["share"] = _beta(generator, count, self.alpha)
        return Draw(count, size, values | self._places(generator, count, size, values["share"]))

    def apply(self, frames: Tensor, labels: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        """Mixed frames and their labels.

        Args:
            frames: [T, B, C, H, W], any dtype; differentiable where floating point.
            labels: float [B, K], one-hot or already mixed; see :func:`one_hot`.
            draw: for B samples.

        Returns:
            Frames of the same shape and dtype, and labels [B, K]: those of both, in the proportion of the *events*
            (or, of floating-point frames, the sums) that each gave to the mixture.
        """
        check_frames(frames, draw)
        if draw.count != frames.shape[1] or labels.ndim != 2 or len(labels) != draw.count:
            raise ArgumentError(
                f"a draw for {draw.count} samples, frames {list(frames.shape)} and labels {list(labels.shape)} do not "
                "fit together; labels are [B, K]"
            )
        if not draw.count or not bool(draw.values["on"].any()):
            return frames, labels
        partner = draw.values["partner"].to(frames.device)
        taken = self._mask(frames.shape[0], draw).to(frames.device)  # bool [T or 1, B, 1, H, W]
        other = frames[:, partner]
        mixed = torch.where(taken, other, frames)
        with torch.no_grad():
            number = torch.float64 if frames.is_floating_point() else torch.int64
            given = (other * taken).sum((0, 2, 3, 4), dtype=number).double()
            total = mixed.sum((0, 2, 3, 4), dtype=number).double()
            # A mixture without events tells nothing of either: it keeps its own label.
            weight = torch.where(total > 0, given / total.clamp_min(1e-12), 0).to(labels.dtype).view(-1, 1)
        weight = weight.to(labels.device)
        return mixed, (1 - weight) * labels + weight * labels[partner.to(labels.device)]

    def _places(
        self, generator: torch.Generator, count: int, size: tuple[int, int], share: Tensor
    ) -> dict[str, Tensor]:
        """What the mask needs beside the share."""
        return {}

    @abstractmethod
    def _mask(self, steps: int, draw: Draw) -> Tensor:
        """Which cells come from the partner, bool [T or 1, B, 1, H, W]."""


@dataclass
class CutMix(Mix):
    """A rectangle of the partner, at all times (Yun et al. 2019; for event frames NDA, Li et al. 2022).

    ``alpha``: the rectangle's share of the area is Beta(alpha, alpha).
    """

    p: float = 0.5
    alpha: float = 1.0

    def __post_init__(self) -> None:
        check_range("p", self.p, 0, 1)
        check_range("alpha", self.alpha, 0.01, 100)

    def _places(
        self, generator: torch.Generator, count: int, size: tuple[int, int], share: Tensor
    ) -> dict[str, Tensor]:
        side = share.sqrt() if min(size) > 1 else share
        values = {}
        for axis, length in zip("xy", size, strict=True):
            middle = torch.rand(count, generator=generator) * length
            values[f"{axis}0"], values[f"{axis}1"] = interval(middle, side * length, length)
        return values

    def _mask(self, steps: int, draw: Draw) -> Tensor:
        width, height = draw.size
        x0, x1, y0, y1 = (draw.values[name].view(1, -1, 1, 1, 1) for name in ("x0", "x1", "y0", "y1"))
        x, y = torch.arange(width).view(1, 1, 1, 1, -1), torch.arange(height).view(1, 1, 1, -1, 1)
        return (x >= x0) & (x < x1) & (y >= y0) & (y < y1)


@dataclass
class EventMix(Mix):
    """Blobs of the partner in space and time (after EventMix, Shen et al. 2022).

    The mask is where a sum of ``blobs`` Gaussians with random middles and widths in (t, y, x) is largest, as much of
    the volume as the share, Beta(alpha, alpha). The proportion of labels is ours: by events (see :meth:`Mix.apply`).
    """

    p: float = 0.5
    alpha: float = 1.0
    blobs: int = 3

    def __post_init__(self) -> None:
        check_range("p", self.p, 0, 1)
        check_range("alpha", self.alpha, 0.01, 100)
        check_count("blobs", self.blobs, 1, 1000)

    def _places(
        self, generator: torch.Generator, count: int, size: tuple[int, int], share: Tensor
    ) -> dict[str, Tensor]:
        middle = torch.rand(count, self.blobs, 3, generator=generator)
        width = 0.1 + 0.4 * torch.rand(count, self.blobs, 3, generator=generator)
        return {"middle": middle, "width": width}

    def _mask(self, steps: int, draw: Draw) -> Tensor:
        width, height = draw.size
        value = torch.ones(1)
        for axis, (length, shape) in enumerate(((steps, (-1, 1, 1)), (height, (1, -1, 1)), (width, (1, 1, -1)))):
            at = ((torch.arange(length) + 0.5) / length).view(*shape)
            middle, scale = (
                draw.values[name][:, :, axis].view(-1, self.blobs, 1, 1, 1) for name in ("middle", "width")
            )
            value = value * torch.exp(-(((at - middle) / scale) ** 2) / 2)
        height_of = value.sum(1).flatten(1)  # [B, T * H * W]
        cells = height_of.shape[1]
        kept = cells - (draw.values["share"] * cells).round().long().clamp(0, cells)
        # A tenth of the time of sorting them all at once, measured.
        thresholds = [
            own.kthvalue(number).values if number else torch.tensor(-1.0)
            for own, number in zip(height_of, kept.tolist(), strict=True)
        ]
        return (height_of > torch.stack(thresholds).view(-1, 1)).view(-1, steps, 1, height, width).transpose(0, 1)


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """float32 [B, K] of labels int64 [B]. ArgumentError for labels outside 0 .. K - 1."""
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ArgumentError(f"labels must lie in 0..{num_classes - 1}, got {int(labels.min())}..{int(labels.max())}")
    return functional.one_hot(labels, num_classes).float()


def _beta(generator: torch.Generator, count: int, alpha: float) -> Tensor:
    """float32 [count] of Beta(alpha, alpha)."""
    if alpha == 1:
        return torch.rand(count, generator=generator)
    first, second = (
        torch._standard_gamma(torch.full((count,), alpha, dtype=torch.float64), generator) for _ in range(2)
    )
    return (first / (first + second).clamp_min(1e-300)).float()
