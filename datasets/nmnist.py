"""N-MNIST recordings from a folder or zip in the official layout, and where to find them.

Layout: ``Train/<digit>/<id>.bin`` and ``Test/<digit>/<id>.bin``, at the top or inside one folder (tonic: ``NMNIST/``).
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import lzma
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from snn_core.datasets.content import remembered_hash, remembered_sha256
from snn_core.datasets.nmnist_format import SENSOR_SIZE, decode_nmnist
from snn_core.datasets.source import Recording, check_split
from snn_core.errors import DataError

SPLIT_FOLDERS = {"train": "Train", "test": "Test"}
CLASS_NAMES = tuple(str(digit) for digit in range(10))
HOW_TO_GET = (
    "Get Train.zip and Test.zip from https://www.garrickorchard.com/datasets/n-mnist (doi 10.17632/468j46mzdv), unpack "
    "them into one folder so that it holds Train/ and Test/, and give that folder as the data source, or name the "
    "folder around it in the environment variable SNN_DATA. With a network, download=True fetches them through tonic."
)
#: A zip member may claim any size; real recordings have about 20 kB.
MAX_MEMBER_BYTES = 2**26
#: Folders in folders that are looked into; the layout has three.
MAX_DEPTH = 5
SUFFIX = ".bin"  # in upper or lower case
LAYOUT = "expected Train/<digit>/<id>.bin and Test/<digit>/<id>.bin"

#: What zipfile raises on damaged or unsupported archives (RuntimeError: encrypted; the last two: mangled directories).
CORRUPT = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, struct.error, UnicodeDecodeError)

ReadFile = Callable[[str], bytes]


class NMNISTSource:
    """Real N-MNIST recordings (34 x 34 ATIS sensor) in a folder or a zip file.

    Args:
        path: folder or zip in the official layout.
        name: what the data set is called; the path's own name by default.

    Raises:
        DataError: missing or empty folder, corrupt zip, neither Train/ nor Test/, a label folder that is no digit.
    """

    simulated = False
    sensor_size = SENSOR_SIZE
    class_names = CLASS_NAMES

    def __init__(self, path: str | os.PathLike[str], name: str | None = None) -> None:
        self.path = Path(path)
        self.name = name or self.path.name
        if self.path.is_dir():
            names = _folder_names(self.path)
        elif self.path.exists():
            names = _zip_names(self.path)
        else:
            raise DataError(f"no such folder or zip file: {self.path}. {HOW_TO_GET}")
        self._recordings = _by_split(names, self.path)

    def recordings(self, split: str) -> list[Recording]:
        """Recordings of the split, ordered by label folder and file name; "all" is train, then test."""
        check_split(split)
        wanted = list(SPLIT_FOLDERS) if split == "all" else [split]
        for part in wanted:
            if not self._recordings[part]:
                other = [SPLIT_FOLDERS[name] for name, found in self._recordings.items() if found]
                raise DataError(
                    f"{self.path}: no recordings for split {split!r}: there is no .bin file in {SPLIT_FOLDERS[part]}/ "
                    f"(found only {', '.join(other)}/)"
                )
        return [recording for part in wanted for recording in self._recordings[part]]

    def counts(self) -> dict[str, int]:
        """Number of recordings of "train" and "test"."""
        return {split: len(found) for split, found in self._recordings.items()}

    def content_hash(self, split: str) -> str:
        """SHA-256 of the zip's bytes, or of every file of the split: relative path, size and bytes."""
        recordings = self.recordings(split)
        if not self.path.is_dir():
            with _reading(self.path):
                return remembered_sha256(self.path)
        keys = [recording.key for recording in recordings]
        return remembered_hash([self.path / key for key in keys], lambda: self._hash(keys), "\0".join(keys))

    def _hash(self, keys: Sequence[str]) -> str:
        digest = hashlib.sha256()
        for key in keys:
            data = self._read_from_folder(key)
            digest.update(os.fsencode(key) + f"\0{len(data)}\0".encode())
            digest.update(data)
        return digest.hexdigest()

    def read(self, recordings: Sequence[Recording]) -> Iterator[NDArray[np.void]]:
        """Events of each recording. DataError names the file (and offset) that cannot be read or makes no sense."""
        with self._open() as read_file:
            for recording in recordings:
                yield decode_nmnist(read_file(recording.key), f"{self.path}/{recording.key}", self.sensor_size)

    @contextlib.contextmanager
    def _open(self) -> Iterator[ReadFile]:
        if self.path.is_dir():
            yield self._read_from_folder
            return
        with _reading(self.path):
            archive = zipfile.ZipFile(self.path)
        with archive:
            yield lambda key: _read_member(archive, key, self.path)

    def _read_from_folder(self, key: str) -> bytes:
        with _reading(self.path / key):
            return (self.path / key).read_bytes()

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(found)} {split}" for split, found in self._recordings.items())
        return f"NMNISTSource({self.name!r}, real recordings: {counts})"


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what goes wrong while reading ``path`` into a DataError that names it."""
    try:
        yield
    except CORRUPT as error:
        raise DataError(f"{path}: corrupt or not a zip file in a known form: {error}") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def _read_member(archive: zipfile.ZipFile, key: str, path: Path) -> bytes:
    with _reading(path / key):
        size = archive.getinfo(key).file_size
        if size > MAX_MEMBER_BYTES:
            raise DataError(f"{path / key}: unpacks to {size} bytes, more than any recording ({MAX_MEMBER_BYTES})")
        return archive.read(key)


def _folder_names(folder: Path) -> list[str]:
    """Relative paths (with /) of all files and, with / at the end, folders. DataError when the folder is empty."""
    names: list[str] = []
    around: dict[str, frozenset[str]] = {}  # of a folder: what it and those on the way to it really are
    with _reading(folder):
        # Class folders are often links to another disk.
        for where, folders, files in os.walk(folder, onerror=_raise, followlinks=True):
            inside = Path(where).relative_to(folder)
            names += [(inside / name).as_posix() + "/" for name in folders]
            names += [(inside / name).as_posix() for name in files]
            around[where] = around.get(os.path.dirname(where), frozenset()) | {os.path.realpath(where)}
            # A link to a folder around itself has no end, and one to somewhere else may be long.
            folders[:] = [
                name
                for name in folders
                if len(inside.parts) < MAX_DEPTH and os.path.realpath(os.path.join(where, name)) not in around[where]
            ]
    if not names:
        raise DataError(f"{folder}: the folder is empty; {LAYOUT}. {HOW_TO_GET}")
    return names


def _raise(error: OSError) -> None:
    raise error


def _zip_names(path: Path) -> list[str]:
    """Names of all members; a folder's ends with / (not every zip has them)."""
    with _reading(path), zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    files = sorted(name for name in names if _is_recording(name))
    twice = [name for name, following in itertools.pairwise(files) if name == following]
    if twice:
        raise DataError(f"{path}: holds {twice[0]} twice")
    return names


