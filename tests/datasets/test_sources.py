"""Folders, zips and names as sources, and every way in which they can be wrong."""

from __future__ import annotations

import shutil
import urllib.error
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from snn_core.datasets import cache_root, data_root, iterate_events, load_frames, open_source
from snn_core.errors import ArgumentError, DataError

Make = Callable[..., Path]


def content(source: Path, split: str = "all") -> list[tuple[str, int, list[tuple[int, ...]]]]:
    return [(name, label, events.tolist()) for events, label, name in iterate_events(source, split)]


def test_folder_zip_and_tonic_nesting_hold_the_same(make_layout: Make, zipped: Callable[[Path], Path]) -> None:
    plain, nested = make_layout("plain"), make_layout("nested", inside="NMNIST")
    expected = content(plain)
    assert [name for name, _, _ in expected[:4]] == ["Train/0/00001", "Train/0/00002", "Train/0/00003", "Train/1/00001"]
    assert [label for _, label, _ in expected] == [0] * 3 + [1] * 3 + [7] * 3 + [0, 1, 7]
    assert content(nested) == expected
    assert content(zipped(plain)) == expected
    assert content(zipped(nested)) == expected
    assert content(plain, "train") + content(plain, "test") == expected


def test_real_recordings(nmnist_zip: Path) -> None:
    source = open_source(nmnist_zip)
    labels = {split: [r.label for r in source.recordings(split)] for split in ("train", "test")}
    assert len(labels["train"]) == 750
    assert np.bincount(labels["test"]).tolist() == [8, 14, 8, 11, 14, 7, 10, 15, 2, 11]
    assert not source.simulated
    assert "real" in repr(source)


def test_content_hash_follows_content(make_layout: Make) -> None:
    first, second = make_layout("first"), make_layout("second")
    hashes = {split: open_source(first).content_hash(split) for split in ("train", "test", "all")}
    assert len(set(hashes.values())) == 3
    assert open_source(second).content_hash("all") == hashes["all"]
    file = second / "Train/1/00002.bin"
    data = bytearray(file.read_bytes())
    data[4] ^= 1
    file.write_bytes(data)
    assert open_source(second).content_hash("train") != hashes["train"]
    assert open_source(second).content_hash("test") == hashes["test"]
    file.rename(file.with_name("00009.bin"))
    (first / "Train/1/00002.bin").rename(first / "Train/1/00009.bin")
    assert open_source(first).content_hash("train") != hashes["train"]


def test_missing_folder_says_where_to_get_the_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no data source .*nowhere.*digits-dvs.*nmnist.*garrickorchard.*SNN_DATA"):
        load_frames(tmp_path / "nowhere", "train")


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the folder is empty; expected Train/<digit>/<id>\.bin"):
        load_frames(tmp_path, "train")


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_folder_without_a_split(tmp_path: Path, zipped: Callable[[Path], Path], packed: bool) -> None:
    folder = tmp_path / "other"
    (folder / "pictures/3").mkdir(parents=True)
    (folder / "pictures/3/00001.bin").write_bytes(bytes(5))
    with pytest.raises(DataError, match="neither Train/ nor Test/"):
        load_frames(zipped(folder) if packed else folder, "train")


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize("label", ["ten", "10", "-1", "٣"])
def test_label_folder_that_is_no_digit(layout: Path, zipped: Callable[[Path], Path], packed: bool, label: str) -> None:
    (layout / "Train/1").rename(layout / "Train" / label)
    with pytest.raises(DataError, match=rf"Train/{label}/00001\.bin: label folder '{label}' is no digit"):
        load_frames(zipped(layout) if packed else layout, "train")


def test_file_outside_a_label_folder(layout: Path) -> None:
    shutil.copy(layout / "Train/1/00001.bin", layout / "Train/00001.bin")
    with pytest.raises(DataError, match=r"Train/00001\.bin: not inside one label folder"):
        load_frames(layout, "train")


