"""Content hashes: computed once while the files stay as they are, and again after whatever may have changed one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from snn_core.datasets import NMNISTSource, content
from snn_core.datasets.content import remembered_hash
from snn_core.files import sha256_file


class Counter:
    """Hashes the files, and counts how often."""

    def __init__(self, *files: Path) -> None:
        self.files, self.calls = files, 0

    def __call__(self) -> str:
        self.calls += 1
        return " ".join(sha256_file(file) for file in self.files)

    def remembered(self, about: str = "") -> str:
        return remembered_hash(self.files, self, about)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, in which files made just now count as settled."""
    monkeypatch.setenv("SNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(content, "_SETTLED_SECONDS", -1000)
    return tmp_path / "cache" / "content"


def make(path: Path, text: str = "text") -> Path:
    path.write_text(text)
    return path


def test_computed_once_while_nothing_changes(cache: Path, tmp_path: Path) -> None:
    count = Counter(make(tmp_path / "a"), make(tmp_path / "b"))
    assert count.remembered() == count.remembered() == count()
    assert count.calls == 2
    count.remembered("of another kind")
    assert count.calls == 3


@pytest.mark.parametrize("change", ["content", "same size and time", "replaced", "gone", "damaged note"])
def test_computed_again_after(change: str, cache: Path, tmp_path: Path) -> None:
    first, second = make(tmp_path / "a"), make(tmp_path / "b")
    count = Counter(first, second)
    count.remembered()
    times = (second.stat().st_atime_ns, second.stat().st_mtime_ns)
    if change == "content":
        second.write_text("longer text")
    elif change == "same size and time":
        second.write_text("TEXT")
        os.utime(second, ns=times)
    elif change == "replaced":
        os.replace(make(tmp_path / "c", "TEXT"), second)
        os.utime(second, ns=times)
    elif change == "gone":
        second.unlink()
        with pytest.raises(FileNotFoundError):
            count.remembered()
    else:
        (note,) = cache.iterdir()
        note.write_text("0" + note.read_text()[1:])
    if change != "gone":
        assert count.remembered() == " ".join(sha256_file(file) for file in (first, second))
    assert count.calls == 2


def test_files_touched_just_now_are_not_remembered(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "_SETTLED_SECONDS", 3)
    count = Counter(make(tmp_path / "a"))
    count.remembered()
    count.remembered()
    assert count.calls == 2
    assert not cache.exists()


def test_a_file_that_changes_while_it_is_hashed_is_not_remembered(cache: Path, tmp_path: Path) -> None:
    file = make(tmp_path / "a")

    def compute() -> str:
        before = sha256_file(file)
        file.write_text("changed meanwhile")
        return before

    remembered_hash([file], compute)
    assert not cache.exists()


def test_few_are_kept_and_a_cache_that_cannot_be_written_is_no_error(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "_MOST_REMEMBERED", 2)
    for number in range(4):
        Counter(make(tmp_path / str(number))).remembered()
    assert len(list(cache.iterdir())) == 2
    monkeypatch.setenv("SNN_CACHE", str(make(tmp_path / "a file")))
    count = Counter(tmp_path / "0")
    assert count.remembered() == count.remembered()
    assert count.calls == 2


def test_a_source_is_hashed_once(cache: Path, layout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = NMNISTSource(layout)
    before = {split: source.content_hash(split) for split in ("train", "test", "all")}
    assert len(set(before.values())) == 3
    monkeypatch.setattr(NMNISTSource, "_read_from_folder", None)
    assert {split: source.content_hash(split) for split in before} == before
