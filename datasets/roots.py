"""Where data sets lie, and how they get there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from snn_core.datasets.dataset_info import DatasetInfo
from snn_core.errors import DataError
from snn_core.files import cache_root


def data_root() -> Path:
    """Where data sets lie: the environment variable SNN_DATA, else ../shared/data beside the repository."""
    configured = os.environ.get("SNN_DATA")
    if configured:
        return Path(configured).expanduser()
    checkout = Path(__file__).resolve().parent.parent
    beside = checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()
    return beside.parent / "shared" / "data"


def download_root(root: Path | None) -> Path:
    """Where downloads go: the root that was given, else $SNN_DATA where it is set, else the cache."""
    if root is not None:
        return root
    return data_root() if os.environ.get("SNN_DATA") else cache_root() / "data"


def folders_in(root: Path | None, names: Iterable[str]) -> Iterator[Path]:
    """The folders in which a data set is looked for: the root itself, then ``names`` in it, in that order; without a
    root, $SNN_DATA and what was downloaded into the cache."""
    places = [data_root(), cache_root() / "data"] if root is None else [root]
    for place in places:
        yield from (folder for folder in (place, *(place / name for name in names)) if folder.is_dir())


def missing(info: DatasetInfo, root: Path | None) -> DataError:
    """The error to raise where a data set is not: says where it was looked for, where to get it, where to put it."""
    where = data_root() if root is None else root
    there = "" if where.exists() else " (no such folder)"
    return DataError(f"{info.title} is not in {where}{there}. {info.how_to_get} Expected there: {info.where_to_put}.")


def download_with_tonic(info: DatasetInfo, root: Path | None, get: Callable[[str], object]) -> None:
    """Call ``get(folder)``, which lets tonic download into ``folder``.

    Raises:
        DataError: it did not work; says where to get the data by hand.
    """
    folder = download_root(root)
    try:
        get(str(folder))
    except Exception as error:  # tonic lets through whatever importing, urllib, hashing and unpacking raise
        raise DataError(
            f"could not download {info.title} into {folder}: {error}. {info.how_to_get} Expected in {folder}: "
            f"{info.where_to_put}."
        ) from error
