"""Training and evaluation of a localiser."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from snn_core.errors import ArgumentError, InterruptedRunError, NonFiniteError
from snn_core.files import sha256_json
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
from snn_core.localization.state import restore_state, save_state
from snn_core.progress import progress
from snn_core.seeding import make_generator, seeded

if TYPE_CHECKING:
    from snn_core.datasets import BoxDataset


class LocalizationConfig(BaseModel):
    """How a localiser is trained. Unknown keys and wrong types are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    epochs: int = Field(8, ge=1, description="passes over the training set")
    batch_size: int = Field(32, ge=1, description="samples a step")
    learning_rate: float = Field(6e-3, gt=0, description="peak learning rate of AdamW, one cycle")
    warm_up: float = Field(0.2, ge=0, lt=1, description="share of the steps in which the learning rate rises")
    weight_decay: float = Field(1e-2, ge=0, description="on tensors of two and more dimensions")
    shift: int = Field(6, ge=0, description="every sample is moved by up to so many pixels, if its boxes stay inside")
    crop: int = Field(0, ge=0, description="side of the squares, one a sample, of which it learns first; 0: none")
    full: float = Field(0.2, ge=0, le=1, description="share of the epochs, the last, in which it sees the whole field")
    first_step: int = Field(1, ge=0, description="the loss is of this step and those after it")
    clip_norm: float = Field(5.0, gt=0, description="largest norm of the gradient")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="bfloat16: autocast mixed precision")
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


def cropped(
    frames: Tensor, boxes: Tensor, labels: Tensor, side: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """A square of the field of every sample, with one of its objects inside at the last step, as far as it fits.

    Args:
        frames, boxes, labels: as of :func:`shifted`.
        side: of the squares, in pixels, at most the field's.
        generator: of the draws.

    Returns:
        Frames ``[T, B, C, side, side]``, boxes in pixels of the square, and labels ``[T, B, objects]``: -1 at steps at
        which the middle of a box lies outside.
    """
    batch, objects = labels.shape
    height, width = frames.shape[-2:]
    # An object that is there, each as likely as the others; sample without any: the first, whose box is 0.
    chances = torch.rand(batch, objects, generator=generator) - 2.0 * (labels < 0)
    box = boxes[-1, torch.arange(batch), chances.argmax(1)]
    room = torch.tensor([width, height]) - side
    least = torch.minimum((box[:, 2:] - side).ceil().clamp(min=0), room)
    most = torch.minimum(box[:, :2].floor().clamp(min=0), room).maximum(least)
    draw = torch.rand(batch, 2, generator=generator)
    corner = (least + (draw * (most - least + 1)).floor().clamp(max=most - least)).long()
    taken = [frames[:, sample, :, y : y + side, x : x + side] for sample, (x, y) in enumerate(corner.tolist())]
    boxes = boxes - corner.repeat(1, 2)[:, None]
    middles = (boxes[..., :2] + boxes[..., 2:]) / 2
    inside = ((middles >= 0) & (middles < side)).all(-1)
    return torch.stack(taken, 1), boxes, labels.expand(inside.shape).masked_fill(~inside, -1)


def train_localiser(
    model: Localiser,
    train_set: BoxDataset,
    config: LocalizationConfig,
    *,
    state_path: Path | None = None,
    name: str = "train",
    quiet: bool = False,
) -> list[dict[str, float]]:
    """Train ``model`` in place, on its own device; the same seed and initial model give the same result.

    Args:
        model: its state is overwritten where ``state_path`` holds a later one.
        train_set: samples with boxes.
        config: how.
        state_path: where model, optimiser and history are kept after every epoch. A call with the same arguments goes
            on from there, and ends as if it had never been interrupted.
        name: of the progress bar.
        quiet: no progress bar.

    Returns:
        One record an epoch: mean loss and its parts, seconds.

    Raises:
        ArgumentError: the data set has more classes than the model.
        CheckpointError: the file at ``state_path`` is damaged, or of another training.
        NonFiniteError: the loss became NaN or infinite.
        InterruptedRunError: Ctrl-C or SIGTERM; without ``state_path`` nothing is saved.
    """
    if train_set.num_classes > model.head.num_classes:
        raise ArgumentError(f"train_set has {train_set.num_classes} classes; the model knows {model.head.num_classes}")
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate)
    per_epoch = math.ceil(len(train_set) / config.batch_size)
    side = min(config.crop, *train_set.frames.frames.shape[-2:])
    in_parts = round((1 - config.full) * config.epochs) if side else 0
    device = next(model.parameters()).device
    key = sha256_json([config.model_dump(mode="json"), train_set.frames.content_key, len(train_set)])
    history: list[dict[str, Any]] = []
    if state_path is not None and state_path.is_file():
        history = restore_state(state_path, model, optimizer, key)
    model.train()
    with deferred_interrupt() as interrupted:
        bar = progress(range(len(history), config.epochs), description=name, quiet=quiet)
        for epoch in bar:
            started, sums = time.perf_counter(), torch.zeros(3)
            order = torch.randperm(len(train_set), generator=make_generator(config.seed, "order", epoch))
            for step, chosen in enumerate(order.split(config.batch_size)):
                generator = make_generator(config.seed, "shift", epoch, step)
                share = one_cycle((epoch * per_epoch + step) / (per_epoch * config.epochs), config.warm_up)
                for group in optimizer.param_groups:
                    group["lr"] = config.learning_rate * share
                batch = _batch(train_set, chosen, config, generator, side if epoch < in_parts else 0)
                with seeded(config.seed, "dropout", epoch, step):
                    sums += _step(model, optimizer, batch, config, device)
                if interrupted:
                    raise InterruptedRunError(f"{name}: interrupted in epoch {epoch + 1} of {config.epochs}")
            means = (sums / per_epoch).tolist()
            history.append(dict(zip(("objectness", "classes", "boxes"), means, strict=True)))
            history[-1] |= {"epoch": epoch + 1, "seconds": time.perf_counter() - started}
            if state_path is not None:
                save_state(state_path, model, optimizer, key, history)
            bar.set_postfix(**{key: f"{value:.3f}" for key, value in history[-1].items()})
    model.eval()
    return history


