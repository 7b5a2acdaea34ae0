"""benchmarks/pruning.py: its statistics on made-up numbers, its grid, and an interrupted one end to end."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from snn_core.datasets import FrameDataset, info
from snn_core.errors import ArgumentError

ROOT = Path(__file__).resolve().parent.parent
MODULES = ("pruning", "pruning_report", "pruning_run", "pruning_statistics", "pruning_studies")
CHANGES = ["--set", "train_limit=50", "test_limit=30", "train.epochs=1", "model.channels=[8,8,8]"]
TINY = [
    "--studies", "digits", "--patterns", "1:8", "--code", "test", "--methods", "dense", "sr-ste", "spikenm",
    "spikenm/no-eid",
]  # fmt: skip


#: The script, which after its second run gets what Ctrl-C sends: to all of its processes.
INTERRUPTING = """
import os, signal, sys
sys.path.insert(0, "benchmarks")
import common, pruning

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits that it is ignored

def interrupting(*values, **options):
    print(*values, **options)
    if str(values[0]).startswith("2/"):
        os.killpg(0, signal.SIGINT)

common.print = interrupting
sys.exit(pruning.main())
"""


@pytest.fixture(scope="module")
def scripts() -> Iterator[SimpleNamespace]:
    """The benchmark's modules, in this process: starting another takes longer than what is tested."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        loaded: dict[str, ModuleType] = {name: importlib.import_module(name) for name in MODULES}
        yield SimpleNamespace(**loaded)
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(ROOT / "benchmarks")):
            del sys.modules[name]


def arguments(folder: Path, *more: str) -> list[str]:
    return [*TINY, *CHANGES, *more, "--work", str(folder / "work"), "--results", str(folder / "results")]


