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
    # Without --parts, an empty file is filled with all of them. --minutes 0: a slow machine is as good as any.
    command = ["benchmarks/gpu_suite.py", "--device", "cpu", "--quick", "--minutes", "0", "--json", path]
    parts = ["environment", "build", "check", "lif", "tests", "sanitizer", "memory", "launches", "open_neuromorphic",
             "training_step", "grid"]  # fmt: skip
    printed = run(*command, "--commit", "as I say")
    report = json.loads(path.read_text())
    assert set(parts) < set(report)
    assert not [name for name in parts if "failed" in report[name]]
    assert report["environment"]["commit"] == report["commit"] == "as I say"
    assert {len(report["code"]), len(report["scripts"])} == {12}
    assert "'check': 'done" in printed
    checked = report["check"]["checks"]["equal_results"]
    assert checked["left_out"] == 0
    assert all(entry["cases"] > 40 for entry in checked["backends"].values())
    assert "reference" in checked["backends"]
    assert report["sanitizer"]["plain"]["passed"]
    assert report["tests"]["test_lif_cuda.py"]["how"].startswith("ended")
    assert [cell["dtype"] for cell in report["lif"]["cells"]] == ["float32", "bfloat16"]
    for cell in report["lif"]["cells"]:
        assert cell["contenders"]["snn_core reference"]["both_ms"] > 0
        assert cell["contenders"].get("SpikingJelly torch", {}).get("spikes_differ", 0) == 0
    assert report["lif"]["cells"][0]["contenders"]["plain loop"]["spikes_differ"] == 0
    assert "plain loop" in [cell["contender"] for cell in report["memory"]["cells"]]


def test_gpu_suite_reports_wrong_results() -> None:
    """A backend with other spikes, and a build that failed, make their parts fail."""
    program = """
        import torch, gpu_checks, gpu_parts, types
        suite = gpu_parts.Suite(torch.device("cpu"), quick=True)
        right = gpu_checks.lif
        def wrong(x_seq, *arguments, backend="auto", **options):
            s_seq, v_last = right(x_seq, *arguments, backend=backend, **options)
            return (s_seq.roll(1, 0) if x_seq.shape[0] == 20 and backend == "reference" else s_seq), v_last
        execute = gpu_checks.execute
        def one(case, inputs, device, backend, calls=[]):
            gpu_checks.lif = wrong if backend == "reference" and len(calls) > 60 else right
            calls.append(1)
            return execute(case, inputs, device, backend)
        gpu_checks.execute = one
        gpu_checks.CHECKS = {"equal_results": gpu_checks.equal_results, "not_a_number": gpu_checks.not_a_number}
        report = gpu_parts.check(suite)
        assert report["failed"] == "equal_results", report
        assert "spikes differ" in report["checks"]["equal_results"]["failed"], report
        assert "failed" not in report["checks"]["not_a_number"], report
        gpu_parts.Suite.cuda = True
        report = gpu_parts.build(suite)
        assert "cuda" in report["failed"] and "triton" in report["failed"], report
    """
    run_in_benchmarks(program)


def test_gpu_suite_outlives_its_parts(tmp_path: Path) -> None:
    """Parts that end badly, crash or hang are recorded, with what they had told, and the next one runs."""
    program = """
        import json, pathlib, sys, time, gpu_suite
        path = pathlib.Path(sys.argv[1])
        tell = "import os, sys; open(sys.argv[2] + '.new', 'w').write('{\\"cells\\": [1]}'); "
        tell += "os.replace(sys.argv[2] + '.new', sys.argv[2]); "
        programs = {
            "build": "print('no compiler'); raise SystemExit(1)",
            "check": "import os; print('illegal access', flush=True); os.abort()",
            "lif": tell + "import time; time.sleep(600)",
            "tests": tell,
        }
        gpu_suite.SHARES = {name: 3.0 if name == "lif" else 60.0 for name in programs}
        gpu_suite.LEAST_SECONDS = 1.0
        command = lambda name: [sys.executable, "-c", programs[name]]
        saved, save = [], gpu_suite.save
        def remember(report, path):
            saved.append(report.get("lif"))
            save(report, path)
        gpu_suite.save = remember
        gpu_suite.run(list(programs), {"environment": {}}, path, time.monotonic() + 200, command)
        assert {"cells": [1], "left_out": "not finished"} in saved, saved  # while it ran
        first = json.loads(path.read_text())
        gpu_suite.run(["sanitizer"], first, path, time.monotonic(), command)
    """
    run_in_benchmarks(program, path := tmp_path / "gpu.json")
    report = json.loads(path.read_text())
    assert (report["build"]["failed"], report["build"]["output"]) == ("ended with exit code 1", "no compiler")
    assert report["check"]["failed"] == "ended with exit code -6"
    assert "illegal access" in report["check"]["output"]
    assert report["lif"]["failed"].startswith("stopped after")
    assert report["lif"]["cells"] == report["tests"]["cells"] == [1]
    assert "failed" not in report["tests"]
    assert report["sanitizer"] == {"left_out": "the time was used up"}
    assert "environment" in report


def test_gpu_suite_goes_on_where_it_stopped(tmp_path: Path) -> None:
    program = """
        import json, pathlib, sys, torch, gpu_measure, gpu_suite
        path = pathlib.Path(sys.argv[1])
        about = gpu_suite.identity("cpu", True)
        gpu_suite.save(about | {"lif": {"cells": []}}, path)
        assert "lif" in gpu_suite.earlier(path, about)
        assert gpu_suite.earlier(path, about | {"code": "another"}) == {}
        assert gpu_suite.earlier(path.with_name("none"), about) == {}

        timed, told = [], []
        def time_cell(steps, neurons, dtype, settings):
            timed.append(steps)
            if steps == 8:
                raise ValueError("no kernel")
            return {"contenders": {"snn_core cuda": {"kind": "ours", "failed": "launch"}} if steps == 2 else {}}
        gpu_measure.time_cell = time_cell
        there = {"T": 4, "N": 16, "dtype": "float32", "contenders": {}, "mark": 1}
        broken = {"T": 8, "N": 16, "dtype": "float32", "failed": "before"}
        suite = gpu_measure.Suite(torch.device("cpu"), earlier={"cells": [there, broken]}, tell=told.append)
        report = gpu_measure._cells(suite, [(steps, 16, torch.float32, []) for steps in (2, 4, 8)])
        assert timed == [2, 8] and len(told) == 2, timed
        assert report["cells"][0] == there and len(report["cells"]) == 3 and report["left_out"] == []
        assert len(report["failed"]) == 2 and "launch" in report["failed"][0] and "no kernel" in report["failed"][1]
    """
    run_in_benchmarks(program, tmp_path / "gpu.json")


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
