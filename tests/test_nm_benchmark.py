"""benchmarks/nm_matmul.py runs on small cells, keeps them, and says what is wrong and what falls short."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

from snn_core.kernels.native import cpu_library

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments: str | Path) -> str:
    result = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def run_in_benchmarks(program: str) -> str:
    return run("-c", "import sys; sys.path.insert(0, 'benchmarks')\n" + textwrap.dedent(program))


def test_small_cells_are_measured_checked_and_kept(tmp_path: Path) -> None:
    command = [
        "benchmarks/nm_matmul.py", "--threads", "1", "--repeats", "1", "--seconds", "0.05", "--parts", "linear",
        "--shapes", "70,128,96", "--rates", "0.1", "--work", tmp_path / "work", "--json", tmp_path / "nm.json",
    ]  # fmt: skip
    run(*command)
    report = json.loads((tmp_path / "nm.json").read_text())
    (cell,) = report["cells"]
    entries = cell["contenders"]
    for name in ("snn_core", "snn_core, with packing", "oneDNN bfloat16", "oneDNN float32", "torch CSR spikes"):
        assert entries[name]["ms"] > 0, name
        assert entries[name]["relative_error"] < 1e-2, name
    assert entries["snn_core"]["dtype"] == "float32"
    assert entries["snn_core"]["relative_error"] < 1e-6
    if cpu_library().available:
        assert entries["path event"]["relative_error"] < 1e-6
    best = cell["best"]["dense bfloat16"]
    assert cell["ratio"]["dense bfloat16"] == entries[best]["ms"] / entries["snn_core"]["ms"]
    assert cell["taken"].split()[0].split(":")[0] in ("cpp", "dense")
    (kept,) = (tmp_path / "work").glob("*.json")
    assert json.loads(kept.read_text())["result"]["best"] == cell["best"]


def test_convolutions_patterns_and_dense_activations() -> None:
    program = """
        import torch, nm_cell
        settings = nm_cell.Settings(torch.device("cpu"), 1, 0.02, 60.0)
        def cell(shape, pattern, rate):
            return nm_cell.time_cell({"shape": shape, "pattern": pattern, "rate": rate, "dtype": "bfloat16"}, settings)
        conv = cell([3, 16, 6, 5, 24, 3, 2, 1], "2:4", 0.2)["contenders"]
        assert conv["snn_core"]["relative_error"] < 1e-6, conv
        for name in ("F.conv2d float32", "oneDNN bfloat16", "F.conv2d bfloat16, channels-last"):
            assert conv[name]["relative_error"] < 1e-2, conv[name]
        assert cell([5, 64, 32], "1:8", 0.2)["contenders"]["snn_core"]["relative_error"] < 1e-6
        settings.patience = 0.0
        slow = cell([5, 64, 32], "1:8", 0.2)
        assert list(slow["best"]) == ["ours"] and "0.0 allowed" in slow["contenders"]["oneDNN float32"]["skipped"]
        settings.patience = 60.0
        nm_cell.CPU_ROTATION_BYTES = 1 << 20
        few = cell([2, 256, 1024], "2:4", None)
        assert few["sets"] == 3 and few["contenders"]["snn_core"]["dtype"] == "bfloat16", few
        assert few["contenders"]["snn_core"]["relative_error"] < 1e-2, few
    """
    run_in_benchmarks(program)


def test_grid_goals_and_what_is_wrong() -> None:
    """In one process: every part has cells of different names; what falls short and what is wrong is told; and a wrong
    element of a product is seen."""
    program = """
        import argparse, torch, nm_cell, nm_matmul
        for part in nm_matmul.PARTS:
            arguments = argparse.Namespace(
                device="cpu", threads=1, repeats=1, seconds=1, patience=1, dtype="bfloat16", rows=[1, 64], rates=[0.05],
                shapes=None, parts=[part])
            cells = nm_matmul.grid(arguments)
            assert cells and all(cell["part"] == part and nm_matmul.place(cell) for cell in cells)
            assert len(set(map(nm_matmul.place, cells))) == len(cells)

        def entry(kind, ms, **more):
            return {"kind": kind, "ms": ms, "dtype": "float32", "relative_error": 1e-7} | more
        def cell(rate=0.05, **changes):
            report = {
                "snn_core": entry("ours", 1.0), "snn_core, with packing": entry("packing", 2.0),
                "path event": entry("path", 1.1), "oneDNN bfloat16": entry("dense", 4.0, dtype="bfloat16"),
                "oneDNN float32": entry("dense", 3.0), "torch CSR weight": entry("sparse", 9.0),
            }
            for name, more in changes.items():
                report[name.replace("_", " ").replace("snn core", "snn_core")] |= more
            base = {"device": "cpu", "part": "linear", "shape": [8, 8, 8], "pattern": "2:4", "rate": rate}
            return base | {"result": {"contenders": report} | nm_cell.summarise(report)}
        good = cell()
        assert good["result"]["best"]["dense"] == "oneDNN float32"
        assert good["result"]["ratio"] == {"dense": 3.0, "dense bfloat16": 4.0, "path": 1.1, "sparse": 9.0,
                                           "dense bfloat16, with packing": 2.0}
        assert nm_matmul.goals([good])["short"] == [] and nm_matmul.wrong([good]) == []
        slow = cell(oneDNN_bfloat16={"ms": 2.0})
        assert len(nm_matmul.goals([slow])["short"]) == 1  # 3 times is wanted at 5 %
        assert nm_matmul.goals([cell(0.5, oneDNN_bfloat16={"ms": 2.0})])["short"] == []
        assert len(nm_matmul.goals([cell(0.5, oneDNN_float32={"ms": 0.9})])["short"]) == 1
        assert nm_matmul.goals([cell(0.5, oneDNN_bfloat16={"ms": 0.9})])["smallest_ratio"] == {
            "linear: best dense": 0.9, "linear: every rate": 0.9}
        for changes in ({"snn_core": {"relative_error": 1e-4}}, {"path_event": {"relative_error": float("nan")}},
                        {"oneDNN_bfloat16": {"relative_error": 0.1}}, {"path_event": {"failed": "boom"}}):
            assert len(nm_matmul.wrong([cell(**changes)])) == 1, changes
        lost = cell()
        del lost["result"]["contenders"]["snn_core"]["ms"]
        assert len(nm_matmul.wrong([lost])) == 1 and nm_cell.summarise(lost["result"]["contenders"])["ratio"] == {}
        assert len(nm_matmul.wrong([lost | {"result": {"failed": "boom"}}])) == 1

        cell = {"shape": [70, 64, 32], "pattern": "2:4", "rate": 0.3, "dtype": "bfloat16"}
        operands = nm_cell.make_operands(cell, torch.device("cpu"), 0)
        y = operands.x @ operands.weight.t()
        assert nm_cell.relative_error(y, operands) < 1e-6
        y[69] += 0.1
        assert nm_cell.relative_error(y, operands) > 1e-3
        y[0, 0] = float("nan")
        assert not nm_cell.relative_error(y, operands) < 1e30
        image = nm_cell.make_operands(cell | {"shape": [2, 16, 5, 5, 8, 3, 1, 1]}, torch.device("cpu"), 0)
        z = torch.nn.functional.conv2d(image.x, image.weight, padding=1)
        assert nm_cell.relative_error(z, image) < 1e-6 < nm_cell.relative_error(z.flip(1), image)
    """
    run_in_benchmarks(program)


def test_readme_tables() -> None:
    program = """
        import readme
        def cell(part, shape, rate, **more):
            return {"part": part, "shape": shape, "pattern": "2:4", "rate": rate,
                    "contenders": {"snn_core": {"ms": 1.234}},
                    "ratio": {"dense": 0.99, "dense bfloat16": 2.5, "dense bfloat16, with packing": 1.5}} | more
        cells = [cell("linear", [8, 16, 32], 0.05), cell("linear", [8, 16, 32], 0.1), cell("linear", [9, 16, 32], 0.1),
                 cell("conv", [1, 2, 3, 4, 5, 3, 2, 1], 0.5), cell("dense", [1, 16, 32], None),
                 cell("patterns", [8, 16, 32], 0.2, contenders={"snn_core": {"failed": "boom"}})]
        goals = {"smallest_ratio": {"linear: best dense": 1.2}}
        text = readme.nm_matmul({"cells": cells, "threads": 2, "goals": goals})
        lines = text.splitlines()
        for line in ("| shape | 5 % fire | 10 % fire |", "| 8 x 16 x 32 | 1.23 (2.50, 1.50) | 1.23 (2.50, 1.50) |",
                     "| 9 x 16 x 32 | - | 1.23 (2.50, 1.50) |",
                     "| 1 x 2 x 3 x 4, 3 x 3 to 5, stride 2 | 1.23 (2.50, 1.50) |",
                     "| 1 x 16 x 32 | 1.23 (0.99) |", "| 8 x 16 x 32, 2:4 | failed |"):
            assert line in lines, (line, text)
        assert "linear: best dense 1.20." in text
    """
    run_in_benchmarks(program)
