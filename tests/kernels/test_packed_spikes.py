"""PackedSpikes: round trips in every layout, the firing rate, and refusal of what is no spike."""

import numpy as np
import pytest
import torch

from snn_core.errors import ArgumentError
from snn_core.kernels.spike_pack import PackedSpikes, is_binary, pack_spikes


def spikes(shape, rate=0.3, dtype=torch.float32):
    return (torch.rand(shape, generator=torch.Generator().manual_seed(0)) < rate).to(dtype)


@pytest.mark.parametrize("size", [1, 7, 8, 9, 64, 77])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.bool, torch.uint8]
)
def test_features(size, dtype):
    s = spikes((3, 2, size), dtype=dtype)
    packed = PackedSpikes.from_dense(s)
    assert packed.shape == s.shape
    assert packed.ndim == 3
    assert torch.equal(packed.bits, pack_spikes(s))
    assert torch.equal(packed.to_dense(dtype), s)
    assert packed.count == int(s.double().sum())
    assert packed.firing_rate == packed.count / s.numel()


@pytest.mark.parametrize("shape", [(2, 13, 5, 7), (3, 2, 16, 4, 4), (9, 2, 3), (1, 8, 1, 1)])
@pytest.mark.parametrize("dim", ["-3", "from the front"])
@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "batch-first"])
def test_images(shape, dim, layout):
    s = spikes(shape)
    if layout == "channels-last":
        s = s.movedim(-3, -1).contiguous().movedim(-1, -3)
    elif layout == "batch-first":
        s = s.transpose(0, 1).contiguous().transpose(0, 1)
    packed = PackedSpikes.from_dense(s, -3 if dim == "-3" else s.ndim - 3)
    assert packed.channels_last
    assert packed.shape == s.shape
    assert packed.bits.shape == (*s.shape[:-3], *s.shape[-2:], -(-s.shape[-3] // 8))
    assert packed.bits.stride(-1) == 1
    dense = packed.to_dense()
    assert torch.equal(dense, s)
    assert dense.movedim(-3, -1).is_contiguous()


def test_leading_dimensions_are_reshaped():
    features, images = PackedSpikes.from_dense(spikes((6, 10))), PackedSpikes.from_dense(spikes((6, 10, 4, 3)), -3)
    assert features.with_leading(2, 3).shape == (2, 3, 10)
    assert images.with_leading(3, -1).shape == (3, 2, 10, 4, 3)
    assert torch.equal(images.with_leading(3, 2).to_dense().flatten(0, 1), images.to_dense())


@pytest.mark.parametrize("shape", [(0,), (0, 9), (3, 0)])
def test_empty(shape):
    packed = PackedSpikes.from_dense(torch.zeros(shape))
    assert packed.firing_rate == 0.0
    assert packed.to_dense().shape == shape


@pytest.mark.parametrize("shape", [(0, 16, 4, 4), (2, 3, 4, 4), (2, 16, 0, 4)])
def test_the_last_stride_is_always_one(shape):
    packed = PackedSpikes.from_dense(spikes(shape), -3)
    assert packed.bits.stride(-1) == 1
    assert torch.equal(packed.to_dense(), spikes(shape))
    transposed = packed.bits.movedim(-1, 1).contiguous().movedim(1, -1)
    if packed.bits.shape[-1] == 1 or packed.bits.numel() == 0:
        again = PackedSpikes(transposed, shape[1], channels_last=True)
        assert again.bits.stride(-1) == 1
        assert torch.equal(again.to_dense(), spikes(shape))


@pytest.mark.parametrize("size", [3, 64, 1001])
def test_both_ways_of_counting(size, monkeypatch):
    s = spikes((5, size))
    expected = int(s.sum())
    assert PackedSpikes.from_dense(s).count == expected
    strided = PackedSpikes.from_dense(torch.cat((s, s)))
    assert PackedSpikes(strided.bits[::2], size).count == int(torch.cat((s, s))[::2].sum())
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert PackedSpikes.from_dense(s).count == expected


def test_negative_zero_is_no_spike():
    packed = PackedSpikes.from_dense(torch.tensor([[-0.0, 1.0, 0.0]]))
    assert packed.to_dense().tolist() == [[0.0, 1.0, 0.0]]


@pytest.mark.parametrize("value", [2.0, 0.5, -1.0, float("nan"), float("inf")])
def test_other_values_are_refused_unless_told(value):
    s = spikes((2, 9))
    assert is_binary(s)
    s[1, 4] = value
    assert not is_binary(s)
    with pytest.raises(ArgumentError, match=r"s: holds values other than 0 and 1 \("):
        PackedSpikes.from_dense(s)
    assert torch.equal(PackedSpikes.from_dense(s, check=False).to_dense(), (s != 0).float())


def test_moves_and_says_what_it_is():
    packed = PackedSpikes.from_dense(spikes((2, 9, 4, 4)), 1).to("cpu")
    assert repr(packed) == "PackedSpikes(shape=[2, 9, 4, 4], channels_last, device='cpu', nbytes=64)"
    assert packed.device == torch.device("cpu")


def test_passes_in_and_out_of_compiled_graphs():
    @torch.compile(fullgraph=True, backend="aot_eager")
    def packs(s):
        return PackedSpikes.from_dense(s, -3, check=False)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def unpacks(packed):
        return packed.with_leading(1, 2).to_dense()

    s = spikes((2, 10, 4, 3))
    packed = packs(s)
    assert isinstance(packed, PackedSpikes)
    assert packed.count == int(s.sum())
    assert torch.equal(unpacks(packed)[0], s)


def test_sums_of_spikes_are_found_wherever_they_are():
    s = torch.zeros(3, 1 << 18)
    assert PackedSpikes.try_from_dense(s).count == 0
    for position in (0, 1 << 18, s.numel() - 1):
        s.view(-1)[position] = 2
        assert not is_binary(s)
        assert PackedSpikes.try_from_dense(s) is None
        assert not is_binary(s.T)
        s.view(-1)[position] = -0.0
        assert is_binary(s)


BITS = torch.zeros(2, 3, 4, 2, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: PackedSpikes(BITS.float(), 16), "uint8"),
        (lambda: PackedSpikes([0], 16), "list"),
        (lambda: PackedSpikes(BITS, 17), "for 17 spikes"),
        (lambda: PackedSpikes(BITS, 8), "for 8 spikes"),
        (lambda: PackedSpikes(BITS, -1), "size"),
        (lambda: PackedSpikes(BITS, True), "size"),
        (lambda: PackedSpikes(BITS[0, 0], 16, channels_last=True), "H, W"),
        (lambda: PackedSpikes(torch.tensor(0, dtype=torch.uint8), 1), "shape"),
        (lambda: PackedSpikes(BITS.transpose(-1, -2)[..., :2], 16), "stride 1"),
        (lambda: PackedSpikes(torch.full((2, 2), 255, dtype=torch.uint8), 15), "beyond size 15"),
        (lambda: PackedSpikes.from_dense(torch.zeros(2, 3, 4, 5), 0), "dim"),
        (lambda: PackedSpikes.from_dense(torch.zeros(2, 3, 4, 5), -2), "dim"),
        (lambda: PackedSpikes.from_dense(torch.zeros(2), -3), "dim"),
        (lambda: PackedSpikes.from_dense(torch.zeros(2, dtype=torch.int32)), "dtype"),
    ],
)
def test_bad_input(call, word):
    with pytest.raises(ArgumentError, match=word):
        call()
