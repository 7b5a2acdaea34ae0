"""FrameLoader and frames on disk in careless hands."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from snn_core.datasets import DiskFrameDataset, FrameDataset, FrameLoader, load_frames, open_frames
from snn_core.datasets.augment import CutMix, Shift
from snn_core.errors import ArgumentError, CheckpointError


@pytest.fixture(scope="module")
def frames() -> FrameDataset:
    return load_frames("digits-dvs", "train", T=2, limit=13, quiet=True)


@pytest.fixture(scope="module")
def on_disk() -> DiskFrameDataset:
    return open_frames("digits-dvs", "train", T=2, limit=13, quiet=True)


def test_a_loop_that_stops_at_the_last_batch_is_followed_by_the_next_epoch(frames: FrameDataset) -> None:
    loader = FrameLoader(frames, 4, generator=1)
    whole = FrameLoader(frames, 4, generator=1)
    epochs = [[labels.tolist() for _, labels in whole] for _ in range(3)]
    seen = [[labels.tolist() for _, labels in itertools.islice(loader, len(loader))] for _ in range(3)]
    assert seen == epochs
    resumed = FrameLoader(frames, 4, generator=9)
    resumed.load_state_dict(loader.state_dict())
    assert resumed.state_dict() == loader.state_dict()
    assert [labels.tolist() for _, labels in resumed] == [labels.tolist() for _, labels in whole]


def test_a_loader_without_samples_stays_where_it_is(frames: FrameDataset) -> None:
    loader = FrameLoader(frames.subset([]), 4)
    assert loader.state_dict()["epoch"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": [1, 2]}, "dataset must be .* got list"),
        ({"augment": CutMix()}, "augment must be .* got CutMix"),
        ({"mix": Shift()}, "mix must be .* got Shift"),
    ],
)
def test_arguments_of_the_wrong_kind_are_named(frames: FrameDataset, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        FrameLoader(**{"dataset": frames, "batch_size": 4} | options)


@pytest.mark.parametrize("state", [None, {"position": 10**9}, {"position": -1}, {"seed": 1.5}, {"epoch": True}])
def test_damaged_states_are_refused(frames: FrameDataset, state: Any) -> None:
    loader = FrameLoader(frames, 4)
    damaged = state if state is None else loader.state_dict() | state
    with pytest.raises(CheckpointError, match="state is damaged"):
        loader.load_state_dict(damaged)


@pytest.mark.parametrize("indices", [[1.5], torch.tensor([1.7]), ["1"], [True]], ids=str)
def test_indices_that_are_no_integers_are_refused(on_disk: DiskFrameDataset, indices: Any) -> None:
    with pytest.raises(ArgumentError, match="indices must be integers"):
        on_disk.batch(indices)


def test_indices_of_any_integer_type(on_disk: DiskFrameDataset, frames: FrameDataset) -> None:
    for chosen in ([3, -1], np.array([3, 12], np.uint8), np.array([3, 12], np.uint64), torch.tensor([3, 12])):
        assert torch.equal(on_disk.batch(chosen)[0], frames.frames[[3, 12]])
    assert on_disk.batch([])[0].shape == (0, *frames.frames.shape[1:])
    with pytest.raises(TypeError, match="float"):
        on_disk[1.5]  # type: ignore[index]
    with pytest.raises(IndexError, match="1180591620717411303424"):
        on_disk[2**70]
