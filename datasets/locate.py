"""From the name of a data source to the source: a data set by name, or a path."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from snn_core.datasets.nmnist import HOW_TO_GET, NMNISTSource
from snn_core.datasets.registry import list_datasets, open_dataset
from snn_core.datasets.source import EventSource
from snn_core.errors import ArgumentError, DataError


def open_source(
    source: str | os.PathLike[str] | EventSource,
    *,
    seed: int = 0,
    download: bool = False,
    root: str | os.PathLike[str] | None = None,
    **options: Any,
) -> EventSource:
    """The event source of that name or path.

    Args:
        source: one of :func:`snn_core.datasets.list_datasets`, a folder or zip in N-MNIST's official layout, or an
            event source, which is returned as it is.
        seed: of a simulated sensor; real recordings do not depend on it.
        download: let tonic download what is not found, where it can.
        root: of a data set by name: where it lies, or the folder around it; by default $SNN_DATA.
        options: what the data set has of its own, for example ``split_name``.

    Raises:
        ArgumentError: ``source`` is neither a string nor a path, or empty; an option that the data set does not have.
        DataError: nothing there, or not in the layout; says where to get the data and where to put it.
    """
    if not isinstance(source, (str, os.PathLike)):
        if hasattr(source, "recordings") and hasattr(source, "content_hash"):
            return _as_it_is(source, root, options)
        raise ArgumentError(f"source must be one of {', '.join(list_datasets())} or a path, got {source!r}")
    if not str(source):
        raise ArgumentError(f"source must be one of {', '.join(list_datasets())} or a path, got {source!r}")
    if source in list_datasets():
        return open_dataset(str(source), root, seed=seed, download=download, **options)
    path = Path(source).expanduser()
    if not path.exists():
        raise DataError(
            f"no data source {str(source)!r}: it is no built-in name ({', '.join(list_datasets())}), and no such "
            f"folder or zip file exists. {HOW_TO_GET}"
        )
    return _as_it_is(NMNISTSource(path), root, options)


def _as_it_is(source: EventSource, root: object, options: dict[str, Any]) -> EventSource:
    given = [*(["root"] if root is not None else []), *options]
    if given:
        raise ArgumentError(f"{given[0]} is an option of data sets by name; {source.name} is given as it is")
    return source
