"""The benchmark scripts run: small cells, and the GPU suite as a dry run on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments: str | Path) -> str:
    result = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_gpu_suite_as_a_dry_run(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    parts = ["environment", "check", "lif", "training_step", "sanitizer"]
    run("benchmarks/gpu_suite.py", "--device", "cpu", "--quick", "--parts", *parts, "--json", path)
    report = json.loads(path.read_text())
    assert list(report) == sorted(parts)
    assert not any("failed" in part for part in report.values())
    assert report["check"]["cases"] == 12
    assert all(cell["reference_ms"] > 0 for cell in report["lif"]["cells"])


def test_lif_benchmark(tmp_path: Path) -> None:
    pytest.importorskip("spikingjelly")
    path = tmp_path / "lif.json"
    run("benchmarks/lif.py", "--threads", "1", "--repeats", "1", "--steps", "4", "--neurons", "1000", "--json", path)
    report = json.loads(path.read_text())
    assert [cell["dtype"] for cell in report["cells"]] == ["float32", "bfloat16"]
    assert report["cells"][0]["spikes_equal"]
    assert report["cells"][0]["gradient_relative_error"] < 1e-5


def test_pruning_benchmark_keeps_finished_cells(tmp_path: Path) -> None:
    command = [
        "benchmarks/pruning.py", "--data", "digits-dvs", "--methods", "dense", "spikenm", "--folds", "0",
        "--seeds", "0", "--epochs", "1", "--channels", "4", "8", "8", "--processes", "1", "--work", tmp_path / "work",
        "--json", tmp_path / "p.json",
    ]  # fmt: skip
    run(*command)
    first = json.loads((tmp_path / "p.json").read_text())
    assert [row["method"] for row in first["rows"]] == ["dense", "spikenm"]
    assert first["rows"][1]["blocks_over_pattern"] == 0
    assert first["rows"][1]["kept_fraction"] <= 0.5
    assert "2 finished before" in run(*command)
    assert json.loads((tmp_path / "p.json").read_text())["rows"] == first["rows"]
