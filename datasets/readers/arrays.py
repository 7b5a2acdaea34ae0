"""Numpy files: .npy with a structured array of t x y p, .npz with such an array or with four arrays of those names.

Not read by ``numpy.load``: it allocates what a header announces before it looks at how much there is. Nothing is
unpickled.
"""

from __future__ import annotations

import ast
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from snn_core.datasets.readers.columns import events_from_columns, find_columns
from snn_core.datasets.readers.event_file import BLOCK_BYTES, EventBlocks, EventFile, OpenedEvents

MAX_HEADER_BYTES = 10_000
MAX_MEMBERS = 1000
#: An .npz may unpack to so many bytes, and so many times its size more. Four columns of real events shrink some five
#: times; a file of zeros a thousand times.
UNPACKED_BYTES, UNPACKED_RATIO = 1 << 26, 100
#: What zipfile raises on damaged archives or unsupported ones.
CORRUPT = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, struct.error, UnicodeDecodeError, ValueError)


def open_npy(file: EventFile) -> OpenedEvents:
    """Open an .npy file. DataError: no structured array of t x y p, another length than announced, pickled content."""
    dtype, count = _array_header(file, file.stream, file.size - file.tell(), "the array")
    columns = find_columns(dtype.names or ())
    if columns is None:
        raise file.error(0, f"expected a structured array with fields t x y p, found {_short(dtype)}; {_HOW}")
    return OpenedEvents("numpy .npy", None, _structured(file, file.stream, dtype, count, columns))


def open_npz(file: EventFile) -> OpenedEvents:
    """Open an .npz file. DataError: neither t x y p nor one structured array of them, damage, a bomb."""
    try:
        archive = zipfile.ZipFile(file.stream)
        members = archive.infolist()
    except CORRUPT as error:
        raise file.error(0, f"a damaged .npz (zip) file: {error}") from error
    arrays = {info.filename.removesuffix(".npy"): info for info in members if info.filename.endswith(".npy")}
    unpacked, allowed = sum(info.file_size for info in members), UNPACKED_BYTES + UNPACKED_RATIO * file.size
    if len(members) > MAX_MEMBERS or unpacked > allowed:
        raise file.error(
            0, f"{len(members)} arrays of {unpacked} bytes, more than the {allowed} this file may unpack to"
        )
    columns = find_columns(arrays)
    if columns is not None:
        blocks = _columns(file, archive, {name: arrays[there] for name, there in columns.items()})
        return OpenedEvents("numpy .npz, arrays t x y p", None, blocks)
    if len(arrays) == 1:
        return OpenedEvents("numpy .npz, structured array", None, _lone(file, archive, next(iter(arrays.values()))))
    raise file.error(0, f"expected arrays t, x, y and p, found {', '.join(sorted(arrays))[:200] or 'none'}; {_HOW}")


_HOW = "an array without names is not read, since the order of its columns is anyone's guess"


