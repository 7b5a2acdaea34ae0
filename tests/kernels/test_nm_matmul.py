"""The public products and convolutions with N:M weights, on every backend that is here, against the dense product."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from snn_core.errors import ArgumentError, BackendUnavailableError
from snn_core.kernels import (
    CompressedNM,
    PackedSpikes,
    lif,
    nm_conv2d,
    nm_conv2d_lif,
    nm_matmul,
    nm_matmul_lif,
    pack_spikes,
)
from snn_core.kernels.native import cpu_library
from snn_core.kernels.nm_matmul.dispatch import MARGIN, forget
from snn_core.sparsity import NMPattern, nm_mask_by_magnitude

BACKENDS = ["auto", "dense", "reference"] + (["cpp"] if cpu_library().available else [])
PATTERNS = ["dense", "2:4", "1:4", "1:8", "4:8", "1:16"]


@pytest.fixture(autouse=True)
def _nothing_is_remembered(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("SNN_DISPATCH_FILE", str(tmp_path / "dispatch.json"))
    forget()


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def spikes(*shape: int, rate: float = 0.2, seed: int = 1) -> Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < rate).float()


def sparse_weight(*shape: int, pattern: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Tensor]:
    """What is passed, and its dense form in float32."""
    weight = normal(*shape, seed=3, dtype=dtype)
    if pattern == "dense":
        return weight, weight.float()
    weight = weight * nm_mask_by_magnitude(weight.float(), pattern)
    compressed = CompressedNM.from_dense(weight, pattern)
    return compressed, weight.float()


def assert_near(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Relative to the largest result, as sums cancel."""
    assert actual.shape == expected.shape
    scale = expected.abs().max().clamp_min(1e-30) if expected.numel() else 1.0
    assert ((actual.float() - expected).abs() / scale <= tolerance).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_product_of_spikes(backend: str, pattern: str, dtype: torch.dtype) -> None:
    for rows, k, outputs, rate in ((1, 48, 7, 0.5), (3, 112, 33, 0.0), (65, 160, 40, 1.0), (2 * 61, 336, 19, 0.05)):
        if pattern not in ("dense",) and k % NMPattern.parse(pattern).m:
            continue
        s, (weight, dense), bias = (
            spikes(rows, k, rate=rate),
            sparse_weight(outputs, k, pattern=pattern, dtype=dtype),
            normal(outputs),
        )
        for x in (PackedSpikes.from_dense(s), pack_spikes(s)):
            assert_near(nm_matmul(x, weight, bias, backend=backend), F.linear(s, dense, bias))
        low = nm_matmul(PackedSpikes.from_dense(s), weight, out_dtype=torch.bfloat16, backend=backend)
        assert low.dtype == torch.bfloat16
        assert_near(low, F.linear(s, dense), 1e-2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pattern", ["2:4", "1:8", "dense"])
@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups", "kernel"),
    [
        (1, 1, 1, 1, (3, 3)),
        (2, (0, 2), 1, 1, (3, 1)),
        ((1, 2), 2, 2, 1, (3, 3)),
        (1, 0, 1, 2, (1, 1)),
        (1, 1, 1, 2, (3, 3)),
    ],
)
def test_convolution_of_spikes(
    backend: str, pattern: str, stride: Any, padding: Any, dilation: Any, groups: int, kernel: tuple[int, int]
) -> None:
    s, bias = spikes(2, 16 * groups, 9, 7), normal(6)
    weight, dense = sparse_weight(6, 16, *kernel, pattern=pattern)
    if backend == "cpp" and groups == 2 and (16 % 8):
        pytest.skip("groups that end inside a byte")
    expected = F.conv2d(s, dense, bias, stride, padding, dilation, groups)
    for x in (PackedSpikes.from_dense(s, -3), PackedSpikes.from_dense(s, -3).bits):
        y = nm_conv2d(x, weight, bias, stride, padding, dilation, groups, backend=backend)
        assert_near(y, expected)


