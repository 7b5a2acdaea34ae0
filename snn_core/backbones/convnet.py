"""A small convolutional spiking network for event frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from snn_core.backbones.registry import register
from snn_core.errors import ArgumentError
from snn_core.neurons import IF, LIF, PLIF, SpikingNeuron, reset_net


def _neuron(kind: str, tau: float, detach_reset: bool, backend: str) -> SpikingNeuron:
    if kind == "lif":
        return LIF(tau=tau, detach_reset=detach_reset, backend=backend)
    if kind == "plif":
        return PLIF(init_tau=tau, detach_reset=detach_reset, backend=backend)
    if kind == "if":
        return IF(detach_reset=detach_reset, backend=backend)
    raise ArgumentError(f"neuron is {kind!r}; allowed: lif, plif, if")


class FrameEncoder(nn.Module):
    """Event counts -> input of the first layer; refuses frames of another shape. Has no parameters."""

    def __init__(self, in_channels: int, input_size: Sequence[int], input_transform: str) -> None:
        super().__init__()
        if input_transform not in ("log1p", "none"):
            raise ArgumentError(f"input_transform is {input_transform!r}; allowed: log1p, none")
        self.frame = (in_channels, *input_size)
        self.input_transform = input_transform

    def forward(self, x_seq: Tensor, dtype: torch.dtype) -> Tensor:
        """Frames ``[T, B, C, H, W]``; floating-point ones keep their dtype, counts get ``dtype``."""
        self.check(x_seq)
        x = x_seq if x_seq.is_floating_point() else x_seq.to(dtype)
        return torch.log1p(x) if self.input_transform == "log1p" else x

    def count_table(self) -> Tensor:
        """What the first layer gets of the counts 0 to 255, float32."""
        counts = torch.arange(256, dtype=torch.float32)
        return torch.log1p(counts) if self.input_transform == "log1p" else counts

    def check(self, x_seq: Tensor) -> None:
        """Raises ArgumentError where the frames have another shape."""
        if x_seq.ndim != 5 or tuple(x_seq.shape[2:]) != self.frame:
            raise ArgumentError(
                f"x_seq has shape {tuple(x_seq.shape)}; expected [T, B, {', '.join(str(side) for side in self.frame)}]"
            )

    def extra_repr(self) -> str:
        return f"input_transform={self.input_transform!r}"


class ConvBlock(nn.Module):
    """Convolution, batch norm, spiking neuron, pooling. ``[T, B, C, H, W]`` in and out."""

    def __init__(self, conv: nn.Conv2d, neuron: SpikingNeuron, pool: nn.Module, norm_gain: float) -> None:
        super().__init__()
        self.conv = conv
        self.norm = nn.BatchNorm2d(conv.out_channels)
        nn.init.constant_(self.norm.weight, norm_gain)
        self.neuron = neuron
        self.pool = pool

    def forward(self, x_seq: Tensor) -> Tensor:
        """Spikes after pooling; time and batch are folded together where a layer knows no time."""
        steps, batch = x_seq.shape[:2]
        current = self.norm(self.conv(x_seq.flatten(0, 1)))
        spikes = self.neuron(current.unflatten(0, (steps, batch)))
        return self.pool(spikes.flatten(0, 1)).unflatten(0, (steps, batch))

    def inference_chain(self) -> list[tuple[str, nn.Module]]:
        """The layers in order, for :func:`snn_core.sparsity.fuse`."""
        return [(name, getattr(self, name)) for name in ("conv", "norm", "neuron", "pool")]


@register("conv-snn")
class ConvSNN(nn.Module):
    """Blocks of convolution, batch norm, spiking neuron and pooling, then a linear read-out of every step's spikes.

    Args:
        in_channels: channels of a frame (2: OFF and ON events).
        num_classes: classes K.
        input_size: height and width of a frame.
        channels: output channels of each block.
        stem_kernel, stem_stride: of the first convolution; the others are 3 x 3, stride 1.
        pool: ``"max"`` (keeps spikes binary) or ``"avg"``; 2 x 2 after every block that is still at least 2 wide.
        neuron: ``"lif"``, ``"plif"`` or ``"if"``; tau, detach_reset: its arguments.
        norm_gain: initial scale of the batch norms; 2 makes up for the division of the input by tau = 2.
        dropout: before the read-out.
        input_transform: ``"log1p"`` of the counts, or ``"none"``.
        backend: kernel backend of the neurons.

    Raises:
        ArgumentError: an option that is not allowed.
    """

    def __init__(
        self,
        in_channels: int = 2,
        num_classes: int = 10,
        input_size: Sequence[int] = (34, 34),
        channels: Sequence[int] = (32, 64, 64),
        stem_kernel: int = 5,
        stem_stride: int = 2,
        pool: str = "max",
        neuron: str = "lif",
        tau: float = 2.0,
        detach_reset: bool = True,
        norm_gain: float = 2.0,
        dropout: float = 0.2,
        input_transform: str = "log1p",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if pool not in ("max", "avg"):
            raise ArgumentError(f"pool is {pool!r}; allowed: max, avg")
        if isinstance(channels, str) or not channels or not all(isinstance(c, int) and c > 0 for c in channels):
            raise ArgumentError(f"channels is {channels!r}; it must be a list of positive integers, one a block")
        if num_classes < 1 or in_channels < 1 or stem_kernel < 1 or stem_stride < 1:
            raise ArgumentError("num_classes, in_channels, stem_kernel and stem_stride must be at least 1")
        if len(input_size) != 2 or min(input_size) < 1:
            raise ArgumentError(f"input_size is {input_size!r}; it must be height and width")
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.input_size = tuple(input_size)
        self.encoder = FrameEncoder(in_channels, input_size, input_transform)
        blocks: list[ConvBlock] = []
        size = self.input_size
        for index, (width_in, width_out) in enumerate(zip((in_channels, *channels), channels, strict=False)):
            kernel, stride = (stem_kernel, stem_stride) if index == 0 else (3, 1)
            conv = nn.Conv2d(width_in, width_out, kernel, stride, kernel // 2, bias=False)
            size = tuple((side - 1) // stride + 1 for side in size)
            pooled = min(size) >= 2
            pooling: nn.Module = nn.Identity()
            if pooled:
                pooling = nn.MaxPool2d(2) if pool == "max" else nn.AvgPool2d(2)
                size = tuple(side // 2 for side in size)
            blocks.append(ConvBlock(conv, _neuron(neuron, tau, detach_reset, backend), pooling, norm_gain))
        self.blocks = nn.ModuleList(blocks)
        self.dropout = nn.Dropout(dropout)
        self.readout = nn.Linear(channels[-1] * size[0] * size[1], num_classes)

    def spiking_layers(self) -> list[tuple[str, SpikingNeuron]]:
        """The neuron modules with their names, input side first."""
        return [(name, part) for name, part in self.named_modules() if isinstance(part, SpikingNeuron)]

    def forward_steps(self, x_seq: Tensor) -> Tensor:
        """Logits of every time step ``[T, B, K]`` from frames ``x_seq [T, B, C, H, W]`` (uint8 counts or float).

        The state of the neurons is reset first: calls do not depend on each other.

        Raises:
            ArgumentError: another number of dimensions, channels, or another frame size.
        """
        x = self.encoder(x_seq, self.readout.weight.dtype)
        reset_net(self)
        for block in self.blocks:
            x = block(x)
        return self.readout(self.dropout(x.flatten(2)))

    def forward(self, x_seq: Tensor) -> Tensor:
        """Logits ``[B, K]``, the mean over time: a linear read-out of the time-averaged spikes."""
        return self.forward_steps(x_seq).mean(0)

    def inference_chain(self) -> list[tuple[str, nn.Module]]:
        """The layers between encoder and mean over time, for :func:`snn_core.sparsity.fuse`."""
        blocks: list[tuple[str, nn.Module]] = [(f"blocks.{index}", block) for index, block in enumerate(self.blocks)]
        return [*blocks, ("flatten", nn.Flatten()), ("dropout", self.dropout), ("readout", self.readout)]

    backbone_name: str
    backbone_options: dict[str, Any]
