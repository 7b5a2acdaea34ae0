"""FrameLoader: every sample once, the same batches for any threads, exact resumption, errors where they belong."""

from __future__ import annotations

import json
import os
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from snn_core.datasets import DiskFrameDataset, FrameDataset, FrameLoader, load_frames, open_frames
from snn_core.datasets.augment import Affine, Augmentation, Compose, CutMix, Draw, DropEvents, Flip, Identity, Shift
from snn_core.errors import ArgumentError, CheckpointError, DataError


@pytest.fixture(scope="module")
def on_disk() -> DiskFrameDataset:
    return open_frames("digits-dvs", "train", T=3, limit=53, quiet=True)


@pytest.fixture(scope="module")
def in_memory() -> FrameDataset:
    return load_frames("digits-dvs", "train", T=3, limit=53, quiet=True)


def epoch_of(loader: FrameLoader) -> list[tuple[Tensor, Tensor]]:
    return list(loader)


def assert_equal(first: list[tuple[Tensor, Tensor]], second: list[tuple[Tensor, Tensor]]) -> None:
    assert len(first) == len(second)
    for (frames, labels), (others, other_labels) in zip(first, second, strict=True):
        assert torch.equal(frames, others)
        assert torch.equal(labels, other_labels)


AUGMENT = Compose([Affine(), DropEvents((0.1, 0.3))])


def test_an_epoch_has_every_sample_once(on_disk: DiskFrameDataset, in_memory: FrameDataset) -> None:
    loader = FrameLoader(on_disk, 10, generator=3)
    assert len(loader) == 6
    batches = epoch_of(loader)
    assert [len(labels) for _, labels in batches] == [10] * 5 + [3]
    frames, labels = torch.cat([f for f, _ in batches], 1), torch.cat([y for _, y in batches])
    assert frames.shape == (3, 53, 2, *in_memory.frames.shape[3:])
    assert all(f.is_contiguous() and f.dtype == torch.float32 for f, _ in batches)
    order = loader.order(0)
    assert sorted(order.tolist()) == list(range(53))
    assert order.tolist() != list(range(53))
    assert torch.equal(frames, in_memory.frames[order].transpose(0, 1).float())
    assert torch.equal(labels, in_memory.labels[order])
    assert loader.epoch == 1
    assert not torch.equal(loader.order(1), order)


def test_options_of_layout(in_memory: FrameDataset) -> None:
    plain = FrameLoader(in_memory, 10, shuffle=False, time_first=False, dtype=None, drop_last=True)
    batches = epoch_of(plain)
    assert len(plain) == len(batches) == 5
    assert torch.equal(torch.cat([f for f, _ in batches]), in_memory.frames[:50])
    assert all(f.is_contiguous() for f, _ in batches)
    half = epoch_of(FrameLoader(in_memory, 53, shuffle=False, dtype=torch.float16))
    assert torch.equal(half[0][0], in_memory.frames.transpose(0, 1).half())
    # Batches are copies: writing to one does not change the data.
    batches[0][0].fill_(7)
    assert not (in_memory.frames[:10] == 7).all()


@pytest.mark.parametrize(("threads", "prefetch"), [(1, 0), (1, 1), (1, 3), (3, 2), (4, 9)])
def test_batches_do_not_depend_on_threads(
    on_disk: DiskFrameDataset, in_memory: FrameDataset, threads: int, prefetch: int
) -> None:
    reference = FrameLoader(in_memory, 8, generator=5, augment=AUGMENT, prefetch=0)
    loader = FrameLoader(on_disk, 8, generator=5, augment=AUGMENT, threads=threads, prefetch=prefetch)
    for _ in range(2):
        assert_equal(epoch_of(reference), epoch_of(loader))


