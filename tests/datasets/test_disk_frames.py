"""Frames left on disk: the same samples as in memory, by any number of workers, and damage that is named."""

from __future__ import annotations

import gc
import os
import pickle
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from snn_core.datasets import DiskFrameDataset, load_frames, open_frames
from snn_core.errors import DataError, StorageError


def test_same_samples_as_in_memory(layout: Path, tmp_path: Path) -> None:
    for options in ({"T": 4}, {"T": 2, "by": "count", "limit": 5}):
        on_disk = open_frames(layout, "train", cache_dir=tmp_path / "c", **options)
        in_memory = load_frames(layout, "train", **options, use_cache=False)
        for name in ("ids", "class_names", "name", "simulated", "content_key", "saturated", "description", "T"):
            assert getattr(on_disk, name) == getattr(in_memory, name), name
        assert on_disk.sensor_size == in_memory.sensor_size
        assert len(on_disk) == len(in_memory)
        for index in (*range(len(in_memory)), -1):
            frames, label = on_disk[index]
            assert torch.equal(frames, in_memory[index][0])
            assert label == in_memory[index][1]
        order = torch.randperm(len(in_memory), generator=torch.Generator().manual_seed(0)).tolist()
        frames, labels = on_disk.batch(order)
        assert torch.equal(frames, in_memory.frames[order])
        assert torch.equal(labels, in_memory.labels[order])
        several = on_disk.__getitems__(order)
        assert torch.equal(torch.stack([sample for sample, _ in several]), in_memory.frames[order])
        assert [label for _, label in several] == labels.tolist()
        last, label_of_last = on_disk.batch([-1])
        assert torch.equal(last[0], in_memory[-1][0])
        assert label_of_last.tolist() == [in_memory[-1][1]]
        assert on_disk.batch([])[0].shape == (0, *in_memory.frames.shape[1:])
        assert torch.equal(on_disk.load().frames, in_memory.frames)
        for wrong in (len(in_memory), -len(in_memory) - 1):
            with pytest.raises(IndexError):
                on_disk[wrong]
            with pytest.raises(IndexError):
                on_disk.batch([0, wrong])
    # One cache serves both.
    assert len(list((tmp_path / "c").iterdir())) == 2
    load_frames(layout, "train", cache_dir=tmp_path / "c", T=4)
    assert len(list((tmp_path / "c").iterdir())) == 2


@pytest.mark.parametrize(("method", "workers"), [("fork", 2), ("spawn", 1)])
def test_workers_read_the_same(layout: Path, tmp_path: Path, method: str, workers: int) -> None:
    on_disk = open_frames(layout, "all", cache_dir=tmp_path / "c")
    expected = on_disk.load()
    loader = DataLoader(on_disk, batch_size=4, num_workers=workers, multiprocessing_context=method)
    batches = list(loader)
    assert torch.equal(torch.cat([frames for frames, _ in batches]), expected.frames)
    assert torch.equal(torch.cat([labels for _, labels in batches]), expected.labels)


def test_a_file_that_replaces_the_open_one_is_never_mixed_in(layout: Path, tmp_path: Path) -> None:
    on_disk = open_frames(layout, "train", cache_dir=tmp_path / "c")
    before = on_disk.load().frames
    copy = pickle.dumps(on_disk)
    other = tmp_path / "other"
    other.write_bytes(b"\0" * on_disk.path.stat().st_size)
    os.replace(other, on_disk.path)
    assert torch.equal(on_disk.load().frames, before)
    with pytest.raises(DataError, match="was replaced since it was opened"):
        pickle.loads(copy)


def test_damage_before_and_after_opening(layout: Path, tmp_path: Path) -> None:
    on_disk = open_frames(layout, "train", cache_dir=tmp_path / "c")
    before = on_disk.load().frames
    offset, size = (int(number) for number in on_disk._chunks[3])
    with open(on_disk.path, "r+b") as file:  # in place, which only a failing disk does
        file.seek(offset + size // 2)
        byte = file.read(1)
        file.seek(offset + size // 2)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(DataError, match=rf"{on_disk.path.name}: sample 3.* offset {offset}"):
        on_disk[3]
    assert torch.equal(on_disk[2][0], before[2])
    with pytest.warns(UserWarning, match="cannot be used and is built again"):
        again = open_frames(layout, "train", cache_dir=tmp_path / "c")
    assert torch.equal(again.load().frames, before)


def test_a_disk_that_refuses_is_an_error(layout: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file where the folder should be")
    with pytest.raises(StorageError):
        open_frames(layout, "train", cache_dir=tmp_path / "file")


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_descriptors_are_closed(layout: Path, tmp_path: Path) -> None:
    def number_open() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = number_open()
    on_disk: DiskFrameDataset | None = open_frames(layout, "train", cache_dir=tmp_path / "c")
    assert number_open() == before + 1
    on_disk = None
    gc.collect()
    assert number_open() == before
    assert on_disk is None
