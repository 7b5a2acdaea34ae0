"""Frames in the making: the file that a build appends to, which is also its lock.

One process at a time holds the part file of a cache file, by ``flock``: the system lets go of it when its owner ends,
however that ends, so that a lock never outlives a killed build. Those who come meanwhile wait, and then find the work
done. What a killed or interrupted build leaves is whole samples, each under a digest, and the next build goes on
behind the last of them.

Layout: a head, which names the content key, then one record a sample: its compressed bytes and clipped cells as two
uint64, a BLAKE2 digest, the zlib stream.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from snn_core.errors import InterruptedRunError, StorageError

SUFFIX = ".part"
_HEAD = b"snn_core frames in the making, layout 1, content key "
_NUMBERS = struct.Struct("<QQ")
_DIGEST_BYTES = 16
#: What flock fails with on file systems that have none.
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


class PartFile:
    """Samples of the cache file ``path``, appended one after the other by whoever holds this file.

    Used as a context. When the block ends in an error or called :meth:`remove`, the part file is gone; when it was
    interrupted (KeyboardInterrupt, InterruptedRunError) or killed, it stays and the next one begins with its samples.
    Where a file system has no locks every process has a part file of its own, and none is gone on with.

    Args:
        path: of the cache file that is being built.
        key: content key of the frames; samples of another key are dropped.
        most: number of samples of the whole set.
        sample_bytes: of one uncompressed sample.
        quiet: no note on standard error while another process is waited for.

    Raises:
        StorageError: the folder cannot be written to.
    """

    def __init__(self, path: Path, key: str, most: int, sample_bytes: int, *, quiet: bool = True) -> None:
        self.path = path.with_suffix(SUFFIX)
        self._sample_bytes = sample_bytes
        self._key = key.encode()
        self._start = len(_HEAD) + len(self._key) + 1
        #: Offset of the zlib stream, its bytes, and clipped cells of each sample that is there.
        self.records: list[tuple[int, int, int]] = []
        with _storing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, self._locked = _acquire(self.path, quiet)
            if not self._locked:
                self.path = self.path.with_suffix(f".{os.getpid()}{SUFFIX}")
                descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
            self._file = os.fdopen(descriptor, "r+b", buffering=2**18)
            try:
                if self._locked:
                    _remove_temporaries(path)
                self._end = self._recover(most)
            except OSError:
                self._file.close()
                raise

    def __len__(self) -> int:
        return len(self.records)

    def append(self, sample: bytes, saturated: int) -> None:
        """Add the next sample: its zlib stream, and how many of its cells were clipped.

        Raises:
            StorageError: the disk refuses.
        """
        numbers = _NUMBERS.pack(len(sample), saturated)
        with _storing(self.path):
            self._file.write(numbers + self._digest(len(self.records), numbers, sample) + sample)
        offset = self._end + _NUMBERS.size + _DIGEST_BYTES
        self.records.append((offset, len(sample), saturated))
        self._end = offset + len(sample)

    def streams(self) -> Iterator[bytes]:
        """The zlib streams of all samples, in order.

        Raises:
            StorageError: the file can no longer be read.
        """
        with _storing(self.path):
            self._file.flush()
            for offset, size, _ in self.records:
                data = os.pread(self._file.fileno(), size, offset)
                if len(data) != size:
                    raise OSError(errno.EIO, "the file was cut off while it was in use")
                yield data

    def remove(self) -> None:
        """Take the file away: its samples are in the cache file, or are not wanted."""
        with contextlib.suppress(OSError):
            self.path.unlink()

    def close(self) -> None:
        """Let go of the lock. The file stays unless it was removed or holds no sample."""
        if self._file.closed:
            return
        try:
            self._file.flush()
        except OSError:
            self.remove()
        if not self.records or not self._locked:
            self.remove()
        with contextlib.suppress(OSError):
            self._file.close()

    def __enter__(self) -> PartFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and not issubclass(kind, KeyboardInterrupt | InterruptedRunError):
            self.remove()
        self.close()

    def _digest(self, index: int, numbers: bytes, sample: bytes) -> bytes:
        place = self._key + struct.pack("<Q", index) + numbers
        return hashlib.blake2b(place + sample, digest_size=_DIGEST_BYTES).digest()

    def _recover(self, most: int) -> int:
        """Read what an earlier build left and cut off what is not whole; the offset to append at."""
        file, end = self._file, self._start
        file.seek(0)
        if file.read(self._start) != _HEAD + self._key + b"\n":
            file.seek(0)
            file.truncate()
            file.write(_HEAD + self._key + b"\n")
            return end
        # zlib needs at most 5 bytes more in every 16 kB, and a few at the ends.
        limit = self._sample_bytes + self._sample_bytes // 1000 + 100
        while len(self.records) < most:
            numbers, digest = file.read(_NUMBERS.size), file.read(_DIGEST_BYTES)
            if len(digest) != _DIGEST_BYTES:
                break
            size, saturated = _NUMBERS.unpack(numbers)
            sample = file.read(size) if size <= limit else b""
            if len(sample) != size or digest != self._digest(len(self.records), numbers, sample):
                break
            self.records.append((end + _NUMBERS.size + _DIGEST_BYTES, size, saturated))
            end += _NUMBERS.size + _DIGEST_BYTES + size
        file.seek(end)
        file.truncate()
        return end


def compressed(sample: bytes | memoryview) -> bytes:
    """The zlib stream of a sample, as HDF5's gzip filter of level 1 writes it."""
    return zlib.compress(sample, 1)


