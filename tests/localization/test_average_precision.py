"""Average precision: by hand, and against COCO's library on random boxes."""

from __future__ import annotations

import contextlib
import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from snn_core.errors import ArgumentError
from snn_core.localization import Detections, average_precision, class_blind, targets_of
from snn_core.localization.average_precision import COCO_THRESHOLDS

Case = tuple[list[Detections], list[Tensor], list[Tensor]]


def detections(*rows: tuple[list[float], float, int]) -> Detections:
    boxes = torch.tensor([box for box, _, _ in rows]).reshape(-1, 4)
    return Detections(
        boxes, torch.tensor([s for _, s, _ in rows]), torch.tensor([k for *_, k in rows], dtype=torch.int64)
    )


ONE, TWO, FAR = [0.0, 0, 10, 10], [20.0, 20, 30, 30], [40.0, 40, 50, 50]


def by_hand(found: list[Detections], boxes: list[list[list[float]]]) -> float:
    true = [torch.tensor(sample).reshape(-1, 4) for sample in boxes]
    return average_precision(found, true, [torch.zeros(len(b), dtype=torch.int64) for b in true], 1, [0.5]).mean(0.5)


def test_by_hand() -> None:
    assert by_hand([detections((ONE, 0.9, 0), (TWO, 0.8, 0))], [[ONE, TWO]]) == pytest.approx(1)
    # Recall 0 to 0.5 at precision 1; 51 of the 101 recalls are there.
    assert by_hand([detections((ONE, 0.9, 0))], [[ONE, TWO]]) == pytest.approx(51 / 101)
    # A false alarm with the best score halves the precision, and is not made up for by what comes after it.
    assert by_hand([detections((FAR, 0.9, 0), (ONE, 0.8, 0))], [[ONE]]) == pytest.approx(0.5)
    # A second box on the same object is a false alarm; behind everything else it costs nothing.
    assert by_hand([detections((ONE, 0.9, 0), (ONE, 0.8, 0), (TWO, 0.7, 0))], [[ONE, TWO]]) == pytest.approx(
        (51 + 50 * 2 / 3) / 101
    )
    assert by_hand([detections((ONE, 0.9, 0))], [[]]) != by_hand([detections()], [[ONE]]) == 0
    # Scores are compared over all samples.
    assert by_hand([detections((ONE, 0.5, 0)), detections((ONE, 0.9, 0))], [[ONE], [FAR]]) == pytest.approx(
        51 / 2 / 101
    )


def test_classes() -> None:
    found, true = [detections((ONE, 0.9, 1), (TWO, 0.8, 0))], [torch.tensor([ONE, TWO])]
    labels = [torch.tensor([1, 2])]
    result = average_precision(found, true, labels, 4)
    per_class = result.per_class(0.5)
    assert per_class[1:3] == [1, 0]
    assert math.isnan(per_class[0])  # nothing to be found: no part of the mean
    assert math.isnan(per_class[3])
    assert result.mean(0.5) == result.mean() == 0.5
    blind = average_precision(class_blind(found, labels)[0], true, class_blind(found, labels)[1], 1)
    assert blind.mean(0.5) == 1


def random_case(seed: int, samples: int = 12, classes: int = 3) -> Case:
    """Boxes of which some are found a little beside, some twice, some not; scores with ties."""
    generator = np.random.default_rng(seed)
    found, boxes, labels = [], [], []
    for _ in range(samples):
        number = int(generator.integers(0, 5))
        corner, size = generator.uniform(0, 40, (number, 2)), generator.uniform(5, 25, (number, 2))
        true = np.concatenate([corner, corner + size], 1)
        classes_of = generator.integers(0, classes, number)
        picked = generator.integers(0, max(number, 1), int(generator.integers(0, 9)) if number else 0)
        seen = true[picked] + generator.normal(0, 2, (len(picked), 4))
        seen[:, 2:] = np.maximum(seen[:, 2:], seen[:, :2] + 1)
        kinds = np.where(
            generator.random(len(picked)) < 0.8, classes_of[picked], generator.integers(0, classes, len(picked))
        )
        scores = torch.from_numpy(generator.integers(1, 12, len(picked)) / 12)
        found.append(Detections(torch.from_numpy(seen), scores, torch.from_numpy(kinds)))
        boxes.append(torch.from_numpy(true))
        labels.append(torch.from_numpy(classes_of))
    return found, boxes, labels


