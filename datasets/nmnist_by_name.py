"""N-MNIST by name: what is known of it, where it is looked for, and its download."""

from __future__ import annotations

import os
from pathlib import Path

from snn_core.datasets.dataset_info import DatasetInfo, RegisteredDataset
from snn_core.datasets.folder_source import name_of_part
from snn_core.datasets.nmnist import CLASS_NAMES, HOW_TO_GET, SPLIT_FOLDERS, NMNISTSource
from snn_core.datasets.nmnist_format import SENSOR_SIZE
from snn_core.datasets.roots import data_root
from snn_core.errors import DataError
from snn_core.files import cache_root

PART_OF_NMNIST = "nmnist_850.zip"


def open_nmnist(root: Path | None = None, *, download: bool = False) -> NMNISTSource:
    """The whole data set if it is there, else the part of 850 recordings, else a download, else an error.

    Args:
        root: a folder or zip in the official layout, or a folder around it (``NMNIST/``); by default $SNN_DATA.
        download: let tonic download it when it is not found.

    Raises:
        DataError: not there and not downloaded; says where to get it and where to put it.
    """
    if root is not None and root.is_file():
        return NMNISTSource(root)
    where = data_root() if root is None else root
    folders = [where / "NMNIST", where]
    if root is None:
        folders.append(cache_root() / "data" / "NMNIST")
    half = ""
    for folder in folders:
        found = [part for part in SPLIT_FOLDERS.values() if (folder / part).is_dir()]
        # One of the two alone is what an interrupted download leaves; it must not hide what else there is.
        if len(found) == len(SPLIT_FOLDERS):
            return _named(folder)
        if found and not half:
            half = f"; {folder} holds only {found[0]}/, give it as a path to use it alone"
    if (where / PART_OF_NMNIST).is_file():
        return _named(where / PART_OF_NMNIST)
    if download:
        given = root is not None or bool(os.environ.get("SNN_DATA"))
        return _named(_download(where if given else cache_root() / "data"))
    raise DataError(
        f"N-MNIST is not in {where} (neither Train/ and Test/, NMNIST/, nor {PART_OF_NMNIST}){half}. {HOW_TO_GET}"
    )


def _named(path: Path) -> NMNISTSource:
    """The source, called a part in its name where it is one: results are not to be taken for those of the whole."""
    source = NMNISTSource(path)
    source.name = name_of_part(DATASET.info, source.counts(), DATASET.info.splits["official"])
    return source


def _download(folder: Path) -> Path:
    """Download both splits with tonic into ``folder``; returns the folder that holds Train/ and Test/."""
    try:
        from tonic.datasets import NMNIST
    except ImportError as error:
        raise DataError(f"download=True needs the package tonic: {error}. {HOW_TO_GET}") from error
    try:
        for train in (True, False):
            NMNIST(save_to=str(folder), train=train)
    except Exception as error:  # tonic lets through whatever urllib, hashing and unpacking raise
        raise DataError(f"could not download N-MNIST into {folder}: {error}. {HOW_TO_GET}") from error
    return folder / "NMNIST"


DATASET = RegisteredDataset(
    DatasetInfo(
        name="nmnist",
        title="N-MNIST",
        class_names=CLASS_NAMES,
        sensor_size=SENSOR_SIZE,
        splits={"official": {"train": 60_000, "test": 10_000}},
        split_rules={"official": "Train/ and Test/, MNIST's own"},
        licence="CC BY-SA 4.0",
        citation=(
            "G. Orchard, A. Jayawant, G. K. Cohen, N. Thakor: Converting Static Image Datasets to Spiking Neuromorphic "
            "Datasets Using Saccades. Frontiers in Neuroscience 9, 437 (2015). doi:10.3389/fnins.2015.00437"
        ),
        home_page="https://www.garrickorchard.com/datasets/n-mnist",
        how_to_get=HOW_TO_GET,
        where_to_put="Train/<digit>/<id>.bin and Test/<digit>/<id>.bin, in the root or in NMNIST/ in it",
    ),
    open_nmnist,
)