def one_cycle(done: float, warm_up: float) -> float:
    """Learning rate beside its peak, after the share ``done`` of the steps: up from 1/25 during ``warm_up``, then down
    to 0, both along a cosine (Smith and Topin, Super-Convergence, 2019)."""
    if done < warm_up:
        return 1 - 0.48 * (1 + math.cos(math.pi * done / warm_up))
    return 0.5 * (1 + math.cos(math.pi * (done - warm_up) / (1 - warm_up)))


Batch = tuple[Tensor, Tensor, Tensor]


def _batch(
    data: BoxDataset, chosen: Tensor, config: LocalizationConfig, generator: torch.Generator, side: int = 0
) -> Batch:
    """Frames [T, B, C, H, W], boxes [T, B, objects, 4] and labels [T, B, objects]; ``side``: of :func:`cropped`."""
    frames, boxes = data.frames.frames[chosen].transpose(0, 1).contiguous(), data.boxes[chosen].transpose(0, 1)
    labels = data.labels[chosen]
    if side:
        return cropped(frames, boxes, labels, side, generator)
    if config.shift:
        frames, boxes = shifted(frames, boxes, labels, config.shift, generator)
    return frames, boxes, labels.expand(boxes.shape[:-1])


def _step(
    model: Localiser, optimizer: torch.optim.Optimizer, batch: Batch, config: LocalizationConfig, device: torch.device
) -> Tensor:
    frames, boxes, labels = (values.to(device) for values in batch)
    with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
        maps = model(frames)
    first = min(config.first_step, len(frames) - 1)
    maps = maps.rows(first * frames.shape[1], None)
    losses = localization_loss(maps, boxes[first:].flatten(0, 1), labels[first:].flatten(0, 1))
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
    return detect_steps(model, data, [step], batch_size=batch_size)[0]


def detect_steps(
    model: Localiser, data: BoxDataset, steps: Sequence[int], *, batch_size: int = 50
) -> list[list[Detections]]:
    """The same when each of ``steps`` ends, from one pass over the data: one list a step."""
    was_training = model.training
    device = next(model.parameters()).device
    model.eval()
    try:
        found: list[list[Detections]] = [[] for _ in steps]
        with torch.no_grad():
            for frames in data.frames.frames.split(batch_size):
                batch = frames.transpose(0, 1).contiguous().to(device)
                for sofar, more in zip(found, model.detect_steps(batch, steps), strict=True):
                    sofar += more
    finally:
        model.train(was_training)
    return found


def evaluate_detections(
    found: Sequence[Detections], data: BoxDataset, *, step: int = -1, thresholds: Sequence[float] = COCO_THRESHOLDS
) -> AveragePrecision:
    """Average precision of what was found, against the boxes when ``step`` ends."""
    boxes, labels = targets_of(data.boxes[:, step], data.labels)
    return average_precision(found, boxes, labels, data.num_classes, thresholds)