def as_coco_sees_it(case: Case, classes: int) -> np.ndarray:
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools, of the extra 'test', is not installed")
    evaluation = pytest.importorskip("pycocotools.cocoeval")

    def rows(boxes: Tensor, labels: Tensor, image: int) -> list[dict[str, Any]]:
        sides = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
        pairs = zip(sides.tolist(), labels.tolist(), strict=True)
        return [
            {"image_id": image, "category_id": k, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for box, k in pairs
        ]

    found, boxes, labels = case
    true = [row for image, pair in enumerate(zip(boxes, labels, strict=True)) for row in rows(*pair, image)]
    seen = [
        row | {"score": score}
        for image, one in enumerate(found)
        for row, score in zip(rows(one.boxes, one.labels, image), one.scores.tolist(), strict=True)
    ]
    truth = coco.COCO()
    truth.dataset = {
        "images": [{"id": image} for image in range(len(found))], "categories": [{"id": k} for k in range(classes)],
        "annotations": [row | {"id": number + 1} for number, row in enumerate(true)],
    }  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        run = evaluation.COCOeval(truth, truth.loadRes(seen), "bbox")
        run.evaluate()
        run.accumulate()
    precision = run.eval["precision"][:, :, :, 0, -1]  # [thresholds, recalls, classes]
    return np.where((precision > -1).all(1), precision.mean(1), np.nan)


@pytest.mark.parametrize("seed", range(6))
def test_equals_coco(seed: int) -> None:
    case = random_case(seed)
    expected = as_coco_sees_it(case, 3)
    assert 0.05 < np.nanmean(expected) < 0.9
    np.testing.assert_allclose(average_precision(*case, 3).table, expected, atol=1e-12)


def test_a_class_without_objects_equals_coco() -> None:
    found, boxes, labels = random_case(7, samples=4)
    case = found, boxes, [values.clamp_max(1) for values in labels]
    np.testing.assert_allclose(average_precision(*case, 3).table, as_coco_sees_it(case, 3), atol=1e-12)


def test_better_boxes_have_more_precision() -> None:
    found, boxes, labels = random_case(8)
    perfect = [Detections(b, torch.ones(len(b)), k) for b, k in zip(boxes, labels, strict=True)]
    table = average_precision(found, boxes, labels, 3).table
    assert (np.diff(table, axis=0) <= 1e-12).all()
    assert average_precision(perfect, boxes, labels, 3).mean() == pytest.approx(1)


def test_targets_leave_out_what_is_not_there() -> None:
    boxes, labels = targets_of(torch.arange(16.0).reshape(2, 2, 4), torch.tensor([[3, -1], [0, 1]]))
    assert [len(sample) for sample in boxes] == [1, 2]
    assert [sample.tolist() for sample in labels] == [[3], [0, 1]]


def test_refused() -> None:
    found, boxes, labels = random_case(0, samples=2)
    with pytest.raises(ArgumentError, match="must have equal length, got 2, 1, 2"):
        average_precision(found, boxes[:1], labels, 3)
    with pytest.raises(ArgumentError, match=r"labels must lie in 0..1, got \[2\]"):
        average_precision(found[:1], [torch.zeros(1, 4)], [torch.tensor([2])], 2)
    with pytest.raises(ArgumentError, match=r"thresholds must lie in 0..1, without 0, got \[0.0\]"):
        average_precision(found, boxes, labels, 3, [0.0])
    with pytest.raises(ArgumentError, match=r"threshold must be one of .* got 0.42"):
        average_precision(found, boxes, labels, 3, COCO_THRESHOLDS).mean(0.42)
