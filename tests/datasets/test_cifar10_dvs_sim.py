"""cifar10-dvs-sim, simulated: pictures from every kind of file, counts, events."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from snn_core.datasets import EVENT_DTYPE, info, load_frames, open_dataset
from snn_core.datasets.cifar10_dvs_sim import LEG_US, LOOPS, PER_CLASS, loop_path, luminance
from snn_core.datasets.pictures import CIFAR10_CLASSES, load_cifar10
from snn_core.errors import ArgumentError, DataError

DURATION_US = LOOPS * 4 * LEG_US


def some_pictures(each: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [10 * each, 32, 32, 3], smooth, and labels in turn."""
    generator = np.random.default_rng(each)
    coarse = generator.integers(0, 256, (10 * each, 8, 8, 3))
    return coarse.repeat(4, 1).repeat(4, 2).astype(np.uint8), np.arange(10 * each) % 10


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with a cifar10.npz of 3 training pictures and 1 test picture a class."""
    arrays = {}
    for split, each in (("train", 3), ("test", 1)):
        arrays[f"x_{split}"], arrays[f"y_{split}"] = some_pictures(each)
    np.savez(tmp_path / "cifar10.npz", **arrays)
    return tmp_path


def test_structure(root: Path) -> None:
    source = open_dataset("cifar10-dvs-sim", root)
    assert (source.class_names, source.sensor_size, source.simulated) == (CIFAR10_CLASSES, (128, 128, 2), True)
    assert source.name == "cifar10-dvs-sim 128 x 128 (simulated; part: 30 train, 10 test)"
    assert source.recordings("all") == source.recordings("train") + source.recordings("test")
    assert [r.label for r in source.recordings("train")] == [*range(10)] * 3
    assert [r.id for r in source.recordings("test")][:2] == ["test/00000", "test/00001"]
    assert info("cifar10-dvs-sim").splits == {"fixed": {"train": 9000, "test": 1000}}
    assert open_dataset("cifar10-dvs-sim", root, size=48).sensor_size == (48, 48, 2)


def test_no_more_than_the_set_has_a_class(tmp_path: Path) -> None:
    arrays = {}
    for split, each in (("train", 903), ("test", 102)):
        arrays[f"x_{split}"] = np.zeros((10 * each, 32, 32, 3), np.uint8)
        arrays[f"y_{split}"] = np.sort(np.arange(10 * each) % 10)
    np.savez(tmp_path / "cifar10.npz", **arrays)
    source = open_dataset("cifar10-dvs-sim", tmp_path)
    assert source.name == "cifar10-dvs-sim 128 x 128 (simulated)"
    for split, number in PER_CLASS.items():
        recordings = source.recordings(split)
        assert np.bincount([r.label for r in recordings]).tolist() == [number] * 10
        assert [r.id for r in recordings] == sorted({r.id for r in recordings})


@pytest.mark.parametrize("size", [48, 128])
def test_events(root: Path, size: int) -> None:
    source = open_dataset("cifar10-dvs-sim", root, size=size)
    chosen = source.recordings("test")
    recordings = list(source.read(chosen))
    for events in recordings:
        assert events.dtype == EVENT_DTYPE
        assert (np.diff(events["t"]) >= 0).all()
        assert 0.95 * DURATION_US < events["t"].max() <= DURATION_US
        assert max(events["x"].max(), events["y"].max()) < size
        assert 0.45 < events["p"].mean() < 0.55
        # Six rounds of the same loop: about as many events in each, but for the first's start.
        rounds = np.histogram(events["t"], np.arange(LOOPS + 1) * 4 * LEG_US)[0]
        assert rounds[1:].max() < 1.1 * rounds[1:].min()
    (alone,) = source.read(chosen[9:])
    np.testing.assert_array_equal(alone, recordings[9])


def test_an_edge_fires_where_and_when_it_passes(tmp_path: Path) -> None:
    """A vertical edge, dark to bright at column 16: events near it alone, ON while the bright side moves left."""
    picture = np.zeros((10, 32, 32, 3), np.uint8)
    picture[:, :, 16:] = 255
    np.savez(tmp_path / "cifar10.npz", x_train=picture, y_train=np.arange(10), x_test=picture, y_test=np.arange(10))
    source = open_dataset("cifar10-dvs-sim", tmp_path)
    (events,) = source.read(source.recordings("test")[:1])
    near = np.abs(events["x"].astype(int) - 64) < 14
    assert near.mean() > 0.9  # the others are noise
    x = np.array([position[0] for position in loop_path()])
    leftwards = (np.roll(x, -1) < x)[(events["t"] - 1) // 2000 % len(x)]
    assert (events["p"][near] == leftwards[near]).mean() > 0.95


def test_path_is_a_closed_loop() -> None:
    path = np.array(loop_path())
    assert len(path) == 100
    np.testing.assert_allclose(path[[0, 25, 50, 75]], [(0, -6), (6, 0), (0, 6), (-6, 0)])
    assert np.abs(np.diff(np.vstack([path, path[:1]]), axis=0)).max() < 0.6


def test_luminance() -> None:
    colour = np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
    assert luminance(colour).tolist() == [255, 0, 76, 150, 29]


def test_binary_version_and_npz_give_the_same_events(root: Path, tmp_path: Path) -> None:
    """The official binary layout, written here: a label byte, then 1,024 red, green and blue values."""
    folder = tmp_path / "other" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    whole = load_cifar10(root)
    for split, files in (("train", [f"data_batch_{n}.bin" for n in range(1, 6)]), ("test", ["test_batch.bin"])):
        colour = whole.pictures[split].transpose(0, 3, 1, 2).reshape(-1, 3072)
        records = np.concatenate([whole.labels[split][:, None].astype(np.uint8), colour], 1)
        for name, part in zip(files, np.array_split(records, len(files)), strict=True):
            (folder / name).write_bytes(part.tobytes())
    other = load_cifar10(folder.parent)
    assert other.content_hash() == whole.content_hash()
    sources = [open_dataset("cifar10-dvs-sim", where, size=48) for where in (root, folder.parent)]
    assert sources[0].content_hash("train") == sources[1].content_hash("train")
    (folder / "data_batch_2.bin").write_bytes(records.tobytes()[:-1])
    with pytest.raises(DataError, match=r"data_batch_2\.bin holds \d+ bytes, not a multiple of 3,073"):
        load_cifar10(folder.parent)
    (folder / "data_batch_2.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_2\.bin cannot be read"):
        load_cifar10(folder.parent)


def test_part_of_cifar10_has_the_ids_of_the_whole(tmp_path: Path) -> None:
    pictures, labels = some_pictures(2)
    order = np.array([7, 3, 19, 12])
    arrays = {f"{kind}_{split}": values for split in ("train", "test") for kind, values in
              (("x", pictures[order]), ("y", labels[order]), ("idx", order))}  # fmt: skip
    np.savez(tmp_path / "cifar10_6k.npz", **arrays)
    recordings = open_dataset("cifar10-dvs-sim", tmp_path).recordings("train")
    assert [(r.id, r.label) for r in recordings] == [(f"train/{n:05d}", n % 10) for n in (3, 7, 12, 19)]


def test_simulated_everywhere_and_cached_by_seed_and_size(root: Path) -> None:
    frames = load_frames(open_dataset("cifar10-dvs-sim", root, size=48), "test", T=4, quiet=True)
    assert frames.simulated
    for text in (frames.name, repr(frames), repr(open_dataset("cifar10-dvs-sim", root))):
        assert "simulated" in text
    options = [{}, {"seed": 1}, {"size": 48}]
    hashes = {open_dataset("cifar10-dvs-sim", root, **option).content_hash("test") for option in options}
    assert len(hashes) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_train": np.zeros((30, 32, 32), np.uint8)}, r"x_train must be uint8 \[num, \(32, 32, 3\)\], found uint8"),
        ({"y_test": np.zeros(9, np.int64)}, r"y_test must be integers \[10\], found int64 \(9,\)"),
        ({"y_test": np.full(10, 10)}, r"y_test must hold labels 0\.\.9"),
        ({"idx_test": np.zeros(3, np.int64)}, r"idx_test must be integers \[10\], found \(3,\)"),
    ],
)
def test_damaged_files(root: Path, change: dict[str, np.ndarray], message: str) -> None:
    with np.load(root / "cifar10.npz") as arrays:
        np.savez(root / "cifar10.npz", **({name: arrays[name] for name in arrays} | change))
    with pytest.raises(DataError, match=message):
        open_dataset("cifar10-dvs-sim", root)


def test_errors(root: Path) -> None:
    with pytest.raises(ArgumentError, match="size must be one of 48, 64, 128, got 34"):
        open_dataset("cifar10-dvs-sim", root, size=34)
    (root / "cifar10.npz").write_bytes((root / "cifar10.npz").read_bytes()[:5000])
    with pytest.raises(DataError, match=r"cifar10\.npz cannot be read as pictures"):
        open_dataset("cifar10-dvs-sim", root)
    (root / "cifar10.npz").unlink()
    with pytest.raises(DataError, match=r"has neither cifar-10-batches-bin/ nor cifar10\.npz .*www\.cs\.toronto\.edu"):
        open_dataset("cifar10-dvs-sim", root)
