"""The commands as a user runs them, on a small part of the built-in simulated recordings."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from snn_core.cli.main import run
from snn_core.distillation import DistilledDataset
from snn_core.errors import InterruptedRunError
from snn_core.kernels.native.build import find_nvcc
from snn_core.sparsity import check_nm, load_compressed

SMALL = ["--set", "data.limit=60", "--set", "model.options.channels=[4,8,8]", "--set", "train.batch_size=20"]
TEACHER = [
    "--set", "distill.teachers.count=1", "--set", "distill.teachers.backbone_options={channels=[4,8,8]}",
    "--set", "distill.teachers.training={epochs=2,batch_size=20}", "--set", "distill.teachers.snapshots=[1.0]",
    "--set", "distill.num_frequencies=16",
]  # fmt: skip
EVALUATION = ["--set", "evaluate.backbone_options={channels=[4,8,8]}", "--set", "evaluate.steps=4", "--networks", "1"]


def snn(capsys: pytest.CaptureFixture[str], *arguments: str | Path, code: int = 0) -> tuple[str, str]:
    """Run the command line in this process; its output and error text."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        run([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert (caught.value.code or 0) == code, captured.err
    return captured.out, captured.err


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    return json.loads(snn(capsys, *arguments, "--json")[0])


def test_train_writes_a_model_that_evaluate_reads(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    report = as_json(capsys, "train", *SMALL, "--epochs", "2", "--output", tmp_path / "run")
    assert report["data"]["simulated"] is True
    assert "simulated" in report["data"]["name"]
    assert len(report["history"]) == 2
    assert json.loads((tmp_path / "run/result.json").read_text())["accuracy"] == report["accuracy"]
    again = as_json(capsys, "evaluate", tmp_path / "run/model.safetensors", *SMALL, "--output", tmp_path / "e")
    assert again["accuracy"] == report["accuracy"]


def test_prune_writes_compressed_file_that_another_process_reads_alike(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    report = as_json(capsys, "prune", *SMALL, "--epochs", "3", "--output", tmp_path / "run")
    assert report["reloaded_logits_identical"] is True
    pruned = [layer for layer in report["layers"] if layer["state"] == "pruned"]
    assert pruned
    assert all(layer["blocks_over_pattern"] == 0 and layer["kept"] <= layer["weights"] / 2 for layer in pruned)
    assert report["compressed_bytes"] < report["dense_bytes"]
    for layer in pruned:
        weight = load_compressed(tmp_path / "run/compressed.safetensors").get_submodule(layer["name"]).weight
        assert check_nm(weight, "2:4") == 0
    program = (
        "import sys, torch; from snn_core.sparsity import load_compressed; from snn_core.training import load_model\n"
        "x = torch.randint(0, 4, (3, 5, 2, 34, 34), generator=torch.Generator().manual_seed(0))\n"
        "a, b = load_compressed(sys.argv[1]), load_model(sys.argv[2])[0]\n"
        "print(torch.equal(a(x), b(x)), a(x).abs().sum().item() > 0)"
    )
    files = [str(tmp_path / "run" / name) for name in ("compressed.safetensors", "model.safetensors")]
    result = subprocess.run([sys.executable, "-c", program, *files], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["True", "True"]


def test_prune_without_blocks_writes_the_dense_file_alone(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["prune", *SMALL, "--epochs", "1", "--method", "magnitude", "--output", tmp_path / "run"]
    report = as_json(capsys, *arguments)
    assert report["compressed_bytes"] is None
    assert not (tmp_path / "run/compressed.safetensors").exists()
    tensors = load_file(tmp_path / "run/model.safetensors")
    masks = {name.removeprefix("mask/"): value for name, value in tensors.items() if name.startswith("mask/")}
    pruned = {layer["name"]: layer["kept"] for layer in report["layers"] if layer["state"] == "pruned"}
    assert {name: int(mask.sum()) for name, mask in masks.items()} == pruned
    assert "none: no N:M pattern" in snn(capsys, *arguments[:-1], tmp_path / "table")[0]
    assert all(word in snn(capsys, "prune", "--help")[0] for word in ("mask-decay", "maskllm", "maskpro", "asp"))


def test_pattern_that_fits_no_layer_is_an_error(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    _, error = snn(
        capsys, "prune", *SMALL, "--pattern", "3:7", "--epochs", "1", "--output", tmp_path / "run", code=2
    )  # fmt: skip
    assert "3:7" in error


def test_distill_and_evaluate(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    report = as_json(capsys, "distill", *SMALL, *TEACHER, "--iterations", "3", "-T", "4", "--output", tmp_path / "run")
    product = DistilledDataset.load(tmp_path / "run/product.h5")
    assert len(product) == report["samples"] == 10
    assert product.frames.dtype == torch.uint8
    assert product.provenance.simulated
    result = as_json(
        capsys, "evaluate", tmp_path / "run/product.h5", *SMALL, *EVALUATION, "--compare-random",
        "--set", "train.epochs=1", "--compare-full", "--output", tmp_path / "e",
    )  # fmt: skip
    assert set(result["results"]) == {"pace", "random", "full data"}
    assert result["results"]["random"]["samples"] == 10
    assert DistilledDataset.load(tmp_path / "run/product.h5").provenance.measured


def test_human_tables(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    output, _ = snn(capsys, "train", *SMALL, "--epochs", "1", "--output", tmp_path / "run")
    assert "test accuracy" in output
    assert "simulated" in output


def test_doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    report = as_json(capsys, "doctor")
    assert report["packages"]["torch"] == torch.__version__ or report["packages"]["torch"] in torch.__version__
    expected = "cpp" if report["native_cpu"]["available"] else "reference"
    assert report["lif"]["cpu float32"] == expected
    assert report["cuda_compiler"] == find_nvcc()
    for part in ("native_cuda", "triton"):
        assert report[part]["available"] == (report[part]["text"] == "loaded")
    assert report["native_cuda"]["available"] or report["native_cuda"]["text"]
    monkeypatch.setenv("SNN_BACKEND", "reference")
    assert as_json(capsys, "doctor")["lif"]["cpu float32"] == "reference"
    assert "native CPU library" in snn(capsys, "doctor")[0]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["train", "--data", "absent-folder"], 3, ["absent-folder"]),
        (["train", "--set", "train.epoch=1"], 2, ["train.epoch", "epochs"]),
        (["train", "--epochs", "many"], 2, []),
        (["train", "--resume"], 4, ["--output"]),
        (["prune", "--pattern", "5:4"], 2, ["5:4"]),
        (["prune", "--method", "magic", *SMALL], 2, ["magic", "spikenm"]),
        (["distill", "--ipc", "0"], 2, ["ipc"]),
        (["distill", "--method", "magic", *SMALL], 2, ["magic", "pace"]),
        (["evaluate", "absent.h5"], 4, ["absent.h5"]),
        (["train", "--device", "cuda"], 2, ["cuda"]),
        (["train", "--device", "gpu"], 2, ["gpu"]),
        (["train", *SMALL, "--set", "model.options.dropout=2"], 2, ["dropout"]),
        (["train", *SMALL, "--set", "model.options.channels=8"], 2, ["channels"]),
        (["nonsense"], 2, []),
    ],
)
def test_bad_input_gives_its_exit_code(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str],
    code: int, words: list[str],
) -> None:  # fmt: skip
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    monkeypatch.chdir(tmp_path)
    _, error = snn(capsys, *arguments, code=code)
    for word in words:
        assert word in error
    assert "Traceback" not in error


def test_resume_on_nothing_and_on_another_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    _, error = snn(capsys, "train", "--resume", "--output", tmp_path / "none", code=4)
    assert "nothing to resume" in error
    snn(capsys, "train", *SMALL, "--epochs", "1", "--output", tmp_path / "run")
    _, error = snn(capsys, "prune", "--resume", "--output", tmp_path / "run", code=4)
    assert "'snn train'" in error
    _, error = snn(capsys, "train", *SMALL, "--output", tmp_path / "run", code=2)
    assert "already holds a run" in error


def test_a_failed_start_does_not_lock_its_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    snn(capsys, "train", "--data", tmp_path / "absent", "--output", tmp_path / "run", code=3)
    report = as_json(capsys, "train", *SMALL, "--epochs", "1", "--output", tmp_path / "run")
    assert report["config"]["data"]["limit"] == 60


def test_evaluate_takes_the_time_steps_of_the_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    first = as_json(capsys, "prune", *SMALL, "--epochs", "1", "-T", "5", "--output", tmp_path / "run")
    for name in ("model.safetensors", "compressed.safetensors"):
        result = as_json(capsys, "evaluate", tmp_path / "run" / name, *SMALL, "--output", tmp_path / name)
        assert (result["T"], result["accuracy"]) == (5, first["accuracy"])
    _, error = snn(
        capsys, "evaluate", tmp_path / "run/model.safetensors", *SMALL, "-T", "2", "--output", tmp_path / "other"
    )
    assert "T = 5" in error


def test_resume_cannot_change_the_run_and_loses_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    first = as_json(capsys, "train", *SMALL, "--epochs", "1", "--output", tmp_path / "run")
    _, error = snn(capsys, "train", "--epochs", "2", "--resume", "--output", tmp_path / "run", code=4)
    assert "cannot be changed" in error
    assert as_json(capsys, "train", "--resume", "--output", tmp_path / "run")["history"] == first["history"]
    (tmp_path / "run/training_state.safetensors").unlink()  # as if interrupted while the data were read
    again = as_json(capsys, "train", "--resume", "--output", tmp_path / "run")
    assert again["accuracy"] == first["accuracy"]


def test_evaluate_goes_on_where_it_was_interrupted(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second network set is interrupted; the first is not trained again."""
    from snn_core.cli import evaluate as command

    snn(capsys, "distill", "--method", "random", *SMALL, "--output", tmp_path / "run")
    arguments = ["evaluate", tmp_path / "run/product.h5", "--compare-full"]
    options = [*SMALL, *EVALUATION, "--set", "train.epochs=1", "--output", tmp_path / "e"]

    def interrupt(*args: Any, **kwargs: Any) -> Any:
        raise InterruptedRunError("network 1 of 1: interrupted")

    monkeypatch.setattr(command, "evaluate_full", interrupt)
    _, error = snn(capsys, *arguments, *options, code=130)
    assert f"product.h5 --compare-full --resume --output {tmp_path / 'e'}" in error
    monkeypatch.undo()
    monkeypatch.setattr(command, "evaluate_product", interrupt)
    result = as_json(capsys, *arguments, "--resume", "--output", tmp_path / "e")
    assert set(result["results"]) == {"random", "full data"}


def test_a_damaged_product_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "product.h5"
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    _, error = snn(capsys, "evaluate", path, *SMALL, "--output", tmp_path / "e", code=4)
    assert "product.h5" in error


def test_interrupted_command_says_how_to_go_on_and_does(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Ctrl-C to a real process in the middle of training; the resumed run ends as an uninterrupted one."""
    arguments = [*SMALL, "--epochs", "30", "--json"]
    expected = as_json(capsys, "prune", *arguments[:-1], "--output", tmp_path / "whole")
    command = [sys.executable, "-m", "snn_core.cli.main", "prune", *arguments, "--output", str(tmp_path / "cut")]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    state = tmp_path / "cut/training_state.safetensors"
    deadline = time.monotonic() + 120
    while not state.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    assert f"snn prune --resume --output {tmp_path / 'cut'}" in error
    resumed = as_json(capsys, "prune", "--resume", "--output", tmp_path / "cut")
    assert resumed["history"] == expected["history"]
    assert resumed["accuracy"] == expected["accuracy"]
