"""Choosing real samples instead of making synthetic ones: the comparisons that any distillation has to beat.

Both functions return indices sorted by class (class 0 first), ``ipc`` a class, without repetition.
"""

from __future__ import annotations

import torch
from torch import Tensor

from snn_core.errors import ArgumentError, DataError


def class_indices(labels: Tensor, num_classes: int, *, at_least: int = 1) -> list[Tensor]:
    """Indices of the samples of each class, int64, in order.

    Raises:
        DataError: a class has fewer than ``at_least`` samples; the message names the class.
    """
    groups = [torch.nonzero(labels == k).flatten() for k in range(num_classes)]
    for k, group in enumerate(groups):
        if len(group) < at_least:
            raise DataError(f"class {k} has {len(group)} samples, {at_least} are asked for")
    return groups


def _check_ipc(ipc: int) -> None:
    if ipc < 1:
        raise ArgumentError(f"ipc: got {ipc}, at least 1 sample per class is needed")


def select_random(labels: Tensor, num_classes: int, ipc: int, *, generator: torch.Generator) -> Tensor:
    """``ipc`` samples of every class, uniformly without repetition.

    Args:
        labels: int64 ``[num]``. num_classes: K. ipc: samples per class. generator: source of the draws.

    Returns:
        int64 ``[K * ipc]`` indices into ``labels``, sorted by class.

    Raises:
        ArgumentError: ``ipc`` below 1. DataError: a class with fewer samples than ``ipc``.
    """
    _check_ipc(ipc)
    groups = class_indices(labels, num_classes, at_least=ipc)
    return torch.cat([group[torch.randperm(len(group), generator=generator)[:ipc]] for group in groups])


def _class_features(features: Tensor, labels: Tensor, num_classes: int, ipc: int) -> list[tuple[Tensor, Tensor]]:
    """Indices and features (float64) of each class, after the checks that selections by features share."""
    _check_ipc(ipc)
    if features.ndim != 2 or len(features) != len(labels):
        raise ArgumentError(f"features: got {tuple(features.shape)}, need [{len(labels)}, D]")
    return [(group, features[group].double()) for group in class_indices(labels, num_classes, at_least=ipc)]


def select_herding(features: Tensor, labels: Tensor, num_classes: int, ipc: int) -> Tensor:
    """Greedy herding: each pick brings the mean of the picked features nearest to the class mean.

    Source: Welling, "Herding dynamical weights to learn", ICML 2009, as in iCaRL (Rebuffi et al., 2017).

    Args:
        features: ``[num, D]``, one vector a sample (for example a teacher's, averaged over time).
        labels: int64 ``[num]``. num_classes: K. ipc: samples per class.

    Returns:
        int64 ``[K * ipc]`` indices, sorted by class, in the order of picking within a class. Deterministic.

    Raises:
        ArgumentError: ``ipc`` below 1, or features and labels of different length. DataError: a class too small.
    """
    chosen = []
    for group, members in _class_features(features, labels, num_classes, ipc):
        mean, total = members.mean(0), torch.zeros_like(members[0])
        free = torch.ones(len(group), dtype=torch.bool)
        for count in range(1, ipc + 1):
            distance = (mean - (total + members) / count).square().sum(1).masked_fill(~free, float("inf"))
            pick = int(distance.argmin())
            free[pick] = False
            total = total + members[pick]
            chosen.append(group[pick])
    return torch.stack(chosen)


def select_k_centre(features: Tensor, labels: Tensor, num_classes: int, ipc: int) -> Tensor:
    """Greedy k-centre: each pick is the sample farthest from all picked ones, so that the largest distance shrinks.

    Source: Sener, Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set Approach", ICLR 2018. Class
    by class; the first pick is the sample nearest to the class mean (there: points already labelled).

    Args, returns and errors: as :func:`select_herding`. Ties go to the lower index.
    """
    chosen = []
    for group, members in _class_features(features, labels, num_classes, ipc):
        pick = int((members - members.mean(0)).square().sum(1).argmin())
        nearest = torch.full((len(group),), float("inf"), dtype=torch.float64)
        for _ in range(ipc):
            chosen.append(group[pick])
            nearest = nearest.minimum((members - members[pick]).square().sum(1))
            nearest[pick] = -1.0  # not again, even where samples are equal
            pick = int(nearest.argmax())
    return torch.stack(chosen)


def select_by_score(
    scores: Tensor, labels: Tensor, num_classes: int, ipc: int, *, generator: torch.Generator
) -> Tensor:
    """The ``ipc`` samples of every class with the largest ``scores`` [num]; equal ones in random order.

    Returns:
        int64 ``[K * ipc]`` indices, sorted by class, the largest score first.

    Raises:
        ArgumentError: ``ipc`` below 1, or scores and labels of different length. DataError: a class too small.
    """
    _check_ipc(ipc)
    if scores.shape != labels.shape:
        raise ArgumentError(f"scores: got {tuple(scores.shape)}, need [{len(labels)}]")
    chosen = []
    for group in class_indices(labels, num_classes, at_least=ipc):
        shuffled = group[torch.randperm(len(group), generator=generator)]
        chosen.append(shuffled[scores[shuffled].argsort(descending=True, stable=True)[:ipc]])
    return torch.cat(chosen)
