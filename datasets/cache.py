"""HDF5 cache of frames: whole, verified and of exactly these parameters, or not used.

File name: the content key, a SHA-256 over the source's content, every parameter of the transform and the format
version. So a changed file or parameter never meets a stale cache. The file holds ``frames`` uint8 [num, T, 2, H, W],
one compressed chunk a sample, ``labels`` int64 [num] and ``ids``, under a SHA-256 of all of it that is verified on
loading (see hdf5.py).
"""

from __future__ import annotations

import json
import os
import warnings
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from snn_core.datasets.disk_frames import chunk_table
from snn_core.datasets.hdf5 import read_hdf5, write_hdf5
from snn_core.datasets.part_file import discard_leftover
from snn_core.errors import ArgumentError, DataError

FORMAT = "snn_core.frames"
FORMAT_VERSION = 3

Content = TypeVar("Content")


@dataclass
class CachedFrames:
    """What a cache file holds: frames uint8 [num, T, 2, H, W], labels int64 [num], ids, number of clipped cells."""

    frames: NDArray[np.uint8]
    labels: NDArray[np.int64]
    ids: list[str]
    saturated: int


@dataclass
class CachedChunks:
    """Where in a verified cache file the samples lie: ``chunks`` int64 [num, 2], offset and bytes of each."""

    path: Path
    chunks: NDArray[np.int64]
    frame_shape: tuple[int, int, int, int]
    labels: NDArray[np.int64]
    ids: list[str]
    saturated: int


def cache_file(folder: Path, key: str) -> Path:
    """Where the frames of that content key are kept."""
    return folder / f"frames-{key[:32]}.h5"


def load_cached(folder: Path, key: str) -> CachedFrames | None:
    """The cached frames, or None when there are none or the file is damaged (then with a warning).

    Raises:
        ArgumentError: they do not fit in memory.
    """
    path = cache_file(folder, key)
    try:
        return _guarded(_read, path, key)
    except MemoryError as error:
        raise ArgumentError(
            f"T: the frames in {path} do not fit in memory ({error}); open_frames leaves them on disk"
        ) from error


def open_cached(folder: Path, key: str) -> CachedChunks | None:
    """As :func:`load_cached`, for frames that stay on disk."""
    return _guarded(_read_chunks, cache_file(folder, key), key)


def _guarded(read: Callable[[Path, str], Content], path: Path, key: str) -> Content | None:
    try:
        content = read(path, key)
        # What a build leaves that was killed after its last step.
        discard_leftover(path)
        return content
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, KeyError, ValueError, TypeError) as error:
        warnings.warn(f"frame cache {path} cannot be used and is built again: {error}", stacklevel=4)
        return None


@dataclass
class SetContent:
    """What a cache file says beside its frames: ``facts`` (a few JSON values) are for people."""

    labels: NDArray[np.int64]
    ids: Sequence[str]
    frame_shape: tuple[int, int, int, int]
    facts: dict[str, Any]


def store_samples(folder: Path, key: str, samples: Iterable[bytes], content: SetContent, saturated: int) -> None:
    """Write a cache file from its samples' zlib streams (of uint8 [T, P, H, W] each), atomically as a whole.

    One sample at a time is held in memory. ``saturated``: clipped cells of all of them.

    Raises:
        StorageError: the disk refuses; an earlier file stays intact.
    """

    shape = [len(content.labels), *content.frame_shape]

    def fill(file: Any) -> None:
        import h5py

        one = (1, *content.frame_shape)
        options = {"chunks": one, "compression": "gzip", "compression_opts": 1} if len(content.labels) else {}
        frames = file.create_dataset("frames", tuple(shape), np.uint8, **options)
        for index, stream in enumerate(samples):
            frames.id.write_direct_chunk((index, 0, 0, 0, 0), stream)
        file["labels"] = content.labels.astype("<i8")
        file.create_dataset("ids", data=[os.fsencode(name) for name in content.ids], dtype=h5py.string_dtype("utf-8"))
        attributes = {"format": FORMAT, "format_version": FORMAT_VERSION, "content_key": key}
        file.attrs.update({**attributes, "saturated": saturated, "facts": json.dumps(content.facts)})

    summary = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "shape": [len(content.labels), *content.frame_shape],
        **content.facts,
    }
    write_hdf5(cache_file(folder, key), fill, summary=summary)


def check_cache_file(path: Path, key: str) -> None:
    """Read a cache file whole, whose content key begins with ``key``.

    Raises:
        DataError, KeyError, TypeError, ValueError, zlib.error: something is wrong with it. OSError: it cannot be read.
    """
    with read_hdf5(path) as file:
        full_key = str(file.attrs["content_key"])
        if not full_key.startswith(key):
            raise DataError(f"it holds the frames of content key {full_key}")
        _check(file, full_key)
        frames = file["frames"]
        if not len(frames) == len(file["labels"]) == len(file["ids"]):
            raise DataError("frames, labels and ids differ in number")
        chunks, expected = chunk_table(frames), int(np.prod(frames.shape[1:]))
        if chunks is None:
            raise DataError("its frames are not one zlib chunk a sample")
    with open(path, "rb") as source:
        for index, (offset, size) in enumerate(chunks.tolist()):
            source.seek(offset)
            if len(zlib.decompress(source.read(size))) != expected:
                raise DataError(f"sample {index} has not {expected} bytes")


def _read(path: Path, key: str) -> CachedFrames:
    with read_hdf5(path) as file:
        saturated = _check(file, key)
        return CachedFrames(file["frames"][...], file["labels"][...], _ids(file), saturated)


def _read_chunks(path: Path, key: str) -> CachedChunks:
    with read_hdf5(path) as file:
        saturated = _check(file, key)
        chunks = chunk_table(file["frames"])
        if chunks is None:
            raise DataError("its frames are not one zlib chunk a sample")
        return CachedChunks(path, chunks, file["frames"].shape[1:], file["labels"][...], _ids(file), saturated)


def _check(file: Any, key: str) -> int:
    """Raise unless the file is of this format and key; the number of clipped cells."""
    form = (file.attrs["format"], int(file.attrs["format_version"]), file.attrs["content_key"])
    if form != (FORMAT, FORMAT_VERSION, key):
        raise DataError(f"expected format, version and content key {(FORMAT, FORMAT_VERSION, key)}, found {form}")
    return int(file.attrs["saturated"])


def _ids(file: Any) -> list[str]:
    # File names may be no UTF-8.
    return [os.fsdecode(name) for name in file["ids"][...]]
