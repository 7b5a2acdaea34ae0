"""Augmentations of single events: polarity, random loss, noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from snn_core.datasets.augment.base import (
    Augmentation,
    Draw,
    Events,
    as_bytes,
    between,
    check_pair,
    check_range,
    copied,
    field_of,
    fields_of,
    kept,
    per_sample,
    seeds,
    span_of,
    where_on,
)
from snn_core.errors import ArgumentError


@dataclass
class PolarityFlip(Augmentation):
    """ON and OFF exchanged, with probability ``p``, as for an object of the opposite contrast."""

    p: float = 0.5

    def __post_init__(self) -> None:
        check_range("p", self.p, 0, 1)

    def draw(self, generator: torch.Generator, count: int, size: tuple[int, int]) -> Draw:
        return Draw(count, size, {"on": torch.rand(count, generator=generator) < self.p})

    def _frames(self, frames: Tensor, draw: Draw) -> Tensor:
        if frames.shape[2] != 2:
            raise ArgumentError(f"PolarityFlip needs frames of 2 polarities, got {frames.shape[2]}")
        return where_on(draw.values["on"], frames, lambda own: own.flip(2))

    def _events(self, events: Events, draw: Draw) -> Events:
        if not draw.item("on"):
            return events
        moved = copied(events)
        moved["p"] = 1 - moved["p"]
        return moved


@dataclass
class DropEvents(Augmentation):
    """Each event is lost with the same probability ("random drop" of EventDrop, Gu et al. 2021).

    ``ratio``: that probability, for a sample uniform between the two. Integer frames lose events one by one (their
    counts are binomial). Floating-point frames lose whole cells, whatever is in them: so real and synthetic frames of
    one draw lose the same, and the gradient is that of a mask.
    """

    ratio: tuple[float, float] = (0.1, 0.9)

    def __post_init__(self) -> None:
        check_pair("ratio", self.ratio, 0, 1)

    def draw(self, generator: torch.Generator, count: int, size: tuple[int, int]) -> Draw:
        values = {"ratio": between(generator, count, *self.ratio), "seed": seeds(generator, count)}
        return Draw(count, size, values)

    def _frames(self, frames: Tensor, draw: Draw) -> Tensor:
        if frames.is_floating_point():
            return frames.masked_fill(fields_of(draw, frames) < per_sample(draw.values["ratio"], frames), 0)
        ratios, chosen = draw.values["ratio"].tolist(), draw.values["seed"].tolist()
        result = torch.empty_like(frames)
        for sample in range(frames.shape[1]):
            own = sample if draw.count > 1 else 0
            result[:, sample] = _thinned(frames[:, sample], 1 - ratios[own], chosen[own])
        return result

    def _events(self, events: Events, draw: Draw) -> Events:
        lost = (field_of(draw.item("seed"), (len(events),)) < draw.item("ratio")).numpy()
        return kept(events, ~lost) if not lost.all() else events


@dataclass
class Noise(Augmentation):
    """Events that mean nothing, anywhere at any time, of either polarity.

    ``rate``: how many are expected for every pixel in a recording (0.02: 23 on 34 x 34 pixels). Their numbers are
    Poisson. Floating-point frames get the same noise for the same draw, whatever is in them.
    """

    rate: float = 0.02

    def __post_init__(self) -> None:
        check_range("rate", self.rate, 0, 1000)

    def draw(self, generator: torch.Generator, count: int, size: tuple[int, int]) -> Draw:
        return Draw(count, size, {"seed": seeds(generator, count)})

    def _frames(self, frames: Tensor, draw: Draw) -> Tensor:
        if frames.dtype == torch.bool:
            raise ArgumentError("Noise adds counts, which frames of torch.bool do not hold")
        steps, batch, *image = frames.shape
        cells = math.prod(image)
        places = []
        for own, seed in enumerate(draw.values["seed"].tolist()):
            number, generator = self._number(image[1] * image[2], seed)
            place = torch.randint(0, steps * cells, (number,), generator=generator)
            for sample in range(batch) if draw.count == 1 else (own,):
                places.append((place // cells * batch + sample) * cells + place % cells)
        # Noise is sparse: only the cells that get some are touched.
        index, added = torch.cat(places).to(frames.device).unique(return_counts=True)
        flat = frames.clone(memory_format=torch.contiguous_format).view(-1)
        total = flat[index] + added
        if not frames.is_floating_point():
            total = total.clamp_max(torch.iinfo(frames.dtype).max)
        return flat.index_copy(0, index, total.to(frames.dtype)).view(frames.shape)

    def _events(self, events: Events, draw: Draw) -> Events:
        width, height = draw.size
        number, generator = self._number(width * height, draw.item("seed"))
        if not len(events) or not number:
            return events
        start, span = span_of(events)
        noise = np.zeros(number, events.dtype)
        for name, low, high in (("t", start, start + span), ("x", 0, width - 1), ("y", 0, height - 1), ("p", 0, 1)):
            noise[name] = torch.randint(low, high + 1, (number,), generator=generator).numpy()
        noise.sort(order="t")
        places = np.searchsorted(events["t"], noise["t"], side="right")
        return np.insert(as_bytes(events), places, as_bytes(noise)).view(events.dtype)

    def _number(self, pixels: int, seed: int) -> tuple[int, torch.Generator]:
        generator = torch.Generator().manual_seed(seed)
        return int(torch.poisson(torch.tensor([self.rate * pixels], dtype=torch.float64), generator)), generator


def _thinned(frames: Tensor, keep: float, seed: int) -> Tensor:
    """Counts after each event was kept with probability ``keep``."""
    generator = torch.Generator().manual_seed(seed)
    # Most cells are empty: only the others are drawn for.
    counts = frames.cpu().flatten()
    places = counts.nonzero().flatten()
    number = counts[places].double()
    kept = torch.binomial(number, torch.full_like(number, keep), generator)
    result = torch.zeros_like(counts)
    result[places] = kept.to(counts.dtype)
    return result.view(frames.shape).to(frames.device)