def _is_recording(name: str) -> bool:
    return name.lower().endswith(SUFFIX)


def _by_split(names: list[str], path: Path) -> dict[str, list[Recording]]:
    """Recordings of each split among ``names`` (relative paths, of folders with / at the end), each sorted by path."""
    parts = [tuple(name.split("/")) for name in sorted(names)]
    visible = [item for item in parts if not any(part.startswith((".", "__MACOSX")) for part in item)]
    files = [item for item in visible if _is_recording(item[-1])]
    depth = next((d for d in (0, 1) if any(_is_split(item, d) for item in files)), None)
    if depth is None:
        raise DataError(f"{path}: neither Train/ nor Test/ with .bin files in it; {LAYOUT}. {HOW_TO_GET}")
    nests = {item[:depth] for item in files if _is_split(item, depth)}
    if len(nests) > 1:
        listed = ", ".join(sorted("/".join(nest) for nest in nests))
        raise DataError(f"{path}: several folders hold Train/ or Test/ ({listed}); give one of them")
    split_of = {folder: split for split, folder in SPLIT_FOLDERS.items()}
    found: dict[str, dict[str, Recording]] = {split: {} for split in SPLIT_FOLDERS}
    for item in files:
        if not _is_split(item, depth):
            continue
        inner = item[depth:]
        if len(inner) != 3 or inner[1] not in CLASS_NAMES:
            what = f"label folder {inner[1]!r} is no digit 0..9" if len(inner) == 3 else "not inside one label folder"
            raise DataError(f"{path}/{'/'.join(item)}: {what}; {LAYOUT}")
        identifier, same_split = "/".join(inner)[: -len(SUFFIX)], found[split_of[inner[0]]]
        if identifier in same_split:
            raise DataError(f"{path}/{'/'.join(item)}: same name as {same_split[identifier].key}")
        same_split[identifier] = Recording(identifier, int(inner[1]), "/".join(item))
    _check_label_folders(visible, depth, nests, path)
    return {split: list(recordings.values()) for split, recordings in found.items()}


def _check_label_folders(names: list[tuple[str, ...]], depth: int, nests: set[tuple[str, ...]], path: Path) -> None:
    """Refuse label folders that are no digit even where they hold no recording: they would be left out silently."""
    for item in names:
        # A folder's own name ends in an empty part, so that a file directly in Train/ is shorter than a folder in it.
        if item[:depth] in nests and _is_split(item, depth) and len(item) > depth + 2:
            label = item[depth + 1]
            if label not in CLASS_NAMES:
                raise DataError(
                    f"{path}/{'/'.join(item[: depth + 2])}: label folder {label!r} is no digit 0..9; {LAYOUT}"
                )


def _is_split(parts: tuple[str, ...], depth: int) -> bool:
    return len(parts) > depth + 1 and parts[depth] in SPLIT_FOLDERS.values()
