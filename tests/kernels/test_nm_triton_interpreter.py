"""Triton kernels of N:M weights in Triton's interpreter, on a machine without a GPU.

The interpreter's bfloat16 products are wrong, so that those are compared on a GPU alone.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.kernels.triton_cases import Cases


def register() -> None:
    """Nothing calls the operators through a function that would."""
    from snn_core.kernels.nm_matmul import triton as module

    module.register()


CASES = Cases(__name__, register)
case = CASES.add


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pruned(rows: int, columns: int, pattern: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Obeys the pattern; one block is all zero and one holds a negative zero beside a weight."""
    from snn_core.kernels.nm_compress import nm_mask_by_magnitude

    weight = normal(rows, columns).to(dtype)
    weight = weight * nm_mask_by_magnitude(weight, pattern)
    m = int(pattern.split(":")[1])
    weight[0, :m] = 0.0
    weight[-1, :m] = 0.0
    weight[-1, 1], weight[-1, 0] = -0.0, 1.0
    return weight


PATTERNS = ["2:4", "1:4", "3:4", "4:8", "2:6", "1:2", "5:16", "1:10", "3:32"]


def dense_product(pattern: str, rows: int, outputs: int, blocks: int, x_dtype: torch.dtype, dtype: torch.dtype) -> None:
    from snn_core.kernels.nm_compress import CompressedNM

    size = blocks * int(pattern.split(":")[1])
    weight = CompressedNM.from_dense(pruned(outputs, size, pattern), pattern)
    weight = weight.quantize(dtype) if dtype in (torch.int8, torch.float8_e4m3fn) else weight.to(dtype=dtype)
    x, bias = normal(rows, size, seed=1).to(x_dtype), normal(outputs, seed=2)
    arguments = (
        x, weight.values, weight.indices, weight.pattern.n, weight.pattern.m, [outputs, size, 1, 1], weight.scale,
        bias, 0,
    )  # fmt: skip
    y = torch.ops.snn_core.nm_dense_triton(*arguments)
    exact = F.linear(x.double(), weight.to_dense().double(), bias.double())
    assert y.dtype == x_dtype
    assert y.shape == exact.shape
    tolerance = {torch.float32: 1e-6, torch.float16: 1e-3}[x_dtype]
    torch.testing.assert_close(y.double(), exact, rtol=tolerance, atol=tolerance * math.sqrt(size))
    assert torch.equal(torch.ops.snn_core.nm_dense_triton(*arguments), y)


for _pattern in PATTERNS:
    case(dense_product, _pattern, 3, 37, 7, torch.float32, torch.float32)
for _dtype in (torch.float16, torch.int8, torch.float8_e4m3fn):
    case(dense_product, "2:4", 17, 33, 70, torch.float16, _dtype)
for _dtype in (torch.float16, torch.int8, torch.float8_e4m3fn):  # rows of whole words of positions
    case(dense_product, "2:4", 3, 33, 72, torch.float16, _dtype)
    case(dense_product, "1:4", 3, 5, 48, torch.float16, _dtype)
case(dense_product, "2:4", 5, 20, 300, torch.float32, torch.float16)
case(dense_product, "1:4", 2, 5, 300, torch.float16, torch.float32)


@case
def reduction_is_split_by_shape() -> None:
    """The long reductions above are cut, and one for many programs is not."""
    from snn_core.kernels.nm_matmul import triton as module

    seen: list[tuple[str, tuple[int, ...]]] = []
    kept = module.launch

    def launch(kernel: object, grid: object, *arguments: object) -> None:
        seen.append((kernel.__name__, tuple(grid)))  # type: ignore[attr-defined,call-overload]

    module.launch = launch  # type: ignore[assignment]
    try:
        for outputs in (32, 2**14):
            values, indices = torch.zeros(outputs * 512, 2), torch.zeros(outputs * 256, dtype=torch.uint8)
            shape = [outputs, 2048, 1, 1]
            torch.ops.snn_core.nm_dense_triton(torch.zeros(1, 2048), values, indices, 2, 4, shape, None, None, 0)
    finally:
        module.launch = kept
    assert [name for name, _ in seen] == ["dense_kernel", "reduce_kernel", "dense_kernel"], seen
    assert seen[0][1] == (1, 1, 8)


