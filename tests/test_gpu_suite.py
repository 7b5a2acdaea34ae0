"""The GPU suite as a dry run on the CPU, and what it does with parts that fail."""

from __future__ import annotations

import json
from pathlib import Path

from tests.test_benchmarks import run, run_in_benchmarks


def test_gpu_suite_as_a_dry_run(tmp_path: Path) -> None:
    """--minutes 0: a slow machine is as good as any."""
    path = tmp_path / "gpu.json"
    command = ["benchmarks/gpu_suite.py", "--device", "cpu", "--quick", "--minutes", "0", "--json", path]
    printed = run(*command, "--commit", "as I say", "--parts", "environment", "lif")
    report = json.loads(path.read_text())
    assert "'lif': 'done" in printed
    assert report["environment"]["commit"] == report["commit"] == "as I say"
    assert {len(report["code"]), len(report["scripts"])} == {12}
    assert [cell["dtype"] for cell in report["lif"]["cells"]] == ["float32", "bfloat16"]
    assert not report["lif"]["left_out"]
    for cell in report["lif"]["cells"]:
        assert cell["contenders"]["snn_core reference"]["both_ms"] > 0
        assert cell["contenders"].get("SpikingJelly torch", {}).get("spikes_differ", 0) == 0
    assert report["lif"]["cells"][0]["contenders"]["plain loop"]["spikes_differ"] == 0


def test_parts_of_the_gpu_suite(tmp_path: Path) -> None:
    """The other parts, in one process; "tests" would run tests within tests."""
    program = """
        import json, pathlib, sys, torch, gpu_parts, gpu_suite
        suite = gpu_parts.Suite(torch.device("cpu"), quick=True)
        names = [name for name in gpu_suite.SHARES if name not in ("environment", "lif", "tests")]
        report = {name: gpu_parts.PARTS[name](suite) for name in names}
        assert list(gpu_parts.PARTS) == list(gpu_suite.SHARES)
        assert sum(share for name, share in gpu_suite.SHARES.items() if name != gpu_suite.LAST) < 8.8 * 60
        pathlib.Path(sys.argv[1]).write_text(json.dumps(report))

        # Training comes last; its command is one that pruning.py takes; what its end is taken for.
        import gpu_pruning, pruning
        from safetensors.torch import save_file
        from watched import Ended
        everything = list(gpu_suite.SHARES)
        assert gpu_suite.plan(None, {}) == everything[:-1]
        done = {name: {} for name in everything[:-1]}
        assert gpu_suite.plan(None, done) == ["environment", "build", "pruning"]
        assert gpu_suite.plan(None, done | {"pruning": {"left_out": "time"}}) == ["environment", "build", "pruning"]
        assert gpu_suite.plan(None, done | {"pruning": {}}) == ["environment", "build"]
        assert gpu_suite.plan(None, done | {"grid": {"failed": 1}}) == ["environment", "build", "grid"]
        assert gpu_suite.plan(["pruning", "lif"], done) == ["lif", "pruning"]

        path = pathlib.Path(sys.argv[1]).with_name("work")
        sys.argv = gpu_pruning.pruning_command(path, "--report")[1:]
        given = pruning.parse_arguments()
        assert given.studies == ["cifar10-gpu"] and given.report and given.work == given.results == path
        assert pruning.get_study(given.studies[0]).keep_state

        body = {"about": {"finished": "1 of 3 runs"}, "rows": [1]}
        part = gpu_pruning.summary(Ended(None, "", 9.0), body, {"a": 3})
        assert "run again" in part["left_out"] and part["epochs_of_unfinished"] == {"a": 3}, part
        whole = gpu_pruning.summary(Ended(0, "", 9.0), {"about": {"finished": "3 of 3 runs"}}, {})
        assert gpu_suite.state(whole) == "done", whole
        absent = gpu_pruning.summary(Ended(1, "left out: cifar10-gpu: no pictures", 9.0), {}, {})
        assert gpu_suite.state(absent) == "skipped", absent
        assert gpu_suite.state(gpu_pruning.summary(Ended(2, "error", 9.0), {}, {})) == "FAILED"
        state = path / "cifar10-gpu/states/abc"
        state.mkdir(parents=True)
        save_file({"x": torch.zeros(1)}, state / "training_state.safetensors",
                  metadata={"progress": json.dumps({"history": [{}, {}]})})
        assert gpu_pruning.epochs_done(path) == {"abc": 2}
    """
    run_in_benchmarks(program, path := tmp_path / "parts.json")
    report = json.loads(path.read_text())
    assert not [name for name, part in report.items() if part.get("failed") or part.get("left_out")]
    checked = report["check"]["checks"]["equal_results"]
    assert checked["left_out"] == 0
    assert all(entry["cases"] > 40 for entry in checked["backends"].values())
    assert "reference" in checked["backends"]
    assert report["sanitizer"]["plain"]["passed"]
    assert report["training_step"]["step_ms"]["reference"] > 0
    assert "plain loop" in [cell["contender"] for cell in report["memory"]["cells"]]
    assert report["grid"]["cells"][0]["contenders"]["snn_core reference"]["both_ms"] > 0
    assert report["open_neuromorphic"]["contenders"]["plain loop"]["both_ms"] > 0
    assert [cell["part"] for cell in report["matmul"]["cells"]] == ["dense", "linear", "conv"]
    assert all(cell["contenders"]["snn_core"]["ms"] > 0 for cell in report["matmul"]["cells"])


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
