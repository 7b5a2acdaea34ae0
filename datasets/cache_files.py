"""What lies in the folder of the frame cache: listed, verified, cleared."""

from __future__ import annotations

import os
import re
import time
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from snn_core.datasets.cache import FORMAT, FORMAT_VERSION, check_cache_file
from snn_core.datasets.hdf5 import read_summary
from snn_core.datasets.part_file import SUFFIX, is_held, remove_if_free
from snn_core.errors import ArgumentError, DataError, StorageError
from snn_core.files import cache_root
from snn_core.progress import progress

PathLike = str | os.PathLike[str]
State = Literal["frames", "other version", "damaged", "unfinished", "in the making"]
_NAMES = re.compile(r"\.?frames-(?P<key>[0-9a-f]{32})\.(h5|part|[0-9]+\.part|h5\..+\.tmp)")
#: Without locks a file that somebody writes is told by its age alone.
_ALIVE_SECONDS = 86_400


@dataclass(frozen=True)
class CacheFile:
    """A file of the frame cache.

    ``state``: "frames" (of use; verified when it is opened), "other version" (of a package that wrote them otherwise),
    "damaged" (not even its first bytes are right), "unfinished" (an interrupted build, which the next one goes on
    with), "in the making" (somebody builds it now). ``bytes``: on disk; ``modified``: seconds since 1970;
    ``summary``: of frames ``name``, ``split``, ``binning``, ``limit``, ``simulated`` and ``shape`` [num, T, P, H, W].
    """

    path: Path
    state: State
    bytes: int
    modified: float
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The first 32 digits of the content key."""
        found = _NAMES.fullmatch(self.path.name)
        assert found is not None
        return found["key"]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        facts = {"path": str(self.path), "state": self.state, "bytes": self.bytes, "modified": self.modified}
        return facts | {"summary": self.summary}


def list_cache(cache_dir: PathLike | None = None) -> list[CacheFile]:
    """The files of the frame cache, by name; other files in the folder are left alone.

    Args:
        cache_dir: the folder; by default as of :func:`snn_core.datasets.load_frames`.

    Raises:
        StorageError: the folder cannot be read. One that does not exist holds no files.
    """
    folder = _folder(cache_dir)
    try:
        paths = sorted(path for path in folder.iterdir() if _NAMES.fullmatch(path.name))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(f"cannot read the folder {folder}: {error}") from error
    found = []
    for path in paths:
        try:
            status = path.stat()
            state, summary = _state(path, status.st_mtime)
        except FileNotFoundError:  # finished or cleared meanwhile
            continue
        found.append(CacheFile(path, state, status.st_size, status.st_mtime, summary))
    return found


def verify_cache(files: Iterable[CacheFile], *, quiet: bool = False) -> dict[Path, str]:
    """Read every frames file whole: its SHA-256, its content key, and every sample. What is wrong, by path.

    Files that hold no frames of this version are not looked at.
    """
    frames = [file for file in files if file.state in ("frames", "damaged")]
    wrong: dict[Path, str] = {}
    for file in progress(frames, description="verify", quiet=quiet):
        try:
            check_cache_file(file.path, file.key)
        except FileNotFoundError:
            continue
        except (OSError, KeyError, ValueError, TypeError, zlib.error) as error:
            wrong[file.path] = str(error)
    return wrong


def clear_cache(files: Iterable[CacheFile]) -> tuple[list[CacheFile], dict[Path, str]]:
    """Remove files, but for those that somebody builds now. Data sets that have a file open go on reading from it.

    Returns:
        Those removed, and why others were not, by path.
    """
    removed, kept = [], {}
    for file in files:
        try:
            if file.state in ("unfinished", "in the making"):
                if _in_use(file.path, file.key, file.modified) or not _remove_unfinished(file.path):
                    kept[file.path] = "somebody builds it now"
                    continue
            else:
                file.path.unlink()
        except FileNotFoundError:
            pass
        except OSError as error:
            kept[file.path] = f"cannot be removed: {error.strerror or error}"
            continue
        removed.append(file)
    return removed, kept


def select_files(files: Sequence[CacheFile], names: Sequence[str]) -> list[CacheFile]:
    """The files that the names mean: paths, file names, or the beginning of a content key (8 digits or more).

    Raises:
        ArgumentError: a name that means none.
    """
    chosen: dict[Path, CacheFile] = {}
    for name in names:
        meant = [
            file
            for file in files
            if name in (str(file.path), file.path.name)
            or (len(name) >= 8 and file.key.startswith(name[:32]))
            or Path(name).absolute() == file.path.absolute()
        ]
        if not meant:
            raise ArgumentError(f"{name!r} is no file of the cache; give a path, or 8 or more digits of a content key")
        chosen |= {file.path: file for file in meant}
    return list(chosen.values())


def _folder(cache_dir: PathLike | None) -> Path:
    return Path(cache_dir).expanduser() if cache_dir is not None else cache_root()


def _state(path: Path, modified: float) -> tuple[State, dict[str, Any]]:
    if path.suffix != ".h5":
        found = _NAMES.fullmatch(path.name)
        assert found is not None
        return "in the making" if _in_use(path, found["key"], modified) else "unfinished", {}
    try:
        summary = read_summary(path)
    except DataError:
        return "damaged", {}
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        return "damaged", {}
    if (summary.get("format"), summary.get("format_version")) != (FORMAT, FORMAT_VERSION):
        return "other version", summary
    return "frames", summary


def _in_use(path: Path, key: str, modified: float) -> bool:
    """Whether somebody builds that key: its part file is held. Without locks: whether the file is recent."""
    held = is_held(path.parent / f"frames-{key}{SUFFIX}")
    return time.time() - modified < _ALIVE_SECONDS if held is None else held


def _remove_unfinished(path: Path) -> bool:
    if path.name.startswith("frames-") and path.suffix == SUFFIX:
        return remove_if_free(path)
    path.unlink()
    return True
