"""HDF5 files for a world with full disks and damaged files.

What is written here begins with a 512-byte HDF5 user block (any HDF5 reader skips it): a SHA-256 of all that follows
the block, and behind it an optional summary that can be read alone. The SHA-256 is verified before the HDF5 library
sees the file, because that library is not safe against damage: measured (h5py 3.16, HDF5 2.0), reading a file with a
few changed bytes can hang for ever.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from snn_core.errors import DataError
from snn_core.files import atomic_path

MAGIC = b"snn_core hdf5, sha256 of the bytes after this block: "
BLOCK_BYTES = 512
_DIGEST_END = len(MAGIC) + 64


def write_hdf5(
    path: str | os.PathLike[str], fill: Callable[[Any], None], *, summary: dict[str, Any] | None = None
) -> None:
    """Write an HDF5 file atomically; ``fill`` receives the open, empty ``h5py.File``.

    What is written goes to disk at once, so that the file may be larger than memory.

    Args:
        path: of the file.
        fill: writes the content.
        summary: a few JSON values that :func:`read_summary` reads without the HDF5 library; strings that do not fit
            into the block are cut.

    Raises:
        StorageError: the disk refuses; an earlier file of that name is intact.
    """
    import h5py

    with atomic_path(path) as temporary, open(temporary, "r+b", buffering=0) as raw:
        sink = _Sink(raw)
        # The indices of chunks that came with HDF5 1.10 (2016) are read six times faster than those before.
        options = {"libver": ("v110", "v110"), "userblock_size": BLOCK_BYTES}
        with h5py.File(sink, "w", **options) as file:
            fill(file)
        sink.raise_error()
        raw.seek(BLOCK_BYTES)
        digest = hashlib.file_digest(raw, "sha256").hexdigest()
        block = MAGIC + digest.encode() + b"\n" + _summary_line(summary)
        raw.seek(0)
        raw.write(block.ljust(BLOCK_BYTES, b"\0"))


class _Sink:
    """A file for h5py to write to whose writes never fail, so that HDF5 need not cope.

    Measured: when the disk fills up below an h5py file, closing it fails again and again and the process ends with a
    segmentation fault. Here the first error is kept for :meth:`raise_error`, and whatever comes later stays in memory.
    """

    def __init__(self, raw: io.FileIO) -> None:
        self._raw = raw
        self._position = 0
        self._end = 0
        self._error: OSError | None = None
        self._refused: dict[int, bytes] = {}

    def raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._end}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        try:
            if self._error is None:
                done = 0
                while done < len(view):
                    done += os.pwrite(self._raw.fileno(), view[done:], self._position + done)
        except OSError as error:
            self._error = error
        if self._error is not None:
            self._refused[self._position] = bytes(view)
        self._position += len(view)
        self._end = max(self._end, self._position)
        return len(view)

    def read(self, size: int) -> bytes:
        data = bytearray(size)
        self.readinto(data)
        return bytes(data)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = self._refused.get(self._position, b"")[: len(view)]
        if not data:
            with contextlib.suppress(OSError):
                data = os.pread(self._raw.fileno(), len(view), self._position)
        view[:] = data.ljust(len(view), b"\0")
        self._position += len(view)
        return len(view)

    def truncate(self, size: int) -> int:
        self._end = size
        try:
            self._raw.truncate(size)
        except OSError as error:
            self._error = self._error or error
        return size

    def flush(self) -> None:
        pass


def _summary_line(summary: dict[str, Any] | None) -> bytes:
    """JSON and a CRC-32 of it, of a length that fits into the block."""
    if summary is None:
        return b""
    summary = dict(summary)
    while True:
        text = json.dumps(summary, separators=(",", ":")).encode()
        line = b"%08x %s\n" % (zlib.crc32(text), text)
        excess = _DIGEST_END + 1 + len(line) - BLOCK_BYTES
        if excess <= 0:
            return line
        longest = max((name for name in summary if isinstance(summary[name], str)), key=lambda name: len(summary[name]))
        summary[longest] = summary[longest][: -max(2, excess // 6)].rstrip("…") + "…"


def read_summary(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The summary of a file of :func:`write_hdf5`; empty if it was given none.

    Raises:
        DataError: not such a file, or a damaged summary.
        OSError: the file cannot be read at all.
    """
    with open(path, "rb") as source:
        return _parsed_summary(source.read(BLOCK_BYTES), path)


def _parsed_summary(block: bytes, path: str | os.PathLike[str]) -> dict[str, Any]:
    if not block.startswith(MAGIC) or len(block) != BLOCK_BYTES:
        raise DataError(f"{os.fspath(path)}: not an HDF5 file with a checksum as snn_core writes it")
    line = block[_DIGEST_END:].rstrip(b"\0")
    if line == b"\n":
        return {}
    checksum, _, text = line[1:-1].partition(b" ")
    if line[:1] + line[-1:] != b"\n\n" or checksum != b"%08x" % zlib.crc32(text):
        raise DataError(f"{os.fspath(path)}: the summary in its first {BLOCK_BYTES} bytes is damaged")
    summary: dict[str, Any] = json.loads(text)
    return summary


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
        _parsed_summary(block, path)
        found = hashlib.file_digest(source, "sha256").hexdigest()
    if block[len(MAGIC) : _DIGEST_END] != found.encode():
        raise DataError(f"{os.fspath(path)}: its SHA-256 does not match: cut off, or changed since it was written")
    # No lock is needed, since these files are only ever replaced as a whole, and network file systems may refuse it.
    with h5py.File(path, "r", locking=False) as file:
        yield file