@case
def non_finite_products() -> None:
    """As the dense product has them: a dropped weight is 0, and 0 times infinity is NaN."""
    from snn_core.kernels.nm_compress import CompressedNM

    weight = pruned(4, 16, "2:4")
    kept = weight[1].nonzero()[0, 0]
    weight[1, kept], weight[2, weight[2].nonzero()[0, 0]] = math.inf, math.nan
    compressed = CompressedNM.from_dense(weight)
    x = normal(2, 16, seed=1).abs()
    y = torch.ops.snn_core.nm_dense_triton(x, compressed.values, compressed.indices, 2, 4, [4, 16, 1, 1], None, None, 0)
    torch.testing.assert_close(y, F.linear(x, weight), equal_nan=True)
    assert y[:, 1].isinf().all()
    assert y[:, 2].isnan().all()


def e4m3(index: int, rows: int) -> None:
    """Every e4m3 number, NaN and subnormal ones included, is decoded as torch does. In 256 rows, rows have no whole
    words of positions."""
    values = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    indices = torch.full((64,), index * 0b01010101, dtype=torch.uint8)
    dense = torch.ops.snn_core.nm_decompress_triton(values[:, None], indices, 1, 4, rows, None, torch.float32)
    expected = torch.zeros(256, 4)
    expected[:, index] = values.float()
    assert torch.equal(dense.view(256, 4).nan_to_num(7.5), expected.nan_to_num(7.5))
    assert torch.equal(dense.view(256, 4).isnan(), expected.isnan())
    assert int(dense.isnan().sum()) == 2


case(e4m3, 0, 16)
case(e4m3, 3, 256)


def decompress(pattern: str, dtype: torch.dtype, out_dtype: torch.dtype, blocks: int = 11) -> None:
    from snn_core.kernels.nm_compress import CompressedNM

    m = int(pattern.split(":")[1])
    weight = CompressedNM.from_dense(pruned(9, blocks * m, pattern), pattern)
    weight = weight.quantize(dtype) if dtype == torch.int8 else weight.to(dtype=dtype)
    arguments = (weight.values, weight.indices, weight.pattern.n, weight.pattern.m, 9, weight.scale, out_dtype)
    dense = torch.ops.snn_core.nm_decompress_triton(*arguments)
    assert dense.dtype == out_dtype
    assert torch.equal(dense, weight.to_dense(out_dtype))
    assert torch.equal(dense.signbit(), weight.to_dense(out_dtype).signbit())


for _pattern in PATTERNS:
    case(decompress, _pattern, torch.float32, torch.float32)
case(decompress, "2:4", torch.float16, torch.float16)
case(decompress, "2:4", torch.int8, torch.float16)
case(decompress, "2:4", torch.float16, torch.float32)
for _pattern in ("2:4", "1:4"):
    case(decompress, _pattern, torch.float16, torch.float16, 48)
    case(decompress, _pattern, torch.bfloat16, torch.bfloat16, 48)
    case(decompress, _pattern, torch.int8, torch.float32, 48)


@case
def misaligned_parts() -> None:
    """Parts of a larger tensor are read by elements where words would not be aligned."""
    from snn_core.kernels.nm_compress import CompressedNM

    weight = CompressedNM.from_dense(pruned(5, 128, "2:4", torch.float16))
    values = torch.cat([torch.zeros(1).half(), weight.values.flatten()])[1:].view(-1, 2)
    indices = torch.cat([torch.zeros(1, dtype=torch.uint8), weight.indices])[1:]
    for parts in ((values, weight.indices), (weight.values, indices), (values, indices)):
        dense = torch.ops.snn_core.nm_decompress_triton(*parts, 2, 4, 5, None, torch.float16)
        assert torch.equal(dense, weight.to_dense())


