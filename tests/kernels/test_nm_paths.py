"""The lookup, few-row and kept-driven paths of nm_spikes on the CPU, and few rows of dense activations."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from snn_core.kernels import CompressedNM, pack_spikes
from snn_core.kernels.native import compiled_instruction_sets, cpu_library

pytestmark = pytest.mark.skipif(not cpu_library().available, reason="no native library here")
OPS = torch.ops.snn_core
LOOKUP, FEW_ROWS, KEPT = PATHS = (2, 3, 4)
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.float8_e4m3fn]
LINEAR = ([1, 1], [0, 0], [1, 1], 1)
#: The patterns of each path beside the dense weight; the last two take every pattern, in any place of a byte.
PATTERNS = {
    LOOKUP: ["dense", "2:4", "1:4", "4:8", "1:2"],
    FEW_ROWS: ["dense", "2:4", "1:4", "4:8", "1:2", "1:8", "2:8", "3:8", "5:8", "1:16", "2:5"],
    KEPT: ["2:4", "1:4", "4:8", "1:2", "1:8", "2:8", "3:8", "5:8", "1:16", "2:5"],
}
CASES = [(path, pattern) for path, patterns in PATTERNS.items() for pattern in patterns]


def needs(path: int) -> None:
    """Skips where the instruction set in use has no such path."""
    if cpu_library().isa not in (("avx512_vbmi", "avx512") if path == KEPT else ("avx512_vbmi",)):
        pytest.skip(f"path {path} needs more than {cpu_library().isa}")


def make_weight(
    shape: tuple[int, ...], pattern: str, dtype: torch.dtype, *, seed: int = 3
) -> tuple[tuple[Any, ...], Tensor]:
    """Arguments of a weight [O, C, kh, kw] without scale and bias, and its dense form in float32."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator)
    weight = (weight * 40).round().clamp(-128, 127) if dtype == torch.int8 else weight
    if pattern == "dense":
        values = weight.permute(0, 2, 3, 1).contiguous().to(dtype)
        return (values, None, 0, 0, list(shape), None, None), weight.to(dtype).float()
    n, m = map(int, pattern.split(":"))
    blocks = weight.permute(0, 2, 3, 1).reshape(-1, m)
    order = torch.rand(blocks.shape, generator=generator).argsort(1)[:, :n].sort(1).values
    kept = torch.zeros_like(blocks).scatter_(1, order, blocks.gather(1, order))
    mask = torch.zeros(blocks.shape, dtype=torch.bool).scatter_(1, order, True)
    o, c, kh, kw = shape
    dense, mask = (t.view(o, kh, kw, c).permute(0, 3, 1, 2).contiguous() for t in (kept, mask))
    compressed = CompressedNM.from_dense(dense, pattern, mask)
    values = compressed.values.to(dtype)
    return (values, compressed.indices, n, m, list(shape), None, None), dense.to(dtype).float()


def make_spikes(*shape: int, rate: float = 0.3) -> Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(7)) < rate).float()


def product(s: Tensor, weight: tuple[Any, ...], path: int) -> Tensor:
    """[rows, k] spikes x a weight of one kernel position."""
    bits = pack_spikes(s).view(s.shape[0], 1, 1, -1)
    y = OPS.nm_spikes(bits, s.shape[1], *weight, *LINEAR, torch.float32, path)
    return y.view(s.shape[0], -1)


def assert_sums(actual: Tensor, s: Tensor, dense: Tensor) -> None:
    """To float32 rounding of the sum of the magnitudes."""
    bound = s.double() @ dense.double().abs().T
    assert ((actual.double() - s.double() @ dense.double().T).abs() <= 2e-6 * bound + 1e-30).all()


@pytest.mark.parametrize(("path", "pattern"), CASES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "k", "outputs"), [(1, 80, 1), (3, 160, 9), (70, 240, 37), (10, 2400, 5)])
def test_sums(path: int, pattern: str, dtype: torch.dtype, rows: int, k: int, outputs: int) -> None:
    needs(path)
    k = min(k, 1600) if pattern == "2:5" else k  # the few-row path takes blocks that do not divide 2048 up to there
    weight, dense = make_weight((outputs, k, 1, 1), pattern, dtype)
    s = make_spikes(rows, k)
    assert_sums(product(s, weight, path), s, dense.view(outputs, k))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("rows", [1, 2, 4, 7, 15, 16, 17, 33, 49, 64])
