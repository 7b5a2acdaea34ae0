"""Building frames: windows, batches, one polarity, going on after an interrupt, locks, leftovers."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from snn_core.datasets import binning, load_frames, make_events, open_frames
from snn_core.datasets.part_file import PartFile, compressed, discard_leftover
from snn_core.datasets.source import Recording
from snn_core.errors import DataError, InterruptedRunError, StorageError

W, H = 7, 5


class RandomSource:
    """Recordings of random events, each from its own seed; ``reads`` counts them."""

    name, simulated, class_names = "random (simulated)", True, ("a", "b", "c")

    def __init__(
        self, num: int = 20, polarities: int = 2, events: int = 300, before: Callable[[int], None] | None = None
    ):
        self.sensor_size = (W, H, polarities)
        self.num, self.events, self.version, self.reads = num, events, 0, 0
        self.before = before or (lambda index: None)

    def recordings(self, split: str) -> list[Recording]:
        return [Recording(f"r{index}", index % 3, index) for index in range(self.num)]

    def content_hash(self, split: str) -> str:
        return f"{self.version:064d}"

    def read(self, recordings: Sequence[Recording]) -> Iterator[np.ndarray]:
        for recording in recordings:
            self.before(recording.key)
            self.reads += 1
            yield self.one(recording.key)

    def one(self, index: int) -> np.ndarray:
        random = np.random.default_rng([index, self.version])
        num = int(random.integers(0, self.events)) if index else 0  # the first has no events
        t = np.sort(random.integers(0, 3000 * (1 + index % 4), num)) + 500
        return make_events(t, *(random.integers(0, size, num) for size in (W, H, 2)))


def expected_windows(events: np.ndarray, T: int, window: int) -> np.ndarray:
    frames = np.zeros((T, 2, H, W), np.int64)
    for t, x, y, p in events.tolist():
        if (k := (t - int(events["t"][0])) // window) < T:
            frames[k, p, y, x] += 1
    return frames


@pytest.mark.parametrize(("T", "window"), [(4, 1000), (1, 2999), (9, 1), (3, 10**6)])
def test_windows_are_cut_and_padded(T: int, window: int) -> None:
    source = RandomSource()
    data = load_frames(source, "all", T=T, by="window", time_window=window, use_cache=False)
    assert data.T == T
    for index in range(len(data)):
        np.testing.assert_array_equal(data.frames[index].numpy(), expected_windows(source.one(index), T, window))
    assert data.frames.any()
    assert f"by window of {window} us" in repr(data)


def test_batches_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load_frames(RandomSource(events=3000), "all", T=3, use_cache=False)
    monkeypatch.setattr(binning, "BATCH_EVENTS", 2000)
    assert torch.equal(load_frames(RandomSource(events=3000), "all", T=3, use_cache=False).frames, whole.frames)
    monkeypatch.setattr(binning, "BATCH_BYTES", 1)
    again = load_frames(RandomSource(events=3000), "all", T=3, use_cache=False)
    assert torch.equal(again.frames, whole.frames)
    assert again.saturated == whole.saturated


def test_one_polarity_counts_all_events(tmp_path: Path) -> None:
    both = load_frames(RandomSource(), "all", T=3, use_cache=False)
    one = open_frames(RandomSource(polarities=1), "all", T=3, cache_dir=tmp_path)
    assert one.sensor_size == (W, H, 1)
    frames, _ = one.batch(range(len(one)))
    assert torch.equal(frames[:, :, 0], both.frames.sum(2, dtype=torch.uint8))


def test_events_that_do_not_fit_name_the_recording() -> None:
    source = RandomSource()
    one = source.one
    source.one = lambda index: make_events([1, 2], [0, W], [0, 0], [0, 1]) if index == 7 else one(index)  # type: ignore[method-assign]
    with pytest.raises(DataError, match=rf"random .simulated., recording r7: .*x.*{W}"):
        load_frames(source, "all", use_cache=False)


def test_a_source_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    source = RandomSource()
    source.before = lambda index: setattr(source, "version", int(index > 10))
    with pytest.raises(DataError, match="the source was changed while it was read"):
        load_frames(source, "all", cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("load", [load_frames, open_frames])
def test_an_interrupted_build_goes_on(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binning, "BATCH_BYTES", 1)
    expected = load_frames(RandomSource(), "all", T=2, use_cache=False)

    def interrupt(index: int) -> None:
        if index == 12:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(InterruptedRunError, match=r"interrupted after 13 of 20 recordings"):
        load(RandomSource(before=interrupt), "all", T=2, cache_dir=tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".part"]
    source = RandomSource()
    data = load(source, "all", T=2, cache_dir=tmp_path)
    assert source.reads == 7
    assert torch.equal(data.frames if load is load_frames else data.load().frames, expected.frames)
    assert data.saturated == expected.saturated
    assert [path.suffix for path in tmp_path.iterdir()] == [".h5"]
    # And what is on disk is the same.
    assert torch.equal(open_frames(source, "all", T=2, cache_dir=tmp_path).load().frames, expected.frames)
    assert source.reads == 7


SAMPLES = [bytes([number]) * (50 + number) for number in range(6)]


def filled(path: Path, key: str = "k" * 64) -> Path:
    with PartFile(path, key, 6, 100) as part:
        for number, sample in enumerate(SAMPLES):
            part.append(compressed(sample), number)
        return part.path


def held(path: Path, key: str = "k" * 64) -> int:
    """Number of samples that the next one begins with; they are checked."""
    with PartFile(path, key, 6, 100) as part:
        assert list(part.streams()) == [compressed(sample) for sample in SAMPLES[: len(part)]]
        assert [saturated for _, _, saturated in part.records] == list(range(len(part)))
        return len(part)


def test_a_part_file_cut_off_or_damaged_anywhere_gives_whole_samples(tmp_path: Path) -> None:
    path = tmp_path / "frames-k.h5"
    data = filled(path).read_bytes()
    part = path.with_suffix(".part")
    assert held(path) == 6
    sizes = set()
    for length in range(0, len(data), 3):
        part.write_bytes(data[:length])
        sizes.add(held(path))
    assert sizes == {0, 1, 2, 3, 4, 5}
    for place in range(0, len(data), 3):
        part.write_bytes(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])
        assert held(path) < 6
        # What was kept may be appended to.
        with PartFile(path, "k" * 64, 6, 100) as again:
            for number in range(len(again), 6):
                again.append(compressed(SAMPLES[number]), number)
        assert held(path) == 6
    # Samples in another order, of another set, or behind the last.
    assert held(path, "l" * 64) == 0


def test_leftovers_are_cleaned_up(tmp_path: Path) -> None:
    path = tmp_path / "frames-k.h5"
    part = filled(path)
    (tmp_path / ".frames-k.h5.abcd.tmp").write_bytes(b"half")
    (tmp_path / ".frames-other.h5.abcd.tmp").write_bytes(b"half")
    assert held(path) == 6
    assert {file.name for file in tmp_path.iterdir()} == {"frames-k.part", ".frames-other.h5.abcd.tmp"}
    with PartFile(path, "k" * 64, 6, 100):
        assert not discard_leftover(path)
        assert part.exists()
    assert discard_leftover(path)
    assert not part.exists()
    assert discard_leftover(path)


def test_a_part_file_beside_a_finished_cache_goes(tmp_path: Path) -> None:
    data = open_frames(RandomSource(), "all", T=2, cache_dir=tmp_path)
    filled(data.path, data.content_key)
    open_frames(RandomSource(), "all", T=2, cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == [data.path]


def build_slowly(folder: str, log: str) -> None:
    """Notes every recording that is read, one line each."""

    def note(index: int) -> None:
        with open(log, "a") as file:
            file.write(f"{index}\n")
        time.sleep(0.02)

    data = open_frames(RandomSource(before=note), "all", T=2, cache_dir=folder, quiet=True)
    assert torch.equal(data.load().frames, load_frames(RandomSource(), "all", T=2, use_cache=False).frames)


@pytest.mark.parametrize("kind", ["processes", "threads"])
def test_two_at_once_build_once(kind: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    arguments = (str(tmp_path / "c"), str(log))
    if kind == "threads":
        workers: list[Any] = [threading.Thread(target=build_slowly, args=arguments) for _ in range(3)]
    else:
        context = multiprocessing.get_context("fork")
        workers = [context.Process(target=build_slowly, args=arguments) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert getattr(worker, "exitcode", 0) == 0
    assert log.read_text().split() == [str(index) for index in range(20)]
    assert [path.suffix for path in (tmp_path / "c").iterdir()] == [".h5"]


def test_the_one_that_waits_takes_over_from_a_killed_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binning, "BATCH_BYTES", 1)
    log = tmp_path / "log"
    context = multiprocessing.get_context("fork")
    first, second = (context.Process(target=build_slowly, args=(str(tmp_path / "c"), str(log))) for _ in range(2))
    first.start()
    while not log.exists() or len(log.read_text().split()) < 3:
        time.sleep(0.005)
    second.start()
    time.sleep(0.1)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    before = len(log.read_text().split())
    second.join(60)
    assert second.exitcode == 0
    assert before < 20
    assert log.read_text().split()[-1] == "19"
    assert [path.suffix for path in (tmp_path / "c").iterdir()] == [".h5"]


def test_file_systems_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    data = open_frames(RandomSource(), "all", T=2, cache_dir=tmp_path)
    assert torch.equal(data.load().frames, load_frames(RandomSource(), "all", T=2, use_cache=False).frames)
    filled(tmp_path / "frames-k.h5")
    assert list(tmp_path.iterdir()) == [data.path]


def test_a_disk_that_fills_up_on_the_way_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binning, "BATCH_BYTES", 1)
    append = PartFile.append

    def full(self: PartFile, sample: bytes, saturated: int) -> None:
        if len(self) == 9:
            raise StorageError("cannot write x: No space left on device")
        append(self, sample, saturated)

    monkeypatch.setattr(PartFile, "append", full)
    source = RandomSource()
    with pytest.warns(UserWarning, match="frames are not cached, going on without: cannot write x: No space left"):
        data = load_frames(source, "all", T=2, cache_dir=tmp_path)
    assert source.reads == 20
    assert torch.equal(data.frames, load_frames(RandomSource(), "all", T=2, use_cache=False).frames)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StorageError, match="No space left"):
        open_frames(source, "all", T=2, cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_threads_that_compress_change_nothing(tmp_path: Path) -> None:
    files = []
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            files.append(open_frames(RandomSource(), "all", cache_dir=tmp_path / str(threads)).path.read_bytes())
        finally:
            torch.set_num_threads(before)
    assert files[0] == files[1]


def test_samples_beyond_hdf5_are_refused(tmp_path: Path) -> None:
    source = RandomSource()
    source.sensor_size = (1280, 720, 2)
    with pytest.raises(ValueError, match=r"T=65536: a sample has 120,795,955,200 bytes"):
        open_frames(source, "all", T=2**16, cache_dir=tmp_path)


def test_a_set_larger_than_memory_is_built_in_little(tmp_path: Path) -> None:
    source = RandomSource(num=100, events=10)
    source.sensor_size = (512, 512, 2)  # 100 samples of 1 MB
    open_frames(RandomSource(num=2), "all", T=2, cache_dir=tmp_path)  # what is imported on the way does not count
    tracemalloc.start()
    try:
        data = open_frames(source, "all", T=2, cache_dir=tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * binning.BATCH_BYTES
    assert data[99][0].shape == (2, 2, 512, 512)
