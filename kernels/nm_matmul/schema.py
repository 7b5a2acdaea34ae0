"""The ``nm_matmul`` operators of torch.library: schemas, fake kernels and the gradient of compressed weights.

====================  ===================================================================================
``nm_spikes``         bit-packed spikes x weight, as a convolution over channels-last images (Linear: 1 x 1)
``nm_product``        ``nm_spikes`` as a layer calls it (CPU): few arguments, and the shapes of the layer
``nm_spikes_lif``     the same, then LIF over the time steps in the batch; pre-activations are never stored
``nm_dense``          dense activations x compressed weight, one matrix product
``nm_decompress``     compressed -> dense; differentiable in the values
``nm_compress``       dense -> compressed, with a count of the blocks that hold too many
====================  ===================================================================================

A weight is ``values, indices, n, m, weight_shape, scale, bias``: the values and indices of a ``CompressedNM``, or
without indices (n = m = 0) the dense weight in the same order ``[O, kh, kw, C / groups]``. ``weight_shape`` is
``[O, C / groups, kh, kw]``. ``y = scale[o] * sum + bias[o]``; sums are float32.

``path`` asks for one way of computing where a backend has several; 0 lets it choose.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from snn_core.kernels.native.library import LIBRARY, packed_size

WEIGHT = "Tensor values, Tensor? indices, int n, int m, int[] weight_shape, Tensor? scale, Tensor? bias"
CONV = "int[] stride, int[] padding, int[] dilation, int groups"
LIF = "int steps, Tensor? v0, float tau, float v_threshold, float? v_reset, bool decay_input, bool packed"
#: Bits are read along their last dimension: no tag that lets a compiler lay them out otherwise.
TAGS = (torch.Tag.pt2_compliant_tag,)

#: Ways of computing ``nm_spikes`` on the CPU.
CPU_PATHS = {"event": 1, "lookup": 2, "few_rows": 3, "kept": 4}
#: Ways of computing on CUDA: ``few_rows`` reads weights once for a few rows; the others use sparse tensor cores.
CUDA_PATHS = {"few_rows": 1, "mma_sp": 2, "wgmma_sp": 3}


def output_size(
    size: Sequence[Any], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> list[Any]:
    """Height and width of a convolution's output."""
    return [
        (extent + 2 * pad - step * (window - 1) - 1) // by + 1
        for extent, window, by, pad, step in zip(size, kernel, stride, padding, dilation, strict=True)
    ]


def _spikes_size(bits: Tensor, arguments: Sequence[Any]) -> list[Any]:
    weight_shape, stride, padding, dilation = arguments[5], *arguments[8:11]
    return [bits.shape[0], *output_size(bits.shape[1:3], weight_shape[2:], stride, padding, dilation), weight_shape[0]]


def _spikes_fake(bits: Tensor, *arguments: Any) -> Tensor:
    return bits.new_empty(_spikes_size(bits, arguments), dtype=arguments[12])


def _product_fake(
    bits: Tensor, values: Tensor, indices: Any, scale: Any, bias: Any, form: Sequence[int], image: bool,
    out_dtype: torch.dtype, path: int,
) -> Tensor:  # fmt: skip
    lead = list(bits.shape[: -3 if image else -1])
    if not image:
        return bits.new_empty([*lead, form[2]], dtype=out_dtype)
    windows = output_size(bits.shape[-3:-1], form[4:6], form[6:8], form[8:10], form[10:12])
    return bits.new_empty([*lead, *windows, form[2]], dtype=out_dtype).movedim(-1, -3)


def _spikes_lif_fake(bits: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    size = _spikes_size(bits, arguments)
    steps, packed, out_dtype = arguments[12], arguments[18], arguments[19]
    v_last = bits.new_empty([size[0] // steps, *size[1:]], dtype=torch.float32)
    if packed:
        return bits.new_empty([*size[:-1], packed_size(size[-1])], dtype=torch.uint8), v_last
    return bits.new_empty(size, dtype=out_dtype), v_last


def _dense_fake(
    x: Tensor, values: Tensor, indices: Any, n: int, m: int, weight_shape: Sequence[int], *rest: Any
) -> Tensor:
    return x.new_empty([x.shape[0], weight_shape[0]])


def _decompress_fake(
    values: Tensor, indices: Tensor, n: int, m: int, rows: int, scale: Tensor | None, out_dtype: torch.dtype
) -> Tensor:
    return values.new_empty([rows, values.numel() // (rows * n) * m if rows else 0], dtype=out_dtype)


def _compress_fake(dense: Tensor, mask: Tensor | None, n: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    blocks = dense.numel() // m
    indices = dense.new_empty([packed_size(blocks * n * (m - 1).bit_length())], dtype=torch.uint8)
    return dense.new_empty([blocks, n]), indices, dense.new_empty([], dtype=torch.int64)


_OPERATORS = (
    (f"nm_spikes(Tensor bits, int channels, {WEIGHT}, {CONV}, ScalarType out_dtype, int path) -> Tensor", _spikes_fake),
    (
        "nm_product(Tensor bits, Tensor values, Tensor? indices, Tensor? scale, Tensor? bias, int[] form, bool image,"
        " ScalarType out_dtype, int path) -> Tensor",
        _product_fake,
    ),
    (
        f"nm_spikes_lif(Tensor bits, int channels, {WEIGHT}, {CONV}, {LIF}, ScalarType out_dtype, int path)"
        " -> (Tensor, Tensor)",
        _spikes_lif_fake,
    ),
    (f"nm_dense(Tensor x, {WEIGHT}, int path) -> Tensor", _dense_fake),
    (
        "nm_decompress(Tensor values, Tensor indices, int n, int m, int rows, Tensor? scale, ScalarType out_dtype)"
        " -> Tensor",
        _decompress_fake,
    ),
    ("nm_compress(Tensor dense, Tensor? mask, int n, int m) -> (Tensor, Tensor, Tensor)", _compress_fake),
)
#: Operators that Triton has too, with ``_triton`` after their names.
_IN_TRITON = ("nm_dense", "nm_decompress", "nm_compress")

for _schema, _fake in _OPERATORS:
    _name = _schema.split("(", 1)[0]
    for _suffix in ("", "_triton") if _name in _IN_TRITON else ("",):
        LIBRARY.define(_schema.replace(_name, _name + _suffix, 1), tags=TAGS)
        torch.library.register_fake(f"snn_core::{_name}{_suffix}", _fake, lib=LIBRARY)

# Nothing in it is differentiable, and whoever calls it has made sure that nobody asks: no walk over its arguments.
LIBRARY.impl("nm_product", torch.library.fallthrough_kernel, "AutogradCPU")
