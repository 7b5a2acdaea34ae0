"""Whole models: made N:M by magnitude, compressed, back again; files of compressed models."""

import copy

import pytest
import torch
from safetensors import safe_open
from torch import nn

from snn_core.backbones import create
from snn_core.errors import ArgumentError, CheckpointError
from snn_core.pruning import create_pruner
from snn_core.seeding import seeded
from snn_core.sparsity import (
    CompressedConv2d,
    CompressedLayer,
    CompressedLinear,
    NMConv2d,
    NMLinear,
    NMPattern,
    check_nm,
    compress,
    decompress,
    load_compressed,
    make_nm,
    nm_mask_by_magnitude,
    plan_compression,
    read_compressed,
    save_compressed,
)

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make_model(seed=0):
    with seeded(seed):
        return nn.Sequential(
            nn.Conv2d(2, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(64, 24), nn.Linear(24, 6)
        ).eval()


def pruned_snn(pattern="2:4", method="random"):
    """What ``snn prune`` hands to ``save_compressed``: a finalized model, its masks and patterns."""
    with seeded(3):
        model = create("conv-snn", num_classes=10, input_size=(12, 12), channels=(8, 16, 16))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        pruner = create_pruner(method, model, pattern=pattern, optimizer=optimizer, total_steps=1)
        model(torch.rand(2, 3, 2, 12, 12)).square().mean().backward()
        optimizer.step()
        pruner.step()
        masks = pruner.finalize()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # so that every layer spikes, untrained as it is
            nn.init.constant_(module.weight, 20)
    return model.eval(), pruner.patterns, masks


def frames():
    return torch.randint(0, 3, (4, 2, 2, 12, 12), generator=generator()).float()


def logits(model, x):
    """Outputs; every layer must have had an input that is not all zero, or nothing would have been compared."""
    inputs = []
    layers = [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d, CompressedLayer))]
    handles = [layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0])) for layer in layers]
    with torch.no_grad():
        result = model(x)
    for handle in handles:
        handle.remove()
    assert len(inputs) >= len(layers)
    assert all(torch.count_nonzero(given) > 0 for given in inputs)
    return result


def kinds(model):
    return [type(module) for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d, CompressedLayer))]


@pytest.mark.parametrize("given", ["nothing", "patterns", "masks", "one pattern"])
def test_a_pruned_spiking_network(given, backend):
    model, patterns, masks = pruned_snn()
    arguments = {
        "nothing": {},
        "patterns": {"patterns": patterns},
        "masks": {"patterns": patterns, "masks": masks},
        "one pattern": {"patterns": "2:4"},
    }[given]
    compressed = compress(model, **arguments, backend=backend)
    assert {name for name, module in compressed.named_modules() if isinstance(module, CompressedLayer)} == set(patterns)
    assert not any(isinstance(module, CompressedLayer) for module in model.modules())
    expected = logits(model, frames())
    torch.testing.assert_close(logits(compressed, frames()), expected, **CLOSE)
    back = decompress(compressed)
    assert kinds(back) == kinds(model)
    for name in patterns:
        assert torch.equal(back.get_submodule(name).weight, model.get_submodule(name).weight)
    assert torch.equal(logits(back, frames()), expected)


@pytest.mark.parametrize("pattern", ["1:4", "1:8", "1:16", "2:4", "2:8"])
def test_the_sparsest_pattern_is_found(pattern):
    model, patterns, _ = pruned_snn(pattern)
    found = {plan.name: str(plan.pattern) for plan in plan_compression(model) if plan.pattern}
    assert found == {name: pattern for name in patterns if model.get_submodule(name).weight.shape[1] % 2 == 0}


