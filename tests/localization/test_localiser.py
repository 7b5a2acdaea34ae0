"""Head, assignment, loss and decoding on made-up maps; a small real training that beats what needs no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from snn_core.backbones import create
from snn_core.backbones.encoder import FrameEncoder
from snn_core.backbones.features import Backbone, FeatureInfo
from snn_core.datasets import BoxDataset, FrameDataset
from snn_core.errors import ArgumentError, CheckpointError
from snn_core.localization import (
    Detections,
    HeadMaps,
    Localiser,
    LocalizationConfig,
    decode,
    detect_all,
    detect_steps,
    evaluate_detections,
    localization_loss,
    train_localiser,
    training,
)
from snn_core.localization.head import LeakyMean, default_levels
from snn_core.localization.loss import assign
from snn_core.localization.training import cropped, one_cycle, shifted
from snn_core.neurons import LIF
from snn_core.seeding import make_generator

SIDE = 16


def backbone(**options: object) -> Backbone:
    small = {"input_size": [SIDE, SIDE], "channels": [8, 16], "stem_stride": 1, "pools": [2, 1], "stem_kernel": 3}
    return create("conv-snn", features_only=True, **small | options)  # type: ignore[return-value]


def maps_of(boxes: Tensor, labels: Tensor, stride: int = 4, side: int = 16, classes: int = 3) -> HeadMaps:
    """Maps that say exactly what is there: logits of +-20 at the places that are responsible."""
    number, cells = len(boxes), side // stride
    maps = HeadMaps(
        torch.full((number, cells, cells), -20.0), torch.zeros(number, classes, cells, cells),
        torch.ones(number, 4, cells, cells), stride,
    )  # fmt: skip
    sample, place, found, _ = assign(maps.points(), boxes, labels, stride)
    maps.objectness.flatten(1)[sample, place] = 20
    maps.class_logits.flatten(2)[sample, labels[sample, found], place] = 20
    points, true = maps.points()[place], boxes[sample, found]
    maps.distances.flatten(2)[sample, :, place] = torch.cat([points - true[:, :2], true[:, 2:] - points], 1)
    return maps


BOXES = torch.tensor([[[1.0, 1, 7, 9], [9, 8, 15, 15]], [[4, 5, 12, 11], [0, 0, 0, 0]]])
LABELS = torch.tensor([[2, 0], [1, -1]])


def test_what_maps_say_is_decoded() -> None:
    one, two = decode(maps_of(BOXES, LABELS), 16, 16)
    assert sorted(zip(one.labels.tolist(), one.boxes.tolist(), strict=True)) == [
        (0, [9, 8, 15, 15]), (2, [1, 1, 7, 9]),
    ]  # fmt: skip
    assert two.labels.tolist() == [1]
    torch.testing.assert_close(two.boxes, BOXES[1, :1])
    assert one.scores.min() > 0.99
    assert decode(maps_of(BOXES, LABELS), 16, 10)[0].boxes[:, 2].max() == 10
    assert [len(found.boxes) for found in decode(maps_of(BOXES, LABELS), 16, 16, most=1)] == [1, 1]


def test_loss_is_least_where_the_maps_are_right() -> None:
    right = localization_loss(maps_of(BOXES, LABELS), BOXES, LABELS)
    assert max(part.item() for part in right) < 1e-4
    for name, worse in {
        "boxes": localization_loss(maps_of(BOXES + 1, LABELS), BOXES, LABELS),
        "classes": localization_loss(
            maps_of(BOXES, (LABELS + 1) % 3 * LABELS.ge(0) - LABELS.lt(0).long()), BOXES, LABELS
        ),
        "objectness": localization_loss(maps_of(BOXES.flip(0), LABELS.flip(0)), BOXES, LABELS),
    }.items():
        assert getattr(worse, name) > 0.1, name
    with pytest.raises(ArgumentError, match=r"must be \[2, objects, 4\] and \[2, objects\], got \[1, 2, 4\] and"):
        localization_loss(maps_of(BOXES, LABELS), BOXES[:1], LABELS)


def test_loss_without_any_object() -> None:
    maps = maps_of(BOXES, LABELS)
    logits = maps.objectness.clone().requires_grad_()
    losses = localization_loss(HeadMaps(logits, *maps[1:]), BOXES, torch.full_like(LABELS, -1))
    losses.total().backward()
    assert losses.classes == losses.boxes == 0
    assert logits.grad is not None
    assert (logits.grad >= 0).all()


def test_places_belong_to_the_nearest_object() -> None:
    points = maps_of(BOXES, LABELS, stride=2).points()
    boxes = torch.tensor([[[2.0, 2, 8, 8], [4, 2, 10, 8], [15.4, 15.4, 15.6, 15.6]]])
    sample, place, found, central = assign(points, boxes, torch.tensor([[0, 1, 2]]), 2)
    assert sample.tolist() == [0] * len(place)
    middles = (boxes[0, :, :2] + boxes[0, :, 2:]) / 2
    for where, which, learns in zip(points[place], found, central, strict=True):
        distance = (where - middles).abs().amax(1)
        assert distance[which] == distance.min()
        assert distance[which] <= 2
        assert learns == (distance[which] <= 1.5)
    assert not central.all()
    assert sorted(set(found.tolist())) == [0, 1, 2]  # the last, smaller than a place, has the nearest one


def test_memory_looks_back_only() -> None:
    memory, x = LeakyMean(3), torch.rand(5, 2, 3, 2, 2)
    with torch.no_grad():
        memory.leak.copy_(torch.tensor([-2.0, 0, 1]))
    kept = torch.tensor([-2.0, 0, 1]).sigmoid().view(3, 1, 1)
    expected = sum((1 - kept) * kept ** (4 - step) * x[step] for step in range(5))
    torch.testing.assert_close(memory(x)[-1], expected)
    changed = x.clone()
    changed[3:] = 0
    torch.testing.assert_close(memory(changed)[:3], memory(x)[:3])


@pytest.mark.parametrize("levels", [None, [0], [0, 1]])
def test_shapes_and_gradients(levels: list[int] | None) -> None:
    model = Localiser(backbone(pools=[2, 2]), 3, levels, channels=12)
    assert model.levels == {None: (1,), (0,): (0,), (0, 1): (0, 1)}[None if levels is None else tuple(levels)]
    stride = model.head.stride
    frames = (torch.rand(3, 2, 2, SIDE, SIDE) < 0.3).to(torch.uint8)
    maps = model(frames)
    cells = SIDE // stride
    assert [tuple(values.shape) for values in maps[:3]] == [
        (6, cells, cells), (6, 3, cells, cells), (6, 4, cells, cells),
    ]  # fmt: skip
    localization_loss(maps, BOXES.repeat(3, 1, 1), LABELS.repeat(3, 1)).total().backward()
    left_out = [name for name, values in model.named_parameters() if values.grad is None]
    unused = [f"backbone.blocks.1.{part}" for part in ("conv.weight", "norm.weight", "norm.bias")]
    assert left_out == (unused if levels == [0] else [])
    model.eval()
    first, again = model.detect(frames), model.detect(frames)
    assert all(torch.equal(a.boxes, b.boxes) for a, b in zip(first, again, strict=True))
    assert len(model.detect(frames, step=0)) == 2


class Plain(Backbone):
    """One convolution; no spikes, no time."""

    spiking = False

    def __init__(self) -> None:
        super().__init__()
        self.feature_info = [FeatureInfo(6, 4, "conv")]
        self.conv = torch.nn.Conv2d(2, 6, 4, 4)

    def forward_features(self, x: Tensor) -> list[Tensor]:
        assert x.ndim == 4
        return [self.conv(x)]


def test_a_backbone_without_time_sees_every_step() -> None:
    model = Localiser(Plain(), 3)
    maps = model(torch.ones(3, 2, 2, SIDE, SIDE, dtype=torch.uint8))
    assert maps.objectness.shape == (6, 4, 4)
    assert not any(isinstance(module, LIF) for module in model.modules())


def test_default_levels() -> None:
    def of(*strides: int) -> list[int]:
        return default_levels([FeatureInfo(1, stride, "x") for stride in strides])

    assert (of(4, 8, 8), of(2, 4), of(4, 8, 16, 32), of(16)) == ([2], [1], [1], [0])


def test_refused() -> None:
    for levels in ([], [2], [-1], ["a"]):
        with pytest.raises(ArgumentError, match=r"levels must be some of 0\.\.1, got"):
            Localiser(backbone(), 3, levels)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="average_features=False"):
        Localiser(backbone(average_features=True), 3)
    with pytest.raises(ArgumentError, match=r"step must lie in -3\.\.2, got 3"):
        Localiser(backbone(), 3).detect(torch.zeros(3, 1, 2, SIDE, SIDE, dtype=torch.uint8), step=3)
    with pytest.raises(ArgumentError, match=r"expected \[T, B, C, H, W\]"):
        Localiser(backbone(), 3).detect(torch.zeros(1, 2, SIDE, SIDE))
    with pytest.raises(ArgumentError, match="train_set has 2 classes; the model knows 1"):
        train_localiser(Localiser(backbone(), 1), squares(2, seed=0), LocalizationConfig(), quiet=True)


def squares(number: int, seed: int, T: int = 3) -> BoxDataset:
    """One or two squares of 5 pixels that go right: hollow ones (class 0), or crosses (class 1)."""
    generator = make_generator(seed, "squares")
    ring = torch.ones(5, 5, dtype=torch.uint8)
    ring[1:4, 1:4] = 0
    cross = torch.eye(5, dtype=torch.uint8) | torch.eye(5, dtype=torch.uint8).flip(0)
    frames = (torch.rand(number, T, 2, SIDE, SIDE, generator=generator) < 0.02).to(torch.uint8)
    boxes = torch.zeros(number, T, 2, 4)
    labels = torch.randint(0, 2, (number, 2), generator=generator)
    labels[torch.rand(number, generator=generator) < 0.5, 1] = -1
    places = torch.randint(0, 4, (number, 2), generator=generator)
    starts = torch.randint(0, SIDE - 5 - T, (number, 2), generator=generator)
    for sample in range(number):
        for thing in range(int((labels[sample] >= 0).sum())):
            y = int(places[sample, thing]) + 7 * thing
            for step in range(T):
                x = int(starts[sample, thing]) + step
                frames[sample, step, 1, y : y + 5, x : x + 5] |= cross if labels[sample, thing] else ring
                boxes[sample, step, thing] = torch.tensor([x, y, x + 5, y + 5])
    ids = [str(index) for index in range(number)]
    known = FrameDataset(
        frames, labels[:, 0], ids, class_names=["ring", "cross"], name="squares", simulated=True, content_key=str(seed)
    )
    return BoxDataset(known, boxes, labels, torch.arange(number) % 2)


def test_shifts_keep_boxes_on_what_they_show() -> None:
    data = squares(20, seed=5)
    clean = data.frames.frames.transpose(0, 1).clone()
    boxes = data.boxes.transpose(0, 1)
    frames, moved = shifted(clean, boxes, data.labels, 3, make_generator(0))
    changes = set()
    for sample, labels in enumerate(data.labels.tolist()):
        for thing in range(2):
            if labels[thing] < 0:
                assert moved[:, sample, thing].abs().max() == 0
                continue
            x, y, right, bottom = moved[-1, sample, thing].int().tolist()
            a, b, c, d = boxes[-1, sample, thing].int().tolist()
            assert min(x, y) >= 0
            assert max(right, bottom) <= SIDE
            assert torch.equal(frames[-1, sample, :, y:bottom, x:right], clean[-1, sample, :, b:d, a:c])
            changes.add((x - a, y - b))
    assert len(changes) > 5
    assert max(abs(value) for change in changes for value in change) == 3


def test_squares_hold_an_object() -> None:
    data = squares(40, seed=6)
    frames, boxes, labels = cropped(
        data.frames.frames.transpose(0, 1), data.boxes.transpose(0, 1), data.labels, 9, make_generator(0)
    )
    assert frames.shape == (3, 40, 2, 9, 9)
    assert labels.shape == (3, 40, 2)
    whole = ((boxes >= 0) & (boxes <= 9)).all(-1) & (labels >= 0)
    assert whole[-1].any(1).all()
    corners = set()
    for sample, thing in torch.nonzero(whole[-1]).tolist():
        x, y, right, bottom = boxes[-1, sample, thing].int().tolist()
        a, b, c, d = data.boxes[sample, -1, thing].int().tolist()
        assert torch.equal(frames[-1, sample, :, y:bottom, x:right], data.frames.frames[sample, -1, :, b:d, a:c])
        corners.add((x, y))
    assert len(corners) > 5
    middles = (boxes[..., :2] + boxes[..., 2:]) / 2
    assert torch.equal(labels >= 0, (data.labels >= 0) & ((middles >= 0) & (middles < 9)).all(-1))
    assert (labels[:, data.labels[:, 1] >= 0, 1] < 0).any()  # the other one of some lies outside


def middle_of_events(data: BoxDataset) -> list[Detections]:
    """A box of the right size round the middle of the last step's events, of the commoner class."""
    counts = data.frames.frames[:, -1].float().sum(1)
    total = counts.sum((1, 2))
    at = torch.arange(SIDE) + 0.5
    middle = torch.stack([(counts.sum(1) * at).sum(1) / total, (counts.sum(2) * at).sum(1) / total], 1)
    boxes = torch.cat([middle - 2.5, middle + 2.5], 1)
    return [Detections(box[None], torch.ones(1), torch.zeros(1, dtype=torch.int64)) for box in boxes]


