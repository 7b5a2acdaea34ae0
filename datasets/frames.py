"""From a data source to frames in memory, through the HDF5 cache: ``load_frames``, ``open_frames``."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from snn_core.datasets.cache import FORMAT_VERSION, CachedFrames, load_cached, open_cached, store_cached, store_samples
from snn_core.datasets.disk_frames import DiskFrameDataset
from snn_core.datasets.frame_dataset import FrameDataset
from snn_core.datasets.locate import open_source
from snn_core.datasets.source import EventSource, Recording, check_split
from snn_core.datasets.splits import stratified_subset
from snn_core.errors import ArgumentError, DataError
from snn_core.files import cache_root, sha256_json
from snn_core.kernels.event_frames import event_frames
from snn_core.progress import progress

BIN_ARGUMENTS = {"time": "n_time_bins", "count": "n_event_bins"}
PathLike = str | os.PathLike[str]
Source = PathLike | EventSource
#: Frames of one recording; far above any use, and far below what exhausts the memory with a single recording.
MAX_T = 2**16


def load_frames(
    source: Source,
    split: str,
    *,
    T: int = 3,
    by: Literal["time", "count"] = "time",
    cache_dir: PathLike | None = None,
    seed: int = 0,
    download: bool = False,
    limit: int | None = None,
    use_cache: bool = True,
    quiet: bool = False,
) -> FrameDataset:
    """Recordings of a source as frames ``uint8 [num, T, 2, H, W]``, from the cache where they are in it.

    Args:
        source: a data set's name (:func:`snn_core.datasets.list_datasets`), looked for in $SNN_DATA; a folder or zip in
            N-MNIST's official layout; or a source from :func:`snn_core.datasets.open_source`.
        split: "train", "test" or "all" (train, then test).
        T: number of frames a recording, 1 to 65,536.
        by: "time" (bins of equal duration) or "count" (bins of equal number of events); bin edges as described in
            ``snn_core.kernels.event_frames``.
        cache_dir: folder of the frame cache; by default the environment variable SNN_CACHE, else
            $XDG_CACHE_HOME/snn_core, else ~/.cache/snn_core.
        seed: of the simulated sensor, and of the draw that ``limit`` makes.
        download: let tonic download what is not found, where it can.
        limit: at most so many recordings: a stratified subset, the same for the same seed, see
            :func:`snn_core.datasets.stratified_subset`.
        use_cache: False neither reads nor writes the cache.
        quiet: no progress bar.

    Returns:
        A FrameDataset; its ``content_key`` is the SHA-256 of the source's content and all parameters above.

    Raises:
        ArgumentError: a bad ``T``, ``by``, ``split`` or ``limit``, or frames that do not fit in memory.
        DataError: the source is missing, empty or damaged; the message names file and offset.

    A recording whose time stamps go backwards is sorted by time (stable) with a warning that counts such recordings.
    """
    request = _Request(source, split, T, by, cache_dir, seed, download, limit)
    entry = load_cached(request.folder, request.key) if use_cache else None
    if entry is None:
        entry = _build(request.source, request.recordings, T, by, quiet)
        if use_cache:
            store_cached(request.folder, request.key, entry, request.text)
    return FrameDataset(
        torch.from_numpy(entry.frames),
        torch.from_numpy(entry.labels),
        entry.ids,
        saturated=entry.saturated,
        **request.description(),
    )


def open_frames(
    source: Source,
    split: str,
    *,
    T: int = 3,
    by: Literal["time", "count"] = "time",
    cache_dir: PathLike | None = None,
    seed: int = 0,
    download: bool = False,
    limit: int | None = None,
    quiet: bool = False,
) -> DiskFrameDataset:
    """The same frames as :func:`load_frames`, left on disk: for sets larger than memory, and workers that share one.

    Arguments and errors as there. The cache file is built if need be, verified as a whole once, and then read sample by
    sample; building holds the compressed file in memory.

    Raises:
        StorageError: the cache cannot be written, without which there is nothing to read from.
    """
    request = _Request(source, split, T, by, cache_dir, seed, download, limit)
    found = open_cached(request.folder, request.key)
    if found is None:
        width, height, polarities = request.source.sensor_size
        labels, ids = _labels_and_ids(request.recordings)
        samples = _binned(request.source, request.recordings, T, by, quiet)
        store_samples(request.folder, request.key, samples, labels, ids, (T, polarities, height, width), request.text)
        found = open_cached(request.folder, request.key)
        if found is None:
            raise DataError(f"the frame cache in {request.folder} was changed while it was opened")
    return DiskFrameDataset(
        found.path,
        found.chunks,
        found.frame_shape,
        found.labels,
        found.ids,
        saturated=found.saturated,
        **request.description(),
    )


class _Request:
    """The checked arguments of a call: which recordings, under which key, in which folder."""

    def __init__(
        self,
        source: Source,
        split: str,
        T: int,
        by: str,
        cache_dir: PathLike | None,
        seed: int,
        download: bool,
        limit: int | None,
    ) -> None:
        _check_arguments(split, T, by)
        self.source = open_source(source, seed=seed, download=download)
        self.recordings = _chosen(self.source, split, limit, seed)
        self.key = _content_key(self.source, split, T=T, by=by, seed=seed, limit=limit)
        self.folder = Path(cache_dir).expanduser() if cache_dir is not None else cache_root()
        self.text = f"{self.source.name}, {split}, T={T} by {by}"
        self._shown = f"{split}, by {by}" + (f", limit {limit}" if limit is not None else "")

    def description(self) -> dict[str, Any]:
        """What a data set says of itself."""
        return {
            "class_names": self.source.class_names,
            "name": self.source.name,
            "simulated": self.source.simulated,
            "content_key": self.key,
            "description": self._shown,
        }


def iterate_events(
    source: Source, split: str, *, seed: int = 0, download: bool = False, limit: int | None = None
) -> Iterator[tuple[NDArray[np.void], int, str]]:
    """(events, label, id) of each recording, lazily; events are EVENT_DTYPE arrays [num_events] as recorded.

    Arguments and errors as in :func:`load_frames`; the source is opened and checked at the call, files are read as
    the iteration reaches them.
    """
    check_split(split)
    events_from = open_source(source, seed=seed, download=download)
    recordings = _chosen(events_from, split, limit, seed)
    pairs = zip(events_from.read(recordings), recordings, strict=True)
    return ((events, recording.label, recording.id) for events, recording in pairs)


def _check_arguments(split: str, T: int, by: str) -> None:
    check_split(split)
    if isinstance(T, bool) or not isinstance(T, (int, np.integer)) or T < 1:
        raise ArgumentError(f"T must be an integer of at least 1, got {T!r}")
    if T > MAX_T:
        raise ArgumentError(f"T must be at most {MAX_T}, got {T}")
    if by not in BIN_ARGUMENTS:
        raise ArgumentError(f"by must be one of {', '.join(BIN_ARGUMENTS)}, got {by!r}")


def _chosen(events_from: EventSource, split: str, limit: int | None, seed: int) -> list[Recording]:
    recordings = events_from.recordings(split)
    if limit is None:
        return recordings
    labels = np.array([recording.label for recording in recordings])
    return [recordings[index] for index in stratified_subset(labels, limit, seed)]


def _content_key(events_from: EventSource, split: str, *, T: int, by: str, seed: int, limit: int | None) -> str:
    parameters: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "source": events_from.content_hash(split),
        "split": split,
        "sensor_size": list(events_from.sensor_size),
        "T": int(T),
        "by": by,
        # The draw depends on the seed; real recordings without a limit do not, and share one cache file.
        "limit": None if limit is None else [int(limit), int(seed)],
    }
    return sha256_json(parameters)


def _build(events_from: EventSource, recordings: Sequence[Recording], T: int, by: str, quiet: bool) -> CachedFrames:
    """Read, bin and stack the recordings."""
    width, height, polarities = events_from.sensor_size
    try:
        frames = np.empty((len(recordings), T, polarities, height, width), np.uint8)
    except MemoryError as error:
        raise ArgumentError(f"T={T}: frames of {len(recordings)} recordings do not fit in memory: {error}") from error
    saturated = 0
    for index, (sample, clipped) in enumerate(_binned(events_from, recordings, T, by, quiet)):
        frames[index] = sample
        saturated += clipped
    labels, ids = _labels_and_ids(recordings)
    return CachedFrames(frames, labels, ids, saturated)


def _labels_and_ids(recordings: Sequence[Recording]) -> tuple[NDArray[np.int64], list[str]]:
    return np.array([recording.label for recording in recordings], np.int64), [recording.id for recording in recordings]


def _binned(
    events_from: EventSource, recordings: Sequence[Recording], T: int, by: str, quiet: bool
) -> Iterator[tuple[NDArray[np.uint8], int]]:
    """Frames [T, 2, H, W] of each recording, and how many of their cells were clipped."""
    bins: dict[str, Any] = {BIN_ARGUMENTS[by]: T}
    unsorted = 0
    bar = progress(
        events_from.read(recordings), description=f"frames of {events_from.name}", total=len(recordings), quiet=quiet
    )
    for events in bar:
        if (events["t"][1:] < events["t"][:-1]).any():
            unsorted += 1
            events = events[np.argsort(events["t"], kind="stable")]
        yield event_frames(events, events_from.sensor_size, **bins)
    if unsorted:
        warnings.warn(
            f"{events_from.name}: time stamps went backwards in {unsorted} of {len(recordings)} recordings; "
            "their events were sorted by time",
            stacklevel=4,
        )
