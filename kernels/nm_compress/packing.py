"""Small unsigned integers packed bit by bit: positions inside N:M blocks."""

from __future__ import annotations

import torch

from snn_core.errors import ArgumentError


def packed_size(count: int, bits: int) -> int:
    """Bytes that ``count`` values of ``bits`` bits take: the last byte is filled with zero bits."""
    return (count * bits + 7) // 8


def pack_bits(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack unsigned integers into a little-endian bit stream.

    Args:
        values: integer tensor ``[count]``, every value in ``[0, 2**bits)``.
        bits: 1 to 8. Value i occupies bits ``i * bits`` to ``(i + 1) * bits - 1`` of the stream, low bit first.

    Returns:
        uint8 ``[ceil(count * bits / 8)]`` on the same device.

    Raises:
        ArgumentError: ``bits`` is out of range, or a value does not fit.
    """
    _check_bits(bits)
    if values.numel() and (int(values.min()) < 0 or int(values.max()) >= 1 << bits):
        raise ArgumentError(f"values to pack must lie in [0, {(1 << bits) - 1}], got up to {int(values.max())}")
    shifts = torch.arange(bits, device=values.device)
    stream = ((values.reshape(-1, 1) >> shifts) & 1).to(torch.uint8).reshape(-1)
    padded = stream.new_zeros(packed_size(values.numel(), bits) * 8)
    padded[: stream.numel()] = stream
    weights = 1 << torch.arange(8, device=values.device)
    return (padded.view(-1, 8) * weights).sum(dim=1).to(torch.uint8)


def unpack_bits(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Inverse of :func:`pack_bits`: uint8 ``[ceil(count * bits / 8)]`` -> int64 ``[count]``.

    Raises:
        ArgumentError: ``packed`` has another dtype or size, or its padding bits are not zero.
    """
    _check_bits(bits)
    size = packed_size(count, bits)
    if packed.dtype != torch.uint8 or packed.shape != (size,):
        raise ArgumentError(
            f"packed indices: expected uint8 [{size}] for {count} values of {bits} bits, "
            f"got {packed.dtype} {list(packed.shape)}"
        )
    stream = ((packed.view(-1, 1) >> torch.arange(8, device=packed.device).to(torch.uint8)) & 1).reshape(-1)
    # Not in a compiled graph, which cannot branch on data; nor where there is nothing to look at.
    if count * bits % 8 and not torch.compiler.is_compiling() and stream[count * bits :].any():
        raise ArgumentError("packed indices: the padding bits of the last byte are not zero")
    weights = 1 << torch.arange(bits, device=packed.device)
    return (stream[: count * bits].view(-1, bits) * weights).sum(dim=1)


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise ArgumentError(f"bits must be from 1 to 8, got {bits}")
