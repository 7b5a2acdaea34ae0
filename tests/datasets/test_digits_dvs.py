"""digits-dvs, the simulated recordings: determinism, plausible figures, content."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.svm import SVC

from snn_core.datasets import EVENT_DTYPE, FrameDataset, iterate_events, load_frames, open_source
from snn_core.datasets.digits_dvs import CORNERS, saccade_path

PUBLISHED_TEST_COUNTS = [36, 37, 35, 37, 36, 36, 36, 36, 35, 36]
PUBLISHED_FIRST_TEST = [0, 4, 8, 15, 16, 29, 35, 41]


@pytest.fixture(scope="module")
def recordings() -> list[tuple[np.ndarray, int, str]]:
    return list(iterate_events("digits-dvs", "train", limit=40))


def test_split_is_fixed_stratified_and_disjoint() -> None:
    source = open_source("digits-dvs", seed=3)
    parts = {split: source.recordings(split) for split in ("train", "test", "all")}
    assert {split: len(found) for split, found in parts.items()} == {"train": 1437, "test": 360, "all": 1797}
    assert parts["all"] == parts["train"] + parts["test"]
    assert len({recording.id for recording in parts["all"]}) == 1797
    assert np.bincount([recording.label for recording in parts["test"]]).tolist() == PUBLISHED_TEST_COUNTS
    assert [recording.key for recording in parts["test"][:8]] == PUBLISHED_FIRST_TEST
    assert open_source("digits-dvs", seed=4).recordings("test") == parts["test"]


def test_labels_are_those_of_the_pictures() -> None:
    from sklearn.datasets import load_digits

    targets = load_digits().target
    for recording in open_source("digits-dvs").recordings("all"):
        assert recording.label == targets[recording.key]


def test_same_seed_same_events_whatever_the_batch(recordings: list[tuple[np.ndarray, int, str]]) -> None:
    source = open_source("digits-dvs")
    by_id = {recording.id: recording for recording in source.recordings("train")}
    for events, _, name in recordings[3::12]:
        (alone,) = source.read([by_id[name]])
        np.testing.assert_array_equal(alone, events)
    (other_seed,) = open_source("digits-dvs", seed=1).read([by_id[recordings[0][2]]])
    assert not np.array_equal(other_seed, recordings[0][0])


def test_events_are_well_formed(recordings: list[tuple[np.ndarray, int, str]]) -> None:
    for events, _, _ in recordings:
        assert events.dtype == EVENT_DTYPE
        assert (np.diff(events["t"]) >= 0).all()
        assert events["t"].min() >= 0
        assert events["t"].max() <= 300_000
        for field, size in (("x", 34), ("y", 34), ("p", 2)):
            assert 0 <= events[field].min() <= events[field].max() < size


def test_refractory_time_holds(recordings: list[tuple[np.ndarray, int, str]]) -> None:
    for events, _, _ in recordings:
        pixel = events["y"].astype(np.int64) * 34 + events["x"]
        order = np.lexsort((events["t"], pixel))
        gaps = np.diff(events["t"][order])[np.diff(pixel[order]) == 0]
        assert gaps.min() >= 2000


def test_figures_are_near_those_of_real_recordings(recordings: list[tuple[np.ndarray, int, str]]) -> None:
    """Real N-MNIST: 4,100 events a recording, ON and OFF balanced, quiet between the three saccades."""
    counts = [len(events) for events, _, _ in recordings]
    assert 3600 < np.mean(counts) < 4700
    assert 0.47 < np.mean([events["p"].mean() for events, _, _ in recordings]) < 0.54
    rate, _ = np.histogram(np.concatenate([events["t"] for events, _, _ in recordings]), np.arange(0, 310_000, 10_000))
    moving, resting = rate[[4, 14, 24]], rate[[9, 19, 29]]
    assert moving.min() > 20 * resting.max()


def test_sensor_sees_noise_at_the_border(recordings: list[tuple[np.ndarray, int, str]]) -> None:
    """Where the picture never comes there are only noise events: 0.3 a second and pixel."""
    events = np.concatenate([events for events, _, _ in recordings])
    corner = (events["x"] < 3) & (events["y"] < 3)
    expected = 0.3 * 0.3 * 9 * len(recordings)
    assert 0.3 * expected < corner.sum() < 3 * expected


def test_path_is_the_triangle() -> None:
    path = saccade_path()
    assert [path[0], path[50], path[100], path[150]] == [pytest.approx(corner) for corner in CORNERS]
    assert len(path) == 151


def test_called_simulated_everywhere(digits_small: FrameDataset) -> None:
    assert digits_small.simulated
    for text in (digits_small.name, repr(digits_small), repr(open_source("digits-dvs"))):
        assert "simulated" in text


def test_cache_key_depends_on_the_seed() -> None:
    first, second = (load_frames("digits-dvs", "test", limit=3, seed=seed, quiet=True) for seed in (0, 1))
    assert first.content_key != second.content_key
    hashes = {open_source("digits-dvs", seed=seed).content_hash("test") for seed in (0, 1)}
    assert len(hashes) == 2


def test_classes_can_be_told_apart(digits_small: FrameDataset, digits_small_test: FrameDataset) -> None:
    assert torch.bincount(digits_small.labels).tolist() == [10] * 10
    train, test = (
        np.log1p(data.frames.flatten(1).numpy().astype(np.float32)) for data in (digits_small, digits_small_test)
    )
    assert SVC(C=10).fit(train, digits_small.labels).score(test, digits_small_test.labels) > 0.7


def test_recordings_survive_the_file_format(tmp_path: Path, recordings: list[tuple[np.ndarray, int, str]]) -> None:
    from snn_core.datasets import read_nmnist, write_nmnist

    write_nmnist(tmp_path / "a.bin", recordings[0][0])
    np.testing.assert_array_equal(read_nmnist(tmp_path / "a.bin"), recordings[0][0])
