"""Masked and compressed layers: equal to torch's layers on the masked weight, gradients, state, casts, bad input."""

import copy

import pytest
import torch
from torch import nn

from snn_core.errors import ArgumentError
from snn_core.kernels import CompressedNM, PackedSpikes, pack_spikes
from snn_core.pruning import create_pruner
from snn_core.sparsity import (
    CompressedConv2d,
    CompressedLinear,
    NMConv2d,
    NMLinear,
    check_nm,
    compress,
    make_nm,
    nm_mask_by_magnitude,
)

CONVOLUTIONS = {
    "plain": {},
    "stride and padding": {"stride": 2, "padding": (1, 2), "bias": False},
    "same": {"padding": "same", "dilation": 2},
    "same, even kernel": {"padding": "same", "kernel_size": (4, 3)},
    "valid": {"padding": "valid"},
    "groups": {"groups": 2, "padding": 1},
    "circular": {"padding": 2, "padding_mode": "circular"},
    "reflect": {"padding": (0, 1), "padding_mode": "reflect", "stride": (2, 1)},
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def spikes(*shape):
    return (torch.rand(shape, generator=generator()) < 0.3).float()


def seeded_(layer, seed=1):
    for parameter in layer.parameters():
        nn.init.normal_(parameter, generator=generator(seed))
    return layer


def make_conv(options):
    options = {"kernel_size": 3} | options
    return seeded_(nn.Conv2d(16, 8, **options))


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("options", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_convolutions(options, backend):
    masked = make_nm(make_conv(options), "2:4")
    layer = compress(masked, backend=backend)
    assert isinstance(layer, CompressedConv2d)
    x = spikes(3, 16, 9, 8)
    expected = masked(x).detach()
    packed = PackedSpikes.from_dense(x, -3)
    for given in (x, x.to(memory_format=torch.channels_last), packed, packed.bits):
        torch.testing.assert_close(layer(given), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer(x * 3), masked(x * 3).detach(), rtol=1e-5, atol=1e-5)  # no spikes: dense
    torch.testing.assert_close(layer(x[0]), expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer(PackedSpikes.from_dense(x[0], -3)), expected[0], rtol=1e-5, atol=1e-5)
    sequence = layer(x.view(3, 1, 16, 9, 8))
    torch.testing.assert_close(sequence, expected.unsqueeze(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer(packed.with_leading(3, 1)), sequence, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.to_dense()(x), expected, rtol=1e-5, atol=1e-5)
    assert all(f"{name}={getattr(masked, name)!r}" in repr(layer) for name in options if name != "bias")


@pytest.mark.parametrize("pattern", ["2:4", "1:8", "3:5"])
@pytest.mark.parametrize("bias", [True, False])
def test_linear(pattern, bias, backend):
    masked = make_nm(seeded_(nn.Linear(80, 24, bias=bias)), pattern)
    layer = compress(masked, backend=backend) if pattern != "3:5" else compress(masked, {"": "3:5"}, backend=backend)
    assert isinstance(layer, CompressedLinear)
    assert not layer.training
    x = spikes(2, 3, 80)
    expected = masked(x).detach()
    for given in (x, PackedSpikes.from_dense(x), pack_spikes(x)):
        torch.testing.assert_close(layer(given), expected, rtol=1e-5, atol=1e-5)
    real = torch.randn(5, 80, generator=generator())
    torch.testing.assert_close(layer(real), masked(real).detach(), rtol=1e-5, atol=1e-5)
    assert layer(x[:0]).shape == (0, 3, 24)
    assert f"pattern={pattern}" in repr(layer)


@pytest.mark.parametrize("make", [lambda: nn.Linear(16, 8), lambda: nn.Conv2d(16, 8, 3)], ids=["linear", "conv"])
def test_only_kept_weights_learn(make):
    layer = make_nm(seeded_(make()), "1:4")
    dropped = ~layer.mask
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    plain = copy.deepcopy(layer)
    x = torch.randn(4, 16, 5, 5, generator=generator())
    x = x if layer.weight.ndim == 4 else x[..., 0, 0]
    before = layer.weight.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        layer(x).square().sum().backward()
        assert torch.count_nonzero(layer.weight.grad[dropped]) == 0
        optimizer.step()
    assert torch.count_nonzero(layer.weight[dropped]) == 0
    assert torch.all(layer.weight[~dropped] != before[~dropped])
    # The gradient of the kept weights is that of torch's layer on the same weights.
    reference = make()
    reference.load_state_dict({name: value for name, value in plain.state_dict().items() if name != "mask"})
    reference(x).square().sum().backward()
    plain(x).square().sum().backward()
    assert torch.equal(plain.weight.grad, reference.weight.grad * plain.mask)


def test_a_dropped_infinity_does_no_harm():
    layer = NMLinear(4, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
        layer.set_mask(torch.tensor([[True, True, False, False]]))
        layer.weight[0, 3] = float("inf")
    assert layer(torch.ones(1, 4)).item() == 3.0


def test_masked_layers_under_autocast_and_compile():
    layer, x = seeded_(NMLinear(16, 8)), torch.randn(3, 16, generator=generator())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), layer(x))


def test_compressed_layers_compile_in_one_graph(backend):
    layer = compress(make_nm(seeded_(nn.Linear(16, 8))), backend=backend)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = spikes(3, 16)
    for given in (x, PackedSpikes.from_dense(x)):
        torch.testing.assert_close(compiled(given), layer(given), rtol=1e-5, atol=1e-5)


def test_gradients_pass_through_a_compressed_layer():
    masked = make_nm(seeded_(nn.Linear(16, 8)))
    layer = compress(masked)
    x, y = (spikes(3, 16).requires_grad_() for _ in range(2))
    layer(x).square().sum().backward()
    masked(y).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    assert all(parameter.grad is None for parameter in layer.parameters())


def test_a_pruner_owns_the_mask_while_it_is_attached():
    model = nn.Sequential(nn.Linear(8, 16), make_nm(seeded_(nn.Linear(16, 8)), "2:4"), nn.Linear(8, 8))
    layer = model[1]
    old = layer.mask.clone()
    with torch.no_grad():
        layer.weight.copy_(torch.randn(8, 16, generator=generator(5)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = create_pruner("sr-ste", model, pattern="1:4", optimizer=optimizer, total_steps=2)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(4, 8, generator=generator())).square().sum().backward()
        optimizer.step()
        pruner.step()
    mask = pruner.finalize()["1"]
    assert torch.equal(layer.mask, mask)
    assert not torch.equal(layer.mask, old)
    assert str(layer.pattern) == "1:4"
    assert check_nm(layer.weight, "1:4") == 0


def test_masks_can_be_set():
    layer = NMConv2d(8, 4, 3, pattern="2:4")
    other = ~nm_mask_by_magnitude(layer.weight, "2:4")
    layer.set_mask(other)
    assert torch.equal(layer.mask, other)
    assert torch.count_nonzero(layer.weight[~other]) == 0
    assert str(layer.compressed_weight().pattern) == "2:4"
    for mask, word in [(other.float(), "bool"), (other[:1], "expected bool"), (torch.ones_like(other), "breaks")]:
        with pytest.raises(ArgumentError, match=word):
            layer.set_mask(mask)


def quantized(dtype):
    return compress(make_nm(seeded_(nn.Linear(16, 8))), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int8, torch.float8_e4m3fn], ids=str)
def test_stored_types(dtype, backend):
    masked = make_nm(seeded_(nn.Linear(64, 32)))
    layer = compress(masked, dtype=dtype, backend=backend)
    assert layer.values.dtype == dtype
    assert (layer.scale is None) == (dtype.itemsize == 2)
    x = spikes(5, 64)
    weight = layer.weight.to_dense(torch.float32)
    expected = nn.functional.linear(x, weight, masked.bias.detach())
    torch.testing.assert_close(layer(PackedSpikes.from_dense(x)), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
    assert (weight - masked.masked_weight()).abs().max() < 0.05 * masked.weight.abs().max()
    assert layer.to_dense().weight.dtype == torch.float32
    assert layer.weight_nbytes == layer.weight.nbytes


def test_casts_of_a_model_leave_the_scale_alone():
    layer = quantized(torch.int8)
    scale = layer.scale.clone()
    weight = layer.weight.to_dense()
    layer.bfloat16()
    assert layer.values.dtype == torch.int8
    assert layer.bias.dtype == torch.bfloat16
    assert torch.equal(layer.scale, scale)
    assert torch.equal(layer.weight.to_dense(), weight)
    assert layer(PackedSpikes.from_dense(spikes(2, 16))).dtype == torch.bfloat16
    assert layer.to_dense().weight.dtype == torch.bfloat16
    layer.to("meta")
    assert layer.scale.device.type == layer.values.device.type == "meta"


def test_a_bias_with_gaps_in_memory(backend):
    """The first call of a shape, and the second one, which is planned."""
    masked = make_nm(seeded_(nn.Linear(64, 32)))
    layer, strided = (compress(masked, backend=backend) for _ in range(2))
    strided.bias = nn.Parameter(masked.bias.detach().repeat_interleave(2)[::2], requires_grad=False)
    assert not strided.bias.is_contiguous()
    for x in (spikes(5, 64), PackedSpikes.from_dense(spikes(5, 64)), spikes(5, 64) + 0.5):
        expected = layer(x)
        for _ in range(2):
            torch.testing.assert_close(strided(x), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8], ids=str)
def test_state_round_trip(dtype):
    layer, other = (compress(make_nm(seeded_(nn.Linear(16, 8), seed)), dtype=dtype) for seed in (1, 2))
    x = spikes(3, 16)
    assert not torch.equal(layer(x), other(x))
    other.load_state_dict(copy.deepcopy(layer.state_dict()))
    assert torch.equal(layer(x), other(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("indices", torch.zeros(16, dtype=torch.uint8), "ascend"),
        ("indices", torch.zeros(15, dtype=torch.uint8), r"uint8 \[16\]"),
        ("values", torch.zeros(32, 1), "values: expected shape"),
        ("values", torch.zeros(32, 2, dtype=torch.float16), "are torch.float16"),
        ("scale", torch.ones(8), "scale"),
        ("bias", torch.ones(9), "bias"),
    ],
)
def test_damaged_states_are_refused_and_change_nothing(name, value, word):
    layer = compress(make_nm(seeded_(nn.Linear(16, 8))))
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(RuntimeError, match=word):
        layer.load_state_dict(before | {name: value})
    assert torch.equal(layer.values, before["values"])
    assert torch.equal(layer.indices, before["indices"])


MATRIX = CompressedNM.from_dense(torch.zeros(8, 16))
IMAGE = CompressedNM.from_dense(torch.zeros(8, 16, 3, 3))


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: CompressedLinear(IMAGE), "weight"),
        (lambda: CompressedConv2d(MATRIX), "weight"),
        (lambda: CompressedLinear(MATRIX, torch.zeros(7)), "bias"),
        (lambda: CompressedConv2d(IMAGE, groups=3), "convolution"),
        (lambda: CompressedConv2d(IMAGE, padding="same", stride=2), "convolution"),
        (lambda: CompressedConv2d(IMAGE, padding_mode="odd"), "convolution"),
        (lambda: CompressedLinear(MATRIX)(torch.zeros(2, 15)), "15"),
        (lambda: CompressedLinear(MATRIX)(PackedSpikes.from_dense(torch.zeros(2, 15))), "15"),
        (lambda: CompressedConv2d(IMAGE)(torch.zeros(2, 8, 5, 5)), r"\[2, 8, 5, 5\]"),
        (lambda: CompressedConv2d(IMAGE)(torch.zeros(5, 5)), r"\[.*5, 5\]|dim"),
        (lambda: NMLinear(15, 8), "multiple of 4"),
        (lambda: NMConv2d(15, 8, 3), "multiple of 4"),
        (lambda: NMLinear(16, 8, pattern="5:4"), "5:4"),
    ],
)
def test_bad_input(call, word):
    with pytest.raises(ArgumentError, match=word):
        call()
