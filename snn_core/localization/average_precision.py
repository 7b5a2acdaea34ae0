"""Average precision as COCO defines it, without its library: ``average_precision``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snn_core.errors import ArgumentError
from snn_core.localization.boxes import box_iou
from snn_core.localization.detections import Detections

#: 0.5, 0.55, ... 0.95.
COCO_THRESHOLDS: tuple[float, ...] = tuple((50 + 5 * step) / 100 for step in range(10))
#: Precision is read at these recalls.
RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class AveragePrecision:
    """``table`` float64 [thresholds, classes]: average precision; NaN for classes of which there is no object."""

    thresholds: tuple[float, ...]
    table: NDArray[np.float64]

    def mean(self, threshold: float | None = None) -> float:
        """Mean over the classes (mAP) at one IoU threshold, or over all of them; NaN where there is no object."""
        if threshold is None:
            rows = self.table
        elif threshold in self.thresholds:
            rows = self.table[[self.thresholds.index(threshold)]]
        else:
            raise ArgumentError(f"threshold must be one of {self.thresholds}, got {threshold}")
        return float(rows[~np.isnan(rows)].mean()) if not np.isnan(rows).all() else float("nan")

    def per_class(self, threshold: float) -> list[float]:
        """One a class, at one IoU threshold."""
        return [float(value) for value in self.table[self.thresholds.index(threshold)]]


def average_precision(
    found: Sequence[Detections],
    boxes: Sequence[Tensor],
    labels: Sequence[Tensor],
    num_classes: int,
    thresholds: Sequence[float] = COCO_THRESHOLDS,
) -> AveragePrecision:
    """Average precision of every class at every IoU threshold.

    Of each sample and class, detections take objects best score first, each the one of those left that it overlaps
    most, if by at least the threshold. Precision, made falling, is averaged over 101 recalls. So does COCO (Lin et al.,
    Microsoft COCO, ECCV 2014; the tests compare with its library), for objects of any size and all detections given.

    Args:
        found: one a sample.
        boxes: true ones, ``[n, 4]`` a sample.
        labels: their classes, int64 ``[n]``.
        num_classes: classes K.
        thresholds: each in 0 .. 1.

    Raises:
        ArgumentError: lists of different length, a label or threshold out of range.
    """
    if not len(found) == len(boxes) == len(labels):
        raise ArgumentError(
            f"found, boxes and labels must have equal length, got {len(found)}, {len(boxes)}, {len(labels)}"
        )
    if not thresholds or not all(0 < threshold <= 1 for threshold in thresholds):
        raise ArgumentError(f"thresholds must lie in 0..1, without 0, got {thresholds!r}")
    for sample in labels:
        if len(sample) and not 0 <= int(sample.min()) <= int(sample.max()) < num_classes:
            raise ArgumentError(f"labels must lie in 0..{num_classes - 1}, got {sample.tolist()}")
    table = np.full((len(thresholds), num_classes), np.nan)
    levels = np.array(thresholds)
    for label in range(num_classes):
        number = sum(int((sample == label).sum()) for sample in labels)
        if number == 0:
            continue
        scores, hits = [np.empty(0)], [np.empty((len(levels), 0), bool)]
        for one, true, classes in zip(found, boxes, labels, strict=True):
            mine = one.labels == label
            order = one.scores[mine].argsort(descending=True, stable=True)
            overlaps = box_iou(one.boxes[mine][order].double(), true[classes == label].double())
            scores.append(one.scores[mine][order].double().numpy())
            hits.append(_matched(overlaps.numpy(), levels))
        table[:, label] = _area(np.concatenate(scores), np.concatenate(hits, 1), number)
    return AveragePrecision(tuple(float(threshold) for threshold in thresholds), table)


def _matched(overlaps: NDArray[np.float64], thresholds: NDArray[np.float64]) -> NDArray[np.bool_]:
    """[thresholds, found]: which detections, best first, get one of the objects; ``overlaps`` [found, objects]."""
    hits = np.zeros((len(thresholds), len(overlaps)), bool)
    if overlaps.shape[1] == 0:
        return hits
    for row, threshold in enumerate(thresholds):
        free = np.ones(overlaps.shape[1], bool)
        for index, overlap in enumerate(overlaps):
            left = np.where(free, overlap, -1.0)
            best = left.argmax()
            if left[best] >= min(threshold, 1 - 1e-10):
                hits[row, index], free[best] = True, False
    return hits


def _area(scores: NDArray[np.float64], hits: NDArray[np.bool_], number: int) -> NDArray[np.float64]:
    """[thresholds]: mean over RECALLS of the best precision at that recall or a higher one."""
    hits = hits[:, np.argsort(-scores, kind="stable")]
    right = hits.cumsum(1)
    recall, precision = right / number, right / np.arange(1, hits.shape[1] + 1)
    falling = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
    areas = np.empty(len(hits))
    for row in range(len(hits)):
        at = np.searchsorted(recall[row], RECALLS, side="left")
        there = at < hits.shape[1]
        areas[row] = falling[row, at[there]].sum() / len(RECALLS)
    return areas


def targets_of(boxes: Tensor, labels: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Lists as :func:`average_precision` takes them, from ``boxes [num, objects, 4]`` and ``labels [num, objects]``."""
    there = labels >= 0
    return [b[t] for b, t in zip(boxes, there, strict=True)], [k[t] for k, t in zip(labels, there, strict=True)]


def class_blind(found: Sequence[Detections], labels: Sequence[Tensor]) -> tuple[list[Detections], list[Tensor]]:
    """The same with all classes called 0: what is left to :func:`average_precision` is where things are."""
    return (
        [Detections(one.boxes, one.scores, torch.zeros_like(one.labels)) for one in found],
        [torch.zeros_like(sample) for sample in labels],
    )
