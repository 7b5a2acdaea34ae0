"""Detectors: heads, losses, the task, and that adapters learn it through compressed weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snn_core.backbones import Backbone, FeatureInfo, create
from snn_core.detectors import (
    Detection,
    Detector,
    ImageHead,
    MaskHead,
    detection_loss,
    evaluate_detector,
    fit,
    fit_detector,
    scores,
    spliced,
    with_texture,
)
from snn_core.errors import ArgumentError, NonFiniteError
from tests.detectors.networks import TINY, pictures, tiny


class Steps(Backbone):
    """Stands for a spiking backbone: features of two strides for each of T steps."""

    spiking = True
    feature_info = [FeatureInfo(2, 2, "a"), FeatureInfo(4, 8, "b")]  # noqa: RUF012

    def forward_features(self, x: Tensor) -> list[Tensor]:
        return [x[:, :, :1].repeat(1, 1, c, 1, 1)[..., ::s, ::s] for c, s in ((2, 2), (4, 8))]


def test_any_backbone_with_features_serves() -> None:
    detector = Detector(Steps()).eval()
    x = torch.randn(3, 2, 1, 16, 24, generator=torch.Generator().manual_seed(0))
    found = detector(x)
    assert found.image.shape == (2,)
    assert found.mask.shape == (2, 1, 16, 24)
    assert found.adversary is None
    assert found.balance == 0
    torch.testing.assert_close(detector(x.flip(0)).mask, found.mask)  # the mean over time
    with pytest.raises(ArgumentError, match="Linear has no forward_features"):
        Detector(nn.Linear(1, 1))
    with pytest.raises(ArgumentError, match="no feature maps"):
        ImageHead([])
    with pytest.raises(ArgumentError, match="hidden is 0"):
        MaskHead(Steps.feature_info, 0)


def test_all_that_trains_beside_a_spiking_backbone_has_a_gradient() -> None:
    detector = Detector(create("conv-snn", channels=[8, 8], input_size=[16, 16]))
    found = detector(torch.ones(2, 2, 2, 16, 16, dtype=torch.uint8))
    detection_loss(found, torch.ones(2), torch.zeros(2, 1, 16, 16)).backward()
    assert all(parameter.grad is not None for parameter in detector.trained_parameters())
    assert len(detector.trained_parameters()) == len(list(detector.parameters())) - 2  # the read-out's


def test_only_adapters_and_heads_are_optimised_and_change() -> None:
    detector = Detector(tiny(adapters="mixture"))
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    x, mask = pictures(), torch.zeros(3, 1, 16, 16)
    optimizer = torch.optim.Adam(detector.trained_parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        detection_loss(detector.train()(x), torch.tensor([1.0, 0, 1]), mask).backward()
        optimizer.step()
    changed = {name for name, value in detector.state_dict().items() if not torch.equal(value, before[name])}
    assert any("image_head" in name for name in changed)
    assert any("mask_head" in name for name in changed)
    assert any(".adapters." in name for name in changed)
    assert all("_head." in name or ".adapters." in name for name in changed)
    assert {id(p) for p in optimizer.state} <= {id(p) for p in detector.parameters() if p.requires_grad}


def test_loss_is_the_sum_of_its_parts() -> None:
    found = Detection(torch.tensor([1.0, -2]), torch.randn(2, 1, 3, 3), torch.tensor(2.0), torch.tensor([0.5, 1]))
    forged, mask, adversarial = torch.tensor([1, 0]), torch.ones(2, 1, 3, 3), torch.tensor([0, 1])
    bce = F.binary_cross_entropy_with_logits
    likely = found.mask.sigmoid().sum()
    want = bce(found.image, forged.float()) + bce(found.mask, mask) + 0.1 * 2 + 1 - (2 * likely + 1) / (likely + 18 + 1)
    torch.testing.assert_close(detection_loss(found, forged, mask, balance=0.1), want)
    assert found.adversary is not None
    with_adversary = detection_loss(found, forged, mask, balance=0.1, adversarial=adversarial)
    torch.testing.assert_close(with_adversary, want + bce(found.adversary, adversarial.float()))
    with pytest.raises(ArgumentError, match=r"mask has shape \[2, 3, 3\]"):
        detection_loss(found, forged, mask[:, 0])
    with pytest.raises(ArgumentError, match="no adversary detector"):
        detection_loss(found._replace(adversary=None), forged, mask, adversarial=adversarial)


def test_splices_are_where_the_mask_is() -> None:
    plain = with_texture(torch.zeros(40, 1, 16, 16), 3)
    assert torch.equal(plain, with_texture(torch.zeros(40, 1, 16, 16), 3))
    x, forged, mask = spliced(plain, 5)
    assert all(map(torch.equal, spliced(plain, 5), (x, forged, mask)))
    assert not torch.equal(spliced(plain, 6)[0], x)
    assert 8 < forged.sum() < 32
    assert torch.equal(mask.amax((1, 2, 3)), forged)
    outside = mask == 0
    assert torch.equal(x[outside], plain[outside])
    assert (x != plain)[mask > 0].float().mean() > 0.99
    tall, wide = mask.amax(3).sum((1, 2)), mask.amax(2).sum((1, 2))
    assert torch.equal(tall * wide, mask.sum((1, 2, 3)))  # rectangles
    assert set(tall[forged > 0].tolist()) == {5, 6, 7, 8}
    for call in (lambda: spliced(plain[:1], 0), lambda: spliced(plain, 0, (4, 17)), lambda: spliced(plain[0], 0)):
        with pytest.raises(ArgumentError):
            call()


def test_scores() -> None:
    forged, truth = torch.tensor([1.0, 1, 0, 0]), torch.zeros(4, 1, 1, 4)
    truth[:2, ..., :2] = 1
    image, mask = torch.tensor([2.0, -1, -2, 1]), truth.roll(1, -1) - 0.5
    found = scores(image, mask, forged, truth)
    assert found == {"accuracy": 0.5, "auc": 0.75, "f1": 0.5, "iou": pytest.approx(1 / 3)}
    assert scores(torch.zeros(4), mask, forged, truth)["auc"] == 0.5  # ties are no answer


def test_fit_refuses_what_cannot_be_trained() -> None:
    layer = nn.Linear(1, 1)
    with pytest.raises(ArgumentError, match="0 samples"):
        fit(layer, lambda i: layer(i[:, None].float()).sum(), 0)
    with pytest.raises(NonFiniteError, match="at step 0"):
        fit(layer, lambda i: layer.weight.sum() * float("nan"), 4, steps=1)
    with pytest.raises(ArgumentError, match="0 parameters"):
        fit(layer.requires_grad_(False), lambda i: layer.weight.sum(), 4)


def test_adapters_learn_to_find_splices_through_compressed_weights() -> None:
    """A small form of benchmarks/detector.py, on textures alone and without pre-training."""
    one_block = TINY["model_options"] | {"depth": 1}
    blank = torch.zeros(384, 1, 16, 16)
    train, test = (spliced(with_texture(blank, seed, 0.5), seed, (6, 9)) for seed in (1, 2))
    found = {}
    for pattern in (None, "2:4"):
        detector = Detector(tiny(pattern=pattern, adapters="global_local", model_options=one_block), hidden=16)
        fit_detector(detector, train, steps=100, batch_size=24, lr=1.5e-2)
        found[pattern] = evaluate_detector(detector, test)
    for result in found.values():
        assert result["auc"] > 0.9
        assert result["f1"] > 0.4
    assert abs(found[None]["auc"] - found["2:4"]["auc"]) < 0.02  # the benchmark compares more seeds, and pixels
