"""CompressedNM: exact inverse, bytes, and refusal of what does not obey the pattern."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from snn_core.errors import ArgumentError
from snn_core.kernels.native import native_backend
from snn_core.kernels.nm_compress.packing import pack_bits, packed_size, unpack_bits
from snn_core.sparsity import CompressedNM, NMPattern, compressed_nbytes, nm_mask_by_magnitude

needs_native = pytest.mark.skipif(native_backend(torch.device("cpu")) is None, reason="no native CPU library")
SHAPES = [(3, 80), (2, 80, 3), (5, 80, 3, 2)]


def pruned(shape, pattern, dtype=torch.float32):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    mask = nm_mask_by_magnitude(weight, pattern)
    return torch.where(mask, weight, torch.zeros_like(weight)), mask


def same_bits(a, b):
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(integers), b.contiguous().view(integers))


def valid():
    return CompressedNM.from_dense(torch.zeros(2, 8), "2:4")


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


def assorted(shape, pattern, dtype):
    """Zeros of both signs, NaN, infinities and subnormal numbers among the values, blocks of every fill up to N."""
    generator = torch.Generator().manual_seed(7)
    weight = torch.randn(shape, generator=generator)
    special = torch.tensor([0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-40, -1e-7])
    chosen = torch.randint(0, 30, shape, generator=generator)
    weight = torch.where(chosen < 7, special[chosen.clamp(max=6)], weight)
    mask = nm_mask_by_magnitude(torch.rand(shape, generator=generator), pattern)
    zeros = torch.where(torch.rand(shape, generator=generator) < 0.3, -0.0, 0.0)
    return torch.where(mask, weight, zeros).to(dtype), mask


@needs_native
@pytest.mark.parametrize("shape", [(1, 240), (7, 240), (33, 240, 3, 2), (0, 240), (300, 240)])
@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8", "1:16", "3:5", "5:6", "7:48", "4:4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_native_compression_gives_the_same_bits(shape, pattern, dtype):
    weight, mask = assorted(shape, pattern, dtype)
    for given in (None, mask):
        native, plain = (CompressedNM.from_dense(weight, pattern, given, backend=name) for name in ("cpp", "reference"))
        assert torch.equal(native.indices, plain.indices)
        assert same_bits(native.values, plain.values)
        dense = native.to_dense(backend="cpp")
        assert dense.is_contiguous()
        assert same_bits(dense, plain.to_dense(backend="reference"))
        assert native.shape == dense.shape == shape


@needs_native
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.float8_e4m3fn], ids=str
)
@pytest.mark.parametrize("out_dtype", [torch.float32, torch.bfloat16, torch.float16, None], ids=str)
def test_native_decompression_with_a_scale_gives_the_same_bits(dtype, out_dtype):
    compressed = CompressedNM.from_dense(pruned((6, 240, 3), "3:5")[0], "3:5")
    scale = torch.linspace(0.01, 3, 6)
    if dtype.itemsize == 1:
        compressed = compressed.quantize(dtype)
    for weight in (compressed.to(dtype=dtype), compressed.to(dtype=dtype).with_scale(scale)):
        native, plain = (weight.to_dense(out_dtype, backend=name) for name in ("cpp", "reference"))
        assert same_bits(native, plain)


@needs_native
def test_native_compression_counts_what_breaks_the_pattern():
    weight, _ = pruned((300, 240), "2:4")
    weight.view(-1, 4)[::1000] = 1.0
    for backend in ("cpp", "reference"):
        with pytest.raises(ArgumentError, match="weight breaks the 2:4 pattern: 18 of 18000 blocks"):
            CompressedNM.from_dense(weight, "2:4", backend=backend)
        with pytest.raises(ArgumentError, match="mask breaks the 2:4 pattern: 18 of 18000 blocks"):
            CompressedNM.from_dense(weight, "2:4", weight == 1, backend=backend)


@pytest.mark.parametrize("name", ["dense", "cuda", "cpp"])
def test_the_environment_variable_does_not_keep_a_weight_from_changing_its_form(name, monkeypatch):
    monkeypatch.setenv("SNN_BACKEND", name)
    weight, _ = pruned((4, 16), "2:4", torch.float64)
    assert same_bits(CompressedNM.from_dense(weight, "2:4").to_dense(), weight)


def test_size_of_2_4_in_16_bit_is_9_16ths():
    weight, _ = pruned((64, 64, 3, 3), "2:4", torch.bfloat16)
    assert CompressedNM.from_dense(weight, "2:4").nbytes * 16 == weight.nbytes * 9


def test_sparse_blocks_and_negative_zeros_keep_every_bit():
    weight = torch.tensor([[0.0, 0.0, 0.0, 0.0, -0.0, 0.0, 3.0, 0.0], [-0.0, -0.0, 0.0, 0.0, 0.0, 1.0, 0.0, -2.0]])
    compressed = CompressedNM.from_dense(weight, "2:4")
    assert same_bits(compressed.to_dense(), weight)
    assert (compressed.positions().diff(dim=1) > 0).all()


@pytest.mark.parametrize(("dtype", "limit"), [(torch.int8, 127), (torch.float8_e4m3fn, 448)], ids=str)
@pytest.mark.parametrize("shape", [(6, 32), (3, 16, 3, 3)])
def test_quantized(dtype, limit, shape):
    weight, _ = pruned(shape, "2:4")
    weight[1] = 0
    weight[2] *= 1e-42  # a channel of subnormal numbers
    compressed = CompressedNM.from_dense(weight, "2:4")
    quantized = compressed.quantize(dtype)
    assert quantized.dtype == dtype
    assert quantized.scale.shape == shape[:1]
    assert quantized.scale[1] == 1
    assert quantized.scale[0] == weight[0].abs().max() / limit
    assert torch.equal(quantized.indices, compressed.indices)
    dense = quantized.to_dense()
    assert dense.dtype == torch.float32
    # int8: half a step; e4m3: 3 bits of mantissa, or half the smallest subnormal step.
    step = quantized.scale.view(-1, *[1] * (weight.ndim - 1))
    bound = step * 0.5 if dtype == torch.int8 else torch.maximum(weight.abs() / 16, step * 2**-10)
    assert ((dense - weight).abs() <= bound * (1 + 1e-6)).all()
    assert quantized.nbytes == compressed_nbytes(shape, "2:4", 1) + 4 * shape[0]
    # Cast to a wider type: exact, with the same scale; quantized again: the same values.
    assert torch.equal(quantized.to(dtype=torch.bfloat16).to_dense(), dense)
    again = quantized.quantize(dtype)
    assert torch.equal(again.to_dense()[0], dense[0])


def test_scale_multiplies_each_output():
    weight, _ = pruned((3, 8, 2, 2), "2:4", torch.bfloat16)
    scale = torch.tensor([2.0, -0.5, 3.0])
    scaled = CompressedNM.from_dense(weight, "2:4").with_scale(scale)
    assert torch.equal(scaled.to_dense(), weight.float() * scale.view(3, 1, 1, 1))
    assert torch.equal(scaled.with_scale(None).to_dense(), weight)
    assert scaled.to_dense(torch.float64).dtype == torch.float64
    assert "scaled" in repr(scaled)


def test_strided_parts_become_contiguous():
    weight = CompressedNM.from_dense(pruned((4, 16), "2:4")[0]).quantize(torch.int8)
    parts = [torch.stack((part, part), -1)[..., 0] for part in (weight.values, weight.indices, weight.scale)]
    strided = CompressedNM(parts[0], parts[1], weight.shape, weight.pattern, parts[2])
    assert torch.equal(strided.to_dense(), weight.to_dense())
    for again in (strided, weight.with_scale(parts[2])):
        assert all(part.is_contiguous() for part in (again.values, again.indices, again.scale))


def test_moves_and_casts():
    weight, _ = pruned((4, 16), "2:4")
    compressed = CompressedNM.from_dense(weight, "2:4").with_scale(torch.ones(4))
    half = compressed.to("cpu", torch.float16)
    assert half.dtype == torch.float16
    assert half.scale.dtype == torch.float32
    assert torch.equal(half.to_dense(), weight.half().float())
    assert compressed.cpu().device == torch.device("cpu")
    assert compressed.to(dtype=torch.float32).dtype == torch.float32


@pytest.mark.parametrize("kind", ["plain", "scaled", "int8", "e4m3"])
def test_state_dict_round_trip_through_safetensors(tmp_path, kind):
    compressed = CompressedNM.from_dense(pruned((4, 80, 3), "3:5")[0], "3:5")
    if kind != "plain":
        compressed = compressed.quantize({"int8": torch.int8}.get(kind, torch.float8_e4m3fn))
    if kind == "scaled":
        compressed = compressed.to(dtype=torch.float32)
    save_file(compressed.state_dict(), tmp_path / "w.safetensors")
    back = CompressedNM.from_state_dict(load_file(tmp_path / "w.safetensors"))
    assert repr(back) == repr(compressed)
    assert torch.equal(back.to_dense(), compressed.to_dense())


def test_every_flipped_byte_of_a_state_is_refused_or_another_valid_weight():
    """No checksum here: indices and layout must be in range whatever happens, so that no kernel reads elsewhere."""
    state = CompressedNM.from_dense(pruned((2, 10), "3:5")[0], "3:5").quantize(torch.int8).state_dict()
    refused = 0
    for name in ("indices", "layout"):
        stream = state[name].view(torch.uint8)
        for position in range(stream.numel()):
            for flip in (0x01, 0x80, 0xFF):
                stream[position] ^= flip
                try:
                    weight = CompressedNM.from_state_dict(state)
                except ArgumentError:
                    refused += 1
                else:
                    assert int(weight.positions().max()) < weight.pattern.m
                    assert weight.to_dense().shape == weight.shape
                stream[position] ^= flip
    assert refused > 50


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
        (lambda w: CompressedNM.from_dense(w.int(), "2:4"), "dtype torch.int32"),
        (lambda w: valid().with_scale(torch.ones(3)), r"scale: expected float32 \[2\]"),
        (lambda w: valid().with_scale(torch.ones(2).half()), "scale: expected float32"),
        (lambda w: valid().to("meta").with_scale(torch.ones(2)), "scale: on cpu"),
        (lambda w: CompressedNM(valid().values.to("meta"), valid().indices, (2, 8), NMPattern(2, 4)), "indices: on"),
        (lambda w: CompressedNM(valid().values.int(), valid().indices, (2, 8), NMPattern(2, 4)), "values: dtype"),
        (lambda w: valid().to(dtype=torch.int8), "quantize"),
        (lambda w: valid().quantize(torch.float16), "allowed"),
        (lambda w: CompressedNM.from_dense(w + float("nan"), "4:4").quantize(torch.int8), "NaN"),
        (lambda w: CompressedNM.from_state_dict({"values": w}), "state: expected"),
        (lambda w: CompressedNM.from_state_dict(valid().state_dict() | {"more": w}), "state: expected"),
        (lambda w: CompressedNM.from_state_dict(valid().state_dict() | {"layout": w}), "layout"),
        (
            lambda w: CompressedNM.from_state_dict(valid().state_dict() | {"layout": torch.tensor([2, 4, 2, 16])}),
            "valu",
        ),
        (lambda w: CompressedNM.from_dense(w, "2:4", backend="no-such"), "no-such"),
        (lambda w: pack_bits(torch.tensor([4]), 2), "fit|lie in"),
        (lambda w: pack_bits(torch.tensor([0]), 9), "bits"),
    ],
)
def test_bad_input(call, word):
    with pytest.raises(ArgumentError, match=word):
        call(torch.zeros(2, 8))


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_mask_of_odd_bytes_is_read_as_truth(backend):
    odd = torch.zeros(4, 8, dtype=torch.uint8)
    odd[:, 1], odd[:, 6] = 255, 2
    weight = torch.arange(32.0).reshape(4, 8)
    assert torch.equal(
        CompressedNM.from_dense(weight, "2:4", odd.view(torch.bool), backend=backend).to_dense(), weight * (odd != 0)
    )
    with pytest.raises(ArgumentError, match="2:4"):
        CompressedNM.from_dense(weight, "2:4", torch.full((4, 8), 255, dtype=torch.uint8).view(torch.bool))


def test_absurd_shapes_do_not_wrap_around():
    state = {"values": torch.zeros(0, 4), "indices": torch.zeros(0, dtype=torch.uint8)}
    with pytest.raises(ArgumentError, match="elements"):
        CompressedNM.from_state_dict(state | {"layout": torch.tensor([4, 8, 2**62, 8])})
    if native_backend(torch.device("cpu")) is not None:
        with pytest.raises(RuntimeError, match="rows"):
            torch.ops.snn_core.nm_decompress(*state.values(), 4, 8, 2**62, None, torch.float32)
