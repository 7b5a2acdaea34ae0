"""``snn report`` on folders that ``snn prune`` and ``snn train`` wrote, figures recomputed from their files."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from snn_core.cli.main import run
from snn_core.sparsity import check_nm, load_compressed, to_blocks
from snn_core.training import evaluate_accuracy, load_checkpoint, load_model
from tests.reports.conftest import check_page

SMALL = ["--set", "data.limit=60", "--set", "model.options.channels=[4,8,8]", "--set", "train.batch_size=20"]


def snn(*arguments: str | Path, code: int = 0) -> None:
    with pytest.raises(SystemExit) as caught:
        run([str(argument) for argument in arguments])
    assert (caught.value.code or 0) == code


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders pruned-0 and dense-0: method and seed."""
    folder = tmp_path_factory.mktemp("runs")
    for command, name in (("prune", "pruned-0"), ("train", "dense-0")):
        snn(command, *SMALL, "--epochs", "3", "--seed", "0", "--output", folder / name, "--json")
    return folder


def another_seed(runs: Path, target: Path) -> list[Path]:
    """The two runs as if repeated with seed 1, with other accuracies."""
    folders = []
    for name, accuracy in (("pruned", 0.75), ("dense", 0.5)):
        folder = target / f"{name}-1"
        shutil.copytree(runs / f"{name}-0", folder)
        result = json.loads((folder / "result.json").read_text())
        (folder / "result.json").write_text(json.dumps(result | {"seed": 1, "accuracy": accuracy}))
        folders.append(folder)
    return folders


