"""Frame folders as SpikingJelly writes them: some by its own functions, some by hand."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import event_samples as make
import numpy as np
import pytest
import torch

from snn_core.datasets import FrameDataset, load_spikingjelly_frames
from snn_core.errors import ArgumentError, DataError
from snn_core.kernels import event_frames

SIZE = (9, 7, 2)


def write(path: Path, frames: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, frames=frames)


def counts(seed: int, T: int = 3, dtype: Any = np.float64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 9, (T, 2, 7, 9)).astype(dtype)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Classes 0, 2 and 10, as in DVS128 Gesture; two recordings each to train, one of class 2 to test."""
    root = tmp_path / "frames_number_3_split_by_number"
    for label in (10, 0, 2):
        for number in range(2):
            write(root / f"train/{label}/user0{number}_led_0.npz", counts(10 * label + number))
    write(root / "test/2/user24_led_0.npz", counts(99))
    return root


def load(folder: Path, split: str = "train", **options: Any) -> FrameDataset:
    return load_spikingjelly_frames(folder, split, quiet=True, **options)


@pytest.mark.parametrize("by", ["time", "number"])
def test_frames_that_spikingjelly_integrated(tmp_path: Path, spikingjelly: Callable[[str], Any], by: str) -> None:
    utils = spikingjelly("utils")
    root = tmp_path / f"frames_number_4_split_by_{by}"
    recordings = [make.some_events(300, 9, 7, seed=seed, step=50) for seed in range(4)]
    for index, events in enumerate(recordings):
        columns = {name: events[name].astype(np.int64) for name in "txyp"}
        np.savez(tmp_path / f"{index}.npz", **columns)
        (root / f"train/{index % 2}").mkdir(parents=True, exist_ok=True)
        utils.integrate_events_file_to_frames_file_by_fixed_frames_number(
            lambda path: np.load(path), tmp_path / f"{index}.npz", root / f"train/{index % 2}", by, 4, 7, 9
        )
    dataset = load(root)
    assert (len(dataset), dataset.T, dataset.sensor_size) == (4, 4, SIZE)
    bins = {"n_time_bins": 4} if by == "time" else {"n_event_bins": 4}
    for index, recording in zip((0, 2, 1, 3), dataset.frames, strict=True):
        expected, _ = event_frames(recordings[index], SIZE, convention="spikingjelly", **bins)  # type: ignore[arg-type]
        np.testing.assert_array_equal(recording.numpy(), expected)
        loaded = utils.load_npz_frames(root / f"train/{index % 2}/{index}.npz")
        np.testing.assert_array_equal(recording.numpy(), loaded)


def test_labels_are_numbers_not_places_in_sorted_text(folder: Path) -> None:
    train = load(folder)
    assert train.labels.tolist() == [0, 0, 10, 10, 2, 2]
    assert train.class_names == [str(label) for label in range(11)]
    assert train.ids[2] == "train/10/user00_led_0"
    assert torch.equal(train.frames[2], torch.from_numpy(counts(100).astype(np.uint8)))
    test = load(folder, "test")
    assert (test.labels.tolist(), test.class_names) == ([2], train.class_names)
    both = load(folder, "all")
    assert torch.equal(both.frames, torch.cat([train.frames, test.frames]))
    assert len({train.content_key, test.content_key, both.content_key}) == 3
    named = load(folder, class_names=[f"gesture {label}" for label in range(11)], name="mine")
    assert (named.class_names[10], named.name, named.simulated) == ("gesture 10", "mine", False)


def test_folders_with_names_and_without_a_split(tmp_path: Path) -> None:
    root = tmp_path / "frames_number_3_split_by_time"
    for name in ("cat", "airplane", "frog"):
        write(root / name / "a.npz", counts(len(name), dtype=np.uint8))
    dataset = load(root, "all")
    assert (dataset.class_names, dataset.labels.tolist()) == (["airplane", "cat", "frog"], [0, 1, 2])
    with pytest.raises(DataError, match="neither train/ nor test/ in it, so there is no split 'train'"):
        load(root)
    (root / "test").mkdir()
    write(root / "test/dog/b.npz", counts(0))
    assert load(root, "test").class_names == ["dog"]


def test_a_class_of_the_other_split_alone_keeps_the_labels(tmp_path: Path) -> None:
    for name, split in (("bird", "test"), ("cat", "train"), ("cat", "test")):
        write(tmp_path / split / name / "0.npz", counts(0))
    for split, labels in (("train", [1]), ("test", [0, 1])):
        dataset = load(tmp_path, split)
        assert (dataset.class_names, dataset.labels.tolist()) == (["bird", "cat"], labels)


