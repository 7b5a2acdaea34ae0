"""moving-digits, simulated: boxes are the extent of what is seen, splits and groups share no picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from snn_core.datasets import EVENT_DTYPE, BoxDataset, FrameDataset, data_root, info, load_boxes, open_dataset
from snn_core.datasets.moving_digit_paths import INK, MOST_OVERLAP, RANGES, Crossings, _overlap, ink_extents
from snn_core.datasets.moving_digits import BACKGROUND, DURATION_US, GROUPS, RENDER_US, STEP_US, MovingDigitsSource
from snn_core.errors import ArgumentError, DataError


@pytest.fixture(scope="module")
def source() -> MovingDigitsSource:
    opened = open_dataset("moving-digits")
    assert isinstance(opened, MovingDigitsSource)
    return opened


def seen_extent(log_brightness: np.ndarray, contrast: float) -> list[float]:
    """Of the pixels that are brighter than INK of the digit's full ink."""
    ink = np.exp(log_brightness.reshape(64, 64)) - BACKGROUND >= INK / 255 * contrast
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


@pytest.mark.parametrize("pictures", ["digits", "mnist"])
def test_boxes_are_the_extent_of_the_ink_that_is_seen(pictures: str) -> None:
    if pictures == "mnist" and not (data_root() / "mnist.npz").is_file():
        pytest.skip(f"MNIST's pictures are absent: no {data_root() / 'mnist.npz'}; set SNN_DATA to their folder")
    opened = open_dataset("moving-digits", pictures=pictures)
    assert isinstance(opened, MovingDigitsSource)
    some = opened.recordings("test")[:16]
    alone = [recording for recording, single in zip(some, opened.box_labels(some)[:, 1] < 0, strict=True) if single][:6]
    contrast = opened.crossings(alone).contrast[:, 0]
    seen = list(opened.log_brightness(alone))
    assert len(seen) == DURATION_US // STEP_US + 1
    times = list(range(0, DURATION_US + 1, 20 * RENDER_US))
    boxes = opened.boxes(alone, times)[:, :, 0]
    apart = np.array([
        [seen_extent(seen[time // STEP_US][row], contrast[row]) - boxes[row, at] for at, time in enumerate(times)]
        for row in range(len(alone))
    ])  # fmt: skip
    # A pixel sees one point of the picture, in its middle: at most half of it is beyond what it shows.
    assert np.abs(apart).max() < 0.75
    assert np.abs(apart.mean((0, 1))).max() < 0.25
    assert np.abs(np.diff(boxes, axis=1)).max() > 2  # they move


def test_digits_stay_inside_and_are_reflected(source: MovingDigitsSource) -> None:
    some = source.recordings("train")[:120]
    boxes, labels = source.boxes(some, list(range(0, DURATION_US + 1, STEP_US))), source.box_labels(some)
    there = labels >= 0
    assert 0 < boxes[np.repeat(there[:, None], boxes.shape[1], 1)].max() <= 64
    assert boxes.min() >= 0
    assert not boxes[~there[:, 1], :, 1].any()
    sides = (boxes[..., 2:] - boxes[..., :2]).max(-1)[:, 0][there]
    low, high = RANGES["length"]
    assert low <= sides.min() < sides.max() <= high
    steps = np.diff(boxes[..., :2], axis=1)[:, :, 0]
    speed = np.hypot(*np.moveaxis(steps, -1, 0)) / STEP_US * 1e6
    assert np.quantile(speed, 0.05) >= RANGES["speed"][0] - 0.1
    assert speed.max() <= RANGES["speed"][1] + 0.1
    turned = (np.sign(steps[:, 0]) != np.sign(steps[:, -1])).any(1)
    assert 0.05 < turned.mean() < 0.9
    final = [_overlap(pair[-1].astype(float)) for pair, both in zip(boxes, there[:, 1], strict=True) if both]
    assert max(final) <= MOST_OVERLAP + 1e-6
    assert 35 < len(final) < 85


def test_ink_of_a_picture() -> None:
    picture = np.zeros((2, 8, 8), np.uint8)
    picture[0, 2:5, 1:7] = 255
    picture[1, 6, 3] = 255
    extent = ink_extents(picture) * 8 + 4
    np.testing.assert_allclose(extent[0], [1, 2, 7, 5], atol=0.3)
    np.testing.assert_allclose(extent[1], [3, 6, 4, 7], atol=0.3)


def test_no_picture_is_in_two_parts(source: MovingDigitsSource) -> None:
    shown: dict[object, set[bytes]] = {}
    for split in ("train", "test"):
        recordings = source.recordings(split)
        groups, labels = source.groups(recordings), source.box_labels(recordings)
        pairs = source._shown(recordings)
        for group, pair, both in zip(groups.tolist(), pairs, labels[:, 1] >= 0, strict=True):
            shown.setdefault((split, group), set()).update(p.tobytes() for p in pair[: 1 + int(both)])
        assert np.bincount(labels[:, 0]).tolist() == [len(recordings) // 10] * 10
        assert [recording.label for recording in recordings] == labels[:, 0].tolist()
    assert len(shown) == 2 * GROUPS
    assert sum(len(part) for part in shown.values()) == len(set.union(*shown.values())) > 1700
    assert info("moving-digits").splits == {"fixed": {"train": 4000, "test": 800}}


def test_events_do_not_depend_on_the_batch(source: MovingDigitsSource) -> None:
    chosen = source.recordings("test")[:3]
    recordings = list(source.read(chosen))
    for events in recordings:
        assert events.dtype == EVENT_DTYPE
        assert (np.diff(events["t"]) >= 0).all()
        assert 0.95 * DURATION_US < events["t"].max() <= DURATION_US
        assert 1000 < len(events) < 20_000
    np.testing.assert_array_equal(next(iter(source.read(chosen[2:]))), recordings[2])
    other = open_dataset("moving-digits", seed=1)
    assert not np.array_equal(next(iter(other.read(chosen[:1]))), recordings[0])
    assert other.content_hash("test") != source.content_hash("test")
    assert source.recordings("all") == source.recordings("train") + source.recordings("test")
    assert source.boxes([], [0]).shape == (0, 1, 2, 4)
    assert source.box_labels([]).shape == (0, 2)


def test_frames_of_other_paths_are_not_taken_from_the_cache(
    source: MovingDigitsSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, middles = source.content_hash("train"), Crossings.middles
    assert before == source.content_hash("train")
    monkeypatch.setattr(Crossings, "middles", lambda self, seconds: middles(self, 1.1 * seconds))
    assert source.content_hash("train") != before


def test_load_boxes_gives_frames_that_fire_inside_the_boxes() -> None:
    data = load_boxes("moving-digits", split="test", T=4, limit=12, quiet=True)
    assert (len(data), data.T, data.num_classes) == (12, 4, 10)
    assert "simulated" in repr(data)
    inside = total = 0.0
    for frames, boxes, labels in data:
        assert frames.shape == (4, 2, 64, 64)
        assert boxes.shape == (4, len(labels), 4)
        covered = torch.zeros(4, 64, 64, dtype=torch.bool)
        for step in range(4):
            for x0, y0, x1, y1 in boxes[step].round().int().tolist():
                # A digit leaves events behind it, over as much as it moves in a step.
                covered[step, max(y0 - 8, 0) : y1 + 8, max(x0 - 8, 0) : x1 + 8] = True
        inside += float((frames.sum(1) * covered).sum())
        total += float(frames.sum())
    assert inside > 0.85 * total
    again = load_boxes("moving-digits", split="test", T=4, limit=12, quiet=True)
    assert torch.equal(again.boxes, data.boxes)
    assert torch.equal(again.frames.frames, data.frames.frames)


def test_folds_and_subsets() -> None:
    data = load_boxes("moving-digits", split="test", T=4, limit=12, quiet=True)
    rest, held = data.fold(1)
    assert len(rest) + len(held) == 12
    assert held.groups.tolist() == [1] * len(held)
    assert 1 not in rest.groups.tolist()
    picked = data.subset([3, 0])
    assert torch.equal(picked.boxes, data.boxes[[3, 0]])
    assert torch.equal(picked.frames.frames[1], data.frames.frames[0])
    assert torch.equal(picked.labels[0], data.labels[3])
    with pytest.raises(ArgumentError, match=r"group must be one of .*4\], got 7"):
        data.fold(7)


def test_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="pictures must be one of digits, mnist, got 'letters'"):
        open_dataset("moving-digits", pictures="letters")
    with pytest.raises(DataError, match=r"there is no .*mnist\.npz"):
        open_dataset("moving-digits", tmp_path, pictures="mnist")
    with pytest.raises(ArgumentError, match="digits-dvs has no boxes; moving-digits has"):
        load_boxes("digits-dvs", T=3)
    frames = FrameDataset(
        torch.zeros(2, 3, 2, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), ["a", "b"],
        class_names=["x"], name="n", simulated=True, content_key="k",
    )  # fmt: skip
    good = {
        "boxes": torch.zeros(2, 3, 1, 4),
        "labels": torch.zeros(2, 1, dtype=torch.int64),
        "groups": torch.zeros(2, dtype=torch.int64),
    }
    BoxDataset(frames, **good)
    for name, bad in (
        ("boxes", torch.zeros(2, 2, 1, 4)), ("boxes", torch.zeros(2, 3, 1, 4, dtype=torch.float64)),
        ("labels", torch.zeros(2, 1)), ("labels", torch.ones(2, 1, dtype=torch.int64)), ("groups", torch.zeros(2)),
    ):  # fmt: skip
        with pytest.raises(ArgumentError, match=f"{name} must"):
            BoxDataset(frames, **good | {name: bad})
