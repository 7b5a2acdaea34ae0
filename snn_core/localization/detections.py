"""What a localiser finds, and how its maps are read: ``Detections``, ``decode``."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from snn_core.localization.boxes import clip_boxes, from_distances, non_maximum_suppression


class Detections(NamedTuple):
    """Boxes ``[n, 4]``, scores ``[n]`` (0 .. 1) and classes ``[n]`` int64 of one sample, best first."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


class HeadMaps(NamedTuple):
    """What a head says at every place of a map, for every step and sample (N = T * B or B).

    Attributes:
        objectness: ``[N, h, w]``, logits: whether an object's middle is near, and how good its box will be.
        class_logits: ``[N, K, h, w]``.
        distances: ``[N, 4, h, w]``, pixels to the left, upper, right and lower side, positive.
        stride: pixels from place to place.
    """

    objectness: Tensor
    class_logits: Tensor
    distances: Tensor
    stride: int

    def rows(self, first: int, last: int | None) -> HeadMaps:
        """Those of the samples ``first`` to ``last``."""
        chosen = slice(first, last)
        return HeadMaps(self.objectness[chosen], self.class_logits[chosen], self.distances[chosen], self.stride)

    def points(self) -> Tensor:
        """``[h * w, 2]``: x, y in pixels of the places' middles."""
        height, width = self.objectness.shape[-2:]
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        middles = (torch.stack([x, y], -1).reshape(-1, 2) + 0.5) * self.stride
        return middles.to(self.distances)

    def boxes(self) -> Tensor:
        """``[N, h * w, 4]``: the box at every place."""
        return from_distances(self.points(), self.distances.flatten(2).transpose(1, 2))


def decode(
    maps: HeadMaps,
    height: int,
    width: int,
    *,
    score_threshold: float = 0.01,
    iou_threshold: float = 0.5,
    most: int = 100,
) -> list[Detections]:
    """What is found in each of N samples. The score is objectness times the class's probability.

    Every place gives a box for its likeliest class only.

    Args:
        height, width: of the field in pixels, at which boxes are cut.
        score_threshold: what scores less is left out.
        iou_threshold: of :func:`non_maximum_suppression`.
        most: detections a sample.
    """
    with torch.no_grad():
        probability, labels = maps.class_logits.flatten(2).softmax(1).max(1)
        scores = maps.objectness.flatten(1).sigmoid() * probability
        boxes = clip_boxes(maps.boxes(), height, width)
        found = []
        for sample in range(len(scores)):
            chosen = torch.nonzero(scores[sample] >= score_threshold)[:, 0]
            parts = boxes[sample, chosen], scores[sample, chosen], labels[sample, chosen]
            kept = non_maximum_suppression(*parts, iou_threshold)[:most]
            found.append(Detections(*(values[kept].cpu() for values in parts)))
    return found
