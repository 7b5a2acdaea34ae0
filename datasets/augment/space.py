"""Augmentations in the plane of the sensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from snn_core.datasets.augment.base import (
    Augmentation,
    Draw,
    Events,
    between,
    check_count,
    check_pair,
    check_range,
    copied,
    integers,
    interval,
    kept,
    seeds,
    uniform,
    where_on,
)
from snn_core.errors import ArgumentError


class AlikeOverTime(Augmentation):
    """Does the same to the frames of all time steps."""

    def alike_over_time(self) -> bool:
        return True


@dataclass
class Shift(AlikeOverTime):
    """Whole pixels in x and y, at most ``pixels`` each way; what leaves is lost, what enters is 0.

    Of a sensor that is a line of pixels (SHD's 700 channels) the other axis stays.
    """

    pixels: int = 2

    def __post_init__(self) -> None:
        check_count("pixels", self.pixels, 0, 2**15)

    def draw(self, generator: torch.Generator, count: int, size: tuple[int, int]) -> Draw:
        offsets = torch.randint(0, 2 * self.pixels + 1, (count, 2), generator=generator)
        width, height = size
        dy, dx = (self.pixels - offsets).unbind(1)
        return Draw(count, size, {"dy": dy * (height > 1), "dx": dx * (width > 1)})

    def _frames(self, frames: Tensor, draw: Draw) -> Tensor:
        height, width = frames.shape[-2:]
        # Padded by no more than what is moved: a line of pixels not across, and nobody by more than the sensor's size.
        dx, dy = (draw.values[name].clamp(-side, side) for name, side in (("dx", width), ("dy", height)))
        across, along = (int(offset.abs().max()) for offset in (dx, dy))
        padded = functional.pad(frames, (across, across, along, along))
        return _windows(padded, across - dx, along - dy, width, height)

    def _events(self, events: Events, draw: Draw) -> Events:
        x, y = events["x"].astype(np.int64) + draw.item("dx"), events["y"].astype(np.int64) + draw.item("dy")
        return _inside(events, x, y, draw.size)


@dataclass
class PadCrop(Shift):
    """Pictures padded with 0 on all sides and cut back to their size at a random place.

    Args:
        pixels: of the padding; None: an eighth of a side (4 of 32, as is usual for CIFAR-10; 2 of 16), to nearest.

    Source: He et al., Deep Residual Learning for Image Recognition, CVPR 2016, section 4.2 (after Lee et al. 2015).
    """

    pixels: int | None = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.pixels is not None:
            super().__post_init__()

    def draw(self, generator: torch.Generator, count: int, size: tuple[int, int]) -> Draw:
        values = {}
        for name, side in zip(("dx", "dy"), size, strict=True):
            most = self.pixels if self.pixels is not None else (side + 4) // 8
            values[name] = integers(generator, count, -most, most)
        return Draw(count, size, values)


@dataclass
class Roll(AlikeOverTime):
    """Whole pixels in x and y, at most ``pixels`` each way; what leaves enters on the other side (NDA, see ``nda``)."""

    pixels: int = 5

    def __post_init__(self) -> None:
        check_count("pixels", self.pixels, 0, 2**15)

    def draw(self, generator: torch.Generator, count: int, size: tuple[int, int]) -> Draw:
        dx, dy = (integers(generator, count, -self.pixels, self.pixels) for _ in range(2))
        return Draw(count, size, {"dx": dx, "dy": dy})

    def _frames(self, frames: Tensor, draw: Draw) -> Tensor:
        offsets = list(zip(draw.values["dy"].tolist(), draw.values["dx"].tolist(), strict=True))
        if draw.count == 1:
            return torch.roll(frames, offsets[0], (3, 4))
        return torch.stack([torch.roll(frames[:, i], offset, (2, 3)) for i, offset in enumerate(offsets)], 1)

    def _events(self, events: Events, draw: Draw) -> Events:
        moved = copied(events)
        width, height = draw.size
        moved["x"] = (events["x"].astype(np.int64) + draw.item("dx")) % width
        moved["y"] = (events["y"].astype(np.int64) + draw.item("dy")) % height
        return moved


@dataclass
class Flip(AlikeOverTime):
    """The mirror image, with probability ``p``.

    Only where the label survives it: not digits. Where the mirror image is of another class, ``classes`` says which:
    class k becomes ``classes[k]`` (see :data:`snn_core.datasets.augment.GESTURE_MIRROR`).
    """

    p: float = 0.5
    axis: Literal["x", "y"] = "x"
    classes: Sequence[int] | None = None

    def __post_init__(self) -> None:
        check_range("p", self.p, 0, 1)
        if self.axis not in ("x", "y"):
            raise ArgumentError(f"axis must be 'x' or 'y', got {self.axis!r}")
        check_classes(self.classes)

    def draw(self, generator: torch.Generator, count: int, size: tuple[int, int]) -> Draw:
        return Draw(count, size, {"on": torch.rand(count, generator=generator) < self.p})

    def _frames(self, frames: Tensor, draw: Draw) -> Tensor:
        axis = 4 if self.axis == "x" else 3
        return where_on(draw.values["on"], frames, lambda own: own.flip(axis))

    def _events(self, events: Events, draw: Draw) -> Events:
        if not draw.item("on"):
            return events
        moved = copied(events)
        moved[self.axis] = draw.size[0 if self.axis == "x" else 1] - 1 - events[self.axis].astype(np.int64)
        return moved

    def relabel(self, labels: Tensor, draw: Draw) -> Tensor:
        return relabelled(labels, draw.values["on"], self.classes)


@dataclass
class Affine(AlikeOverTime):
    """Rotation, scale, shear and shift about the middle, each uniform within its limits.

    Args:
        degrees: of rotation, at most, either way.
        scale: relative change of size, at most, either way.
        pixels: of shift in x and y, at most, either way; not whole ones.
        shear: degrees, at most, either way, along x.
        interpolation: "bilinear" gives floating-point frames; "nearest" keeps counts what they are, and the dtype.

    Events move to the pixel nearest to where the transform takes them. Frames pull every pixel from where it came
    from, so the two agree but for rounding (a magnified event stays one event).
    """

    degrees: float = 10.0
    scale: float = 0.12
    pixels: float = 2.0
    shear: float = 0.0
    interpolation: Literal["bilinear", "nearest"] = "bilinear"

    def __post_init__(self) -> None:
        check_range("degrees", self.degrees, 0, 180)
        check_range("scale", self.scale, 0, 0.9)
        check_range("shear", self.shear, 0, 80)
        check_range("pixels", self.pixels, 0, 2**15)
        if self.interpolation not in ("bilinear", "nearest"):
            raise ArgumentError(f"interpolation must be 'bilinear' or 'nearest', got {self.interpolation!r}")

    def draw(self, generator: torch.Generator, count: int, size: tuple[int, int]) -> Draw:
        if min(size) < 2:
            raise ArgumentError(f"Affine needs a plane of pixels, got {size[0]} x {size[1]}; Shift works on a line")
        # theta is what takes output coordinates to input coordinates; both run from -1 to 1 over the frame.
        width, height = size
        angle = uniform(generator, count, math.radians(self.degrees))
        scale = 1 + uniform(generator, count, self.scale)
        cosine, sine = torch.cos(angle) / scale, torch.sin(angle) / scale
        shift_x = uniform(generator, count, 2 * self.pixels / width)
        shift_y = uniform(generator, count, 2 * self.pixels / height)
        # On a sensor that is not square, x and y of -1 .. 1 have different lengths.
        aspect = height / width
        rows = torch.stack([cosine, -sine * aspect, shift_x, sine / aspect, cosine, shift_y], 1).view(count, 2, 3)
        if self.shear:
            lean = torch.tan(uniform(generator, count, math.radians(self.shear))) * aspect
            rows[:, :, 1] += rows[:, :, 0] * lean.view(-1, 1)
        return Draw(count, size, {"theta": rows})

    def _frames(self, frames: Tensor, draw: Draw) -> Tensor:
        if self.interpolation == "nearest" and not frames.is_floating_point():
            return _nearest(frames, draw.values["theta"])
        steps, batch, channels, height, width = frames.shape
        source = frames if frames.is_floating_point() else frames.float()
        theta = draw.values["theta"].to(source.device, source.dtype).expand(batch, 2, 3)
        images = source.transpose(0, 1).reshape(batch, steps * channels, height, width)
        grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
        moved = functional.grid_sample(images, grid, mode=self.interpolation, padding_mode="zeros", align_corners=False)
        return moved.view(batch, steps, channels, height, width).transpose(0, 1)

    def _events(self, events: Events, draw: Draw) -> Events:
        width, height = draw.size
        theta = draw.values["theta"][0].double().numpy()
        forward = np.linalg.inv(theta[:, :2])
        to_x = (2 * events["x"].astype(np.float64) + 1) / width - 1 - theta[0, 2]
        to_y = (2 * events["y"].astype(np.float64) + 1) / height - 1 - theta[1, 2]
        x = ((forward[0, 0] * to_x + forward[0, 1] * to_y + 1) * width - 1) / 2
        y = ((forward[1, 0] * to_x + forward[1, 1] * to_y + 1) * height - 1) / 2
        return _inside(events, np.rint(x).astype(np.int64), np.rint(y).astype(np.int64), draw.size)


@dataclass
class Crop(AlikeOverTime):
    """A window of ``width`` x ``height`` pixels at a random place; the result has its size."""

    width: int
    height: int

    def __post_init__(self) -> None:
        check_count("width", self.width, 1, 2**15)
        check_count("height", self.height, 1, 2**15)

    def draw(self, generator: torch.Generator, count: int, size: tuple[int, int]) -> Draw:
        if self.width > size[0] or self.height > size[1]:
            raise ArgumentError(f"Crop of {self.width} x {self.height}: the frames are {size[0]} x {size[1]}")
        left = integers(generator, count, 0, size[0] - self.width)
        top = integers(generator, count, 0, size[1] - self.height)
        return Draw(count, size, {"left": left, "top": top})

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return self.width, self.height

    def _frames(self, frames: Tensor, draw: Draw) -> Tensor:
        return _windows(frames, draw.values["left"], draw.values["top"], self.width, self.height)

    def _events(self, events: Events, draw: Draw) -> Events:
        x, y = events["x"].astype(np.int64) - draw.item("left"), events["y"].astype(np.int64) - draw.item("top")
        return _inside(events, x, y, (self.width, self.height))


@dataclass
class DropArea(AlikeOverTime):
    """Events of a rectangle are dropped ("drop by area" of EventDrop, Gu et al. 2021; cutout for a fixed ``ratio``).

    ``ratio``: its sides relative to the sensor's, uniform between the two. Its middle is anywhere on the sensor, and it
    is cut off at the border.
    """

    ratio: tuple[float, float] = (0.05, 0.25)

    def __post_init__(self) -> None:
        check_pair("ratio", self.ratio, 0, 1)

    def draw(self, generator: torch.Generator, count: int, size: tuple[int, int]) -> Draw:
        ratio = between(generator, count, *self.ratio)
        values = {}
        for axis, side in zip("xy", size, strict=True):
            middle = torch.rand(count, generator=generator) * side
            values[f"{axis}0"], values[f"{axis}1"] = interval(middle, ratio * side, side)
        return Draw(count, size, values)

    def _frames(self, frames: Tensor, draw: Draw) -> Tensor:
        result = frames.clone()
        borders = zip(*(draw.values[name].tolist() for name in ("x0", "x1", "y0", "y1")), strict=True)
        for sample, (x0, x1, y0, y1) in enumerate(borders):
            own = slice(None) if draw.count == 1 else slice(sample, sample + 1)
            result[:, own, :, y0:y1, x0:x1] = 0
        return result

    def _events(self, events: Events, draw: Draw) -> Events:
        x, y = np.ascontiguousarray(events["x"]), np.ascontiguousarray(events["y"])
        dropped = (x >= draw.item("x0")) & (x < draw.item("x1")) & (y >= draw.item("y0")) & (y < draw.item("y1"))
        return kept(events, ~dropped)


@dataclass
class SpatialJitter(Augmentation):
    """Every event moved by a normal deviate of ``pixels`` in x and in y; those that leave are lost. Events only."""

    pixels: float = 1.0

    def __post_init__(self) -> None:
        check_range("pixels", self.pixels, 0, 2**15)

    def draw(self, generator: torch.Generator, count: int, size: tuple[int, int]) -> Draw:
        return Draw(count, size, {"seed": seeds(generator, count)})

    def _frames(self, frames: Tensor, draw: Draw) -> Tensor:
        raise ArgumentError("SpatialJitter works on events, not on frames")

    def _events(self, events: Events, draw: Draw) -> Events:
        deviates = torch.randn(2, len(events), generator=torch.Generator().manual_seed(draw.item("seed"))).numpy()
        steps = np.rint(deviates * self.pixels).astype(np.int64)
        return _inside(events, events["x"] + steps[0], events["y"] + steps[1], draw.size)


def check_classes(classes: Sequence[int] | None) -> None:
    """Raise ArgumentError unless None or a permutation of 0 .. K - 1."""
    if classes is not None and sorted(classes) != list(range(len(classes))):
        raise ArgumentError(f"classes must be a permutation of 0 .. {len(classes) - 1}, got {list(classes)}")


def relabelled(labels: Tensor, on: Tensor, classes: Sequence[int] | None) -> Tensor:
    """classes[label] where on, else the label."""
    if classes is None:
        return labels
    table = torch.as_tensor(classes, dtype=labels.dtype, device=labels.device)
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < len(table):
        raise ArgumentError(f"classes has {len(table)} entries, labels lie in {int(labels.min())}..{int(labels.max())}")
    return torch.where(on.to(labels.device), table[labels], labels)


def _windows(frames: Tensor, left: Tensor, top: Tensor, width: int, height: int) -> Tensor:
    """The window of every sample that begins at (left, top); [T, B, C, height, width]."""
    corners = list(zip(left.tolist(), top.tolist(), strict=True))
    if len(corners) == 1:
        x, y = corners[0]
        return frames[..., y : y + height, x : x + width].clone()
    return torch.stack([frames[:, i, :, y : y + height, x : x + width] for i, (x, y) in enumerate(corners)], 1)


def _inside(events: Events, x: np.ndarray, y: np.ndarray, size: tuple[int, int]) -> Events:
    """The events at their new places, those off the sensor left out."""
    inside = (x >= 0) & (x < size[0]) & (y >= 0) & (y < size[1])
    moved = kept(events, inside)
    moved["x"], moved["y"] = x[inside], y[inside]
    return moved


def _nearest(frames: Tensor, theta: Tensor) -> Tensor:
    """Integer frames pulled from the pixel nearest to where each came from; 0 from outside."""
    height, width = frames.shape[-2:]
    grid = functional.affine_grid(theta, [len(theta), 1, height, width], align_corners=False)
    x = (((grid[..., 0] + 1) * width - 1) / 2).round().long()
    y = (((grid[..., 1] + 1) * height - 1) / 2).round().long()
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    source = torch.where(inside, y * width + x, 0).flatten(1)  # [count, H * W]
    index = source.to(frames.device).view(1, len(theta), 1, -1).expand(*frames.shape[:3], -1)
    pulled = frames.flatten(3).gather(3, index).view(frames.shape)
    return pulled.masked_fill(~inside.view(1, len(theta), 1, height, width).to(frames.device), 0)
