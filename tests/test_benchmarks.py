"""The benchmark scripts run: small cells, and the GPU suite as a dry run on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments: str | Path) -> str:
    result = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def run_in_benchmarks(program: str, *arguments: str | Path) -> str:
    """Run a program that imports the benchmarks' modules."""
    return run("-c", "import sys; sys.path.insert(0, 'benchmarks')\n" + textwrap.dedent(program), *arguments)


def test_gpu_suite_as_a_dry_run(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    parts = ["environment", "build", "check", "lif", "launches", "open_neuromorphic", "training_step", "sanitizer"]
    run("benchmarks/gpu_suite.py", "--device", "cpu", "--quick", "--parts", *parts, "--json", path)
    report = json.loads(path.read_text())
    assert list(report) == sorted(parts)
    assert not any("failed" in part for part in report.values())
    checked = report["check"]["checks"]["equal_results"]
    assert checked["cases"] > 40
    assert checked["left_out"] == 0
    assert "reference" in checked["worst_relative_error"]
    assert report["sanitizer"]["plain"]["passed"]
    assert [cell["dtype"] for cell in report["lif"]["cells"]] == ["float32", "bfloat16"]
    for cell in report["lif"]["cells"]:
        assert cell["contenders"]["snn_core reference"]["both_ms"] > 0
        assert cell["contenders"].get("SpikingJelly torch", {}).get("spikes_differ", 0) == 0


def test_gpu_suite_goes_on_after_a_part_that_fails(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    program = """
        import sys, time, pathlib, torch, gpu_suite
        def build(suite):
            raise RuntimeError("no compiler")
        gpu_suite.PARTS = {build: 9.0, gpu_suite.launches: 9.0}
        suite = gpu_suite.Suite(torch.device("cpu"), True, time.monotonic() + 60)
        gpu_suite.run(suite, ["build", "launches"], pathlib.Path(sys.argv[1]))
    """
    run_in_benchmarks(program, path)
    report = json.loads(path.read_text())
    assert "no compiler" in report["build"]["failed"]
    assert "skipped" in report["launches"]


def test_lif_benchmark_keeps_finished_cells(tmp_path: Path) -> None:
    pytest.importorskip("spikingjelly")
    command = [
        "benchmarks/lif.py", "--threads", "1", "--repeats", "1", "--seconds", "0.1", "--steps", "4", "--neurons", "999",
        "--groups", "spikingjelly", "--memory", "none", "--work", tmp_path / "work", "--json", tmp_path / "lif.json",
    ]  # fmt: skip
    run(*command)
    report = json.loads((tmp_path / "lif.json").read_text())
    (cell,) = report["cells"]
    ours, theirs = cell["contenders"][cell["ours"]], cell["contenders"]["SpikingJelly torch"]
    assert theirs["spikes_differ"] == 0
    assert theirs["compared"] == 4 * 999
    assert theirs["gradient_relative_error"] < 1e-5
    assert cell["ratio"]["spikingjelly"] == theirs["both_ms"] / ours["both_ms"]
    assert theirs["of_limit"]["both"] == pytest.approx(cell["limit_ms"]["both"] / theirs["both_ms"])
    assert "1 finished before" in run(*command)
    assert json.loads((tmp_path / "lif.json").read_text())["cells"] == report["cells"]


def test_lif_benchmark_measures_peak_memory() -> None:
    """The spikes and the gradient are two sequences of 4 bytes; the plain loop keeps several more."""
    program = """
        import json, torch, lif_cell
        settings = lif_cell.Settings(torch.device("cpu"), 1, 0.1, 60.0, 16, ["loop"])
        names = ["snn_core reference", "plain loop"]
        print(json.dumps([lif_cell.memory_cell(8, 1 << 18, torch.float32, name, settings) for name in names]))
    """
    for cell in json.loads(run_in_benchmarks(program)):
        if "skipped" in cell:
            pytest.skip(cell["skipped"])
        assert 16 < cell["bytes_per_element_step"] < 100


def test_lif_benchmark_in_slices() -> None:
    """What does not fit runs in slices of the neurons, compared and timed like the whole; or is left out."""
    program = """
        import json, torch, lif_cell
        lif_cell.available_bytes = lambda device: 2 << 20
        settings = lif_cell.Settings(torch.device("cpu"), 1, 0.1, 60.0, 16, ["loop"])
        print(json.dumps(lif_cell.time_cell(8, 1 << 13, torch.float32, settings)["contenders"]))
    """
    contenders = json.loads(run_in_benchmarks(program))
    assert "available" in contenders["snn_core reference"]["skipped"]
    if "skipped" in contenders["snn_core cpp"]:
        pytest.skip(contenders["snn_core cpp"]["skipped"])
    assert contenders["plain loop"]["slices"] == 4
    assert contenders["plain loop"]["spikes_differ"] == 0
    assert contenders["plain loop"]["compared"] == 8 << 13
    assert contenders["plain loop"]["both_ms"] > 0


def test_compiled_loops_compile_once_and_agree() -> None:
    """Chunks and single steps included, whose state comes from the chunk before."""
    program = """
        import torch, lif_compiled
        lif_compiled._compile = lambda function: torch.compile(function, fullgraph=True, backend="eager")
        x, gradient = torch.randn(2, 32, 64).unbind(0)
        forms = {"plain": lif_compiled.plain_loop()} | lif_compiled.compiled_forms(32, 64)
        forms["whole, unbound"] = lif_compiled._unbound(lif_compiled.TAU)
        results = []
        for run in forms.values():
            for attempt in range(2):
                with torch.compiler.set_stance("fail_on_recompile" if attempt else "default"):
                    leaf = x.clone().requires_grad_()
                    s = run(leaf)
                    s.backward(gradient)
            results.append((s, leaf.grad))
        assert len(results) == 6, list(forms)
        for s, g in results:
            assert torch.equal(s, results[0][0]) and torch.allclose(g, results[0][1], atol=1e-6), list(forms)
    """
    run_in_benchmarks(program)


def test_open_neuromorphic_benchmark(tmp_path: Path) -> None:
    command = [
        "benchmarks/open_neuromorphic.py", "--threads", "1", "--repeats", "1", "--seconds", "0.1", "--groups", "loop",
        "--steps", "6", "--batch", "2", "--neurons", "32", "--no-memory",
        "--work", tmp_path / "work", "--json", tmp_path / "o.json",
    ]  # fmt: skip
    run(*command)
    report = json.loads((tmp_path / "o.json").read_text())["contenders"]
    assert report["plain loop"]["spikes_differ"] == 0
    assert report["plain loop"]["gradient_relative_error"] < 1e-5
    assert 0 < report["plain loop"]["firing_rate"] < 1
    assert report["Linear alone"]["both_ms"] > 0


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
