"""Boxes ``x0, y0, x1, y1`` in pixels: areas, overlaps, conversions, suppression. Pixel 0 of a row covers 0 .. 1."""

from __future__ import annotations

import torch
from torch import Tensor

from snn_core.errors import ArgumentError


def _check(name: str, boxes: Tensor) -> None:
    if not boxes.is_floating_point() or boxes.ndim < 1 or boxes.shape[-1] != 4:
        raise ArgumentError(f"{name} must be floating-point [..., 4], got {boxes.dtype} {list(boxes.shape)}")


def box_area(boxes: Tensor) -> Tensor:
    """``[...]`` of boxes ``[..., 4]``; 0 where a side is negative."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp_min(0).prod(-1)


def box_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union ``[..., n, m]`` of each of ``boxes [..., n, 4]`` with each of ``others [..., m, 4]``.

    0 where both are empty. ArgumentError: other shapes or types.
    """
    _check("boxes", boxes)
    _check("others", others)
    one, other = boxes[..., :, None, :], others[..., None, :, :]
    common = (torch.minimum(one[..., 2:], other[..., 2:]) - torch.maximum(one[..., :2], other[..., :2])).clamp_min(0)
    intersection = common.prod(-1)
    union = box_area(one) + box_area(other) - intersection
    return intersection / union.clamp_min(torch.finfo(union.dtype).tiny)


def paired_iou(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU ``[n]`` of ``boxes [n, 4]`` with ``others [n, 4]``, one with one; differentiable.

    The generalised one also tells how far boxes are apart that do not meet: IoU less the part of their common hull
    that neither covers, -1 .. 1.

    Source: Rezatofighi et al., Generalized Intersection over Union, CVPR 2019.
    """
    least = torch.finfo(boxes.dtype).eps
    common = (torch.minimum(boxes[:, 2:], others[:, 2:]) - torch.maximum(boxes[:, :2], others[:, :2])).clamp_min(0)
    intersection = common.prod(1)
    union = (box_area(boxes) + box_area(others) - intersection).clamp_min(least)
    hull = torch.maximum(boxes[:, 2:], others[:, 2:]) - torch.minimum(boxes[:, :2], others[:, :2])
    outside = hull.clamp_min(0).prod(1).clamp_min(least)
    iou = intersection / union
    return iou, iou - (outside - union) / outside


def from_distances(points: Tensor, distances: Tensor) -> Tensor:
    """Boxes ``[..., 4]`` from ``points [..., 2]`` (x, y) and distances to the left, upper, right and lower side."""
    return torch.cat([points - distances[..., :2], points + distances[..., 2:]], -1)


def to_distances(points: Tensor, boxes: Tensor) -> Tensor:
    """The inverse of :func:`from_distances`; negative where a point lies outside its box."""
    return torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], -1)


def clip_boxes(boxes: Tensor, height: int, width: int) -> Tensor:
    """Boxes ``[..., 4]`` cut at the rim of a field of ``height`` x ``width`` pixels."""
    return torch.minimum(boxes.clamp_min(0), boxes.new_tensor([width, height, width, height]))


def non_maximum_suppression(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """Indices int64 of what is left, best first: of two boxes of a class that overlap more, the better one.

    Args:
        boxes, scores, labels: ``[n, 4]``, ``[n]``, ``[n]``; of equal scores the first comes first.
        iou_threshold: overlap that is allowed, 0 .. 1.

    Raises:
        ArgumentError: shapes that do not fit, or a threshold outside 0 .. 1.
    """
    _check("boxes", boxes)
    if boxes.ndim != 2 or scores.shape != boxes.shape[:1] or labels.shape != boxes.shape[:1]:
        shapes = ", ".join(str(list(values.shape)) for values in (boxes, scores, labels))
        raise ArgumentError(f"boxes, scores and labels must be [n, 4], [n] and [n], got {shapes}")
    if not 0 <= iou_threshold <= 1:
        raise ArgumentError(f"iou_threshold must lie in 0..1, got {iou_threshold}")
    order = scores.argsort(descending=True, stable=True)
    ordered, classes = boxes[order], labels[order]
    rivals = (box_iou(ordered, ordered) > iou_threshold) & (classes[:, None] == classes)
    left = torch.ones(len(order), dtype=torch.bool)
    for index, beaten in enumerate(rivals.cpu()):
        if left[index]:
            left[index + 1 :] &= ~beaten[index + 1 :]
    return order[left.to(order.device)]
