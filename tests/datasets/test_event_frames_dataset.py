"""Events augmented and binned when they are asked for: the cache's frames without, the frames' augmentation with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from snn_core.backbones import create
from snn_core.datasets import EventDataset, EventFrameDataset, FrameLoader, load_frames, make_events
from snn_core.datasets.augment import Augmentation, Compose, Crop, DropTime, Flip, PolarityFlip, Roll, Shift, TimeShift
from snn_core.datasets.source import Recording
from snn_core.errors import ArgumentError, DataError
from snn_core.training import TrainConfig, predict_logits, train_classifier


class Blobs:
    """40 recordings of 600 events about a place that tells the class."""

    name, simulated, sensor_size = "blobs (simulated)", True, (34, 34, 2)
    class_names = tuple("0123456789")

    def recordings(self, split: str) -> list[Recording]:
        return [Recording(str(k), k % 10, k) for k in range(40)]

    def content_hash(self, split: str) -> str:
        return "blobs"

    def read(self, recordings: Sequence[Recording]) -> Iterator[Any]:
        for recording in recordings:
            random = np.random.default_rng(recording.key)
            t = np.sort(random.integers(500, 200_500, 600))
            x, y = (np.clip(random.normal(8 + 2 * recording.label, 4, 600), 0, 33) for _ in range(2))
            yield make_events(t, x, y, random.integers(0, 2, 600))


@pytest.fixture(scope="module")
def events() -> EventDataset:
    return EventDataset(Blobs(), "train")


BINNINGS: list[dict[str, Any]] = [
    {"T": 4, "by": "time"}, {"T": 3, "by": "count"}, {"T": 5, "by": "window", "time_window": 40_000}
]  # fmt: skip


@pytest.mark.parametrize("binning", BINNINGS, ids=str)
def test_without_augmentation_these_are_the_frames_of_the_cache(events: EventDataset, binning: dict[str, Any]) -> None:
    expected = load_frames(Blobs(), "train", quiet=True, **binning)
    dataset = EventFrameDataset(events, **binning)
    frames, labels = dataset.batch(range(40))
    assert torch.equal(frames, expected.frames)
    assert torch.equal(labels, expected.labels)
    assert (len(dataset), dataset.T, dataset.sensor_size) == (40, binning["T"], (34, 34, 2))
    assert torch.equal(dataset[7][0], expected.frames[7])
    first, second = (next(iter(FrameLoader(data, 9, generator=2))) for data in (dataset, expected))
    assert torch.equal(first[0], second[0])


@pytest.mark.parametrize("augmentation", [Flip(), Shift(3), PolarityFlip(), Compose([Roll(4), Crop(20, 24)])], ids=repr)
@pytest.mark.parametrize("binning", [BINNINGS[0], BINNINGS[2]], ids=str)
def test_the_bins_are_those_of_the_whole_recording(
    events: EventDataset, augmentation: Augmentation, binning: dict[str, Any]
) -> None:
    """Although a shift or crop may lose the first and the last event."""
    plain, augmented = EventFrameDataset(events, **binning), EventFrameDataset(events, augment=augmentation, **binning)
    frames, _ = augmented.batch(range(40), torch.Generator().manual_seed(3))
    draw = augmentation.draw(torch.Generator().manual_seed(3), 40, (34, 34))
    expected = augmentation.apply(plain.batch(range(40))[0].transpose(0, 1), draw).transpose(0, 1)
    assert torch.equal(frames, expected)
    assert frames.shape[3:] == (augmented.sensor_size[1], augmented.sensor_size[0])


def test_shifts_in_time_are_shifts(events: EventDataset) -> None:
    augmentation = TimeShift(0.4)
    plain, shifted = EventFrameDataset(events, T=10), EventFrameDataset(events, T=10, augment=augmentation)
    frames, _ = shifted.batch(range(40), torch.Generator().manual_seed(0))
    later = augmentation.draw(torch.Generator().manual_seed(0), 40, (34, 34)).values["later"]
    for own, before, ratio in zip(frames, plain.batch(range(40))[0], later.tolist(), strict=True):
        if ratio >= 0.1:
            assert not own[: int(ratio * 10)].any()
            kept = before[: 10 - int(np.ceil(ratio * 10))].sum()
            assert abs(int(own.sum()) - int(before.sum() * (1 - ratio))) < 0.35 * int(before.sum())
            assert own.sum() >= kept


class Tiny:
    """Three recordings, one of them empty, one with more events in the corner than a cell holds."""

    name, simulated, sensor_size, class_names = "tiny (simulated)", True, (4, 3, 2), ("a", "b")

    def recordings(self, split: str) -> list[Recording]:
        return [Recording(str(k), k % 2, k) for k in range(4)]

    def content_hash(self, split: str) -> str:
        return "tiny"

    def read(self, recordings: Sequence[Recording]) -> Iterator[Any]:
        for recording in recordings:
            if recording.key == 0:
                yield make_events([], [], [], [])
            elif recording.key == 1:
                yield make_events(np.arange(300), np.zeros(300), np.zeros(300), np.zeros(300))
            elif recording.key == 2:
                yield make_events([5, 3, 4, 9], [1, 2, 3, 0], [1, 1, 1, 0], [0, 1, 1, 1])
            else:
                yield make_events([1, 2], [1, 7], [0, 0], [0, 0])


def test_empty_full_unsorted_and_damaged_recordings() -> None:
    tiny = EventDataset(Tiny(), "train")
    augmented = EventFrameDataset(tiny, T=1, augment=Shift(0))
    with_generator, labels = augmented.batch([0, 1, 2], torch.Generator())
    without, _ = augmented.batch([0, 1, 2])
    assert torch.equal(with_generator, without)
    assert labels.tolist() == [0, 1, 0]
    assert with_generator.flatten(1).sum(1).tolist() == [0, 255, 3]
    for generator in (None, torch.Generator()):
        with pytest.raises(DataError, match=r"tiny \(simulated\), one of the recordings 2, 3: "):
            augmented.batch([2, 3], generator)


def test_training_on_augmented_events_is_seeded(events: EventDataset) -> None:
    augmentation = Compose([Shift(2), DropTime((0.1, 0.3))])
    losses = []
    for seed in (1, 1, 2):
        model = create("conv-snn", seed=0, channels=[4, 4], input_size=(34, 34))
        data = EventFrameDataset(events, T=2, augment=augmentation)
        config = TrainConfig(epochs=1, batch_size=10, augment="none", seed=seed)
        losses.append(train_classifier(model, data, config, quiet=True).history[0]["loss"])
    assert losses[0] == losses[1] != losses[2]
    assert torch.equal(predict_logits(model, data), predict_logits(model, data.plain()))
    loader = FrameLoader(data, 40, shuffle=False)
    assert not torch.equal(loader.batch(0, 0)[0], loader.batch(1, 0)[0])
    assert torch.equal(loader.batch(1, 0)[0], loader.batch(1, 0)[0])


def test_keys_differ_and_bad_arguments_are_named(events: EventDataset) -> None:
    variants = [
        {"T": 2},
        {"T": 3},
        {"T": 3, "by": "count"},
        {"T": 3, "augment": "shift"},
        {"T": 3, "augment": Shift(4)},
    ]
    assert len({EventFrameDataset(events, **options).content_key for options in variants}) == 5  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="T must be"):
        EventFrameDataset(events, T=0)
    with pytest.raises(ArgumentError, match="augment must be one of"):
        EventFrameDataset(events, augment="mnist")


class Corners:
    """Recordings of 253 to 256 OFF events in the corner beside a cell of 300; the first begins elsewhere."""

    name, simulated, sensor_size, class_names = "corners (simulated)", True, (4, 3, 2), ("only",)

    def recordings(self, split: str) -> list[Recording]:
        return [Recording(str(count), 0, count) for count in (253, 254, 255, 256)]

    def content_hash(self, split: str) -> str:
        return "corners"

    def read(self, recordings: Sequence[Recording]) -> Iterator[Any]:
        for recording in recordings:
            x = np.array([2] * 300 + [0] * recording.key + [1] * 3)
            t = np.concatenate([np.arange(len(x) - 1) // 10, [900]])
            yield make_events(t, x, np.zeros_like(x), np.zeros_like(x))


@pytest.mark.parametrize("binning", [{"T": 2}, {"T": 2, "by": "window", "time_window": 400}], ids=str)
def test_counts_at_the_limit_in_the_corner_are_exact(binning: dict[str, Any]) -> None:
    events = EventDataset(Corners(), "train")
    plain, moved = EventFrameDataset(events, **binning), EventFrameDataset(events, augment=Shift(0), **binning)
    frames, _ = moved.batch(range(4), torch.Generator())
    assert frames[:, 0, 0, 0, 0].tolist() == [253, 254, 255, 255]
    assert torch.equal(frames, plain.batch(range(4))[0])