def test_the_seed_decides(in_memory: FrameDataset) -> None:
    def first(generator: Any, **options: Any) -> Tensor:
        return next(iter(FrameLoader(in_memory, 20, generator=generator, **options)))[0]

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))
    assert torch.equal(first(torch.Generator().manual_seed(9)), first(torch.Generator().manual_seed(9)))
    generator = torch.Generator().manual_seed(9)
    assert not torch.equal(first(generator), first(generator))
    # The augmentation of an epoch is another one in the next.
    loader = FrameLoader(in_memory, 53, shuffle=False, augment="shift")
    assert not torch.equal(loader.batch(0, 0)[0], loader.batch(1, 0)[0])
    state = torch.get_rng_state()
    epoch_of(FrameLoader(in_memory, 20, augment=AUGMENT))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("stop", [0, 1, 4, 6, 7])
def test_resumes_exactly(on_disk: DiskFrameDataset, stop: int) -> None:
    """From the state after any number of batches, over the end of an epoch, in another loader."""
    whole = FrameLoader(on_disk, 10, generator=5, augment=AUGMENT)
    expected = epoch_of(whole) + epoch_of(whole)

    def run(loader: FrameLoader, count: int) -> list[tuple[Tensor, Tensor]]:
        batches: list[tuple[Tensor, Tensor]] = []
        while len(batches) < count:
            for batch in loader:
                batches.append(batch)
                if len(batches) == count:
                    break
        return batches

    first = FrameLoader(on_disk, 10, generator=5, augment=AUGMENT, threads=2, prefetch=4)
    before = run(first, stop)
    state = json.loads(json.dumps(first.state_dict()))
    assert (state["epoch"], state["position"]) == divmod(stop, 6)
    second = FrameLoader(on_disk, 10, generator=77, augment=AUGMENT)
    second.load_state_dict(state)
    assert_equal(before + run(second, 12 - stop), expected)
    # The interrupted loader itself goes on too.
    assert_equal(before + run(first, 12 - stop), expected)


def test_states_of_other_loaders_are_refused(on_disk: DiskFrameDataset) -> None:
    loader = FrameLoader(on_disk, 10, augment=AUGMENT)
    state = loader.state_dict()
    for changed, name in (
        (FrameLoader(on_disk, 11, augment=AUGMENT), "batch_size"),
        (FrameLoader(on_disk, 10, augment="shift"), "augment"),
        (FrameLoader(on_disk, 10, augment=AUGMENT, shuffle=False), "shuffle"),
        (FrameLoader(on_disk, 10, augment=AUGMENT, mix=CutMix()), "mix"),
        (FrameLoader(on_disk.load().subset([0, 1]), 10, augment=AUGMENT), "data"),
    ):
        with pytest.raises(CheckpointError, match=f"{name} is"):
            changed.load_state_dict(state)
    for broken in ({"epoch": -1}, {"position": "3"}, {"seed": None}):
        with pytest.raises(CheckpointError, match="damaged"):
            loader.load_state_dict(state | broken)
    loader.load_state_dict(state)


def test_epochs_by_hand_and_iterations_that_cross(in_memory: FrameDataset) -> None:
    loader = FrameLoader(in_memory, 10)
    iterator = iter(loader)
    first = next(iterator)
    loader.set_epoch(0)
    assert_equal([next(iter(loader))], [first])
    with pytest.raises(ArgumentError, match="used again"):
        next(iterator)
    loader.set_epoch(4)
    assert_equal([next(iter(loader))], [loader.batch(4, 0)])


def test_labels_follow_mirror_images_and_mixtures(in_memory: FrameDataset) -> None:
    classes = tuple(reversed(range(10)))
    loader = FrameLoader(in_memory, 53, shuffle=False, augment=Flip(1.0, classes=classes), dtype=None)
    frames, labels = next(iter(loader))
    assert torch.equal(labels, 9 - in_memory.labels)
    assert torch.equal(frames.transpose(0, 1), in_memory.frames.flip(4))
    frames, labels = next(iter(FrameLoader(in_memory, 53, mix=CutMix(1.0))))
    assert labels.shape == (53, 10)
    assert labels.dtype == torch.float32
    torch.testing.assert_close(labels.sum(1), torch.ones(53))
    assert (labels.max(1).values < 1).any()


