"""nmnist-sim: what it is made of, and how near it comes to the real recordings of the same pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from snn_core.datasets import EVENT_DTYPE, data_root, iterate_events, load_frames, nmnist_sim, open_source
from snn_core.datasets.nmnist_sim import DURATION_US, NMNISTSimSource, saccades
from snn_core.datasets.source import Recording
from snn_core.errors import DataError


@pytest.fixture
def small_mnist(tmp_path: Path) -> Path:
    """A folder with a mnist.npz of 20 / 10 hand-made pictures."""
    generator = np.random.default_rng(0)
    content = {}
    for part, count in (("train", 20), ("test", 10)):
        pictures = np.zeros((count, 28, 28), np.uint8)
        pictures[:, 8:20, 8:20] = generator.integers(0, 2, (count, 12, 12)) * 255
        content |= {f"x_{part}": pictures, f"y_{part}": np.arange(count) % 10}
    np.savez(tmp_path / "mnist.npz", **content)
    return tmp_path


@pytest.fixture(scope="module")
def sim() -> NMNISTSimSource:
    """The data set on MNIST itself; skips where it is absent."""
    if not (data_root() / "mnist.npz").is_file():
        pytest.skip(f"MNIST is absent: no {data_root() / 'mnist.npz'}; set SNN_DATA to the folder that holds the file")
    return NMNISTSimSource(data_root())


def test_recordings_are_named_as_the_real_ones(small_mnist: Path) -> None:
    source = open_source("nmnist-sim", root=small_mnist)
    parts = {split: source.recordings(split) for split in ("train", "test", "all")}
    assert {split: len(found) for split, found in parts.items()} == {"train": 20, "test": 10, "all": 30}
    assert parts["all"] == parts["train"] + parts["test"]
    assert [parts["train"][12].id, parts["train"][12].label] == ["Train/2/00013", 2]
    assert parts["test"][9].id == "Test/9/00010"


def test_events_do_not_depend_on_the_batch_but_on_the_seed(small_mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source("nmnist-sim", root=small_mnist)
    recordings = source.recordings("all")
    whole = list(source.read(recordings))
    monkeypatch.setattr(nmnist_sim, "BATCH", 3)
    for events, again in zip(whole, source.read(recordings), strict=True):
        assert events.dtype == EVENT_DTYPE
        assert len(events) > 1000
        assert 0 < events["t"].min() <= events["t"].max() <= DURATION_US
        np.testing.assert_array_equal(events, again)
    (alone,) = source.read(recordings[25:26])
    np.testing.assert_array_equal(alone, whole[25])
    other = open_source("nmnist-sim", root=small_mnist, seed=1)
    assert not np.array_equal(next(iter(other.read(recordings))), whole[0])
    assert other.content_hash("train") != source.content_hash("train")


def test_called_simulated_everywhere(small_mnist: Path) -> None:
    source = open_source("nmnist-sim", root=small_mnist)
    data = load_frames(source, "test", T=2, use_cache=False, quiet=True)
    assert data.simulated
    for text in (data.name, repr(data), source.name, repr(source)):
        assert "simulated" in text


def test_path_starts_later_and_elsewhere_by_the_framing() -> None:
    times = np.arange(0, 300_001, 5000)
    plain, moved = saccades(times, np.array([[0.0, 0.0, 0.0], [0.5, -0.25, 10_000.0]]))
    np.testing.assert_allclose(moved[2:] - plain[:-2], np.tile([0.5, -0.25], (len(times) - 2, 1)))
    # Down first, then up to the right, then back to the left: N-MNIST's triangle.
    assert plain[17, 1] > plain[0, 1] + 4
    assert plain[42, 0] > plain[17, 0] + 3
    assert plain[42, 1] < plain[17, 1] - 4
    assert np.abs(plain[60] - plain[0]).max() < 1


def test_missing_or_foreign_file_says_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no .*mnist\.npz.*keras.*SNN_DATA"):
        open_source("nmnist-sim", root=tmp_path)
    (tmp_path / "mnist.npz").write_bytes(b"PK\3\4 nothing")
    with pytest.raises(DataError, match=r"mnist\.npz cannot be read as pictures"):
        open_source("nmnist-sim", root=tmp_path)
    np.savez(tmp_path / "mnist.npz", x_train=np.zeros((2, 28, 28), np.uint8), y_train=[0, 1], x_test=[0], y_test=[0])
    with pytest.raises(DataError, match=r"x_test must be uint8 \[num, \(28, 28\)\], found int64 \(1,\)"):
        open_source("nmnist-sim", root=tmp_path)
    np.savez(tmp_path / "mnist.npz", x_train=np.zeros((1, 28, 28), np.uint8), y_train=[11])
    with pytest.raises(DataError, match="x_test"):
        open_source("nmnist-sim", root=tmp_path)


def test_near_the_real_recordings_of_the_same_pictures(sim: NMNISTSimSource, nmnist_zip: Path) -> None:
    """Bounds are wide; docs/notes/simulator.md has the figures of all 850."""
    chosen = list(iterate_events(nmnist_zip, "train", limit=60))
    recordings = [Recording(name, label, ("train", int(name.split("/")[-1]) - 1)) for _, label, name in chosen]
    for recording in recordings:
        assert sim.mnist.labels["train"][recording.key[1]] == recording.label
    real, simulated = [events for events, _, _ in chosen], list(sim.read(recordings))
    counts = np.array([[len(events) for events in group] for group in (real, simulated)])
    assert np.corrcoef(counts)[0, 1] > 0.85
    assert 0.9 < counts[1].mean() / counts[0].mean() < 1.1
    rates = [np.histogram(np.concatenate([events["t"] for events in group]), np.arange(0, 310_001, 10_000))[0]
             for group in (real, simulated)]  # fmt: skip
    assert np.corrcoef(rates)[0, 1] > 0.95
    maps = [np.stack([np.histogram2d(events["y"], events["x"], 34, [[-0.5, 33.5]] * 2)[0] for events in group])
            for group in (real, simulated)]  # fmt: skip
    maps[0][:, 30, 18] = 0  # a hot pixel of the real sensor
    same = np.mean([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(*maps, strict=True)])
    other = np.mean([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(maps[0], maps[1][::-1], strict=True)])
    assert same > 0.9
    assert same > other + 0.2


def test_no_picture_of_a_real_test_recording_is_in_the_training_part(sim: NMNISTSimSource) -> None:
    known = {picture.tobytes() for picture in sim.mnist.pictures["train"]}
    assert len(known) == 60_000
    assert not any(picture.tobytes() in known for picture in sim.mnist.pictures["test"])