def test_plans_say_why_a_layer_stays():
    class Odd(nn.Linear):
        def forward(self, input):
            return input

    model = nn.ModuleDict(
        {
            "dense": nn.Linear(16, 4),
            "odd": Odd(16, 4),
            "narrow": nn.Linear(3, 4),
            "wide": nn.Linear(16, 4).double(),
            "hooked": nn.Linear(16, 4),
            "lazy": nn.LazyLinear(4),
            "attention": nn.MultiheadAttention(16, 2),
            "parametrized": nn.utils.parametrizations.weight_norm(nn.Linear(16, 4)),
            "fine": make_nm(nn.Linear(16, 4)),
        }
    )
    model["hooked"].register_forward_hook(lambda *arguments: None)
    reasons = {plan.name: plan.reason for plan in plan_compression(model)}
    expected = {
        "dense": "no N:M pattern",
        "odd": "forward of its own",
        "narrow": "no multiple",
        "wide": "float64",
        "hooked": "finalize",
        "lazy": "lazy",
        "attention.out_proj": "MultiheadAttention",
        "parametrized": "parametrization",
        "fine": "",
    }
    assert set(reasons) == set(expected)
    assert all(word in reasons[name] for name, word in expected.items())
    assert reasons["fine"] == ""


def test_layers_by_magnitude_in_place_keep_their_parameters():
    model = make_model()
    weight, optimizer = model[2].weight, torch.optim.SGD(model.parameters(), lr=0.1)
    copied = make_nm(model, "2:4", exclude=["5"])
    assert kinds(copied) == [nn.Conv2d, NMConv2d, NMLinear, nn.Linear]
    assert check_nm(weight, "2:4") > 0
    assert make_nm(model, "2:4", exclude=["5"], inplace=True) is model
    assert model[2].weight is weight
    assert any(weight is held for group in optimizer.param_groups for held in group["params"])
    assert check_nm(weight, "2:4") == 0
    x = torch.rand(2, 2, 6, 6, generator=generator())
    assert torch.equal(model(x), copied(x))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_frozen_vision_transformer_in_one_call(backend):
    with seeded(0):
        block = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        vit = nn.Sequential(nn.Linear(12, 32), nn.TransformerEncoder(block, 2), nn.Linear(32, 10)).eval()
    vit.requires_grad_(False)
    masked = make_nm(vit, "2:4", exclude=["2"])
    sparse = make_nm(vit, "2:4", exclude=["2"], compressed=True)
    sparse_again = compress(masked, backend=backend)
    assert kinds(sparse).count(CompressedLinear) == 5
    x = torch.randn(3, 7, 12, generator=generator())
    padding = torch.zeros(3, 7, dtype=torch.bool)
    padding[1, 4:] = True
    with torch.no_grad():  # torch's fused path reads weights without calling the layers
        torch.testing.assert_close(sparse(x), masked(x), **CLOSE)
        torch.testing.assert_close(sparse_again(x), masked(x), **CLOSE)
        hidden = masked[0](x)
        expected, got = (model[1](hidden, src_key_padding_mask=padding)[~padding] for model in (masked, sparse))
        torch.testing.assert_close(got, expected, **CLOSE)
    assert all(not parameter.requires_grad for parameter in sparse.parameters())


def test_transposable_masks_by_magnitude():
    layer = make_nm(nn.Conv2d(8, 16, 3), transposable=True)
    assert check_nm(layer.mask, "2:4") == check_nm(layer.mask.transpose(0, 1), "2:4") == 0


def test_a_compressed_copy_shares_nothing_with_the_model():
    model = make_nm(make_model())
    state = copy.deepcopy(model.state_dict())
    compressed = compress(model)
    held = {tensor.data_ptr() for tensor in compressed.state_dict().values()}
    assert not held & {tensor.data_ptr() for tensor in model.state_dict().values()}
    dense = decompress(compressed)
    assert not held & {tensor.data_ptr() for tensor in dense.state_dict().values()}
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_only_the_mask_says_what_a_masked_layer_keeps():
    layer = make_nm(nn.Linear(8, 4), "1:4")
    with torch.no_grad():
        layer.weight.fill_(1)  # as after loading a dense checkpoint
    x = torch.rand(3, 8, generator=generator())
    for patterns in (None, "1:4", {"": "2:4"}):
        torch.testing.assert_close(compress(layer, patterns)(x), layer(x).detach(), **CLOSE)


def test_shared_layers_stay_shared():
    layer = nn.Linear(8, 8)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    compressed = make_nm(model, compressed=True)
    assert compressed[0] is compressed[2]
    again = decompress(compressed)
    assert again[0] is again[2]
    assert again[0] is not layer
    assert isinstance(compressed[0], CompressedLinear)


