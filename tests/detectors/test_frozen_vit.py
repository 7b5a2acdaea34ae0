"""The frozen transformer: compressed weights, gradients through them, weights from files, bad input."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from snn_core.backbones import FeatureInfo, create, list_backbones
from snn_core.detectors import FrozenLinear, FrozenViT, compress_by_wanda, footprint, freeze, list_models
from snn_core.detectors.adapters import Adapter
from snn_core.detectors.timm_models import import_timm
from snn_core.errors import ArgumentError, BackendUnavailableError, CheckpointError, DataError
from snn_core.kernels.nm_compress import CompressedNM, check_nm, nm_mask_by_magnitude
from snn_core.pruning import create_pruner
from snn_core.sparsity import CompressedLinear, compress, decompress, load_compressed, save_compressed
from tests.detectors import networks
from tests.detectors.networks import TINY, tiny, tiny_sam

timm = import_timm()  # without torchvision's warning


@pytest.fixture
def pictures() -> Tensor:
    return networks.pictures()


def frozen_linear(dtype: torch.dtype = torch.float32) -> tuple[FrozenLinear, nn.Linear]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(24, 32, generator=generator)
    layer = FrozenLinear(
        CompressedNM.from_dense(weight, "2:4", nm_mask_by_magnitude(weight, "2:4")).to(dtype=dtype), weight[:, 0]
    )
    return layer, layer.to_dense(torch.float32)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_frozen_linear_is_the_masked_dense_one_and_so_is_its_gradient(stored: torch.dtype) -> None:
    layer, dense = frozen_linear(stored)
    x = torch.randn(5, 7, 32, generator=torch.Generator().manual_seed(1))
    grad = torch.randn(5, 7, 24, generator=torch.Generator().manual_seed(2))
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [module(value) for module, value in zip((layer, dense), inputs, strict=True)]
    for y in outputs:
        y.backward(grad)
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    torch.testing.assert_close(layer(x), dense(x))  # without a gradient


def test_frozen_linear_keeps_nothing_dense_for_backward() -> None:
    layer, _ = frozen_linear()
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        layer(torch.ones(2, 32, requires_grad=True))
    assert kept == [layer.values.numel(), layer.indices.numel()]


def test_frozen_linear_in_double_precision_autocast_and_compiled() -> None:
    layer, dense = frozen_linear()
    x = torch.randn(3, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    assert torch.autograd.gradcheck(layer.double(), (x,))
    layer, dense = frozen_linear()
    single = x.detach().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(single)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert single.grad is not None
    assert single.grad.dtype == torch.float32
    torch.testing.assert_close(single.grad, dense.weight.sum(0).expand_as(single.grad), atol=0.1, rtol=0.02)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)(single)
    torch.testing.assert_close(compiled, dense(single))
    assert compiled.requires_grad


def test_frozen_weights_changed_before_backward_are_noticed() -> None:
    layer, _ = frozen_linear()
    y = layer(torch.ones(2, 32, requires_grad=True))
    layer.values.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("make", [tiny, tiny_sam])
def test_compressed_network_is_the_masked_dense_one(make: type[FrozenViT]) -> None:
    vit = make().eval()
    size = 16 if make is tiny else 64
    x = torch.randn(2, vit.in_channels, size, size, generator=torch.Generator().manual_seed(0))
    dense = decompress(vit)
    assert len(vit.compressed_layers()) == 8
    assert not any(isinstance(module, FrozenLinear) for module in dense.modules())
    torch.testing.assert_close(vit(x), dense(x))
    assert [tuple(map_.shape) for map_ in vit.forward_features(x)] == [(2, 32, 4, 4)] * 2
    assert [info.stride for info in vit.feature_info] == [4 if make is tiny else 16] * 2
    assert vit(x).shape == (2, 10)


def test_only_what_may_train_has_gradients(pictures: Tensor) -> None:
    vit = tiny(adapters="lora").train()
    vit(pictures).sum().backward()
    trained = {name for name, value in vit.named_parameters() if value.grad is not None}
    assert trained == {name for name, value in vit.named_parameters() if value.requires_grad}
    assert all(".adapters." in name or name.startswith("vit.head.") for name in trained)
    assert not any(module.training for name, module in vit.vit.named_modules() if name.endswith("drop_path1"))


def test_frozen_parts_have_no_dropout_wherever_adapters_stand(pictures: Tensor) -> None:
    rates = dict.fromkeys(("drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"), 0.5)
    vit = tiny(adapters=["lora", "mixture"], model_options=TINY["model_options"] | rates)
    features = vit.eval().forward_features(pictures)
    assert all(map(torch.equal, vit.train().forward_features(pictures), features))  # new adapters add zeros
    trained = [module for module in vit.modules() if isinstance(module, Adapter)]
    assert len(trained) == 8
    assert all(module.training for adapter in trained for module in adapter.modules())
    assert vit.vit.head_drop.training
    assert vit.vit.head.training
    assert not torch.equal(vit(pictures), vit(pictures)), "the classifier trains, and so does the dropout before it"
    assert not any(module.training for module in vit.eval().modules())
    frozen = tiny(num_classes=0, model_options=TINY["model_options"] | rates).train()
    assert torch.equal(frozen(pictures), frozen(pictures))
    unfrozen = tiny(pattern=None, model_options=TINY["model_options"] | rates).requires_grad_(True)
    assert all(module.training for module in unfrozen.train().modules())


def test_gradient_reaches_the_picture_as_through_the_masked_dense_network(pictures: Tensor) -> None:
    vit = tiny()
    dense = decompress(vit)
    gradients = []
    for network in (vit, dense):
        x = pictures.clone().requires_grad_()
        network(x).square().sum().backward()
        gradients.append(x.grad)
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(*gradients)


def test_footprint_counts_dense_parameters_and_stored_bytes() -> None:
    dense, vit = tiny(pattern=None), tiny(dtype="bfloat16")
    assert footprint(vit).parameters == footprint(dense).parameters == sum(p.numel() for p in dense.parameters())
    linears = sum(m.weight.numel() for m in dense.vit.blocks.modules() if isinstance(m, nn.Linear))
    head = sum(p.numel() for p in dense.vit.head.parameters())
    rest = 4 * (footprint(dense).parameters - linears - head)
    assert footprint(vit).frozen_nbytes == rest + linears * 2 * 9 // 16
    assert footprint(vit).dense_nbytes == rest + linears * 2
    assert footprint(vit).trained == head


def test_dense_layers_say_why() -> None:
    assert tiny().dense_layers() == {"vit.patch_embed.proj": "first layer", "vit.head": "classifier, which trains"}
    assert tiny(pattern=None).dense_layers()["vit.blocks.0.attn.qkv"] == "pattern is None"


def test_wanda_keeps_what_its_inputs_make_large(pictures: Tensor) -> None:
    network = nn.Sequential(nn.Sequential(nn.Linear(8, 6, bias=False), nn.Linear(6, 4)), nn.Sequential(nn.Linear(4, 4)))
    model = freeze(nn.Sequential(nn.Flatten(), network))
    weights = {name: layer.weight.clone() for name, layer in network.named_modules() if isinstance(layer, nn.Linear)}
    batches = [torch.randn(4, 1, 2, 4, generator=torch.Generator().manual_seed(s)) for s in range(2)]
    batches = [batch * torch.tensor([1.0, 30, 1, 1]) for batch in batches]
    with pytest.raises(ArgumentError, match=r"blocks\.0\.1 cannot be compressed to 2:4: its 6 inputs"):
        compress_by_wanda(model, network, "2:4", batches)
    assert all(torch.equal(weights[name], network.get_submodule(name).weight) for name in weights)
    network = nn.Sequential(nn.Sequential(nn.Linear(8, 4, bias=False)), nn.Sequential(nn.Linear(4, 4)))
    model, first, second = nn.Sequential(nn.Flatten(), network), network[0][0].weight, network[1][0].weight
    compress_by_wanda(model, network, "2:4", batches)
    x = torch.cat(batches).flatten(1)
    wanted = nm_mask_by_magnitude(first.detach().abs() * x.norm(dim=0), "2:4")
    assert torch.equal(network[0][0].weight.mask(), wanted)
    assert not torch.equal(wanted, nm_mask_by_magnitude(first.detach(), "2:4"))
    # The second layer sees what the compressed first one gives.
    wanted = nm_mask_by_magnitude(second.detach().abs() * (x @ (first.detach() * wanted).T).norm(dim=0), "2:4")
    assert torch.equal(network[1][0].weight.mask(), wanted)


def test_wanda_that_is_interrupted_leaves_all_layers_dense(pictures: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    vit = tiny(pattern=None).train()
    before = {name: type(module) for name, module in vit.named_modules()}

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(vit.vit.norm, "forward", interrupted)  # behind all blocks
    with pytest.raises(KeyboardInterrupt):
        vit.compress_weights("2:4", calibration=pictures)
    monkeypatch.undo()
    assert {name: type(module) for name, module in vit.named_modules()} == before
    assert vit.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in vit.modules())
    assert len(vit.compress_weights("2:4", calibration=pictures).compressed_layers()) == 8


@pytest.mark.parametrize("make", [tiny, tiny_sam])
def test_wanda_of_whole_networks(make: type[FrozenViT]) -> None:
    vit = make(pattern=None)
    size = 16 if make is tiny else 64
    x = torch.randn(4, vit.in_channels, size, size, generator=torch.Generator().manual_seed(0))
    magnitude = copy.deepcopy(vit).compress_weights("2:4").compressed_layers()
    vit.compress_weights("2:4", calibration=x)
    assert all(check_nm(layer.weight.mask(), "2:4") == 0 for layer in vit.compressed_layers().values())
    own = vit.compressed_layers()
    assert len(own) == len(magnitude) == 8
    assert not any(torch.equal(own[name].indices, layer.indices) for name, layer in magnitude.items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in vit.modules())
    with pytest.raises(ArgumentError, match="compressed to 2:4 already"):
        vit.compress_weights("2:4")


@pytest.mark.parametrize("calibration", [[], torch.zeros(0, 1, 16, 16), torch.full((1, 1, 16, 16), float("nan")), [1]])
def test_wanda_refuses_pictures_that_are_none(calibration: object) -> None:
    with pytest.raises(ArgumentError, match="calibration"):
        tiny(pattern=None).compress_weights("2:4", calibration=calibration)


def test_weights_of_timm_from_file_and_state_dict(tmp_path: Path, pictures: Tensor) -> None:
    torch.manual_seed(5)
    original = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, in_chans=1, num_classes=7, **TINY["model_options"]
    ).eval()
    save_file(original.state_dict(), tmp_path / "timm.safetensors")
    vit = tiny(pretrained=tmp_path / "timm.safetensors", num_classes=7, pattern=None).eval()
    assert torch.equal(vit(pictures), original(pictures))
    compressed = tiny(pretrained=original.state_dict(), num_classes=7, adapters=["lora", "global_local"]).eval()
    want = compressed.vit.blocks[0].mlp.fc1.weight
    weight = original.blocks[0].mlp.fc1.weight.detach()
    assert torch.equal(want.to_dense(), weight * nm_mask_by_magnitude(weight, "2:4"))
    other = tiny(pretrained=original.state_dict(), num_classes=3)  # a classifier of its own
    assert torch.equal(other.vit.patch_embed.proj.weight, original.patch_embed.proj.weight)
    assert other(pictures).shape == (3, 3)


def test_weights_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    state = tiny(pattern=None).vit.state_dict()
    del state["norm.bias"]
    state |= {"extra": torch.zeros(1), "blocks.0.attn.proj.weight": torch.zeros(8, 8)}
    with pytest.raises(CheckpointError) as caught:
        tiny(pretrained=state)
    for part in (
        "missing: norm.bias",
        "unexpected: extra",
        "of another shape: blocks.0.attn.proj.weight is [8, 8], the model's [32, 32]",
    ):
        assert part in str(caught.value)
    state = tiny(pattern=None, num_classes=7).vit.state_dict()
    bias = state.pop("head.bias")
    with pytest.raises(CheckpointError, match=r"does not fit FrozenViT: missing: head\.bias$"):
        tiny(pretrained=state, num_classes=7)
    with pytest.raises(CheckpointError, match=r"unexpected: head\.extra"):
        tiny(pretrained=state | {"head.bias": bias, "head.extra": bias}, num_classes=7)
    with pytest.raises(CheckpointError, match="no such file"):
        tiny(pretrained=tmp_path / "missing.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        tiny(pretrained=tmp_path / "bad.safetensors")
    with pytest.raises(ArgumentError, match="pretrained"):
        tiny(pretrained=3)


def test_state_dict_and_files_round_trip(tmp_path: Path, pictures: Tensor) -> None:
    vit = tiny(adapters=["lora", "forensics"]).eval()
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(0.1)
    again = tiny(adapters=["lora", "forensics"], seed=4).eval()
    assert not torch.equal(again(pictures), vit(pictures))
    again.load_state_dict(vit.state_dict())
    assert torch.equal(again(pictures), vit(pictures))
    save_compressed(tmp_path / "vit.safetensors", vit)
    for loaded in (
        tiny(adapters=["lora", "forensics"], pretrained=tmp_path / "vit.safetensors").eval(),
        load_compressed(tmp_path / "vit.safetensors", tiny(adapters=["lora", "forensics"], seed=5)),
    ):
        assert torch.equal(loaded(pictures), vit(pictures))


def test_through_the_common_interface(tmp_path: Path, pictures: Tensor) -> None:
    assert {"vit", "vit-base", "samvit-base"} <= set(list_backbones("*vit*"))
    options = {**TINY, "in_channels": 1, "adapters": [{"form": "lora", "rank": 2}]}
    vit = create("vit-tiny", seed=1, **options)
    assert isinstance(vit, FrozenViT)
    assert vit.spiking is False
    assert vit.feature_info == [FeatureInfo(32, 4, "blocks.0"), FeatureInfo(32, 4, "blocks.1")]
    assert torch.equal(vit(pictures), create("vit-tiny", seed=1, **options)(pictures))
    assert not torch.equal(vit(pictures), create("vit-tiny", seed=2, **options)(pictures))
    save_compressed(tmp_path / "own.safetensors", vit)
    assert torch.equal(load_compressed(tmp_path / "own.safetensors")(pictures), vit(pictures))
    features = create("vit-tiny", tmp_path / "own.safetensors", features_only=True, **options)
    assert all(map(torch.equal, features(pictures), vit.forward_features(pictures)))


@pytest.mark.parametrize("name", ["vit_base_patch16_rope_reg1_gap_256", "vit_relpos_small_patch16_224"])
def test_positions_of_other_kinds(name: str) -> None:
    """Rotary ones, whose attention reads weights past their layer; those of a network with two inputs."""
    vit = FrozenViT(name, num_classes=0, image_size=32, model_options={"embed_dim": 32, "depth": 1, "num_heads": 2})
    small = {layer: reason for layer, reason in vit.dense_layers().items() if ".blocks." in layer}
    assert small == ({"vit.blocks.0.attn.rel_pos.mlp.fc1": "fewer than 4 inputs"} if "relpos" in name else {})
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = decompress(vit.eval())(x)
    torch.testing.assert_close(vit(x), expected)
    torch.testing.assert_close(vit.adapt("lora")(x), expected)


def test_pruned_while_it_trains_then_compressed_and_frozen() -> None:
    vit = tiny(pattern=None, num_classes=4).requires_grad_()
    optimizer = torch.optim.AdamW(vit.parameters(), lr=1e-2)
    pruner = create_pruner("spikenm", vit, pattern="2:4", optimizer=optimizer, total_steps=3)
    dense = {report.name: report.reason for report in pruner.report() if report.state == "dense"}
    assert dense == {"vit.patch_embed.proj": "first layer", "vit.head": "last layer"}
    for seed in range(3):
        x = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        F.cross_entropy(vit(x), torch.arange(4)).backward()
        optimizer.step()
        pruner.step()
    pruner.finalize()
    compressed = compress(vit.eval())
    assert sum(isinstance(part, CompressedLinear) for part in compressed.modules()) == 8
    frozen = tiny(pretrained=vit.vit.state_dict(), num_classes=4).eval()
    with torch.no_grad():
        expected = vit(x)
        assert expected.std(0).min() > 0
        torch.testing.assert_close(compressed(x), expected)
        torch.testing.assert_close(frozen(x), expected)


def test_compiled(pictures: Tensor) -> None:
    """One block with adapters: logits and the gradients of what trains, in one graph."""
    one_block = TINY["model_options"] | {"depth": 1}
    vit = tiny(adapters=["global_local", "mixture"], num_classes=4, model_options=one_block).train()
    for name, parameter in vit.named_parameters():
        if parameter.requires_grad and ".adapters." in name:
            nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    torch._dynamo.reset()
    found = []
    for call in (vit, torch.compile(vit, backend="eager", fullgraph=True)):
        vit.zero_grad()
        torch.manual_seed(0)  # of the router's noise
        logits = call(pictures)
        logits.square().sum().backward()
        found.append([logits, *(p.grad for p in vit.parameters() if p.grad is not None)])
    assert len(found[0]) > 10
    torch.testing.assert_close(*found)


def test_bad_input_is_explained(pictures: Tensor) -> None:
    for call, said in (
        (lambda: FrozenViT("vit_bas_patch16_224"), "nearest: .*vit_base_patch16_224"),
        (lambda: FrozenViT("resnet18"), "none of vit_"),
        (lambda: tiny(in_channels=0), "in_channels is 0"),
        (lambda: tiny(num_classes=-1), "num_classes is -1"),
        (lambda: tiny(dtype="int3"), "dtype is 'int3'; allowed: float32"),
        (lambda: tiny(pattern=None, dtype="bfloat16"), "pattern is None"),
        (
            lambda: tiny(pattern="2:3"),
            "blocks.0.attn.qkv cannot be compressed to 2:3: its 32 inputs are no multiple of 3",
        ),
        (lambda: tiny(out_indices=[1, 0]), "out_indices"),
        (lambda: tiny(out_indices=[2]), "out_indices"),
        (lambda: tiny(model_options={"no_such": 1}), "timm cannot build"),
        (lambda: tiny()(pictures[0]), r"expected floating point \[B, 1, H, W\]"),
        (lambda: tiny()(pictures.expand(-1, 3, -1, -1)), r"expected floating point \[B, 1, H, W\]"),
        (lambda: tiny()(pictures.to(torch.uint8)), "torch.uint8"),
        (lambda: tiny()(pictures[..., :12]), "made for"),
        (lambda: tiny_sam()(torch.zeros(1, 3, 40, 64)), "multiples of the patch"),
        (lambda: tiny(adapters="lora").compress_weights("2:4"), "already"),
    ):
        with pytest.raises(ArgumentError, match=said):
            call()  # type: ignore[no-untyped-call]


def test_timm_missing_or_without_network_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "vit_base_patch16_224" in list_models("vit_base*")

    def no_network(*args: object, **options: object) -> None:
        raise OSError("no route")

    with monkeypatch.context() as patch:
        patch.setattr(timm, "create_model", no_network)
        with pytest.raises(DataError, match=r"vit_tiny_patch16_224.*no route.*safetensors"):
            FrozenViT("vit_tiny_patch16_224", pretrained=True)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(BackendUnavailableError, match=r"pip install .*timm torchvision"):
        FrozenViT("vit_tiny_patch16_224")
