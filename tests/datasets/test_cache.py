"""The frame cache: hit, other key, damage, refused writes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from snn_core.datasets import FrameDataset, build, cache, load_frames
from snn_core.errors import ArgumentError, DataError


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by one whenever frames are built rather than loaded."""
    calls: list[str] = []
    original = build.binned

    def binned(source: Any, *arguments: Any) -> Any:
        calls.append(source.name)
        return original(source, *arguments)

    monkeypatch.setattr(build, "binned", binned)
    return calls


def same(first: FrameDataset, second: FrameDataset) -> bool:
    return (
        torch.equal(first.frames, second.frames)
        and torch.equal(first.labels, second.labels)
        and first.ids == second.ids
        and first.saturated == second.saturated
        and first.content_key == second.content_key
    )


def test_second_load_comes_from_the_cache(layout: Path, tmp_path: Path, builds: list[str]) -> None:
    first = load_frames(layout, "train", cache_dir=tmp_path / "cache")
    second = load_frames(layout, "train", cache_dir=tmp_path / "cache")
    assert len(builds) == 1
    assert same(first, second)
    assert second.frames.any()
    load_frames(layout, "train", cache_dir=tmp_path / "cache", use_cache=False)
    assert len(builds) == 2


def test_every_parameter_has_its_own_key(layout: Path, tmp_path: Path, builds: list[str]) -> None:
    variants: list[tuple[str, dict[str, Any]]] = [
        ("train", {}),
        ("test", {}),
        ("all", {}),
        ("train", {"T": 4}),
        ("train", {"by": "count"}),
        ("train", {"limit": 5}),
        ("train", {"limit": 5, "seed": 1}),
        ("train", {"limit": 6}),
    ]
    keys = {load_frames(layout, split, cache_dir=tmp_path / "c", **options).content_key for split, options in variants}
    assert len(keys) == len(builds) == len(variants)
    assert len(list((tmp_path / "c").iterdir())) == len(variants)
    # Real recordings without a limit do not depend on the seed.
    load_frames(layout, "train", cache_dir=tmp_path / "c", seed=5)
    assert len(builds) == len(variants)


def test_changed_source_is_noticed(
    layout: Path, zipped: Callable[[Path], Path], tmp_path: Path, builds: list[str]
) -> None:
    packed = zipped(layout)
    before = [load_frames(source, "train", cache_dir=tmp_path / "c") for source in (layout, packed)]
    file = layout / "Train/0/00001.bin"
    data = bytearray(file.read_bytes())
    data[0] = (data[0] + 1) % 34
    file.write_bytes(data)
    zipped(layout)
    after = [load_frames(source, "train", cache_dir=tmp_path / "c") for source in (layout, packed)]
    assert len(builds) == 4
    for old, new in zip(before, after, strict=True):
        assert old.content_key != new.content_key
        assert not torch.equal(old.frames[0], new.frames[0])


def damage_nothing_left(path: Path) -> None:
    path.write_bytes(b"")


def damage_cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def damage_one_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) * 2 // 3] ^= 4
    path.write_bytes(data)


def damage_other_file(path: Path) -> None:
    path.write_text("not a cache file at all, but text " * 50)


def damage_plain_hdf5(path: Path) -> None:
    path.unlink()
    with h5py.File(path, "w") as file:
        file["frames"] = np.zeros((9, 3, 2, 34, 34), np.uint8)


@pytest.mark.parametrize(
    "damage",
    [damage_nothing_left, damage_cut_off, damage_one_bit, damage_other_file, damage_plain_hdf5],
    ids=lambda function: function.__name__,
)
def test_damaged_cache_is_built_again_with_a_warning(
    layout: Path, tmp_path: Path, builds: list[str], damage: Callable[[Path], None]
) -> None:
    first = load_frames(layout, "train", cache_dir=tmp_path / "c")
    (path,) = (tmp_path / "c").iterdir()
    damage(path)
    with pytest.warns(UserWarning, match=rf"frame cache .*{path.name} cannot be used and is built again"):
        second = load_frames(layout, "train", cache_dir=tmp_path / "c")
    assert same(first, second)
    third = load_frames(layout, "train", cache_dir=tmp_path / "c")  # the rebuilt file is sound: no warning, no build
    assert same(first, third)
    assert len(builds) == 2


