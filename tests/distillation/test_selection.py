"""Random selection and herding: balance, repeatability, the right pick."""

import pytest
import torch

from snn_core.distillation.selection import class_indices, select_herding, select_random
from snn_core.errors import ArgumentError, DataError

LABELS = torch.tensor([2, 0, 1, 0, 2, 1, 0, 1, 2, 0])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_random_is_balanced_sorted_and_without_repetition():
    for seed in range(20):
        chosen = select_random(LABELS, 3, 2, generator=generator(seed))
        assert LABELS[chosen].tolist() == [0, 0, 1, 1, 2, 2]
        assert len(set(chosen.tolist())) == 6


def test_random_depends_on_the_seed_only_and_reaches_all():
    first = select_random(LABELS, 3, 1, generator=generator(1))
    assert torch.equal(first, select_random(LABELS, 3, 1, generator=generator(1)))
    seen = {int(i) for seed in range(100) for i in select_random(LABELS, 3, 1, generator=generator(seed))}
    assert seen == set(range(10))


def test_herding_picks_the_nearest_to_the_mean_then_balances():
    # class 0 at 0, 1, 5: mean 2 -> first 1; then (1 + 0) / 2 = .5 against (1 + 5) / 2 = 3 -> 5
    features = torch.tensor([[0.0], [1.0], [5.0], [7.0], [9.0], [8.0]])
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    assert select_herding(features, labels, 2, 1).tolist() == [1, 5]
    assert select_herding(features, labels, 2, 2)[:2].tolist() == [1, 2]
    assert sorted(select_herding(features, labels, 2, 3).tolist()) == list(range(6))


def test_bad_requests_are_refused():
    with pytest.raises(ArgumentError, match="ipc"):
        select_random(LABELS, 3, 0, generator=generator())
    with pytest.raises(DataError, match="class 1 has 3 samples, 4"):
        select_random(LABELS, 3, 4, generator=generator())
    with pytest.raises(DataError, match="class 3 has 0"):
        class_indices(LABELS, 4)
    with pytest.raises(ArgumentError, match="features"):
        select_herding(torch.zeros(3, 2), LABELS, 3, 1)
