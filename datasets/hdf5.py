"""HDF5 files for a world with full disks and damaged files.

What is written here begins with a 512-byte HDF5 user block (any HDF5 reader skips it) that holds a SHA-256 of all that
follows. It is verified before the HDF5 library sees the file, because that library is not safe against damage:
measured (h5py 3.16, HDF5 2.0), reading a file with a few changed bytes can hang for ever.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from typing import Any

from snn_core.errors import DataError
from snn_core.files import atomic_path

MAGIC = b"snn_core hdf5, sha256 of the bytes after this block: "
BLOCK_BYTES = 512


def write_hdf5(path: str | os.PathLike[str], fill: Callable[[Any], None]) -> None:
    """Write an HDF5 file atomically; ``fill`` receives the open, empty ``h5py.File``.

    The file is composed in memory and written with one plain write. Measured: when the disk fills up below an h5py file
    on disk, closing it fails again and again and the process ends with a segmentation fault.

    Raises:
        StorageError: the disk refuses; an earlier file of that name is intact.
    """
    import h5py

    options = {"driver": "core", "backing_store": False, "userblock_size": BLOCK_BYTES}
    with h5py.File(os.fspath(path), "w", **options) as file:
        fill(file)
        file.flush()
        image = file.id.get_file_image()  # without the user block
    block = MAGIC + hashlib.sha256(image).hexdigest().encode() + b"\n"
    with atomic_path(path) as temporary, open(temporary, "wb") as output:
        output.write(block.ljust(BLOCK_BYTES, b"\0"))
        output.write(image)


@contextlib.contextmanager
def read_hdf5(path: str | os.PathLike[str]) -> Iterator[Any]:
    """Verify a file of :func:`write_hdf5` and open it as a read-only ``h5py.File``.

    Raises:
        DataError: not such a file, cut off, or changed since it was written.
        OSError: the file cannot be read at all.
    """
    import h5py

    with open(path, "rb") as source:
        block = source.read(BLOCK_BYTES)
        found = hashlib.file_digest(source, "sha256").hexdigest()
    if not block.startswith(MAGIC) or len(block) != BLOCK_BYTES:
        raise DataError(f"{os.fspath(path)}: not an HDF5 file with a checksum as snn_core writes it")
    if block[len(MAGIC) :].rstrip(b"\0\n") != found.encode():
        raise DataError(f"{os.fspath(path)}: its SHA-256 does not match: cut off, or changed since it was written")
    # No lock is needed, since these files are only ever replaced as a whole, and network file systems may refuse it.
    with h5py.File(path, "r", locking=False) as file:
        yield file
