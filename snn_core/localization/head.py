"""A head that finds boxes on the feature maps of any backbone, and the localiser made of both."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from snn_core.backbones.features import Backbone, FeatureInfo
from snn_core.errors import ArgumentError
from snn_core.localization.detections import Detections, HeadMaps, decode
from snn_core.neurons import LIF, reset_net

#: Objectness begins near this, so that the many places without an object do not swamp the first steps.
PRIOR = 0.05


class LeakyMean(nn.Module):
    """A leaky mean over time of ``x_seq [T, B, C, h, w]``, one learned leak a channel; not spiking.

    ``m[t] = a m[t-1] + (1 - a) x[t]``, ``a`` begins at one half. It sees no step but those up to its own.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.leak = nn.Parameter(torch.zeros(channels))

    def forward(self, x_seq: Tensor) -> Tensor:
        """``[T, B, C, h, w]``."""
        kept = self.leak.sigmoid().view(-1, 1, 1)
        mean, means = torch.zeros_like(x_seq[0]), []
        for x in x_seq:
            mean = kept * mean + (1 - kept) * x
            means.append(mean)
        return torch.stack(means)


class _Branch(nn.Module):
    """3 x 3 convolutions, each with batch norm and neurons, a leaky mean over time, one linear map."""

    def __init__(self, in_channels: int, channels: int, depth: int, out_channels: int, spiking: bool) -> None:
        super().__init__()
        self.convs, self.norms, self.neurons = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for index in range(depth):
            self.convs.append(nn.Conv2d(channels if index else in_channels, channels, 3, padding=1, bias=False))
            norm = nn.BatchNorm2d(channels)
            if spiking:
                nn.init.constant_(norm.weight, 2.0)  # makes up for the division of the input by tau = 2
            self.norms.append(norm)
            self.neurons.append(LIF(detach_reset=True) if spiking else nn.ReLU())
        self.memory = LeakyMean(channels)
        self.readout = nn.Conv2d(channels, out_channels, 1)
        nn.init.normal_(self.readout.weight, std=0.01)
        nn.init.zeros_(self.readout.bias)  # type: ignore[arg-type]

    def forward(self, x_seq: Tensor) -> Tensor:
        """float32 ``[T * B, out_channels, h, w]``, from features ``[T, B, c, h, w]``."""
        steps_and_batch = x_seq.shape[:2]
        for conv, norm, neuron in zip(self.convs, self.norms, self.neurons, strict=True):
            x_seq = neuron(norm(conv(x_seq.flatten(0, 1))).unflatten(0, steps_and_batch))
        said: Tensor = self.readout(self.memory(x_seq).flatten(0, 1))
        return said.float()


