"""Losses on logits per time step."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def classification_loss(
    logits: Tensor, labels: Tensor, *, tet_weight: float = 0.5, label_smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy of the time-averaged logits, mixed with the mean cross-entropy of every step.

    ``(1 - tet_weight) * CE(mean_t logits[t]) + tet_weight * mean_t CE(logits[t])``

    Args:
        logits: ``[T, B, K]``.
        labels: ``[B]`` int64, or ``[B, K]`` float: probabilities, as mixed samples have.
        tet_weight: 0 is rate cross-entropy, 1 temporal efficient training without its regulariser.
        label_smoothing: passed on to the cross-entropy.

    Returns:
        A scalar.

    Source: Deng et al., Temporal Efficient Training of Spiking Neural Network via Gradient Re-weighting, ICLR 2022.
    """
    steps = logits.shape[0]
    logits = logits.float()
    loss = logits.new_zeros(())
    if tet_weight < 1:
        mean = functional.cross_entropy(logits.mean(0), labels, label_smoothing=label_smoothing)
        loss = loss + (1 - tet_weight) * mean
    if tet_weight > 0:
        repeated = labels.repeat(steps, *(1,) * (labels.ndim - 1))
        each = functional.cross_entropy(logits.flatten(0, 1), repeated, label_smoothing=label_smoothing)
        loss = loss + tet_weight * each
    return loss
