"""load_frames and FrameDataset: values, subsets, arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.svm import SVC

from snn_core.datasets import FrameDataset, iterate_events, load_frames, read_nmnist, stratified_folds, write_nmnist
from snn_core.errors import ArgumentError
from snn_core.kernels.event_frames import event_frames


def test_frames_are_those_of_the_kernel(layout: Path) -> None:
    for by, argument in (("time", "n_time_bins"), ("count", "n_event_bins")):
        dataset = load_frames(layout, "all", T=4, by=by, use_cache=False)  # type: ignore[arg-type]
        assert dataset.frames.dtype == torch.uint8
        assert dataset.frames.shape == (12, 4, 2, 34, 34)
        assert dataset.labels.dtype == torch.int64
        for index, (events, label, name) in enumerate(iterate_events(layout, "all")):
            expected, _ = event_frames(events, (34, 34, 2), **{argument: 4})
            frames, found = dataset[index]
            np.testing.assert_array_equal(frames.numpy(), expected)
            assert (found, dataset.ids[index]) == (label, name)
            assert type(found) is int


def test_real_frames_carry_the_classes(nmnist_zip: Path) -> None:
    """Reader, bins and labels end to end: an RBF-SVM on log counts (0.93 in 5-fold cross-validation)."""
    train, test = (load_frames(nmnist_zip, split, T=3) for split in ("train", "test"))
    assert 4000 < float(train.frames.sum(dtype=torch.int64)) / len(train) < 4250
    inputs, test_inputs = (np.log1p(data.frames.flatten(1).numpy().astype(np.float32)) for data in (train, test))
    accuracy = SVC(C=10).fit(inputs, train.labels).score(test_inputs, test.labels)
    assert accuracy > 0.88
    assert not train.simulated
    assert "real recordings" in repr(train)


def test_limit_is_stratified_and_deterministic(layout: Path) -> None:
    options: dict[str, Any] = {"use_cache": False, "quiet": True}
    six = load_frames(layout, "train", limit=6, **options)
    assert torch.bincount(six.labels, minlength=10).tolist() == [2, 2, 0, 0, 0, 0, 0, 2, 0, 0]
    assert load_frames(layout, "train", limit=6, **options).ids == six.ids
    assert set(load_frames(layout, "train", limit=3, **options).ids) < set(six.ids)
    assert {tuple(load_frames(layout, "train", limit=6, seed=seed, **options).ids) for seed in range(6)} != {
        tuple(six.ids)
    }
    assert len(load_frames(layout, "train", limit=1000, **options)) == 9


def test_time_stamps_that_go_backwards_are_sorted_with_a_warning(layout: Path) -> None:
    expected = load_frames(layout, "train", use_cache=False)
    path = layout / "Train/0/00002.bin"
    events = read_nmnist(path)
    write_nmnist(path, events[::-1].copy())
    with pytest.warns(UserWarning, match="time stamps went backwards in 1 of 9 recordings"):
        assert torch.equal(load_frames(layout, "train", use_cache=False).frames, expected.frames)


def test_saturation_is_reported(layout: Path) -> None:
    path = layout / "Train/0/00001.bin"
    events = np.repeat(read_nmnist(path)[:1], 1000)
    events["t"] = np.arange(1000)
    write_nmnist(path, events)
    dataset = load_frames(layout, "train", T=2, use_cache=False)
    assert dataset.saturated == 2
    assert int(dataset.frames.max()) == 255
    assert "2 cells clipped at 255" in repr(dataset)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"T": 0}, "T must be an integer of at least 1, got 0"),
        ({"T": 2.0}, r"T must be an integer of at least 1, got 2\.0"),
        ({"T": True}, "T must be an integer"),
        ({"T": 10**7}, "T must be at most 65536, got 10000000"),
        ({"by": "number"}, "by must be one of time, count, window, got 'number'"),
        ({"by": "window"}, "goes with by=.window. alone, got by='window' and time_window=None"),
        ({"time_window": 1000}, "got by='time' and time_window=1000"),
        ({"by": "window", "time_window": 0}, "time_window must be an integer from 1 to"),
        ({"by": "window", "time_window": 1e3}, r"time_window must be .* got 1000\.0"),
        ({"split": "validation"}, "split must be one of train, test, all, got 'validation'"),
        ({"limit": 0}, "limit must be an integer of at least 1, got 0"),
        ({"limit": 1.5}, r"limit must be an integer of at least 1, got 1\.5"),
    ],
)
def test_bad_arguments_are_named(layout: Path, options: dict[str, Any], message: str) -> None:
    split = options.pop("split", "train")
    with pytest.raises(ArgumentError, match=message):
        load_frames(layout, split, **options)


def test_frames_that_do_not_fit_in_memory_name_the_argument(layout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 2 TiB")

    monkeypatch.setattr("snn_core.datasets.build.np.empty", refuse)
    with pytest.raises(ArgumentError, match="T=5: frames of 9 recordings do not fit in memory: Unable"):
        load_frames(layout, "train", T=5, use_cache=False)


def test_iterate_events_checks_at_the_call(layout: Path) -> None:
    with pytest.raises(ArgumentError, match="split must be one of"):
        iterate_events(layout, "valid")


def small(num: int = 6) -> FrameDataset:
    frames = torch.arange(num, dtype=torch.uint8).view(num, 1, 1, 1, 1).expand(num, 2, 2, 3, 4).contiguous()
    labels = torch.arange(num) % 3
    names = [f"r{index}" for index in range(num)]
    return FrameDataset(
        frames, labels, names, class_names=["a", "b", "c"], name="hand-made", simulated=False, content_key="0" * 64
    )


def test_properties() -> None:
    dataset = small()
    assert (len(dataset), dataset.num_classes, dataset.sensor_size, dataset.T) == (6, 3, (4, 3, 2), 2)
    assert dataset[-1][1] == 2
    with pytest.raises(IndexError):
        dataset[6]


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_subset(kind: Any) -> None:
    dataset = small()
    subset = dataset.subset(kind([4, 0, 4]))
    assert subset.frames[:, 0, 0, 0, 0].tolist() == [4, 0, 4]
    assert subset.labels.tolist() == [1, 0, 1]
    assert subset.ids == ["r4", "r0", "r4"]
    assert subset.content_key not in (dataset.content_key, dataset.subset([4, 0]).content_key)
    assert subset.content_key == dataset.subset([4, 0, 4]).content_key
    assert len(dataset.subset([])) == 0


@pytest.mark.parametrize("indices", [[6], [-1], [0.5], [[0, 1]], [True, False]])
def test_bad_subset_indices_are_named(indices: Any) -> None:
    with pytest.raises(ArgumentError, match="indices must"):
        small().subset(indices)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": torch.zeros(6, 2, 2, 3, 4)}, r"frames must be uint8 .* got torch.float32"),
        ({"frames": torch.zeros(6, 2, 3, 4, dtype=torch.uint8)}, "frames must be uint8"),
        ({"labels": torch.zeros(6)}, "labels must be int64"),
        ({"labels": torch.full((6,), 3)}, r"labels must lie in 0\.\.2, got 3\.\.3"),
        ({"ids": ["one"]}, "equal length, got 6, 6 and 1"),
    ],
)
def test_bad_dataset_parts_are_named(change: dict[str, Any], message: str) -> None:
    good = small()
    parts: dict[str, Any] = {"frames": good.frames, "labels": good.labels, "ids": good.ids, **change}
    with pytest.raises(ArgumentError, match=message):
        FrameDataset(**parts, class_names=["a", "b", "c"], name="x", simulated=False, content_key="")


def test_folds_fit_a_dataset(digits_small: FrameDataset) -> None:
    for train, validation in stratified_folds(digits_small.labels, 5, seed=0):
        assert len(digits_small.subset(train)) == 80
        assert torch.bincount(digits_small.subset(validation).labels).tolist() == [2] * 10
