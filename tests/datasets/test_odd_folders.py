"""Folders of recordings with links in them, and with names that are no UTF-8."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from snn_core.datasets import load_frames, make_events, open_frames, open_source
from snn_core.datasets.nmnist_format import write_nmnist


def recording(seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return make_events(np.arange(40) * 10, random.integers(0, 34, 40), random.integers(0, 34, 40), [0, 1] * 20)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "set"
    for number, (split, digit) in enumerate([("Train", 3), ("Train", 5), ("Test", 3)]):
        (root / split / str(digit)).mkdir(parents=True)
        write_nmnist(root / split / str(digit) / "00001.bin", recording(number))
    return root


@pytest.mark.parametrize("linked", ["Train", "Train/5"])
def test_linked_folders_hold_recordings_like_others(folder: Path, tmp_path: Path, linked: str) -> None:
    whole = load_frames(folder, "train", T=2, use_cache=False, quiet=True)
    (folder / linked).rename(tmp_path / "elsewhere")
    (folder / linked).symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    found = load_frames(folder, "train", T=2, use_cache=False, quiet=True)
    assert found.ids == ["Train/3/00001", "Train/5/00001"]
    assert found.content_key == whole.content_key


def test_links_in_a_circle_end(folder: Path, tmp_path: Path) -> None:
    (folder / "again").symlink_to(folder, target_is_directory=True)
    for name, target in (("one", "two"), ("two", "one")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "other").symlink_to(tmp_path / target, target_is_directory=True)
    (folder / "circle").symlink_to(tmp_path / "one", target_is_directory=True)
    assert [item.id for item in open_source(folder).recordings("all")] == [
        "Train/3/00001",
        "Train/5/00001",
        "Test/3/00001",
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="file names are any bytes on Linux alone")
def test_names_that_are_no_utf8(folder: Path, tmp_path: Path) -> None:
    os.rename(folder / "Train/3/00001.bin", os.fsencode(folder / "Train/3") + b"/\xff\xfe.bin")
    expected = ["Train/3/" + os.fsdecode(b"\xff\xfe"), "Train/5/00001"]
    for _ in range(2):  # built, then from the cache
        assert load_frames(folder, "train", T=2, cache_dir=tmp_path / "cache", quiet=True).ids == expected
    assert open_frames(folder, "train", T=2, cache_dir=tmp_path / "cache", quiet=True).ids == expected
