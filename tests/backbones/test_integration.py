"""Every backbone in the rest of the package: files that make it again, PACE with it as teacher and as student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from snn_core.backbones import create
from snn_core.distillation import (
    DistillConfig,
    EvaluationConfig,
    TeacherConfig,
    distill,
    evaluate_product,
    train_teachers,
)
from snn_core.neurons import SpikingNeuron
from snn_core.sparsity import CompressedLayer, check_nm, load_compressed, make_nm, save_compressed
from snn_core.training import load_model, save_checkpoint
from tests.backbones.cases import CASES, Case
from tests.distillation.conftest import make_bars

TRAINING: dict[str, Any] = {"epochs": 2, "batch_size": 9, "learning_rate": 1e-2}


@pytest.mark.parametrize("case", [case for case in CASES if "34" not in case.name], ids=str)  # of the deep ones' parts
def test_files_make_it_again_with_its_options(case: Case, tmp_path: Path) -> None:
    """A checkpoint, and a compressed file with N:M weights, dense and compressed: the same logits, to the last bit."""
    model = make_nm(create(case.name, seed=1, **case.everything), "2:4")
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = None  # statistics of what comes: fresh ones would leave it silent
    model.train()(case.frames(1, batch=4))
    model.eval()
    x = case.frames()
    assert model.forward_features(x)[-1].std(1).max() > 0, "the last feature map does not depend on the input"
    save_compressed(tmp_path / "compressed.safetensors", model)
    dense = load_compressed(tmp_path / "compressed.safetensors")
    assert type(dense) is type(model)
    assert dense.backbone_options == model.backbone_options
    assert torch.equal(dense(x), model(x))
    assert torch.equal(dense.forward_features(x)[-1], model.forward_features(x)[-1])
    compressed = load_compressed(tmp_path / "compressed.safetensors", dense=False)
    layers = [name for name, part in compressed.named_modules() if isinstance(part, CompressedLayer)]
    assert layers
    assert all(check_nm(dense.get_submodule(name).weight, "2:4") == 0 for name in layers)
    torch.testing.assert_close(compressed(x), model(x), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(compressed.forward_features(x)[-1], model.forward_features(x)[-1], atol=1e-4, rtol=1e-4)
    save_checkpoint(tmp_path / "checkpoint.safetensors", dense)
    again, _ = load_model(tmp_path / "checkpoint.safetensors")
    assert again.backbone_name == case.name
    assert torch.equal(again(x), model(x))


DISTILLED = [case for case in CASES if str(case) in ("sew_resnet18", "spikformer", "sdt")]


@pytest.mark.parametrize("case", DISTILLED, ids=str)
def test_pace_with_it_as_teacher_and_as_student(case: Case, tmp_path: Path) -> None:
    bars = make_bars(3, T=2, size=16)
    options = case.options
    config = TeacherConfig(backbone=case.name, backbone_options=options, count=1, snapshots=(1.0,), training=TRAINING)
    pool = train_teachers(bars, config, cache_dir=tmp_path, quiet=True)
    cached = train_teachers(bars, config, cache_dir=tmp_path, quiet=True)
    assert cached.hashes == pool.hashes
    settings = DistillConfig(
        iterations=2, real_batch=3, num_frequencies=8, num_shifts=1, feature_pool=1, learning_rate=2
    )
    result = distill(bars, cached, settings, quiet=True)
    before = distill(bars, cached, settings.model_copy(update={"learning_rate": 1e-9}), quiet=True)
    assert result.frames.shape == (3, 2, 2, 16, 16)
    assert not torch.equal(result.canvas, before.canvas), "no gradient came through the teacher"
    neurons = [name for name, part in pool[0].model.named_modules() if isinstance(part, SpikingNeuron)]
    assert {key.split("/")[0] for key in result.history[0]} == {"loss", *neurons}
    student = EvaluationConfig(backbone=case.name, backbone_options=options, steps=2, training={"batch_size": 9})
    evaluation = evaluate_product(bars, bars, networks=1, config=student, quiet=True)
    assert evaluation.steps == 2
    assert 0 <= evaluation.mean <= 1


def test_another_backbone_does_not_get_the_options_of_the_default_one() -> None:
    for config in (TeacherConfig, EvaluationConfig):
        assert config(backbone="sdt").backbone_options == {}
        assert config(backbone="sdt", backbone_options={"depth": 1}).backbone_options == {"depth": 1}
        assert config(backbone="conv-snn").backbone_options == config().backbone_options != {}
