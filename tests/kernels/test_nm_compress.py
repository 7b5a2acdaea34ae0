"""CompressedNM: exact inverse, bytes, and refusal of what does not obey the pattern."""

import pytest
import torch

from snn_core.errors import ArgumentError
from snn_core.sparsity import CompressedNM, NMPattern, compressed_nbytes, nm_mask_by_magnitude
from snn_core.kernels.nm_compress.packing import pack_bits, packed_size, unpack_bits

SHAPES = [(3, 80), (2, 80, 3), (5, 80, 3, 2)]


def pruned(shape, pattern, dtype=torch.float32):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    mask = nm_mask_by_magnitude(weight, pattern)
    return torch.where(mask, weight, torch.zeros_like(weight)), mask


def same_bits(a, b):
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(integers), b.contiguous().view(integers))


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [0, 1, 3, 8, 29])
def test_packing_is_inverted(bits, count):
    values = torch.randint(0, 1 << bits, (count,), generator=torch.Generator().manual_seed(bits))
    packed = pack_bits(values, bits)
    assert packed.shape == (packed_size(count, bits),)
    assert torch.equal(unpack_bits(packed, bits, count), values)


def test_two_bit_packing_is_little_endian():
    assert pack_bits(torch.tensor([0, 1, 2, 3, 1]), 2).tolist() == [0b11100100, 0b01]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pattern", ["2:4", "1:4", "2:8", "1:16", "3:5", "4:4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_round_trip(shape, pattern, dtype):
    weight, mask = pruned(shape, pattern, dtype)
    for compressed in (CompressedNM.from_dense(weight, pattern), CompressedNM.from_dense(weight, pattern, mask)):
        assert same_bits(compressed.to_dense(), weight)
        assert compressed.nbytes == compressed_nbytes(shape, pattern, weight.element_size())


def test_size_of_2_4_in_16_bit_is_9_16ths():
    weight, _ = pruned((64, 64, 3, 3), "2:4", torch.bfloat16)
    assert CompressedNM.from_dense(weight, "2:4").nbytes * 16 == weight.nbytes * 9


def test_sparse_blocks_and_negative_zeros_keep_every_bit():
    weight = torch.tensor([[0.0, 0.0, 0.0, 0.0, -0.0, 0.0, 3.0, 0.0], [-0.0, -0.0, 0.0, 0.0, 0.0, 1.0, 0.0, -2.0]])
    compressed = CompressedNM.from_dense(weight, "2:4")
    assert same_bits(compressed.to_dense(), weight)
    assert (compressed.positions().diff(dim=1) > 0).all()


def test_mask_drops_what_it_does_not_keep():
    weight = torch.arange(1.0, 9.0).view(1, 8)
    mask = torch.tensor([[True, False, False, True, False, False, False, True]])
    assert CompressedNM.from_dense(weight, "2:4", mask).to_dense().tolist() == [[1, 0, 0, 4, 0, 0, 0, 8]]


def test_channels_last_weight():
    weight, _ = pruned((4, 16, 3, 3), "2:4")
    assert same_bits(CompressedNM.from_dense(weight.to(memory_format=torch.channels_last), "2:4").to_dense(), weight)


def test_repr_names_the_essentials():
    assert repr(CompressedNM.from_dense(pruned((4, 16), "2:4")[0])).startswith("CompressedNM(2:4, shape=[4, 16]")


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda w: CompressedNM.from_dense(torch.ones(2, 8), "2:4"), "4 of 4 blocks"),
        (lambda w: CompressedNM.from_dense(w, "2:4", torch.ones_like(w, dtype=torch.bool)), "mask breaks"),
        (lambda w: CompressedNM.from_dense(w, "2:4", torch.ones_like(w)), "mask: expected bool"),
        (lambda w: CompressedNM.from_dense(w, "2:4", torch.ones(1, 4, dtype=torch.bool)), "mask: expected"),
        (lambda w: CompressedNM.from_dense(w, "1:16"), "blocks of 16"),
        (lambda w: CompressedNM(w, torch.zeros(1, dtype=torch.uint8), (2, 8), NMPattern(2, 4)), "values: expected"),
        (
            lambda w: CompressedNM(torch.ones(4, 2), torch.zeros(2, dtype=torch.uint8), (2, 8), NMPattern(2, 4)),
            "ascend",
        ),
        (lambda w: CompressedNM(torch.ones(4, 2), torch.zeros(9, dtype=torch.uint8), (2, 8), NMPattern(2, 4)), "uint8"),
        (
            lambda w: CompressedNM(torch.ones(2, 1), torch.tensor([63], dtype=torch.uint8), (2, 5), NMPattern(1, 5)),
            "outside",
        ),
        (
            lambda w: CompressedNM(torch.ones(1, 2), torch.tensor([0xF4], dtype=torch.uint8), (1, 4), NMPattern(2, 4)),
            "padding",
        ),
        (lambda w: pack_bits(torch.tensor([4]), 2), "fit|lie in"),
        (lambda w: pack_bits(torch.tensor([0]), 9), "bits"),
    ],
)
def test_bad_input(call, word):
    with pytest.raises(ArgumentError, match=word):
        call(torch.zeros(2, 8))
