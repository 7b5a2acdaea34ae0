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


#: Of CIFAR-10's training pictures, red, green and blue, where 255 is 1.
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def is_repeated(x_seq: Tensor) -> bool:
    """Whether all time steps of ``x_seq [T, ...]`` are one in memory, as those of pictures are."""
    return x_seq.shape[0] > 1 and x_seq.stride(0) == 0


class FrameEncoder(nn.Module):
    """Event counts or pictures -> input of the first layer; refuses frames of another shape. Has no parameters.

    Args:
        in_channels, input_size: of the frames.
        input_transform: ``"log1p"`` of counts, ``"standardise"`` for pictures of 0 to 255, or ``"none"``.
        mean, std: of the channels, where 255 is 1, for ``"standardise"``; None: CIFAR-10's, if there are 3 channels.

    Raises:
        ArgumentError: a transform of no such name; means or deviations that do not fit.
    """

    gain: Tensor | None
    shift: Tensor | None

    def __init__(
        self,
        in_channels: int,
        input_size: Sequence[int],
        input_transform: str,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if input_transform not in ("log1p", "standardise", "none"):
            raise ArgumentError(f"input_transform is {input_transform!r}; allowed: log1p, standardise, none")
        self.frame = (in_channels, *input_size)
        self.input_transform = input_transform
        # Not saved: the options of the network say what they are.
        self.register_buffer("gain", None, persistent=False)
        self.register_buffer("shift", None, persistent=False)
        if input_transform == "standardise":
            means = _per_channel("input_mean", mean, CIFAR10_MEAN, in_channels)
            deviations = _per_channel("input_std", std, CIFAR10_STD, in_channels)
            if min(deviations) <= 0:
                raise ArgumentError(f"input_std must be positive, got {std!r}")
            self.gain = 1 / (255 * torch.tensor(deviations)).view(-1, 1, 1)
            self.shift = (-torch.tensor(means) / torch.tensor(deviations)).view(-1, 1, 1)
        elif mean is not None or std is not None:
            raise ArgumentError(
                f"input_mean and input_std go with input_transform 'standardise', not {input_transform!r}"
            )

    def forward(self, x_seq: Tensor, dtype: torch.dtype) -> Tensor:
        """Frames ``[T, B, C, H, W]``; floating-point ones keep their dtype, counts get ``dtype``.

        Of T frames that are one in memory (stride 0), one is transformed, and the result has stride 0 too.
        """
        self.check(x_seq)
        if is_repeated(x_seq):
            return self._transformed(x_seq[:1], dtype).expand(len(x_seq), -1, -1, -1, -1)
        return self._transformed(x_seq, dtype)

    def _transformed(self, x_seq: Tensor, dtype: torch.dtype) -> Tensor:
        x = x_seq if x_seq.is_floating_point() else x_seq.to(dtype)
        if self.gain is not None and self.shift is not None:
            return x * self.gain.to(x.dtype) + self.shift.to(x.dtype)
        return torch.log1p(x) if self.input_transform == "log1p" else x

    def count_table(self) -> Tensor | None:
        """What the first layer gets of the counts 0 to 255, float32; None where it depends on the channel."""
        if self.input_transform == "standardise":
            return None
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


def _per_channel(name: str, given: Sequence[float] | None, default: Sequence[float], channels: int) -> list[float]:
    values = list(default if given is None else given)
    if len(values) != channels or not all(isinstance(value, (int, float)) for value in values):
        source = "None, which means CIFAR-10's three," if given is None else repr(given)
        raise ArgumentError(f"{name} must be {channels} numbers, one a channel; got {source} for {channels} channels")
    return [float(value) for value in values]


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
        if is_repeated(x_seq) and not _has_hooks(self.conv):
            current = self._current_of_pictures(x_seq)
        else:
            current = self.norm(self.conv(x_seq.flatten(0, 1))).unflatten(0, (steps, batch))
        spikes = self.neuron(current)
        return self.pool(spikes.flatten(0, 1)).unflatten(0, (steps, batch))

    def _current_of_pictures(self, x_seq: Tensor) -> Tensor:
        """``[T, B, C, H, W]`` from T equal frames, convolved once; a hook (a pruner's, say) must see all T."""
        steps = len(x_seq)
        current = self.conv(x_seq[0])
        if self.norm.training:
            # The norm gets all copies: its sums then are those of frames that are not one in memory, to the last bit.
            current = current.expand(steps, *current.shape)
            return self.norm(current.flatten(0, 1)).unflatten(0, current.shape[:2])
        current = self.norm(current)
        return current.expand(steps, *current.shape)

    def inference_chain(self) -> list[tuple[str, nn.Module]]:
        """The layers in order, for :func:`snn_core.sparsity.fuse`."""
        return [(name, getattr(self, name)) for name in ("conv", "norm", "neuron", "pool")]


def _check_blocks(name: str, values: Sequence[int] | None, count: int | None) -> None:
    """ArgumentError unless a list of positive integers, ``count`` of them; None is fine where ``count`` is given."""
    if values is None and count is not None:
        return
    positive = not isinstance(values, str) and values and all(isinstance(value, int) and value > 0 for value in values)
    if not positive or (count is not None and len(values or ()) != count):
        wanted = "a list of positive integers, one a block" + (f": {count}" if count is not None else "")
        raise ArgumentError(f"{name} is {values!r}; it must be {wanted}")


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


@register("conv-snn")
class ConvSNN(nn.Module):
    """Blocks of convolution, batch norm, spiking neuron and pooling, then a linear read-out of every step's spikes.

    Args:
        in_channels: channels of a frame (2: OFF and ON events, 3: colours).
        num_classes: classes K.
        input_size: height and width of a frame.
        channels: output channels of each block.
        stem_kernel, stem_stride: of the first convolution; the others are 3 x 3, stride 1.
        strides: of every block's convolution, instead of stem_stride and 1.
        pool: ``"max"`` (keeps spikes binary) or ``"avg"``; 2 x 2 after every block that is still at least 2 wide.
        pools: side of the window after every block, 1 for none, instead of that.
        neuron: ``"lif"``, ``"plif"`` or ``"if"``; tau, detach_reset: its arguments.
        norm_gain: initial scale of the batch norms; 2 makes up for the division of the input by tau = 2.
        dropout: before the read-out.
        input_transform: ``"log1p"`` of the counts, ``"standardise"`` for pictures, or ``"none"``.
        input_mean, input_std: for ``"standardise"``, one a channel, where 255 is 1; by default CIFAR-10's.
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
        strides: Sequence[int] | None = None,
        pools: Sequence[int] | None = None,
        input_mean: Sequence[float] | None = None,
        input_std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if pool not in ("max", "avg"):
            raise ArgumentError(f"pool is {pool!r}; allowed: max, avg")
        _check_blocks("channels", channels, None)
        _check_blocks("strides", strides, len(channels))
        _check_blocks("pools", pools, len(channels))
        if num_classes < 1 or in_channels < 1 or stem_kernel < 1 or stem_stride < 1:
            raise ArgumentError("num_classes, in_channels, stem_kernel and stem_stride must be at least 1")
        if len(input_size) != 2 or min(input_size) < 1:
            raise ArgumentError(f"input_size is {input_size!r}; it must be height and width")
        self.num_classes, self.in_channels, self.input_size = num_classes, in_channels, tuple(input_size)
        self.encoder = FrameEncoder(in_channels, input_size, input_transform, input_mean, input_std)
        blocks: list[ConvBlock] = []
        size = self.input_size
        for index, (width_in, width_out) in enumerate(zip((in_channels, *channels), channels, strict=False)):
            kernel, stride = (stem_kernel, stem_stride) if index == 0 else (3, 1)
            stride = stride if strides is None else strides[index]
            conv = nn.Conv2d(width_in, width_out, kernel, stride, kernel // 2, bias=False)
            size = tuple((side - 1) // stride + 1 for side in size)
            window = pools[index] if pools is not None else 2 if min(size) >= 2 else 1
            if window > min(size):
                raise ArgumentError(f"pools is {pools!r}; block {index} gives {size[0]} x {size[1]}")
            pooling: nn.Module = nn.Identity()
            if window > 1:
                pooling = nn.MaxPool2d(window) if pool == "max" else nn.AvgPool2d(window)
                size = tuple(side // window for side in size)
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
