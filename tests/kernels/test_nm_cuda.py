"""The CUDA kernels of nm_matmul and of windows of spikes, emulated (with a software model of mma.sp) and on a GPU."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass

from snn_core.kernels import lif, unpack_spikes
from snn_core.kernels.nm_compress import CompressedNM, NMPattern, nm_mask_by_magnitude, pack_bits
from snn_core.kernels.nm_matmul import schema  # noqa: F401  (defines the operators)
from snn_core.kernels.nm_matmul.schema import CUDA_PATHS
from snn_core.kernels.spike_pack import reference
from tests.kernels import cuda_implementations
from tests.kernels.cuda_implementations import Implementation

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
TYPES = [*FLOATS, torch.int8, torch.float8_e4m3fn]
PATTERNS = ["2:4", "1:4", "1:2", "2:8", "1:16", "4:8", "3:5", "2:6"]
#: Largest relative error of a result in each type, over the whole of it.
ERROR = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}


@pytest.fixture(scope="module", params=cuda_implementations.DEVICES)
def cuda(request: pytest.FixtureRequest) -> Implementation:
    return cuda_implementations.implementation(request.param)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def compressed(shape: tuple[int, ...], dtype: torch.dtype, pattern: str = "2:4", seed: int = 0) -> CompressedNM:
    """A random weight with its channels last, as the operators take it; integers have a few magnitudes."""
    weight = torch.randn(shape, generator=generator(seed))
    if dtype.itemsize == 1:
        weight = (weight * 20).round().clamp(-100, 100)
    kept = CompressedNM.from_dense(weight, pattern, nm_mask_by_magnitude(weight, pattern))
    return CompressedNM(kept.values.to(dtype), kept.indices, kept.shape, kept.pattern)


def dense_of(weight: CompressedNM) -> Tensor:
    """The dense weight in float64."""
    return CompressedNM(weight.values.double(), weight.indices, weight.shape, weight.pattern).to_dense()


def arguments_of(weight: CompressedNM, scale: Tensor | None = None, bias: Tensor | None = None) -> tuple[Any, ...]:
    shape = [*weight.shape, 1, 1][:4]
    return weight.values, weight.indices, weight.pattern.n, weight.pattern.m, shape, scale, bias


def spikes(shape: tuple[int, ...], rate: float = 0.3, seed: int = 1) -> Tensor:
    return (torch.rand(shape, generator=generator(seed)) < rate).float()


def image_bits(s: Tensor) -> Tensor:
    """[B, C, H, W] -> bits [B, H, W, ceil(C / 8)]."""
    return reference.pack_spikes(s.permute(0, 2, 3, 1), 3).contiguous()


def hopper(cuda: Implementation) -> bool:
    """Whether wgmma.sp is there."""
    return cuda.emulated or torch.cuda.get_device_capability() == (9, 0)


def assert_close(actual: Tensor, expected: Tensor, limit: float) -> None:
    assert actual.shape == expected.shape
    assert not actual.isnan().any()
    error = (actual.double() - expected).norm() / expected.norm()
    assert error <= limit


# ---- Compression.


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_decompress_and_compress(cuda: Implementation, pattern: str, dtype: torch.dtype) -> None:
    of = NMPattern.parse(pattern)
    weight = compressed((7, 11 * of.m), dtype, pattern)
    dense = dense_of(weight)
    scale = torch.rand(7, generator=generator()) + 0.5
    (same,) = cuda("nm_decompress", weight.values, weight.indices, of.n, of.m, 7, None, dtype)
    assert torch.equal(same.view(torch.uint8), dense.to(dtype).view(torch.uint8))
    (scaled,) = cuda("nm_decompress", weight.values, weight.indices, of.n, of.m, 7, scale, torch.float32)
    assert torch.equal(scaled, dense.float() * scale[:, None])
    values, indices, violations = cuda("nm_compress", same, None, of.n, of.m)
    kept = CompressedNM.from_dense(dense, pattern)  # fills up blocks with fewer non-zeros in its own way
    assert torch.equal(values.double(), kept.values)
    assert torch.equal(indices, kept.indices)
    assert violations == 0


def test_compress_like_from_dense(cuda: Implementation) -> None:
    """Negative zeros are kept where there is room, a mask is obeyed, and too full blocks are counted."""
    choices = torch.tensor([0.0, -0.0, 1.5, -2.0, float("nan"), float("inf")])
    dense = choices[torch.randint(6, (64, 24), generator=generator())]
    for (n, m), dtype in itertools.product(((1, 4), (2, 4), (4, 8), (2, 3), (12, 12)), FLOATS):
        x = dense.to(dtype)
        blocks = x.view(-1, m)
        mask = nm_mask_by_magnitude(torch.randn(64, 24, generator=generator()), f"{n}:{m}")
        mask &= torch.rand(64, 24, generator=generator(1)) < 0.8
        values, indices, violations = cuda("nm_compress", x, mask, n, m)
        expected = CompressedNM.from_dense(x, f"{n}:{m}", mask)
        assert torch.equal(values.view(torch.uint8), expected.values.view(torch.uint8))
        assert torch.equal(indices, expected.indices)
        assert violations == 0
        assert cuda("nm_compress", x, None, n, m)[2] == ((blocks != 0).sum(1) > n).sum()
        legal = torch.where(mask, x, torch.where(x == 0, x, 0.0))
        values, indices, violations = cuda("nm_compress", legal, None, n, m)
        expected = CompressedNM.from_dense(legal, f"{n}:{m}")
        assert torch.equal(values.view(torch.uint8), expected.values.view(torch.uint8))
        assert torch.equal(indices, expected.indices)
    assert cuda("nm_compress", x, torch.ones(64, 24, dtype=torch.bool), 2, 4)[2] == 64 * 24 / 4


# ---- The tensor cores' order.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8], ids=str)
def test_emulated_mma_reads_metadata_as_torch_writes_it(dtype: torch.dtype) -> None:
    """torch's conversion for CUTLASS gives lane after lane one word; the model must find the positions in them."""
    emulated = cuda_implementations.implementation("emulated")
    columns, rows = (32, 32) if dtype == torch.bfloat16 else (64, 16)
    weight = compressed((rows, columns), torch.float32)
    dense = dense_of(weight).to(dtype)
    dense[dense_of(weight) != 0] = 1  # no kept value may be lost in int8
    words = sparse_semi_structured_from_dense_cutlass(dense)[1].flatten().view(torch.int32)
    positions = weight.positions().view(rows, columns // 4, 2)
    expected = (positions[..., 0] | positions[..., 1] << 2).to(torch.uint8)
    for selector in range(rows // 16):
        found = emulated("mma_metadata", words, dtype.itemsize, selector)[0]
        assert torch.equal(found, expected[16 * selector : 16 * selector + 16])


# ---- Dense activations.

#: Rows, outputs, K: one row, fewer than a tile, its borders, several tiles, K past and between tiles, splits of K.
DENSE_SHAPES = [(1, 5, 64), (3, 67, 48), (4, 64, 128), (16, 40, 1024), (17, 130, 36), (65, 33, 192), (130, 129, 100)]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", DENSE_SHAPES, ids=str)
def test_dense(cuda: Implementation, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    rows, outputs, k = shape
    weight = compressed((outputs, k), dtype)
    x, bias = torch.randn(rows, k, generator=generator(1)).to(dtype), torch.randn(outputs, generator=generator(2))
    expected = x.double() @ dense_of(weight).T + bias
    for path in (0, 1, 2, 3):
        if (path >= 2 and dtype == torch.float32) or (path == 1 and rows > 20) or (path == 3 and not hopper(cuda)):
            continue
        (y,) = cuda("nm_dense", x, *arguments_of(weight, None, bias), path)
        assert y.dtype == dtype
        assert_close(y, expected, ERROR[dtype])
        assert torch.equal(y, cuda("nm_dense", x, *arguments_of(weight, None, bias), path)[0])


@pytest.mark.parametrize("x_dtype", FLOATS, ids=str)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_dense_of_other_types(cuda: Implementation, dtype: torch.dtype, x_dtype: torch.dtype) -> None:
    weight = compressed((20, 80), dtype)
    scale, bias = torch.rand(20, generator=generator()), torch.randn(20, generator=generator())
    for rows in (1, 2, 9):
        x = torch.randn(rows, 80, generator=generator(1)).to(x_dtype)
        expected = x.double() @ (dense_of(weight) * scale[:, None]).T + bias
        (y,) = cuda("nm_dense", x, *arguments_of(weight, scale, bias), 0)
        assert_close(y, expected, ERROR[x_dtype])


@pytest.mark.parametrize("pattern", PATTERNS[1:])
def test_dense_of_other_patterns(cuda: Implementation, pattern: str) -> None:
    m = NMPattern.parse(pattern).m
    weight = compressed((20, 9 * m), torch.bfloat16, pattern)
    x = torch.randn(6, 9 * m, generator=generator(1)).bfloat16()
    expected = x.double() @ dense_of(weight).T
    for path in (1, 2):
        assert_close(cuda("nm_dense", x, *arguments_of(weight), path)[0], expected, ERROR[torch.bfloat16])


# ---- Packed spikes.


def convolution(s: Tensor, weight: CompressedNM, scale: Tensor | None, bias: Tensor | None, conv: Any) -> Tensor:
    """In float64: [B, OH, OW, O]."""
    dense = dense_of(weight).view([*weight.shape, 1, 1][:4] if len(weight.shape) == 2 else weight.shape)
    dense = dense if scale is None else dense * scale.view(-1, 1, 1, 1)
    y = F.conv2d(s.double(), dense, None if bias is None else bias.double(), *conv)
    return y.permute(0, 2, 3, 1)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 5, 64), (16, 40, 1024), (40, 70, 36), (130, 129, 128)], ids=str)
