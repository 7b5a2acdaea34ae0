"""benchmarks/distillation.py: its statistics on made-up numbers, its grid, and a tiny study end to end."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from snn_core.errors import ArgumentError, NonFiniteError

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("studies", "run", "statistics", "report")
TINY: dict[str, Any] = {
    "name": "tiny", "about": "to be run by a test", "data": "digits-dvs", "T": 2, "train_limit": 40, "test_limit": 20,
    "grid": {"1": ["pace", "random"], "2": ["random"]}, "sets": 2, "networks": 1, "full_networks": 1, "folds": 2,
    "full": {"epochs": 1}, "evaluate": {"steps": 2, "backbone_options": {"channels": [4]}},
    "distill": {
        "iterations": 2, "num_shifts": 1, "real_batch": 4,
        "teachers": {"count": 1, "backbone_options": {"channels": [4]}, "training": {"epochs": 1}},
    },
    "networks_also": ["average-pooling"], "curve_points": 2, "transferred": ["pace", "random"], "other_networks": 1,
    "full_also": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def scripts() -> Iterator[SimpleNamespace]:
    """The benchmark's modules, in this process."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        loaded: dict[str, Any] = {name: importlib.import_module(f"distillation_{name}") for name in PARTS}
        loaded["search"] = importlib.import_module("distillation_search")
        yield SimpleNamespace(main=importlib.import_module("distillation"), **loaded)
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(ROOT / "benchmarks")):
            del sys.modules[name]


def cell(method: str, ipc: int, seed: int, *accuracies: float, network: str = "same", seconds: float = 1.0) -> Any:
    curve = [[seconds * part, accuracy * part] for part in (0.5, 1.0) for accuracy in accuracies[:1]]
    result = {
        "accuracies": list(accuracies), "train_seconds": seconds, "train_cpu_seconds": seconds, "steps": 10,
        "samples": 10, "frame_bytes": 1000 if method == "full" else 10, "file_bytes": None,
        "measures": {"shape": [0.5] * len(accuracies)}, "curves": [curve for _ in accuracies],
    }  # fmt: skip
    return {"protocol": "test", "network": network, "method": method, "ipc": ipc, "seed": seed, "fold": "test",
            "result": result}  # fmt: skip


def test_rows_are_means_of_sets_and_networks(scripts: SimpleNamespace) -> None:
    cells = [
        cell("full", 0, 0, 0.9, seconds=50.0), cell("full", 0, 1, 1.0, seconds=50.0),
        cell("pace", 1, 5, 0.8, 0.9), cell("pace", 1, 6, 0.7, 0.6),
        cell("random", 1, 5, 0.5, 0.5), cell("random", 1, 6, 0.4, 0.5), cell("random", 1, 7, 0.1, 0.1),
        cell("pace", 1, 5, 0.7, network="wider"), cell("random", 1, 5, 0.5, network="wider"),
    ]  # fmt: skip
    rows = {(row["network"], row["method"]): row for row in scripts.statistics.tabulate(cells)}
    pace = rows["same", "pace"]
    assert (pace["accuracy"]["mean"], pace["accuracy"]["count"]) == (pytest.approx(0.75), 4)
    assert (pace["sets"]["std"], pace["sets"]["count"]) == (pytest.approx(0.2 / 2**0.5), 2)
    assert pace["shape"]["mean"] == 0.5
    assert pace["fraction_of_full"] == pytest.approx(0.75 / 0.95)
    assert (pace["training_speedup"], pace["bytes_ratio"]) == (50, 100)
    assert pace["minus_random"] == pytest.approx(0.75 - 2.1 / 6)
    assert pace["full_seconds_to_this"] == 50
    assert "pace_minus" not in pace
    against = rows["same", "random"]["pace_minus"]  # over the two sets that both have
    assert (against["mean"], against["count"]) == (pytest.approx((0.35 + 0.2) / 2), 2)
    # On the other network PACE gains 0.2 over random, on the same one (0.35 + 0.2) / 2.
    assert rows["wider", "pace"]["gain_kept"] == pytest.approx(0.2 / 0.275)
    assert "gain_kept" not in rows["wider", "random"]


