"""Frames -> input of the first layer: counts or pictures, of the shape that the network was made for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from snn_core.backbones.options import one_of
from snn_core.errors import ArgumentError

#: Of CIFAR-10's training pictures, red, green and blue, where 255 is 1.
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def is_repeated(x_seq: Tensor) -> bool:
    """Whether all time steps of ``x_seq [T, ...]`` are one in memory, as those of pictures are."""
    return x_seq.shape[0] > 1 and x_seq.stride(0) == 0


class FrameEncoder(nn.Module):
    """Event counts or pictures -> input of the first layer; refuses frames of another shape. Has no parameters.

    Args:
        in_channels, input_size: of the frames; None: any height and width.
        input_transform: ``"log1p"`` of counts, ``"standardise"`` for pictures of 0 to 255, or ``"none"``.
        mean, std: of the channels, where 255 is 1, for ``"standardise"``; None: CIFAR-10's, if there are 3 channels.
        smallest: the least height and width.

    Raises:
        ArgumentError: a transform of no such name; an impossible size; means or deviations that do not fit.
    """

    gain: Tensor | None
    shift: Tensor | None
    like: Tensor

    def __init__(
        self,
        in_channels: int,
        input_size: Sequence[int] | None,
        input_transform: str,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        smallest: int = 1,
    ) -> None:
        super().__init__()
        one_of("input_transform", input_transform, ("log1p", "standardise", "none"))
        size = _checked_size(input_size, smallest)
        self.frame = (in_channels, *(size or ("H", "W")))
        self.smallest = smallest
        self.input_transform = input_transform
        # Whose dtype is the network's, whatever becomes of its layers. None of the buffers is saved: the options of the
        # network say what they are.
        self.register_buffer("like", torch.empty(0), persistent=False)
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

    @property
    def dtype(self) -> torch.dtype:
        """Of the network that this is part of."""
        return self.like.dtype

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
        fits = x_seq.ndim == 5 and len(x_seq) > 0 and x_seq.shape[2] == self.frame[0]
        if fits and self.frame[1:] == ("H", "W"):
            fits = min(x_seq.shape[3:]) >= self.smallest
        elif fits:
            fits = tuple(x_seq.shape[2:]) == self.frame
        if not fits:
            wanted = f"[T, B, {', '.join(str(side) for side in self.frame)}]"
            least = f", H and W at least {self.smallest}" if "H" in self.frame and self.smallest > 1 else ""
            raise ArgumentError(f"x_seq has shape {tuple(x_seq.shape)}; expected {wanted}{least}")

    def extra_repr(self) -> str:
        return f"input_transform={self.input_transform!r}"


def _per_channel(name: str, given: Sequence[float] | None, default: Sequence[float], channels: int) -> list[float]:
    values = list(default if given is None else given)
    if len(values) != channels or not all(isinstance(value, (int, float)) for value in values):
        source = "None, which means CIFAR-10's three," if given is None else repr(given)
        raise ArgumentError(f"{name} must be {channels} numbers, one a channel; got {source} for {channels} channels")
    return [float(value) for value in values]


def _checked_size(input_size: Sequence[int] | None, smallest: int) -> tuple[int, ...] | None:
    if input_size is None:
        return None
    if len(input_size) != 2 or not all(isinstance(side, int) and side >= smallest for side in input_size):
        raise ArgumentError(f"input_size is {input_size!r}; it must be height and width, at least {smallest} each")
    return tuple(input_size)
