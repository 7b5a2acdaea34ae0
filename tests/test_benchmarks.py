"""The benchmark scripts run, on small cells; test_gpu_suite.py has the GPU suite."""

from __future__ import annotations

import json
import os
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


def test_clock_gives_python_a_head_start_on_cuda() -> None:
    """The device waits before the first event of every call, and only there; the host's clock has no such wait."""
    program = """
        import torch, measure
        log = []
        class Event:
            def __init__(self, enable_timing):
                pass
            def record(self):
                log.append("event")
            def synchronize(self):
                log.append("wait")
            def elapsed_time(self, other):
                return 2.0
        torch.cuda.Event, torch.cuda._sleep = Event, lambda cycles: log.append(cycles)
        torch.cuda.synchronize = lambda: log.append("synchronize")
        cycles = measure.head_start_cycles()
        assert cycles == 2_000_000 * measure.HEAD_START_SECONDS / 2e-3
        log.clear()
        for clock, expected in (
            (measure.Clock(torch.device("cuda")), [cycles, "event", "event", "event", "wait"]),
            (measure.Clock(torch.device("cuda"), host=True), ["synchronize"] * 3),
        ):
            for _ in range(2):
                clock.mark(), clock.mark(), clock.mark()
                assert len(clock.stages()) == 2
                assert log == expected, log
                log.clear()
    """
    run_in_benchmarks(program)


def test_interleave_goes_on_without_one_that_raises() -> None:
    program = """
        import measure
        calls = []
        def bad():
            calls.append("bad")
            if len(calls) > 1:
                raise ValueError("boom")
            return (1.0,)
        told = []
        runs = {"bad": bad, "good": lambda: (2.0,)}
        times = measure.interleave(runs, 3, 0.0, failed=lambda name, error: told.append((name, str(error))))
        assert list(times) == ["good"] and len(times["good"]) >= 3, times
        assert told == [("bad", "boom")], told
        try:
            measure.interleave({"bad": bad}, 3, 0.0)
        except ValueError:
            print("raised")
    """
    assert "raised" in run_in_benchmarks(program)


def test_lif_benchmark_says_what_is_wrong_and_what_falls_short() -> None:
    program = """
        import copy, json, lif, lif_cell, torch
        base = {"device": "cpu", "T": 64, "N": 16, "dtype": "float32"}
        def entry(kind, both, **more):
            return {"kind": kind, "both_ms": both, "spikes_differ": 0, "gradient_relative_error": 1e-7} | more
        contenders = {
            "snn_core cpp": entry("ours", 1.0), "snn_core reference": entry("ours", 9.0),
            "SpikingJelly torch": entry("spikingjelly", 7.0), "plain loop": entry("loop", 20.0),
            "compiled loop, whole": entry("compiled", 2.0, spikes_differ=1),
        }
        def cell(**changes):
            changed = copy.deepcopy(contenders)
            for name, more in changes.items():
                changed[name.replace("_", " ")] |= more
            return base | {"result": {"contenders": changed} | lif_cell.summarise(changed)}
        assert lif.wrong([cell()]) == []
        assert len(lif.wrong([cell(plain_loop={"spikes_differ": 1})])) == 1
        assert len(lif.wrong([cell(SpikingJelly_torch={"gradient_relative_error": float("nan")})])) == 1
        slow = cell()
        weighed = base | {"contender": "snn_core cpp", "kind": "ours", "result": {"bytes_per_element_step": 9.5}}
        goals = lif.goals([slow, weighed])
        assert goals["smallest_ratio_spikingjelly"] == 7 and goals["smallest_ratio_compiled"] == 2, goals
        assert len(goals["short"]) == 2 and goals["largest_bytes_per_element_step"] == 9.5, goals

        without = copy.deepcopy(contenders)
        del without["snn_core cpp"]["both_ms"]
        without["snn_core cpp"]["failed"] = "boom"
        assert lif_cell.summarise(without)["ours"] is None
        assert len(lif.wrong([base | {"result": {"contenders": without}}])) == 1
        without["snn_core cpp"] = {"skipped": "not built"}  # not there, so not what users get
        assert lif_cell.summarise(without)["ours"] == "snn_core reference"
        assert "skipped" in lif_cell.why(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
        assert "skipped" in lif_cell.why(torch.OutOfMemoryError("CUDA out of memory"))
        assert "failed" in lif_cell.why(RuntimeError("an illegal memory access was encountered"))
    """
    run_in_benchmarks(program)


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
    """The spikes and the gradient are two sequences of 4 bytes; ours takes little more, the plain loop several."""
    program = """
        import json, torch, lif_cell
        settings = lif_cell.Settings(torch.device("cpu"), 1, 0.1, 60.0, 16, ["loop"])
        cells = [("snn_core cpp", 64), ("plain loop", 8)]
        print(json.dumps([lif_cell.memory_cell(T, 1 << 18, torch.float32, name, settings) for name, T in cells]))
    """
    from snn_core.kernels.native import cpu_library

    if not cpu_library().available:
        pytest.skip(cpu_library().reason)
    ours, loop = json.loads(run_in_benchmarks(program))
    if "skipped" in ours:
        pytest.skip(ours["skipped"])
    assert 7.9 < ours["bytes_per_element_step"] < 10
    assert 16 < loop["bytes_per_element_step"] < 100


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


