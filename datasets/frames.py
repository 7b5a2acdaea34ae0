"""From a data source to frames in memory, through the HDF5 cache: ``load_frames``, ``open_frames``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from snn_core.datasets.binning import Binning
from snn_core.datasets.build import BuildJob, build_in_memory, build_on_disk
from snn_core.datasets.cache import FORMAT_VERSION, load_cached, open_cached
from snn_core.datasets.disk_frames import DiskFrameDataset
from snn_core.datasets.frame_dataset import FrameDataset
from snn_core.datasets.locate import open_source
from snn_core.datasets.source import EventSource, Recording, check_split
from snn_core.datasets.splits import stratified_subset
from snn_core.datasets.static_pictures import PictureSource
from snn_core.errors import ArgumentError, DataError
from snn_core.files import cache_root, sha256_json

PathLike = str | os.PathLike[str]
Source = PathLike | EventSource


def load_frames(
    source: Source,
    split: str,
    *,
    T: int = 3,
    by: Literal["time", "count", "window"] = "time",
    time_window: int | None = None,
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
        by: "time" (bins of equal duration) or "count" (bins of equal number of events), bin edges as described in
            ``snn_core.kernels.event_frames``; or "window": frame k holds the events with ``t_first + k * time_window <=
            t < t_first + (k + 1) * time_window``. Then what comes after T windows is cut off, and a recording that ends
            before gets empty frames.
        time_window: for ``by="window"``, in microseconds.
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
        ArgumentError: a bad ``T``, ``by``, ``time_window``, ``split`` or ``limit``; frames that do not fit in memory.
        DataError: the source is missing, empty or damaged (the message names file and offset), or changed while it was
            read.
        InterruptedRunError: Ctrl-C or SIGTERM while the cache is built: the same call goes on from there.

    Processes that want the same frames at once build them once: the others wait.
    Of a source of pictures (:class:`snn_core.datasets.static_pictures.PictureSource`) all T frames of a sample are the
    picture, without a copy; there is nothing to cache.
    A recording whose time stamps go backwards is sorted by time (stable) with a warning that counts such recordings.
    """
    request = _Request(source, split, Binning(T, by, time_window), cache_dir, seed, download, limit)
    if isinstance(request.source, PictureSource):
        return request.repeated_pictures(request.source)
    entry = load_cached(request.folder, request.key) if use_cache else None
    if entry is None:
        entry = build_in_memory(request.job(quiet), use_cache=use_cache)
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
    by: Literal["time", "count", "window"] = "time",
    time_window: int | None = None,
    cache_dir: PathLike | None = None,
    seed: int = 0,
    download: bool = False,
    limit: int | None = None,
    quiet: bool = False,
) -> DiskFrameDataset:
    """The same frames as :func:`load_frames`, left on disk: for sets larger than memory, and workers that share one.

    Arguments and errors as there. The cache file is built if need be, verified as a whole once, and then read sample by
    sample. Neither needs the memory of more than some samples; building needs the file's space on disk twice.

    Raises:
        StorageError: the cache cannot be written, without which there is nothing to read from.
    """
    request = _Request(source, split, Binning(T, by, time_window), cache_dir, seed, download, limit)
    if isinstance(request.source, PictureSource):
        raise ArgumentError(
            f"{request.source.name} holds pictures, which are read into memory at once: use load() or load_frames()"
        )
    found = open_cached(request.folder, request.key)
    if found is None:
        build_on_disk(request.job(quiet))
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
        binning: Binning,
        cache_dir: PathLike | None,
        seed: int,
        download: bool,
        limit: int | None,
    ) -> None:
        check_split(split)
        self.binning = binning
        self.split = split
        self.source = open_source(source, seed=seed, download=download)
        self.recordings = _chosen(self.source, split, limit, seed)
        self.content = self.source.content_hash(split)
        self.key = _content_key(self.source, self.content, split, binning, seed, limit)
        self.folder = Path(cache_dir).expanduser() if cache_dir is not None else cache_root()
        self._limit = limit

    def job(self, quiet: bool) -> BuildJob:
        """What is to be built where."""
        facts = {
            "name": self.source.name, "split": self.split, "binning": str(self.binning), "limit": self._limit,
            "simulated": self.source.simulated,
        }  # fmt: skip
        return BuildJob(
            self.source, self.split, self.recordings, self.content, self.binning, self.folder, self.key, facts, quiet
        )

    def repeated_pictures(self, source: PictureSource) -> FrameDataset:
        """Every picture at T time steps, in the memory of one. ArgumentError: ``by`` is not "time"."""
        if self.binning.by != "time":
            raise ArgumentError(
                f"by must be 'time' for {source.name}, pictures without events; got {self.binning.by!r}"
            )
        pictures = source.pictures(self.recordings)
        labels = torch.tensor([recording.label for recording in self.recordings], dtype=torch.int64)
        frames = pictures.unsqueeze(1).expand(-1, self.binning.T, -1, -1, -1)
        ids = [recording.id for recording in self.recordings]
        facts = self.description()
        facts["description"] = facts["description"].replace(f", {self.binning}", "")
        return FrameDataset(frames, labels, ids, static=True, **facts)

    def description(self) -> dict[str, Any]:
        """What a data set says of itself."""
        limit = f", limit {self._limit}" if self._limit is not None else ""
        return {
            "class_names": self.source.class_names,
            "name": self.source.name,
            "simulated": self.source.simulated,
            "content_key": self.key,
            "description": f"{self.split}, {self.binning}{limit}",
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


def _chosen(events_from: EventSource, split: str, limit: int | None, seed: int) -> list[Recording]:
    recordings = events_from.recordings(split)
    if limit is None:
        return recordings
    labels = np.array([recording.label for recording in recordings])
    return [recordings[index] for index in stratified_subset(labels, limit, seed)]


def _content_key(
    events_from: EventSource, content: str, split: str, binning: Binning, seed: int, limit: int | None
) -> str:
    parameters: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "source": content,
        "split": split,
        "sensor_size": list(events_from.sensor_size),
        **binning.key(),
        # The draw depends on the seed; real recordings without a limit do not, and share one cache file.
        "limit": None if limit is None else [int(limit), int(seed)],
    }
    return sha256_json(parameters)
