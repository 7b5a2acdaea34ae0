"""Augmentations: events and frames agree under one draw, draws can be shared, nothing random is left outside them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from snn_core.datasets import make_events
from snn_core.datasets.augment import (
    Affine,
    Augmentation,
    Compose,
    Crop,
    Draw,
    DropArea,
    DropEvents,
    DropTime,
    Flip,
    Identity,
    Noise,
    OneOf,
    PolarityFlip,
    Roll,
    Shift,
    Sometimes,
    SpatialJitter,
    TimeJitter,
    TimeReverse,
    TimeShift,
    TimeWarp,
    event_drop,
    nda,
    policy,
)
from snn_core.errors import ArgumentError
from snn_core.kernels import event_frames

SIZE = (23, 17)
STEPS = 5


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_recording(seed: int = 0, count: int = 800) -> np.ndarray:
    """Random events whose first and last time stamps are 1,000 and 101,000, so that bins fall where they should."""
    random = np.random.default_rng(seed)
    t = np.sort(random.integers(1_000, 101_001, count))
    t[0], t[-1] = 1_000, 101_000
    return make_events(t, random.integers(0, SIZE[0], count), random.integers(0, SIZE[1], count),
                       random.integers(0, 2, count))  # fmt: skip


def make_frames(batch: int = 6, dtype: torch.dtype = torch.uint8, seed: int = 0) -> Tensor:
    return torch.randint(0, 4, (STEPS, batch, 2, SIZE[1], SIZE[0]), generator=generator(seed)).to(dtype)


ON_FRAMES: list[Augmentation] = [
    Affine(25, 0.2, 3, shear=5), Affine(25, 0.2, 3, interpolation="nearest"), Crop(9, 7), DropArea((0.2, 0.6)),
    DropEvents(), DropTime((0.2, 0.6)), Flip(0.5), Flip(0.5, "y"), Identity(), Noise(0.3), PolarityFlip(), Roll(6),
    Shift(4), TimeReverse(), TimeShift(0.5), TimeWarp(0.8, (0.5, 2)), Compose([Crop(9, 7), Flip(), Shift(1)]),
    OneOf([Shift(3), Roll(4), Identity()], [2, 1, 1]), Sometimes(Shift(3)), event_drop(), nda(),
]  # fmt: skip
ON_EVENTS = [*ON_FRAMES, TimeJitter(2000), SpatialJitter(1.5)]


@pytest.mark.parametrize("augmentation", ON_FRAMES, ids=repr)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_frames_depend_on_data_and_draw_alone(augmentation: Augmentation, dtype: torch.dtype) -> None:
    frames = make_frames(dtype=dtype)
    before = frames.clone()
    draw = augmentation.draw(generator(3), 6, SIZE)
    state = torch.get_rng_state()
    moved = augmentation.apply(frames, draw)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(frames, before)
    assert torch.equal(moved, augmentation.apply(frames, draw))
    assert torch.equal(moved, augmentation(frames, generator(3)))
    width, height = augmentation.output_size(SIZE)
    assert moved.shape == (STEPS, 6, 2, height, width)
    # Every sample has its own draw, which gives the same when it is alone.
    for sample in range(6):
        alone = augmentation.apply(frames[:, sample : sample + 1], draw.select(sample)).to(moved.dtype)
        assert torch.equal(alone[:, 0], moved[:, sample])


@pytest.mark.parametrize("augmentation", [a for a in ON_FRAMES if not isinstance(a, Identity)], ids=repr)
def test_draws_differ(augmentation: Augmentation) -> None:
    frames = make_frames(1).repeat(1, 40, 1, 1, 1)
    moved = augmentation(frames, generator(5))
    assert len({sample.numpy().tobytes() for sample in moved.unbind(1)}) > 1
    assert not torch.equal(moved, augmentation(frames, generator(6)))


@pytest.mark.parametrize("augmentation", ON_FRAMES, ids=repr)
def test_one_draw_serves_real_and_synthetic_frames_and_gradients(augmentation: Augmentation) -> None:
    real, synthetic = make_frames(6, torch.float64), make_frames(2, torch.float64, seed=1).requires_grad_()
    draw = augmentation.draw(generator(4), 1, SIZE)
    both = augmentation.apply(torch.cat([real, synthetic], 1), draw)
    assert torch.equal(augmentation.apply(real, draw), both[:, :6])
    assert torch.equal(augmentation.apply(synthetic, draw), both[:, 6:])

    # A draw fixes an affine map, so the gradient of its sum is what a step along it changes.
    step = torch.randn(synthetic.shape, generator=generator(5), dtype=torch.float64)
    weight = torch.randn(both[:, 6:].shape, generator=generator(6), dtype=torch.float64)
    (slope,) = torch.autograd.grad((augmentation.apply(synthetic, draw) * weight).sum(), synthetic)
    with torch.no_grad():
        change = augmentation.apply(synthetic + step, draw) - augmentation.apply(synthetic, draw)
    torch.testing.assert_close((slope * step).sum(), (change * weight).sum())


EXACT: list[Augmentation] = [
    Shift(4), Roll(6), Flip(0.5), Flip(0.5, "y"), PolarityFlip(), Crop(9, 7), DropArea((0.2, 0.6)), Identity(),
    Compose([Flip(), Roll(3), Crop(12, 9), Shift(2)]), OneOf([Shift(3), Roll(4)]), Sometimes(Shift(3)),
]  # fmt: skip


@pytest.mark.parametrize("augmentation", EXACT, ids=repr)
@pytest.mark.parametrize("seed", range(4))
def test_events_then_frames_equals_frames_then_augmentation(augmentation: Augmentation, seed: int) -> None:
    """With the ends of the recording marked, since frames of events go from the first event to the last."""
    events = make_recording(seed)
    draw = augmentation.draw(generator(seed), 1, SIZE)
    moved = augmentation.apply(events, draw)
    assert moved.dtype == events.dtype
    width, height = augmentation.output_size(SIZE)
    # Bins by hand: what remains may begin later than the recording did.
    expected = np.zeros((STEPS, 2, height, width), np.uint8)
    np.add.at(expected, (bins(moved["t"]), moved["p"], moved["y"], moved["x"]), 1)
    frames = np.zeros((STEPS, 2, SIZE[1], SIZE[0]), np.uint8)
    np.add.at(frames, (bins(events["t"]), events["p"], events["y"], events["x"]), 1)
    result = augmentation.apply(torch.from_numpy(frames)[:, None], draw)[:, 0]
    np.testing.assert_array_equal(result.numpy(), expected)


def bins(t: np.ndarray) -> np.ndarray:
    return np.minimum((t.astype(np.int64) - 1_000) * STEPS // 100_000, STEPS - 1)


def test_time_reversed_events_make_time_reversed_frames() -> None:
    events = make_recording()
    events = events[(events["t"] - 1_000) % 20_000 != 0]  # none on an edge, which belongs to one bin either way
    events = np.sort(np.concatenate([events, make_events([1_000, 101_000], [0, 0], [0, 0], [0, 0])]), order="t")
    backwards = TimeReverse(1.0)
    draw = backwards.draw(generator(), 1, SIZE)
    frames, _ = event_frames(events, (*SIZE, 2), n_time_bins=STEPS)
    frames_back, _ = event_frames(backwards.apply(events, draw), (*SIZE, 2), n_time_bins=STEPS)
    expected = backwards.apply(torch.from_numpy(frames)[:, None], draw)[:, 0].numpy()
    # tonic's bins drop the last event, which is the first of the reverse.
    difference = frames_back.astype(int) - expected
    assert np.abs(difference).sum() <= 2


@pytest.mark.parametrize("augmentation", ON_EVENTS, ids=repr)
@pytest.mark.parametrize("count", [800, 2, 1, 0])
def test_events_stay_events(augmentation: Augmentation, count: int) -> None:
    events = make_recording(1, 800)[:count]
    before = events.copy()
    for seed in range(8):
        moved = augmentation(events, generator(seed), (*SIZE, 2))
        np.testing.assert_array_equal(moved, augmentation(events, generator(seed), SIZE))
        np.testing.assert_array_equal(events, before)
        assert moved.dtype == events.dtype
        width, height = augmentation.output_size(SIZE)
        assert (np.diff(moved["t"]) >= 0).all()
        if len(moved):
            assert moved["t"][0] >= events["t"][0]
            assert moved["t"][-1] <= max(events["t"][-1], events["t"][0] + 1)
            assert 0 <= moved["x"].min() <= moved["x"].max() < width
            assert 0 <= moved["y"].min() <= moved["y"].max() < height
            assert set(np.unique(moved["p"])) <= {0, 1}


@pytest.mark.parametrize("augmentation", [TimeJitter(500), SpatialJitter(1)], ids=repr)
def test_jitter_moves_single_events_by_its_deviation(augmentation: Augmentation) -> None:
    count = 4_000
    events = make_events(np.arange(count) * 10_000, np.full(count, 11), np.full(count, 8), np.zeros(count))
    moved = augmentation(events, generator(), SIZE)
    assert len(moved) == count
    if isinstance(augmentation, TimeJitter):
        assert 450 < (moved["t"] - events["t"]).std() < 550
    else:
        assert (moved["t"] == events["t"]).all()
        assert all(0.95 < moved[axis].astype(float).std() < 1.15 for axis in "xy")  # rounding adds 1/12 of variance
    with pytest.raises(ArgumentError, match="works on events"):
        augmentation(make_frames(), generator())


@pytest.mark.parametrize("size", [(33, 33), (41, 25)], ids=str)
def test_affine_takes_frames_and_events_to_the_same_places(size: tuple[int, int]) -> None:
    """Single events near the middle, under rotation, scale, shear and shift, beside geometry in pixels."""
    width, height = size
    affine = Affine(30, 0.2, 3, shear=20)
    for seed in range(30):
        draw = affine.draw(generator(seed), 1, size)
        x, y = 10 + seed % 9, 8 + seed % 7
        (moved,) = affine.apply(make_events([0], [x], [y], [1]), draw)
        frames = torch.zeros(1, 1, 2, height, width)
        frames[0, 0, 1, y, x] = 1
        spot = affine.apply(frames, draw)[0, 0, 1]
        mass = spot.sum()
        at_x, at_y = (spot.sum(0) * torch.arange(width)).sum() / mass, (spot.sum(1) * torch.arange(height)).sum() / mass
        assert abs(at_x - moved["x"]) < 0.9
        assert abs(at_y - moved["y"]) < 0.9


def test_affine_rotates_circles_to_circles_on_any_sensor() -> None:
    """Distances from the middle survive a rotation, on a sensor that is not square too."""
    affine = Affine(90, 0, 0)
    x, y = np.array([30, 20, 45, 33]), np.array([14, 4, 15, 24])
    for seed in range(10):
        draw = affine.draw(generator(seed), 1, (64, 32))
        moved = affine.apply(make_events(np.arange(4), x, y, np.ones(4)), draw)
        radii = np.hypot(x - 31.5, y - 15.5)[moved["t"]]
        np.testing.assert_allclose(np.hypot(moved["x"] - 31.5, moved["y"] - 15.5), radii, atol=0.8)


def test_nearest_and_bilinear_agree_where_nothing_is_between_pixels() -> None:
    frames = make_frames()
    theta = torch.tensor([[[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]]])
    square = frames[..., :17]
    draw = Draw(1, (17, 17), {"theta": theta})
    nearest = Affine(interpolation="nearest").apply(square, draw)
    assert nearest.dtype == torch.uint8
    torch.testing.assert_close(Affine().apply(square, draw), nearest.float(), atol=1e-4, rtol=0)
    assert torch.equal(nearest, torch.rot90(square, 1, (3, 4)))


def test_time_shift_and_warp_keep_events_in_their_place_in_time() -> None:
    frames = torch.zeros(10, 1, 2, 2, 2)
    frames[4] = 1
    shift = TimeShift(0.5)
    for later, place in ((0.2, 6), (-0.3, 1), (0.04, 4), (0.06, 5)):
        moved = shift.apply(frames, Draw(1, (2, 2), {"later": torch.tensor([later])}))
        assert moved.sum((1, 2, 3, 4)).nonzero().flatten().tolist() == [place]
    assert not shift.apply(frames, Draw(1, (2, 2), {"later": torch.tensor([0.7])})).any()

    warp = TimeWarp(0.9, (1, 1))
    ramp = torch.rand(10, 4, 2, 3, 3, generator=generator())
    warped = warp(ramp, generator())
    torch.testing.assert_close(warped.sum(0), ramp.sum(0))  # with a speed of 1 nothing leaves
    assert not torch.allclose(warped, ramp)
    still = Draw(1, (3, 3), {"a": torch.zeros(1), "b": torch.zeros(1), "speed": torch.ones(1)})
    torch.testing.assert_close(warp.apply(ramp, still), ramp)
    slow = Draw(1, (3, 3), {"a": torch.zeros(1), "b": torch.zeros(1), "speed": torch.full((1,), 2.0)})
    halves = ramp[:5].repeat_interleave(2, 0) / 2
    torch.testing.assert_close(warp.apply(ramp, slow), halves)
    events = make_events(np.arange(0, 1001, 10), np.zeros(101), np.zeros(101), np.zeros(101))
    assert warp.apply(events, slow)["t"].tolist() == list(range(0, 1001, 20))


def test_drops_are_of_the_size_that_was_asked_for() -> None:
    frames = torch.full((40, 50, 2, 40, 40), 3, dtype=torch.uint8)
    kept = DropEvents((0.3, 0.3))(frames, generator()).float().mean() / 3
    assert 0.695 < kept < 0.705
    cells = DropEvents((0.3, 0.3))(frames.float(), generator())
    assert set(cells.unique().tolist()) == {0.0, 3.0}
    assert 0.695 < cells.mean() / 3 < 0.705

    area = DropArea((0.5, 0.5))(frames, generator())
    sizes = (area[0, :, 0] == 0).sum((1, 2))
    assert sizes.max() == 400  # 20 x 20 where the border cuts nothing off
    assert sizes.min() > 50

    time = DropTime((0.4, 0.4))(frames, generator())
    lost = (time.sum((2, 3, 4)) == 0).sum(0)
    assert lost.max() == 16
    gaps = time[:, :, 0, 0, 0].int().diff(dim=0).ne(0).sum(0)
    assert gaps.max() == 2  # one interval
    everything = Draw(1, (40, 40), {"start": torch.zeros(1), "end": torch.ones(1) * 2})
    assert torch.equal(DropTime().apply(frames, everything), frames)


def test_noise_is_poisson_and_clips() -> None:
    added = Noise(0.5)(torch.zeros(4, 60, 2, 20, 30, dtype=torch.uint8), generator()).sum((0, 2, 3, 4)).double()
    assert abs(added.mean() - 300) < 10
    assert 11 < added.std() < 25
    full = torch.full((1, 2, 2, 5, 5), 255, dtype=torch.uint8)
    assert torch.equal(Noise(3.0)(full, generator()), full)
    events = make_recording()
    counts = [len(Noise(0.5)(events, generator(seed), SIZE)) - len(events) for seed in range(60)]
    assert abs(np.mean(counts) - 0.5 * SIZE[0] * SIZE[1]) < 8


def test_polarity_needs_two_of_them() -> None:
    with pytest.raises(ArgumentError, match="2 polarities, got 1"):
        PolarityFlip(1.0)(make_frames()[:, :, :1], generator())


BAD: dict[str, tuple[Callable[[], object], str]] = {
    "policy": (lambda: policy("mnist"), "augment must be one of none, affine, .* got 'mnist'"),
    "pixels": (lambda: Shift(-1), "pixels must lie in 0 .. 32768, got -1"),
    "p": (lambda: Flip(1.5), "p must lie in 0 .. 1, got 1.5"),
    "nan": (lambda: Noise(float("nan")), "rate must lie in"),
    "axis": (lambda: Flip(axis="t"), "axis must be 'x' or 'y', got 't'"),  # type: ignore[arg-type]
    "classes": (lambda: Flip(classes=(0, 0)), "permutation"),
    "interpolation": (lambda: Affine(interpolation="cubic"), "interpolation must be"),  # type: ignore[arg-type]
    "pair": (lambda: DropTime((0.5, 0.2)), r"ratio must be \(least, most\)"),
    "strength": (lambda: TimeWarp(1.0), "strength must lie in"),
    "weights": (lambda: OneOf([Shift()], [0]), "and one positive"),
    "no choice": (lambda: OneOf([]), "at least one each"),
    "magnitude": (lambda: nda(magnitude=9), "magnitude must lie in 1 .. 6"),
    "size changes": (lambda: OneOf([Crop(5, 5)])(make_frames(), generator()), "changes the size"),
    "crop": (lambda: Crop(50, 5)(make_frames(), generator()), "the frames are 23 x 17"),
    "4-d": (lambda: Shift()(make_frames()[0], generator()), r"frames must be \[T, B, C, H, W\]"),
    "count": (lambda: Shift().apply(make_frames(), Shift().draw(generator(), 5, SIZE)), "draw is for 5 samples"),
    "size": (lambda: Shift().apply(make_frames(), Shift().draw(generator(), 1, (5, 5))), "the draw is for 5 x 5"),
    "events size": (lambda: Shift()(make_recording(), generator()), "give"),
    "events off": (lambda: Shift()(make_recording(), generator(), (9, 9)), "x of the events must lie in 0..8"),
    "events draw": (lambda: Shift().apply(make_recording(), Shift().draw(generator(), 2, SIZE)), "draw of one sample"),
    "list": (lambda: Shift().apply([1], Shift().draw(generator(), 1, SIZE)), "got list"),  # type: ignore[type-var]
    "relabel": (
        lambda: Flip(1.0, classes=(1, 0)).relabel(torch.tensor([2]), Flip(1.0).draw(generator(), 1, SIZE)),
        "classes has 2 entries, labels lie in 2..2",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_named(case: str) -> None:
    call, message = BAD[case]
    with pytest.raises(ArgumentError, match=message):
        call()


def test_deterministic_transforms_of_events_equal_tonics() -> None:
    transforms = pytest.importorskip("tonic.transforms")
    events = make_recording(3)
    size = (*SIZE, 2)
    for ours, theirs in (
        (Flip(1.0), transforms.RandomFlipLR(size, p=1)),
        (Flip(1.0, "y"), transforms.RandomFlipUD(size, p=1)),
        (PolarityFlip(1.0), transforms.RandomFlipPolarity(p=1)),
        (TimeReverse(1.0), transforms.RandomTimeReversal(p=1)),
    ):
        moved, expected = ours(events, generator(), size), theirs(events)
        for name in "xyp":
            np.testing.assert_array_equal(moved[name], expected[name])
        # tonic counts the reverse from 0, here it keeps the first time stamp.
        np.testing.assert_array_equal(moved["t"] - moved["t"][0], expected["t"] - expected["t"][0])
