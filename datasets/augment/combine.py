"""Augmentations made of others."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from snn_core.datasets.augment.base import Augmentation, Draw, Events, check_range
from snn_core.errors import ArgumentError


class Identity(Augmentation):
    """Nothing: the data itself."""

    def draw(self, generator: torch.Generator, count: int, size: tuple[int, int]) -> Draw:
        return Draw(count, size)

    def _frames(self, frames: Tensor, draw: Draw) -> Tensor:
        return frames

    def _events(self, events: Events, draw: Draw) -> Events:
        return events

    def alike_over_time(self) -> bool:
        return True

    def __repr__(self) -> str:
        return "Identity()"


class Compose(Augmentation):
    """One after the other."""

    def __init__(self, parts: Sequence[Augmentation]) -> None:
        self.parts = tuple(parts)

    def draw(self, generator: torch.Generator, count: int, size: tuple[int, int]) -> Draw:
        start = size
        draws = []
        for part in self.parts:
            draws.append(part.draw(generator, count, size))
            size = part.output_size(size)
        return Draw(count, start, parts=tuple(draws))

    def _frames(self, frames: Tensor, draw: Draw) -> Tensor:
        for part, own in zip(self.parts, draw.parts, strict=True):
            frames = part._frames(frames, own)
        return frames

    def _events(self, events: Events, draw: Draw) -> Events:
        for part, own in zip(self.parts, draw.parts, strict=True):
            events = part._events(events, own)
        return events

    def relabel(self, labels: Tensor, draw: Draw) -> Tensor:
        for part, own in zip(self.parts, draw.parts, strict=True):
            labels = part.relabel(labels, own)
        return labels

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        for part in self.parts:
            size = part.output_size(size)
        return size

    def alike_over_time(self) -> bool:
        return all(part.alike_over_time() for part in self.parts)

    def __repr__(self) -> str:
        return f"Compose([{', '.join(map(repr, self.parts))}])"


class OneOf(Augmentation):
    """One of several, drawn for every sample; all of them must keep the size of the frames.

    Args:
        choices: the augmentations.
        weights: how often each, relative; by default equally often.

    Raises:
        ArgumentError: no choice, or weights that are negative, all zero or not as many.
    """

    def __init__(self, choices: Sequence[Augmentation], weights: Sequence[float] | None = None) -> None:
        self.choices = tuple(choices)
        self.weights = tuple(weights) if weights is not None else (1.0,) * len(self.choices)
        if not self.choices or len(self.weights) != len(self.choices):
            raise ArgumentError(f"weights: got {len(self.weights)} for {len(self.choices)} choices; at least one each")
        if not (all(0 <= weight < math.inf for weight in self.weights) and sum(self.weights) > 0):
            raise ArgumentError(f"weights must be finite and not negative, and one positive, got {self.weights}")

    def draw(self, generator: torch.Generator, count: int, size: tuple[int, int]) -> Draw:
        for part in self.choices:
            if part.output_size(size) != size:
                raise ArgumentError(f"choices: {part!r} changes the size of the frames")
        weights = torch.tensor(self.weights, dtype=torch.float64)
        choice = torch.multinomial(weights, max(count, 1), replacement=True, generator=generator)[:count]
        parts = tuple(part.draw(generator, count, size) for part in self.choices)
        return Draw(count, size, {"choice": choice}, parts)

    def _frames(self, frames: Tensor, draw: Draw) -> Tensor:
        choice = draw.values["choice"]
        for number, (part, own) in enumerate(zip(self.choices, draw.parts, strict=True)):
            frames = _where(choice == number, frames, part._frames, own)
        return frames

    def _events(self, events: Events, draw: Draw) -> Events:
        number = draw.item("choice")
        return self.choices[number]._events(events, draw.parts[number])

    def relabel(self, labels: Tensor, draw: Draw) -> Tensor:
        choice = draw.values["choice"].to(labels.device)
        for number, (part, own) in enumerate(zip(self.choices, draw.parts, strict=True)):
            labels = torch.where(choice == number, part.relabel(labels, own), labels)
        return labels

    def alike_over_time(self) -> bool:
        return all(part.alike_over_time() for part in self.choices)

    def __repr__(self) -> str:
        weights = "" if len(set(self.weights)) == 1 else f", weights={self.weights}"
        return f"OneOf([{', '.join(map(repr, self.choices))}]{weights})"


@dataclass
class Sometimes(Augmentation):
    """An augmentation that a sample gets with probability ``p``; it must keep the size of the frames."""

    augmentation: Augmentation
    p: float = 0.5

    def __post_init__(self) -> None:
        check_range("p", self.p, 0, 1)

    def draw(self, generator: torch.Generator, count: int, size: tuple[int, int]) -> Draw:
        if self.augmentation.output_size(size) != size:
            raise ArgumentError(f"augmentation: {self.augmentation!r} changes the size of the frames")
        on = torch.rand(count, generator=generator) < self.p
        return Draw(count, size, {"on": on}, (self.augmentation.draw(generator, count, size),))

    def _frames(self, frames: Tensor, draw: Draw) -> Tensor:
        return _where(draw.values["on"], frames, self.augmentation._frames, draw.parts[0])

    def _events(self, events: Events, draw: Draw) -> Events:
        return self.augmentation._events(events, draw.parts[0]) if draw.item("on") else events

    def relabel(self, labels: Tensor, draw: Draw) -> Tensor:
        moved = self.augmentation.relabel(labels, draw.parts[0])
        return torch.where(draw.values["on"].to(labels.device), moved, labels)

    def alike_over_time(self) -> bool:
        return self.augmentation.alike_over_time()


def _where(on: Tensor, frames: Tensor, function: Callable[[Tensor, Draw], Tensor], draw: Draw) -> Tensor:
    """``function`` of the samples that are ``on``, the others as they are."""
    if not bool(on.any()):
        return frames
    if bool(on.all()):
        return function(frames, draw)
    chosen = on.nonzero().flatten()
    moved = function(frames.index_select(1, chosen.to(frames.device)), draw.select(chosen))
    # Interpolation turns counts into real numbers: then those of all samples.
    samples = list(frames.to(moved.dtype).split(1, 1))
    for own, sample in zip(moved.split(1, 1), chosen.tolist(), strict=True):
        samples[sample] = own
    return torch.cat(samples, 1)
