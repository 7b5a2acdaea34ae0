"""Normalisations of event frames that the field uses, each sample by itself."""

from __future__ import annotations

import torch
from torch import Tensor

from snn_core.errors import ArgumentError

KINDS = ("binary", "log1p", "max", "sum", "standard")
OVER = {"sample": (-4, -3, -2, -1), "frame": (-3, -2, -1), "channel": (-2, -1)}


def normalise_frames(frames: Tensor, kind: str, *, over: str = "sample") -> Tensor:
    """Event counts as network inputs.

    Args:
        frames: counts ``[..., T, 2, H, W]``, any dtype that is not complex.
        kind: "binary": 1 where there is an event; "log1p": ``log(1 + count)``; "max": divided by the largest count;
            "sum": divided by the number of events; "standard": minus the mean, divided by the standard deviation (that
            of the population). Where the divisor is 0 the result is 0.
        over: what "max", "sum" and "standard" are taken over: a "sample" [T, 2, H, W], a "frame" [2, H, W] of it, or a
            "channel" [H, W], the polarities apart, as SpikingJelly's ``normalize_frame`` did ("max", "norm", "sum").

    Returns:
        float32 of the shape of ``frames``.

    Raises:
        ArgumentError: fewer than four dimensions, an unknown ``kind`` or ``over``.
    """
    if not isinstance(frames, Tensor) or frames.ndim < 4 or frames.is_complex():
        found = f"{frames.dtype} {list(frames.shape)}" if isinstance(frames, Tensor) else type(frames).__name__
        raise ArgumentError(f"frames must be a tensor [..., T, 2, H, W], got {found}")
    if kind not in KINDS:
        raise ArgumentError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if over not in OVER:
        raise ArgumentError(f"over must be one of {', '.join(OVER)}, got {over!r}")
    if kind == "binary":
        return (frames != 0).float()
    values = frames.float()
    if kind == "log1p":
        return values.log1p()
    dims = OVER[over]
    if kind == "max":
        return _divided(values, values.amax(dims, keepdim=True))
    if kind == "sum":
        return _divided(values, values.sum(dims, keepdim=True))
    centred = values - values.mean(dims, keepdim=True)
    return _divided(centred, centred.square().mean(dims, keepdim=True).sqrt())


def _divided(values: Tensor, divisor: Tensor) -> Tensor:
    return torch.where(divisor > 0, values / divisor, torch.zeros_like(values))