CONFIG = LocalizationConfig(epochs=6, batch_size=25, learning_rate=1e-2, shift=2)


def trained(train: BoxDataset) -> Localiser:
    model = Localiser(backbone(), 2, [1], channels=16)
    history = train_localiser(model, train, CONFIG, quiet=True)
    assert history[-1]["boxes"] < history[0]["boxes"]
    return model


def test_learns_where_and_what() -> None:
    train, test = squares(250, seed=0), squares(60, seed=1)
    model = trained(train)
    found = evaluate_detections(detect_all(model, test), test).mean(0.5)
    without = evaluate_detections(middle_of_events(test), test).mean(0.5)
    assert without < 0.4
    assert found > 0.7


def small_net() -> Localiser:
    model = Localiser(backbone(), 2, [1], channels=4, class_channels=6)
    model.backbone.encoder = FrameEncoder(2, None, "log1p")
    generator = make_generator(0, "weights")
    for values in model.parameters():
        if values.ndim > 1:
            values.data = 0.3 * torch.randn(values.shape, generator=generator)
    return model


def same(state: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(state[key], other[key]) for key in state)


SHORT = LocalizationConfig(epochs=3, batch_size=10, shift=2, crop=12, full=0.4)


def test_interrupted_training_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also: the same seed gives the same network."""
    train, path = squares(30, seed=0), tmp_path / "state.safetensors"
    model = small_net()
    history = train_localiser(model, train, SHORT, quiet=True)
    calls, step = [], training._step

    def fails(*arguments: Any) -> Tensor:
        calls.append(arguments[2][0].shape[-1])
        if len(calls) == 5:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(training, "_step", fails)
    with pytest.raises(KeyboardInterrupt):
        train_localiser(small_net(), train, SHORT, state_path=path, quiet=True)
    again = small_net()
    with pytest.raises(CheckpointError, match=r"state.safetensors is of a training with other settings"):
        train_localiser(again, train, SHORT.model_copy(update={"epochs": 4}), state_path=path, quiet=True)
    rest = train_localiser(again, train, SHORT, state_path=path, quiet=True)
    assert calls[5:] == [12] * 3 + [SIDE] * 3  # two epochs are left, of which the last sees the whole field
    assert [{**record, "seconds": 0} for record in rest] == [{**record, "seconds": 0} for record in history]
    assert same(model.state_dict(), again.state_dict())
    finished = small_net()
    train_localiser(finished, train, SHORT, state_path=path, quiet=True)
    assert same(model.state_dict(), finished.state_dict())
    assert len(calls) == 11


def test_bfloat16_learns_too() -> None:
    config = SHORT.model_copy(update={"precision": "bfloat16", "learning_rate": 1e-2})
    model = small_net()
    history = train_localiser(model, squares(30, seed=0), config, quiet=True)
    assert history[-1]["boxes"] < history[0]["boxes"]
    assert {values.dtype for values in model.parameters()} == {torch.float32}


def test_learning_rate() -> None:
    rates = [one_cycle(step / 100, 0.2) for step in range(101)]
    assert rates[0] == pytest.approx(1 / 25)
    assert rates[20] == 1
    assert rates == [*sorted(rates[:20]), *sorted(rates[20:], reverse=True)]
    assert one_cycle(0, 0) == 1
    assert rates[-1] == pytest.approx(0)


def test_steps_from_one_pass() -> None:
    data = squares(12, seed=2)
    model = small_net().eval()
    found = detect_steps(model, data, [0, -1], batch_size=5)
    for step, one in zip((0, 2), found, strict=True):
        for a, b in zip(one, detect_all(model, data, step=step, batch_size=5), strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert any(len(a.boxes) for a in found[0])
    assert any(a.scores.tolist() != b.scores.tolist() for a, b in zip(*found, strict=True))
