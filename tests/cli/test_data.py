"""``snn data`` on a small cache, and what it is made of."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from snn_core.cli.main import run
from snn_core.datasets import clear_cache, info, list_cache, list_datasets, make_events, open_frames, write_nmnist
from snn_core.datasets.part_file import PartFile, compressed
from snn_core.errors import StorageError

Snn = Callable[..., Any]
KEY = "0123456789abcdef" * 4


@pytest.fixture
def snn(capsys: pytest.CaptureFixture[str]) -> Snn:
    """Runs a command: its JSON, or with another exit code than 0 what it said on standard error."""

    def call(*arguments: str | Path, code: int = 0, as_json: bool = True) -> Any:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            run(["data", *(str(argument) for argument in arguments), *(["--json"] if as_json else [])])
        captured = capsys.readouterr()
        assert (caught.value.code or 0) == code, captured.err
        assert "Traceback" not in captured.err
        return captured.err if code else json.loads(captured.out) if as_json else captured.out

    return call


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for split in ("Train", "Test"):
        for label in (0, 1, 7):
            events = make_events(np.arange(500, 600), *(random.integers(0, size, 100) for size in (34, 34, 2)))
            write_nmnist(tmp_path / "set" / split / str(label) / "1.bin", events)
    return tmp_path / "set"


@pytest.fixture
def cache(layout: Path, tmp_path: Path) -> Path:
    """Frames of both splits, an unfinished build, what a killed one left, a damaged file, and one of somebody else."""
    folder = tmp_path / "cache"
    for split in ("train", "test"):
        open_frames(layout, split, T=2, cache_dir=folder)
    with PartFile(folder / f"frames-{KEY[:32]}.h5", KEY, 6, 100) as part:
        part.append(compressed(b"a"), 0)
    (folder / f".frames-{KEY[:32]}.h5.abc.tmp").write_bytes(b"half")
    (folder / f"frames-{'f' * 32}.h5").write_bytes(b"nothing")
    (folder / "teacher.safetensors").write_bytes(b"not ours")
    return folder


def test_build(snn: Snn, layout: Path, tmp_path: Path) -> None:
    options = ["--cache-dir", tmp_path / "c", "-T", 4, "--by", "window", "--time-window", 10]
    built = snn("build", layout, *options)
    assert [(row["split"], row["samples"]) for row in built["files"]] == [("train", 3), ("test", 3)]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "c").iterdir()}
    assert set(map(str, before)) == {row["path"] for row in built["files"]}
    again = snn("build", layout, *options, "--split", "test")
    assert again["files"][0]["content_key"] == built["files"][1]["content_key"]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "c").iterdir()} == before
    assert "samples" in snn("build", layout, *options, as_json=False)
    assert "goes with by=" in snn("build", layout, "--by", "window", code=2)
    assert "by must be one of time, count, window" in snn("build", layout, "--by", "number", code=2)
    assert "no data source" in snn("build", tmp_path / "none", code=3)
    assert "split_name is an option of data sets by name" in snn("build", layout, "--split-name", "last100", code=2)
    assert "split must be one of" in snn("build", layout, "--split", "validation", code=2)


def test_list(snn: Snn, cache: Path, layout: Path, tmp_path: Path) -> None:
    listed = snn("list", "--cache-dir", cache)
    assert sorted(file["state"] for file in listed["files"]) == sorted(
        ["frames", "frames", "damaged", "unfinished", "unfinished"]
    )
    frames = [file["summary"] for file in listed["files"] if file["state"] == "frames"]
    assert {(facts["name"], facts["split"], facts["binning"]) for facts in frames} == {
        ("set", "train", "by time"),
        ("set", "test", "by time"),
    }
    assert frames[0]["shape"] == [3, 2, 2, 34, 34]
    assert listed["bytes"] == sum(path.stat().st_size for path in cache.iterdir() if "frames" in path.name)
    assert "unfinished" in snn("list", "--cache-dir", cache, as_json=False)
    assert snn("list", "--cache-dir", tmp_path / "none") == {"files": [], "bytes": 0}
    with pytest.raises(StorageError, match="cannot read the folder"):
        list_cache(cache / "teacher.safetensors")


def test_verify(snn: Snn, cache: Path) -> None:
    assert f"1 of 3 files are damaged: frames-{'f' * 32}.h5" in snn("verify", "--cache-dir", cache, code=3)
    (cache / f"frames-{'f' * 32}.h5").unlink()
    assert snn("verify", "--cache-dir", cache) == {"verified": 2, "damaged": {}}
    one, other = (file for file in list_cache(cache) if file.state == "frames")
    data = bytearray(one.path.read_bytes())
    data[len(data) // 2] ^= 1
    one.path.write_bytes(data)
    assert one.path.name in snn("verify", "--cache-dir", cache, code=3)
    assert snn("verify", other.key[:10], "--cache-dir", cache)["verified"] == 1
    one.path.write_bytes(other.path.read_bytes())  # whole, but not what its name says
    assert "1 of 2 files are damaged" in snn("verify", "--cache-dir", cache, code=3)


def test_clear_removes_what_was_chosen(snn: Snn, cache: Path) -> None:
    before = sorted(cache.iterdir())
    assert "nothing is chosen" in snn("clear", "--cache-dir", cache, code=2)
    assert "--all goes with no other choice" in snn("clear", "--all", "--useless", "--cache-dir", cache, code=2)
    assert "is no file of the cache" in snn("clear", "0123", "--cache-dir", cache, code=2)
    assert len(snn("clear", "--all", "--dry-run", "--cache-dir", cache)["removed"]) == 5
    assert snn("clear", "--name", "other", "--cache-dir", cache)["removed"] == []
    assert snn("clear", "--older-than", 1, "--cache-dir", cache)["removed"] == []
    assert sorted(cache.iterdir()) == before
    train = next(file for file in list_cache(cache) if file.summary.get("split") == "train")
    os.utime(train.path, (time.time() - 2 * 86_400,) * 2)
    assert snn("clear", "--older-than", 1, "--cache-dir", cache)["removed"] == [str(train.path)]
    assert len(snn("clear", "--useless", "--cache-dir", cache)["removed"]) == 3
    assert [file.state for file in list_cache(cache)] == ["frames"]
    test = list_cache(cache)[0]
    assert snn("clear", test.path, "--cache-dir", cache) == {
        "dry_run": False,
        "removed": [str(test.path)],
        "bytes": test.bytes,
        "kept": {},
    }
    assert [path.name for path in cache.iterdir()] == ["teacher.safetensors"]


def test_clear_keeps_what_is_being_built(cache: Path) -> None:
    with PartFile(cache / f"frames-{KEY[:32]}.h5", KEY, 6, 100):
        (cache / f".frames-{KEY[:32]}.h5.abc.tmp").write_bytes(b"half")
        files = list_cache(cache)
        assert sorted(file.state for file in files).count("in the making") == 2
        removed, kept = clear_cache(files)
        assert len(removed) == 3
        assert set(kept.values()) == {"somebody builds it now"}
        assert len(kept) == 2
    assert len(clear_cache(list_cache(cache))[0]) == 2
    assert [path.name for path in cache.iterdir()] == ["teacher.safetensors"]


def test_files_of_another_version_are_told(cache: Path, layout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snn_core.datasets.cache_files.FORMAT_VERSION", 99)
    assert [file.state for file in list_cache(cache)].count("other version") == 2


def test_sets_by_name(snn: Snn) -> None:
    known = {facts["name"]: facts for facts in snn("sets")["datasets"]}
    assert set(known) == set(list_datasets())
    assert snn("sets", "cifar10-dvs") == known["cifar10-dvs"] == info("cifar10-dvs").model_dump(mode="json")
    assert "9,000 + 1,000" in snn("sets", as_json=False)
    text = snn("sets", "shd", as_json=False)
    assert "licence: CC BY 4.0" in text
    assert "splits: official: train: 8156; test: 2264" in text
    assert "did you mean 'cifar10-dvs'" in snn("sets", "cifar10_dvs", code=2)