@pytest.mark.parametrize("form", ["folder", "zip", "zip with folders only"])
def test_label_folder_that_is_no_digit_and_holds_no_recording(layout: Path, form: str) -> None:
    (layout / "Train/seven").mkdir()
    if form != "zip with folders only":
        (layout / "Train/seven/00001.txt").write_text("x")
    source = layout
    if form != "folder":
        source = layout.with_suffix(".zip")
        with zipfile.ZipFile(source, "w") as archive:
            for file in sorted(layout.rglob("*")):
                if file.is_file() or form == "zip with folders only":
                    archive.write(file, file.relative_to(layout))
    with pytest.raises(DataError, match=r"Train/seven: label folder 'seven' is no digit"):
        load_frames(source, "train")


def test_empty_label_folders_and_other_files_are_no_error(layout: Path) -> None:
    before = content(layout)
    (layout / "Train/3").mkdir()
    (layout / "Train/.hidden").mkdir()
    (layout / "Train/readme.txt").write_text("x")
    (layout / "pictures/seven").mkdir(parents=True)
    assert content(layout) == before


def test_suffix_in_upper_case(layout: Path) -> None:
    before = content(layout)
    (layout / "Train/1/00002.bin").rename(layout / "Train/1/00002.BIN")
    assert content(layout) == before
    path = layout.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in layout.rglob("*.*"):
            archive.write(file, file.relative_to(layout))
    assert content(path) == before


def test_same_name_in_upper_and_lower_case(tmp_path: Path) -> None:
    path = tmp_path / "cases.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("Train/0/00001.BIN", bytes(5))
        archive.writestr("Train/0/00001.bin", bytes(5))
    with pytest.raises(DataError, match=r"00001\.bin: same name as Train/0/00001\.BIN"):
        load_frames(path, "train")


def test_split_that_is_not_there(make_layout: Make) -> None:
    folder = make_layout(splits=("Train",))
    assert len(load_frames(folder, "train", use_cache=False)) == 9
    for split in ("test", "all"):
        with pytest.raises(DataError, match=rf"no recordings for split '{split}'.* Test/ \(found only Train/\)"):
            load_frames(folder, split)


def test_two_data_sets_in_one_folder(make_layout: Make) -> None:
    make_layout("both", inside="a")
    with pytest.raises(DataError, match=r"several folders hold Train/ or Test/ \(a, b\)"):
        load_frames(make_layout("both", inside="b"), "train")


def test_files_of_the_operating_system_are_ignored(layout: Path) -> None:
    before = content(layout)
    (layout / "Train/1/.DS_Store").write_bytes(b"x")
    (layout / "__MACOSX/Train/1").mkdir(parents=True)
    (layout / "__MACOSX/Train/1/._00001.bin").write_bytes(b"x")
    (layout / "Train/1/._00001.bin").write_bytes(b"x")
    assert content(layout) == before


@pytest.mark.parametrize("data", [b"", b"PK no zip at all", bytes(100)])
def test_corrupt_zip(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "broken.zip"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"broken\.zip: corrupt or not a zip"):
        load_frames(path, "train")


def test_zip_damaged_inside_names_the_member(layout: Path, zipped: Callable[[Path], Path]) -> None:
    path = zipped(layout)
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo("Train/1/00002.bin")
    data = bytearray(path.read_bytes())
    data[member.header_offset + 60] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"Train/1/00002\.bin: corrupt"):
        load_frames(path, "train")


def test_zip_cut_off(layout: Path, zipped: Callable[[Path], Path]) -> None:
    path = zipped(layout)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match="corrupt or not a zip"):
        load_frames(path, "train")


