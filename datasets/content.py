"""Content hashes of files, remembered as long as the files are the same: whole N-MNIST has 60,000 to read."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from snn_core.errors import StorageError
from snn_core.files import atomic_path, cache_root, sha256_file, sha256_json

#: A file changed so recently may change again without its times telling, which have steps of up to 2 s (FAT).
_SETTLED_SECONDS = 3
_MOST_REMEMBERED = 512


def remembered_hash(files: Sequence[Path], compute: Callable[[], str], about: str = "") -> str:
    """``compute()``, a SHA-256 over the content of ``files``; what it gave before where none of them was touched since.

    A file counts as untouched while its path, device, inode, size, and times of modification and of change (ctime,
    which programs cannot set) are the same. Remembered in the folder "content" of the cache; without a writable cache,
    and for files touched in the last seconds, it is computed every time.

    Args:
        files: all that ``compute`` reads.
        compute: the hash; it may depend on nothing else than the files and ``about``.
        about: whatever else the hash depends on.
    """
    before = _fingerprint(files, about)
    if before is None:
        return compute()
    fingerprint, touched = before
    kept = cache_root() / "content" / fingerprint
    with contextlib.suppress(OSError):
        remembered = kept.read_text(errors="replace")
        # The second line is a checksum of the first: a damaged note is no hash.
        content, _, check = remembered.partition("\n")
        if check == _check(fingerprint, content):
            return content
    started = time.time()
    content = compute()
    if touched < started - _SETTLED_SECONDS and _fingerprint(files, about) == before:
        _remember(kept, content)
    return content


def remembered_sha256(file: Path) -> str:
    """SHA-256 of a file's content, remembered in the same way. OSError: it cannot be read."""
    return remembered_hash([file], lambda: sha256_file(file))


def _check(fingerprint: str, content: str) -> str:
    return hashlib.sha256(f"{fingerprint} {content}".encode()).hexdigest()


def _fingerprint(files: Sequence[Path], about: str) -> tuple[str, float] | None:
    """A SHA-256 over the state of the files, and when the last of them was touched; None where one cannot be seen."""
    seen = []
    touched = 0
    try:
        for file in files:
            status = os.stat(file)
            times = [status.st_mtime_ns, status.st_ctime_ns]
            touched = max(touched, *times)
            seen.append([os.path.abspath(file), status.st_dev, status.st_ino, status.st_size, *times])
    except OSError:
        return None
    return sha256_json([about, seen]), touched / 1e9


def _remember(kept: Path, content: str) -> None:
    with contextlib.suppress(StorageError), atomic_path(kept) as temporary:
        temporary.write_text(f"{content}\n{_check(kept.name, content)}")
    with contextlib.suppress(OSError):
        others = sorted(kept.parent.iterdir(), key=lambda path: path.stat().st_mtime)
        for old in others[:-_MOST_REMEMBERED]:
            old.unlink()
