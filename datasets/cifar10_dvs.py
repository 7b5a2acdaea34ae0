"""CIFAR10-DVS: 10,000 pictures moved before a DVS128, 1,000 a class, no official split.

Layouts: ``<class>/cifar10_<class>_<number>.aedat`` (the authors' AEDAT-2.0 files), the same names with .npz
(SpikingJelly's ``events_np``), or .aedat4 (tonic's download).
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from snn_core.datasets.dataset_info import DatasetInfo, RegisteredDataset
from snn_core.datasets.folder_source import FolderSource
from snn_core.datasets.readers import read_events
from snn_core.datasets.roots import download_with_tonic, folders_in, missing
from snn_core.datasets.source import Recording
from snn_core.errors import ArgumentError, DataError

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PER_CLASS = 1000
FORMS = {".aedat": "", ".npz": "SpikingJelly's events", ".aedat4": "tonic's AEDAT-4"}
#: In a root for tonic, for SpikingJelly, or for one's own order.
FOLDERS = (
    "CIFAR10DVS", "CIFAR10-DVS", "cifar10-dvs", "extract", "events_np", "CIFAR10DVS/extract", "CIFAR10DVS/events_np",
    "CIFAR10DVS/CIFAR10DVS",
)  # fmt: skip

_BY_NAME = sorted(range(PER_CLASS), key=str)
#: Numbers of the recordings of each class that are the test part; all others train.
TEST_NUMBERS: dict[str, frozenset[int]] = {
    "spikingjelly": frozenset(range(100)),
    "last100": frozenset(range(900, 1000)),
    "last-tenth-by-name": frozenset(_BY_NAME[900:]),
}

INFO = DatasetInfo(
    name="cifar10-dvs",
    title="CIFAR10-DVS",
    class_names=CLASS_NAMES,
    sensor_size=(128, 128, 2),
    splits={name: {"train": 9000, "test": 1000} for name in TEST_NUMBERS},
    split_rules={
        "spikingjelly": (
            "test: numbers 0 to 99 of each class; TEBN (Duan et al. 2022), SpikingJelly's CIFAR10DVSTEBNSplit"
        ),
        "last100": "test: numbers 900 to 999 of each class",
        "last-tenth-by-name": (
            "test: the last 100 of each class with file names in the order of text (909 to 999, 91 to 99); what "
            "SpikingJelly's split_to_train_test_set(0.9, ...) gives without random_split"
        ),
    },
    citation=(
        "H. Li, H. Liu, X. Ji, G. Li, L. Shi: CIFAR10-DVS: An Event-Stream Dataset for Object Classification. "
        "Frontiers in Neuroscience 11, 309 (2017). doi:10.3389/fnins.2017.00309"
    ),
    home_page="https://figshare.com/articles/dataset/CIFAR10-DVS_New/4724671",
    how_to_get=(
        "Get the ten zips (airplane.zip ... truck.zip) from "
        "https://figshare.com/articles/dataset/CIFAR10-DVS_New/4724671 and unpack them, then name the folder around "
        "them as root or in the environment variable SNN_DATA. With a network, download=True fetches them through "
        "tonic."
    ),
    where_to_put="<class>/cifar10_<class>_<number>.aedat (or .npz, .aedat4), in the root or in CIFAR10DVS/ in it",
)


def open_cifar10_dvs(
    root: Path | None = None, *, download: bool = False, split_name: str = "spikingjelly"
) -> FolderSource:
    """CIFAR10-DVS in a folder.

    Args:
        root: the folder that holds the ten class folders, or the folder around it; by default $SNN_DATA.
        download: let tonic download it when it is not found.
        split_name: "spikingjelly", "last100" or "last-tenth-by-name", see ``info("cifar10-dvs").split_rules``.

    Raises:
        ArgumentError: another ``split_name``.
        DataError: not there, or files that do not fit the layout.
    """
    if split_name not in TEST_NUMBERS:
        raise ArgumentError(f"split_name must be one of {', '.join(TEST_NUMBERS)}, got {split_name!r}")
    folder, files = _find(root)
    if folder is None and download:
        download_with_tonic(INFO, root, _download)
        folder, files = _find(root)
    if folder is None:
        raise missing(INFO, root)
    suffix = _only_suffix(folder, files)
    splits: dict[str, list[Recording]] = {"train": [], "test": []}
    for label, number in sorted(files):
        path = files[label, number][0]
        recording = Recording(f"{CLASS_NAMES[label]}/{number}", label, path.relative_to(folder).as_posix())
        splits["test" if number in TEST_NUMBERS[split_name] else "train"].append(recording)
    decode = _decode_aedat2 if suffix == ".aedat" else read_events
    return FolderSource(folder, INFO, splits, decode, split_name=split_name, form=FORMS[suffix])


def _decode_aedat2(path: Path) -> NDArray[np.void]:
    """x and y exchanged, as SpikingJelly reads these files."""
    events = read_events(path)
    turned = events.copy()
    turned["x"], turned["y"] = events["y"], events["x"]
    return turned


Files = dict[tuple[int, int], list[Path]]


def _find(root: Path | None) -> tuple[Path | None, Files]:
    """The first folder with files of at least two classes, and the files by label and number."""
    for folder in folders_in(root, FOLDERS):
        files: Files = {}
        for label, name in enumerate(CLASS_NAMES):
            for path in (folder / name).glob("*") if (folder / name).is_dir() else ():
                number = re.fullmatch(r"(?:.*\D)?(\d+)", path.stem)
                if path.suffix in FORMS and number:
                    files.setdefault((label, int(number.group(1))), []).append(path)
        if len({label for label, _ in files}) > 1:
            return folder, files
    return None, {}


def _only_suffix(folder: Path, files: Files) -> str:
    """The suffix of all files. DataError: several, a number twice, or one that no published split knows."""
    suffixes = {path.suffix for paths in files.values() for path in paths}
    if len(suffixes) > 1:
        raise DataError(f"{folder}: files with {' and '.join(sorted(suffixes))} side by side; keep one kind")
    for (_, number), paths in files.items():
        if len(paths) > 1 or number >= PER_CLASS:
            what = f"the same number as {paths[1].name}" if len(paths) > 1 else f"a number above {PER_CLASS - 1}"
            raise DataError(f"{paths[0]}: {what}; expected {INFO.where_to_put}")
    return suffixes.pop()


def _download(folder: str) -> None:
    from tonic.datasets import CIFAR10DVS

    CIFAR10DVS(save_to=folder)


DATASET = RegisteredDataset(INFO, open_cifar10_dvs)
