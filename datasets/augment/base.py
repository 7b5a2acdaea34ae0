"""What every augmentation is: a draw, apart from what is done with it, for frames and for events alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snn_core.errors import ArgumentError

Events = NDArray[np.void]
#: Frames [T, B, C, H, W], or the events of one recording.
Data = TypeVar("Data", Tensor, Events)


@dataclass(frozen=True)
class Draw:
    """What chance decided for ``count`` samples, and for no data in particular.

    ``values``: tensors [count, ...] on the CPU. ``parts``: the draws of what an augmentation is made of.
    A draw of one sample applies to every sample of a batch; :meth:`select` gives each sample the one it shall have.
    """

    count: int
    size: tuple[int, int]
    values: dict[str, Tensor] = field(default_factory=dict)
    parts: tuple[Draw, ...] = ()

    def select(self, indices: Tensor | Sequence[int] | int) -> Draw:
        """The draws of some samples (int64 [k], repeats allowed, or one index), in that order."""
        chosen = torch.as_tensor(indices, dtype=torch.int64).reshape(-1)
        values = {name: value[chosen] for name, value in self.values.items()}
        return Draw(len(chosen), self.size, values, tuple(part.select(chosen) for part in self.parts))

    def item(self, name: str) -> Any:
        """The value of a draw of one sample, as a number. ArgumentError for a draw of several."""
        if self.count != 1:
            raise ArgumentError(f"draw: one recording of events needs a draw of one sample, got one of {self.count}")
        return self.values[name].item()


class Augmentation(ABC):
    """A random transform of event frames and of raw events.

    :meth:`draw` asks the generator and knows no data, :meth:`apply` is a function of data and draw alone. So a draw can
    be shared, between real and synthetic frames for example. On floating-point frames ``apply`` is differentiable.
    """

    @abstractmethod
    def draw(self, generator: torch.Generator, count: int, size: tuple[int, int]) -> Draw:
        """Draw for ``count`` samples on a sensor of ``size`` (W, H) pixels. ``generator`` is on the CPU."""

    @abstractmethod
    def _frames(self, frames: Tensor, draw: Draw) -> Tensor:
        """Transformed frames [T, B, C, H, W]; draw.count is 1 or B."""

    def _events(self, events: Events, draw: Draw) -> Events:
        raise ArgumentError(f"{type(self).__name__} works on frames, not on events")

    def relabel(self, labels: Tensor, draw: Draw) -> Tensor:
        """Labels int64 [B] after the transform; most keep them."""
        return labels

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(W, H) of the result for frames of ``size``."""
        return size

    def alike_over_time(self) -> bool:
        """Whether all time steps of a sample are transformed alike: of T equal frames, one need be transformed."""
        return False

    def apply(self, data: Data, draw: Draw) -> Data:
        """Do what was drawn.

        Args:
            data: frames [T, B, C, H, W], integer or floating point, on any device; or the events of one recording,
                a structured array [num_events] with fields t (int64), x, y and p (0 or 1), sorted by t.
            draw: of one sample (then every sample of the batch is transformed alike) or of B.

        Returns:
            Frames or events; the data given is not changed. Integer frames keep their dtype, unless the transform
            interpolates: then they become float32. What moves in from outside is 0; counts of integer frames that
            grow are clipped to their largest value. Events stay sorted by t.

        Raises:
            ArgumentError: data that is neither, a sensor of another size, a draw of another number of samples.
        """
        if isinstance(data, Tensor):
            check_frames(data, draw)
            if data.shape[1] == 0:
                width, height = self.output_size(draw.size)
                return data.new_zeros(*data.shape[:3], height, width)
            return self._frames(data, draw)
        check_events(data, draw)
        return self._events(data, draw)

    def __call__(self, data: Data, generator: torch.Generator, size: Sequence[int] | None = None) -> Data:
        """Draw for these data, and apply. Events need ``size``, the sensor's (W, H) or (W, H, 2). Errors as there."""
        if isinstance(data, Tensor):
            if data.ndim != 5:
                raise ArgumentError(f"frames must be [T, B, C, H, W], got {list(data.shape)}")
            return self.apply(data, self.draw(generator, data.shape[1], (data.shape[4], data.shape[3])))
        if size is None:
            raise ArgumentError("size: events do not tell the size of the sensor; give (W, H)")
        return self.apply(data, self.draw(generator, 1, (int(size[0]), int(size[1]))))


def check_frames(frames: Tensor, draw: Draw) -> None:
    """Raise ArgumentError unless the draw is one for these frames."""
    if frames.ndim != 5:
        raise ArgumentError(f"frames must be [T, B, C, H, W], got {list(frames.shape)}")
    if (frames.shape[4], frames.shape[3]) != draw.size:
        raise ArgumentError(
            f"frames are {frames.shape[4]} x {frames.shape[3]}, the draw is for {draw.size[0]} x {draw.size[1]}"
        )
    if draw.count not in (1, frames.shape[1]):
        raise ArgumentError(
            f"the draw is for {draw.count} samples, the frames are {frames.shape[1]}; 1 fits any number"
        )


