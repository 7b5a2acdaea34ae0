"""Checks of what the public functions are given, and the form in which operators take it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from snn_core.errors import ArgumentError
from snn_core.kernels.native.library import packed_size
from snn_core.kernels.nm_compress.compressed import CompressedNM
from snn_core.kernels.nm_compress.pattern import NMPattern
from snn_core.kernels.spike_pack.packed import PackedSpikes

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
OUT_DTYPES = FLOAT_DTYPES[:3]

Pair = tuple[int, int]


@dataclass(frozen=True)
class Weight:
    """A weight as operators take it: see schema.py. ``source`` is what the caller gave."""

    source: Tensor | CompressedNM
    bias: Tensor | None
    shape: tuple[int, int, int, int]

    @property
    def pattern(self) -> NMPattern | None:
        """None for a dense weight."""
        return self.source.pattern if isinstance(self.source, CompressedNM) else None

    @property
    def values(self) -> Tensor:
        """Kept values, or the dense weight."""
        return self.source.values if isinstance(self.source, CompressedNM) else self.source

    @property
    def dtype(self) -> torch.dtype:
        """Of the values."""
        return self.values.dtype

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The operators' WEIGHT arguments."""
        source, bias = self.source, self.bias
        bias = None if bias is None else bias.detach().to(torch.float32).contiguous()
        if isinstance(source, CompressedNM):
            pattern = source.pattern
            return source.values, source.indices, pattern.n, pattern.m, self.shape, source.scale, bias
        # The order of a channels-last im2col; free where the weight is channels-last already.
        dense = source.detach() if source.ndim == 2 else source.detach().permute(0, 2, 3, 1)
        return dense.contiguous(), None, 0, 0, self.shape, None, bias


def check_weight(weight: Any, bias: Any, dims: int) -> Weight:
    """``dims``: 2 for a Linear weight, 4 for that of a Conv2d.

    Raises:
        ArgumentError: another type, number of dimensions, dtype, or a bias that does not fit.
    """
    if not isinstance(weight, Tensor | CompressedNM):
        raise ArgumentError(f"weight is a {type(weight).__name__}; it must be a torch.Tensor or a CompressedNM")
    shape = tuple(weight.shape)
    if len(shape) != dims:
        form = "[O, K]" if dims == 2 else "[O, C / groups, kh, kw]"
        raise ArgumentError(f"weight has shape {list(shape)}; it must be {form}")
    if isinstance(weight, Tensor):
        _check_tensor(weight, "weight", FLOAT_DTYPES)
    device = weight.values.device if isinstance(weight, CompressedNM) else weight.device
    if bias is not None:
        if not isinstance(bias, Tensor):
            raise ArgumentError(f"bias is a {type(bias).__name__}; it must be a torch.Tensor or None")
        _check_tensor(bias, "bias", FLOAT_DTYPES)
        if tuple(bias.shape) != shape[:1]:
            raise ArgumentError(f"bias has shape {list(bias.shape)}; it must be [{shape[0]}] as the weight's outputs")
        _check_device(bias, "bias", device)
    return Weight(weight, bias, (*shape, 1, 1) if dims == 2 else shape)  # type: ignore[arg-type]


def check_input(x: Any, weight: Weight, groups: int = 1) -> Tensor | PackedSpikes:
    """``x`` on the weight's device with channels that fit; uint8 becomes PackedSpikes.

    Raises:
        ArgumentError: another type, dtype, shape or device.
    """
    image = len(weight.source.shape) == 4
    channels = weight.shape[1] * groups
    form = f"[..., {channels}, H, W]" if image else f"[..., {channels}]"
    if isinstance(x, Tensor) and x.dtype == torch.uint8:
        if x.ndim < (4 if image else 1) or x.shape[-1] != packed_size(channels):
            raise ArgumentError(
                f"x is uint8 of shape {list(x.shape)}; packed spikes for {channels} channels must be "
                f"[{'B, H, W, ' if image else '..., '}{packed_size(channels)}]"
            )
        x = PackedSpikes(x, channels, channels_last=image)
    if not isinstance(x, Tensor | PackedSpikes):
        raise ArgumentError(f"x is a {type(x).__name__}; it must be a torch.Tensor or PackedSpikes")
    shape = tuple(x.shape)
    if isinstance(x, Tensor):
        _check_tensor(x, "x", FLOAT_DTYPES)
    elif x.channels_last != image:
        raise ArgumentError(
            f"x: packed spikes with channels_last={x.channels_last}; a {'convolution' if image else 'matrix product'} "
            f"takes channels_last={image}"
        )
    position = -3 if image else -1
    if len(shape) < (4 if image else 1) or shape[position] != channels:
        raise ArgumentError(f"x has shape {list(shape)}; the weight of shape {list(weight.source.shape)} takes {form}")
    _check_device(x if isinstance(x, Tensor) else x.bits, "x", weight.values.device)
    return x


def check_out_dtype(out_dtype: Any, x: Tensor | PackedSpikes) -> torch.dtype:
    """``out_dtype``, or that of dense activations, or float32."""
    if out_dtype is None:
        return torch.float32 if isinstance(x, PackedSpikes) else x.dtype
    if out_dtype not in FLOAT_DTYPES:
        raise ArgumentError(f"out_dtype is {out_dtype!r}; allowed: {', '.join(map(str, FLOAT_DTYPES))}")
    return out_dtype


def check_pair(value: Any, name: str, least: int) -> Pair:
    """An integer or a pair of them as a pair."""
    pair = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value, value)
    if len(pair) != 2 or not all(isinstance(item, int) and not isinstance(item, bool) for item in pair):
        raise ArgumentError(f"{name} is {value!r}; it must be an integer or two")
    if min(pair) < least:
        raise ArgumentError(f"{name} is {value!r}; it must be at least {least}")
    return pair


def check_convolution(
    x: Tensor | PackedSpikes, weight: Weight, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> None:
    """Raises ArgumentError where the groups do not divide the outputs or the window does not fit the image."""
    if weight.shape[0] % groups:
        raise ArgumentError(f"groups is {groups}; it must divide the {weight.shape[0]} output channels")
    for name, side, window, pad, step in zip(
        ("height", "width"), x.shape[-2:], weight.shape[2:], padding, dilation, strict=True
    ):
        if side + 2 * pad < step * (window - 1) + 1:
            raise ArgumentError(
                f"x has {name} {side}, with padding {side + 2 * pad}: smaller than the window of "
                f"{step * (window - 1) + 1}"
            )


def _check_tensor(tensor: Tensor, name: str, dtypes: Sequence[torch.dtype]) -> None:
    if tensor.layout is not torch.strided or tensor.device.type == "meta":
        raise ArgumentError(
            f"{name} has layout {tensor.layout} on device {tensor.device}; it must be a strided tensor with data"
        )
    if tensor.dtype not in dtypes:
        raise ArgumentError(f"{name} has dtype {tensor.dtype}; allowed: {', '.join(map(str, dtypes))}")


def _check_device(tensor: Tensor, name: str, device: torch.device) -> None:
    if tensor.device != device:
        raise ArgumentError(f"{name} is on {tensor.device}, the weight on {device}; they must be on one device")
