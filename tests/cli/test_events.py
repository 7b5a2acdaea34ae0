"""``snn events`` on files of several formats."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from snn_core.cli.main import run
from snn_core.datasets import make_events, read_events, write_events


def snn(capsys: pytest.CaptureFixture[str], *arguments: str | Path, code: int = 0) -> tuple[str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        run([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert (caught.value.code or 0) == code, captured.err
    return captured.out, captured.err


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    events = make_events([1000, 1500, 4000], [1, 20, 33], [0, 5, 30], [1, 0, 1])
    write_events(tmp_path / "recording.raw", events)
    return tmp_path / "recording.raw"


def test_info(capsys: pytest.CaptureFixture[str], recording: Path) -> None:
    found = json.loads(snn(capsys, "events", "info", recording, "--json")[0])
    assert found["format"] == "Prophesee EVT2"
    assert (found["num_events"], found["num_on"], found["duration"]) == (3, 2, 3000)
    assert (found["t_range"], found["x_range"], found["y_range"]) == ([1000, 4000], [1, 33], [0, 30])
    text = snn(capsys, "events", "info", recording)[0]
    assert "Prophesee EVT2" in text
    assert "1000 .. 4000 us" in text


@pytest.mark.parametrize("target", ["a.npz", "a.h5", "a.bin", "a.dat"])
def test_convert(capsys: pytest.CaptureFixture[str], recording: Path, tmp_path: Path, target: str) -> None:
    out, _ = snn(capsys, "events", "convert", recording, tmp_path / target)
    assert "3 events written" in out
    np.testing.assert_array_equal(read_events(tmp_path / target), read_events(recording))


def test_errors_are_messages(capsys: pytest.CaptureFixture[str], recording: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.raw").write_bytes(recording.read_bytes()[:-1])
    _, error = snn(capsys, "events", "info", tmp_path / "cut.raw", code=3)
    assert "cut.raw: at offset" in error
    assert "cut off" in error
    _, error = snn(capsys, "events", "convert", recording, tmp_path / "a.xyz", code=2)
    assert "format must be one of" in error
    assert "Traceback" not in error


def test_show_draws(capsys: pytest.CaptureFixture[str], recording: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pip install 'snn-core[plots]'").use("Agg")
    out, _ = snn(capsys, "events", "show", recording, "--output", tmp_path / "a.png", "--panels", "2")
    assert "drawn to" in out
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_show_without_matplotlib(
    capsys: pytest.CaptureFixture[str], recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    _, error = snn(capsys, "events", "show", recording, code=2)
    assert "snn-core[plots]" in error
