"""Accuracy and logits of a classifier on a set of event frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from snn_core.datasets import FrameDataset


def predict_logits(model: nn.Module, dataset: FrameDataset, batch_size: int = 100) -> Tensor:
    """Time-averaged logits ``[num, K]`` (float32, on the CPU) in evaluation mode; the model's mode is restored."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            parts = [
                model(dataset.frames[start : start + batch_size].transpose(0, 1).to(device)).float().cpu()
                for start in range(0, len(dataset), batch_size)
            ]
    finally:
        model.train(was_training)
    return torch.cat(parts)


def evaluate_accuracy(model: nn.Module, dataset: FrameDataset, batch_size: int = 100) -> float:
    """Fraction of samples whose largest logit is the label's."""
    return (predict_logits(model, dataset, batch_size).argmax(1) == dataset.labels).float().mean().item()