def _lone(file: EventFile, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> EventBlocks:
    start = min(max(info.header_offset, 0), file.size)
    with _member(file, archive, info) as stream:
        dtype, count = _array_header(file, stream, info.file_size, info.filename)
        columns = find_columns(dtype.names or ())
        if columns is None:
            raise file.error(start, f"{info.filename} has no fields t x y p but {_short(dtype)}; {_HOW}")
        yield from _structured(file, stream, dtype, count, columns)


def _columns(file: EventFile, archive: zipfile.ZipFile, infos: dict[str, zipfile.ZipInfo]) -> EventBlocks:
    streams, headers = {}, {}
    for name, info in infos.items():
        streams[name] = _member(file, archive, info)
        headers[name] = _array_header(file, streams[name], info.file_size, info.filename)
    counts = {name: count for name, (_, count) in headers.items()}
    if len(set(counts.values())) != 1:
        raise file.error(0, f"t, x, y and p must be of equal length, got {counts}")
    for first, length in _pieces(counts["t"], 8):
        read = {
            name: _elements(file, streams[name], headers[name][0], length, infos[name].filename) for name in headers
        }
        yield events_from_columns(file, read, first)


def _structured(
    file: EventFile, stream: IO[bytes], dtype: np.dtype[Any], count: int, columns: dict[str, str]
) -> EventBlocks:
    for first, length in _pieces(count, dtype.itemsize):
        rows = _elements(file, stream, dtype, length, "the array")
        yield events_from_columns(file, {name: rows[there] for name, there in columns.items()}, first)


def _pieces(count: int, item_bytes: int) -> Iterator[tuple[int, int]]:
    size = max(BLOCK_BYTES // item_bytes, 1)
    return ((first, min(size, count - first)) for first in range(0, count, size))


def _member(file: EventFile, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> IO[bytes]:
    try:
        return archive.open(info)
    except (*CORRUPT, OSError) as error:
        raise file.error(
            min(max(info.header_offset, 0), file.size), f"{info.filename} cannot be opened: {error}"
        ) from error


def _elements(file: EventFile, stream: IO[bytes], dtype: np.dtype[Any], count: int, what: str) -> NDArray[Any]:
    return np.frombuffer(_read(file, stream, count * dtype.itemsize, what), dtype)


def _read(file: EventFile, stream: IO[bytes], count: int, what: str) -> bytes:
    """Exactly so many bytes of a stream, which may be a member of a zip."""
    try:
        data = stream.read(count)
    except (*CORRUPT, OSError) as error:
        raise file.error(min(file.tell(), file.size), f"{what} is damaged: {error}") from error
    if len(data) != count:
        raise file.error(min(file.tell(), file.size), f"{what} is cut off: {len(data)} of the next {count} bytes")
    return data


def _array_header(file: EventFile, stream: IO[bytes], size: int, what: str) -> tuple[np.dtype[Any], int]:
    """dtype and number of elements of a one-dimensional .npy array that has ``size`` bytes with its header."""
    start = min(file.tell(), file.size)
    magic = _read(file, stream, 8, what)
    if magic[:6] != b"\x93NUMPY" or magic[6] not in (1, 2, 3):
        raise file.error(start, f"{what} does not begin as a numpy array: {magic!r}")
    form = "<H" if magic[6] == 1 else "<I"
    prefix = _read(file, stream, struct.calcsize(form), what)
    (length,) = struct.unpack(form, prefix)
    if length > MAX_HEADER_BYTES:
        raise file.error(start, f"{what} has a header of {length} bytes")
    text = _read(file, stream, length, what)
    try:
        header = ast.literal_eval(text.decode("utf-8" if magic[6] == 3 else "latin-1").strip())
        dtype, shape = np.lib.format.descr_to_dtype(header["descr"]), header["shape"]
        # Of one dimension C and Fortran order are the same.
        if set(header) != {"descr", "fortran_order", "shape"} or not all(type(extent) is int for extent in shape):
            raise ValueError("other keys or a shape that is none")
    except (
        ValueError,
        TypeError,
        KeyError,
        SyntaxError,
        AttributeError,
        RecursionError,
        MemoryError,
        IndexError,
    ) as error:
        raise file.error(start, f"{what} has a damaged header: {str(error)[:200]}") from error
    if len(shape) == 2 and 1 in shape and dtype.names is None:
        shape = (math.prod(shape),)
    if dtype.hasobject or len(shape) != 1 or dtype.itemsize == 0:
        raise file.error(
            start, f"{what} is {_short(dtype)} {str(shape)[:80]}; expected one dimension of numbers; {_HOW}"
        )
    expected = len(magic) + len(prefix) + length + shape[0] * dtype.itemsize
    if shape[0] < 0 or expected != size:
        raise file.error(start, f"{what} announces {expected} bytes but has {size}")
    return dtype, shape[0]


def _short(dtype: np.dtype[Any]) -> str:
    text = str(dtype)
    return text if len(text) <= 200 else text[:200] + "..."
