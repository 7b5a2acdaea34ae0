"""The table of data sets by name: ``find``, ``info``, ``list_datasets``, ``open_dataset``, ``register``.

A data set is a module with an event source and, at its end, ``DATASET = RegisteredDataset(info, opener)``; its line in
:data:`MODULES` makes it known here. The module is imported when the name is first used. Data sets from outside the
package are added with :func:`register`.
"""

from __future__ import annotations

import difflib
import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from snn_core.datasets.dataset_info import DatasetInfo, RegisteredDataset
from snn_core.datasets.source import EventSource
from snn_core.errors import ArgumentError

PathLike = str | os.PathLike[str]

#: Name of each data set -> module that holds its ``DATASET``.
MODULES: dict[str, str] = {
    "nmnist": "snn_core.datasets.nmnist_by_name",
    "dvs-gesture": "snn_core.datasets.dvs_gesture",
    "cifar10-dvs": "snn_core.datasets.cifar10_dvs",
    "ncaltech101": "snn_core.datasets.ncaltech101",
    "shd": "snn_core.datasets.shd",
    "digits-dvs": "snn_core.datasets.digits_dvs",
    "nmnist-sim": "snn_core.datasets.nmnist_sim",
    "motion-sim": "snn_core.datasets.motion_sim",
    "moving-digits": "snn_core.datasets.moving_digits",
    "cifar10-dvs-sim": "snn_core.datasets.cifar10_dvs_sim",
    "cifar10": "snn_core.datasets.cifar10",
    "mnist": "snn_core.datasets.mnist",
}
_registered: dict[str, RegisteredDataset] = {}


def list_datasets() -> list[str]:
    """Names that :func:`info`, :func:`load` and :func:`load_events` know, in alphabetical order."""
    return sorted({*MODULES, *_registered})


def register(info: DatasetInfo, opener: Callable[..., EventSource]) -> None:
    """Make a data set of one's own known by ``info.name``.

    Args:
        info: its facts.
        opener: ``opener(root, **options) -> EventSource``, see :class:`RegisteredDataset`.

    Raises:
        ArgumentError: the name is taken by another data set.
    """
    if info.name in list_datasets() and find(info.name) != RegisteredDataset(info, opener):
        raise ArgumentError(f"name: there is a data set {info.name!r} already; known are {', '.join(list_datasets())}")
    _registered[info.name] = RegisteredDataset(info, opener)


def find(name: str) -> RegisteredDataset:
    """The data set of that name. ArgumentError: there is none."""
    if not isinstance(name, str) or name not in list_datasets():
        near = difflib.get_close_matches(str(name).lower().replace("_", "-"), list_datasets(), n=1, cutoff=0.5)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        raise ArgumentError(f"name must be one of {', '.join(list_datasets())}, got {name!r}{meant}")
    if name not in _registered:
        entry: RegisteredDataset = importlib.import_module(MODULES[name]).DATASET
        assert entry.info.name == name, f"{MODULES[name]} calls itself {entry.info.name!r}, not {name!r}"
        _registered[name] = entry
    return _registered[name]


def info(name: str) -> DatasetInfo:
    """Class names, sensor size, splits, licence, citation, and how to get it. ArgumentError: no such name."""
    return find(name).info


def open_dataset(name: str, root: PathLike | None = None, **options: Any) -> EventSource:
    """The event source of a data set.

    Args:
        name: one of :func:`list_datasets`.
        root: where the data set lies, or the folder around it; by default $SNN_DATA.
        options: ``seed`` (of simulated sensors), ``download`` (let tonic get what is missing), ``split_name`` (where a
            data set has several published splits), and what the data set has of its own.

    Raises:
        ArgumentError: no such name, or an option that this data set does not have.
        DataError: it is not there; says where to get it and where to put it.
    """
    if root is not None and (not isinstance(root, (str, os.PathLike)) or not str(root)):
        raise ArgumentError(f"root must be a path or None, got {root!r}")
    return find(name).open(None if root is None else Path(root).expanduser(), **options)
