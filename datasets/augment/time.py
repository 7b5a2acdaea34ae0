"""Augmentations in time. Times are relative to the recording: 0 is its first event (or frame), 1 its last."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    kept,
    seeds,
    sorted_by_time,
    span_of,
    uniform,
    where_on,
)
from snn_core.datasets.augment.space import check_classes, relabelled
from snn_core.errors import ArgumentError


@dataclass
class TimeShift(Augmentation):
    """Earlier or later by at most ``ratio`` of the recording; what leaves its span is lost, what enters is empty.

    Frames move by whole frames, the nearest number of them.
    """

    ratio: float = 0.1

    def __post_init__(self) -> None:
        check_range("ratio", self.ratio, 0, 1)

    def draw(self, generator: torch.Generator, count: int, size: tuple[int, int]) -> Draw:
        return Draw(count, size, {"later": uniform(generator, count, self.ratio)})

    def _frames(self, frames: Tensor, draw: Draw) -> Tensor:
        steps = frames.shape[0]
        result = torch.zeros_like(frames)
        for sample, later in enumerate((draw.values["later"] * steps).round().long().tolist()):
            own = slice(None) if draw.count == 1 else slice(sample, sample + 1)
            first, last = max(later, 0), min(steps + later, steps)
            if first < last:
                result[first:last, own] = frames[first - later : last - later, own]
        return result

    def _events(self, events: Events, draw: Draw) -> Events:
        if not len(events):
            return events
        start, span = span_of(events)
        moved = copied(events)
        moved["t"] += round(draw.item("later") * span)
        return kept(moved, (moved["t"] >= start) & (moved["t"] <= start + span))


@dataclass
class TimeReverse(Augmentation):
    """Backwards, with probability ``p``: the order of time and, since a rise becomes a fall, the polarity.

    ``classes`` as for :class:`Flip`, where the reverse is of another class.
    """

    p: float = 0.5
    classes: Sequence[int] | None = None

    def __post_init__(self) -> None:
        check_range("p", self.p, 0, 1)
        check_classes(self.classes)

    def draw(self, generator: torch.Generator, count: int, size: tuple[int, int]) -> Draw:
        return Draw(count, size, {"on": torch.rand(count, generator=generator) < self.p})

    def _frames(self, frames: Tensor, draw: Draw) -> Tensor:
        return where_on(draw.values["on"], frames, lambda own: own.flip(0, 2))

    def _events(self, events: Events, draw: Draw) -> Events:
        if not draw.item("on") or not len(events):
            return events
        moved = copied(events[::-1])
        moved["t"] = int(events["t"][0]) + int(events["t"][-1]) - moved["t"]
        moved["p"] = 1 - moved["p"]
        return moved

    def relabel(self, labels: Tensor, draw: Draw) -> Tensor:
        return relabelled(labels, draw.values["on"], self.classes)


@dataclass
class TimeWarp(Augmentation):
    """Uneven time: time u becomes u + a sin(pi u) / pi + b sin(2 pi u) / (2 pi), then is multiplied by a speed.

    Args:
        strength: of a and b together, at most, either way; below 1, so that order is kept.
        speed: factor on all times, uniform between the two, for slower (> 1) and faster recordings. What would come
            after the end is lost.

    Frames are taken as spread evenly over their bins: their content is shared among the bins that it moves to, so sums
    are kept, and integer frames become float32.
    """

    strength: float = 0.3
    speed: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        check_range("strength", self.strength, 0, 0.99)
        check_pair("speed", self.speed, 0.05, 20)

    def draw(self, generator: torch.Generator, count: int, size: tuple[int, int]) -> Draw:
        first, second = uniform(generator, count, self.strength / 2), uniform(generator, count, self.strength / 2)
        return Draw(count, size, {"a": first, "b": second, "speed": between(generator, count, *self.speed)})

    def _frames(self, frames: Tensor, draw: Draw) -> Tensor:
        source = frames if frames.is_floating_point() else frames.float()
        shares = self._shares(frames.shape[0], draw).to(source.device, source.dtype)
        if draw.count == 1:
            return torch.einsum("us,sbchw->ubchw", shares[0], source)
        return torch.einsum("bus,sbchw->ubchw", shares, source)

    def _shares(self, steps: int, draw: Draw) -> Tensor:
        """[count, T, T]: how much of frame s goes to frame u."""
        edges = torch.linspace(0, 1, steps + 1, dtype=torch.float64).expand(draw.count, -1)
        a, b, speed = (draw.values[name].double().view(-1, 1) for name in ("a", "b", "speed"))
        warped = _warp(edges, a, b) * speed * steps
        low, high = warped[:, None, :-1], warped[:, None, 1:]
        bins = torch.arange(steps, dtype=torch.float64).view(1, -1, 1)
        overlap = (torch.minimum(high, bins + 1) - torch.maximum(low, bins)).clamp_min(0)
        return overlap / (high - low)

    def _events(self, events: Events, draw: Draw) -> Events:
        if not len(events):
            return events
        start, span = span_of(events)
        moved = copied(events)
        u = torch.from_numpy((events["t"] - start) / span)
        a, b, speed = (torch.tensor(draw.item(name), dtype=torch.float64) for name in ("a", "b", "speed"))
        moved["t"] = start + np.rint((_warp(u, a, b) * speed).numpy() * span).astype(np.int64)
        return kept(moved, moved["t"] <= start + span)


@dataclass
class TimeJitter(Augmentation):
    """Every event earlier or later by a normal deviate of ``microseconds``, within the recording. Events only."""

    microseconds: float = 1000.0

    def __post_init__(self) -> None:
        check_range("microseconds", self.microseconds, 0, 1e9)

    def draw(self, generator: torch.Generator, count: int, size: tuple[int, int]) -> Draw:
        return Draw(count, size, {"seed": seeds(generator, count)})

    def _frames(self, frames: Tensor, draw: Draw) -> Tensor:
        raise ArgumentError("TimeJitter works on events: frames do not tell when in a bin an event came")

    def _events(self, events: Events, draw: Draw) -> Events:
        if not len(events):
            return events
        start, span = span_of(events)
        deviates = torch.randn(len(events), generator=torch.Generator().manual_seed(draw.item("seed")))
        moved = copied(events)
        moved["t"] += np.rint(deviates.numpy() * self.microseconds).astype(np.int64)
        np.clip(moved["t"], start, start + span, out=moved["t"])
        return sorted_by_time(moved)


@dataclass
class DropTime(Augmentation):
    """Events of an interval are dropped ("drop by time" of EventDrop, Gu et al. 2021).

    ``ratio``: its length relative to the recording's, uniform between the two; it begins anywhere in the recording and
    is cut off at its end. Frames go as a whole, those whose middle lies in it. Where nothing would be left, all stays.
    """

    ratio: tuple[float, float] = (0.1, 0.9)

    def __post_init__(self) -> None:
        check_pair("ratio", self.ratio, 0, 1)

    def draw(self, generator: torch.Generator, count: int, size: tuple[int, int]) -> Draw:
        start = torch.rand(count, generator=generator)
        return Draw(count, size, {"start": start, "end": start + between(generator, count, *self.ratio)})

    def _frames(self, frames: Tensor, draw: Draw) -> Tensor:
        steps = frames.shape[0]
        result = frames.clone()
        borders = zip(draw.values["start"].tolist(), draw.values["end"].tolist(), strict=True)
        for sample, (start, end) in enumerate(borders):
            own = slice(None) if draw.count == 1 else slice(sample, sample + 1)
            first, last = (min(max(math.ceil(edge * steps - 0.5), 0), steps) for edge in (start, end))
            if last - first < steps:
                result[first:last, own] = 0
        return result

    def _events(self, events: Events, draw: Draw) -> Events:
        if not len(events):
            return events
        start, span = span_of(events)
        edges = [start + draw.item(name) * span for name in ("start", "end")]
        first, last = np.searchsorted(events["t"], edges)
        if last - first == len(events):
            return events
        raw = as_bytes(events)
        return np.concatenate([raw[:first], raw[last:]]).view(events.dtype)


def _warp(u: Tensor, a: Tensor, b: Tensor) -> Tensor:
    # Its slope, 1 + a cos(pi u) + b cos(2 pi u), is positive, since |a| + |b| < 1.
    return u + a * torch.sin(math.pi * u) / math.pi + b * torch.sin(2 * math.pi * u) / (2 * math.pi)
