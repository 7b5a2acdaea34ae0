"""benchmarks/localization.py on a few recordings, end to end: what it writes, keeps and draws."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """In this process: starting another takes longer than what is tested."""
    before, threads = set(sys.modules), torch.get_num_threads()
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    yield importlib.import_module("localization")
    torch.set_num_threads(threads)
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(ROOT / "benchmarks")):
            del sys.modules[name]


def test_end_to_end(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "NETWORK", script.NETWORK | {"channels": [4, 8, 8, 8]})
    monkeypatch.setattr(script, "HEAD", {"channels": 8, "class_channels": 8})
    monkeypatch.setattr(script, "SHOWN", 2)
    path, picture = tmp_path / "results.json", tmp_path / "found.png"
    command = ["--T", "2", "--epochs", "2", "--batch-size", "4", "--limit", "8", "--test-limit", "6", "--seeds", "5"]
    command += ["--processes", "0", "--work", str(tmp_path / "work"), "--json", str(path), "--picture", str(picture)]
    for again in (False, True):
        monkeypatch.setattr(sys, "argv", ["localization.py", *command])
        script.main()
        assert ("1 finished before" in capsys.readouterr().out) == again
    result = json.loads(path.read_text())
    seed = result["seeds"]["5"]
    assert len(seed["mAP@0.5 when each step ends"]) == 2
    assert seed["mAP@0.5 when each step ends"][-1] == seed["mAP@0.5"] == result["summary"]["mAP@0.5"]["mean"]
    assert all(len(seed["loss"][name]) == 2 for name in ("objectness", "classes", "boxes"))
    assert not result["reached"]
    assert "test, by time, limit 6; 6 samples" in result["data"]["test"]
    assert "spiking network, seed 5" in importlib.import_module("readme_events").localization(result)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert any(figures["AP@0.5, classes ignored"] > 0 for figures in result["baselines"].values())