def test_spikes(cuda: Implementation, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    rows, outputs, k = shape
    weight = compressed((outputs, k), dtype)
    s, scale = spikes((rows, k, 1, 1)), torch.rand(outputs, generator=generator())
    bias = torch.randn(outputs, generator=generator(2))
    expected = convolution(s, weight, scale, bias, ((1, 1), (0, 0), (1, 1), 1))
    arguments = (image_bits(s), k, *arguments_of(weight, scale, bias), [1, 1], [0, 0], [1, 1], 1)
    for out_dtype, path in ((torch.float32, 0), (torch.bfloat16, 2), (torch.float32, 3)):
        if path == 3 and not hopper(cuda):
            continue
        (y,) = cuda("nm_spikes", *arguments, out_dtype, path)
        assert_close(y, expected, ERROR[out_dtype])
    dense = (dense_of(weight).to(dtype).contiguous(), None, 0, 0, *arguments[6:])
    assert_close(cuda("nm_spikes", *arguments[:2], *dense, torch.float32, 0)[0], expected, ERROR[torch.float32])


CONVOLUTIONS = [  # channels, outputs, kernel, (stride, padding, dilation, groups)
    (16, 12, (3, 3), ((1, 1), (1, 1), (1, 1), 1)),
    (12, 7, (3, 2), ((2, 1), (0, 3), (1, 2), 1)),
    (4, 9, (1, 1), ((2, 2), (0, 0), (1, 1), 1)),
    (32, 24, (3, 3), ((1, 2), (2, 1), (2, 1), 4)),
    (128, 8, (2, 2), ((2, 2), (0, 0), (1, 1), 2)),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int8], ids=str)
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_convolution_of_spikes(cuda: Implementation, case: Any, dtype: torch.dtype) -> None:
    channels, outputs, kernel, conv = case
    weight = compressed((outputs, channels // conv[3], *kernel), dtype)
    s, bias = spikes((3, channels, 6, 7)), torch.randn(outputs, generator=generator())
    expected = convolution(s, weight, None, bias, conv)
    wider = torch.full((3, 6, 9, (channels + 7) // 8 + 1), 0xFF, dtype=torch.uint8)  # what lies around must not count
    bits = wider[:, :, 1:8, : (channels + 7) // 8]
    bits.copy_(image_bits(s))
    arguments = (channels, *arguments_of(weight, None, bias), *map(list, conv[:3]), conv[3], torch.float32, 0)
    assert_close(cuda("nm_spikes", bits, *arguments)[0], expected, ERROR[torch.float32])


def test_integers_are_exact(cuda: Implementation) -> None:
    weight = compressed((40, 256), torch.int8)
    s = spikes((30, 256, 1, 1))
    conv = ((1, 1), (0, 0), (1, 1), 1)
    arguments = (image_bits(s), 256, *arguments_of(weight), *map(list, conv[:3]), 1, torch.float32, 0)
    assert torch.equal(cuda("nm_spikes", *arguments)[0].double(), convolution(s, weight, None, None, conv))


def test_special_values(cuda: Implementation) -> None:
    """Huge, tiny, negative-zero and all-zero weights; what is not finite stays with its output."""
    weight = compressed((20, 64), torch.float32)
    values = weight.values.view(20, 32)
    values[0], values[1], values[2], values[3] = 1.5e38, 1e-30, -0.0, 0.0
    values[4, 3], values[5, 4] = float("inf"), float("nan")
    s = spikes((6, 64, 1, 1), rate=1.0)
    s[3:] = 0
    s[1, 1:] = 0
    arguments = (image_bits(s), 64, *arguments_of(weight), [1, 1], [0, 0], [1, 1], 1, torch.float32, 0)
    y = cuda("nm_spikes", *arguments)[0].view(6, 20)
    assert (y[3:, [0, 1, 2, 3]] == 0).all()
    assert (y[:, 2:4] == 0).all()
    assert y[0, 4] == float("inf")
    assert y[0, 5].isnan()
    expected = s.view(6, 64).double() @ dense_of(weight).T
    assert_close(y[:2, 6:], expected[:2, 6:], 1e-6)
    torch.testing.assert_close(y[0, 1].double(), expected[0, 1], rtol=1e-6, atol=0)


# ---- With LIF.


@pytest.mark.parametrize("outputs", [24, 13])
@pytest.mark.parametrize("v_reset", [0.0, None])
def test_spikes_and_lif(cuda: Implementation, v_reset: float | None, outputs: int) -> None:
    weight = compressed((outputs, 16, 3, 3), torch.bfloat16)
    s, bias = spikes((8, 16, 5, 4)), torch.randn(outputs, generator=generator())
    product = (image_bits(s), 16, *arguments_of(weight, None, bias), [1, 1], [1, 1], [1, 1], 1)
    x = cuda("nm_spikes", *product, torch.float32, 0)[0].view(4, 2, 5, 4, outputs)
    v0 = torch.randn(2, 5, 4, outputs, generator=generator(3))
    for start, (tau, decay) in itertools.product((None, v0, v0.movedim(1, 3).contiguous().movedim(3, 1)),
                                                 ((2.0, True), (3.0, False))):  # fmt: skip
        options = (4, start, tau, 1.0, v_reset, decay)
        expected, v_expected = lif(x, start, tau=tau, v_reset=v_reset, decay_input=decay, backend="reference")
        packed, v_last = cuda("nm_spikes_lif", *product, *options, True, torch.float32, 0)
        assert torch.equal(unpack_spikes(packed, outputs, backend="reference").view(expected.shape), expected)
        assert torch.equal(v_last, v_expected)
        assert torch.equal(packed[..., -1] >> (outputs - 1) % 8 + 1, torch.zeros_like(packed[..., -1]))
        for dtype in FLOATS:
            dense, v_last = cuda("nm_spikes_lif", *product, *options, False, dtype, 0)
            assert dense.dtype == dtype
            assert torch.equal(dense.float().view(expected.shape), expected)


# ---- Windows of spikes.


@pytest.mark.parametrize("channels", [5, 8, 32, 128, 136])
@pytest.mark.parametrize("gap", [0, 3, 16])
def test_windows(cuda: Implementation, channels: int, gap: int) -> None:
    s = spikes((2, channels, 6, 7))
    packed = image_bits(s)
    wider = torch.zeros(*packed.shape[:3], packed.shape[3] + gap, dtype=torch.uint8)
    bits = wider[..., : packed.shape[3]]
    bits.copy_(packed)
    for kernel, stride, padding, dilation in (((3, 3), (1, 1), (1, 1), (1, 1)), ((2, 3), (2, 1), (0, 2), (3, 1))):
        columns = F.unfold(s, kernel, dilation, padding, stride).view(2, channels, kernel[0] * kernel[1], -1)
        expected = reference.pack_spikes(columns.permute(0, 3, 2, 1), 3).flatten(2).flatten(0, 1)
        (rows,) = cuda("spike_im2col", bits, channels, *map(list, (kernel, stride, padding, dilation)))
        assert torch.equal(rows, expected)
    for kernel, stride, padding in (((2, 2), (2, 2), (0, 0)), ((3, 2), (1, 2), (1, 1))):
        expected = image_bits(F.max_pool2d(F.pad(s, (padding[1],) * 2 + (padding[0],) * 2), kernel, stride))
        assert torch.equal(cuda("spike_max_pool", bits, *map(list, (kernel, stride, padding)))[0], expected)


# ---- What must be refused, and nothing to do.


def test_nothing_to_do(cuda: Implementation) -> None:
    weight = compressed((5, 8), torch.bfloat16)
    assert cuda("nm_dense", torch.zeros(0, 8).bfloat16(), *arguments_of(weight), 0)[0].shape == (0, 5)
    bits = torch.zeros(0, 3, 4, 1, dtype=torch.uint8)
    conv = ([1, 1], [0, 0], [1, 1])
    assert cuda("nm_spikes", bits, 8, *arguments_of(weight), *conv, 1, torch.float32, 0)[0].shape == (0, 3, 4, 5)
    lif_options = (2, None, 2.0, 1.0, 0.0, True, True, torch.float32, 0)
    s, v_last = cuda("nm_spikes_lif", bits, 8, *arguments_of(weight), *conv, 1, *lif_options)
    assert (s.shape, v_last.shape) == ((0, 3, 4, 1), (0, 3, 4, 5))
    values, indices, violations = cuda("nm_compress", torch.zeros(0, 8), None, 2, 4)
    assert (values.shape, indices.shape, violations.item()) == ((0, 2), (0,), 0)
    assert cuda("nm_decompress", values, indices, 2, 4, 0, None, torch.float32)[0].shape == (0, 0)
    assert cuda("spike_max_pool", bits, [2, 2], [1, 1], [0, 0])[0].shape == (0, 2, 3, 1)
    assert cuda("spike_im2col", bits, 8, [2, 2], [1, 1], [0, 0], [1, 1])[0].shape == (0, 4)


def test_refusals(cuda: Implementation) -> None:
    weight = compressed((6, 16), torch.bfloat16)
    values, indices, n, m, shape, _, _ = arguments_of(weight)
    bits = torch.zeros(2, 4, 4, 2, dtype=torch.uint8)
    conv = ([1, 1], [0, 0], [1, 1], 1, torch.float32, 0)
    x = torch.zeros(3, 16).bfloat16()
    wrong_scale = torch.ones(5)
    one = CUDA_PATHS["few_rows"]
    for name, arguments, message in (
        ("nm_dense", (x.double(), values, indices, n, m, shape, None, None, 0), "x has a dtype"),
        ("nm_dense", (x[:, :12].contiguous(), values, indices, n, m, shape, None, None, 0), "columns"),
        ("nm_dense", (x, values, None, 0, 0, shape, None, None, 0), "indices are missing"),
        ("nm_dense", (x, values[1:], indices, n, m, shape, None, None, 0), "values must hold n"),
        ("nm_dense", (x, values, indices[1:], n, m, shape, None, None, 0), "indices must be uint8"),
        ("nm_dense", (x, values, indices, n, m, shape, wrong_scale, None, 0), "scale must be float32"),
        ("nm_dense", (x, values, indices, n, m, shape, None, wrong_scale, one), "bias must be float32"),
        ("nm_dense", (x.float(), values, indices, n, m, shape, None, None, 2), "need 16-bit x"),
        ("nm_dense", (x, values, indices, n, m, shape, None, None, 9), "path"),
        ("nm_spikes", (bits, 9, values, indices, n, m, shape, None, None, *conv), "channels must be"),
        ("nm_spikes", (bits, 17, values, indices, n, m, shape, None, None, *conv), "bits must hold"),
        ("nm_spikes", (bits, 16, values, indices, n, m, [6, 16, 5, 1], None, None, *conv), "values must hold"),
        ("nm_spikes", (bits, 16, values, indices, n, m, shape, None, None, [0, 1], *conv[1:]), "stride"),
        ("nm_compress", (x, None, 2, 5), "multiple of m"),
        ("nm_compress", (x, torch.ones(3, 4, dtype=torch.bool), 2, 4), "mask must be"),
        ("nm_decompress", (values, indices, 2, 4, 7, None, torch.float32), "whole rows"),
        ("nm_decompress", (values, indices, 2, 4, 6, None, torch.int8), "out_dtype"),
        ("spike_im2col", (bits, 16, [5, 1], [1, 1], [0, 0], [1, 1]), "larger than the padded"),
        ("spike_max_pool", (bits, [2, 2], [0, 1], [0, 0]), "positive"),
    ):
        with pytest.raises(RuntimeError, match=message):
            cuda(name, *arguments)


def test_positions_out_of_range_are_never_followed(cuda: Implementation) -> None:
    """Three bits can say 7 in a block of 6: the result is some number, no other memory is read."""
    indices = pack_bits(torch.full((2 * 8 * 4,), 7), 3)
    values = torch.ones(32, 2)
    y = cuda("nm_dense", torch.ones(2, 48), values, indices, 2, 6, [4, 48, 1, 1], None, None, 0)[0]
    assert torch.equal(y, torch.full((2, 4), 16.0))
