"""Windows on packed channels-last images: im2col and max-pooling of bits."""

from __future__ import annotations

import torch
from torch import Tensor

from snn_core.errors import ArgumentError
from snn_core.kernels.native import resolve_backend
from snn_core.kernels.spike_pack import ops, reference

Pair = int | tuple[int, int]


def _pair(value: Pair, name: str, least: int) -> list[int]:
    pair = [value, value] if isinstance(value, int) else list(value)
    if len(pair) != 2 or not all(isinstance(item, int) and item >= least for item in pair):
        raise ArgumentError(f"{name} is {value!r}; it must be one or two integers of at least {least}")
    return pair


def _check_bits(bits: Tensor, kernel: list[int], padding: list[int], dilation: list[int]) -> None:
    if not isinstance(bits, Tensor) or bits.dtype != torch.uint8 or bits.ndim != 4:
        raise ArgumentError("bits: expected a uint8 tensor [B, H, W, bytes] of packed spikes")
    if bits.shape[3] > 1 and bits.stride(3) != 1:
        raise ArgumentError(f"bits: the last dimension must have stride 1, got strides {bits.stride()}")
    for d, name in enumerate(("height", "width")):
        size = bits.shape[1 + d] + 2 * padding[d]
        if size < dilation[d] * (kernel[d] - 1) + 1:
            raise ArgumentError(f"kernel {tuple(kernel)} is larger than the padded {name} {size} of bits")


def _native(bits: Tensor, backend: str) -> bool:
    """Whether the native operator is taken. Triton has none of these; its turn falls to the reference."""
    return resolve_backend(backend, bits.device, torch.uint8, (torch.uint8,)) in ("cpp", "cuda")


def spike_im2col(
    bits: Tensor, kernel: Pair, stride: Pair = 1, padding: Pair = 0, dilation: Pair = 1, *, backend: str = "auto"
) -> Tensor:
    """The packed spikes under each window of a convolution.

    Args:
        bits: uint8 ``[B, H, W, ceil(C / 8)]``, the last dimension with stride 1.
        kernel, stride, padding, dilation: integers or pairs (height, width); outside the image there are no spikes.
        backend: ``auto``, ``cpp`` (CPU), ``cuda`` or ``reference``.

    Returns:
        uint8 ``[B * OH * OW, kh * kw * ceil(C / 8)]``: pixel by pixel of the window, in the order of a channels-last
        weight. Every pixel starts a new byte.

    Raises:
        ArgumentError: bits of another type, shape or stride, or windows that do not fit.
        BackendUnavailableError: the backend asked for cannot run here.
    """
    pairs = _pair(kernel, "kernel", 1), _pair(stride, "stride", 1), _pair(padding, "padding", 0)
    steps = _pair(dilation, "dilation", 1)
    _check_bits(bits, pairs[0], pairs[2], steps)
    if not _native(bits, backend):
        return reference.spike_im2col(bits, *pairs, steps)
    return ops.im2col_operator(bits, 8 * bits.shape[3], *pairs, steps)


def spike_max_pool(
    bits: Tensor, kernel: Pair, stride: Pair | None = None, padding: Pair = 0, *, backend: str = "auto"
) -> Tensor:
    """Max-pooling of packed spikes: a spike where the window has one.

    Args:
        bits: uint8 ``[B, H, W, ceil(C / 8)]``, the last dimension with stride 1.
        kernel, stride, padding: as in ``torch.nn.functional.max_pool2d``; stride None is the kernel.
        backend: as in :func:`spike_im2col`.

    Returns:
        uint8 ``[B, OH, OW, ceil(C / 8)]``.

    Raises:
        ArgumentError, BackendUnavailableError: as :func:`spike_im2col`.
    """
    pairs = _pair(kernel, "kernel", 1), _pair(kernel if stride is None else stride, "stride", 1)
    pad = _pair(padding, "padding", 0)
    if any(2 * pad[d] > pairs[0][d] for d in range(2)):
        raise ArgumentError(f"padding is {padding!r}; it must be at most half of kernel {kernel!r}")
    _check_bits(bits, pairs[0], pad, [1, 1])
    if not _native(bits, backend):
        return reference.spike_max_pool(bits, *pairs, pad)
    return ops.max_pool_operator(bits, *pairs, pad)