def make(scripts: SimpleNamespace, capsys: pytest.CaptureFixture[str], *given: str) -> tuple[str, dict[str, Any]]:
    """Run the script with these arguments; what it printed, and its JSON."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["pruning.py", *given, "--processes", "0"])
        assert scripts.pruning.main() == 0
    results = Path(given[given.index("--results") + 1])
    return capsys.readouterr().out, json.loads((results / "pruning_digits.json").read_text())


def run_of(method: str, pattern: str, seed: int, fold: Any, accuracy: float) -> dict[str, Any]:
    result = {"accuracy": accuracy, "seconds": 1.0}
    return {"method": method, "pattern": pattern, "seed": seed, "fold": fold, "result": result}


@pytest.mark.parametrize("count", [2, 5, 12])
def test_paired_differences_are_those_of_scipy(scripts: SimpleNamespace, count: int) -> None:
    values = np.random.default_rng(count).normal(0.01, 0.02, count).tolist()
    row = scripts.pruning_statistics.paired(values)
    one_sided = stats.ttest_1samp(values, 0, alternative="greater").confidence_interval(0.95)
    assert row["lower_95"] == pytest.approx(one_sided.low)
    both = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert row["two_sided_95"] == pytest.approx((both.high - both.low) / 2)
    assert row["standard_error"] == pytest.approx(stats.sem(values))
    assert (row["mean"], row["std"]) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert row["count"] == count


def test_one_pair_has_no_bound(scripts: SimpleNamespace) -> None:
    row = scripts.pruning_statistics.paired([0.5])
    assert row["mean"] == 0.5
    assert row["lower_95"] is row["standard_error"] is row["two_sided_95"] is None


def test_a_pair_takes_two_finished_runs(scripts: SimpleNamespace) -> None:
    cells = [run_of("dense", "-", seed, "test", 0.8 + seed / 100) for seed in range(4)]
    cells += [run_of("sr-ste", "1:8", seed, "test", 0.7 + seed / 100) for seed in range(4)]
    cells += [run_of("spikenm", "1:8", seed, "test", 0.72 + seed / 100 + 0.01 * (seed % 2)) for seed in range(3)]
    failed = run_of("spikenm", "1:8", 3, "test", 0.0) | {"result": {"failed": "loss became nan"}}
    rows = {row["method"]: row for row in scripts.pruning_statistics.tabulate([*cells, failed])}
    spikenm = rows["spikenm"]
    assert [spikenm[name]["count"] for name in ("accuracy", "minus_dense", "minus_sr_ste")] == [3, 3, 3]
    assert [rows[method]["failed"] for method in ("dense", "sr-ste", "spikenm")] == [0, 0, 1]
    assert spikenm["minus_sr_ste"]["mean"] == pytest.approx(0.07 / 3)
    assert spikenm["minus_dense"]["mean"] == pytest.approx(0.07 / 3 - 0.1)
    assert rows["sr-ste"]["spikenm_minus"] == spikenm["minus_sr_ste"]
    assert "minus_sr_ste" not in rows["sr-ste"]
    assert not {"minus_dense", "minus_sr_ste", "spikenm_minus"} & set(rows["dense"])


def test_folds_are_averaged_within_a_seed(scripts: SimpleNamespace) -> None:
    """Pairs are seeds, since folds share training samples; the test split stands apart."""
    keys = [(seed, fold) for seed in (0, 1) for fold in (0, 1, "test")]
    cells = [run_of("dense", "-", seed, fold, 0.9) for seed, fold in keys]
    cells += [
        run_of("spikenm", "1:8", seed, fold, 0.3 if fold == "test" else 0.8 + 0.1 * seed + 0.02 * (fold == 1))
        for seed, fold in keys
    ]
    row = scripts.pruning_statistics.tabulate(cells)[1]
    assert (row["accuracy"]["count"], row["accuracy"]["mean"]) == (2, pytest.approx(0.86))
    assert row["test"]["mean"] == pytest.approx(0.3)
    assert (row["minus_dense"]["count"], row["minus_dense"]["mean"]) == (2, pytest.approx(-0.04))


def test_agreement_of_masks(scripts: SimpleNamespace) -> None:
    """Equal masks agree wholly, random ones as chance has it, and half of each lies between."""
    random = np.random.default_rng(0)
    agreement = scripts.pruning_statistics.agreement

    def mask() -> np.ndarray:
        chosen = np.zeros((4000, 8), bool)
        chosen[np.arange(4000), random.integers(0, 8, 4000)] = True
        return chosen

    same = mask()
    whole = agreement({0: [{"a": same}, {"a": same}], 1: [{"a": same}, {"a": same}]})
    assert (whole["overlap"]["mean"], whole["above_chance"], whole["runs"]) == (1, 1, [2, 2])
    none = agreement({0: [{"a": mask(), "b": mask()} for _ in range(3)], 1: [{"a": mask(), "b": mask()}]})
    assert none["chance"] == 1 / 8
    assert abs(none["above_chance"]) < 0.02
    assert none["overlap"]["count"] == 1
    half = agreement({0: [{"a": same, "b": mask()} for _ in range(2)]})
    assert half["above_chance"] == pytest.approx(0.5, abs=0.02)
    assert agreement({0: [{"a": same}]}) == {}
    overlap = scripts.pruning_statistics.overlap({"a": np.array([True, True])}, {"a": np.array([True, False])})
    assert overlap == 0.5


def test_a_grid_comes_in_pairs(scripts: SimpleNamespace) -> None:
    cells = scripts.pruning.grid(
        scripts.pruning_studies.STUDIES["nmnist"], ["spikenm", "dense", "sr-ste"], [100, 101], ""
    )
    order = [(cell["seed"], str(cell["fold"])) for cell in cells]
    assert order == sorted(order)
    assert len(set(order)) == 12
    assert [cell["method"] for cell in cells[:3]] == ["dense", "spikenm", "sr-ste"]
    assert len(cells) == 12 * (1 + 2 * 5)
    assert not any(cell["tuning"] for cell in cells)


def test_tuning_never_sees_what_is_reported(scripts: SimpleNamespace) -> None:
    studies, parts = scripts.pruning_studies.STUDIES, scripts.pruning_run.parts
    for name, study in studies.items():
        tuned = scripts.pruning.grid(study, ["dense"], [0], "")
        assert tuned, name
        assert all(cell["tuning"] and cell["fold"] != "test" for cell in tuned), name
    settings = studies["digits"].changed(["train_size=80", "train_limit=200"]).cell_settings("dense")
    (train, validation), other, same = (parts(settings, "validation", seed, True) for seed in (3, 4, 3))
    assert (len(train), len(validation)) == (80, 40)
    assert not set(train.ids) & set(validation.ids)
    assert other[1].ids == validation.ids
    assert set(other[0].ids) != set(train.ids) == set(same[0].ids)
    folds = studies["digits"].changed(["folds=5"]).cell_settings("dense")
    cut = [set(parts(folds, 0, 0, tuning)[1].ids) for tuning in (False, True)]
    assert cut[0] != cut[1]


def test_settings_of_studies_and_methods(scripts: SimpleNamespace, tmp_path: Path) -> None:
    studies = scripts.pruning_studies
    study = studies.STUDIES["digits"]
    tuned = study.changed(["methods.spikenm.eta=0.1", 'patterns=["2:4"]', "train.epochs=7"])
    assert tuned.prune_config("spikenm").eta == tuned.prune_config("spikenm/no-eid").eta == 0.1
    assert tuned.prune_config("sr-ste").eta == study.prune_config("sr-ste").eta != 0.1
    assert tuned.prune_config("spikenm/no-noise").eta == 0
    assert tuned.prune_config("spikenm/no-eid").eid_weight == 0
    assert (tuned.train_config(5).epochs, tuned.train_config(5).seed, tuned.patterns) == (7, 5, ("2:4",))
    assert tuned.cell_settings("sr-ste")["prune"] == study.cell_settings("sr-ste")["prune"]
    assert study.methods == {}
    (tmp_path / "mine.json").write_text(json.dumps(vars(tuned) | {"name": "mine"}))
    assert studies.get_study(str(tmp_path / "mine.json")) == tuned.changed(["name=mine"])
    (tmp_path / "bad.json").write_text('{"name": "x", "epochs": 3}')
    for bad in (
        lambda: study.changed(["epochs=3"]),
        lambda: study.changed(["train"]),
        lambda: study.changed(["train="]),
    ):
        with pytest.raises(ArgumentError, match="--set"):
            bad()
    with pytest.raises(ArgumentError, match="study must be one of"):
        studies.get_study("imagenet")
    with pytest.raises(ArgumentError, match=r"bad\.json is no study"):
        studies.get_study(str(tmp_path / "bad.json"))


def test_every_study_can_be_made(scripts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its settings are allowed, and methods and patterns fit its network, at the size of its frames."""
    for name, study in scripts.pruning_studies.STUDIES.items():
        facts = info(study.data)
        width, height, channels = (16, 16, 3) if name == "cifar10-small" else facts.sensor_size
        frames = torch.zeros(1, study.T, channels, height, width, dtype=torch.uint8)
        data = FrameDataset(
            frames, torch.zeros(1, dtype=torch.int64), ["a"], class_names=facts.class_names, name=name,
            simulated=False, content_key="",
        )  # fmt: skip
        monkeypatch.setattr(scripts.pruning, "whole_split", lambda settings, split, data=data: data)
        cells = scripts.pruning.grid(study, ["dense", "spikenm", "spikenm/no-noise"], [100], "")
        kept, left_out = scripts.pruning.possible(cells)
        assert (len(kept), left_out) == (len(cells), {}), name
        model = scripts.pruning_run.new_network(cells[0]["settings"], data, 0)
        assert model.forward_steps(frames.transpose(0, 1)).shape == (study.T, 1, facts.num_classes), name
        states = [report.state for report in scripts.pruning_run.new_pruner(cells[1], model).report()]
        assert states.count("dense") == 2, name


