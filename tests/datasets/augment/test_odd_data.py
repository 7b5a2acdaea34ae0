"""Augmentations of data that are odd: other types, empty batches, arguments of the wrong kind."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from snn_core.datasets import make_events
from snn_core.datasets.augment import (
    Affine,
    Augmentation,
    Crop,
    CutMix,
    DropEvents,
    EventMix,
    Flip,
    Identity,
    Mix,
    Noise,
    OneOf,
    PolarityFlip,
    Roll,
    Shift,
    TimeReverse,
    TimeShift,
    one_hot,
)
from snn_core.errors import ArgumentError

SIZE = (23, 17)
EVENTS = make_events([0, 5, 9], [0, 22, 3], [0, 16, 4], [0, 1, 1])


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def recast(**types: str) -> np.ndarray:
    """EVENTS with fields of other types."""
    dtype = [(name, types.get(name, EVENTS.dtype[name])) for name in "txyp"]
    return EVENTS.astype(dtype)


@pytest.mark.parametrize("augmentation", [Shift(), Flip(1.0), TimeShift(), TimeReverse(1.0), Noise()], ids=repr)
@pytest.mark.parametrize("types", [{"t": "f8"}, {"t": "u4"}, {"x": "f4"}], ids=str)
def test_events_of_other_types_are_refused(augmentation: Augmentation, types: dict[str, str]) -> None:
    with pytest.raises(ArgumentError, match=f"{next(iter(types))} of the events must be"):
        augmentation(recast(**types), generator(), SIZE)


def test_coordinates_that_their_type_could_not_hold_are_refused() -> None:
    with pytest.raises(ArgumentError, match="x of the events is uint8, which does not hold 699"):
        Flip(1.0)(recast(x="u1"), generator(), (700, 17))
    assert Flip(1.0)(recast(x="u1"), generator(), (256, 17))["x"].tolist() == [255, 233, 252]


def test_polarities_of_minus_one_are_refused_and_booleans_are_not() -> None:
    events = EVENTS.copy()
    events["p"] = [-1, 1, 1]
    with pytest.raises(ArgumentError, match=r"p of the events must lie in 0..1, got -1..1"):
        PolarityFlip(1.0)(events, generator(), SIZE)
    assert PolarityFlip(1.0)(recast(p="?"), generator(), SIZE)["p"].tolist() == [True, False, False]


@pytest.mark.parametrize(
    "augmentation",
    [Shift(), Roll(), Affine(), Affine(interpolation="nearest"), DropEvents(), Noise(), OneOf([Identity(), Shift()])],
    ids=repr,
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_batch_of_no_samples_stays_one(augmentation: Augmentation, dtype: torch.dtype) -> None:
    frames = torch.zeros(3, 0, 2, 17, 23, dtype=dtype)
    assert augmentation(frames, generator()).shape == frames.shape
    assert Crop(5, 4)(frames, generator()).shape == (3, 0, 2, 4, 5)


@pytest.mark.parametrize("mix", [CutMix(1.0), EventMix(1.0)], ids=repr)
def test_no_samples_are_mixed(mix: Mix) -> None:
    frames, labels = torch.zeros(3, 0, 2, 17, 23), one_hot(torch.zeros(0, dtype=torch.int64), 4)
    mixed, mixed_labels = mix.apply(frames, labels, mix.draw(generator(), 0, SIZE))
    assert mixed.shape == frames.shape
    assert mixed_labels.shape == (0, 4)


@pytest.mark.parametrize("pixels", [2, 17, 32768])
def test_frames_shift_as_far_as_was_drawn(pixels: int) -> None:
    frames = torch.arange(1, 23 * 17 + 1, dtype=torch.int32).view(1, 1, 1, 17, 23).expand(2, 4, 2, 17, 23)
    draw = Shift(pixels).draw(generator(), 4, SIZE)
    moved = Shift(pixels).apply(frames, draw)
    for sample, (dx, dy) in enumerate(zip(draw.values["dx"].tolist(), draw.values["dy"].tolist(), strict=True)):
        y, x = np.mgrid[:17, :23]
        inside = (y - dy >= 0) & (y - dy < 17) & (x - dx >= 0) & (x - dx < 23)
        expected = np.where(inside, (y - dy) * 23 + (x - dx) + 1, 0)
        assert (moved[1, sample, 1].numpy() == expected).all()


BAD: dict[str, tuple[Callable[[], object], str]] = {
    "Shift": (lambda: Shift(1.5), "pixels must be an integer, got 1.5"),  # type: ignore[arg-type]
    "Roll": (lambda: Roll(True), "pixels must be an integer, got True"),
    "Crop": (lambda: Crop(3.5, 3), "width must be an integer, got 3.5"),  # type: ignore[arg-type]
    "EventMix": (lambda: EventMix(blobs=2.5), "blobs must be an integer"),  # type: ignore[arg-type]
    "text": (lambda: Noise("much"), "rate must lie in"),  # type: ignore[arg-type]
    "pair": (lambda: DropEvents(0.3), r"ratio must be \(least, most\)"),  # type: ignore[arg-type]
    "weights": (lambda: OneOf([Shift(), Shift()], [float("nan"), 1]), "weights must be finite"),
    "label": (
        lambda: Flip(1.0, classes=(1, 0)).relabel(torch.tensor([-1]), Flip(1.0).draw(generator(), 1, SIZE)),
        "labels lie in -1..-1",
    ),
    "bool": (lambda: Noise()(torch.zeros(1, 1, 2, 3, 3, dtype=torch.bool), generator()), "torch.bool"),
}


@pytest.mark.parametrize("case", BAD)
def test_arguments_of_the_wrong_kind_are_named(case: str) -> None:
    call, message = BAD[case]
    with pytest.raises(ArgumentError, match=message):
        call()