class AnchorFreeHead(nn.Module):
    """Boxes without anchors: every place of a map says whether an object's middle is near, its class, and how far the
    four sides of its box are.

    Two branches, one for classes and one for the rest, each of 3 x 3 convolutions with batch norm and neurons, a leaky
    mean over time, and one linear map. After FCOS (Tian et al., FCOS: Fully Convolutional One-Stage Object Detection,
    ICCV 2019), on one map instead of a pyramid; as in YOLOX (Ge et al., 2021) objectness learns the overlap that its
    box has.

    Args:
        in_channels: of the map.
        num_classes: classes K.
        stride: pixels from place to place.
        channels: of the hidden layer for boxes.
        spiking: LIF neurons in the hidden layers; ReLU otherwise.
        class_channels, class_depth: of the hidden layers for classes, and how many there are.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        stride: int,
        channels: int,
        spiking: bool,
        class_channels: int = 128,
        class_depth: int = 1,
    ) -> None:
        super().__init__()
        self.num_classes, self.stride = num_classes, stride
        self.where = _Branch(in_channels, channels, 1, 5, spiking)
        self.what = _Branch(in_channels, class_channels, class_depth, num_classes, spiking)
        with torch.no_grad():
            self.where.readout.bias[0] = torch.logit(torch.tensor(PRIOR))  # type: ignore[index]

    def forward(self, features: Tensor) -> HeadMaps:
        """Maps of every step, N = T * B (step by step), from features ``[T, B, c, h, w]``."""
        where, what = self.where(features), self.what(features)
        # Bounded, so that no box becomes infinite; e**4 strides are more than any field.
        distances = where[:, 1:].clamp(max=4).exp() * self.stride
        return HeadMaps(where[:, 0], what, distances, self.stride)


class Localiser(nn.Module):
    """A backbone of :mod:`snn_core.backbones` whose feature maps an :class:`AnchorFreeHead` reads.

    Args:
        backbone: spiking, which gets frames ``[T, B, C, H, W]``; or another, which gets log(1 + counts) of each step
            as a picture of its own.
        num_classes: classes of the objects.
        levels: which of the backbone's ``feature_info``; several are brought to the size of the finest and stacked.
            By default the last one of the finest stride from 8 pixels on.
        channels: of the head's hidden layer for boxes.
        class_channels, class_depth: of those for classes, and how many there are.

    Raises:
        ArgumentError: levels that the backbone does not have; averaged features of a spiking one.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        levels: Sequence[int] | None = None,
        channels: int = 96,
        class_channels: int = 128,
        class_depth: int = 1,
    ) -> None:
        super().__init__()
        infos = backbone.feature_info
        self.levels = tuple(default_levels(infos) if levels is None else levels)
        if not self.levels or not all(isinstance(level, int) and 0 <= level < len(infos) for level in self.levels):
            raise ArgumentError(f"levels must be some of 0..{len(infos) - 1}, got {levels!r}")
        if getattr(backbone, "average_features", False):
            raise ArgumentError("backbone averages its features over time; make it with average_features=False")
        self.backbone = backbone
        chosen = [infos[level] for level in self.levels]
        width = sum(info.channels for info in chosen)
        stride = min(info.stride for info in chosen)
        self.head = AnchorFreeHead(width, num_classes, stride, channels, backbone.spiking, class_channels, class_depth)

    def features(self, x_seq: Tensor) -> Tensor:
        """``[T, B, c, h, w]``: the chosen levels, stacked."""
        if self.backbone.spiking:
            maps = self.backbone.forward_features(x_seq)
        else:
            frames = torch.log1p(x_seq.float() if not x_seq.is_floating_point() else x_seq).flatten(0, 1)
            maps = [level.unflatten(0, x_seq.shape[:2]) for level in self.backbone.forward_features(frames)]
        chosen = [maps[level] for level in self.levels]
        side = max(level.shape[-2:] for level in chosen)
        parts = [
            level
            if level.shape[-2:] == side
            else functional.interpolate(level.flatten(0, 1), side, mode="nearest").unflatten(0, x_seq.shape[:2])
            for level in chosen
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 2)

    def forward(self, x_seq: Tensor) -> HeadMaps:
        """Maps of every step from frames ``[T, B, C, H, W]`` (uint8 counts or float)."""
        features = self.features(x_seq)
        reset_net(self.head)
        return self.head(features)

    def detect(self, x_seq: Tensor, *, step: int = -1, **options: float) -> list[Detections]:
        """What is in each of B samples when ``step`` ends; ``options`` as of :func:`decode`."""
        return self.detect_steps(x_seq, [step], **options)[0]

    def detect_steps(self, x_seq: Tensor, steps: Sequence[int], **options: float) -> list[list[Detections]]:
        """The same when each of ``steps`` ends, from one pass; one list a step."""
        if x_seq.ndim != 5:
            raise ArgumentError(f"x_seq has shape {tuple(x_seq.shape)}; expected [T, B, C, H, W]")
        number, batch, _, height, width = x_seq.shape
        for step in steps:
            if not -number <= step < number:
                raise ArgumentError(f"step must lie in {-number}..{number - 1}, got {step}")
        maps = self(x_seq)
        rows = [(step % number * batch, (step % number + 1) * batch) for step in steps]
        return [decode(maps.rows(*row), height, width, **options) for row in rows]  # type: ignore[arg-type]


def default_levels(infos: Sequence[FeatureInfo]) -> list[int]:
    """The last map of the finest stride from 8 pixels on; the last map of all where there is none."""
    stride = min((info.stride for info in infos if info.stride >= 8), default=infos[-1].stride)
    return [max(index for index, info in enumerate(infos) if info.stride == stride)]
