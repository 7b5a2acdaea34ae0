"""Stratified folds and subsets: balance, determinism, published values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from snn_core.datasets import stratified_folds, stratified_subset
from snn_core.errors import ArgumentError

PUBLISHED_FOLDS = [[4, 7, 8, 15], [3, 10, 11, 16], [0, 1, 5, 14], [2, 9, 17, 18], [6, 12, 13, 19]]
PUBLISHED_SUBSET = [5, 6, 10, 15, 16, 19]


@pytest.mark.parametrize("k", [2, 3, 5])
def test_folds_partition_and_balance(k: int) -> None:
    labels = np.random.default_rng(0).integers(0, 4, 101)
    folds = stratified_folds(labels, k, seed=1)
    assert len(folds) == k
    np.testing.assert_array_equal(np.sort(np.concatenate([validation for _, validation in folds])), np.arange(101))
    for train, validation in folds:
        assert train.dtype == validation.dtype == np.int64
        np.testing.assert_array_equal(np.sort(np.concatenate([train, validation])), np.arange(101))
        assert abs(len(validation) - 101 / k) < 1
        for label, total in enumerate(np.bincount(labels)):
            assert abs((labels[validation] == label).sum() - total / k) < 1


def test_folds_depend_on_the_seed_alone() -> None:
    labels = np.arange(60) % 3
    first, again, other = (stratified_folds(labels, 5, seed) for seed in (7, 7, 8))
    for (train, validation), (train_again, validation_again) in zip(first, again, strict=True):
        np.testing.assert_array_equal(train, train_again)
        np.testing.assert_array_equal(validation, validation_again)
    assert any(not np.array_equal(a[1], b[1]) for a, b in zip(first, other, strict=True))


def test_published_values_do_not_change() -> None:
    """The splits are published: these numbers may never change, on any machine or library version."""
    labels = np.arange(20) % 2
    assert [validation.tolist() for _, validation in stratified_folds(labels, 5, seed=0)] == PUBLISHED_FOLDS
    assert stratified_subset(labels, 6, seed=0).tolist() == PUBLISHED_SUBSET


def test_subset_is_in_proportion_and_nested() -> None:
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    chosen: set[int] = set()
    for size in (3, 10, 40, 99):
        subset = stratified_subset(labels, size, seed=3)
        assert len(subset) == size
        assert (np.diff(subset) > 0).all()
        assert chosen < set(subset.tolist())
        chosen = set(subset.tolist())
        for label, share in enumerate((0.5, 0.3, 0.2)):
            assert abs((labels[subset] == label).sum() - size * share) <= 1
    np.testing.assert_array_equal(stratified_subset(labels, 500, seed=3), np.arange(100))


@pytest.mark.parametrize(
    ("labels", "k", "message"),
    [
        ([0, 1] * 5, 1, "k must be an integer of at least 2, got 1"),
        ([0, 1] * 5, 2.0, "k must be an integer"),
        ([0, 0, 0, 1, 1], 3, "every class needs at least k = 3 samples, but class 1 has 2"),
        ([], 3, "there are no samples"),
        ([0.5, 1.5], 2, "labels must be a one-dimensional integer array"),
        ([[0, 1]], 2, "labels must be a one-dimensional integer array"),
    ],
)
def test_bad_arguments_are_named(labels: Any, k: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        stratified_folds(labels, k, seed=0)
