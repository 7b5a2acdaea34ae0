"""Products with N:M weights in plain torch: dense weight, dense activations, float32 (float64 where x is)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from snn_core.kernels.lif import reference as lif_reference
from snn_core.kernels.nm_compress.compressed import CompressedNM
from snn_core.kernels.spike_pack.packed import PackedSpikes


def dense_weight(weight: Tensor | CompressedNM, dtype: torch.dtype) -> Tensor:
    """The weight with its scale, in ``dtype``."""
    return weight.to_dense(dtype) if isinstance(weight, CompressedNM) else weight.to(dtype)


def _working(x: Tensor | PackedSpikes) -> tuple[Tensor, torch.dtype]:
    if isinstance(x, PackedSpikes):
        return x.to_dense(torch.float32), torch.float32
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.to(dtype), dtype


def nm_matmul(
    x: Tensor | PackedSpikes, weight: Tensor | CompressedNM, bias: Tensor | None, out_dtype: torch.dtype
) -> Tensor:
    """``x [..., K]``, ``weight [O, K]`` -> ``[..., O]``."""
    dense, dtype = _working(x)
    return F.linear(dense, dense_weight(weight, dtype), None if bias is None else bias.to(dtype)).to(out_dtype)


def nm_conv2d(
    x: Tensor | PackedSpikes,
    weight: Tensor | CompressedNM,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    out_dtype: torch.dtype,
) -> Tensor:
    """``x [..., C, H, W]``, ``weight [O, C / groups, kh, kw]`` -> ``[..., O, OH, OW]``."""
    dense, dtype = _working(x)
    kernel, offset = dense_weight(weight, dtype), None if bias is None else bias.to(dtype)
    y = F.conv2d(dense.flatten(0, -4), kernel, offset, stride, padding, dilation, groups)
    return y.unflatten(0, dense.shape[:-3]).to(out_dtype)


def lif_of(
    current: Tensor, v0: Tensor | None, tau: float, v_threshold: float, v_reset: float | None, decay_input: bool
) -> tuple[Tensor, Tensor]:
    """Spikes and last potential of the pre-activations ``[T, ...]``."""
    s_seq, v_last, *_ = lif_reference.lif(
        current.float(), v0, tau=tau, v_threshold=v_threshold, v_reset=v_reset, decay_input=decay_input
    )
    return s_seq, v_last
