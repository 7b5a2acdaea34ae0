"""Triton kernels of N:M weights on a GPU: what the interpreter cannot show, bfloat16 products first of all."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from snn_core.kernels.nm_compress import CompressedNM, nm_mask_by_magnitude

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}


@pytest.fixture(scope="module", autouse=True)
def registered() -> None:
    from snn_core.kernels.nm_matmul import triton

    triton.register()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).cuda()


def compressed(rows: int, columns: int, pattern: str, dtype: torch.dtype) -> CompressedNM:
    dense = normal(rows, columns)
    weight = CompressedNM.from_dense(dense * nm_mask_by_magnitude(dense, pattern), pattern)
    return weight.quantize(dtype) if dtype in (torch.int8, torch.float8_e4m3fn) else weight.to(dtype=dtype)


def assert_product(rows: int, outputs: int, size: int, pattern: str, x_dtype: torch.dtype, dtype: torch.dtype) -> None:
    weight = compressed(outputs, size, pattern, dtype)
    x, bias = normal(rows, size, seed=1).to(x_dtype), normal(outputs, seed=2)
    arguments = (
        x, weight.values, weight.indices, weight.pattern.n, weight.pattern.m, [outputs, size, 1, 1], weight.scale,
        bias, 0,
    )  # fmt: skip
    y = torch.ops.snn_core.nm_dense_triton(*arguments)
    exact = F.linear(x.double(), weight.to_dense().double(), bias.double())
    error = (y.double() - exact).norm() / exact.norm()
    assert y.dtype == x_dtype
    assert error <= TOLERANCE[x_dtype], error
    assert torch.equal(torch.ops.snn_core.nm_dense_triton(*arguments), y)


@pytest.mark.parametrize("rows", [1, 16, 17, 33, 65, 300])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_products(rows: int, dtype: torch.dtype) -> None:
    assert_product(rows, 200, 1024, "2:4", dtype, dtype)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.float32])
@pytest.mark.parametrize("x_dtype", [torch.bfloat16, torch.float16])
def test_products_of_other_values(x_dtype: torch.dtype, dtype: torch.dtype) -> None:
    assert_product(5, 300, 512, "2:4", x_dtype, dtype)


@pytest.mark.parametrize("pattern", ["1:4", "3:4", "4:8", "2:6", "1:2", "5:16", "3:32"])
def test_products_of_other_patterns(pattern: str) -> None:
    assert_product(3, 70, 7 * int(pattern.split(":")[1]), pattern, torch.bfloat16, torch.bfloat16)


def test_odd_sizes() -> None:
    assert_product(3, 37, 4 * 33, "2:4", torch.bfloat16, torch.bfloat16)
    assert_product(130, 129, 4 * 31, "2:4", torch.float16, torch.float16)


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "2:6", "4:8", "5:16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_compress_masks_and_decompress(pattern: str, dtype: torch.dtype) -> None:
    n, m = map(int, pattern.split(":"))
    dense = normal(130, 50 * m).to(dtype)
    mask = nm_mask_by_magnitude(dense.cpu(), pattern).cuda()
    assert torch.equal(torch.ops.snn_core.nm_mask_triton(dense, n, m), mask)
    expected = CompressedNM.from_dense(dense.cpu(), pattern, mask.cpu())
    values, indices, violations = torch.ops.snn_core.nm_compress_triton(dense, mask, n, m)
    assert torch.equal(values.cpu(), expected.values)
    assert torch.equal(indices.cpu(), expected.indices)
    assert violations.item() == 0
    assert torch.ops.snn_core.nm_compress_triton(dense, None, n, m)[2].item() == 130 * 50
    if dtype != torch.float64:
        again = torch.ops.snn_core.nm_decompress_triton(values, indices, n, m, 130, None, dtype)
        assert torch.equal(again.cpu(), expected.to_dense())


def test_in_a_cuda_graph() -> None:
    weight, x = compressed(512, 512, "2:4", torch.bfloat16), normal(4, 512).bfloat16()
    arguments = (x, weight.values, weight.indices, 2, 4, [512, 512, 1, 1], None, None, 0)
    expected = torch.ops.snn_core.nm_dense_triton(*arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = torch.ops.snn_core.nm_dense_triton(*arguments)
    graph.replay()
    assert torch.equal(y, expected)
