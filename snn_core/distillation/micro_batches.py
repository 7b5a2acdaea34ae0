"""A loss over the features of all samples, its gradient computed a few samples at a time.

Source: Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (GradCache), 2021.
Features of all micro-batches are computed without a graph, the loss and its gradient on them; then each micro-batch
passes again with a graph, which takes that gradient to its frames. What is kept is features, and the
graph of one micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Collect = Callable[[Tensor], list[Tensor]]


def backward_in_batches(
    frames: Tensor, collect: Collect, loss_of: Callable[[list[Tensor]], Tensor], micro_batch: int | None
) -> Tensor:
    """Compute ``loss_of(collect(frames))`` and take its gradient to whatever ``frames`` come from.

    Args:
        frames: ``[T, N, ...]``, floating point, in an autograd graph. collect: frames of any N -> features
            ``[T, N, D]``, one tensor a layer; samples must not see each other. loss_of: scalar loss of the features of
            all samples. micro_batch: samples a pass; None: all at once.

    Returns:
        The loss, detached. Equal to that of one batch, but for rounding, whatever ``micro_batch`` is.
    """
    if micro_batch is None or frames.shape[1] <= micro_batch:
        loss = loss_of(collect(frames))
        loss.backward()
        return loss.detach()
    batches = frames.detach().split(micro_batch, 1)
    with torch.no_grad():
        parts = [collect(batch) for batch in batches]
    features = [torch.cat(layer, 1).requires_grad_() for layer in zip(*parts, strict=True)]
    del parts
    loss = loss_of(features)
    loss.backward()
    wanted = [torch.zeros_like(layer) if layer.grad is None else layer.grad for layer in features]
    gradients, start = [], 0
    for batch in batches:
        leaf = batch.clone().requires_grad_()
        stop = start + batch.shape[1]
        torch.autograd.backward(collect(leaf), [layer[:, start:stop] for layer in wanted])
        gradients.append(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad)
        start = stop
    frames.backward(torch.cat(gradients, 1))
    return loss.detach()
