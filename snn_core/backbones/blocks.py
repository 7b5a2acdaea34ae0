"""What the convolutional spiking networks are made of. Everything takes and gives ``[T, B, ...]``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor, nn

from snn_core.backbones.encoder import is_repeated
from snn_core.backbones.options import check_probability
from snn_core.errors import ArgumentError
from snn_core.neurons import SpikingNeuron


def fold_time(layer: nn.Module, x_seq: Tensor) -> Tensor:
    """``layer`` on ``x_seq [T, B, ...]``, with time and batch as one dimension."""
    y: Tensor = layer(x_seq.flatten(0, 1))
    return y.unflatten(0, x_seq.shape[:2])


class ConvNorm(nn.Module):
    """Convolution and batch norm: currents ``[T, B, C, H, W]``."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv = conv
        self.norm = norm

    def forward(self, x_seq: Tensor) -> Tensor:
        """Currents of spikes, or of frames."""
        if is_repeated(x_seq) and not _has_hooks(self.conv):
            return self._current_of_pictures(x_seq)
        return self.norm(self.conv(x_seq.flatten(0, 1))).unflatten(0, x_seq.shape[:2])

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


class ConvBlock(ConvNorm):
    """Convolution, batch norm, spiking neuron, pooling. ``[T, B, C, H, W]`` in and out."""

    def __init__(
        self, conv: nn.Conv2d, norm: nn.BatchNorm2d, neuron: SpikingNeuron, pool: nn.Module | None = None
    ) -> None:
        super().__init__(conv, norm)
        self.neuron = neuron
        self.pool = nn.Identity() if pool is None else pool

    def forward(self, x_seq: Tensor) -> Tensor:
        """Spikes after pooling."""
        spikes = self.neuron(super().forward(x_seq))
        return fold_time(self.pool, spikes)

    def inference_chain(self) -> list[tuple[str, nn.Module]]:
        """The layers in order, for :func:`snn_core.sparsity.fuse`."""
        return [(name, getattr(self, name)) for name in ("conv", "norm", "neuron", "pool")]


class SpikingHead(nn.Module):
    """Pooling to a fixed size, layers of neurons behind Linears, and a linear read-out of every step.

    Args:
        channels: of the feature maps ``[T, B, C, H, W]``.
        num_classes: classes K.
        hidden: sizes of the layers before the read-out.
        pool_to: side that feature maps are averaged to.
        make_neuron: makes the neurons of the hidden layers.
        dropout: behind every hidden layer, or before the read-out where there is none.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        hidden: Sequence[int] = (),
        pool_to: int = 1,
        make_neuron: Callable[[], SpikingNeuron],
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if isinstance(hidden, str) or not all(isinstance(size, int) and size > 0 for size in hidden):
            raise ArgumentError(f"hidden is {hidden!r}; it must be a list of positive integers")
        if not isinstance(pool_to, int) or pool_to < 1:
            raise ArgumentError(f"pool_to is {pool_to!r}; it must be a positive integer")
        check_probability("dropout", dropout)
        self.pool = nn.AdaptiveAvgPool2d(pool_to)
        self.flatten = nn.Flatten()
        sizes = [channels * pool_to * pool_to, *hidden]
        self.hidden = nn.Sequential()
        for index, (size_in, size_out) in enumerate(pairwise(sizes)):
            self.hidden.add_module(f"linear{index}", nn.Linear(size_in, size_out))
            self.hidden.add_module(f"neuron{index}", make_neuron())
            self.hidden.add_module(f"dropout{index}", nn.Dropout(dropout))
        self.dropout = nn.Dropout(0.0 if hidden else dropout)
        self.readout = nn.Linear(sizes[-1], num_classes)

    def forward(self, x_seq: Tensor) -> Tensor:
        """Logits ``[T, B, K]``."""
        x = self.pool(x_seq.flatten(0, 1)).flatten(1).unflatten(0, x_seq.shape[:2])
        return self.readout(self.dropout(self.hidden(x)))

    def inference_chain(self) -> list[tuple[str, nn.Module]]:
        """The layers in order, for :func:`snn_core.sparsity.fuse`."""
        return [(name, getattr(self, name)) for name in ("pool", "flatten", "hidden", "dropout", "readout")]


def scaled_channels(name: str, channels: Sequence[int] | None, width: float, default: Sequence[int]) -> list[int]:
    """Channels of the stages: those given, or the default ones times ``width``, as multiples of 8.

    Raises:
        ArgumentError: another number of stages; no positive integers; a width that is not positive.
    """
    if isinstance(width, bool) or not isinstance(width, int | float) or not 0 < width < 1000:
        raise ArgumentError(f"width is {width!r}; it must be a positive number")
    if channels is None:
        return [size if width == 1 else max(8, round(size * width / 8) * 8) for size in default]
    positive = not isinstance(channels, str) and all(isinstance(size, int) and size > 0 for size in channels)
    if not positive or len(channels) != len(default):
        raise ArgumentError(f"{name} is {channels!r}; it must be {len(default)} positive integers, one a stage")
    return list(channels)


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