def test_zip_member_of_absurd_size(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("Train/0/00001.bin", bytes(2**26 + 5))
    with pytest.raises(DataError, match=r"00001\.bin: unpacks to 67108869 bytes"):
        load_frames(path, "train")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_zip_that_holds_a_file_twice(tmp_path: Path) -> None:
    path = tmp_path / "twice.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("Train/0/00001.bin", bytes(5))
        archive.writestr("Train/0/00001.bin", bytes(10))
    with pytest.raises(DataError, match=r"holds Train/0/00001\.bin twice"):
        load_frames(path, "train")


def test_bad_recording_names_file_and_offset(layout: Path, zipped: Callable[[Path], Path]) -> None:
    (layout / "Train/7/00002.bin").write_bytes(bytes(7))
    for source in (layout, zipped(layout)):
        with pytest.raises(DataError, match=r"Train/7/00002\.bin: 7 bytes is no multiple of 5.*offset 5"):
            load_frames(source, "train")


@pytest.mark.parametrize("source", ["", None, 3])
def test_source_of_the_wrong_type(source: object) -> None:
    with pytest.raises(ArgumentError, match=r"source must be one of .*digits-dvs.*nmnist.* or a path"):
        load_frames(source, "train")  # type: ignore[arg-type]


def test_nmnist_by_name(make_layout: Make, zipped: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make_layout("data", inside="NMNIST")
    monkeypatch.setenv("SNN_DATA", str(whole))
    assert len(load_frames("nmnist", "train", use_cache=False)) == 9
    part = zipped(make_layout("part"))
    root = part.parent / "only part"
    root.mkdir()
    shutil.move(part, root / "nmnist_850.zip")
    monkeypatch.setenv("SNN_DATA", str(root))
    assert "part" in load_frames("nmnist", "train", use_cache=False).name


def test_nmnist_absent_says_where_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNN_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"N-MNIST is not in .*garrickorchard.*SNN_DATA.*download=True"):
        load_frames("nmnist", "train")


def test_download_goes_through_tonic(make_layout: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = make_layout("ready")

    class FakeNMNIST:
        def __init__(self, save_to: str, train: bool) -> None:
            part = "Train" if train else "Test"
            shutil.copytree(ready / part, Path(save_to) / "NMNIST" / part)

    monkeypatch.setattr("tonic.datasets.NMNIST", FakeNMNIST)
    monkeypatch.setenv("SNN_DATA", str(tmp_path / "data"))
    assert len(load_frames("nmnist", "all", download=True, use_cache=False)) == 12
    assert len(load_frames("nmnist", "all", use_cache=False)) == 12


def test_half_a_download_hides_nothing_and_is_completed(
    make_layout: Make, zipped: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready, root = make_layout("ready"), tmp_path / "data"
    monkeypatch.setenv("SNN_DATA", str(root))
    monkeypatch.setenv("SNN_CACHE", str(tmp_path / "cache"))
    shutil.copytree(ready / "Train", root / "NMNIST" / "Train")

    class FakeNMNIST:
        def __init__(self, save_to: str, train: bool) -> None:
            if not train:
                shutil.copytree(ready / "Test", Path(save_to) / "NMNIST" / "Test")

    monkeypatch.setattr("tonic.datasets.NMNIST", FakeNMNIST)
    with pytest.raises(DataError, match=r"N-MNIST is not in .*NMNIST holds only Train/"):
        load_frames("nmnist", "train")
    shutil.copy(zipped(ready), root / "nmnist_850.zip")
    assert "part" in load_frames("nmnist", "all", use_cache=False).name
    (root / "nmnist_850.zip").unlink()
    assert len(load_frames("nmnist", "all", download=True, use_cache=False)) == 12
    assert len(load_frames("nmnist", "all", use_cache=False)) == 12


def test_download_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("tonic.datasets.NMNIST", no_network)
    monkeypatch.setenv("SNN_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"could not download N-MNIST.*Name or service not known.*garrickorchard"):
        load_frames("nmnist", "train", download=True)


def test_roots_follow_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNN_DATA", str(tmp_path))
    assert data_root() == tmp_path
    monkeypatch.delenv("SNN_DATA")
    assert data_root().parts[-2:] == ("shared", "data")
    monkeypatch.setenv("SNN_CACHE", str(tmp_path / "c"))
    assert cache_root() == tmp_path / "c"
    monkeypatch.delenv("SNN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_root() == tmp_path / "x" / "snn_core"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_root() == Path.home() / ".cache" / "snn_core"
