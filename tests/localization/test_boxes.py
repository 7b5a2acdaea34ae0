"""Boxes: overlap against counted pixels, conversions there and back, suppression against a loop."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from snn_core.errors import ArgumentError
from snn_core.localization import box_area, box_iou, clip_boxes, non_maximum_suppression, paired_iou
from snn_core.localization.boxes import from_distances, to_distances


def random_boxes(number: int, seed: int, side: int = 20) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, side, (number, 2, 2), generator=generator)
    return torch.cat([corners.amin(1), corners.amax(1) + 1], 1).float()


def drawn(box: Tensor, side: int = 24) -> Tensor:
    x0, y0, x1, y1 = box.int().tolist()
    picture = torch.zeros(side, side, dtype=torch.bool)
    picture[y0:y1, x0:x1] = True
    return picture


def test_overlap_is_that_of_counted_pixels() -> None:
    boxes, others = random_boxes(9, seed=0), random_boxes(7, seed=1)
    found = box_iou(boxes, others)
    for i, box in enumerate(boxes):
        for j, other in enumerate(others):
            one, two = drawn(box), drawn(other)
            assert found[i, j].item() == pytest.approx(((one & two).sum() / (one | two).sum()).item(), abs=1e-6)
    assert box_area(boxes).tolist() == [drawn(box).sum().item() for box in boxes]
    torch.testing.assert_close(paired_iou(boxes[:7], others)[0], found[:7].diagonal())
    assert (found > 0).any()
    assert (found == 0).any()


def test_generalised_overlap() -> None:
    unit = torch.tensor([[0.0, 0, 1, 1]])
    for other, expected in (
        ([0.0, 0, 1, 1], 1.0),
        ([1.0, 0, 2, 1], 0.0),
        ([3.0, 0, 4, 1], -0.5),
        ([0.0, 0, 2, 1], 0.5),
    ):
        assert paired_iou(unit, torch.tensor([other]))[1].item() == pytest.approx(expected, abs=1e-6)
    boxes = torch.rand(5, 4, dtype=torch.float64).sort(1).values.requires_grad_()
    others = torch.rand(5, 4, dtype=torch.float64).sort(1).values
    assert torch.autograd.gradcheck(lambda b: paired_iou(b, others)[1], boxes)


def test_empty_boxes_overlap_nothing() -> None:
    empty = torch.zeros(1, 4)
    assert box_iou(empty, empty).item() == 0
    assert box_iou(torch.zeros(0, 4), random_boxes(3, 0)).shape == (0, 3)
    assert all(torch.isfinite(value).all() for value in paired_iou(empty, empty))


def test_distances_and_clipping() -> None:
    boxes, points = random_boxes(6, seed=2), torch.rand(6, 2) * 20
    torch.testing.assert_close(from_distances(points, to_distances(points, boxes)), boxes)
    assert clip_boxes(torch.tensor([[-1.0, 2, 9, 12]]), 8, 6).tolist() == [[0, 2, 6, 8]]


def test_suppression_is_greedy_and_keeps_classes_apart() -> None:
    boxes, labels = random_boxes(40, seed=3, side=8), torch.arange(40) % 3
    scores = torch.randint(0, 20, (40,), generator=torch.Generator().manual_seed(4)) / 20
    left: list[int] = []
    for index in sorted(range(40), key=lambda i: (-scores[i].item(), i)):
        rivals = [i for i in left if labels[i] == labels[index] and box_iou(boxes[i : i + 1], boxes[[index]]) > 0.3]
        left += [] if rivals else [index]
    assert 5 < len(left) < 40
    assert non_maximum_suppression(boxes, scores, labels, 0.3).tolist() == left
    assert non_maximum_suppression(boxes[:0], scores[:0], labels[:0], 0.3).tolist() == []


def test_refused() -> None:
    boxes = random_boxes(2, 0)
    with pytest.raises(ArgumentError, match=r"boxes must be floating-point \[..., 4\], got torch.int64 \[2, 4\]"):
        box_iou(boxes.long(), boxes)
    with pytest.raises(ArgumentError, match=r"others must be .* got torch.float32 \[2, 3\]"):
        box_iou(boxes, boxes[:, :3])
    with pytest.raises(ArgumentError, match=r"must be \[n, 4\], \[n\] and \[n\], got \[2, 4\], \[3\], \[2\]"):
        non_maximum_suppression(boxes, torch.ones(3), torch.ones(2), 0.5)
    with pytest.raises(ArgumentError, match=r"iou_threshold must lie in 0..1, got 1.5"):
        non_maximum_suppression(boxes, torch.ones(2), torch.ones(2), 1.5)
