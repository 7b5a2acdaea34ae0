"""The native operators on the CPU: the event path, LIF on the way out, decompression, compression, windows of bits."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from snn_core.errors import ArgumentError
from snn_core.kernels import CompressedNM, lif, pack_spikes, spike_im2col, spike_max_pool, unpack_spikes
from snn_core.kernels.native import compiled_instruction_sets, cpu_library
from snn_core.sparsity import NMPattern, nm_mask_by_magnitude

pytestmark = pytest.mark.skipif(not cpu_library().available, reason="no native library here")
OPS = torch.ops.snn_core
EVENT = 1
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.float8_e4m3fn]
LINEAR = ([1, 1], [0, 0], [1, 1], 1)
LIF = {"tau": 3.0, "v_threshold": 0.7, "v_reset": None, "decay_input": True}


def make_weight(shape: tuple[int, ...], pattern: str, dtype: torch.dtype) -> tuple[tuple[Any, ...], Tensor]:
    """Arguments of a weight [O, C / g, kh, kw], and its dense form in float32 without scale."""
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(shape, generator=generator)
    if pattern != "dense":
        weight = weight * nm_mask_by_magnitude(weight, pattern)
    weight = (weight * 40).round().clamp(-128, 127).to(dtype) if dtype == torch.int8 else weight.to(dtype)
    scale = torch.rand(shape[0], generator=generator) + 0.5
    channels_last = weight.float().permute(0, 2, 3, 1)
    if pattern == "dense":
        values, indices, n, m = channels_last.to(dtype).contiguous(), None, 0, 0
    else:
        parsed = NMPattern.parse(pattern)
        n, m = parsed.n, parsed.m
        compressed = CompressedNM.from_dense(weight.float(), pattern)
        values, indices = compressed.values.to(dtype), compressed.indices
    return (values, indices, n, m, list(shape), scale, torch.randn(shape[0], generator=generator)), weight.float()


def make_spikes(*shape: int, rate: float = 0.3) -> Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(7)) < rate).float()


def images(s: Tensor) -> Tensor:
    """[B, C, H, W] -> bits [B, H, W, ceil(C / 8)]."""
    return pack_spikes(s.permute(0, 2, 3, 1).contiguous())


def finished(sums: Tensor, weight: tuple[Any, ...]) -> Tensor:
    scale, bias = weight[5], weight[6]
    return sums * scale + bias


def assert_near(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert actual.shape == expected.shape
    assert ((actual.float() - expected).abs() <= tolerance * expected.abs().max()).all()


@pytest.mark.parametrize("pattern", ["dense", "2:4", "1:4", "4:8", "1:8", "1:2", "2:10", "8:16", "2:2"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "k", "outputs"), [(1, 80, 1), (67, 240, 131), (3, 560, 260)])
def test_event_path(rows: int, k: int, outputs: int, dtype: torch.dtype, pattern: str) -> None:
    weight, dense = make_weight((outputs, k, 1, 1), pattern, dtype)
    s = make_spikes(rows, k)
    y = OPS.nm_spikes(pack_spikes(s).view(rows, 1, 1, -1), k, *weight, *LINEAR, torch.float32, EVENT)
    assert_near(y.view(rows, outputs), finished(s @ dense.view(outputs, k).T, weight))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("rate", [0.02, 0.4])
def test_event_path_adds_one_spike_after_the_other(dtype: torch.dtype, rate: float) -> None:
    """To the last bit, so that neither chunks of inputs nor pairs of spikes show."""
    weight, dense = make_weight((150, 1200, 1, 1), "2:4", dtype)
    s = make_spikes(40, 1200, rate=rate)
    y = OPS.nm_spikes(pack_spikes(s).view(40, 1, 1, -1), 1200, *weight[:5], None, None, *LINEAR, torch.float32, EVENT)
    expected = torch.zeros(40, 150)
    for k in range(1200):
        expected += s[:, k, None] * dense[:, k, 0, 0]
    assert torch.equal(y.view(40, 150), expected)


@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float16])
def test_sums_are_rounded_once(out_dtype: torch.dtype) -> None:
    weight, _ = make_weight((50, 96, 1, 1), "2:4", torch.bfloat16)
    bits = pack_spikes(make_spikes(9, 96)).view(9, 1, 1, -1)
    y = OPS.nm_spikes(bits, 96, *weight, *LINEAR, torch.float32, EVENT)
    assert torch.equal(OPS.nm_spikes(bits, 96, *weight, *LINEAR, out_dtype, EVENT), y.to(out_dtype))


@pytest.mark.parametrize("path", [0, EVENT, 2])
@pytest.mark.parametrize(
    ("channels", "outputs", "kernel", "stride", "padding", "dilation", "groups", "pattern"),
    [
        (64, 40, (3, 3), (1, 1), (1, 1), (1, 1), 1, "2:4"),
        (16, 24, (3, 2), (2, 1), (0, 2), (2, 1), 1, "2:4"),
        (20, 7, (2, 3), (1, 2), (1, 0), (1, 1), 1, "2:4"),
        (48, 18, (3, 3), (1, 1), (2, 2), (2, 2), 3, "2:4"),
        (3, 33, (5, 5), (2, 2), (2, 2), (1, 1), 1, "dense"),
        (96, 64, (1, 1), (2, 2), (0, 0), (1, 1), 2, "1:8"),
    ],
)
def test_convolution(
    channels: int, outputs: int, kernel: Any, stride: Any, padding: Any, dilation: Any, groups: int, pattern: str,
    path: int,
) -> None:  # fmt: skip
    if path == 2 and (channels % 8 or pattern == "1:8" or cpu_library().isa != "avx512_vbmi"):
        pytest.skip("not a case of the lookup path")
    weight, dense = make_weight((outputs, channels // groups, *kernel), pattern, torch.bfloat16)
    s = make_spikes(3, channels, 9, 8)
    y = OPS.nm_spikes(
        images(s), channels, *weight, list(stride), list(padding), list(dilation), groups, torch.float32, path
    )
    expected = F.conv2d(s, dense, None, stride, padding, dilation, groups).permute(0, 2, 3, 1)
    assert_near(y, finished(expected, weight))


def test_many_inputs_are_taken_in_chunks() -> None:
    """More than a panel in the L2 cache holds, at chunk borders that no segment ends at."""
    for channels, kernel in ((70_000, 1), (1004, 3)):
        weight, dense = make_weight((5, channels, kernel, kernel), "2:4", torch.float32)
        s = make_spikes(1, channels, kernel, kernel, rate=0.05)
        y = OPS.nm_spikes(images(s), channels, *weight, *LINEAR, torch.float32, EVENT)
        assert_near(y, finished(F.conv2d(s, dense).permute(0, 2, 3, 1), weight))


def test_bits_by_stride_and_bits_past_the_channels() -> None:
    weight, dense = make_weight((10, 20, 1, 1), "2:4", torch.float32)
    s = make_spikes(4, 20, 6, 5)
    bits = images(s)
    bits[..., -1] |= 0xF0  # past channel 20: no spikes
    wide = torch.zeros(5, 4, 6, 7, dtype=torch.uint8)
    wide[..., 2:5] = bits.permute(2, 0, 1, 3)[:5]
    y = OPS.nm_spikes(wide[..., 2:5].permute(1, 2, 0, 3), 20, *weight, *LINEAR, torch.float32, EVENT)
    assert_near(y, finished(F.conv2d(s[..., :5], dense).permute(0, 2, 3, 1), weight))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("with_v0", [True, False])
@pytest.mark.parametrize(("steps", "size", "outputs"), [(4, 6, 40), (10, 8, 24), (1, 9, 129), (70, 2, 12)])
@pytest.mark.parametrize("path", [EVENT, 2])
def test_lif_on_the_way_out_is_lif_of_the_sums(
    steps: int, size: int, outputs: int, with_v0: bool, packed: bool, path: int
) -> None:
    if path == 2 and cpu_library().isa != "avx512_vbmi":
        pytest.skip("no lookup path here")
    weight, _ = make_weight((outputs, 16, 3, 3), "2:4", torch.bfloat16)
    bits = images(make_spikes(2 * steps, 16, size, size))
    conv = ([1, 1], [1, 1], [1, 1], 1)
    v0 = torch.randn(2, size, size, outputs) if with_v0 else None
    s, v = OPS.nm_spikes_lif(bits, 16, *weight, *conv, steps, v0, *LIF.values(), packed, torch.bfloat16, path)
    x = OPS.nm_spikes(bits, 16, *weight, *conv, torch.float32, path).view(steps, 2, size, size, outputs)
    expected, expected_v = lif(x, v0, **LIF, backend="cpp")  # type: ignore[arg-type]
    got = unpack_spikes(s, outputs) if packed else s.float()
    assert 0.05 < expected.mean() < 0.95
    assert torch.equal(got.view_as(expected), expected)
    assert torch.equal(v, expected_v)
    if packed and outputs % 8:
        assert not (s[..., -1] >> (outputs % 8)).any()


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8", "1:16", "3:5", "2:2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("masked", [True, False])
def test_compress_and_decompress(pattern: str, dtype: torch.dtype, masked: bool) -> None:
    parsed = NMPattern.parse(pattern)
    weight = torch.randn(33, 6 * parsed.m, generator=torch.Generator().manual_seed(0)).to(dtype)
    mask = nm_mask_by_magnitude(weight, pattern)
    dense = torch.where(mask, weight, torch.where(torch.rand(weight.shape) < 0.5, -0.0, 0.0).to(dtype))
    dense[3] = 0
    expected = CompressedNM.from_dense(dense, pattern, mask if masked else None)
    values, indices, violations = OPS.nm_compress(dense, mask if masked else None, parsed.n, parsed.m)
    assert violations.item() == 0
    assert torch.equal(values, expected.values)
    assert torch.equal(values.signbit(), expected.values.signbit())
    assert torch.equal(indices, expected.indices)
    back = OPS.nm_decompress(values, indices, parsed.n, parsed.m, 33, None, dtype)
    assert torch.equal(back, dense)
    scale = torch.rand(33)
    scaled = OPS.nm_decompress(values, indices, parsed.n, parsed.m, 33, scale, torch.bfloat16)
    assert torch.equal(scaled, (dense.float() * scale[:, None]).bfloat16())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_value_of_eight_bits_is_exact(dtype: torch.dtype) -> None:
    if torch.empty(0, dtype=dtype).element_size() > 1:
        pytest.skip("not eight bits")
    values = torch.arange(256, dtype=torch.uint8).view(dtype)
    codes = torch.full((128 * 4 // 8,), 0b11_01_11_01, dtype=torch.uint8)  # positions 1 and 3
    dense = OPS.nm_decompress(values.view(-1, 2), codes, 2, 4, 4, None, torch.float32)
    assert torch.equal(dense.view(-1, 4)[:, 1::2].reshape(-1), values.float()) or dtype == torch.float8_e4m3fn
    same = torch.isnan(values.float())
    assert torch.equal(dense.view(-1, 4)[:, 1::2].reshape(-1)[~same], values.float()[~same])
    # Through the 16-bit panels of the event path: each input alone.
    bits = pack_spikes(torch.eye(128)).view(128, 1, 1, -1)
    y = OPS.nm_spikes(bits, 128, values.view(-1, 2), codes, 2, 4, [4, 128, 1, 1], None, None, *LINEAR, torch.float32, 1)
    assert torch.equal(y.view(128, 4).T.nan_to_num(7.0), dense.view(4, 128).nan_to_num(7.0))


def test_violations_are_counted() -> None:
    dense = torch.ones(8, 16)
    dense[0] = 0
    assert OPS.nm_compress(dense, None, 2, 4)[2].item() == 7 * 4
    assert OPS.nm_compress(dense, torch.ones(8, 16, dtype=torch.bool), 3, 4)[2].item() == 8 * 4


def test_only_the_rows_that_pick_a_weight_see_its_nan() -> None:
    weight = torch.zeros(3, 8)
    weight[1, 4], weight[2, 0] = float("nan"), float("inf")
    compressed = CompressedNM.from_dense(weight, "2:4")
    s = torch.eye(8)
    arguments = (compressed.values, compressed.indices, 2, 4, [3, 8, 1, 1], None, None)
    y = OPS.nm_spikes(pack_spikes(s).view(8, 1, 1, 1), 8, *arguments, *LINEAR, torch.float32, EVENT).view(8, 3)
    assert torch.equal(y.nan_to_num(9.0, posinf=5.0), weight.T.nan_to_num(9.0, posinf=5.0))


@pytest.mark.parametrize(("batch", "k", "outputs"), [(0, 16, 8), (3, 16, 0), (3, 0, 8), (0, 0, 0)])
def test_sizes_of_zero(batch: int, k: int, outputs: int) -> None:
    weight, _ = make_weight((outputs, k, 1, 1), "2:4" if k and outputs else "dense", torch.bfloat16)
    bits = torch.zeros(batch, 1, 1, (k + 7) // 8, dtype=torch.uint8)
    y = OPS.nm_spikes(bits, k, *weight, *LINEAR, torch.float32, 0)
    assert torch.equal(y, weight[6].expand(batch, 1, 1, outputs))
    s, v = OPS.nm_spikes_lif(bits, k, *weight, *LINEAR, 1, None, *LIF.values(), True, torch.float32, 0)
    assert s.shape == (batch, 1, 1, (outputs + 7) // 8)
    assert v.shape == (batch, 1, 1, outputs)


@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation"), [(3, 1, 1, 1), (2, 2, 0, 1), (3, 2, 2, 2)])
@pytest.mark.parametrize("channels", [8, 13, 64])
def test_windows_of_bits(channels: int, kernel: int, stride: int, padding: int, dilation: int) -> None:
    s = make_spikes(2, channels, 9, 7)
    size = [kernel, kernel], [stride, stride], [padding, padding], [dilation, dilation]
    rows = OPS.spike_im2col(images(s), channels, *size)
    columns = F.unfold(s, kernel, dilation, padding, stride)  # [B, C * kh * kw, L]
    expected = columns.view(2, channels, kernel * kernel, -1).permute(0, 3, 2, 1)
    assert torch.equal(rows, pack_spikes(expected.contiguous()).view(rows.shape))
    for backend in ("cpp", "reference"):
        assert torch.equal(spike_im2col(images(s), kernel, stride, padding, dilation, backend=backend), rows)
    if 2 * padding <= kernel:
        pooled = OPS.spike_max_pool(images(s), *size[:3])
        assert torch.equal(pooled, images(F.max_pool2d(s, kernel, stride, padding)))
        for backend in ("cpp", "reference"):
            assert torch.equal(spike_max_pool(images(s), kernel, stride, padding, backend=backend), pooled)


def test_bad_windows_are_named() -> None:
    bits = torch.zeros(1, 4, 4, 2, dtype=torch.uint8)
    for message, call in (
        ("bits", lambda: spike_im2col(bits.int(), 3)),
        ("stride 1", lambda: spike_im2col(bits.mT, 3)),
        ("larger than the padded height", lambda: spike_im2col(bits, (5, 1))),
        ("dilation", lambda: spike_im2col(bits, 3, dilation=0)),
        ("padding", lambda: spike_max_pool(bits, 2, padding=2)),
        ("stride", lambda: spike_max_pool(bits, 2, (1, 2, 3))),  # type: ignore[arg-type]
    ):
        with pytest.raises(ArgumentError, match=message):
            call()


@pytest.mark.parametrize("few", [1, 5, 16, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("weight_dtype", [torch.bfloat16, torch.int8], ids=str)
def test_dense_activations(few: int, dtype: torch.dtype, weight_dtype: torch.dtype) -> None:
    weight, dense = make_weight((70, 64, 1, 1), "2:4", weight_dtype)
    x = torch.randn(few, 64, generator=torch.Generator().manual_seed(2)).to(dtype)
    y = OPS.nm_dense(x, *weight, 0)
    assert y.dtype == dtype
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    assert_near(y, finished(x.float() @ dense.view(70, 64).T, weight), tolerance)


BAD: dict[str, dict[str, Any]] = {
    "channels does not fit bits": {"bits": torch.zeros(4, 1, 1, 3, dtype=torch.uint8)},
    "channels must be groups": {"weight_shape": [8, 12, 1, 1]},
    "weight_shape must be": {"weight_shape": [8, 16]},
    "m must divide": {"m": 5, "n": 2},
    "n and m must be": {"n": 5},
    "indices must be": {"indices": torch.zeros(3, dtype=torch.uint8)},
    "values must hold": {"values": torch.zeros(3, 2)},
    "scale must be": {"scale": torch.zeros(7)},
    "bias must be": {"bias": torch.zeros(8, dtype=torch.float16)},
    "stride must hold": {"stride": [0, 1]},
    "padding must hold": {"padding": [1]},
    "larger than the padded height": {"weight_shape": [8, 16, 2, 1], "values": torch.zeros(128, 2)},
    "out_dtype must be": {"out_dtype": torch.int32},
    "path": {"path": 9},
    "bits must be": {"bits": torch.zeros(4, 1, 1, 2, dtype=torch.int32)},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments_are_named(message: str) -> None:
    arguments: dict[str, Any] = {
        "bits": torch.zeros(4, 1, 1, 2, dtype=torch.uint8), "channels": 16, "values": torch.zeros(32, 2),
        "indices": torch.full((16,), 0x44, dtype=torch.uint8), "n": 2, "m": 4, "weight_shape": [8, 16, 1, 1],
        "scale": None, "bias": None, "stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1,
        "out_dtype": torch.float32, "path": EVENT,
    }  # fmt: skip
    OPS.nm_spikes(*arguments.values())
    arguments |= BAD[message]
    if "larger" in message:
        arguments["indices"] = torch.full((32,), 0x44, dtype=torch.uint8)
        arguments["values"] = torch.zeros(64, 2)
    with pytest.raises(RuntimeError, match=message):
        OPS.nm_spikes(*arguments.values())


def test_opcheck() -> None:
    weight, _ = make_weight((12, 16, 3, 3), "2:4", torch.bfloat16)
    bits, conv = images(make_spikes(4, 16, 5, 5)), ([1, 1], [1, 1], [1, 1], 1)
    torch.library.opcheck(OPS.nm_spikes.default, (bits, 16, *weight, *conv, torch.float32, 0))
    lif_arguments = (bits, 16, *weight, *conv, 2, None, *LIF.values(), True, torch.float32, 0)
    torch.library.opcheck(OPS.nm_spikes_lif.default, lif_arguments)
    torch.library.opcheck(OPS.nm_decompress.default, (weight[0], weight[1], 2, 4, 12, None, torch.float32))
    torch.library.opcheck(OPS.nm_compress.default, (torch.zeros(4, 8), None, 2, 4))
    torch.library.opcheck(OPS.spike_im2col.default, (bits, 16, [3, 3], *conv[:3]))
    torch.library.opcheck(OPS.spike_max_pool.default, (bits, [2, 2], [2, 2], [0, 0]))


def test_every_instruction_set_and_thread_count_gives_the_same_bits() -> None:
    available = compiled_instruction_sets()
    digests = set()
    for isa in available[: available.index(cpu_library().isa) + 1]:
        environment = {**os.environ, "SNN_CPU_ISA": isa, "OMP_WAIT_POLICY": "PASSIVE"}
        result = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=True)
        name, *of_threads = result.stdout.split()
        assert name == isa
        assert len(of_threads) == 2
        digests.update(of_threads)
    assert len(digests) == 1


def digest_of_results(threads: int) -> str:
    """The hash of results of all kinds."""
    torch.set_num_threads(threads)
    digest = hashlib.sha256()
    for dtype in DTYPES:
        weight, _ = make_weight((300, 72, 3, 3), "2:4", dtype)
        bits = images(make_spikes(8, 72, 9, 9))
        conv = ([1, 1], [1, 1], [1, 1], 1)
        y = OPS.nm_spikes(bits, 72, *weight, *conv, torch.bfloat16, EVENT)
        s, v = OPS.nm_spikes_lif(bits, 72, *weight, *conv, 4, None, *LIF.values(), True, torch.float32, EVENT)
        d = OPS.nm_decompress(*weight[:4], 300, weight[5], torch.float32)
        narrow, _ = make_weight((96, 72, 3, 3), "2:4", dtype)
        layer = OPS.nm_spikes_lif(bits, 72, *narrow, *conv, 4, None, *LIF.values(), True, torch.float32, EVENT)
        for t in (y.float(), s, v, d, *layer):
            digest.update(t.numpy().tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    print(cpu_library().isa, digest_of_results(1), digest_of_results(3))


def test_hostile_sizes_and_positions_are_refused_or_harmless() -> None:
    bits, kept = torch.full((1, 1, 1, 255), 255, dtype=torch.uint8), torch.ones(120, 1)
    beyond = torch.full((120,), 199, dtype=torch.uint8)  # positions past blocks of 136
    convolution = ([1, 1], [0, 0], [1, 1], 1)
    for path in range(5):
        try:
            y = torch.ops.snn_core.nm_spikes(
                bits, 2040, kept, beyond, 1, 136, [8, 2040, 1, 1], None, None, *convolution, torch.float32, path
            )
        except RuntimeError as error:
            assert "path" in str(error)  # noqa: PT017
            continue
        assert y.shape == (1, 1, 1, 8)
    empty = torch.zeros(0, 2)
    with pytest.raises(RuntimeError, match="weight_shape"):
        torch.ops.snn_core.nm_spikes(
            torch.zeros(1, 1, 1, 1, dtype=torch.uint8), 4, empty, torch.zeros(0, dtype=torch.uint8), 2, 4,
            [2**62, 4, 1, 1], None, None, *convolution, torch.float32, 0,
        )  # fmt: skip
    image = torch.ones(1, 4, 4, 1, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="dilation"):
        torch.ops.snn_core.spike_im2col(image, 8, [3, 3], [1, 1], [0, 0], [2**63 - 1, 1])
    with pytest.raises(RuntimeError, match="padding"):
        torch.ops.snn_core.spike_im2col(image, 8, [2, 2], [1, 1], [2**31 - 1, 2**31 - 1], [1, 1])