def test_cache_of_another_key_is_not_believed(layout: Path, tmp_path: Path, builds: list[str]) -> None:
    load_frames(layout, "train", cache_dir=tmp_path / "c")
    (path,) = (tmp_path / "c").iterdir()
    load_frames(layout, "test", cache_dir=tmp_path / "c")
    (other,) = set((tmp_path / "c").iterdir()) - {path}
    path.write_bytes(other.read_bytes())
    with pytest.warns(UserWarning, match="content key"):
        assert len(load_frames(layout, "train", cache_dir=tmp_path / "c")) == 9
    assert len(builds) == 3


def test_cache_is_an_ordinary_hdf5_file(layout: Path, tmp_path: Path) -> None:
    dataset = load_frames(layout, "train", cache_dir=tmp_path / "c")
    (path,) = (tmp_path / "c").iterdir()
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["frames"][...], dataset.frames.numpy())
        np.testing.assert_array_equal(file["labels"][...], dataset.labels.numpy())
        assert file.attrs["content_key"] == dataset.content_key


def test_unwritable_folder_warns_and_goes_on(layout: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="frames are not cached, going on without: cannot write"):
        assert len(load_frames(layout, "train", cache_dir=tmp_path / "file")) == 9
    assert (tmp_path / "file").read_text() == "a file where the folder should be"


def test_full_disk_warns_and_leaves_the_old_file(layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_frames(layout, "train", cache_dir=tmp_path / "c")
    (path,) = (tmp_path / "c").iterdir()
    damage_one_bit(path)
    before = path.read_bytes()

    def disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", disk_full)
    with (
        pytest.warns(UserWarning, match="cannot be used and is built again"),
        pytest.warns(UserWarning, match="frames are not cached, going on without: cannot write .*No space left"),
    ):
        assert len(load_frames(layout, "train", cache_dir=tmp_path / "c")) == 9
    assert path.read_bytes() == before
    assert list((tmp_path / "c").iterdir()) == [path]


FULL_DISK = """
import resource, sys, warnings
from snn_core.datasets import load_frames
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    data = load_frames(sys.argv[1], "train", cache_dir=sys.argv[2])
assert len(data) == 9
assert ["not cached" in str(warning.message) for warning in caught] == [True], caught
"""


def test_write_that_the_system_refuses_ends_in_no_crash(layout: Path, tmp_path: Path) -> None:
    """In a process of its own, with a file size limit: there h5py writing to disk ended in a segmentation fault."""
    command = [sys.executable, "-c", FULL_DISK, str(layout), str(tmp_path / "c")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert list((tmp_path / "c").iterdir()) == []


def test_interrupted_build_leaves_no_cache(layout: Path, tmp_path: Path) -> None:
    (layout / "Train/7/00003.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"Train/7/00003\.bin: empty"):
        load_frames(layout, "train", cache_dir=tmp_path / "c")
    assert list((tmp_path / "c").iterdir()) == []


def test_default_folder_is_snn_cache(layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNN_CACHE", str(tmp_path / "from environment"))
    dataset = load_frames(layout, "train")
    (path,) = (tmp_path / "from environment").iterdir()
    assert dataset.content_key[:32] in path.name


def test_cached_frames_that_do_not_fit_in_memory_are_named(
    layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_frames(layout, "train", cache_dir=tmp_path / "cache")

    def refuse(path: Path, key: str) -> None:
        raise MemoryError("Unable to allocate 9 TiB")

    monkeypatch.setattr(cache, "_read", refuse)
    with pytest.raises(ArgumentError, match=r"do not fit in memory \(Unable to allocate 9 TiB\); open_frames"):
        load_frames(layout, "train", cache_dir=tmp_path / "cache")