def discard_leftover(path: Path) -> bool:
    """Remove the part file of the cache file ``path`` if nobody holds it; whether none is left.

    Also takes away temporary files beside it that a killed process left.
    """
    try:
        return remove_if_free(path.with_suffix(SUFFIX), beside=path)
    except OSError:
        return False


def remove_if_free(part: Path, *, beside: Path | None = None) -> bool:
    """Remove a part file unless somebody holds it, and first what a killed process left ``beside`` its cache file.

    Raises:
        OSError: it cannot be opened or removed, or the file system has no locks.
    """
    try:
        descriptor = os.open(part, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        if not _lock(descriptor, wait=False) or not _still_named(descriptor, part):
            return False
        if beside is not None:
            _remove_temporaries(beside)
        part.unlink()
    finally:
        os.close(descriptor)
    return True


def is_held(part: Path) -> bool | None:
    """Whether somebody holds that part file; None where that cannot be told."""
    try:
        descriptor = os.open(part, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        return not _lock(descriptor, wait=False)
    except OSError:
        return None
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _storing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"cannot write {path}: {error}") from error


def _acquire(path: Path, quiet: bool) -> tuple[int, bool]:
    """Open and lock the file: its descriptor, and True; -1 and False where the file system has no locks."""
    told = quiet or not sys.stderr.isatty()
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            if not _lock(descriptor, wait=False):
                if not told:
                    print(f"another process builds {path.stem}; waiting for it", file=sys.stderr)
                    told = True
                _lock(descriptor, wait=True)
            # Its owner has removed the file when it was done; then this lock is on a file without a name.
            if _still_named(descriptor, path):
                return descriptor, True
        except BaseException as error:
            os.close(descriptor)
            if not isinstance(error, OSError) or error.errno not in _NO_LOCKS:
                raise
            path.unlink(missing_ok=True)
            return -1, False
        os.close(descriptor)


def _lock(descriptor: int, *, wait: bool) -> bool:
    """Whether the lock was had; OSError where the file system has none."""
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def _still_named(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _remove_temporaries(path: Path) -> None:
    """What ``atomic_path`` left beside ``path`` in a process that was killed. Only under the lock."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        with contextlib.suppress(OSError):
            left.unlink()