@pytest.mark.parametrize("channels", [4, 12, 20])
@pytest.mark.parametrize("backend", BACKENDS)
def test_convolution_of_channels_that_do_not_fill_bytes(backend: str, channels: int) -> None:
    s = spikes(3, channels, 5, 6, rate=0.5)
    weight, dense = sparse_weight(9, channels, 3, 3, pattern="2:4", dtype=torch.bfloat16)
    y = nm_conv2d(PackedSpikes.from_dense(s, -3), weight, padding=1, backend=backend)
    assert_near(y, F.conv2d(s, dense, padding=1))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_product_of_dense_activations(backend: str, dtype: torch.dtype, rows: int) -> None:
    x, bias = normal(2, rows, 64, dtype=dtype), normal(24)
    weight, dense = sparse_weight(24, 64, pattern="2:4", dtype=dtype)
    y = nm_matmul(x, weight, bias, backend=backend)
    assert y.dtype == dtype
    assert_near(
        y, F.linear(x.float(), dense, bias), {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("quantized", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_eight_bit_weights(backend: str, quantized: torch.dtype) -> None:
    weight = sparse_weight(10, 96, pattern="2:4")[0].quantize(quantized)
    s = spikes(70, 96)
    assert_near(nm_matmul(PackedSpikes.from_dense(s), weight, backend=backend), F.linear(s, weight.to_dense()))
    kernel = sparse_weight(10, 32, 3, 3, pattern="2:4")[0].quantize(quantized)
    images = spikes(2, 32, 6, 6)
    y = nm_conv2d(PackedSpikes.from_dense(images, -3), kernel, padding=1, backend=backend)
    assert_near(y, F.conv2d(images, kernel.to_dense(), padding=1))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("v_reset", "decay_input", "tau"), [(0.0, True, 2.0), (None, True, 3.0), (-0.1, False, float("inf"))]
)
def test_product_with_lif(backend: str, packed: bool, v_reset: Any, decay_input: bool, tau: float) -> None:
    options = {"tau": tau, "v_reset": v_reset, "decay_input": decay_input, "v_threshold": 0.7}
    s, bias = spikes(5, 3, 64, rate=0.3), normal(21)
    weight, dense = sparse_weight(21, 64, pattern="2:4")
    # Weights with few bits, so that sums in any order are exact and no potential lies at the threshold by a rounding.
    weight = CompressedNM.from_dense((dense * 8).round() / 8, "2:4")
    bias = (bias * 8).round() / 8
    v0 = (normal(3, 21) * 8).round() / 8
    expected, expected_v = lif(F.linear(s, weight.to_dense(), bias), v0, **options)
    got, v_last = nm_matmul_lif(PackedSpikes.from_dense(s), weight, bias, v0, packed=packed, backend=backend, **options)
    got = got.to_dense() if isinstance(got, PackedSpikes) else got
    assert torch.equal(got, expected)
    torch.testing.assert_close(v_last, expected_v, rtol=0, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("with_batch", [True, False])
def test_convolution_with_lif(backend: str, packed: bool, with_batch: bool) -> None:
    lead = (4, 3) if with_batch else (4,)
    s, bias = spikes(*lead, 16, 6, 5, rate=0.3), (normal(11) * 8).round() / 8
    dense = (sparse_weight(11, 16, 3, 3, pattern="2:4")[1] * 8).round() / 8
    weight = CompressedNM.from_dense(dense, "2:4")
    current = F.conv2d(s.flatten(0, -4), dense, bias, 2, 1).unflatten(0, lead)
    v0 = (normal(*current.shape[1:]) * 8).round() / 8
    expected, expected_v = lif(current, v0, tau=2.0)
    got, v_last = nm_conv2d_lif(
        PackedSpikes.from_dense(s, -3), weight, bias, 2, 1, v0=v0, packed=packed, backend=backend
    )
    got = got.to_dense() if isinstance(got, PackedSpikes) else got
    assert torch.equal(got, expected)
    torch.testing.assert_close(v_last, expected_v, rtol=0, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("channels", [(16, 12), (16, 16), (8, 6)])
def test_grouped_convolution_with_lif(backend: str, channels: tuple[int, int]) -> None:
    s = spikes(3, 2, channels[0], 5, 5, rate=0.4)
    dense = (sparse_weight(channels[1], channels[0] // 2, 3, 3, pattern="2:4")[1] * 8).round() / 8
    current = F.conv2d(s.flatten(0, -4), dense, None, 1, 1, 1, 2).unflatten(0, (3, 2))
    arguments = PackedSpikes.from_dense(s, -3), CompressedNM.from_dense(dense, "2:4")
    if backend == "cpp" and channels[0] // 2 % 8:  # a group ends inside a byte
        with pytest.raises(BackendUnavailableError, match="cpp"):
            nm_conv2d_lif(*arguments, padding=1, groups=2, backend=backend)
        return
    got, v_last = nm_conv2d_lif(*arguments, padding=1, groups=2, backend=backend)
    expected, expected_v = lif(current)
    assert isinstance(got, PackedSpikes)
    assert torch.equal(got.to_dense(), expected)
    torch.testing.assert_close(v_last, expected_v, rtol=0, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_zeros_of_either_sign_empty_blocks_and_empty_inputs(backend: str) -> None:
    dense = torch.zeros(5, 32)
    dense[0, 0], dense[1, 5], dense[2, 31] = -0.0, 2.0, -3.0
    weight = CompressedNM.from_dense(dense, "2:4")
    s = spikes(9, 32, rate=0.5)
    assert torch.equal(nm_matmul(PackedSpikes.from_dense(s), weight, backend=backend), F.linear(s, dense))
    assert nm_matmul(PackedSpikes.from_dense(s[:0]), weight, backend=backend).shape == (0, 5)
    assert nm_matmul(torch.zeros(0, 32), weight, backend=backend).shape == (0, 5)
    images = PackedSpikes.from_dense(torch.zeros(0, 32, 4, 4), -3)
    kernel = CompressedNM.from_dense(torch.zeros(5, 32, 3, 3), "2:4")
    assert nm_conv2d(images, kernel, backend=backend).shape == (0, 5, 2, 2)
    nothing = PackedSpikes.from_dense(torch.zeros(3, 0))
    assert torch.equal(nm_matmul(nothing, torch.zeros(4, 0), torch.ones(4), backend=backend), torch.ones(3, 4))
    got, v_last = nm_matmul_lif(PackedSpikes.from_dense(s), torch.zeros(0, 32), v0=torch.zeros(0), backend=backend)
    assert (tuple(got.shape), tuple(v_last.shape)) == ((9, 0), (0,))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_reach_the_rows_that_fire(value: float) -> None:
    dense = torch.zeros(3, 16)
    dense[1, 4] = value
    s = torch.zeros(2, 16)
    s[0, 4] = 1
    for backend in BACKENDS:
        y = nm_matmul(PackedSpikes.from_dense(s), CompressedNM.from_dense(dense, "2:4"), backend=backend)
        assert not torch.isfinite(y[0, 1]), backend
        if backend == "cpp":  # silence is no product with 0 there
            assert torch.isfinite(y[1]).all()


def test_gradients_reach_the_input_the_kept_values_and_the_bias() -> None:
    dense = normal(6, 16, dtype=torch.float64) * nm_mask_by_magnitude(normal(6, 16), "2:4")
    compressed = CompressedNM.from_dense(dense, "2:4")
    x = normal(4, 16, dtype=torch.float64, seed=5).requires_grad_()
    bias = normal(6, dtype=torch.float64).requires_grad_()
    values = compressed.values.clone().requires_grad_()

    def product(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        return nm_matmul(x, CompressedNM(values, compressed.indices, compressed.shape, compressed.pattern), bias)

    assert torch.autograd.gradcheck(product, (x, values, bias))


def test_autocast_and_compile() -> None:
    weight, dense = sparse_weight(8, 32, pattern="2:4")
    x = normal(5, 32)
    with torch.autocast("cpu", torch.bfloat16):
        y = nm_matmul(x, weight)
    assert y.dtype == torch.bfloat16
    assert_near(y, F.linear(x, dense), 1e-2)
    s = spikes(6, 32)
    compiled = torch.compile(lambda bits: nm_matmul(bits, weight) * 2, fullgraph=True, backend="aot_eager")
    assert_near(compiled(pack_spikes(s)), 2 * F.linear(s, dense))


def test_explanation_names_what_was_taken() -> None:
    weight, _ = sparse_weight(8, 32, pattern="2:4")
    packed = PackedSpikes.from_dense(spikes(6, 32))
    y, first = nm_matmul(packed, weight, explain=True)
    again, second = nm_matmul(packed, weight, explain=True)
    assert first.taken
    assert str(first).startswith(first.taken)
    if len(first.seconds) > 1:
        assert (first.why, second.why) == ("measured", "remembered")
        assert first.taken == second.taken
        assert first.seconds[first.taken] <= min(first.seconds.values()) * (1 + MARGIN)  # the default is kept within it
    assert torch.equal(y, again)
    assert nm_matmul(packed, weight, backend="dense", explain=True)[1].taken == "dense"


_WEIGHT = CompressedNM.from_dense(torch.zeros(4, 16), "2:4")
_KERNEL = CompressedNM.from_dense(torch.zeros(4, 16, 3, 3), "2:4")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: nm_matmul(torch.zeros(2, 12), _WEIGHT), ("x", "12", "16")),
        (lambda: nm_matmul(torch.zeros(2, 3, dtype=torch.uint8), _WEIGHT), ("x", "uint8", "2")),
        (lambda: nm_matmul(torch.zeros(2, 16, dtype=torch.int64), _WEIGHT), ("x", "int64")),
        (lambda: nm_matmul([1.0], _WEIGHT), ("x", "list")),
        (lambda: nm_matmul(torch.zeros(2, 16), torch.zeros(4, 16, 1, 1)), ("weight", "[O, K]")),
        (lambda: nm_matmul(torch.zeros(2, 16), "weight"), ("weight", "str")),
        (lambda: nm_matmul(torch.zeros(2, 16), _WEIGHT, torch.zeros(5)), ("bias", "[5]", "[4]")),
        (lambda: nm_matmul(torch.zeros(2, 16), _WEIGHT, out_dtype=torch.int32), ("out_dtype", "int32")),
        (lambda: nm_matmul(torch.zeros(2, 16), _WEIGHT, backend="fast"), ("backend", "fast", "cpp")),
        (lambda: nm_matmul(torch.zeros(2, 16, device="meta"), _WEIGHT), ("x", "meta")),
        (lambda: nm_conv2d(torch.zeros(1, 8, 5, 5), _KERNEL), ("x", "8", "16")),
        (lambda: nm_conv2d(torch.zeros(1, 16, 2, 5), _KERNEL), ("height", "2", "3")),
        (lambda: nm_conv2d(torch.zeros(1, 16, 5, 5), _KERNEL, stride=0), ("stride", "0")),
        (lambda: nm_conv2d(torch.zeros(1, 16, 5, 5), _KERNEL, padding=(1, 1, 1)), ("padding",)),
        (lambda: nm_conv2d(torch.zeros(1, 48, 5, 5), _KERNEL, groups=3), ("groups", "3", "4")),
        (lambda: nm_conv2d(PackedSpikes.from_dense(torch.zeros(2, 4, 16)), _KERNEL), ("channels_last",)),
        (lambda: nm_matmul_lif(PackedSpikes.from_dense(torch.zeros(16)), _WEIGHT), ("time",)),
        (lambda: nm_matmul_lif(PackedSpikes.from_dense(torch.zeros(0, 16)), _WEIGHT), ("time", "1")),
        (lambda: nm_matmul_lif(PackedSpikes.from_dense(torch.zeros(2, 16)), _WEIGHT, tau=1.0), ("tau",)),
        (lambda: nm_matmul_lif(torch.zeros(2, 16), _WEIGHT, v0=torch.zeros(4, device="meta")), ("v0", "meta")),
        (lambda: nm_matmul_lif(pack_spikes(torch.zeros(2, 3, 16)), _WEIGHT, v0=torch.zeros(4)), ("v0", "[3, 4]")),
    ],
)  # fmt: skip
def test_bad_input_is_named(call: Any, words: tuple[str, ...]) -> None:
    with pytest.raises(ArgumentError) as error:
        call()
    for word in words:
        assert word in str(error.value)


def test_a_backend_asked_for_is_never_replaced() -> None:
    leaf = torch.zeros(2, 16, requires_grad=True)
    with pytest.raises(BackendUnavailableError, match="gradient"):
        nm_matmul(leaf, _WEIGHT, backend="cpp")
    with pytest.raises(ArgumentError, match="fast"):
        nm_matmul(leaf, _WEIGHT, backend="fast")
    with pytest.raises(BackendUnavailableError, match="triton"):
        nm_matmul(torch.zeros(2, 16), _WEIGHT, backend="triton")
    with pytest.raises(BackendUnavailableError, match="torch"):
        nm_matmul(torch.zeros(2, 16), _WEIGHT, backend="torch")
    with pytest.raises(BackendUnavailableError, match="cuda"):
        nm_matmul(PackedSpikes.from_dense(torch.zeros(2, 16)), _WEIGHT, backend="cuda")


def test_a_dense_copy_is_kept_only_where_it_was_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    from snn_core.kernels.nm_matmul import torch_sparse

    weight, dense = sparse_weight(24, 64, pattern="2:4")
    x = normal(40, 64)
    y, explanation = nm_matmul(x, weight, explain=True)
    assert_near(y, F.linear(x, dense))
    assert "dense:kept" in explanation.seconds
    kept = {form for form, _ in torch_sparse.conversions(weight).tensors}
    assert kept == {"dense:kept": {"dense"}, "dense:onednn": {"onednn"}}.get(explanation.taken, set())
    monkeypatch.setenv("SNN_KEEP_DENSE", "0")
    assert "dense:kept" not in nm_matmul(x, weight, explain=True)[1].seconds
    packed = PackedSpikes.from_dense(spikes(40, 64))
    assert "dense:kept" not in nm_matmul(packed, weight, explain=True)[1].seconds
    values = weight.values.clone()
    torch_sparse.drop_dense(weight)
    weight.values.mul_(2)  # another weight from here on
    assert_near(torch_sparse.kept_dense(weight, torch.float32), 2 * dense)
    weight.values.copy_(values)
    assert_near(torch_sparse.kept_dense(weight, torch.float32), dense)