def test_in_place_and_modes():
    model = make_nm(make_model().train(), "2:4", inplace=False)
    compressed = compress(model, inplace=True)
    assert compressed is model
    assert not model.training
    assert decompress(model, inplace=True) is model
    assert not any(isinstance(module, CompressedLayer) for module in model.modules())


def test_spikingjelly_layers_in_multi_step_mode(backend):
    layer_module = pytest.importorskip("spikingjelly.activation_based.layer")
    with seeded(0):
        model = nn.Sequential(layer_module.Conv2d(8, 16, 3, step_mode="m"), layer_module.Linear(4, 8, step_mode="m"))
    masked = copy.deepcopy(model)
    for layer in masked:
        layer.weight.data.masked_fill_(~make_nm(layer).mask, 0)
    compressed = compress(masked, backend=backend)
    assert kinds(compressed) == [CompressedConv2d, CompressedLinear]
    x = (torch.rand(3, 2, 8, 6, 6, generator=generator()) < 0.3).float()
    torch.testing.assert_close(compressed(x), masked(x).detach(), **CLOSE)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda m: compress(m), "0: .*multiple.*; 2: .*no N:M pattern"),
        (lambda m: compress(nn.ReLU()), "no Linear or Conv2d"),
        (lambda m: compress(m, {"7": "2:4"}), "patterns: the model has no .*'7'"),
        (lambda m: compress(m, masks={"7": torch.ones(1)}), "masks: the model has no .*'7'"),
        (lambda m: compress(m, {"2": "2:4"}), "layer '2' cannot be compressed to 2:4"),
        (lambda m: compress(m, {"0": "2:4"}), "layer '0'"),
        (lambda m: compress(m, "2:4", {"2": torch.ones(2, dtype=torch.bool)}), "masks: expected shape"),
        (lambda m: compress(make_nm(m), dtype=torch.int32), "dtype torch.int32"),
        (lambda m: decompress(m), "no compressed layer"),
        (lambda m: make_nm(m, "2:4", include=["9"]), "include: '9'"),
        (lambda m: make_nm(m, "2:4", exclude=["9"]), "exclude: '9'"),
        (lambda m: make_nm(m, "2:4", include=["0"]), "layer '0' cannot be made 2:4"),
        (lambda m: make_nm(m, "2:4", exclude=["*"]), "no layer can be made 2:4: 0: excluded"),
        (lambda m: make_nm(m[0]), "the layer: its reduction dimension 2"),
        (lambda m: make_nm(m, "1:8", transposable=True), "N:4"),
        (lambda m: make_nm(m, "2:4", include=["5"], transposable=True), "6 outputs"),
        (lambda m: make_nm(nn.ReLU()), "no Linear or Conv2d"),
    ],
)
def test_bad_input(call, word):
    with pytest.raises(ArgumentError, match=word):
        call(make_model())


# ---- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.int8, torch.float8_e4m3fn], ids=str)
def test_compressed_models_are_saved_and_loaded(tmp_path, dtype):
    model, patterns, masks = pruned_snn()
    compressed = compress(model, patterns, masks, dtype=dtype)
    path = tmp_path / "m.safetensors"
    save_compressed(path, compressed)
    expected = logits(compressed, frames())
    loaded = load_compressed(path, dense=False)
    assert kinds(loaded) == kinds(compressed)
    assert torch.equal(logits(loaded, frames()), expected)
    dense = load_compressed(path)
    assert kinds(dense) == kinds(model)
    torch.testing.assert_close(logits(dense, frames()), expected, **CLOSE)
    into = load_compressed(path, copy.deepcopy(compressed))
    assert torch.equal(logits(into, frames()), expected)
    if dtype is None:
        plain = tmp_path / "plain.safetensors"
        save_compressed(plain, model, patterns, masks)
        with safe_open(plain, "pt") as one, safe_open(path, "pt") as other:
            assert one.metadata() == other.metadata()  # the checksum among it


