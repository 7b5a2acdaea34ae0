"""Packed spikes that know their logical shape and firing rate."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snn_core.errors import ArgumentError
from snn_core.kernels.native import binary_check, spike_counter
from snn_core.kernels.native.library import packed_size
from snn_core.kernels.spike_pack.ops import pack_spikes, unpack_spikes


@dataclass(frozen=True, eq=False)
class PackedSpikes:
    """Spikes (0 or 1), eight a byte along their last dimension in memory.

    Attributes:
        bits: uint8 ``[..., ceil(size / 8)]``, last dimension with stride 1: bit j of byte i is element ``8 i + j``;
            the bits beyond ``size`` are 0.
        size: number of spikes along the packed dimension (features or channels).
        channels_last: the packed dimension is the logical dimension -3: bits ``[..., H, W, ceil(C / 8)]`` stand for
            spikes ``[..., C, H, W]``.

    Raises:
        ArgumentError: bits of another dtype, shape or stride, or (on the CPU) with spikes beyond ``size``.
    """

    bits: Tensor
    size: int
    channels_last: bool = False

    def __post_init__(self) -> None:
        bits, size = self.bits, self.size
        if not isinstance(bits, Tensor) or bits.dtype != torch.uint8:
            raise ArgumentError(f"bits: expected a uint8 tensor, got {getattr(bits, 'dtype', type(bits).__name__)}")
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise ArgumentError(f"size: expected a non-negative integer, got {size!r}")
        if bits.ndim < (3 if self.channels_last else 1) or bits.shape[-1] != packed_size(size):
            raise ArgumentError(
                f"bits: shape {list(bits.shape)}; expected [{'..., H, W' if self.channels_last else '...'}, "
                f"{packed_size(size)}] for {size} spikes"
            )
        if bits.stride(-1) != 1:
            if bits.shape[-1] > 1 and bits.numel() > 0:
                raise ArgumentError(f"bits: the last dimension must have stride 1, got strides {bits.stride()}")
            # Any stride is as good as any other here, but native code looks at it.
            object.__setattr__(self, "bits", bits.as_strided(bits.shape, (*bits.stride()[:-1], 1)))
        # Native code reads weight rows by set bits. Not on a GPU: it would wait for the device.
        if size % 8 and bits.device.type == "cpu" and not torch.compiler.is_compiling():
            beyond = bits[..., -1] >> (size % 8)
            if beyond.any():
                raise ArgumentError(f"bits: spikes beyond size {size} in the last byte")

    @classmethod
    def from_dense(cls, s: Tensor, dim: int = -1, *, check: bool = True, backend: str = "auto") -> PackedSpikes:
        """Pack a tensor of spikes.

        Args:
            s: ``[..., K]``, any dtype that :func:`pack_spikes` takes, or images ``[..., C, H, W]`` with ``dim=-3``,
                in any memory format.
            dim: the packed dimension: the last, or -3 for images, whose bits are then channels-last.
            check: refuse values other than 0 and 1. Without it every value that is not 0 counts as a spike.
            backend: of :func:`pack_spikes`.

        Raises:
            ArgumentError: another dimension, or values that are no spikes: sums of spikes (residual networks) cannot
                be packed; pass such tensors dense.
        """
        if isinstance(dim, int) and isinstance(s, Tensor) and 0 <= dim < s.ndim:
            dim -= s.ndim
        if dim not in (-1, -3):
            raise ArgumentError(f"dim is {dim!r}; it must be the last dimension, or -3 (channels of images)")
        packed = pack_spikes(s, dim, backend=backend)
        if check and not is_binary(s):
            other = s[(s != 0) & (s != 1)].flatten()[0].item()
            raise ArgumentError(f"s: holds values other than 0 and 1 ({other}, for one); only spikes can be packed")
        return cls(packed.movedim(dim, -1).contiguous(), s.shape[dim], channels_last=dim == -3)

    @classmethod
    def try_from_dense(cls, s: Tensor, dim: int = -1, *, backend: str = "auto") -> PackedSpikes | None:
        """:meth:`from_dense`, or None where ``s`` holds other values than 0 and 1, which is found out first."""
        return cls.from_dense(s, dim, check=False, backend=backend) if is_binary(s) else None

    def to_dense(self, dtype: torch.dtype = torch.float32, *, backend: str = "auto") -> Tensor:
        """0 or 1 in ``dtype``, of :attr:`shape`; images lie channels-last in memory."""
        s = unpack_spikes(self.bits, self.size, -1, dtype=dtype, backend=backend)
        return s.movedim(-1, -3) if self.channels_last else s

    @property
    def shape(self) -> torch.Size:
        """Logical shape: ``[..., size]``, or ``[..., size, H, W]``."""
        leading = list(self.bits.shape[:-1])
        leading.insert(len(leading) - (2 if self.channels_last else 0), self.size)
        return torch.Size(leading)

    @property
    def ndim(self) -> int:
        """Number of logical dimensions."""
        return self.bits.ndim

    @property
    def device(self) -> torch.device:
        """Device of the bits."""
        return self.bits.device

    @property
    def nbytes(self) -> int:
        """Bytes of the bits."""
        return self.bits.nbytes

    @cached_property
    def count(self) -> int:
        """Number of spikes; counted once and kept (on a GPU this waits for the device)."""
        return _popcount(self.bits)

    @property
    def firing_rate(self) -> float:
        """Spikes per element; 0 for an empty tensor."""
        return self.count / max(1, self.shape.numel())

    def with_leading(self, *leading: int) -> PackedSpikes:
        """The dimensions before the features, or before ``[C, H, W]``, reshaped: ``[T * B, K] -> [T, B, K]``."""
        kept = self.bits.shape[-3:] if self.channels_last else self.bits.shape[-1:]
        return PackedSpikes(self.bits.reshape(*leading, *kept), self.size, self.channels_last)

    def to(self, device: torch.device | str) -> PackedSpikes:
        """The spikes on another device."""
        return PackedSpikes(self.bits.to(device), self.size, self.channels_last)

    def __repr__(self) -> str:
        layout = ", channels_last" if self.channels_last else ""
        return f"PackedSpikes(shape={list(self.shape)}{layout}, device='{self.device}', nbytes={self.nbytes})"


_BITS_OF_ONE: dict[torch.dtype, tuple[Any, int]] = {
    torch.float32: (np.uint32, 0x3F800000),
    torch.float16: (np.uint16, 0x3C00),
    torch.bfloat16: (np.uint16, 0x3F80),
    torch.float64: (np.uint64, 0x3FF0000000000000),
}
_PIECE = 1 << 18  # elements checked at once: their temporaries stay in the cache, and sums of spikes are found early


_STORAGES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def _in_memory_order(s: Tensor) -> Tensor:
    """All elements one after the other, in any order; copied where memory has gaps."""
    if s.is_contiguous() or (s.ndim == 4 and s.is_contiguous(memory_format=torch.channels_last)):
        return s.detach().as_strided((s.numel(),), (1,))
    order = sorted(range(s.ndim), key=lambda d: s.stride(d), reverse=True)
    return s.detach().permute(order).reshape(-1)


def is_binary(s: Tensor) -> bool:
    """Whether all elements are 0 or 1 (on a GPU this waits for the device)."""
    if s.dtype == torch.bool or s.numel() == 0:
        return True
    if s.device.type != "cpu" or s.dtype not in _BITS_OF_ONE or torch.compiler.is_compiling():
        return bool((s == (s != 0)).all())
    check = binary_check() if type(s) is Tensor else None
    if check is not None and s.dtype in _STORAGES:
        flat = _in_memory_order(s)  # held while it is read: it may be a copy
        return bool(check(flat.data_ptr(), flat.numel(), _STORAGES[s.dtype]))
    # 0.64 ms for 8 MB of float32 on one core (Zen 4), 4.9 ms with torch's comparisons, which are not vectorized for
    # mixed types. As integers, since numpy has no bfloat16.
    word, one = _BITS_OF_ONE[s.dtype]
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[s.element_size()]
    flat = _in_memory_order(s).view(integers).numpy().view(word)
    magnitude = word((1 << (8 * s.element_size() - 1)) - 1)
    pieces = (flat[start : start + _PIECE] for start in range(0, flat.size, _PIECE))
    return all(bool((((piece & magnitude) == 0) | (piece == word(one))).all()) for piece in pieces)


def _popcount(bits: Tensor) -> int:
    if bits.numel() == 0:
        return 0
    count = spike_counter() if type(bits) is Tensor and bits.is_cpu and bits.is_contiguous() else None
    if count is not None:
        return count(bits.data_ptr(), bits.numel())
    if bits.device.type == "cpu" and hasattr(np, "bitwise_count"):  # numpy >= 2
        flat = bits.contiguous().reshape(-1)
        whole = flat.numel() // 8 * 8
        words, rest = flat[:whole].numpy().view(np.uint64), flat[whole:].numpy()
        return int(np.bitwise_count(words).sum(dtype=np.int64)) + int(np.bitwise_count(rest).sum(dtype=np.int64))
    pairs = bits - ((bits >> 1) & 0x55)
    nibbles = (pairs & 0x33) + ((pairs >> 2) & 0x33)
    return int(((nibbles + (nibbles >> 4)) & 0x0F).sum(dtype=torch.int64))
