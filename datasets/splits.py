"""Splits that stay the same for ever: order by a hash of seed and index, never by a library's random stream."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from snn_core.errors import ArgumentError
from snn_core.seeding import derive_seed

FoldIndices = tuple[NDArray[np.int64], NDArray[np.int64]]


def stratified_folds(labels: ArrayLike, k: int, seed: int) -> list[FoldIndices]:
    """k-fold cross-validation in which every fold holds (to one) the same share of each class.

    Args:
        labels: int [num], array or tensor.
        k: number of folds.
        seed: the same seed and labels give the same folds on every machine and library version.

    Returns:
        k pairs (train indices, validation indices), int64, ascending; the validation parts partition 0 .. num - 1.

    Raises:
        ArgumentError: k below 2, or a class with fewer than k samples.
    """
    labels = _checked_labels(labels)
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 2:
        raise ArgumentError(f"k must be an integer of at least 2, got {k!r}")
    classes, counts = np.unique(labels, return_counts=True)
    if len(labels) == 0 or counts.min() < k:
        smallest = f"class {classes[counts.argmin()]} has {counts.min()}" if len(labels) else "there are no samples"
        raise ArgumentError(f"every class needs at least k = {k} samples, but {smallest}")
    fold = np.empty(len(labels), np.int64)
    dealt = 0  # the next class goes on where the last one stopped, so that folds also have equal size
    for members in _shuffled_classes(labels, seed, "folds"):
        fold[members] = (dealt + np.arange(len(members))) % k
        dealt += len(members)
    return [(np.flatnonzero(fold != index), np.flatnonzero(fold == index)) for index in range(k)]


def stratified_subset(labels: ArrayLike, size: int, seed: int) -> NDArray[np.int64]:
    """``size`` indices, ascending, with every class in proportion; all of them where there are no more.

    Each class is shuffled by ``seed``; the r-th of n members gets rank (r + 1/2) / n, and the lowest ranks are taken.
    So the subset is the same every time, and a smaller one is contained in a larger one of the same seed.

    Raises:
        ArgumentError: ``size`` below 1.
    """
    labels = _checked_labels(labels)
    if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 1:
        raise ArgumentError(f"limit must be an integer of at least 1, got {size!r}")
    rank = np.empty(len(labels))
    for members in _shuffled_classes(labels, seed, "subset"):
        rank[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.sort(np.argsort(rank, kind="stable")[:size])


def _shuffled_classes(labels: NDArray[np.int64], seed: int, purpose: str) -> list[NDArray[np.int64]]:
    """Indices of each class in ascending class order, each list shuffled by ``seed``."""
    key = np.array([derive_seed(seed, purpose, index) for index in range(len(labels))], np.int64)
    order = np.lexsort((key, labels))
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1) if len(labels) else []


def _checked_labels(labels: ArrayLike) -> NDArray[np.int64]:
    array = np.asarray(labels)
    if array.ndim != 1 or (len(array) and array.dtype.kind not in "iu"):
        raise ArgumentError(f"labels must be a one-dimensional integer array, got {array.dtype} {array.shape}")
    return array.astype(np.int64)
