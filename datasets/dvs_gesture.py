"""DVS128 Gesture: 11 gestures of 29 people under 5 lights, before a DVS128. The official split is by person.

Layouts:

* the authors' ``DvsGesture/``: a long recording ``<trial>.aedat`` (AEDAT-3.1) of each trial, cut here as its
  ``<trial>_labels.csv`` says (class from 1, first and last microsecond; the last does not belong to the recording):
  1,176 + 288 recordings;
* SpikingJelly's ``events_np/{train,test}/<label>/<trial>_<n>.npz``: the same cuts;
* tonic's ``ibmGestureTrain/<trial>/<label>.npy`` (and ``...Test``): 1,077 + 264 recordings, in whole milliseconds.
  Where a class was recorded twice in a trial, one of the two is not in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from snn_core.datasets.dataset_info import RegisteredDataset
from snn_core.datasets.dvs_gesture_aedat import find_trials
from snn_core.datasets.dvs_gesture_info import INFO, SPLIT_OF_TRIAL
from snn_core.datasets.events import make_events
from snn_core.datasets.folder_source import FolderSource
from snn_core.datasets.plain_arrays import read_npy
from snn_core.datasets.readers import read_events
from snn_core.datasets.roots import download_with_tonic, folders_in, missing
from snn_core.datasets.source import EventSource, Recording
from snn_core.errors import DataError

FOLDERS = (
    "DvsGesture", "DVS128Gesture", "DVSGesture", "dvs-gesture", "extract/DvsGesture",
    "DVS128Gesture/extract/DvsGesture",
)  # fmt: skip

TONIC_COUNTS = {"train": 1077, "test": 264}


def open_dvs_gesture(root: Path | None = None, *, download: bool = False) -> EventSource:
    """DVS128 Gesture in a folder; the authors' files come before SpikingJelly's, and these before tonic's.

    Args:
        root: the folder with the files of one of the layouts, or the folder around it; by default $SNN_DATA.
        download: let tonic download its extraction when nothing is found.

    Raises:
        DataError: not there, or files that do not fit the layout.
    """
    found = _find(root)
    if found is None and download:
        download_with_tonic(INFO, root, _download)
        found = _find(root)
    if found is None:
        raise missing(INFO, root)
    return found


def _find(root: Path | None) -> EventSource | None:
    for find in (find_trials, _find_spikingjelly, _find_tonic):
        for folder in folders_in(root, FOLDERS):
            if found := find(folder):
                return found
    return None


def _find_spikingjelly(folder: Path) -> EventSource | None:
    """``events_np/{train,test}/<label>/<trial>_<n>.npz``, from the folder itself or the one around it."""
    for place in (folder, folder / "events_np"):
        files = []
        for path in _files(place, "t*/*/user*.npz"):
            name = re.fullmatch(r"(user\d\d_.+)_(\d+)", path.stem)
            if name and path.parent.parent.name in ("train", "test") and path.parent.name.isdecimal():
                files.append((name.group(1), int(path.parent.name), int(name.group(2)), path))
        if files:
            for trial, _, _, path in files:
                if path.parent.parent.name != SPLIT_OF_TRIAL.get(trial):
                    raise DataError(f"{path}: {_belongs(trial)}")
            splits = split_recordings(place, files)
            return FolderSource(place, INFO, splits, read_events, split_name="official", form="SpikingJelly's events")
    return None


def _find_tonic(folder: Path) -> EventSource | None:
    """``ibmGestureTrain/<trial>/<label>.npy`` and ``ibmGestureTest/...``; one of the two alone is a part."""
    files = []
    for split, name in (("train", "ibmGestureTrain"), ("test", "ibmGestureTest")):
        for path in _files(folder / name, "user*/*.npy"):
            if path.stem.isdecimal():
                if SPLIT_OF_TRIAL.get(path.parent.name) != split:
                    raise DataError(f"{path}: {_belongs(path.parent.name)}")
                files.append((path.parent.name, int(path.stem), 0, path))
    if not files:
        return None
    return FolderSource(
        folder,
        INFO,
        split_recordings(folder, files),
        _decode_tonic,
        split_name="official",
        form="tonic's extraction",
        whole=TONIC_COUNTS,
    )


def split_recordings(folder: Path, files: list[tuple[str, int, int, Path]]) -> dict[str, list[Recording]]:
    """(trial, label, n, path) of each -> recordings of each split by the official lists, in the same order whatever the
    layout. DataError: a label that is none, or a trial that is in neither list."""
    splits: dict[str, list[Recording]] = {"train": [], "test": []}
    for trial, label, number, path in sorted(files):
        if trial not in SPLIT_OF_TRIAL:
            raise DataError(f"{path}: {_belongs(trial)}")
        if not 0 <= label < len(INFO.class_names):
            raise DataError(f"{path}: label {label}; labels here go from 0 to {len(INFO.class_names) - 1}")
        key = path.relative_to(folder).as_posix()
        splits[SPLIT_OF_TRIAL[trial]].append(Recording(f"{trial}/{label}_{number}", label, key))
    return splits


def _belongs(trial: str) -> str:
    split = SPLIT_OF_TRIAL.get(trial)
    return f"{trial} belongs to {split}" if split else f"the official lists know no trial {trial!r}"


def _decode_tonic(path: Path) -> NDArray[np.void]:
    """Columns x, y, p and milliseconds."""
    table = read_npy(path)
    if table.ndim != 2 or table.shape[1] != 4 or table.dtype.kind not in "iuf":
        raise DataError(
            f"{path}: expected numbers [num_events, 4], x y p and milliseconds, got {table.dtype} {list(table.shape)}"
        )
    numbers = table.astype(np.int64)
    if (numbers != table).any() or (np.abs(numbers) >= 1 << 40).any():
        raise DataError(f"{path}: x, y, p and milliseconds must be whole numbers of a sensible size")
    x, y, p, milliseconds = numbers.T
    for name, column in (("x", x), ("y", y), ("p", p)):  # before they are stored in fewer bits
        if len(column) and not 0 <= column.min() <= column.max() < 1 << 7:
            raise DataError(f"{path}: {name} from {column.min()} to {column.max()}, outside a DVS128")
    return make_events(milliseconds * 1000, x, y, p)


def _files(folder: Path, pattern: str) -> Iterator[Path]:
    return iter(sorted(folder.glob(pattern))) if folder.is_dir() else iter(())


def _download(folder: str) -> None:
    from tonic.datasets import DVSGesture

    for train in (True, False):
        DVSGesture(save_to=folder, train=train)


DATASET = RegisteredDataset(INFO, open_dvs_gesture)