def test_what_cannot_be_or_changes_nothing_is_left_out(scripts: SimpleNamespace) -> None:
    study = scripts.pruning_studies.STUDIES["digits"].changed(['patterns=["1:8", "1:32"]', "methods.spikenm.eta=0.0"])
    cells = scripts.pruning.grid(study, ["dense", "spikenm", "spikenm/no-noise"], [100], "")
    kept, left_out = scripts.pruning.possible(cells)
    assert [(cell["method"], cell["pattern"]) for cell in kept] == [("dense", "-"), ("spikenm", "1:8")]
    assert left_out["spikenm/no-noise 1:8"] == "the same settings as spikenm"
    assert "1:32" in left_out["spikenm 1:32"]


def test_an_interrupted_grid_goes_on(
    scripts: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C to all processes after the first runs; what was finished is reported, kept, and not made again."""
    _, expected = make(scripts, capsys, *arguments(tmp_path / "whole", "--seeds", "3", "--no-plots"))
    broken = arguments(tmp_path / "broken", "--seeds", "3")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTING, *broken, "--processes", "1"], cwd=ROOT, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    done = tmp_path / "broken" / "work" / "digits"
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 130, output + errors
    assert "interrupted" in errors
    finished = len(list(done.glob("*.json")))
    assert 2 <= finished <= 12  # the worker may be ahead of what is reported
    assert f"{finished} of 12 runs" in output
    part = json.loads((tmp_path / "broken" / "results" / "pruning_digits.json").read_text())
    assert len(part["cells"]) == finished
    report, again = make(scripts, capsys, *broken, "--report")
    assert f"{finished} of 12 runs" in report
    assert again["rows"] == part["rows"]
    report, resumed = make(scripts, capsys, *broken)
    assert f"{finished} finished before" in report
    for cell, other in zip(resumed["cells"], expected["cells"], strict=True):
        for result in (cell["result"], other["result"]):
            result.pop("seconds")
        assert cell == other


def test_agreement_states_and_plots_of_a_grid(
    scripts: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    given = arguments(tmp_path, "--seeds", "2", "--agreement-runs", "2", "--agreement-inits", "1")
    given.insert(given.index("--set") + 1, "keep_state=true")
    output, body = make(scripts, capsys, *given)
    assert "agreement of masks" in output
    assert {row["method"] for row in body["agreement"]} == {"spikenm", "sr-ste", "spikenm/no-eid"}
    for row in body["agreement"]:
        assert row["chance"] == 1 / 8
        assert 1 / 8 < row["overlap"]["mean"] <= 1
        assert 1 / 8 < row["initial"] < 1  # two epochs neither leave every mask as it was, nor forget them
    assert not list((tmp_path / "work" / "digits" / "states").iterdir())
    for row in body["rows"]:
        assert row["blocks_over_pattern"] == 0
        assert row.get("kept_fraction", 1 / 8) == 1 / 8
        assert 0 < row["firing_rate"] < 1
        assert row["accuracy"]["count"] == 2
    made = {path.name: path.read_bytes() for path in (tmp_path / "results").glob("*.svg")}
    assert set(made) == {"pruning_digits_accuracy.svg", "pruning_digits_differences.svg"}
    make(scripts, capsys, *given, "--report")
    assert made == {name: (tmp_path / "results" / name).read_bytes() for name in made}
