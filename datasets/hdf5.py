"""HDF5 files written so that a full disk is an ordinary error."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from snn_core.files import atomic_path


def write_hdf5(path: str | os.PathLike[str], fill: Callable[[Any], None]) -> None:
    """Write an HDF5 file atomically; ``fill`` receives the open, empty ``h5py.File``.

    The file is composed in memory and written with one plain write. Measured (h5py 3, HDF5 1.14): when the disk fills
    up below an h5py file on disk, closing it fails again and again and the process ends with a segmentation fault.

    Raises:
        StorageError: the disk refuses; an earlier file of that name is intact.
    """
    import h5py

    with h5py.File(os.fspath(path), "w", driver="core", backing_store=False) as file:
        fill(file)
        file.flush()
        image = file.id.get_file_image()
    with atomic_path(path) as temporary:
        temporary.write_bytes(image)