def compress(pattern: str, dtype: torch.dtype, with_mask: bool) -> None:
    from snn_core.kernels.nm_compress import CompressedNM, nm_mask_by_magnitude

    m = int(pattern.split(":")[1])
    for rows, blocks in ((7, 13), (1, 1), (40, 300 // m)):
        weight = pruned(rows, blocks * m, pattern, dtype)
        mask = None
        if with_mask:
            weight = normal(rows, blocks * m, seed=3).to(dtype)
            mask = nm_mask_by_magnitude(normal(rows, blocks * m, seed=4), pattern)
            mask[0] = False
        expected = CompressedNM.from_dense(weight, pattern, mask)
        values, indices, violations = torch.ops.snn_core.nm_compress_triton(weight, mask, expected.pattern.n, m)
        assert torch.equal(values.view(torch.uint8), expected.values.view(torch.uint8))
        assert torch.equal(indices, expected.indices)
        assert (violations.dtype, violations.shape, violations.item()) == (torch.int64, torch.Size(), 0)


for _pattern in PATTERNS:
    case(compress, _pattern, torch.float32, _pattern in ("2:4", "5:16"))
for _dtype in (torch.bfloat16, torch.float16, torch.float64):
    case(compress, "2:4", _dtype, _dtype == torch.bfloat16)


@case
def violations_are_counted() -> None:
    from snn_core.kernels.nm_compress import check_nm

    weight = normal(33, 100) * (normal(33, 100, seed=1) > 0)
    weight[0, 0], weight[5] = math.nan, 0.0
    found = torch.ops.snn_core.nm_compress_triton(weight, None, 2, 4)[2]
    assert found.item() == check_nm(weight, "2:4") > 0
    found = torch.ops.snn_core.nm_compress_triton(weight, weight > 0.5, 1, 4)[2]
    assert found.item() == check_nm(weight > 0.5, "1:4") > 0


def mask(pattern: str, dtype: torch.dtype) -> None:
    from snn_core.kernels.nm_compress import NMPattern, nm_mask_by_magnitude

    parsed = NMPattern.parse(pattern)
    weight = (4 * normal(9, 11 * parsed.m)).round().to(dtype)  # ties, of both signs and of zeros
    found = torch.ops.snn_core.nm_mask_triton(weight, parsed.n, parsed.m)
    assert torch.equal(found, nm_mask_by_magnitude(weight, parsed))


for _pattern in PATTERNS:
    case(mask, _pattern, torch.float32)
case(mask, "2:4", torch.bfloat16)
case(mask, "2:4", torch.float64)


@case
def empty() -> None:
    values, indices = torch.zeros(0, 2), torch.zeros(0, dtype=torch.uint8)
    namespace = torch.ops.snn_core
    some = torch.zeros(6, 2), torch.zeros(3, dtype=torch.uint8)
    assert namespace.nm_dense_triton(torch.zeros(0, 8), *some, 2, 4, [3, 8, 1, 1], None, None, 0).shape == (0, 3)
    assert namespace.nm_dense_triton(torch.zeros(2, 8), values, indices, 2, 4, [0, 8, 1, 1], None, None, 0).shape == (
        2,
        0,
    )
    bias = torch.arange(3.0)
    y = namespace.nm_dense_triton(torch.zeros(2, 0), values, indices, 2, 4, [3, 0, 1, 1], None, bias, 0)
    assert torch.equal(y, bias.expand(2, 3))
    assert namespace.nm_decompress_triton(values, indices, 2, 4, 3, None, torch.float32).shape == (3, 0)
    assert namespace.nm_decompress_triton(values, indices, 2, 4, 0, None, torch.float32).shape == (0, 0)
    found = namespace.nm_compress_triton(torch.zeros(0, 8), None, 2, 4)
    assert (found[0].shape, found[1].shape, found[2].item()) == ((0, 2), (0,), 0)
    assert namespace.nm_mask_triton(torch.zeros(0, 8), 2, 4).shape == (0, 8)


@case
def refusals() -> None:
    """What does not fit would be read beyond its end."""
    from snn_core.kernels.nm_compress import CompressedNM

    weight = CompressedNM.from_dense(pruned(4, 16, "2:4"))
    good: dict[str, object] = {
        "x": torch.zeros(2, 16), "values": weight.values, "indices": weight.indices, "n": 2, "m": 4,
        "weight_shape": [4, 16, 1, 1], "scale": torch.ones(4), "bias": torch.ones(4), "path": 0,
    }  # fmt: skip
    operator = torch.ops.snn_core.nm_dense_triton
    operator(*good.values())
    for name, wrong, message in (
        ("x", torch.zeros(2, 12), "differ in K"), ("x", torch.zeros(16), "x must be"),
        ("x", torch.zeros(16, 2).t(), "x must be"), ("x", torch.zeros(2, 16).double(), "x has dtype"),
        ("values", weight.values[:-1], "whole number"), ("values", weight.values.double(), "values has dtype"),
        ("values", weight.values[:, :1], "values must be"), ("indices", None, "indices is None"),
        ("indices", weight.indices[:-1], "indices must be"), ("indices", weight.indices.char(), "indices must be"),
        ("m", 128, "beyond"), ("n", 3, "values must be"), ("weight_shape", [4, 8, 1, 2], "weight_shape is"),
        ("weight_shape", [4, 8, 1, 1], "differ in K"), ("scale", torch.ones(3), "scale must be"),
        ("bias", torch.ones(4).half(), "bias must be"), ("path", 1, "path is 1"),
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match=message):
            operator(*(good | {name: wrong}).values())
    half_a_mask = torch.zeros(2, 4, dtype=torch.bool)
    for dense, given, message in (
        (torch.zeros(2, 6), None, "dense must be"), (torch.zeros(8, 2).t(), None, "dense must be"),
        (torch.zeros(2, 8).int(), None, "dense has dtype"), (torch.zeros(2, 8), half_a_mask, "mask must be"),
        (torch.zeros(2, 8), torch.zeros(2, 8), "mask must be"),
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match=message):
            torch.ops.snn_core.nm_compress_triton(dense, given, 2, 4)


@case
def opcheck() -> None:
    """Schema and fake kernels fit what the operators do."""
    from snn_core.kernels.nm_compress import CompressedNM

    weight = CompressedNM.from_dense(pruned(4, 16, "2:4"))
    parts, tests = (weight.values, weight.indices, 2, 4), {"test_utils": ("test_schema", "test_faketensor")}
    namespace = torch.ops.snn_core
    torch.library.opcheck(
        namespace.nm_dense_triton.default, (torch.ones(2, 16), *parts, [4, 16, 1, 1], None, None, 0), **tests
    )
    torch.library.opcheck(namespace.nm_decompress_triton.default, (*parts, 4, None, torch.half), **tests)
    torch.library.opcheck(namespace.nm_compress_triton.default, (weight.to_dense(), None, 2, 4), **tests)
    torch.library.opcheck(namespace.nm_mask_triton.default, (weight.to_dense(), 2, 4), **tests)


@case
def planted_failure() -> None:
    """Not a test: shows that a difference is seen and reported."""
    assert torch.ops.snn_core.nm_mask_triton(torch.ones(1, 4), 2, 4).tolist() == [[True] * 4], "planted"


@pytest.fixture(scope="module")
def reports() -> dict[str, str]:
    return CASES.reports()


@pytest.mark.parametrize("name", CASES.names)
def test_triton_equals_reference(name: str, reports: dict[str, str]) -> None:
    assert not reports[name], reports[name]


def test_the_harness_reports_a_difference(reports: dict[str, str]) -> None:
    assert "AssertionError: planted" in reports["planted_failure"]
