"""Mixtures of samples, augmentations by name, labels of mirror images, sensors that are lines."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest
import torch
from torch import Tensor

from snn_core.datasets import info, make_events
from snn_core.datasets.augment import (
    GESTURE_MIRROR,
    POLICIES,
    Affine,
    Compose,
    CutMix,
    Draw,
    DropArea,
    EventMix,
    Flip,
    Identity,
    Mix,
    Noise,
    OneOf,
    Roll,
    Shift,
    Sometimes,
    TimeReverse,
    TimeWarp,
    event_drop,
    one_hot,
    policy,
)
from snn_core.errors import ArgumentError

SIZE = (23, 17)
STEPS = 5


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_frames(batch: int = 6, dtype: torch.dtype = torch.uint8, seed: int = 0) -> Tensor:
    return torch.randint(0, 4, (STEPS, batch, 2, SIZE[1], SIZE[0]), generator=generator(seed)).to(dtype)


def test_gesture_mirror_is_its_own_inverse_and_relabels_what_was_mirrored() -> None:
    assert [GESTURE_MIRROR[k] for k in GESTURE_MIRROR] == list(range(11))
    names = info("dvs-gesture").class_names
    swaps = {"left": "right", "right": "left", "_clockwise": "_counter_clockwise", "_counter_clockwise": "_clockwise"}
    for name, mirror in zip(names, GESTURE_MIRROR, strict=True):
        assert re.sub("left|right|(_counter)?_clockwise", lambda found: swaps[found[0]], name) == names[mirror]
    augmentation = Compose([Sometimes(Shift(1)), OneOf([Flip(1.0, classes=GESTURE_MIRROR), Identity()])])
    frames, labels = make_frames(11), torch.arange(11)
    draw = augmentation.draw(generator(1), 11, SIZE)
    mirrored = draw.parts[1].values["choice"] == 0
    assert 0 < mirrored.sum() < 11
    expected = torch.where(mirrored, torch.tensor(GESTURE_MIRROR), labels)
    assert torch.equal(augmentation.relabel(labels, draw), expected)
    assert torch.equal(Shift(1).relabel(labels, Shift(1).draw(generator(), 11, SIZE)), labels)
    assert augmentation.apply(frames, draw).shape == frames.shape
    backwards = TimeReverse(1.0, classes=GESTURE_MIRROR)
    assert backwards.relabel(labels, backwards.draw(generator(), 11, SIZE)).tolist() == list(GESTURE_MIRROR)


@pytest.mark.parametrize("mix", [CutMix(1.0), EventMix(1.0), CutMix(1.0, 0.3), EventMix(1.0, 2.0, blobs=1)], ids=repr)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_mix_takes_cells_whole_and_labels_by_events(mix: Mix, dtype: torch.dtype) -> None:
    frames = torch.stack([torch.full((STEPS, 2, SIZE[1], SIZE[0]), k + 1) for k in range(8)], 1).to(dtype)
    labels = one_hot(torch.arange(8), 8)
    draw = mix.draw(generator(2), 8, SIZE)
    mixed, soft = mix.apply(frames, labels, draw)
    assert mixed.dtype == dtype
    torch.testing.assert_close(soft.sum(1), torch.ones(8))
    partner = draw.values["partner"]
    for k in range(8):
        values = mixed[:, k].double()
        taken = values == partner[k] + 1
        assert (taken | (values == k + 1)).all()
        share = float(values[taken].sum() / values.sum()) if partner[k] != k else 1.0
        torch.testing.assert_close(float(soft[k, partner[k]]), share, atol=1e-5, rtol=0)
        if isinstance(mix, EventMix) and partner[k] != k:
            assert abs(taken.double().mean() - draw.values["share"][k]) < 1e-3
    unmixed = mix.draw(generator(2), 8, SIZE)
    off = Draw(8, SIZE, unmixed.values | {"on": torch.zeros(8, dtype=torch.bool)})
    assert mix.apply(frames, labels, off) == (frames, labels)


def test_mix_is_differentiable_and_refuses_what_does_not_fit() -> None:
    frames = make_frames(4, torch.float64).requires_grad_()
    mix = CutMix(1.0)
    draw = mix.draw(generator(1), 4, SIZE)
    mixed, _ = mix.apply(frames, one_hot(torch.arange(4), 4), draw)
    (gradient,) = torch.autograd.grad(mixed.sum(), frames)
    assert gradient.sum() == mixed.numel()
    with pytest.raises(ArgumentError, match=r"labels \[4\] do not fit"):
        mix.apply(frames, torch.arange(4), draw)
    with pytest.raises(ArgumentError, match=r"labels must lie in 0\.\.2"):
        one_hot(torch.tensor([3]), 3)
    empty = torch.zeros(1, 2, 2, SIZE[1], SIZE[0])
    _, labels = mix.apply(empty, one_hot(torch.arange(2), 2), mix.draw(generator(), 2, SIZE))
    assert torch.equal(labels, one_hot(torch.arange(2), 2))


@pytest.mark.parametrize("name", POLICIES)
def test_policies_have_names(name: str) -> None:
    augmentation = policy(name)
    frames = make_frames(8)
    moved = augmentation(frames, generator())
    assert moved.shape == frames.shape
    assert (name == "none") == torch.equal(moved, frames)
    # A draw survives a copy, and a policy tells what it does, which is what a resumed run is checked by.
    assert repr(copy.deepcopy(augmentation)) == repr(policy(name))


def test_a_line_of_pixels_is_augmented_along_the_line() -> None:
    """SHD: 700 channels, one polarity. No transform may move everything off the line."""
    frames = torch.arange(1.0, 701.0).expand(4, 30, 1, 1, 700)
    for augmentation in (policy("shd"), Roll(5), Flip(), DropArea((0.2, 0.2)), event_drop(), TimeWarp(), Noise()):
        moved = augmentation(frames, generator())
        assert not torch.equal(moved, frames)
        assert (moved.sum((0, 2, 3, 4)) > 0).all()
    shifted = (policy("shd")(frames, generator()) > 0).sum((0, 2, 3, 4)) / 4
    assert shifted.min() >= 660
    area = (DropArea((0.2, 0.2))(frames, generator()) == 0).sum((0, 2, 3, 4)) / 4
    assert area.max() == 140
    mixed, _ = CutMix(1.0).apply(frames, one_hot(torch.arange(30), 30), CutMix(1.0).draw(generator(), 30, (700, 1)))
    assert mixed.shape == frames.shape
    with pytest.raises(ArgumentError, match="Affine needs a plane of pixels, got 700 x 1"):
        Affine()(frames, generator())
    channels = make_events(np.arange(700), np.arange(700), np.zeros(700), np.zeros(700))
    moved_events = policy("shd")(channels, generator(), (700, 1))
    assert 660 <= len(moved_events) < 700
    assert set(moved_events["y"]) == {0}
