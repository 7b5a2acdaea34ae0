"""DVS128 Gesture on files in its three layouts, written here (the real ones cannot be had for tests)."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import event_samples as make
import numpy as np
import pytest

from snn_core.datasets import load, load_events
from snn_core.datasets.dvs_gesture_info import SPLIT_OF_TRIAL, trials
from snn_core.errors import DataError

TRIALS = ("user01_fluorescent_led", "user12_led", "user24_led")
#: class from 1, start, end: one class twice, one that ends after the next begins, as in user22_led.
TABLE = ((1, 2000, 20_000), (8, 21_000, 60_000), (8, 61_000, 99_000), (9, 100_000, 150_000), (10, 140_000, 190_000))


def trial_events(trial: str) -> np.ndarray:
    return make.some_events(900, 128, 128, seed=TRIALS.index(trial), step=500)


def cut(trial: str, start: int, end: int) -> np.ndarray:
    events = trial_events(trial)
    return events[(events["t"] >= start) & (events["t"] < end)]


@pytest.fixture
def gesture(tmp_path: Path) -> Path:
    """DvsGesture/ as its authors give it, with three trials."""
    folder = tmp_path / "DvsGesture"
    folder.mkdir()
    for split, name in (("train", "trials_to_train.txt"), ("test", "trials_to_test.txt")):
        (folder / name).write_text("\n".join(f"{trial}.aedat" for trial in trials(split)) + "\n\n")
    for trial in TRIALS:
        (folder / f"{trial}.aedat").write_bytes(make.aedat3(trial_events(trial)))
        rows = "".join(f"{label},{start},{end}\n" for label, start, end in TABLE)
        (folder / f"{trial}_labels.csv").write_text("class,startTime_usec,endTime_usec\n" + rows)
    return tmp_path


def test_cuts_of_the_authors_files(gesture: Path) -> None:
    train, test = (load_events("dvs-gesture", gesture, split) for split in ("train", "test"))
    assert train.name == "dvs-gesture (part: 10 train, 5 test)"
    expected_ids = [f"{trial}/{n}" for trial in TRIALS[:2] for n in ("0_0", "7_0", "7_1", "8_0", "9_0")]
    assert train.ids == expected_ids
    assert train.labels.tolist() == [0, 7, 7, 8, 9] * 2
    assert test.ids == [f"user24_led/{n}" for n in ("0_0", "7_0", "7_1", "8_0", "9_0")]
    for dataset, names in ((train, TRIALS[:2]), (test, TRIALS[2:])):
        found = dataset.__getitems__(range(len(dataset)))
        expected = [cut(name, start, end) for name in names for _, start, end in TABLE]
        for (events, _), wanted in zip(found, expected, strict=True):
            assert len(wanted) > 5
            np.testing.assert_array_equal(events, wanted)
    np.testing.assert_array_equal(train[7][0], cut(TRIALS[1], *TABLE[2][1:]))  # alone, out of order


def test_spikingjelly_cuts_the_same(gesture: Path, tmp_path: Path, spikingjelly: Callable[[str], Any]) -> None:
    module = spikingjelly("dvs128_gesture")
    ours = load_events("dvs-gesture", gesture, "all")
    root = tmp_path / "jelly"
    for split in ("train", "test"):
        for label in range(11):
            (root / "events_np" / split / str(label)).mkdir(parents=True)
    # SpikingJelly reads every packet's capacity, as polarity events too where it is of another type; ours are equal.
    for trial in TRIALS:
        source = gesture / "DvsGesture" / f"{trial}.aedat"
        target = root / "events_np" / SPLIT_OF_TRIAL[trial]
        module._split_aedat_files_to_np(trial, source, source.with_name(f"{trial}_labels.csv"), target)
    theirs = load_events("dvs-gesture", root, "all")
    assert theirs.name == "dvs-gesture (SpikingJelly's events; part: 10 train, 5 test)"
    assert theirs.ids == ours.ids
    assert theirs.labels.tolist() == ours.labels.tolist()
    for (events, _), (expected, _) in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(events, expected)
    frames = [load("dvs-gesture", place, "all", T=4, quiet=True, use_cache=False) for place in (gesture, root)]
    assert frames[0].frames.equal(frames[1].frames)


def test_tonics_extraction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tonic = pytest.importorskip("tonic.datasets")
    for folder, trial in (
        ("ibmGestureTrain", TRIALS[0]),
        ("ibmGestureTrain", TRIALS[1]),
        ("ibmGestureTest", TRIALS[2]),
    ):
        place = tmp_path / "DVSGesture" / folder / trial
        place.mkdir(parents=True)
        for label in (0, 10):
            events = trial_events(trial)[label : label + 200]
            columns = [events["x"], events["y"], events["p"], events["t"] // 1000]
            np.save(place / f"{label}.npy", np.stack(columns, axis=1).astype(np.int64))
    monkeypatch.setattr(tonic.DVSGesture, "_check_exists", lambda self: True)
    for split, number in (("train", 4), ("test", 2)):
        ours = load_events("dvs-gesture", tmp_path, split)
        theirs = tonic.DVSGesture(save_to=str(tmp_path), train=split == "train")
        assert len(ours) == len(theirs) == number
        found = {
            f"{Path(path).parent.name}/{Path(path).stem}_0": theirs[index] for index, path in enumerate(theirs.data)
        }
        assert set(found) == set(ours.ids)
        for (events, label), id in zip(ours, ours.ids, strict=True):
            expected, wanted = found[id]
            assert label == wanted
            for name in "txyp":
                np.testing.assert_array_equal(events[name], expected[name])
    assert ours.name == "dvs-gesture (tonic's extraction; part: 4 train, 2 test)"


def test_content_follows_every_file(gesture: Path) -> None:
    def keys() -> tuple[str, ...]:
        return tuple(
            load("dvs-gesture", gesture, split, T=1, use_cache=False, quiet=True).content_key
            for split in ("train", "test")
        )

    before = keys()
    table = gesture / "DvsGesture/user12_led_labels.csv"
    table.write_text(table.read_text().replace("20000", "20001"))
    after = keys()
    assert (before[0] == after[0], before[1] == after[1]) == (False, True)
    recording = gesture / "DvsGesture/user24_led.aedat"
    recording.write_bytes(make.aedat3(trial_events("user24_led")[1:]))
    assert keys()[1] != after[1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "user12_led_labels.csv",
            "class,start,end\n12,5,9\n",
            r"labels\.csv: line 2 is '12,5,9'; expected a class of 1",
        ),
        ("user12_led_labels.csv", "1,9,5\n", r"line 1 is '1,9,5'; expected a class of 1\.\.11 and a start before"),
        ("user12_led_labels.csv", "class,start,end\n\n1;5;9\n", "line 3 is '1;5;9'; expected class,start,end"),
        ("user12_led_labels.csv", None, r"cannot read .*user12_led_labels\.csv"),
        ("user30_led.aedat", "x", "the official lists know no trial 'user30_led'"),
        (
            "trials_to_test.txt",
            "user01_led.aedat\n",
            r"trials_to_test\.txt: differs from the official list in user01_led",
        ),
        ("user12_led.aedat", "#!AER-DAT3.1\r\n", r"user12_led\.aedat: at offset 14: the header has no line"),
    ],
)
def test_files_that_do_not_fit(gesture: Path, name: str, content: str | None, message: str) -> None:
    path = gesture / "DvsGesture" / name
    path.unlink() if content is None else path.write_text(content, newline="")
    with pytest.raises(DataError, match=message):
        load_events("dvs-gesture", gesture, "train").__getitems__(range(10))


def test_extractions_that_do_not_fit(tmp_path: Path) -> None:
    wrong_side = tmp_path / "events_np/test/0"
    wrong_side.mkdir(parents=True)
    np.savez(wrong_side / "user01_led_0.npz", t=[1], x=[1], y=[1], p=[1])
    with pytest.raises(DataError, match=r"user01_led_0\.npz: user01_led belongs to train"):
        load_events("dvs-gesture", tmp_path, "train")
    shutil.rmtree(tmp_path / "events_np")
    folder = tmp_path / "ibmGestureTrain/user01_led"
    folder.mkdir(parents=True)
    for label, table, message in (
        (11, np.zeros((3, 4)), "label 11; labels here go from 0 to 10"),
        (3, np.zeros((3, 5)), r"expected numbers \[num_events, 4\]"),
        (3, np.full((3, 4), 0.5), "must be whole numbers"),
        (3, np.full((3, 4), 200), "x from 200 to 200, outside a DVS128"),
        (3, np.full((3, 4), 2), r"event 0 has p=2, outside a sensor"),
    ):
        np.save(folder / f"{label}.npy", table)
        with pytest.raises(DataError, match=message):
            load_events("dvs-gesture", tmp_path, "train")[0]
        (folder / f"{label}.npy").unlink()
    (folder / "4.npy").write_bytes(b"\x93NUMPY\x01\x00\x10\x00")
    with pytest.raises(DataError, match=r"4\.npy: no whole \.npy file"):
        load_events("dvs-gesture", tmp_path, "train")[0]
