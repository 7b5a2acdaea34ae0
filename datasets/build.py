"""Building the frames of a set: into memory and the cache, or into the cache alone."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from snn_core.datasets.binning import Binning, binned
from snn_core.datasets.cache import CachedFrames, SetContent, cache_file, load_cached, open_cached, store_samples
from snn_core.datasets.part_file import PartFile, compressed
from snn_core.datasets.source import EventSource, Recording
from snn_core.errors import ArgumentError, DataError, InterruptedRunError, StorageError
from snn_core.interrupt import deferred_interrupt
from snn_core.progress import progress

#: HDF5 chunks, here one a sample, are smaller than this.
MOST_SAMPLE_BYTES = 2**32 - 1


@dataclass(frozen=True)
class BuildJob:
    """Which recordings of a source become frames, and where they are kept.

    ``content``: the source's content hash before anything was read; ``facts``: what the cache file says of itself.
    """

    source: EventSource
    split: str
    recordings: Sequence[Recording]
    content: str
    binning: Binning
    folder: Path
    key: str
    facts: dict[str, Any]
    quiet: bool

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of a sample: [T, P, H, W]."""
        return self.binning.shape(self.source.sensor_size)

    @property
    def labels(self) -> NDArray[np.int64]:
        """int64 [num]."""
        return np.array([recording.label for recording in self.recordings], np.int64)

    @property
    def ids(self) -> list[str]:
        """One a recording."""
        return [recording.id for recording in self.recordings]

    def part_file(self) -> PartFile:
        """The locked part file; waits while another process builds the same."""
        sample_bytes = int(np.prod(self.shape))
        if sample_bytes > MOST_SAMPLE_BYTES:
            raise ArgumentError(f"T={self.binning.T}: a sample has {sample_bytes:,} bytes, above {MOST_SAMPLE_BYTES:,}")
        path = cache_file(self.folder, self.key)
        return PartFile(path, self.key, len(self.recordings), sample_bytes, quiet=self.quiet)


def build_on_disk(job: BuildJob) -> None:
    """See to it that the cache file is there, sound and whole.

    Raises:
        StorageError: the disk refuses. DataError, InterruptedRunError: see :func:`snn_core.datasets.load_frames`.
    """
    with job.part_file() as part:
        # Whoever held the lock before may have built it.
        if open_cached(job.folder, job.key) is None:
            for frames, clipped in _new_batches(job, len(part)):
                _append(part, frames, clipped)
            _finish(part, job)
        part.remove()


def build_in_memory(job: BuildJob, *, use_cache: bool) -> CachedFrames:
    """The frames of all recordings, in memory; also in the cache, unless the disk refuses, which is but a warning."""
    with _OptionalPart(job, use_cache) as cache:
        # Whoever held the lock before may have built it.
        if cache.part is not None and (found := load_cached(job.folder, job.key)) is not None:
            cache.part.remove()
            return found
        entry = _empty_entry(job)
        at = _restore(cache.part, entry) if cache.part is not None else 0
        for frames, clipped in _new_batches(job, at):
            entry.frames[at : at + len(frames)] = frames
            entry.saturated += int(clipped.sum())
            at += len(frames)
            cache.do(_append, frames, clipped)
        cache.do(_finish, job)
        cache.do(PartFile.remove)
        return entry


class _OptionalPart:
    """The part file of a job as long as the disk takes it; after that nothing, with a warning."""

    def __init__(self, job: BuildJob, wanted: bool) -> None:
        self.part: PartFile | None = None
        if wanted:
            try:
                self.part = job.part_file()
            except StorageError as error:
                self._warn(error)

    def do(self, action: Callable[..., None], *arguments: Any) -> None:
        """``action(part file, *arguments)``."""
        if self.part is None:
            return
        try:
            action(self.part, *arguments)
        except StorageError as error:
            self.part.remove()
            self.part.close()
            self.part = None
            self._warn(error)

    @staticmethod
    def _warn(error: StorageError) -> None:
        warnings.warn(f"frames are not cached, going on without: {error}", stacklevel=5)

    def __enter__(self) -> _OptionalPart:
        return self

    def __exit__(self, *error: Any) -> None:
        if self.part is not None:
            self.part.__exit__(*error)


def _empty_entry(job: BuildJob) -> CachedFrames:
    try:
        frames = np.empty((len(job.recordings), *job.shape), np.uint8)
    except (MemoryError, ValueError) as error:
        raise ArgumentError(
            f"T={job.binning.T}: frames of {len(job.recordings)} recordings do not fit in memory: {error}"
        ) from error
    return CachedFrames(frames, job.labels, job.ids, 0)


def _restore(part: PartFile, entry: CachedFrames) -> int:
    """Take over the samples of an earlier build; their number."""
    for row, (stream, (_, _, saturated)) in enumerate(zip(part.streams(), part.records, strict=True)):
        entry.frames[row] = np.frombuffer(zlib.decompress(stream), np.uint8).reshape(entry.frames.shape[1:])
        entry.saturated += saturated
    return len(part)


def _new_batches(job: BuildJob, first: int) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """Frames and clipped cells of the recordings from number ``first`` on, with a progress bar.

    An interrupt is raised between two batches. At the end the source must still be what it was.
    """
    total = len(job.recordings)
    with deferred_interrupt() as interrupted, ExitStack() as stack:
        bar = progress((), description=f"frames of {job.source.name}", total=total, quiet=job.quiet)
        stack.callback(bar.close)
        bar.update(first)
        done = first
        for frames, clipped in binned(job.source, job.recordings[first:], job.binning):
            yield frames, clipped
            done += len(frames)
            bar.update(len(frames))
            if interrupted:
                raise InterruptedRunError(
                    f"frames of {job.source.name}, {job.split}: interrupted after {done} of {total} recordings; those "
                    "are kept where there is a cache, and the same call goes on from there"
                )
    if job.source.content_hash(job.split) != job.content:
        raise DataError(f"{job.source.name}, {job.split}: the source was changed while it was read; load it again")


def _append(part: PartFile, frames: NDArray[np.uint8], clipped: NDArray[np.int64]) -> None:
    """Compress the samples, on as many threads as torch has, and append them in order."""
    threads = min(torch.get_num_threads(), len(frames))
    with ExitStack() as stack:
        streams: Iterator[bytes]
        if threads > 1:
            streams = stack.enter_context(ThreadPoolExecutor(threads)).map(compressed, frames)
        else:
            streams = map(compressed, frames)
        for stream, cells in zip(streams, clipped.tolist(), strict=True):
            part.append(stream, cells)


def _finish(part: PartFile, job: BuildJob) -> None:
    content = SetContent(job.labels, job.ids, job.shape, job.facts)
    store_samples(job.folder, job.key, part.streams(), content, sum(saturated for _, _, saturated in part.records))