def test_pair_measures(scripts: SimpleNamespace) -> None:
    logits = torch.tensor([[3.0, 2, 0, 0], [0, 0, 5, 4], [0, 1, 9, 0], [1, 0, 0, 0.5]])
    labels = torch.tensor([0, 3, 1, 3])
    measures = scripts.run.pair_measures(True)
    assert measures["shape"](logits, labels) == 0.5
    assert measures["within_pair"](logits, labels) == 0.75
    assert scripts.run.pair_measures(False) == {}


def test_a_network_that_diverges_does_not_end_the_others(
    scripts: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverging(folder: Path, cell: Any) -> Any:
        raise NonFiniteError("loss became nan")

    monkeypatch.setattr(scripts.run, "full", diverging)
    assert scripts.run.run(tmp_path, {"kind": "full"}) == {"failed": "loss became nan"}


def test_studies_and_their_changes(scripts: SimpleNamespace) -> None:
    studies = scripts.studies
    for study in studies.STUDIES.values():
        study.check()
        assert study.fold_names(True) == [0]
        assert "test" in study.fold_names(False)
    study = studies.STUDIES["nmnist"].changed(["methods.pace.beta=0.25", "methods.dm/sdr.beta=0.75", "sets=7"])
    betas = [study.distill_config(name, 3).beta for name in ("pace", "pace/no-dft", "dm/sdr", "random")]
    assert betas == [0.25, 0.25, 0.75, 1.0]
    assert (study.sets, study.distill_config("pace", 3).ipc) == (7, 3)
    gesture = studies.STUDIES["dvs-gesture"].distill_config("pace", 1).teachers
    assert (gesture.count, gesture.backbone_options["pool"]) == (3, "avg")
    with pytest.raises(ArgumentError, match="KEY=VALUE"):
        study.changed(["iterations=3"])
    with pytest.raises(ValueError, match="betta"):
        study.changed(["distill.betta=3"])
    with pytest.raises(ArgumentError, match="'lenet' is unknown"):
        study.changed(['networks_also=["lenet"]'])


def test_tuning_never_sees_what_is_reported(scripts: SimpleNamespace) -> None:
    """No sample that a reported fold tests on is in any part of a tuning fold; reported folds do not overlap."""
    study = scripts.studies.STUDIES["digits"].changed(['cross_validated=["pace"]', "folds=5", "held_folds=2"])

    def ids(fold: int, tuning: bool) -> tuple[set[str], set[str]]:
        train, test = scripts.run.parts({"data": study.data_settings(), "fold": fold, "tuning": tuning})
        assert not set(train.ids) & set(test.ids)
        return set(train.ids), set(test.ids)

    assert study.fold_names(False) == ["test", 2, 3, 4]
    reported = [ids(fold, False) for fold in (2, 3, 4)]
    tested = set.union(*(test for _, test in reported))
    assert len(tested) == 120 == sum(len(test) for _, test in reported)
    assert all(len(train) == 160 for train, _ in reported)
    for fold in (0, 4):
        train, test = ids(fold, True)
        assert (len(train), len(test)) == (64, 16)
        assert not (train | test) & tested
    with pytest.raises(ArgumentError, match="held_folds"):
        study.changed(["held_folds=5"])
    first = scripts.run.whole_split(study.changed(["class_limit=3"]).data_settings(), "train")
    assert (first.num_classes, sorted(set(first.labels.tolist()))) == (3, [0, 1, 2])


def test_ablations_that_are_pace_itself_are_left_out(scripts: SimpleNamespace) -> None:
    study = scripts.studies.STUDIES["motion-sim"].changed(["methods={}"])
    for change, gone in (
        ("distill.time_matching=mean", "pace/no-coherence"),
        ("distill.time_matching=coherent", None),
        ("distill.quantize=none", "pace/no-peqn"),
    ):
        changed = study.changed(["distill.time_matching=coherent", change])
        planner = scripts.main.Planner(changed, ["pace", "pace/no-coherence", "pace/no-peqn"], 1, "", [])
        made = {cell["method"] for cell in planner.products(0)}
        assert made == {"pace", "pace/no-coherence", "pace/no-peqn"} - {gone}
        left = [name for name, reason in planner.left_out().items() if reason == "the same settings as pace"]
        assert left == ([f"{gone}, IPC 1"] if gone else [])


def test_multi_formation_is_a_method_beside_pace(scripts: SimpleNamespace) -> None:
    study = scripts.studies.STUDIES["nmnist"].changed(["formation.formation_time=2", "methods.pace.beta=0.5"])
    clips = {name: study.distill_config(name, 1).formation().clips for name in ("pace", "pace/multi", "random")}
    assert clips == {"pace": 1, "pace/multi": 8, "random": 1}
    assert study.distill_config("pace/multi", 1).beta == 0.5
    study = scripts.studies.STUDIES["motion-sim"]  # there for every method, and of an IPC's own
    for ipc, of_pace, expected in ((1, 20, 20), (10, 20, 4)):
        made = {name: study.distill_config(name, ipc).formation().clips for name in ("pace", "random", "dm/time-mean")}
        assert made == {"pace": of_pace, "random": expected, "dm/time-mean": expected}
    assert "pace/multi, IPC 1" in scripts.main.Planner(study, ["pace/multi"], 1, "", []).left_out()
    assert all("pace/multi" in study.grid["10"] for study in scripts.studies.STUDIES.values() if "10" in study.grid
               and study.name != "gesture-size")  # fmt: skip


def test_selections_have_a_teacher_for_every_set(
    scripts: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sets are two networks, and cost those; PACE has the same pool in both."""
    monkeypatch.setenv("SNN_CACHE", str(tmp_path / "cache"))
    study = scripts.studies.Study(**TINY).changed(["distill.teachers.snapshots=[0.5,1.0]", "distill.iterations=1"])
    planner = scripts.main.Planner(
        study.changed(['grid={"1":["pace","herding"]}']), ["pace", "herding"], 2, "", []
    )  # fmt: skip
    used = {}
    for seed in (0, 1):
        for cell in planner.products(seed):
            scripts.run.product(tmp_path, cell)
            made = scripts.run.DistilledDataset.load(scripts.run.product_file(tmp_path, cell)).provenance
            used.setdefault(cell["method"], []).append(made)
    assert used["pace"][0].teacher_hashes == used["pace"][1].teacher_hashes
    own = [set(made.teacher_hashes) for made in used["herding"]]
    assert [len(hashes) for hashes in own] == [1, 1]
    assert not own[0] & own[1]
    assert not (own[0] | own[1]) & set(used["pace"][0].teacher_hashes)
    assert used["herding"][0].config["teacher"] == "0/1"
    assert all(made.teacher_seconds > 0 for made in used["herding"])


def make(scripts: SimpleNamespace, folder: Path, *given: str) -> dict[str, Any]:
    (folder / "tiny.json").write_text(json.dumps(TINY))
    command = ["distillation.py", "--studies", str(folder / "tiny.json"), "--code", "test", "--processes", "0", *given,
               "--work", str(folder / "work"), "--results", str(folder / "results")]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", command)
        patch.setenv("SNN_CACHE", str(folder / "cache"))
        assert scripts.main.main() == 0
    name = "distillation_tiny_tuning.json" if "--tuning" in given else "distillation_tiny.json"
    body: dict[str, Any] = json.loads((folder / "results" / name).read_text())
    return body


def test_a_search_end_to_end(
    scripts: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Out of time it has begun nothing; else every form on every set, without the test split; a second call is done."""
    whole = scripts.run.whole_split

    def train_alone(settings: dict[str, Any], split: str) -> Any:
        assert split == "train"
        return whole(settings, split)

    def searched(*given: str) -> dict[str, Any]:
        command = ["distillation_search.py", "--study", str(tmp_path / "tiny.json"), "--code", "test", "--sets", "2",
                   "--forms", "random", "aligned", "--add", 'weak={"gamma": 0.5}', *given,
                   "--work", str(tmp_path / "work"), "--results", str(tmp_path / "results")]  # fmt: skip
        monkeypatch.setattr(sys, "argv", command)
        assert scripts.search.main() == 0
        body: dict[str, Any] = json.loads((tmp_path / "results" / "distillation_search_tiny.json").read_text())
        return body

    (tmp_path / "tiny.json").write_text(json.dumps(TINY | {"pairs": True}))
    monkeypatch.setenv("SNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(scripts.run, "whole_split", train_alone)
    assert searched("--minutes", "0")["rows"] == []
    body = searched()
    assert {row["form"]: row["accuracy"]["count"] for row in body["rows"]} == {"random": 2, "aligned": 2, "weak": 2}
    means = [row["accuracy"]["mean"] for row in body["rows"]]
    assert means == sorted(means, reverse=True)
    assert all({"shape", "within_pair"} <= set(row) for row in body["rows"])
    assert body["about"]["finished"] == "6 of 6 (form, set)"
    assert body["about"]["what"].startswith("GUIDANCE")
    assert body["forms"]["weak"] == {"method": "pace", "settings": {"gamma": 0.5}}
    monkeypatch.setattr(scripts.search, "run", pytest.fail)  # nothing is left to run
    assert searched()["rows"] == body["rows"]
    assert f"| {body['rows'][0]['form']} | 2 | {100 * means[0]:.1f} ±" in capsys.readouterr().out
    with pytest.raises(ArgumentError, match="NAME=JSON"):
        searched("--add", "odd=3")
    with pytest.raises(ArgumentError, match="nothing-like-it"):
        searched("--forms", "nothing-like-it")


def test_every_form_of_the_search_can_be_made(scripts: SimpleNamespace) -> None:
    study = scripts.studies.STUDIES["motion-sim-single"]
    planner = scripts.main.Planner(study, ["pace"], 1, "", [])
    made = {name: scripts.search.form_cells(planner, form, 1, 0, 0)[0] for name, form in scripts.search.FORMS.items()}
    assert len({json.dumps(cell, sort_keys=True) for cell in made.values()}) == len(made)
    using = {name: scripts.search.share_teachers({name: form}) for name, form in scripts.search.FORMS.items()}
    assert {name for name, shared in using.items() if not shared} == {
        "random", "herding", "digits, random", "digits of whole clips, random", "digits, herding",
    }  # fmt: skip
    for cell in made.values():
        assert cell["tuning"]
        assert cell["settings"]["teachers"] == made["literal"]["settings"]["teachers"]


def test_a_study_end_to_end(scripts: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tuned on folds without the test split, then run; a second call finds everything done and reports the same."""
    whole = scripts.run.whole_split

    def train_alone(settings: dict[str, Any], split: str) -> Any:
        assert split == "train"
        return whole(settings, split)

    monkeypatch.setattr(scripts.run, "whole_split", train_alone)
    tuned = make(scripts, tmp_path, "--tuning", "1", "--methods", "random", "--no-plots")
    assert [(row["protocol"], row["method"], row["ipc"]) for row in tuned["rows"]] == [
        ("2-fold", "random", 1), ("2-fold", "random", 2),
    ]  # fmt: skip
    assert {cell["seed"] for cell in tuned["cells"]} == {0}
    monkeypatch.undo()

    body = make(scripts, tmp_path)
    assert body["failed"] == []
    assert body["about"]["finished"] == "19 of 19 parts"
    assert {cell["seed"] for cell in body["cells"] if cell["method"] != "full"} == {100, 101}
    same = {(row["method"], row["ipc"]): row for row in body["rows"] if row["network"] == "same"}
    assert set(same) == {("full", 0), ("pace", 1), ("random", 1), ("random", 2)}
    assert same["pace", 1]["samples"] == 10
    assert same["pace", 1]["curve"][-1][1] == pytest.approx(same["pace", 1]["accuracy"]["mean"], abs=1e-6)
    assert same["full", 0]["samples"] == 40
    assert {row["network"] for row in body["rows"]} == {"same", "average-pooling"}
    assert len(list((tmp_path / "results").glob("*.svg"))) == 3
    monkeypatch.setattr(scripts.main, "run", pytest.fail)  # nothing is left to run
    assert make(scripts, tmp_path, "--no-plots")["rows"] == body["rows"]
    readme = importlib.import_module("readme_distillation")
    assert "| random | 2 | 20 test recordings |" in readme.distillation(body)
    assert readme._tested_on(body, "1 of 2 folds") == "1 of 2 folds, 40 recordings"
