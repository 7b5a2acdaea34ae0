"""HDF5 cache of frames: whole, verified and of exactly these parameters, or not used.

File name: the content key, a SHA-256 over the source's content, every parameter of the transform and the format
version. So a changed file or parameter never meets a stale cache. The file holds ``frames`` uint8 [num, T, 2, H, W],
``labels`` int64 [num] and ``ids``, under a SHA-256 of all of it that is verified on loading (see hdf5.py).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snn_core.datasets.hdf5 import read_hdf5, write_hdf5
from snn_core.errors import DataError, StorageError

FORMAT = "snn_core.frames"
FORMAT_VERSION = 1
CHUNK_SAMPLES = 64


@dataclass
class CachedFrames:
    """What a cache file holds: frames uint8 [num, T, 2, H, W], labels int64 [num], ids, number of clipped cells."""

    frames: NDArray[np.uint8]
    labels: NDArray[np.int64]
    ids: list[str]
    saturated: int


def cache_file(folder: Path, key: str) -> Path:
    """Where the frames of that content key are kept."""
    return folder / f"frames-{key[:32]}.h5"


def load_cached(folder: Path, key: str) -> CachedFrames | None:
    """The cached frames, or None when there are none or the file is damaged (then with a warning)."""
    path = cache_file(folder, key)
    try:
        return _read(path, key)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, KeyError, ValueError, TypeError) as error:
        warnings.warn(f"frame cache {path} cannot be used and is built again: {error}", stacklevel=3)
        return None


def store_cached(folder: Path, key: str, entry: CachedFrames, description: str) -> bool:
    """Write the frames atomically. When the disk refuses: a warning and False; an earlier file stays intact."""
    path = cache_file(folder, key)
    try:
        write_hdf5(path, lambda file: _fill(file, key, entry, description))
    except StorageError as error:
        warnings.warn(f"frames are not cached, going on without: {error}", stacklevel=3)
        return False
    return True


def _read(path: Path, key: str) -> CachedFrames:
    with read_hdf5(path) as file:
        form = (file.attrs["format"], int(file.attrs["format_version"]), file.attrs["content_key"])
        if form != (FORMAT, FORMAT_VERSION, key):
            raise DataError(f"expected format, version and content key {(FORMAT, FORMAT_VERSION, key)}, found {form}")
        return CachedFrames(
            frames=file["frames"][...],
            labels=file["labels"][...],
            ids=[name.decode() for name in file["ids"][...]],
            saturated=int(file.attrs["saturated"]),
        )


def _fill(file: Any, key: str, entry: CachedFrames, description: str) -> None:
    import h5py

    chunk = (min(CHUNK_SAMPLES, len(entry.frames)), *entry.frames.shape[1:])
    file.create_dataset("frames", data=entry.frames, chunks=chunk, compression="gzip", compression_opts=1)
    file["labels"] = entry.labels.astype("<i8")
    file.create_dataset("ids", data=[name.encode() for name in entry.ids], dtype=h5py.string_dtype("utf-8"))
    file.attrs.update(
        {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "content_key": key,
            "saturated": entry.saturated,
            "description": description,
        }
    )