def test_files_of_masked_layers(tmp_path):
    model = make_nm(make_model(), "2:4")
    with torch.no_grad():
        kept = model[4].mask.nonzero()[0]
        model[4].weight[tuple(kept)] = 0  # kept, and zero: only the mask knows
    path = tmp_path / "m.safetensors"
    content = save_compressed(path, model)
    assert set(content.weights) == {"2.weight", "4.weight", "5.weight"}
    assert not any(name.endswith("mask") for name in content.tensors)
    other = load_compressed(path, make_nm(make_model(seed=1), "2:4"))
    assert all(torch.equal(a, b) for a, b in zip(other.state_dict().values(), model.state_dict().values(), strict=True))
    plain = load_compressed(path, make_model(seed=1))
    assert torch.equal(plain[4].weight, model[4].masked_weight())
    alone = tmp_path / "alone.safetensors"
    save_compressed(alone, model[4])
    assert torch.equal(load_compressed(alone, nn.Linear(64, 24)).weight, model[4].weight)


def test_every_flipped_byte_of_a_scaled_file_is_an_error_or_harmless(tmp_path):
    model = nn.Sequential(make_nm(nn.Linear(8, 4), compressed=True, dtype=torch.int8), nn.BatchNorm1d(4))
    path = tmp_path / "m.safetensors"
    expected = save_compressed(path, model).state_dict()
    original = path.read_bytes()
    assert read_compressed(path).weights["0.weight"].scale is not None
    refused = 0
    for position in range(len(original)):
        damaged = bytearray(original)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        try:
            state = read_compressed(path).state_dict()
        except CheckpointError:
            refused += 1
        else:
            assert set(state) == set(expected)
            assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert refused > 0.95 * len(original)


def test_one_dimensional_convolutions_stay_dense(tmp_path):
    with seeded(0):
        model = nn.Sequential(nn.Conv1d(8, 8, 3), nn.Linear(4, 8)).eval()
    patterns = {"0": "2:4", "1": "1:4"}
    masks = {name: nm_mask_by_magnitude(model.get_submodule(name).weight, text) for name, text in patterns.items()}
    for name, mask in masks.items():
        model.get_submodule(name).weight.data.masked_fill_(~mask, 0)
    save_compressed(tmp_path / "m.safetensors", model, patterns, masks)
    loaded = load_compressed(tmp_path / "m.safetensors", copy.deepcopy(model), dense=False)
    for compressed in (compress(model, patterns, masks), loaded):
        assert [type(layer) for layer in compressed] == [nn.Conv1d, CompressedLinear]
        x = torch.rand(2, 8, 6, generator=generator())
        torch.testing.assert_close(compressed(x), model(x), rtol=1e-5, atol=1e-5)


def test_files_that_do_not_fit_compressed_models(tmp_path):
    model = compress(make_nm(make_model(), "2:4"))
    path = tmp_path / "m.safetensors"
    save_compressed(path, model)
    with pytest.raises(CheckpointError, match=r"2\.indices|2\.values"):
        load_compressed(path, compress(make_nm(make_model(), "1:8")))
    with pytest.raises(CheckpointError, match=r"2\.values is torch\.float32"):
        load_compressed(path, compress(make_nm(make_model(), "2:4"), dtype=torch.bfloat16))
    with pytest.raises(CheckpointError, match=r"2\.scale"):
        load_compressed(path, compress(make_nm(make_model(), "2:4"), dtype=torch.int8))
    with pytest.raises(CheckpointError, match="no layer '2'"):
        load_compressed(path, nn.Sequential(nn.Linear(2, 2)), dense=False)
    with pytest.raises(CheckpointError, match=r"2\.weight has shape"):
        load_compressed(path, nn.Sequential(nn.ReLU(), nn.ReLU(), nn.Linear(2, 2)), dense=False)
    # The same sizes, but positions that mean another block: 2:4 and 4:8 differ in index bits, 1:2 and 2:4 in shape.
    same_size = compress(nn.Linear(8, 4).requires_grad_(False).apply(lambda m: m.weight.zero_()), {"": NMPattern(1, 4)})
    save_compressed(path, same_size)
    with pytest.raises(CheckpointError, match="values"):
        load_compressed(path, make_nm(nn.Linear(8, 4), "2:4", compressed=True))
