"""What a localiser learns from: which places are responsible for which box, and the loss."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from snn_core.errors import ArgumentError
from snn_core.localization.boxes import paired_iou, to_distances
from snn_core.localization.detections import HeadMaps

#: Places within so many strides of a box's middle are responsible for it (FCOS's centre sampling).
RADIUS = 1.0
#: Classes are learned at fewer of them: how far off the middle an object may be is what a classifier must learn not to
#: heed, and the best places are the ones that are found.
CLASS_RADIUS = 0.75


class Assignment(NamedTuple):
    """Of each responsible place ``sample``, ``place`` and ``object``, int64 [p]: its row, which place, whose; and bool
    ``central`` [p]: whether it also learns the class."""

    sample: Tensor
    place: Tensor
    object: Tensor
    central: Tensor


def assign(points: Tensor, boxes: Tensor, labels: Tensor, stride: int) -> Assignment:
    """Which places are responsible for which object.

    Those inside the box whose distance to its middle is at most RADIUS strides along x and along y, and the nearest one
    in any case. A place that two objects claim belongs to the one whose middle is nearer. Central are those within
    CLASS_RADIUS strides, and the nearest.

    Args:
        points: ``[places, 2]``.
        boxes: ``[N, objects, 4]``.
        labels: ``[N, objects]``; -1: there is no object.
        stride: pixels from place to place.
    """
    middles = (boxes[..., :2] + boxes[..., 2:]) / 2
    apart = (points[:, None] - middles[:, None]).abs().amax(-1)  # [N, places, objects]
    inside = to_distances(points[:, None], boxes[:, None]).amin(-1) > 0
    near = inside & (apart <= RADIUS * stride)
    nearest = apart.argmin(1, keepdim=True)
    near = near.scatter(1, nearest, True) & (labels >= 0)[:, None]
    sample, place = torch.nonzero(near.any(2), as_tuple=True)
    distance, found = apart.masked_fill(~near, torch.inf)[sample, place].min(1)
    central = (distance <= CLASS_RADIUS * stride) | (nearest[sample, 0, found] == place)
    return Assignment(sample, place, found, central)


class Losses(NamedTuple):
    """Parts of the loss, scalars: objectness, class and box."""

    objectness: Tensor
    classes: Tensor
    boxes: Tensor

    def total(self) -> Tensor:
        """Their sum, boxes twice."""
        return self.objectness + self.classes + 2 * self.boxes


def localization_loss(maps: HeadMaps, boxes: Tensor, labels: Tensor) -> Losses:
    """Objectness by cross-entropy against the overlap that the place's box has now (0 where no object is), class by
    cross-entropy, box by 1 - generalised IoU; each divided by the number of places that learn it.

    Args:
        maps: of N samples.
        boxes: float ``[N, objects, 4]``.
        labels: int64 ``[N, objects]``; -1: there is no object.

    Raises:
        ArgumentError: shapes that do not fit.
    """
    number = len(maps.objectness)
    if boxes.shape[:1] != (number,) or boxes.shape[:-1] != labels.shape or boxes.shape[-1] != 4:
        shapes = f"{list(boxes.shape)} and {list(labels.shape)}"
        raise ArgumentError(f"boxes and labels must be [{number}, objects, 4] and [{number}, objects], got {shapes}")
    sample, place, found, central = assign(maps.points(), boxes, labels, maps.stride)
    count = max(len(sample), 1)
    iou, generalised = paired_iou(maps.boxes()[sample, place], boxes[sample, found])
    target = torch.zeros_like(maps.objectness).flatten(1)
    target[sample, place] = iou.detach()
    objectness = functional.binary_cross_entropy_with_logits(maps.objectness.flatten(1), target, reduction="sum")
    logits = maps.class_logits.flatten(2)[sample, :, place][central]
    classes = functional.cross_entropy(logits, labels[sample, found][central], reduction="sum")
    return Losses(objectness / count, classes / max(len(logits), 1), (1 - generalised).sum() / count)
