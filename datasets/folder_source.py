"""Recordings that are one file each: what the sources of several data sets share."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from snn_core.datasets.content import remembered_hash
from snn_core.datasets.dataset_info import DatasetInfo
from snn_core.datasets.source import Recording, check_split
from snn_core.errors import DataError
from snn_core.files import sha256_json


class FolderSource:
    """An event source of files below one folder.

    Args:
        path: the folder.
        info: of the data set: class names, sensor size, and how many recordings the whole of it has.
        splits: recordings of "train" and "test"; ``key`` is the file's path below ``path``, with ``/``.
        decode: path -> EVENT_DTYPE events. Raises DataError naming the file.
        split_name: which of the data set's splits this is.
        form: how the files were made, where there are several ways ("tonic's extraction"); shown, and part of the hash.
        whole: recordings of the whole set in that form, where they are not those that ``info`` tells.
    """

    simulated = False

    def __init__(
        self,
        path: Path,
        info: DatasetInfo,
        splits: Mapping[str, Sequence[Recording]],
        decode: Callable[[Path], NDArray[np.void]],
        *,
        split_name: str,
        form: str = "",
        whole: Mapping[str, int] | None = None,
    ) -> None:
        self.path, self.info, self.form, self.split_name = path, info, form, split_name
        self.class_names, self.sensor_size = info.class_names, info.sensor_size
        counts = {split: len(found) for split, found in splits.items()}
        self.name = name_of_part(info, counts, whole or info.splits[split_name], form)
        self._splits = {split: list(splits.get(split, [])) for split in ("train", "test")}
        self._decode = decode

    def recordings(self, split: str) -> list[Recording]:
        """Recordings of the split; "all" is train, then test. DataError: there are none."""
        check_split(split)
        wanted = ["train", "test"] if split == "all" else [split]
        for part in wanted:
            if not self._splits[part]:
                raise DataError(f"{self.path}: no recordings for split {part!r}. {self.info.how_to_get}")
        return [recording for part in wanted for recording in self._splits[part]]

    def content_hash(self, split: str) -> str:
        """SHA-256 over id, label and bytes of every file of the split, and over how they are decoded."""
        recordings = self.recordings(split)
        files = [self.path / recording.key for recording in recordings]
        about = [self.info.name, self.form, *([recording.id, recording.label] for recording in recordings)]
        return remembered_hash(files, lambda: self._hash(recordings), sha256_json(about))

    def _hash(self, recordings: Sequence[Recording]) -> str:
        digest = hashlib.sha256(f"{self.info.name}\0{self.form}\0".encode())
        for recording in recordings:
            data = _bytes(self.path / recording.key)
            digest.update(os.fsencode(recording.id) + f"\0{recording.label}\0{len(data)}\0".encode())
            digest.update(data)
        return digest.hexdigest()

    def read(self, recordings: Sequence[Recording]) -> Iterator[NDArray[np.void]]:
        """Events of each recording. DataError names the file that cannot be read, or has events outside the sensor."""
        for recording in recordings:
            path = self.path / recording.key
            yield check_inside_sensor(self._decode(path), self.sensor_size, path)

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(found)} {split}" for split, found in self._splits.items())
        return f"{type(self).__name__}({self.name!r}, split {self.split_name!r}, real recordings: {counts})"


def check_inside_sensor(events: NDArray[np.void], sensor_size: tuple[int, int, int], path: Path) -> NDArray[np.void]:
    """``events``, all of them inside the sensor. DataError: one is not; names the file and the event."""
    for field, size in zip(("x", "y", "p"), sensor_size, strict=True):
        column = events[field]
        if len(column) and not 0 <= int(column.min()) <= int(column.max()) < size:
            index = int(((column < 0) | (column >= size)).argmax())
            raise DataError(
                f"{path}: event {index} has {field}={int(column[index])}, outside a sensor of (W, H, polarities) = "
                f"{sensor_size}"
            )
    return events


def name_of_part(info: DatasetInfo, counts: Mapping[str, int], whole: Mapping[str, int], form: str = "") -> str:
    """The data set's name, with what is not as in the whole, published set."""
    remarks = [form] if form else []
    if dict(counts) != dict(whole):
        remarks.append("part: " + ", ".join(f"{count} {split}" for split, count in counts.items()))
    return f"{info.name} ({'; '.join(remarks)})" if remarks else info.name


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
