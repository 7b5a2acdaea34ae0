"""DVS128 Gesture's own files: long AEDAT-3.1 recordings, cut as the tables beside them say."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from snn_core.datasets.content import remembered_sha256
from snn_core.datasets.dvs_gesture_info import INFO, SPLIT_OF_TRIAL, trials
from snn_core.datasets.folder_source import check_inside_sensor, name_of_part
from snn_core.datasets.readers import read_events
from snn_core.datasets.source import Recording, check_split
from snn_core.errors import DataError

LISTS = {"train": "trials_to_train.txt", "test": "trials_to_test.txt"}
MAX_TABLE_BYTES = 1 << 20


@dataclass(frozen=True)
class Cut:
    """Where a gesture lies: its trial, and microseconds from ``start`` up to, but not with, ``end``."""

    trial: str
    start: int
    end: int


class DVSGestureTrials:
    """DVS128 Gesture as its authors give it.

    A trial is read whole (about 10 to 20 million events) for as long as recordings of it follow one another; in random
    order each recording costs a read of its trial. Frames are therefore made once, into the cache.

    Args:
        path: the folder with ``<trial>.aedat`` and ``<trial>_labels.csv``.

    Raises:
        DataError: a trial without its table, a table that is none, a trial in neither official list, or lists in the
            folder that are not the official ones.
    """

    simulated = False
    sensor_size = INFO.sensor_size
    class_names = INFO.class_names

    def __init__(self, path: Path) -> None:
        self.path = path
        _check_lists(path)
        for file in path.glob("user*.aedat"):
            if file.stem not in SPLIT_OF_TRIAL:
                raise DataError(f"{file}: the official lists know no trial {file.stem!r}")
        self._splits = {
            split: [
                recording
                for trial in trials(split)
                if (path / f"{trial}.aedat").is_file()
                for recording in _recordings(path, trial)
            ]
            for split in ("train", "test")
        }
        self.name = name_of_part(
            INFO, {split: len(found) for split, found in self._splits.items()}, INFO.splits["official"]
        )

    def recordings(self, split: str) -> list[Recording]:
        """Recordings of the split, trial by trial; "all" is train, then test. DataError: there are none."""
        check_split(split)
        wanted = ["train", "test"] if split == "all" else [split]
        for part in wanted:
            if not self._splits[part]:
                raise DataError(f"{self.path}: no trial of split {part!r}. {INFO.how_to_get}")
        return [recording for part in wanted for recording in self._splits[part]]

    def content_hash(self, split: str) -> str:
        """SHA-256 over the bytes of every trial of the split and of its table."""
        digest = hashlib.sha256()
        for trial in dict.fromkeys(recording.key.trial for recording in self.recordings(split)):
            for name in (f"{trial}.aedat", f"{trial}_labels.csv"):
                try:
                    digest.update(f"{name}\0{remembered_sha256(self.path / name)}\0".encode())
                except OSError as error:
                    raise DataError(f"cannot read {self.path / name}: {error.strerror or error}") from error
        return digest.hexdigest()

    def read(self, recordings: Sequence[Recording]) -> Iterator[NDArray[np.void]]:
        """Events of each recording, times as in its trial. DataError names file and offset of damage."""
        for trial, group in itertools.groupby(recordings, key=lambda recording: recording.key.trial):
            path = self.path / f"{trial}.aedat"
            events = check_inside_sensor(read_events(path), self.sensor_size, path)
            t = np.ascontiguousarray(events["t"])
            for recording in group:
                yield events[(t >= recording.key.start) & (t < recording.key.end)]

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(found)} {split}" for split, found in self._splits.items())
        return f"DVSGestureTrials({self.name!r}, real recordings: {counts})"


def find_trials(folder: Path) -> DVSGestureTrials | None:
    """The source where the folder holds trials with tables, else None."""
    there = any((folder / f"{file.stem}_labels.csv").is_file() for file in folder.glob("user*.aedat"))
    return DVSGestureTrials(folder) if there else None


def _recordings(folder: Path, trial: str) -> list[Recording]:
    """The rows of a trial's table, by label and then time, as SpikingJelly numbers them."""
    path = folder / f"{trial}_labels.csv"
    seen: Counter[int] = Counter()
    found = []
    for label, start, end in _table(path):
        found.append((label, seen[label], Cut(trial, start, end)))
        seen[label] += 1
    found.sort(key=lambda item: item[:2])
    return [Recording(f"{trial}/{label}_{number}", label, cut) for label, number, cut in found]


def _table(path: Path) -> Iterator[tuple[int, int, int]]:
    """(label from 0, start, end) of each row. DataError names file and line."""
    try:
        with open(path, "rb") as source:
            lines = source.read(MAX_TABLE_BYTES).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip() or (number == 1 and not line[0].isdigit()):
            continue
        try:
            label, start, end = (int(part) for part in line.split(","))
        except ValueError:
            raise DataError(f"{path}: line {number} is {line[:60]!r}; expected class,start,end") from None
        if not (1 <= label <= len(INFO.class_names) and 0 <= start < end):
            raise DataError(
                f"{path}: line {number} is {line[:60]!r}; expected a class of 1..{len(INFO.class_names)} and a start "
                "before its end"
            )
        yield label - 1, start, end


def _check_lists(folder: Path) -> None:
    """Refuse lists that are not the official ones: the split would be another than the one it is called."""
    for split, name in LISTS.items():
        try:
            text = (folder / name).read_text()
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read {folder / name}: {error}") from error
        listed = {Path(line.strip()).stem for line in text.splitlines() if line.strip()}
        if strange := sorted(listed ^ set(trials(split))):
            raise DataError(
                f"{folder / name}: differs from the official list in {', '.join(strange[:5])} "
                f"({len(strange)} trials in all); put the official file back, or remove it"
            )
