"""Pages of runs that are large, odd, incomplete or hostile."""

from __future__ import annotations

import itertools
import json
import math
import re

import numpy as np
import pytest
import torch
from torch import nn

from snn_core import LIF
from snn_core.errors import ArgumentError, CheckpointError
from snn_core.kernels.nm_compress import to_blocks
from snn_core.reports import figures, measure_energy, page
from snn_core.reports.comparison import _what_to_pair, compare_runs
from snn_core.reports.latency import measure_latency, run_latency
from snn_core.reports.run_folder import read_run
from snn_core.reports.run_report import report_run
from snn_core.training import save_checkpoint
from snn_core.training.checkpoint import read_tensors, write_tensors
from tests.reports.conftest import change_result, check_page

HOSTILE = r'<img src=x onerror="alert(1)">&$\a_b$\1</script>'


def render(folder):
    run = read_run(folder)
    report = report_run(run)
    data, text = check_page(page.render_run(report, run))
    assert data == report
    return data, text


@pytest.fixture
def undrawn(monkeypatch):
    """Pages without figures, which take most of the time."""
    monkeypatch.setattr(page, "_figures", lambda report, run: {"curves": "", "layers": "", "masks": [], "weights": ""})


def test_names_are_text_and_never_markup(make_deep):
    names = ("first", HOSTILE, "it's & <b>", 'quote"d')
    folder = make_deep(5, names=names, folder=HOSTILE.replace("/", "|"))
    change_result(folder, data={"name": HOSTILE, "simulated": False}, method=HOSTILE, history=[{HOSTILE: 1.0}])
    data, text = render(folder)
    assert [layer["name"] for layer in data["layers"]][:4] == list(names)
    assert text.count(HOSTILE) >= 4
    assert "real recordings" in text


def test_sixty_layers_stay_readable_and_small(make_deep):
    folder = make_deep(60)
    data, text = render(folder)
    assert len(data["layers"]) == 60
    assert data["totals"]["pruned_layers"] == 58
    assert "6 of 58 pruned layers are drawn" in text
    assert "12 of 60 layers" in text
    for layer in data["layers"]:
        assert layer["name"] in text
    bars = figures.layer_bars(data["layers"])
    bars.canvas.draw()
    boxes = [label.get_window_extent() for label in bars.axes[0].get_yticklabels()]
    assert len(boxes) == 60
    boxes.sort(key=lambda box: box.y0)
    assert all(low.y1 <= high.y0 + 0.5 for low, high in itertools.pairwise(boxes))