def test_every_number_of_rows(path: int, rows: int) -> None:
    needs(path)
    weight, dense = make_weight((18, 72, 1, 1), "2:4", torch.bfloat16)
    s = make_spikes(rows, 72)
    assert_sums(product(s, weight, path), s, dense.view(18, 72))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("rate", [0.0, 0.01, 1.0])
def test_every_rate(path: int, rate: float) -> None:
    needs(path)
    weight, dense = make_weight((20, 4608, 1, 1), "2:4", torch.bfloat16)
    s = make_spikes(5, 4608, rate=rate)
    assert_sums(product(s, weight, path), s, dense.view(20, 4608))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_sums_of_a_row_do_not_depend_on_other_rows_or_outputs(path: int, dtype: torch.dtype) -> None:
    needs(path)
    weight, _ = make_weight((70, 136, 1, 1), "2:4", dtype)
    s = make_spikes(67, 136)
    y = product(s, weight, path)
    assert torch.equal(y, torch.cat([product(row[None], weight, path) for row in s]))
    first = (weight[0][: 3 * 34], weight[1][: 3 * 17], 2, 4, [3, 136, 1, 1], None, None)
    assert torch.equal(y[:, :3], product(s, first, path))


@pytest.mark.parametrize("finite", [True, False])
@pytest.mark.parametrize("out_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_many_rows_at_once_have_the_bits_of_each(out_dtype: torch.dtype, finite: bool) -> None:
    """Four blocks of 64 rows share their tables, what is left does not; a weight that is not finite never does."""
    needs(LOOKUP)
    weight, dense = make_weight((37, 1104, 1, 1), "2:4", torch.bfloat16)
    if not finite:
        weight[0].view(37, -1)[36, 5] = torch.inf
    s = make_spikes(5 * 64 + 9, 1104, rate=0.5)
    bits = pack_spikes(s).view(s.shape[0], 1, 1, -1)
    y = OPS.nm_spikes(bits, 1104, *weight, *LINEAR, out_dtype, LOOKUP).view(s.shape[0], 37)
    parts = [product(part, weight, LOOKUP).to(out_dtype) for part in s.split(40)]
    assert torch.equal(y.nan_to_num(), torch.cat(parts).nan_to_num())
    if out_dtype == torch.float32:
        assert_sums(y[:, :36], s, dense.view(37, 1104)[:36])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sums_of_integers_are_exact(path: int, dtype: torch.dtype) -> None:
    needs(path)
    weight, _ = make_weight((33, 512, 1, 1), "2:4", torch.float32)
    values = weight[0].mul(3).round().clamp(-8, 8)
    values[:256] = 0.0
    values[256:300] = -0.0
    weight = (values.to(dtype), *weight[1:])
    dense = CompressedNM(values, weight[1], (33, 512), CompressedNM.from_dense(torch.zeros(1, 4)).pattern).to_dense()
    s = make_spikes(21, 512, rate=0.5)
    assert torch.equal(product(s, weight, path), s @ dense.T)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("rows", [40, 150])
def test_only_the_rows_that_pick_a_weight_see_its_nan_or_infinity(path: int, dtype: torch.dtype, rows: int) -> None:
    needs(path)
    weight, dense = make_weight((5, 64, 1, 1), "2:4", dtype)
    dense = dense.view(5, 64)
    column = int(dense[2].nonzero()[3])
    bad = torch.nan if dtype == torch.float8_e4m3fn else torch.inf
    values = weight[0].float().view(5, -1)
    values[2, 3] = bad
    dense[2, column] = bad
    s = make_spikes(rows, 64)
    y = product(s, (values.view(-1, 2).to(dtype), *weight[1:]), path)
    picked = s[:, column] == 1
    assert 0 < int(picked.sum()) < rows
    assert (~y[picked, 2].isfinite()).all()
    assert y[~picked].isfinite().all()
    assert y[:, [0, 1, 3, 4]].isfinite().all()
    assert_sums(y[~picked], s[~picked], dense.nan_to_num(0.0, 0.0))


@pytest.mark.parametrize(("path", "pattern", "channels"), [
    (LOOKUP, "2:4", 16), (LOOKUP, "1:4", 16), (LOOKUP, "dense", 8),
    (FEW_ROWS, "2:4", 16), (FEW_ROWS, "2:4", 12), (FEW_ROWS, "dense", 3), (FEW_ROWS, "1:8", 24),
    (KEPT, "2:4", 16), (KEPT, "2:4", 12), (KEPT, "2:5", 10), (KEPT, "1:8", 24),
])  # fmt: skip
@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 1, 1), (2, 2, 2)])
def test_convolution(path: int, pattern: str, channels: int, stride: int, padding: int, dilation: int) -> None:
    needs(path)
    weight, dense = make_weight((21, channels, 3, 3), pattern, torch.bfloat16)
    s = make_spikes(2, channels, 7, 6)
    bits = pack_spikes(s.permute(0, 2, 3, 1).contiguous())
    if channels % 8 != 0:
        bits[..., -1] |= 0xFF << channels % 8 & 0xFF  # past the channels: must not count
    options = ([stride] * 2, [padding] * 2, [dilation] * 2, 1)
    y = OPS.nm_spikes(bits, channels, *weight, *options, torch.float32, path)
    expected = F.conv2d(s.double(), dense.double(), None, stride, padding, dilation)
    assert ((y.permute(0, 3, 1, 2) - expected).abs() <= 1e-6 * dense.abs().sum((1, 2, 3)).max()).all()


