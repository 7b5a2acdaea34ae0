"""Training from disk and with every policy."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from snn_core.backbones import create
from snn_core.datasets import load_frames, open_frames
from snn_core.datasets.augment import POLICIES, Affine, Shift, one_hot
from snn_core.errors import ArgumentError
from snn_core.training import TrainConfig, augment_batch, classification_loss, evaluate_accuracy, train_classifier


def test_frames_on_disk_train_the_same_network() -> None:
    options = {"T": 2, "limit": 40, "quiet": True}
    sets = (load_frames("digits-dvs", "train", **options), open_frames("digits-dvs", "train", **options))  # type: ignore[arg-type]
    trained = []
    for data in sets:
        model = create("conv-snn", seed=0, channels=[4, 4], input_size=(34, 34))
        config = TrainConfig(epochs=2, batch_size=15, augment="event-drop")
        result = train_classifier(model, data, config, val_set=data, quiet=True)
        trained.append((model.state_dict(), result.history, evaluate_accuracy(model, data, 7)))
    (first, history, accuracy), (second, other_history, other_accuracy) = trained
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert history == other_history
    assert accuracy == other_accuracy == history[-1]["val_accuracy"]


def test_every_policy_can_be_configured() -> None:
    assert set(get_args(TrainConfig.model_fields["augment"].annotation)) == set(POLICIES)


def test_augment_batch_is_a_policy_by_name() -> None:
    frames = torch.rand(2, 5, 2, 12, 12, generator=torch.Generator().manual_seed(0))
    for kind, augmentation in (("affine", Affine()), ("shift", Shift())):
        moved = augment_batch(frames, kind, torch.Generator().manual_seed(1))
        assert torch.equal(moved, augmentation(frames, torch.Generator().manual_seed(1)))
    assert augment_batch(frames, "none", torch.Generator()) is frames
    with pytest.raises(ArgumentError, match="changes labels"):
        augment_batch(frames, "dvs-gesture-mirror", torch.Generator())
    with pytest.raises(ArgumentError, match="got 'mirror'"):
        augment_batch(frames, "mirror", torch.Generator())


def test_soft_labels_of_one_class_are_that_label() -> None:
    logits, labels = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 4
    hard = classification_loss(logits, labels, tet_weight=0.3, label_smoothing=0.1)
    soft = classification_loss(logits, one_hot(labels, 4), tet_weight=0.3, label_smoothing=0.1)
    torch.testing.assert_close(hard, soft)


@pytest.mark.parametrize("mix", ["cutmix", "eventmix"])
def test_mixed_samples_train(mix: str) -> None:
    data = load_frames("digits-dvs", "train", T=2, limit=40, quiet=True)
    losses = {}
    for name in ("none", mix):
        model = create("conv-snn", seed=0, channels=[4, 4], input_size=(34, 34))
        config = TrainConfig.model_validate({"epochs": 3, "batch_size": 10, "mix": name, "augment": "none"})
        losses[name] = [record["loss"] for record in train_classifier(model, data, config, quiet=True).history]
    assert losses[mix] != losses["none"]
    assert losses[mix][-1] < losses[mix][0]