def test_a_copy_goes_on_by_itself(on_disk: DiskFrameDataset) -> None:
    loader = FrameLoader(on_disk, 10, generator=4, augment="shift")
    next(iter(loader))
    copied = pickle.loads(pickle.dumps(loader))
    assert_equal(epoch_of(loader), epoch_of(copied))


def test_an_error_comes_at_its_batch(in_memory: FrameDataset) -> None:
    class Third(Identity):
        count = 0

        def draw(self, generator: torch.Generator, count: int, size: tuple[int, int]) -> Draw:
            self.count += 1
            if self.count == 3:
                raise DataError("the third is bad")
            return super().draw(generator, count, size)

    for prefetch in (0, 4):
        loader = FrameLoader(in_memory, 10, augment=Third(), prefetch=prefetch)
        seen: list[Tensor] = []
        with pytest.raises(DataError, match="the third is bad"):
            seen.extend(labels for _, labels in loader)
        assert len(seen) == 2
        assert loader.state_dict()["position"] == 2


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    dataset = open_frames("digits-dvs", "train", T=2, limit=20, cache_dir=tmp_path, quiet=True)
    with open(dataset.path, "r+b") as file:
        size = os.path.getsize(dataset.path)
        file.seek(0)
        file.write(os.urandom(size))
    with pytest.raises(DataError, match=str(dataset.path)):
        epoch_of(FrameLoader(dataset, 7))


class SlowThread(Augmentation):
    """Notes the torch threads of where it runs."""

    def __init__(self) -> None:
        self.seen: set[tuple[str, int]] = set()

    def draw(self, generator: torch.Generator, count: int, size: tuple[int, int]) -> Draw:
        return Draw(count, size)

    def _frames(self, frames: Tensor, draw: Draw) -> Tensor:
        self.seen.add((threading.current_thread().name.split("_")[0], torch.get_num_threads()))
        return frames

    def __repr__(self) -> str:
        return "SlowThread()"


def test_threads_take_one_core_each_and_leave_the_others_theirs(in_memory: FrameDataset) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        watch = SlowThread()
        loader = FrameLoader(in_memory, 5, augment=watch, threads=2)
        epoch_of(loader)
        assert watch.seen == {("snn", 1)}
        assert torch.get_num_threads() == 3
        watch.seen.clear()
        for _ in FrameLoader(in_memory, 5, augment=watch, prefetch=0):
            assert torch.get_num_threads() == 3
        assert watch.seen == {("MainThread", 1)}
        later: list[int] = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert later == [3]
    finally:
        torch.set_num_threads(before)


def test_threads_end_with_the_loader(in_memory: FrameDataset) -> None:
    def mine() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name.startswith("snn_core-loader")]

    others = set(mine())
    loader = FrameLoader(in_memory, 5, threads=2)
    next(iter(loader))
    started = set(mine()) - others
    assert started
    del loader
    for thread in started:
        thread.join(10)
    assert not any(thread.is_alive() for thread in started)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"batch_size": 2.0}, "batch_size must be"),
        ({"prefetch": -1}, "prefetch must be an integer of at least 0"),
        ({"threads": 0}, "threads must be an integer of at least 1"),
        ({"generator": -4}, "generator must be"),
        ({"augment": "mnist"}, "augment must be one of"),
    ],
    ids=str,
)
def test_bad_arguments_are_named(in_memory: FrameDataset, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        FrameLoader(in_memory, **{"batch_size": 5, **options})
    with pytest.raises(ArgumentError, match=r"step must lie in 0\.\.10"):
        FrameLoader(in_memory, 5).batch(0, 11)
    with pytest.raises(ArgumentError, match="epoch must be"):
        FrameLoader(in_memory, 5).set_epoch(-1)


def test_sets_without_samples_have_no_batches(in_memory: FrameDataset) -> None:
    loader = FrameLoader(in_memory.subset([]), 5, augment=Shift())
    assert epoch_of(loader) == []
    assert (len(loader), loader.epoch) == (0, 1)