def test_page_of_a_pruned_run_says_what_its_files_say(
    runs: Path, tmp_path: Path, digits_small_test: Any, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr("snn_core.cli.report.LATENCY_SECONDS", 0.02)
    folder, page = runs / "pruned-0", tmp_path / "page.html"
    snn("report", folder, "--output", page, "--json")
    printed = json.loads(capsys.readouterr().out)
    data, text = check_page(page.read_text())
    assert data == printed
    result = json.loads((folder / "result.json").read_text())
    assert data["accuracy"] == result["accuracy"]
    assert f"{100 * result['accuracy']:.2f} %" in text
    assert "simulated recordings" in text
    assert data["machine"]["versions"]["torch"] == torch.__version__
    assert data["history"] == result["history"]
    assert data["files"]["compressed.safetensors"] == (folder / "compressed.safetensors").stat().st_size

    model = load_model(folder / "model.safetensors")[0]
    _, others = load_checkpoint(folder / "model.safetensors")
    layers = {layer["name"]: layer for layer in data["layers"]}
    assert list(layers) == ["blocks.0.conv", "blocks.1.conv", "blocks.2.conv", "readout"]
    assert [layer["state"] for layer in layers.values()] == ["dense", "pruned", "pruned", "dense"]
    for name in ("blocks.1.conv", "blocks.2.conv"):
        layer, mask, weight = layers[name], others[f"mask/{name}"], model.get_parameter(f"{name}.weight")
        rows = [tuple(row) for row in to_blocks(mask, 4).reshape(-1, 4).tolist()]
        shares = torch.tensor(list(Counter(rows).values())).double() / len(rows)
        assert layer["mask"]["pattern_entropy"] == pytest.approx(float(-(shares * shares.log2()).sum()))
        assert layer["mask"]["position_frequency"] == pytest.approx(
            [sum(row[i] for row in rows) / len(rows) for i in range(4)]
        )
        assert layer["kept"] == int((weight != 0).sum())
        assert layer["blocks_over_pattern"] == check_nm(weight, "2:4") == 0
        count = weight.numel()
        assert layer["bytes"] == {
            "dense_32": 4 * count, "dense_16": 2 * count, "compressed_32": 2 * count + count // 8,
            "compressed_16": count + count // 8,
        }  # fmt: skip
        assert layer["magnitude"]["mean"] == pytest.approx(weight[mask].abs().mean().item())
        assert layer["neuron"] == name.replace("conv", "neuron")
        assert layer["firing_rate"] == result["energy"]["firing_rates"][layer["neuron"]]
        assert layer["synops"] == pytest.approx(layer["synops_dense"] * layer["kept_fraction"])
    assert layers["readout"]["neuron"] is None
    assert layers["blocks.0.conv"]["binary_input"] is False
    energy = data["energy"]
    assert energy["microjoule"] == pytest.approx(result["energy"]["energy_microjoule"])
    assert energy["microjoule_without_spikes"] == pytest.approx(result["energy"]["dense_energy_microjoule"])
    assert energy["microjoule"] < energy["microjoule_unpruned"] < energy["microjoule_without_spikes"]
    assert "Horowitz" in text
    assert "An estimate" in text
    assert len(page.read_bytes()) < 1_000_000


def test_latency_compares_networks_that_agree(runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr("snn_core.cli.report.LATENCY_SECONDS", 0.02)
    snn("report", runs / "pruned-0", "--json")
    latency = json.loads(capsys.readouterr().out)["latency"]
    assert latency["frames"] == "test recordings"
    assert latency["machine"]["threads"] == torch.get_num_threads()
    assert [batch["batch_size"] for batch in latency["batches"]] == [1, 32]
    for batch in latency["batches"]:
        assert [found["name"] for found in batch["contenders"]] == ["dense", "dense, fused", "compressed, fused"]
        for found in batch["contenders"]:
            assert 0 < found["p25_ms"] <= found["median_ms"] <= found["p75_ms"]
            assert found["calls"] >= 5
            ratio = batch["contenders"][0]["median_ms"] / found["median_ms"]
            assert found["times_as_fast"] == pytest.approx(ratio)
    assert all(entry["same_class"] > 0.9 for entry in latency["agreement"].values())


def test_page_of_a_dense_run(runs: Path, monkeypatch: Any) -> None:
    folder = runs / "dense-0"
    shown: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: shown.append(url) or True)
    snn("report", folder, "--open")
    assert shown == [(folder / "report.html").resolve().as_uri()]
    data, text = check_page((folder / "report.html").read_text())
    assert (data["method"], data["pattern"], data["latency"]) == ("dense", None, None)
    assert {layer["state"] for layer in data["layers"]} == {"dense"}
    assert data["energy"]["microjoule"] == data["energy"]["microjoule_unpruned"]
    assert all(layer["firing_rate"] is not None for layer in data["layers"][:3])
    assert "Masks" not in text
    assert data["notes"] == []


def test_several_runs_are_paired_by_seed(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [runs / "pruned-0", *another_seed(runs, tmp_path), runs / "dense-0"]
    snn("report", *folders, "--output", tmp_path / "all.html", "--json")
    printed = json.loads(capsys.readouterr().out)
    data, text = check_page((tmp_path / "all.html").read_text())
    assert data == printed
    accuracy = {folder.name: json.loads((folder / "result.json").read_text())["accuracy"] for folder in folders}
    differences = [accuracy[f"pruned-{seed}"] - accuracy[f"dense-{seed}"] for seed in (0, 1)]
    (pair,) = data["pairs"]
    assert (pair["label"], pair["base"], pair["pairs"], pair["seeds"]) == ("spikenm 2:4", "dense", 2, [0, 1])
    assert pair["differences"] == pytest.approx(differences)
    assert pair["mean"] == pytest.approx(sum(differences) / 2)
    assert pair["standard_error"] == pytest.approx(abs(differences[0] - differences[1]) / 2)
    assert f"{50 * sum(differences):+.2f}" in text
    assert [group["runs"] for group in data["groups"]] == [2, 2]


def test_latency_without_the_data_is_measured_on_random_frames(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr("snn_core.cli.report.LATENCY_SECONDS", 0.01)
    folder = tmp_path / "moved"
    shutil.copytree(runs / "pruned-0", folder)
    result = json.loads((folder / "result.json").read_text())
    result["config"]["data"]["source"] = str(tmp_path / "absent.zip")
    (folder / "result.json").write_text(json.dumps(result))
    snn("report", folder, "--json")
    assert json.loads(capsys.readouterr().out)["latency"]["frames"].startswith("random counts")
    (folder / "compressed.safetensors").unlink()
    snn("report", folder)
    data, text = check_page((folder / "report.html").read_text())
    assert data["latency"] is None
    assert "compressed.safetensors is missing" in text
    assert "The latency was not measured" in text


def test_firing_rate_and_accuracy_come_from_the_model(runs: Path, digits_small_test: Any) -> None:
    """Not from the same code: the neurons' outputs are caught while the model runs."""
    folder = runs / "pruned-0"
    model = load_model(folder / "model.safetensors")[0]
    from snn_core.datasets import load_frames

    test_set = load_frames("digits-dvs", "test", T=3, limit=60, quiet=True)
    seen: list[torch.Tensor] = []
    model.get_submodule("blocks.1.neuron").register_forward_hook(lambda module, args, output: seen.append(output))
    accuracy = evaluate_accuracy(load_compressed(folder / "compressed.safetensors"), test_set)
    evaluate_accuracy(model, test_set)
    result = json.loads((folder / "result.json").read_text())
    assert result["accuracy"] == accuracy
    rate = float(torch.cat([spikes.flatten() for spikes in seen]).mean())
    assert result["energy"]["firing_rates"]["blocks.1.neuron"] == pytest.approx(rate)


def test_what_cannot_be_reported_is_an_error(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    snn("report", tmp_path / "absent", code=2)
    assert "absent" in capsys.readouterr().err
    folder = tmp_path / "distilled"
    folder.mkdir()
    snn("report", folder, code=4)
    assert "neither result.json nor config.json" in capsys.readouterr().err
    (folder / "config.json").write_text('{"command": "distill", "config": {}}')
    snn("report", folder, code=2)
    error = capsys.readouterr().err
    assert "'snn distill'" in error
    assert "model.safetensors" in error
    (folder / "config.json").write_text('{"command": "prune", "config": {}}')
    snn("report", runs / "dense-0", folder, code=4)
    assert "training_state.safetensors" in capsys.readouterr().err
    (folder / "result.json").write_text('{"command": "prune", ')
    snn("report", folder, code=4)
    assert "result.json is damaged" in capsys.readouterr().err


def test_interrupted_run_shows_how_far_it_came(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(runs / "pruned-0", folder)
    for name in ("result.json", "model.safetensors", "compressed.safetensors"):
        (folder / name).unlink()
    snn("report", folder)
    data, text = check_page((folder / "report.html").read_text())
    assert (data["finished"], data["accuracy"]) == (False, None)
    assert data["progress"] == {"steps_done": 9, "total_steps": 9, "epochs_done": 3, "epochs": 3}
    assert len(data["history"]) == 3
    assert "snn prune --resume --output" in text
    snn("report", folder, runs / "dense-0", "--output", tmp_path / "both.html")
    assert "interrupted" in check_page((tmp_path / "both.html").read_text())[1]
