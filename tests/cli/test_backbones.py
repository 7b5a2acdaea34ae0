"""``--backbone`` and ``--backbone-option`` of the commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from snn_core.training import load_model
from tests.cli.test_commands import as_json, snn

DATA = ["--set", "data.limit=40", "--set", "train.batch_size=20", "--epochs", "1", "-T", "2"]
TINY = ["--backbone", "sdt", "--backbone-option", "embed_dim=32", "--backbone-option", "depth=1"]


def test_train_another_backbone(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    report = as_json(capsys, "train", *DATA, *TINY, "--output", tmp_path / "run")
    assert report["config"]["model"] == {"name": "sdt", "options": {"embed_dim": 32, "depth": 1}}
    assert report["energy"]["macs"] > 0
    model, _ = load_model(tmp_path / "run/model.safetensors")
    assert set(report["energy"]["firing_rates"]) == {name for name, _ in model.spiking_layers()}
    assert (len(model.blocks), model.widths[-1], model.encoder.frame) == (1, 32, (2, 34, 34))
    again = as_json(capsys, "evaluate", tmp_path / "run/model.safetensors", *DATA[:2], "--output", tmp_path / "e")
    assert again["accuracy"] == report["accuracy"]


def test_prune_another_backbone(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = ("stem=dvs", "num_heads=4")
    network = ["--backbone", "spikformer", *TINY[2:], *(f"--backbone-option={option}" for option in options)]
    report = as_json(capsys, "prune", *DATA, *network, "--output", tmp_path / "run")
    assert report["reloaded_logits_identical"] is True
    pruned = [layer["name"] for layer in report["layers"] if layer["state"] == "pruned"]
    assert {"blocks.0.attention.query.conv", "blocks.0.fc1.conv", "stem.stages.3.conv"} <= set(pruned)
    assert report["compressed_bytes"] < report["dense_bytes"]
    again = as_json(capsys, "evaluate", tmp_path / "run/compressed.safetensors", *DATA[:2], "--output", tmp_path / "e")
    assert again["accuracy"] == pytest.approx(report["accuracy"], abs=1 / 40)  # products in another order
    shown = as_json(capsys, "report", tmp_path / "run")
    assert report["energy"]["products"][0]["dense_macs"] > 0
    assert shown["totals"]["synops"] == pytest.approx(report["energy"]["synops"])
    assert shown["energy"]["microjoule_without_spikes"] == pytest.approx(report["energy"]["dense_energy_microjoule"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--backbone", "spikformr"], ["'spikformr' (did you mean spikformer"]),
        (["--backbone", "sdt", "--backbone-option", "embed_dims=32"], ["no option embed_dims (did you mean embed_dim"]),
        (
            ["--backbone", "sdt", "--backbone-option", "embed_dim"],
            ["--backbone-option 'embed_dim': expected key=value"],
        ),
        (["--backbone", "vit-tiny"], ["'vit-tiny' takes pictures", "conv-snn", "spikformer"]),
        (["--backbone-option", "features_only=true"], ["features_only"]),
        (["--backbone", "sdt", "--backbone-option", "embed_dim=33"], ["embed_dim is 33; it must be a multiple of 8"]),
    ],
)
def test_backbones_that_are_none(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for command in ("train", "prune"):
        _, error = snn(capsys, command, *DATA, *arguments, "--output", tmp_path / command, code=2)
        assert all(word in error for word in words)


def test_an_unknown_backbone_is_refused_before_data_are_read(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    output = ["--output", tmp_path / "run"]
    _, error = snn(capsys, "train", "--backbone", "resnet", "--data", tmp_path / "none", *output, code=2)
    assert "backbone is 'resnet'" in error
    snn(capsys, "train", "--data", tmp_path / "none", *output, code=3)