def test_the_numbers_of_a_layer(make_conv, undrawn):
    """Recomputed from the weights with plain loops."""
    folder = make_conv(pattern="1:4")
    data, _ = render(folder)
    tensors, _ = read_tensors(folder / "model.safetensors")
    layer = next(layer for layer in data["layers"] if layer["name"] == "blocks.1.conv")
    weight, mask = tensors["model/blocks.1.conv.weight"], tensors["mask/blocks.1.conv"]
    size = weight.numel()
    assert (layer["shape"], layer["weights"], layer["kept"]) == ([8, 4, 3, 3], size, size // 4)
    assert layer["bytes"]["compressed_32"] == size // 4 * 4 + math.ceil(size // 4 * 2 / 8)
    assert layer["bytes"]["compressed_16"] == size // 4 * 2 + math.ceil(size // 4 * 2 / 8)
    blocks = to_blocks(mask, 4).reshape(-1, 4).numpy()
    shares = np.unique(blocks, axis=0, return_counts=True)[1] / len(blocks)
    assert layer["mask"]["pattern_entropy"] == pytest.approx(-(shares * np.log2(shares)).sum())
    kept = np.sort(np.abs(weight.numpy()[mask.numpy()]))
    assert layer["magnitude"]["count"] == len(kept)
    nearest = np.quantile(kept, 0.25, method="nearest")
    assert layer["magnitude"]["quantiles"]["0.25"] == pytest.approx(nearest)
    # 3 x 3 outputs after stem stride and pooling, T = 3: dense products a sample.
    outputs = 3 * 8 * 3 * 3
    assert layer["dense_macs"] == outputs * 4 * 9
    assert layer["synops_dense"] == pytest.approx(layer["dense_macs"] * layer["input_rate"])
    assert layer["synops"] == pytest.approx(layer["synops_dense"] / 4)
    energy = data["energy"]
    macs, acs = data["layers"][0]["macs"], sum(layer["synops"] for layer in data["layers"])
    assert energy["microjoule"] == pytest.approx((4.6 * macs + 0.9 * acs) * 1e-6)


def test_not_a_number_in_weights_and_history(make_conv):
    folder = make_conv(history=[{"epoch": 1, "loss": float("nan")}, {"epoch": 2, "loss": 1.0, "eid": float("inf")}])
    path = folder / "model.safetensors"
    tensors, header = read_tensors(path)
    tensors["model/blocks.1.conv.weight"].view(-1)[:5] = torch.tensor([math.nan, math.inf, -math.inf, math.nan, 0.5])
    header.pop("sha256")
    write_tensors(path, tensors, header)
    data, text = render(folder)
    assert "blocks.1.conv has 4 weights that are NaN or infinite" in text
    assert [record["loss"] for record in data["history"]] == [None, 1.0]
    layer = next(layer for layer in data["layers"] if layer["name"] == "blocks.1.conv")
    assert math.isfinite(layer["magnitude"]["mean"])


def test_files_missing_damaged_and_of_another_version(make_conv, undrawn):
    folder = make_conv()
    whole, _ = render(folder)
    (folder / "compressed.safetensors").unlink()
    data, text = render(folder)
    assert "compressed.safetensors is missing" in text
    assert data["layers"] == whole["layers"]
    latency, why = run_latency(read_run(folder), None)
    assert latency is None
    assert "compressed.safetensors" in why
    (folder / "compressed.safetensors").write_bytes(b"no safetensors file")
    assert "The compressed model cannot be read" in render(folder)[1]
    tensors, header = read_tensors(folder / "model.safetensors")
    header.pop("sha256")
    write_tensors(folder / "model.safetensors", tensors, header | {"version": "99"})
    change_result(folder, version="99.0")
    data, text = render(folder)
    assert "Written by snn_core 99.0" in text
    assert "version '99'" in text
    assert data["accuracy"] == whole["accuracy"]
    assert all(layer["mask"] is None for layer in data["layers"])
    (folder / "model.safetensors").unlink()
    assert "no such file" in render(folder)[1]


def test_masks_come_from_the_compressed_file_where_the_model_is_gone(make_conv, undrawn):
    folder = make_conv()
    whole, _ = render(folder)
    (folder / "model.safetensors").unlink()
    data, _ = render(folder)
    named = {layer["name"]: layer for layer in data["layers"]}
    for layer in whole["layers"]:
        if layer["state"] == "pruned":
            assert named[layer["name"]]["mask"] == layer["mask"]
            assert named[layer["name"]]["magnitude"] == layer["magnitude"]


KEYS = ("history", "energy", "layers", "config", "data", "version", "accuracy", "pattern")


@pytest.mark.parametrize("missing", KEYS)
def test_results_of_other_releases_lack_this_and_that(make_conv, undrawn, missing):
    folder = make_conv()
    change_result(folder, **{missing: None})
    data, _ = render(folder)
    assert data["finished"]


def test_a_result_that_lacks_all_of_it_is_drawn_as_far_as_it_goes(make_conv):
    folder = make_conv()
    change_result(folder, **dict.fromkeys(KEYS))
    data, text = render(folder)
    assert "No epoch was recorded" in text
    assert {"Masks", "Weights"} < set(text.split())
    assert {layer["name"] for layer in data["layers"]} == {"blocks.0.conv", "blocks.1.conv", "blocks.2.conv", "readout"}


def test_values_of_the_wrong_kind_do_not_stop_the_page(make_conv):
    folder = make_conv()
    change_result(
        folder, history={"loss": 1}, layers=[{"name": 3}, "x", {"name": "blocks.1.conv", "pattern": 5}],
        energy={"layers": [{"name": "blocks.1.conv", "acs": "many"}, 7], "firing_rates": []}, accuracy="high",
        seconds="long", config=[1], machine="mine",
    )  # fmt: skip
    data, _ = render(folder)
    assert data["accuracy"] is None
    assert data["energy"] is None


def test_unstructured_masks_have_no_pattern(make_conv):
    folder = make_conv()
    layers = json.loads((folder / "result.json").read_text())["layers"]
    path = folder / "result.json"
    result = json.loads(path.read_text()) | {"method": "magnitude", "compressed_bytes": None}
    path.write_text(json.dumps(result | {"layers": [layer | {"pattern": None} for layer in layers]}))
    (folder / "compressed.safetensors").unlink()
    data, text = render(folder)
    assert "as many weights as 2:4 keeps, unstructured" in text
    assert data["notes"] == []
    assert "no compressed form" in run_latency(read_run(folder), None)[1]
    assert all(layer["mask"] is None and layer["bytes"]["compressed_16"] is None for layer in data["layers"])
    assert data["totals"]["pruned_layers"] == 2


def test_patterns_by_layer(make_conv, undrawn):
    folder = make_conv()
    layers = json.loads((folder / "result.json").read_text())["layers"]
    for layer in layers:
        layer["pattern"] = "1:2" if layer["name"] == "blocks.2.conv" else layer["pattern"]
    change_result(folder, layers=layers)
    data, text = render(folder)
    assert "2:4; by layer: 2:4, 1:2" in text
    patterns = [
        (layer["pattern"], layer["mask"] and len(layer["mask"]["position_frequency"])) for layer in data["layers"]
    ]
    assert patterns == [(None, None), ("2:4", 4), ("1:2", 2), (None, None)]


def test_pictures_are_bounded_and_keep_their_means():
    matrix = torch.rand(1000, 3001, generator=torch.Generator().manual_seed(0))
    cells = figures.average_cells(matrix, (96, 256))
    assert cells.shape[0] <= 96
    assert cells.shape[1] <= 256
    assert cells[0, 0] == pytest.approx(float(matrix[:11, :12].mean()), rel=1e-5)
    assert torch.equal(figures.average_cells(matrix[:5, :7], (96, 256)), matrix[:5, :7])
    weight = torch.arange(2 * 4 * 3 * 3).view(2, 4, 3, 3)
    assert torch.equal(figures.as_matrix(weight).view(2, 3, 3, 1, 4), to_blocks(weight, 4))
    assert figures.spread_choice([str(i) for i in range(60)], 6) == ["0", "12", "24", "35", "47", "59"]
    assert figures.spread_choice(["a", "b"], 6) == ["a", "b"]


def test_latency_of_networks_that_differ():
    class Slow(nn.Module):
        def forward(self, x):
            return (x.flatten(2).mean(0) + 1)[:, :3]

    frames = torch.rand(2, 5, 4)
    measured = measure_latency({"one": Slow(), "other": nn.Sequential(Slow(), nn.Softmax(1))}, frames, seconds=0.0)
    assert [batch["batch_size"] for batch in measured["batches"]] == [1, 5]
    assert measured["agreement"]["one"] == {"largest_difference": 0.0, "same_class": 1.0}
    assert measured["agreement"]["other"]["same_class"] == 1.0
    assert measured["agreement"]["other"]["largest_difference"] > 0.5
    with pytest.raises(ArgumentError, match="nothing to time"):
        measure_latency({}, frames)


def test_the_neuron_behind_a_layer():
    """Also where two layers feed one neuron, and where one neuron does not fit the layer before it."""

    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.first = nn.Linear(4, 6), LIF()
            self.main, self.shortcut, self.joint = nn.Linear(6, 8), nn.Linear(6, 8), LIF()
            self.gate, self.last = nn.Linear(8, 5), LIF()
            self.readout = nn.Linear(8, 3)

        def forward(self, x):
            x = self.first(self.stem(x))
            x = self.joint(self.main(x) + self.shortcut(x))
            self.last(x)  # eight channels: not the gate's
            return self.gate(x).sum() + self.readout(x)

    report = measure_energy(Branches(), [torch.rand(3, 2, 4), torch.rand(3, 2, 4)])
    neurons = {layer.name: layer.neuron for layer in report.layers}
    assert neurons == {"stem": "first", "main": "joint", "shortcut": "joint", "gate": None, "readout": None}


def test_comparison_pairs_only_what_belongs_together(make_conv):
    reports = []
    for index, (method, seed, accuracy, data) in enumerate(
        [
            ("sr-ste", 0, 0.5, "a"), ("sr-ste", 1, 0.6, "a"), ("sr-ste", 2, 0.9, "a"), ("spikenm", 0, 0.7, "a"),
            ("spikenm", 1, 0.65, "a"), ("spikenm", 1, 0.1, "a"), ("spikenm", 2, 0.8, "other"), ("spikenm", 3, 0.8, "a"),
        ]
    ):  # fmt: skip
        folder = make_conv(folder=f"run{index}", seed=seed, accuracy=accuracy)
        result = json.loads((folder / "result.json").read_text())
        change_result(folder, method=method, data=result["data"] | {"train_key": data})
        reports.append(report_run(read_run(folder)))
    comparison = compare_runs(reports)
    (pair,) = comparison["pairs"]
    assert (pair["label"], pair["base"], pair["seeds"]) == ("spikenm 2:4", "sr-ste 2:4", [0, 1])
    assert pair["differences"] == pytest.approx([0.2, 0.05])
    assert pair["mean"] == pytest.approx(0.125)
    assert pair["standard_error"] == pytest.approx(np.std([0.2, 0.05], ddof=1) / math.sqrt(2))
    assert (pair["wins"], pair["ties"], pair["losses"]) == (2, 0, 0)
    assert any("run4 is paired, run5 has the same seed" in note for note in comparison["notes"])
    data, text = check_page(page.render_comparison(comparison))
    assert data == comparison
    assert "+12.50" in text
    assert [group["runs"] for group in comparison["groups"]] == [3, 5]


def test_what_is_paired():
    groups = {
        label: [{"pattern": label.split()[1] if " " in label else None}]
        for label in ("sr-ste 2:4", "dense", "random 1:8", "spikenm 1:8", "sr-ste 1:8", "spikenm 2:4")
    }
    pairs = _what_to_pair(groups)
    assert pairs[:5] == [(label, "dense") for label in groups if label != "dense"]
    assert pairs[5:] == [
        ("spikenm 2:4", "sr-ste 2:4"), ("spikenm 1:8", "random 1:8"), ("spikenm 1:8", "sr-ste 1:8")
    ]  # fmt: skip


def test_settings_that_differ_are_named(make_conv):
    reports = []
    for index, epochs in enumerate((4, 40)):
        folder = make_conv(folder=f"run{index}")
        config = json.loads((folder / "result.json").read_text())["config"]
        change_result(folder, config=config | {"train": {"epochs": epochs, "seed": index}})
        reports.append(report_run(read_run(folder)))
    assert compare_runs(reports)["notes"] == ["The runs differ in train.epochs: 4, 40."]
    with pytest.raises(ArgumentError, match="at least two"):
        compare_runs(reports[:1])


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0, "0"), (827, "827"), (999.7, "1.00 k"), (1234, "1.23 k"), (86_500, "86.5 k"), (347_000, "347 k"),
     (999_999, "1.00 M"), (2.5e9, "2.50 G"), (12.34, "12.3"), (7.0, "7")],
)  # fmt: skip
def test_si(value, text):
    assert page.si(value) == text


def test_a_figure_is_alone_and_follows_the_theme(make_conv):
    folder = make_conv()
    text = page.render_run(report_run(read_run(folder)), read_run(folder))
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert "currentColor" in drawn
    assert "var(--series-1)" in drawn
    assert "#2a6fb0" not in drawn
    assert "<metadata" not in drawn
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_a_checkpoint_alone_is_no_run(tmp_path):
    save_checkpoint(tmp_path / "model.safetensors", nn.Linear(2, 2))
    with pytest.raises(CheckpointError, match="neither result"):
        read_run(tmp_path)
