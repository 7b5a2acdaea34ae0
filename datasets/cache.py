"""HDF5 cache of frames: whole, verified and of exactly these parameters, or not used.

File name: the content key, a SHA-256 over the source's content, every parameter of the transform and the format
version. So a changed file or parameter never meets a stale cache. The file holds ``frames`` uint8 [num, T, 2, H, W],
``labels`` int64 [num], ``ids``, and a SHA-256 over all three that is verified on loading.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snn_core.datasets.hdf5 import write_hdf5
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

    def checksum(self) -> str:
        """SHA-256 over shapes and content."""
        digest = hashlib.sha256(f"{self.frames.shape}{self.labels.shape}{self.saturated}".encode())
        digest.update(np.ascontiguousarray(self.frames).data)
        digest.update(np.ascontiguousarray(self.labels.astype("<i8")).data)
        digest.update("\0".join(self.ids).encode())
        return digest.hexdigest()


def cache_file(folder: Path, key: str) -> Path:
    """Where the frames of that content key are kept."""
    return folder / f"frames-{key[:32]}.h5"


def load_cached(folder: Path, key: str) -> CachedFrames | None:
    """The cached frames, or None when there are none or the file is damaged (then with a warning)."""
    path = cache_file(folder, key)
    try:
        if not path.is_file():
            return None
        return _read(path, key)
    # h5py raises OSError, KeyError, RuntimeError, ValueError or TypeError, depending on which bytes are damaged.
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        warnings.warn(f"frame cache {path} is corrupt ({error}); it is built again", stacklevel=3)
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
    import h5py

    # No lock is needed, since files are only ever replaced as a whole, and network file systems may refuse it.
    with h5py.File(path, "r", locking=False) as file:
        form = (file.attrs.get("format"), file.attrs.get("format_version"), file.attrs.get("content_key"))
        if form != (FORMAT, FORMAT_VERSION, key):
            raise DataError(f"format, version and content key are {form}")
        entry = CachedFrames(
            frames=file["frames"][...],
            labels=file["labels"][...],
            ids=[name.decode() for name in file["ids"][...]],
            saturated=int(file.attrs["saturated"]),
        )
        if entry.checksum() != file.attrs["checksum"]:
            raise DataError("the checksum of its frames, labels and ids does not match")
    return entry


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
            "checksum": entry.checksum(),
            "saturated": entry.saturated,
            "description": description,
        }
    )
