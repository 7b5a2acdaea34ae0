"""Accuracy and logits of a classifier on a set of event frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from snn_core.datasets.loader import Frames


def predict_logits(model: nn.Module, dataset: Frames, batch_size: int = 100) -> Tensor:
    """Time-averaged logits ``[num, K]`` (float32, on the CPU) in evaluation mode; the model's mode is restored.

    Nothing is augmented, nor are the events of an EventFrameDataset.
    """
    from snn_core.datasets import EventFrameDataset, FrameLoader

    if isinstance(dataset, EventFrameDataset):
        dataset = dataset.plain()

    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            loader = FrameLoader(dataset, batch_size, shuffle=False, dtype=None, device=device)
            parts = [model(frames).float().cpu() for frames, _ in loader]
    finally:
        model.train(was_training)
    return torch.cat(parts)


def evaluate_accuracy(model: nn.Module, dataset: Frames, batch_size: int = 100) -> float:
    """Fraction of samples whose largest logit is the label's."""
    return (predict_logits(model, dataset, batch_size).argmax(1) == dataset.labels).float().mean().item()
