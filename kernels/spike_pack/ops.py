"""The ``spike_pack`` operator: schemas, fake kernels, dispatch and the public functions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from snn_core.errors import ArgumentError
from snn_core.kernels.native import resolve_backend
from snn_core.kernels.native.library import LIBRARY, TAGS, dense_strides, packed_size
from snn_core.kernels.spike_pack import reference

NATIVE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SPIKE_DTYPES = (*NATIVE_DTYPES, torch.float64, torch.bool, torch.uint8)


def _resized_like(like: Tensor, size: Any, dim: int, dtype: torch.dtype) -> Tensor:
    shape = [size if d == dim else extent for d, extent in enumerate(like.shape)]
    return like.new_empty_strided(shape, dense_strides(shape, like.stride()), dtype=dtype)


def _pack_fake(s: Tensor, dim: int) -> Tensor:
    return _resized_like(s, packed_size(s.shape[dim]), dim, torch.uint8)


def _unpack_fake(packed: Tensor, size: Any, dim: int, dtype: torch.dtype) -> Tensor:
    return _resized_like(packed, size, dim, dtype)


for _suffix in ("", "_triton"):
    LIBRARY.define(f"spike_pack{_suffix}(Tensor s, int dim) -> Tensor", tags=TAGS)
    LIBRARY.define(f"spike_unpack{_suffix}(Tensor packed, int size, int dim, ScalarType dtype) -> Tensor", tags=TAGS)
    torch.library.register_fake(f"snn_core::spike_pack{_suffix}", _pack_fake, lib=LIBRARY)
    torch.library.register_fake(f"snn_core::spike_unpack{_suffix}", _unpack_fake, lib=LIBRARY)

LIBRARY.define(
    "spike_im2col(Tensor bits, int channels, int[] kernel, int[] stride, int[] padding, int[] dilation) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(
    "spike_max_pool(Tensor bits, int[] kernel, int[] stride, int[] padding) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _extents(bits: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any) -> list[Any]:
    return [(bits.shape[1 + d] + 2 * padding[d] - dilation[d] * (kernel[d] - 1) - 1) // stride[d] + 1 for d in range(2)]


@torch.library.register_fake("snn_core::spike_im2col", lib=LIBRARY)
def _im2col_fake(bits: Tensor, channels: int, kernel: Any, stride: Any, padding: Any, dilation: Any) -> Tensor:
    height, width = _extents(bits, kernel, stride, padding, dilation)
    return bits.new_empty(bits.shape[0] * height * width, kernel[0] * kernel[1] * bits.shape[3])


@torch.library.register_fake("snn_core::spike_max_pool", lib=LIBRARY)
def _max_pool_fake(bits: Tensor, kernel: Any, stride: Any, padding: Any) -> Tensor:
    height, width = _extents(bits, kernel, stride, padding, (1, 1))
    return bits.new_empty(bits.shape[0], height, width, bits.shape[3])


#: Called through windows.py.
im2col_operator = torch.ops.snn_core.spike_im2col.default
max_pool_operator = torch.ops.snn_core.spike_max_pool.default


def _check(tensor: Tensor, name: str) -> None:
    if not isinstance(tensor, Tensor):
        raise ArgumentError(f"{name} is a {type(tensor).__name__}; it must be a torch.Tensor")
    if tensor.layout is not torch.strided or tensor.device.type == "meta":
        raise ArgumentError(
            f"{name} has layout {tensor.layout} on device {tensor.device}; it must be a strided tensor with data"
        )


def _dimension(tensor: Tensor, dim: int, name: str) -> int:
    if not isinstance(dim, int):
        raise ArgumentError(f"dim is {dim!r}; it must be an integer")
    if tensor.ndim == 0 or not -tensor.ndim <= dim < tensor.ndim:
        raise ArgumentError(f"dim is {dim}; {name} has shape {tuple(tensor.shape)}")
    return dim % tensor.ndim


def pack_spikes(s: Tensor, dim: int = -1, *, backend: str = "auto") -> Tensor:
    """Pack spikes, eight a byte.

    Args:
        s: spikes ``[..., K, ...]``, any strides; every element that is not 0 counts as a spike (NaN too). Floating
            point, bool or uint8.
        dim: the dimension of size K that is packed; fastest where its stride is 1.
        backend: ``auto``, ``cpp`` (CPU), ``cuda``, ``triton`` or ``reference``.

    Returns:
        uint8 ``[..., ceil(K / 8), ...]``: bit j (value ``1 << j``) of byte i is element ``8 i + j``; the bits beyond
        K are 0. From compiled code its dimensions lie in memory in the order of those of ``s``.

    Raises:
        ArgumentError: a dimension or dtype that is not allowed.
        BackendUnavailableError: the backend asked for cannot run here.
    """
    _check(s, "s")
    dim = _dimension(s, dim, "s")
    if s.dtype not in SPIKE_DTYPES:
        raise ArgumentError(f"s has dtype {s.dtype}; allowed: {', '.join(map(str, SPIKE_DTYPES))}")
    chosen = resolve_backend(backend, s.device, s.dtype, NATIVE_DTYPES)
    if chosen == "reference":
        return reference.pack_spikes(s, dim)
    namespace = torch.ops.snn_core
    return namespace.spike_pack_triton(s, dim) if chosen == "triton" else namespace.spike_pack(s, dim)


def unpack_spikes(
    packed: Tensor, size: int, dim: int = -1, *, dtype: torch.dtype = torch.float32, backend: str = "auto"
) -> Tensor:
    """The inverse of :func:`pack_spikes`.

    Args:
        packed: uint8 ``[..., ceil(size / 8), ...]``, any strides.
        size: number of spikes along ``dim``.
        dim: the packed dimension.
        dtype: of the result.
        backend: as in :func:`pack_spikes`.

    Returns:
        0 or 1 in ``dtype``, ``[..., size, ...]``.

    Raises:
        ArgumentError: ``packed`` is not uint8 or has not ``ceil(size / 8)`` bytes along ``dim``.
        BackendUnavailableError: the backend asked for cannot run here.
    """
    _check(packed, "packed")
    dim = _dimension(packed, dim, "packed")
    if not isinstance(size, int):
        raise ArgumentError(f"size is {size!r}; it must be an integer")
    if packed.dtype != torch.uint8:
        raise ArgumentError(f"packed has dtype {packed.dtype}; it must be torch.uint8")
    if size < 0 or packed_size(size) != packed.shape[dim]:
        raise ArgumentError(
            f"size is {size}; packed of shape {tuple(packed.shape)} holds {packed.shape[dim]} bytes along dim {dim}, "
            f"not the {packed_size(max(size, 0))} that it needs"
        )
    chosen = resolve_backend(backend, packed.device, dtype, NATIVE_DTYPES)
    if chosen == "reference":
        return reference.unpack_spikes(packed, size, dim, dtype)
    namespace = torch.ops.snn_core
    operator = namespace.spike_unpack_triton if chosen == "triton" else namespace.spike_unpack
    return operator(packed, size, dim, dtype)
