"""Spiking Heidelberg Digits: spoken digits in German and English as spikes of 700 cochlear channels, in two HDF5 files.

A spike is an event with ``x`` its channel, ``y`` and ``p`` 0: the sensor is 700 x 1 with one polarity (tonic gives all
spikes polarity 1). Times are stored in seconds, as 16-bit floating-point numbers, and are cut to whole microseconds, as
by tonic.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from snn_core.datasets.content import remembered_sha256
from snn_core.datasets.dataset_info import DatasetInfo, RegisteredDataset
from snn_core.datasets.events import make_events
from snn_core.datasets.folder_source import name_of_part
from snn_core.datasets.readers.event_file import EventFile
from snn_core.datasets.readers.library import ask_library
from snn_core.datasets.roots import download_with_tonic, folders_in, missing
from snn_core.datasets.source import Recording, check_split
from snn_core.errors import DataError
from snn_core.files import sha256_json

CHANNELS = 700
FILES = {"train": "shd_train.h5", "test": "shd_test.h5"}
FOLDERS = ("SHD", "shd", "extract", "SHD/extract")
#: Samples that are asked for at once.
BATCH = 256
MAX_SECONDS = 1e6

INFO = DatasetInfo(
    name="shd",
    title="Spiking Heidelberg Digits",
    class_names=(
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "null",
        "eins",
        "zwei",
        "drei",
        "vier",
        "fuenf",
        "sechs",
        "sieben",
        "acht",
        "neun",
    ),
    sensor_size=(CHANNELS, 1, 1),
    splits={"official": {"train": 8156, "test": 2264}},
    split_rules={"official": "the two files; two of the twelve speakers are only in the test file"},
    licence="CC BY 4.0",
    citation=(
        "B. Cramer, Y. Stradmann, J. Schemmel, F. Zenke: The Heidelberg Spiking Data Sets for the Systematic "
        "Evaluation of Spiking Neural Networks. IEEE Transactions on Neural Networks and Learning Systems 33, "
        "2744-2757 (2022). doi:10.1109/TNNLS.2020.3044364"
    ),
    home_page="https://compneuro.net/",
    how_to_get=(
        "Get shd_train.h5.zip and shd_test.h5.zip from https://zenkelab.org/datasets/ and unpack them, then name their "
        "folder as root or in the environment variable SNN_DATA. With a network, download=True fetches them through "
        "tonic."
    ),
    where_to_put="shd_train.h5 and shd_test.h5, in the root or in SHD/ in it",
)


class SHDSource:
    """SHD in a folder with one or both of its files.

    Raises:
        DataError: a file that is damaged or holds something else.
    """

    simulated = False
    sensor_size = INFO.sensor_size
    class_names = INFO.class_names

    def __init__(self, path: Path) -> None:
        self.path = path
        self._splits = {
            split: _recordings(path / name, split) if (path / name).is_file() else [] for split, name in FILES.items()
        }
        self.name = name_of_part(
            INFO, {split: len(found) for split, found in self._splits.items()}, INFO.splits["official"]
        )

    def recordings(self, split: str) -> list[Recording]:
        """Recordings of the split in the order of its file; "all" is train, then test. DataError: no such file."""
        check_split(split)
        wanted = list(FILES) if split == "all" else [split]
        for part in wanted:
            if not self._splits[part]:
                raise DataError(f"{self.path}: no recordings for split {part!r}, {FILES[part]}. {INFO.how_to_get}")
        return [recording for part in wanted for recording in self._splits[part]]

    def content_hash(self, split: str) -> str:
        """SHA-256 over the split's file, or both."""
        self.recordings(split)
        hashes = []
        for name in FILES.values() if split == "all" else (FILES[split],):
            try:
                hashes.append(remembered_sha256(self.path / name))
            except OSError as error:
                raise DataError(f"cannot read {self.path / name}: {error.strerror or error}") from error
        return sha256_json(["shd", *hashes])

    def read(self, recordings: Sequence[Recording]) -> Iterator[NDArray[np.void]]:
        """Events of each recording. DataError names the file that cannot be read, and the sample."""
        for first in range(0, len(recordings), BATCH):
            batch = recordings[first : first + BATCH]
            while batch:
                split = batch[0].key[0]
                together = next((n for n, recording in enumerate(batch) if recording.key[0] != split), len(batch))
                yield from _events(self.path / FILES[split], [recording.key[1] for recording in batch[:together]])
                batch = batch[together:]

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(found)} {split}" for split, found in self._splits.items())
        return f"SHDSource({self.name!r}, real recordings: {counts})"


def open_shd(root: Path | None = None, *, download: bool = False) -> SHDSource:
    """SHD in a folder.

    Args:
        root: the folder that holds shd_train.h5 and shd_test.h5, or the folder around it; by default $SNN_DATA.
        download: let tonic download it when it is not found.

    Raises:
        DataError: not there, or a damaged file.
    """
    found = _find(root)
    if found is None and download:
        download_with_tonic(INFO, root, _download)
        found = _find(root)
    if found is None:
        raise missing(INFO, root)
    return SHDSource(found)


def _find(root: Path | None) -> Path | None:
    """The folder with both files, else the first with one."""
    there = [
        (sum((folder / name).is_file() for name in FILES.values()), folder) for folder in folders_in(root, FOLDERS)
    ]
    return next((folder for wanted in (2, 1) for count, folder in there if count == wanted), None)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[EventFile]:
    try:
        with open(path, "rb") as stream:
            yield EventFile(stream, str(path), os.fstat(stream.fileno()).st_size, str(path))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def _recordings(path: Path, split: str) -> list[Recording]:
    with _opened(path) as file:
        parts = [columns["labels"] for columns, _ in ask_library(file, "spike trains", indices=None)]
    labels = np.concatenate(parts)
    if labels.dtype.kind not in "iu" or (len(labels) and not 0 <= labels.min() <= labels.max() < len(INFO.class_names)):
        raise DataError(f"{path}: its labels are not whole numbers of 0..{len(INFO.class_names) - 1}")
    return [Recording(f"{split}/{index:05d}", label, (split, index)) for index, label in enumerate(labels.tolist())]


def _events(path: Path, indices: list[int]) -> Iterator[NDArray[np.void]]:
    with _opened(path) as file:
        parts = ask_library(file, "spike trains", indices=indices)
        for index, (columns, _) in zip(indices, parts, strict=True):
            seconds, units = columns["times"].astype(np.float64), columns["units"]
            if len(seconds) != len(units) or units.dtype.kind not in "iu":
                raise DataError(
                    f"{path}: sample {index} has {len(seconds)} times and {len(units)} units, {units.dtype}"
                )
            if len(units) and not 0 <= units.min() <= units.max() < CHANNELS:
                raise DataError(f"{path}: sample {index} has units {units.min()}..{units.max()}, not 0..{CHANNELS - 1}")
            if not (np.abs(seconds) < MAX_SECONDS).all():
                raise DataError(f"{path}: sample {index} has times that are no seconds")
            nothing = np.zeros(len(units), np.int8)
            yield make_events((seconds * 1e6).astype(np.int64), units, nothing, nothing)


def _download(folder: str) -> None:
    from tonic.datasets import SHD

    for train in (True, False):
        SHD(save_to=folder, train=train)


DATASET = RegisteredDataset(INFO, open_shd)