def test_open_neuromorphic_benchmark_says_what_is_wrong() -> None:
    program = """
        import torch, open_neuromorphic as task
        settings = task.Settings(torch.device("cpu"), 1, 0.1, 60.0, 16, ["loop"])
        contenders = task.contenders
        def with_others(*arguments):
            found, missing = contenders(*arguments)
            late = []
            def bad(x):
                raise ValueError("boom")
            def late_bad(x):
                late.append(1)
                return bad(x) if len(late) > 2 else x
            found += [task.Contender("bad", bad, "spikingjelly", 1.0), task.Contender("late", late_bad, "other", 1.0)]
            found += [task.Contender("shifted", lambda x: x, "loop", 1.0)]
            return found, missing
        task.contenders = with_others
        report = task.time_task((6, 2, 32), settings)
        problems = task.differences(report)
        assert len(problems) == 2 and "boom" in problems[0] and "shifted" in problems[1], problems
        assert "failed" in report["contenders"]["late"] and report["contenders"]["plain loop"]["both_ms"] > 0
        assert task.differences(report, kinds=("ours",)) == []
    """
    run_in_benchmarks(program)


def test_readme_tables() -> None:
    program = """
        import readme
        timed = {"kind": "ours", "both_ms": 2.0, "of_limit": {"both": 0.5}}
        contenders = {
            "snn_core cpp": timed, "plain loop": timed | {"kind": "loop", "both_ms": 6.0},
            "SpikingJelly torch": {"kind": "spikingjelly", "skipped": "about 9e+10 bytes needed, 1e+9 available"},
            "compiled loop, whole": {"kind": "compiled", "skipped": "about 30 s a call, 25 allowed"},
            "norse LIF": {"skipped": "ModuleNotFoundError: No module named 'norse'"},
            "sinabs LIF": {"kind": "other", "failed": "ValueError: boom"},
        }
        cell = {"T": 4, "N": 16, "dtype": "float32", "contenders": contenders, "ours": "snn_core cpp"}
        cell["best"] = {"ours": "snn_core cpp", "loop": "plain loop"}
        row = readme.lif({"cells": [cell], "memory": [], "threads": 1}).splitlines()[2]
        assert "float32 | cpp | 2.00 | 0.50 | memory | too slow | 3.0 | - | not installed | failed |" in row, row
        step = {"network": "VGG", "T": 4, "batch": 16, "side": 32, "before_ms": 200.0, "after_ms": 100.0, "speedup": 2,
                "neurons_speedup": 6, "before_neurons_share": 0.6, "after_neurons_share": 0.2, "logits_equal": True}
        row = readme.accelerate({"cells": [step]}).splitlines()[2]
        assert row == "| VGG | 4 | 16 | 32 x 32 | 200 | 100 | 2.00 | 60 → 20 | 6.0 | equal |", row
    """
    run_in_benchmarks(program)


def test_pruning_cost_benchmark(tmp_path: Path) -> None:
    target = tmp_path / "cost.json"
    command = ("benchmarks/pruning_cost.py", "--networks", "linear-small", "--turns", "1", "--pattern", "1:8")
    printed = run(*command, "--no-memory", "--json", target)
    rows = {row["contender"]: row for row in json.loads(target.read_text())["rows"]}
    assert rows["dense"]["wall_ratio"] == rows["dense"]["processor_ratio"] == 1
    assert all(row["wall_ms"] > 0 and name in printed for name, row in rows.items())
    assert rows["sr-ste"]["pruned_weights"] == 2 * 64 * 64
    state = ("logits", "exp_avg", "exp_avg_sq")
    assert rows["spikenm, sampler only"]["bytes_a_block"] == dict.fromkeys(state, 8 * 4.0)
    assert set(rows["spikenm, EID every step"]["bytes_a_block"]) == {*state, "credit", "targets"}


def test_inference_benchmark(tmp_path: Path) -> None:
    command = [
        "benchmarks/inference.py", "--networks", "conv-snn", "--batches", "1", "--quick", "--threads", "1", "--repeats",
        "1", "--seconds", "0.1", "--time-steps", "3", "--work", tmp_path / "work", "--json", tmp_path / "i.json",
    ]  # fmt: skip
    run(*command)
    (entry,) = json.loads((tmp_path / "i.json").read_text())["networks"]
    assert entry["bytes"]["resident_ratio"] <= 0.6
    assert entry["bytes"]["on_disk_ratio"] <= 0.6
    (cell,) = entry["cells"]
    assert cell["failed"] == {}
    assert cell["difference"] < 1e-3
    assert cell["speedup"] == cell["ms"][cell["best_dense"]] / cell["ms"]["fused"]


def test_killed_builds_of_the_frame_cache(tmp_path: Path) -> None:
    """A few of the kills that benchmarks/cache_kills.py makes; SNN_KILLS asks for more."""
    rounds = int(os.environ.get("SNN_KILLS", "4"))
    run("benchmarks/cache_kills.py", "--rounds", str(rounds), "--samples", "60", "--json", tmp_path / "kills.json")
    result = json.loads((tmp_path / "kills.json").read_text())["result"]
    assert result["kills"] == rounds
    assert result["next_runs"] > 0
    assert result["wrong_samples"] == 0


def test_epochs_from_disk(nmnist_zip: Path, tmp_path: Path) -> None:
    """All contenders read the same events, which the script asserts."""
    run("benchmarks/event_epochs.py", "--samples", "60", "--json", tmp_path / "epochs.json")
    (found,) = json.loads((tmp_path / "epochs.json").read_text())["sets"]
    assert found["samples"] == 60
    assert set(found["2 workers, an epoch"]["seconds"]["ratios"]) > {"tonic / open_frames", "tonic / in memory"}
