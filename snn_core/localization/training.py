"""Training and evaluation of a localiser."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from snn_core.errors import ArgumentError, InterruptedRunError, NonFiniteError
from snn_core.interrupt import deferred_interrupt
from snn_core.localization.average_precision import (
    COCO_THRESHOLDS,
    AveragePrecision,
    average_precision,
    targets_of,
)
from snn_core.localization.detections import Detections
from snn_core.localization.head import Localiser
from snn_core.localization.loss import localization_loss
from snn_core.progress import progress
from snn_core.seeding import make_generator, seeded

if TYPE_CHECKING:
    from snn_core.datasets import BoxDataset


class LocalizationConfig(BaseModel):
    """How a localiser is trained. Unknown keys and wrong types are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    epochs: int = Field(8, ge=1, description="passes over the training set")
    batch_size: int = Field(32, ge=1, description="samples a step")
    learning_rate: float = Field(4e-3, gt=0, description="peak learning rate of AdamW, one cycle")
    weight_decay: float = Field(1e-2, ge=0, description="on tensors of two and more dimensions")
    shift: int = Field(6, ge=0, description="every sample is moved by up to so many pixels, if its boxes stay inside")
    first_step: int = Field(1, ge=0, description="the loss is of this step and those after it")
    clip_norm: float = Field(5.0, gt=0, description="largest norm of the gradient")
    seed: int = Field(0, ge=0, description="of order and shifts")


def shifted(frames: Tensor, boxes: Tensor, labels: Tensor, most: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Samples moved by whole pixels, each by its own draw; what comes in is 0, what leaves is lost.

    Args:
        frames: ``[T, B, C, H, W]``.
        boxes: ``[T, B, objects, 4]``; those of the last step stay inside the field.
        labels: ``[B, objects]``; -1: no object.
        most: pixels along x and along y.
        generator: of the draws.

    Returns:
        Frames and boxes.
    """
    height, width = frames.shape[-2:]
    absent = (labels < 0)[..., None]
    low = boxes[-1, ..., :2].masked_fill(absent, torch.inf).amin(1).clamp(0, most).floor()
    room = torch.tensor([width, height]) - boxes[-1, ..., 2:].masked_fill(absent, -torch.inf).amax(1)
    room = room.clamp(0, most).floor()
    draw = torch.rand(len(labels), 2, generator=generator)
    move = (draw * (low + room + 1)).floor().clamp(max=low + room) - low
    padded = torch.nn.functional.pad(frames, (most, most, most, most))
    moved = torch.empty_like(frames)
    for sample, (x, y) in enumerate(move.int().tolist()):
        moved[:, sample] = padded[:, sample, :, most - y : most - y + height, most - x : most - x + width]
    return moved, boxes + move.repeat(1, 2)[:, None] * (~absent)


def train_localiser(
    model: Localiser, train_set: BoxDataset, config: LocalizationConfig, *, name: str = "train", quiet: bool = False
) -> list[dict[str, float]]:
    """Train ``model`` in place, on its own device; the same seed and initial model give the same result.

    Returns:
        One record an epoch: mean loss and its parts, seconds.

    Raises:
        ArgumentError: the data set has more classes than the model.
        NonFiniteError: the loss became NaN or infinite.
        InterruptedRunError: Ctrl-C or SIGTERM; nothing is saved.
    """
    if train_set.num_classes > model.head.num_classes:
        raise ArgumentError(f"train_set has {train_set.num_classes} classes; the model knows {model.head.num_classes}")
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate)
    per_epoch = math.ceil(len(train_set) / config.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=per_epoch * config.epochs, pct_start=0.2, cycle_momentum=False
    )
    device = next(model.parameters()).device
    history = []
    model.train()
    with deferred_interrupt() as interrupted:
        bar = progress(range(config.epochs), description=name, quiet=quiet)
        for epoch in bar:
            started, sums = time.perf_counter(), torch.zeros(3)
            order = torch.randperm(len(train_set), generator=make_generator(config.seed, "order", epoch))
            for step, chosen in enumerate(order.split(config.batch_size)):
                generator = make_generator(config.seed, "shift", epoch, step)
                with seeded(config.seed, "dropout", epoch, step):
                    sums += _step(model, optimizer, _batch(train_set, chosen, config, generator), config, device)
                schedule.step()
                if interrupted:
                    raise InterruptedRunError(f"{name}: interrupted in epoch {epoch + 1} of {config.epochs}")
            means = (sums / per_epoch).tolist()
            history.append(dict(zip(("objectness", "classes", "boxes"), means, strict=True)))
            history[-1] |= {"epoch": epoch + 1, "seconds": time.perf_counter() - started}
            bar.set_postfix(**{key: f"{value:.3f}" for key, value in history[-1].items()})
    model.eval()
    return history


Batch = tuple[Tensor, Tensor, Tensor]


def _batch(data: BoxDataset, chosen: Tensor, config: LocalizationConfig, generator: torch.Generator) -> Batch:
    """Frames [T, B, C, H, W], boxes [T, B, objects, 4] and labels [B, objects]."""
    frames, boxes = data.frames.frames[chosen].transpose(0, 1).contiguous(), data.boxes[chosen].transpose(0, 1)
    labels = data.labels[chosen]
    if config.shift:
        frames, boxes = shifted(frames, boxes, labels, config.shift, generator)
    return frames, boxes, labels


def _step(
    model: Localiser, optimizer: torch.optim.Optimizer, batch: Batch, config: LocalizationConfig, device: torch.device
) -> Tensor:
    frames, boxes, labels = (values.to(device) for values in batch)
    maps = model(frames)
    steps = len(frames)
    first = min(config.first_step, steps - 1) * len(labels)
    repeated = labels.repeat(steps, 1)
    losses = localization_loss(maps.rows(first, None), boxes.flatten(0, 1)[first:], repeated[first:])
    total = losses.total()
    if not math.isfinite(total.item()):
        raise NonFiniteError(f"loss became {total.item()}; lower learning_rate ({config.learning_rate})")
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
    optimizer.step()
    return torch.stack(losses).detach().cpu()


def detect_all(model: Localiser, data: BoxDataset, *, batch_size: int = 50, step: int = -1) -> list[Detections]:
    """What the model finds in every sample when ``step`` ends, in evaluation mode; the model's mode is restored."""
    was_training = model.training
    device = next(model.parameters()).device
    model.eval()
    try:
        found: list[Detections] = []
        with torch.no_grad():
            for frames in data.frames.frames.split(batch_size):
                found += model.detect(frames.transpose(0, 1).contiguous().to(device), step=step)
    finally:
        model.train(was_training)
    return found


def evaluate_detections(
    found: Sequence[Detections], data: BoxDataset, *, step: int = -1, thresholds: Sequence[float] = COCO_THRESHOLDS
) -> AveragePrecision:
    """Average precision of what was found, against the boxes when ``step`` ends."""
    boxes, labels = targets_of(data.boxes[:, step], data.labels)
    return average_precision(found, boxes, labels, data.num_classes, thresholds)