@pytest.mark.parametrize(("path", "pattern", "k"), [
    (LOOKUP, "2:4", 12), (LOOKUP, "1:8", 64), (LOOKUP, "1:4", 24), (KEPT, "dense", 64), (FEW_ROWS, "2:5", 4000),
])  # fmt: skip
def test_a_path_that_cannot_take_a_weight_says_so(path: int, pattern: str, k: int) -> None:
    weight, _ = make_weight((4, k, 1, 1), pattern, torch.float32)
    with pytest.raises(RuntimeError, match=f"path {path} does not take this weight"):
        product(make_spikes(2, k), weight, path)


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "3:5", "3:8", "2:9"])
def test_whatever_the_indices_say_sums_are_of_the_values(pattern: str) -> None:
    """Indices out of range or twice the same: wrong sums, no more. (The public classes refuse them.)"""
    needs(KEPT)
    weight, _ = make_weight((9, 720, 1, 1), pattern, torch.float32)
    weight = (torch.ones_like(weight[0]), torch.full_like(weight[1], 0xFF), *weight[2:])
    s = make_spikes(11, 720, rate=0.5)
    for path in PATHS:
        if pattern in PATTERNS[path] or path != LOOKUP:
            y = product(s, weight, path)
            assert ((y >= 0) & (y <= weight[0].numel() / 9)).all()


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8", "1:2", "2:8", "3:8", "2:5", "2:256"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_few_dense_rows(pattern: str, dtype: torch.dtype, x_dtype: torch.dtype) -> None:
    needs(FEW_ROWS)
    k = 4608 if pattern == "2:256" else 680
    weight, dense = make_weight((19, k, 1, 1), pattern, dtype)
    dense = dense.view(19, k)
    generator = torch.Generator().manual_seed(1)
    for rows in (1, 2, 3, 7, 16):
        x = torch.randn(rows, k, generator=generator).to(x_dtype)
        y = OPS.nm_dense(x, *weight[:5], torch.ones(19), None, 1)
        bound = x.double().abs() @ dense.double().abs().T
        rounding = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}[x_dtype]
        expected = x.double() @ dense.double().T
        assert y.dtype == x_dtype
        assert ((y.double() - expected).abs() <= rounding * expected.abs() + 2e-6 * bound).all()


SCRIPT = """
import sys
import torch
sys.path.insert(0, sys.argv[1])
import test_nm_paths as t
isa = t.cpu_library().isa
assert isa == sys.argv[2], isa
s = t.make_spikes(35, 208)
for path, pattern in t.CASES:
    if 208 % int(pattern.split(":")[-1].replace("dense", "1")):
        continue
    for dtype in t.DTYPES:
        weight, dense = t.make_weight((21, 208, 1, 1), pattern, dtype)
        try:
            y = t.product(s, weight, path)
        except RuntimeError as error:
            assert "does not take" in str(error), error
            print(path, "refused")
            continue
        t.assert_sums(y, s, dense.view(21, 208))
        print(path, "taken")
"""


@pytest.mark.parametrize("isa", [isa for isa in compiled_instruction_sets() if isa != cpu_library().isa])
def test_other_instruction_sets(isa: str) -> None:
    """Each has right results or says that it has none."""
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, os.path.dirname(__file__), isa],
        env={**os.environ, "SNN_CPU_ISA": isa}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "AssertionError: avx" in result.stderr or "AssertionError: base" in result.stderr:
        pytest.skip(f"this machine has no {isa}")
    assert result.returncode == 0, result.stderr
    assert ("4 taken" in result.stdout) == isa.startswith("avx512")
