"""Data sets by name: facts, options, roots, and how a data set of one's own joins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from snn_core import datasets
from snn_core.datasets import DatasetInfo, info, list_datasets, load, load_events, load_frames, open_source, register
from snn_core.datasets import registry as registry_module
from snn_core.datasets.nmnist import NMNISTSource
from snn_core.errors import ArgumentError, DataError


@pytest.mark.parametrize("name", list_datasets())
def test_facts_are_whole(name: str) -> None:
    facts = info(name)
    assert facts.name == name
    assert len(set(facts.class_names)) == facts.num_classes >= 2
    assert len(facts.sensor_size) == 3
    assert min(facts.sensor_size) >= 1
    assert facts.splits
    assert set(facts.splits) == set(facts.split_rules)
    assert all(set(counts) == {"train", "test"} and min(counts.values()) > 0 for counts in facts.splits.values())
    assert facts.simulated == ("simulated" in facts.title)
    assert facts.citation
    assert facts.how_to_get
    assert DatasetInfo.model_validate_json(facts.model_dump_json()) == facts


def test_load_is_load_frames_of_the_opened_source(layout: Path) -> None:
    expected = load_frames(layout, "train", T=4, by="count", use_cache=False)
    for root in (layout, str(layout)):
        found = load("nmnist", root, "train", T=4, by="count", use_cache=False)
        assert torch.equal(found.frames, expected.frames)
        assert (found.ids, found.name, found.content_key) == (
            expected.ids,
            "nmnist (part: 9 train, 3 test)",
            expected.content_key,
        )
    assert len(load("nmnist", layout, T=1, limit=3, quiet=True, use_cache=False)) == 3


def test_root_around_the_data_set_and_from_the_environment(
    make_layout: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    around = make_layout("around", inside="NMNIST")
    assert len(load("nmnist", around, "test", T=1, use_cache=False)) == 3
    monkeypatch.setenv("SNN_DATA", str(around))
    assert len(load("nmnist", split="test", T=1, use_cache=False)) == 3


def test_not_there_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"N-MNIST is not in .*nowhere.*garrickorchard"):
        load("nmnist", tmp_path / "nowhere", T=1)


def test_load_events_reads_lazily(layout: Path) -> None:
    events = load_events("nmnist", layout, "train")
    assert (len(events), events.labels.tolist(), events.sensor_size) == (9, [0] * 3 + [1] * 3 + [7] * 3, (34, 34, 2))
    (layout / "Train/1/00002.bin").unlink()
    first, label = events[0]
    assert label == 0
    np.testing.assert_array_equal(first, datasets.read_nmnist(layout / "Train/0/00001.bin"))
    np.testing.assert_array_equal(events[-1][0], datasets.read_nmnist(layout / "Train/7/00003.bin"))
    with pytest.raises(DataError, match=r"00002\.bin"):
        events[4]
    with pytest.raises(IndexError):
        events[9]
    in_order = iter(events)
    for index in range(4):
        (found, label), (expected, wanted) = next(in_order), events[index]
        np.testing.assert_array_equal(found, expected)
        assert label == wanted
    with pytest.raises(DataError, match=r"00002\.bin"):
        next(in_order)


@pytest.mark.parametrize("workers", [0, 2])
def test_load_events_in_a_data_loader(layout: Path, zipped: Callable[[Path], Path], workers: int) -> None:
    events = load_events("nmnist", zipped(layout), "all")
    loader = DataLoader(events, batch_size=5, collate_fn=list, num_workers=workers)
    seen = [(len(sample), label) for batch in loader for sample, label in batch]
    assert seen == [(60, label) for label in [0] * 3 + [1] * 3 + [7] * 3 + [0, 1, 7]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: load("n_mnist", T=1), r"name must be one of .*got 'n_mnist'; did you mean 'nmnist'"),
        (lambda: info("everything"), r"name must be one of .*, digits-dvs, .*got 'everything'$"),
        (lambda: info(3), r"name must be one of .*got 3"),  # type: ignore[arg-type]
        (lambda: load("nmnist", T=1, split_name="mine"), "nmnist has no option 'split_name'; its options are none"),
        (lambda: load("digits-dvs", T=1, size=3), "digits-dvs has no option 'size'"),
        (lambda: load("nmnist", 3, T=1), "root must be a path or None, got 3"),  # type: ignore[arg-type]
        (lambda: load("digits-dvs", T=1, split="valid"), "split must be one of"),
        (lambda: open_source(".", root="."), "root is an option of data sets by name"),
        (lambda: open_source(3), "source must be one of"),  # type: ignore[arg-type]
    ],
)
def test_bad_arguments(call: Callable[[], object], message: str, layout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(layout)
    with pytest.raises(ArgumentError, match=message):
        call()


def test_register(layout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "_registered", {})
    facts = info("nmnist").model_copy(update={"name": "mine"})

    def opener(root: Path | None, *, part: str = "official") -> NMNISTSource:
        assert root is not None
        return NMNISTSource(root / part, "mine")

    register(facts, opener)
    register(facts, opener)
    assert "mine" in list_datasets()
    assert load("mine", layout.parent, "test", T=1, part=layout.name, seed=4, use_cache=False).name == "mine"
    with pytest.raises(ArgumentError, match="mine has no option 'parts'; its options are part"):
        load("mine", layout.parent, T=1, parts="x")
    with pytest.raises(ArgumentError, match="there is a data set 'nmnist' already"):
        register(info("nmnist"), opener)
