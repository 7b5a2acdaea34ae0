"""From the name of a data source to the source: built in, in $SNN_DATA, downloaded, or a path."""

from __future__ import annotations

import os
from pathlib import Path

from snn_core.datasets.nmnist import HOW_TO_GET, SPLIT_FOLDERS, NMNISTSource
from snn_core.datasets.source import EventSource
from snn_core.errors import ArgumentError, DataError
from snn_core.files import cache_root

BUILT_IN = ("digits-dvs", "nmnist")
PART_OF_NMNIST = "nmnist_850.zip"


def data_root() -> Path:
    """Where data sets lie: the environment variable SNN_DATA, else ../shared/data beside the repository."""
    configured = os.environ.get("SNN_DATA")
    if configured:
        return Path(configured).expanduser()
    checkout = Path(__file__).resolve().parent.parent
    beside = checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()
    return beside.parent / "shared" / "data"


def open_source(source: str | os.PathLike[str], *, seed: int = 0, download: bool = False) -> EventSource:
    """The event source of that name or path.

    Args:
        source: "digits-dvs" (simulated), "nmnist", or a folder or zip in N-MNIST's official layout.
        seed: of the simulated sensor; real recordings do not depend on it.
        download: let tonic download N-MNIST when "nmnist" is not found.

    Raises:
        ArgumentError: ``source`` is neither a string nor a path, or empty.
        DataError: nothing there, or not in the layout; says where to get the data and where to put it.
    """
    if not isinstance(source, (str, os.PathLike)) or not str(source):
        raise ArgumentError(f"source must be one of {', '.join(BUILT_IN)} or a path, got {source!r}")
    if source == "digits-dvs":
        from snn_core.datasets.digits_dvs import DigitsDVSSource

        return DigitsDVSSource(seed=seed)
    if source == "nmnist":
        return _find_nmnist(download)
    path = Path(source).expanduser()
    if not path.exists():
        raise DataError(
            f"no data source {str(source)!r}: it is no built-in name ({', '.join(BUILT_IN)}), and no such folder "
            f"or zip file exists. {HOW_TO_GET}"
        )
    return NMNISTSource(path)


def _find_nmnist(download: bool) -> NMNISTSource:
    """The whole data set if it is there, else the part of 850 recordings, else a download, else an error."""
    root = data_root()
    folders = [root / "NMNIST", root, cache_root() / "data" / "NMNIST"]
    half = ""
    for folder in folders:
        found = [part for part in SPLIT_FOLDERS.values() if (folder / part).is_dir()]
        # One of the two alone is what an interrupted download leaves; it must not hide what else there is.
        if len(found) == len(SPLIT_FOLDERS):
            return NMNISTSource(folder, "nmnist")
        if found and not half:
            half = f"; {folder} holds only {found[0]}/, give it as a path to use it alone"
    if (root / PART_OF_NMNIST).is_file():
        return NMNISTSource(root / PART_OF_NMNIST, "nmnist (part: 750 train, 100 test)")
    if download:
        return NMNISTSource(_download(root if os.environ.get("SNN_DATA") else cache_root() / "data"), "nmnist")
    raise DataError(
        f"N-MNIST is not in {root} (neither Train/ and Test/, NMNIST/, nor {PART_OF_NMNIST}){half}. {HOW_TO_GET}"
    )


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