def test_recordings_of_different_length(tmp_path: Path) -> None:
    root = tmp_path / "duration_1000"
    write(root / "train/0/long.npz", counts(0, 5))
    write(root / "train/0/short.npz", counts(1, 2))
    with pytest.raises(DataError, match=r"short\.npz: frames \[2, 2, 7, 9\], but .*\[5, 2, 7, 9\]; give T to cut"):
        load(root)
    dataset = load(root, T=3)
    np.testing.assert_array_equal(dataset.frames[0], counts(0, 5)[:3])
    np.testing.assert_array_equal(dataset.frames[1, :2], counts(1, 2))
    assert not dataset.frames[1, 2].any()


def test_large_counts_are_clipped_and_counted(tmp_path: Path) -> None:
    frames = np.zeros((2, 1, 1, 3))
    frames[0, 0, 0] = (255, 256, 1e9)
    frames[1, 0, 0] = 300
    write(tmp_path / "train/0/a.npz", frames)
    dataset = load(tmp_path)
    assert (dataset.saturated, dataset.frames[0, 0].tolist(), dataset.sensor_size) == (
        5,
        [[[255, 255, 255]]],
        (3, 1, 1),
    )
    assert load(tmp_path, T=1).saturated == 2


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.full((3, 2, 7, 9), 0.5), "its frames are no event counts"),
        (np.full((3, 2, 7, 9), -1), "its frames are no event counts"),
        (np.full((3, 2, 7, 9), np.nan), "its frames are no event counts"),
        (np.zeros((3, 2, 7)), r"expected frames \[T, 1 or 2, H, W\], got \[3, 2, 7\]"),
        (np.zeros((3, 3, 7, 9)), r"expected frames \[T, 1 or 2, H, W\], got \[3, 3, 7, 9\]"),
        (np.zeros((3, 2, 9, 7)), r"but the first file has \[3, 2, 7, 9\]$"),
        (np.array([[[["a"]]]]), "expected numbers"),
    ],
)
def test_frames_that_are_none(folder: Path, frames: np.ndarray, message: str) -> None:
    write(folder / "train/2/user01_led_0.npz", frames)
    with pytest.raises(DataError, match=rf"train/2/user01_led_0\.npz: .*{message}"):
        load(folder)


def test_damaged_files(folder: Path) -> None:
    path = folder / "train/2/user01_led_0.npz"
    whole = path.read_bytes()
    for damaged in (b"", b"PK", whole[:-30], whole[:200] + whole[300:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"user01_led_0\.npz: (no whole \.npz file|Invalid argument)"):
            load(folder)
    np.savez(path, events=np.zeros(3))
    with pytest.raises(DataError, match=r"it has no array 'frames' but events\.npy"):
        load(folder)
    # A header that announces terabytes, and one with pickled objects.
    for header in (
        "'<f8', 'fortran_order': False, 'shape': (99999, 2, 999, 9999)",
        "'|O', 'fortran_order': False, 'shape': (1,)",
    ):
        text = f"{{'descr': {header}, }}".ljust(117) + "\n"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("frames.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode())
        with pytest.raises(DataError, match=r"announces \[99999, 2, 999, 9999\]|expected numbers"):
            load(folder)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_random_damage_ends_in_an_error_or_in_frames(tmp_path: Path, save: Callable[..., None]) -> None:
    path = tmp_path / "train/0/a.npz"
    path.parent.mkdir(parents=True)
    save(path, frames=counts(0))
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    errors = 0
    for case in range(300):
        data = bytearray(whole[: generator.integers(len(whole))] if case % 3 == 0 else whole)
        for place in generator.integers(0, len(data), case % 3 * 4) if data else ():
            data[place] = generator.integers(256)
        path.write_bytes(data)
        try:
            assert load(tmp_path).frames.shape[0] == 1
        except DataError as error:
            assert "a.npz" in str(error)  # noqa: PT017
            errors += 1
    assert errors > 150


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "valid"}, "split must be one of"),
        ({"T": 0}, "T must be an integer of at least 1 or None, got 0"),
        ({"T": True}, "T must be an integer of at least 1 or None, got True"),
        ({"class_names": ["a", "b"]}, "class_names has 2 names, none for the folder '10'"),
        ({"simulated": True}, "name of a simulated data set must say 'simulated', got None"),
    ],
)
def test_bad_arguments(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        load(folder, **options)


def test_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    for split in ("train", "test", "all"):
        with pytest.raises(DataError, match=f"no recordings for split '{split}'; expected <class>/<name>.npz"):
            load(tmp_path, split)
