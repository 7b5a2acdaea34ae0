"""Numbers in .npy and .npz files that hold no events, read without believing their headers. Nothing is unpickled."""

from __future__ import annotations

import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from snn_core.errors import DataError

#: What numpy's header parser (from SyntaxError on) and zipfile raise on damaged files (RuntimeError: encrypted).
DAMAGED = (
    ValueError, TypeError, EOFError, RuntimeError, struct.error, zipfile.BadZipFile, zlib.error, lzma.LZMAError,
    KeyError, SyntaxError, tokenize.TokenError, AttributeError, IndexError, OverflowError, MemoryError,
)  # fmt: skip
#: Bytes of one array; far above a recording's frames, so that a small file cannot unpack to gigabytes.
MAX_BYTES = 1 << 31


def read_npy(path: Path) -> NDArray[Any]:
    """The array of an .npy file. DataError names the file: missing, damaged, cut off, or with objects in it."""
    try:
        with open(path, "rb") as stream:
            return _array(stream, path.stat().st_size)
    except DAMAGED as error:
        raise DataError(f"{path}: no whole .npy file: {error}") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def read_npz(path: Path, name: str) -> NDArray[Any]:
    """The array ``name`` of an .npz file. Errors as :func:`read_npy`, and where it has no such array."""
    try:
        with zipfile.ZipFile(path) as archive:
            if f"{name}.npy" not in archive.namelist():
                raise ValueError(f"it has no array {name!r} but {', '.join(archive.namelist())[:200] or 'none'}")
            with archive.open(f"{name}.npy") as stream:
                return _array(stream, archive.getinfo(f"{name}.npy").file_size)
    except DAMAGED as error:
        raise DataError(f"{path}: no whole .npz file with {name!r}: {error}") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def names_in_npz(path: Path) -> list[str]:
    """Names of the arrays in an .npz file. DataError: missing or damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except DAMAGED as error:
        raise DataError(f"{path}: no whole .npz file: {error}") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def _array(stream: IO[bytes], size: int) -> NDArray[Any]:
    """The array in a stream of ``size`` bytes, compared with what its header announces before it is read."""
    if size > MAX_BYTES:
        raise ValueError(f"an array of {size} bytes, more than {MAX_BYTES}")
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of the format; 1.0 and 2.0 are read")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = read_header(stream)
    if dtype.kind not in "biuf" or any(extent < 0 for extent in shape):
        raise ValueError(f"an array of {dtype} {list(shape)}; expected numbers")
    count = math.prod(shape)
    if count * dtype.itemsize > size:
        raise ValueError(f"it announces {list(shape)} of {dtype}, more than its {size} bytes")
    data = stream.read(count * dtype.itemsize)
    if len(data) != count * dtype.itemsize or stream.read(1):
        raise ValueError(f"{len(data)} bytes where {list(shape)} of {dtype} were announced, or more behind them")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran_order else "C")
