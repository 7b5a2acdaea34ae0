"""Named data sets on files in their exact layouts and formats, written here (the real ones cannot be had for tests).

Where tonic and SpikingJelly have readers of their own, they read the same files.
"""

from __future__ import annotations

import importlib.util
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import event_samples as make
import h5py
import numpy as np
import pytest

from snn_core.datasets import info, load, load_events, write_nmnist
from snn_core.datasets.cifar10_dvs import CLASS_NAMES, TEST_NUMBERS
from snn_core.datasets.dvs_gesture_info import trials
from snn_core.errors import ArgumentError, DataError
from snn_core.files import sha256_json


def random_events(seed: int, width: int, height: int) -> np.ndarray:
    return make.some_events(50, width, height, seed=seed, step=300)


def same_as_dict(events: np.ndarray, columns: Any) -> None:
    for name in "txyp":
        np.testing.assert_array_equal(events[name], np.asarray(columns[name]).astype(np.int64))


# CIFAR10-DVS


def cifar_events(label: int, number: int) -> np.ndarray:
    return random_events(1000 * label + number, 128, 128)


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    """The authors' files: AEDAT-2.0 of a DVS128, numbers at the edges of the splits."""
    for label, name in enumerate(CLASS_NAMES):
        folder = tmp_path / "CIFAR10DVS" / name
        folder.mkdir(parents=True)
        for number in (0, 9, 91, 99, 100, 899, 900, 908, 909, 999):
            (folder / f"cifar10_{name}_{number}.aedat").write_bytes(make.aedat2(cifar_events(label, number)))
    return tmp_path


def test_cifar10_dvs_equals_spikingjelly(cifar: Path, spikingjelly: Callable[[str], Any], tmp_path: Path) -> None:
    module = spikingjelly("cifar10_dvs")
    assert info("cifar10-dvs").class_names == module.CIFAR10DVS_CLASS_NAMES
    ours = load_events("cifar10-dvs", cifar, "all")
    assert len(ours) == 100
    assert ours.name == "cifar10-dvs (part: 60 train, 40 test)"
    converted = tmp_path / "converted" / "events_np"
    for (events, label), id in zip(ours, ours.ids, strict=True):
        name, number = id.split("/")
        assert CLASS_NAMES[label] == name
        same_as_dict(events, module._load_origin_data(cifar / f"CIFAR10DVS/{name}/cifar10_{name}_{number}.aedat"))
        (converted / name).mkdir(parents=True, exist_ok=True)
        source = cifar / f"CIFAR10DVS/{name}/cifar10_{name}_{number}.aedat"
        module._read_aedat_save_to_np(source, converted / name / f"cifar10_{name}_{number}.npz")
    theirs = load_events("cifar10-dvs", converted.parent, "all")
    assert "SpikingJelly's events" in theirs.name
    assert theirs.ids == ours.ids
    for index in (0, 57, 99):
        np.testing.assert_array_equal(theirs[index][0], ours[index][0])


def test_cifar10_dvs_of_tonic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = {}
    for label, name in enumerate(CLASS_NAMES[:3]):
        folder = tmp_path / "CIFAR10DVS" / name
        folder.mkdir(parents=True)
        written[name] = random_events(label, 64, 48)
        (folder / "7.aedat4").write_bytes(make.aedat4(written[name]))
    ours = load_events("cifar10-dvs", tmp_path, "test")
    assert (ours.ids, ours.labels.tolist()) == (["airplane/7", "automobile/7", "bird/7"], [0, 1, 2])
    for (events, _), expected in zip(ours, written.values(), strict=True):
        np.testing.assert_array_equal(events, expected)
    tonic = pytest.importorskip("tonic.datasets")
    monkeypatch.setattr(tonic.CIFAR10DVS, "_check_exists", lambda self: True)
    theirs = tonic.CIFAR10DVS(save_to=str(tmp_path))
    assert theirs.targets == ours.labels.tolist()
    for index in range(3) if importlib.util.find_spec("aedat") else ():  # with which tonic reads AEDAT-4
        same_as_dict(ours[index][0], theirs[index][0])


