"""``load`` and ``load_events``: a data set by name, as frames or as raw events."""

from __future__ import annotations

import os
from typing import Any, Literal

from snn_core.datasets.event_dataset import EventDataset
from snn_core.datasets.frame_dataset import FrameDataset
from snn_core.datasets.frames import load_frames
from snn_core.datasets.registry import open_dataset

PathLike = str | os.PathLike[str]


def load(
    name: str,
    root: PathLike | None = None,
    split: str = "train",
    *,
    T: int,
    by: Literal["time", "count", "window"] = "time",
    time_window: int | None = None,
    cache_dir: PathLike | None = None,
    seed: int = 0,
    download: bool = False,
    limit: int | None = None,
    use_cache: bool = True,
    quiet: bool = False,
    **options: Any,
) -> FrameDataset:
    """A data set as frames ``uint8 [num, T, P, H, W]`` in memory, through the frame cache.

    Pictures ("cifar10", "mnist") are repeated over T without a copy (stride 0), and need no cache.

    ``load("nmnist", "~/data", "train", T=10)``; what there is: :func:`list_datasets`, and :func:`info` of each.
    For frames that stay on disk: ``open_frames(open_source(name, root=root), split, T=T)``.

    Args:
        name: one of :func:`list_datasets`.
        root: where the data set lies, or the folder around it; by default $SNN_DATA.
        split: "train", "test" or "all" (train, then test).
        T, by, time_window, cache_dir, seed, limit, use_cache, quiet: as of :func:`load_frames`.
        download: let tonic download what is not found, where it can.
        options: ``split_name`` (where a data set has several published splits), and others of the data set's own:
            ``size`` of pictures (CIFAR-10: 32, or 16, means of 2 x 2 pixels).

    Raises:
        ArgumentError: no such name, an option that the data set does not have, or as of :func:`load_frames`.
        DataError: it is not there (says where to get it and where to put it), or damaged.
    """
    return load_frames(
        open_dataset(name, root, seed=seed, download=download, **options),
        split,
        T=T,
        by=by,
        time_window=time_window,
        cache_dir=cache_dir,
        seed=seed,
        limit=limit,
        use_cache=use_cache,
        quiet=quiet,
    )


def load_events(
    name: str,
    root: PathLike | None = None,
    split: str = "train",
    *,
    seed: int = 0,
    download: bool = False,
    limit: int | None = None,
    **options: Any,
) -> EventDataset:
    """A data set as raw events: a map-style torch data set of (EVENT_DTYPE array, label) that reads lazily.

    Arguments and errors as of :func:`load`; events are as recorded (times not shifted to 0, not sorted).
    """
    source = open_dataset(name, root, seed=seed, download=download, **options)
    return EventDataset(source, split, limit=limit, seed=seed)
