"""benchmarks/detector.py on the smallest networks: what it counts, how arms are paired, what it keeps."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
TINY = {"part": "", "model": "vit_tiny_patch16_224", "batch": 1, "repeats": 1, "image_size": 32, "device": "cpu"}


@pytest.fixture(scope="module")
def detector() -> Iterator[Any]:
    """The script as a module; importing it in this process takes seconds less than another one."""
    before = set(sys.modules)
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import detector

        yield detector
    finally:
        sys.path.remove(str(BENCHMARKS))
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(BENCHMARKS)):
                del sys.modules[name]


def test_a_training_step_keeps_nothing_dense(detector: Any) -> None:
    found = {form: detector.cost(TINY | {"form": form, "adapters": detector.EXPERTS}) for form in detector.FORMS}
    dense, compressed, inference = (found[form] for form in detector.FORMS)
    assert compressed["weight_bytes"] < 0.7 * dense["weight_bytes"]
    assert inference["weight_bytes"] == compressed["weight_bytes"]
    copies = inference["kept_for_backward_bytes"] - compressed["kept_for_backward_bytes"]
    assert copies > 4 * 0.9 * 12 * 12 * 192**2, "a dense copy of nearly every layer of the twelve blocks"
    assert all(result["cpu_seconds"] > 0 and result["optimizer_bytes"] > 0 for result in found.values())


def test_the_task_runs_in_parts_and_is_kept(
    detector: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = sys.modules["detector_task"].digits
    monkeypatch.setattr("detector_task.digits", lambda part: tuple(values[:24] for values in whole(part)))
    command = [
        "detector.py", "--parts", "learning", "--seeds", "2", "--steps", "2", "--batch-size", "8",
        "--pretraining-steps", "2", "--processes", "0", "--work", str(tmp_path), "--json", str(tmp_path / "d.json"),
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", command)
    detector.main()
    said = capsys.readouterr().out
    assert "size: 0 of 2 cells are finished" in said
    result = json.loads((tmp_path / "d.json").read_text())
    assert not {"size", "cost"} & result.keys()
    cells, summary = result["learning"]["cells"], result["learning"]["summary"]
    assert [cell["seed"] for cell in cells] == [0, 1]
    arms = [cell["result"]["arms"] for cell in cells]
    trained = [arms[0][arm]["trained_parameters"] for arm in detector.ARMS]
    assert trained[0] == trained[1] > trained[2]
    less = [100 * (found["2:4, adapters"]["f1"] - found["dense, adapters"]["f1"]) for found in arms]
    assert summary["less_dense_points"]["2:4, adapters"]["f1"]["mean"] == pytest.approx(sum(less) / 2)
    assert summary["chance_points"]["auc"] == 50
    assert 5 < summary["chance_points"]["iou"] < summary["chance_points"]["f1"] < 30
    monkeypatch.setattr(detector, "learn", None)  # nothing is run again
    detector.main()
    again = json.loads((tmp_path / "d.json").read_text())
    assert again["learning"] == result["learning"]