def test_cifar10_dvs_splits(cifar: Path) -> None:
    counts = {
        name: [len(load_events("cifar10-dvs", cifar, split, split_name=name)) for split in ("train", "test")]
        for name in info("cifar10-dvs").splits
    }
    assert counts == {"spikingjelly": [60, 40], "last100": [60, 40], "last-tenth-by-name": [60, 40]}
    test = {
        name: {int(id.split("/")[1]) for id in load_events("cifar10-dvs", cifar, "test", split_name=name).ids}
        for name in counts
    }
    assert test["spikingjelly"] == {0, 9, 91, 99}
    assert test["last100"] == {900, 908, 909, 999}
    assert test["last-tenth-by-name"] == {91, 99, 909, 999}
    keys = {
        name: load("cifar10-dvs", cifar, "train", T=1, limit=1, split_name=name, use_cache=False).content_key
        for name in counts
    }
    assert len(set(keys.values())) == 3


def test_cifar10_dvs_split_lists_never_change(spikingjelly: Callable[[str], Any]) -> None:
    """The published numbers: their checksums, and what SpikingJelly's function makes of files in the order of text."""
    assert {name: (len(numbers), sha256_json(sorted(numbers))[:16]) for name, numbers in TEST_NUMBERS.items()} == {
        "spikingjelly": (100, "9dd50adbd73bc58b"),
        "last100": (100, "7994ffcd7b6bcc4a"),
        "last-tenth-by-name": (100, "68d6e1af96341a20"),
    }
    split = spikingjelly("utils").split_to_train_test_set
    files = sorted(f"cifar10_bird_{number}.npz" for number in range(1000))
    _, test = split(0.9, [(file, 0) for file in files], 1)
    numbers = {int(files[index].rsplit("_", 1)[1][:-4]) for index in test.indices}
    assert numbers == TEST_NUMBERS["last-tenth-by-name"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "bird/cifar10_bird_1.npz").write_bytes(b"x"), r"\.aedat and \.npz side by side"),
        (lambda folder: (folder / "bird/cifar10_bird_1000.aedat").write_bytes(b"x"), "1000.aedat: a number above 999"),
        (lambda folder: (folder / "bird/bird_9.aedat").write_bytes(b"x"), "the same number as .*9.aedat"),
    ],
)
def test_cifar10_dvs_files_that_do_not_fit(cifar: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(cifar / "CIFAR10DVS")
    with pytest.raises(DataError, match=message):
        load_events("cifar10-dvs", cifar)


def test_cifar10_dvs_unknown_split(cifar: Path) -> None:
    with pytest.raises(ArgumentError, match=r"split_name must be one of spikingjelly, last100, .*got 'random'"):
        load_events("cifar10-dvs", cifar, split_name="random")


# N-Caltech101


def test_ncaltech101(tmp_path: Path, spikingjelly: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    tonic = pytest.importorskip("tonic.datasets")
    folder = tmp_path / "NCALTECH101/Caltech101"
    written = {}
    for label, name in ((0, "BACKGROUND_Google"), (3, "Motorbikes"), (100, "yin_yang")):
        for number in (1, 5, 10, 60):
            events = random_events(1000 * label + number, 240, 180)
            written[f"{name}/{number:04d}"] = (events, label)
            write_nmnist(folder / name / f"image_{number:04d}.bin", events)
    ours = load_events("ncaltech101", tmp_path, "all")
    assert ours.name == "ncaltech101 (part: 3 train, 9 test)"
    assert set(ours.ids) == set(written)
    for (events, label), id in zip(ours, ours.ids, strict=True):
        np.testing.assert_array_equal(events, written[id][0])
        assert label == written[id][1]
        assert info("ncaltech101").class_names[label] == id.split("/")[0]
        name, number = id.split("/")
        same_as_dict(events, spikingjelly("utils").load_ATIS_bin(str(folder / name / f"image_{number}.bin")))
    assert {id.split("/")[1] for id in load_events("ncaltech101", tmp_path, "train").ids} == {"0001"}
    monkeypatch.setattr(tonic.NCALTECH101, "_check_exists", lambda self: True)
    theirs = tonic.NCALTECH101(save_to=str(tmp_path))
    at = {id: index for index, id in enumerate(ours.ids)}
    for index, path in enumerate(theirs.data):
        events, _ = ours[at[f"{Path(path).parent.name}/{Path(path).stem[-4:]}"]]
        expected, name = theirs[index]
        moved = {"t": events["t"], "p": events["p"], "x": events["x"] - events["x"].min()}
        same_as_dict(expected, {**moved, "y": events["y"] - events["y"].min()})
        assert name == Path(path).parent.name
    assert len(theirs) == 12


def test_ncaltech101_facts_and_split_never_change() -> None:
    facts = info("ncaltech101")
    assert facts.num_classes == 101
    assert sum(facts.splits["every-fifth"].values()) == 8709  # as many as tonic looks for
    assert sha256_json(list(facts.class_names))[:16] == "db59ad0de7c39e3d"
    assert facts.splits["every-fifth"] == {"train": 7008, "test": 1701}


def test_ncaltech101_number_that_is_not_in_it(tmp_path: Path) -> None:
    for name, number in (("ant", 42), ("ant", 43), ("bass", 1)):
        write_nmnist(tmp_path / name / f"image_{number:04d}.bin", random_events(0, 200, 180))
    with pytest.raises(DataError, match=r"image_0043\.bin: number 43; ant has 1 to 42"):
        load_events("ncaltech101", tmp_path)


# SHD


@pytest.fixture
def shd(tmp_path: Path) -> Path:
    """Two files as h5py gives them for SHD: ragged arrays of float16 seconds and uint16 channels."""
    (tmp_path / "SHD").mkdir()
    for split, count in (("train", 5), ("test", 3)):
        generator = np.random.default_rng(count)
        with h5py.File(tmp_path / "SHD" / f"shd_{split}.h5", "w") as file:
            file["labels"] = np.arange(count, dtype=np.uint16) * 4
            times = file.create_dataset("spikes/times", (count,), h5py.vlen_dtype(np.float16))
            units = file.create_dataset("spikes/units", (count,), h5py.vlen_dtype(np.uint16))
            for index in range(count):
                num = 40 + index
                times[index] = np.sort(generator.random(num)).astype(np.float16)
                units[index] = generator.integers(0, 700, num)
            file["extra/keys"] = [name.encode() for name in info("shd").class_names]
            file["extra/speaker"] = np.zeros(count, np.uint16)
    return tmp_path


def test_shd_equals_tonic(shd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tonic = pytest.importorskip("tonic.datasets")
    monkeypatch.setattr(tonic.SHD, "_check_exists", lambda self: True)
    for split in ("train", "test"):
        ours, theirs = load_events("shd", shd, split), tonic.SHD(save_to=str(shd), train=split == "train")
        assert [key.decode() for key in theirs.classes] == list(ours.class_names)
        assert len(ours) == len(theirs)
        for index in range(len(theirs)):
            expected, label = theirs[index]
            events = ours[index][0]
            assert ours[index][1] == label
            for name in "tx":
                np.testing.assert_array_equal(events[name], expected[name])
            assert not events["y"].any()
            assert not events["p"].any()


def test_shd_frames_have_one_polarity(shd: Path) -> None:
    frames = load("shd", shd, "all", T=4, quiet=True)
    events = load_events("shd", shd, "all")
    assert frames.frames.shape == (8, 4, 1, 1, 700)
    assert frames.sensor_size == (700, 1, 1) == info("shd").sensor_size
    assert frames.labels.tolist() == [0, 4, 8, 12, 16, 0, 4, 8]
    for index, (recording, _) in enumerate(events):
        step = (recording["t"][-1] - recording["t"][0]) // 4
        window = (recording["t"] - recording["t"][0]) // step
        expected = [np.bincount(recording["x"][window == k], minlength=700) for k in range(4)]
        np.testing.assert_array_equal(frames.frames[index, :, 0, 0], expected)
    assert load("shd", shd, "all", T=4, quiet=True).content_key == frames.content_key
    indices = [6, 1, 7]  # from both files, out of order
    both = events.__getitems__(indices)
    assert [label for _, label in both] == [4, 4, 8]


def test_shd_one_file_alone_and_damage(shd: Path) -> None:
    (shd / "SHD/shd_test.h5").unlink()
    assert len(load_events("shd", shd, "train")) == 5
    with pytest.raises(DataError, match=r"no recordings for split 'test', shd_test\.h5\. Get shd_train\.h5\.zip"):
        load_events("shd", shd, "test")
    path = shd / "SHD/shd_train.h5"
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(DataError, match=r"shd_train\.h5: at offset 0: it cannot be read"):
        load_events("shd", shd, "train")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("labels", [0, 4, 8, 12, 20], r"labels are not whole numbers of 0\.\.19"),
        ("labels", [0, 4, 8], "3 labels, 5 times and 5 units"),
        ("spikes/units", [[700]] * 5, r"sample 0 has (units 700\.\.700|40 times)"),
        ("spikes/times", [[np.nan] * 40] + [[0.0]] * 4, "sample 0 has times that are no seconds"),
    ],
)
def test_shd_content_that_makes_no_sense(shd: Path, name: str, value: list[Any], message: str) -> None:
    with h5py.File(shd / "SHD/shd_train.h5", "a") as file:
        ragged = name.startswith("spikes")
        del file[name]
        if ragged:
            kind = np.float16 if name.endswith("times") else np.uint16
            data = file.create_dataset(name, (len(value),), h5py.vlen_dtype(kind))
            for index, row in enumerate(value):
                data[index] = np.array(row, kind)
        else:
            file[name] = np.array(value, np.uint16)
    with pytest.raises(DataError, match=message):
        load_events("shd", shd, "train")[0]


# What all have in common


@pytest.mark.parametrize("name", ["dvs-gesture", "cifar10-dvs", "ncaltech101", "shd"])
def test_missing_says_where_to_get_and_put_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = info(name)
    with pytest.raises(DataError) as caught:
        load(name, tmp_path, T=1)
    for text in (facts.title, str(tmp_path), facts.how_to_get, facts.where_to_put):
        assert text in str(caught.value)
    with pytest.raises(DataError, match=r"nowhere \(no such folder\)"):
        load(name, tmp_path / "nowhere", T=1)
    monkeypatch.setenv("SNN_DATA", str(tmp_path / "other"))
    with pytest.raises(DataError, match=r"is not in .*other"):
        load(name, T=1)


@pytest.mark.parametrize("name", ["dvs-gesture", "cifar10-dvs", "ncaltech101", "shd"])
def test_download_without_network(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = pytest.importorskip("tonic.dataset").Dataset

    def refuse(self: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(dataset, "download", refuse)
    with pytest.raises(DataError, match=f"could not download {info(name).title} into .*: no network"):
        load(name, tmp_path, T=1, download=True)


def test_download_lands_where_it_is_found(cifar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip("tonic.datasets")
    target = tmp_path / "new"

    def pretend(save_to: str) -> None:
        (Path(save_to)).mkdir()
        (cifar / "CIFAR10DVS").rename(Path(save_to) / "CIFAR10DVS")

    monkeypatch.setattr(module, "CIFAR10DVS", pretend)
    assert len(load_events("cifar10-dvs", target, "all", download=True)) == 100


def test_download_of_an_archive_in_an_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What tonic leaves of N-Caltech101."""
    module = pytest.importorskip("tonic.datasets")

    def pretend(save_to: str) -> None:
        outer = Path(save_to) / "NCALTECH101/N-Caltech101-archive"
        for name in ("ant", "bass"):
            write_nmnist(tmp_path / "made" / "Caltech101" / name / "image_0001.bin", random_events(0, 240, 180))
        shutil.make_archive(str(outer / "Caltech101"), "zip", tmp_path / "made", "Caltech101")

    monkeypatch.setattr(module, "NCALTECH101", pretend)
    assert load_events("ncaltech101", tmp_path / "new", "train", download=True).ids == ["ant/0001", "bass/0001"]


def test_events_outside_the_sensor_name_the_file(cifar: Path) -> None:
    path = cifar / "CIFAR10DVS/bird/cifar10_bird_999.aedat"
    for file in (cifar / "CIFAR10DVS").glob("*/*"):
        file.unlink()
    for name in ("bird", "cat"):
        columns = {"t": [1, 2], "x": [0, 128], "y": [0, 0], "p": [0, 1]}
        arrays = {field: np.array(values) for field, values in columns.items()}
        np.savez(path.parent.parent / name / f"cifar10_{name}_999.npz", **arrays)
    with pytest.raises(DataError, match=r"cifar10_bird_999\.npz: event 1 has x=128, outside a sensor of"):
        load_events("cifar10-dvs", cifar, "train")[0]


def test_trials_of_dvs_gesture_never_change() -> None:
    assert (len(trials("train")), len(trials("test"))) == (98, 24)
    assert info("dvs-gesture").splits["official"]["train"] == 12 * 98
    assert info("dvs-gesture").splits["official"]["test"] == 12 * 24
    assert sha256_json([trials("train"), trials("test")])[:16] == "f508b2bd30a9ca80"


@pytest.mark.parametrize("name", ["cifar10-dvs", "shd"])
def test_workers_that_are_spawned(name: str, cifar: Path, shd: Path) -> None:
    """What DataLoader does to a data set before it gives it to a spawned worker."""
    dataset = load_events(name, cifar if name == "cifar10-dvs" else shd, "train")
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.ids == dataset.ids
    np.testing.assert_array_equal(copy[3][0], dataset[3][0])
