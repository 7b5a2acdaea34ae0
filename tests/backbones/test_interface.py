"""What ``create`` promises: features, weights from files, errors that say what is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from snn_core.backbones import Backbone, FeatureInfo, create, list_backbones
from snn_core.backbones.options import check_types, hints_of
from snn_core.errors import ArgumentError, CheckpointError
from snn_core.sparsity import fuse, make_nm, save_compressed
from snn_core.training import save_checkpoint

SMALL: dict[str, Any] = {"channels": [8, 8], "input_size": [12, 12]}


def frames() -> torch.Tensor:
    return torch.randint(0, 5, (3, 2, 2, 12, 12), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_features_of_every_block() -> None:
    model = create("conv-snn", **SMALL).eval()
    assert isinstance(model, Backbone)
    assert model.feature_info == [FeatureInfo(8, 4, "blocks.0"), FeatureInfo(8, 8, "blocks.1")]
    seen: list[torch.Tensor] = []
    for info in model.feature_info:
        model.get_submodule(info.name).register_forward_hook(lambda module, args, output: seen.append(output))
    features = model.forward_features(frames())
    assert [tuple(x.shape) for x in features] == [(3, 2, 8, 3, 3), (3, 2, 8, 1, 1)]
    assert all(torch.equal(x, y) for x, y in zip(features, seen, strict=True))
    averaged = create("conv-snn", average_features=True, **SMALL).eval().forward_features(frames())
    assert all(torch.equal(x, y.mean(0)) for x, y in zip(averaged, features, strict=True))


def test_features_only_has_no_head_and_is_made_again(tmp_path: Path) -> None:
    whole = create("conv-snn", **SMALL).eval()
    save_checkpoint(tmp_path / "whole.safetensors", whole)
    model = create("conv-snn", tmp_path / "whole.safetensors", features_only=True, seed=1, **SMALL).eval()
    expected = whole.forward_features(frames())
    assert all(torch.equal(x, y) for x, y in zip(model(frames()), expected, strict=True))
    assert not any("readout" in key for key in model.state_dict())
    again = create(model.backbone_name, **model.backbone_options)
    assert again.features_only
    assert again.state_dict().keys() == model.state_dict().keys()
    for x, y in zip(fuse(model)(frames()), expected, strict=True):
        torch.testing.assert_close(x, y)
    with pytest.raises(ArgumentError, match="features_only"):
        model.forward_steps(frames())


@pytest.mark.parametrize("kind", ["checkpoint", "compressed", "plain"])
def test_weights_of_files(kind: str, tmp_path: Path) -> None:
    model = make_nm(create("conv-snn", seed=3, **SMALL), "2:4", include=["blocks.1.conv"])
    path, expected = tmp_path / "weights.safetensors", model.state_dict()
    expected = {key: value for key, value in expected.items() if not key.endswith(".mask")}
    if kind == "checkpoint":
        plain = create("conv-snn", **SMALL)
        plain.load_state_dict(expected)
        save_checkpoint(path, plain)
    elif kind == "compressed":
        save_compressed(path, model)
    else:
        safetensors.torch.save_file(expected, path)
    loaded = create("conv-snn", path, **SMALL).state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[key], expected[key]) for key in expected)


def test_weights_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    state = create("conv-snn", **SMALL).state_dict()
    del state["blocks.1.norm.bias"]
    state["blocks.9.conv.weight"] = torch.zeros(1)
    state["readout.weight"] = torch.zeros(10, 4)
    safetensors.torch.save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError) as error:
        create("conv-snn", tmp_path / "x.safetensors", **SMALL)
    for part in (
        "x.safetensors does not fit 'conv-snn'",
        "missing: blocks.1.norm.bias",
        "unexpected: blocks.9.conv.weight",
        "of another shape: readout.weight is [10, 4], the model's [10, 8]",
    ):
        assert part in str(error.value)


def test_weights_of_another_network_of_equal_layers_are_loaded_with_a_warning(tmp_path: Path) -> None:
    model = create("conv-snn", **SMALL)
    model.backbone_name = "other"
    save_checkpoint(tmp_path / "x.safetensors", model)
    with pytest.warns(UserWarning, match="is of 'other'"):
        create("conv-snn", tmp_path / "x.safetensors", **SMALL)


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no weights")
    for name in ("absent", "text"):
        with pytest.raises(CheckpointError, match=name):
            create("conv-snn", tmp_path / name, **SMALL)


def test_nearest_names() -> None:
    with pytest.raises(ArgumentError, match=r"'conv_snm' \(did you mean conv-snn\?\)"):
        create("conv_snm")
    with pytest.raises(ArgumentError, match=r"no option chanels \(did you mean channels"):
        create("conv-snn", chanels=[4])


def test_names_by_pattern() -> None:
    assert "conv-snn" in list_backbones()
    assert list_backbones("conv-*") == ["conv-snn"]
    assert list_backbones("nothing-*") == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_channels": 0}, "in_channels is 0"),
        ({"num_classes": True}, "num_classes is True"),
        ({"input_size": [12]}, "input_size is"),
        ({"input_size": [12, 0]}, "input_size is"),
    ],
)
def test_sizes_that_are_none(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        create("conv-snn", **(SMALL | options))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vgg11", {"hidden": [16]}, r"'vgg11' \(did you mean spiking_vgg11"),
        (
            "spiking_vgg11",
            {"hiden": [16]},
            r"no option hiden \(did you mean hidden\?\); allowed: in_channels, .*, tau,",
        ),
        ("spiking_vgg11", {"hidden": 16}, "'spiking_vgg11': hidden is 16; it must be a list of integers"),
        ("spiking_vgg11", {"hidden": [True]}, r"hidden is \[True\]; it must be a list of integers"),
        ("spiking_vgg11", {"depth": 16}, "no option depth"),
        ("spiking_vgg16", {"pools": 6}, "pools is 6; it must be a number of stages, 0 to 5"),
        ("spiking_vgg16", {"dropout": 1.5}, "dropout is 1.5; it must be a number of at least 0 and below 1"),
        ("spiking_vgg9", {"pool": "mx"}, r"pool is 'mx' \(did you mean max\?\); allowed: max, avg"),
        ("spiking_vgg9", {"decay_input": "no"}, "decay_input is 'no'; it must be True or False"),
        ("spiking_vgg9", {"neuron": 3}, "neuron is 3; allowed: lif, plif, if"),
        ("spiking_vgg9", {"tau": float("nan")}, "tau is nan; it must be a finite number"),
        ("spiking_resnet18", {"stem": "CIFAR10"}, r"stem is 'CIFAR10' \(did you mean cifar\?\)"),
        ("spiking_resnet18", {"channels": 8}, "channels is 8; it must be a list of integers or None"),
        ("sew_resnet18", {"connect_f": "AD"}, r"connect_f is 'AD' \(did you mean .*ADD"),
        ("ms_resnet18", {"connect_f": "AND"}, "no option connect_f"),
        ("spikformer", {"stem": ["dvs"]}, r"stem is \['dvs'\] .*; allowed: cifar, dvs"),
        ("spikformer", {"scale": "1"}, "scale is '1'; it must be a finite number"),
        ("sdt", {"embed_dim": 32.0}, "embed_dim is 32.0; it must be an integer"),
        ("conv-snn", {"input_size": 34}, "input_size is 34; it must be a list of integers"),
        ("conv-snn", {"stem_kernel": 4}, "stem_kernel is 4; it must be an odd positive integer"),
    ],
)
def test_options_that_are_none(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        create(name, **options)


def test_types_of_nets_that_are_registered_elsewhere() -> None:
    """Options of a function with ``**options`` of its own are its own affair."""

    def any_options(**options: Any) -> None:
        raise AssertionError

    def some(size: int, names: Sequence[str] | str = (), other=None) -> None:  # type: ignore[no-untyped-def]
        raise AssertionError

    assert hints_of(any_options) is None
    hints = hints_of(some)
    assert hints is not None
    check_types({"size": 3, "names": ["a"], "other": object()}, hints)
    check_types({"names": "a"}, hints)
    with pytest.raises(ArgumentError, match="names is 3; it must be a list of names or a name"):
        check_types({"names": 3}, hints)