def check_events(events: Any, draw: Draw) -> None:
    """Raise ArgumentError unless these are events on the draw's sensor."""
    if not isinstance(events, np.ndarray) or not {"t", "x", "y", "p"} <= set(events.dtype.names or ()):
        raise ArgumentError(
            f"data must be frames (a tensor) or events (a structured array of t, x, y, p), got {type(events).__name__}"
        )
    if draw.count != 1:
        raise ArgumentError(f"draw: one recording of events needs a draw of one sample, got one of {draw.count}")
    if events.dtype["t"].kind + str(events.dtype["t"].itemsize) != "i8":
        raise ArgumentError(f"t of the events must be int64 microseconds, got {events.dtype['t']}")
    for name, side in zip("xyp", (*draw.size, 2), strict=True):
        column = events[name]
        if column.dtype.kind not in ("iub" if name == "p" else "iu"):
            raise ArgumentError(f"{name} of the events must be integers, got {column.dtype}")
        if column.dtype.kind != "b" and np.iinfo(column.dtype).max < side - 1:
            raise ArgumentError(f"{name} of the events is {column.dtype}, which does not hold {side - 1}")
        if len(column) and not 0 <= int(column.min()) <= int(column.max()) < side:
            raise ArgumentError(f"{name} of the events must lie in 0..{side - 1}, got {column.min()}..{column.max()}")


def uniform(generator: torch.Generator, count: int, limit: float) -> Tensor:
    """float32 [count], uniform in -limit .. limit."""
    return (torch.rand(count, generator=generator) * 2 - 1) * limit


def between(generator: torch.Generator, count: int, low: float, high: float) -> Tensor:
    """float32 [count], uniform in low .. high."""
    return low + torch.rand(count, generator=generator) * (high - low)


def integers(generator: torch.Generator, count: int, low: int, high: int) -> Tensor:
    """int64 [count], uniform in low .. high, both included."""
    return torch.randint(low, high + 1, (count,), generator=generator)


def seeds(generator: torch.Generator, count: int) -> Tensor:
    """int64 [count]: one seed a sample, for what is too large to be kept in a draw."""
    return torch.randint(0, 2**62, (count,), generator=generator)


def interval(middle: Tensor, length: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """First pixel and the one behind the last of an interval about ``middle``; of an axis of one pixel, that one."""
    if side == 1:
        return torch.zeros_like(middle).long(), torch.ones_like(middle).long()
    low, high = ((middle + sign * length / 2).round().clamp(0, side).long() for sign in (-1, 1))
    return low, high


def per_sample(values: Tensor, frames: Tensor) -> Tensor:
    """Values [count] as [1, count, 1, 1, 1] beside frames, on their device."""
    return values.to(frames.device).view(1, -1, 1, 1, 1)


def where_on(on: Tensor, frames: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """``function`` (of frames, dtype kept) on the samples that are ``on``, bool [1] for all or [B].

    Sample by sample: of uint8, a torch.where over the batch takes ten times as long, measured.
    """
    chosen = on.tolist()
    if len(chosen) == 1 or len(set(chosen)) < 2:
        return function(frames) if any(chosen) else frames
    samples = frames.split(1, 1)
    return torch.cat([function(own) if mine else own for own, mine in zip(samples, chosen, strict=True)], 1)


def field_of(seed: int, shape: Sequence[int]) -> Tensor:
    """Uniform numbers in [0, 1) that belong to a seed, float32 of that shape, on the CPU."""
    return torch.rand(tuple(shape), generator=torch.Generator().manual_seed(seed))


def fields_of(draw: Draw, frames: Tensor) -> Tensor:
    """Uniform numbers [T, count, C, H, W] that belong to the draw's seeds, on the frames' device."""
    shape = (frames.shape[0], *frames.shape[2:])
    return torch.stack([field_of(seed, shape) for seed in draw.values["seed"].tolist()], 1).to(frames.device)


def copied(events: Events) -> Events:
    """A copy. As bytes: numpy copies structured arrays field by field, which takes five times as long, measured."""
    return as_bytes(events).copy().view(events.dtype)


def kept(events: Events, chosen: NDArray[np.bool_]) -> Events:
    """A copy of those that are chosen. ``take`` has no such trouble with fields."""
    return events.take(np.flatnonzero(chosen))


def as_bytes(events: Events) -> Events:
    """The same memory without the names of its fields."""
    return events.view(np.dtype((np.void, events.dtype.itemsize)))


def span_of(events: Events) -> tuple[int, int]:
    """First time stamp, and microseconds from it to the last (at least 1)."""
    return int(events["t"][0]), max(int(events["t"][-1]) - int(events["t"][0]), 1)


def sorted_by_time(events: Events) -> Events:
    """The events in the order of t (stable)."""
    if (events["t"][1:] >= events["t"][:-1]).all():
        return events
    return events.take(np.argsort(events["t"], kind="stable"))


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Raise ArgumentError unless low <= value <= high."""
    if isinstance(value, str) or not low <= value <= high:
        raise ArgumentError(f"{name} must lie in {low:g} .. {high:g}, got {value!r}")


def check_count(name: str, value: int, low: int, high: int) -> None:
    """Raise ArgumentError unless value is an integer, low <= value <= high."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ArgumentError(f"{name} must be an integer, got {value!r}")
    check_range(name, value, low, high)


def check_pair(name: str, value: tuple[float, float], low: float, high: float) -> None:
    """Raise ArgumentError unless value is (a, b) with low <= a <= b <= high."""
    if not isinstance(value, tuple | list) or len(value) != 2 or not low <= value[0] <= value[1] <= high:
        raise ArgumentError(f"{name} must be (least, most) within {low:g} .. {high:g}, got {value!r}")
