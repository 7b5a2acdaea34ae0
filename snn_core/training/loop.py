"""The training loop: seeded, resumable at any step, the same whether interrupted or not.

Nothing random is carried from step to step: order, augmentation and dropout are drawn from streams named by
(seed, epoch, step), so a state is just tensors and a position.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from snn_core.errors import CheckpointError, InterruptedRunError, NonFiniteError
from snn_core.interrupt import deferred_interrupt
from snn_core.progress import progress
from snn_core.seeding import seeded
from snn_core.training.checkpoint import (
    MODEL_PREFIX,
    check_format,
    load_model_state,
    model_header,
    read_json,
    read_tensors,
    write_tensors,
)
from snn_core.training.config import TrainConfig
from snn_core.training.evaluation import evaluate_accuracy
from snn_core.training.hooks import LossObserver, TrainingHook
from snn_core.training.losses import classification_loss

if TYPE_CHECKING:
    from snn_core.datasets.loader import Frames

STATE_FORMAT, STATE_VERSION = "snn_core.training_state", "1"
STATE_FILE = "training_state.safetensors"


@dataclass
class TrainResult:
    """Outcome of a run: a record per epoch, and the seconds spent in training (over all its resumptions)."""

    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0


def learning_rate_factor(position: float, config: TrainConfig) -> float:
    """Factor on the peak rate at ``position`` in (0, 1]: linear warm-up, hold, cosine to 0 at the last step."""
    if position < config.warmup:
        return position / config.warmup
    if position < config.hold or config.hold >= 1:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (position - config.hold) / (1 - config.hold)))


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW or SGD; weight decay on tensors of two and more dimensions only."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=0.9)
    return torch.optim.AdamW(groups, lr=config.learning_rate)


class _Run:
    """One training run: its position, and how that is saved and taken up again."""

    def __init__(
        self, model: nn.Module, train_set: Frames, config: TrainConfig,
        hooks: Sequence[TrainingHook], output: Path | None,
    ) -> None:  # fmt: skip
        self.model, self.train_set, self.config, self.hooks = model, train_set, config, hooks
        self.output = output
        self.optimizer = make_optimizer(model, config)
        self.steps_per_epoch = math.ceil(len(train_set) / config.batch_size)
        self.total_steps = self.steps_per_epoch * config.epochs
        self.position = 0
        self.loss_sum = 0.0
        self.correct = 0
        self.result = TrainResult()
        # What a state belongs to: it is refused for any other run.
        self.identity = {
            "config": config.model_dump(),
            "data": train_set.content_key,
            "samples": len(train_set),
            "model": model_header(model),
            "hooks": [type(hook).__name__ for hook in hooks],
        }
        for hook in hooks:
            hook.begin(model, self.optimizer, self.total_steps)

    def batches(self, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Those that follow the run's position."""
        from snn_core.datasets import FrameLoader
        from snn_core.datasets.augment import CutMix, EventMix

        config = self.config
        mix = {"none": None, "cutmix": CutMix(), "eventmix": EventMix()}[config.mix]
        loader = FrameLoader(
            self.train_set, config.batch_size, generator=config.seed, augment=config.augment, mix=mix, device=device
        )
        loader.set_epoch(*divmod(self.position, self.steps_per_epoch))
        return loader.endless()

    def train_step(self, frames: Tensor, labels: Tensor) -> None:
        epoch, step = divmod(self.position, self.steps_per_epoch)
        config = self.config
        rate = config.learning_rate * learning_rate_factor((self.position + 1) / self.total_steps, config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        use_bfloat16 = config.precision == "bfloat16"
        with (
            seeded(config.seed, "dropout", epoch, step),
            torch.autocast(frames.device.type, dtype=torch.bfloat16, enabled=use_bfloat16),
        ):
            logits = self.model.forward_steps(frames)  # type: ignore[operator]
        loss = classification_loss(logits, labels, tet_weight=config.tet_weight, label_smoothing=config.label_smoothing)
        value = loss.item()
        if not math.isfinite(value):
            raise NonFiniteError(
                f"loss became {value} in epoch {epoch + 1}, step {step + 1}; lower learning_rate "
                f"({config.learning_rate}).{self.last_state()}"
            )
        for hook in self.hooks:
            if isinstance(hook, LossObserver):
                hook.observe_loss(value)
        loss.backward()
        self.optimizer.step()
        for hook in self.hooks:
            hook.step()
        self.loss_sum += value * len(labels)
        # Of mixed samples the larger part counts.
        self.correct += int((logits.mean(0).argmax(1) == (labels if labels.ndim == 1 else labels.argmax(1))).sum())
        self.position += 1

    def last_state(self) -> str:
        """A sentence on where the last good state is, empty where there is none."""
        if self.output is None or not (self.output / STATE_FILE).is_file():
            return ""
        return f" The last good state is {self.output / STATE_FILE}."

    def check_parameters(self) -> None:
        """Refuse to keep parameters that are not finite: the state on disk stays the last good one."""
        for name, parameter in self.model.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise NonFiniteError(f"{name} is not finite after step {self.position}.{self.last_state()}")

    def end_epoch(self) -> dict[str, float]:
        count = len(self.train_set)
        record: dict[str, float] = {
            "epoch": self.position // self.steps_per_epoch,
            "loss": self.loss_sum / count,
            "train_accuracy": self.correct / count,
        }
        for hook in self.hooks:
            record |= hook.metrics()
        self.result.history.append(record)
        self.loss_sum, self.correct = 0.0, 0
        return record

    def save(self) -> None:
        if self.output is None:
            return
        tensors = {MODEL_PREFIX + key: value for key, value in self.model.state_dict().items()}
        for index, entries in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{name}": value for name, value in entries.items() if value is not None}
        for number, hook in enumerate(self.hooks):
            tensors |= {f"hook/{number}/{key}": value for key, value in hook.state_dict().items()}
        header = {
            "format": STATE_FORMAT,
            "version": STATE_VERSION,
            "identity": json.dumps(self.identity, sort_keys=True),
            "progress": json.dumps(
                {
                    "position": self.position,
                    "loss_sum": self.loss_sum,
                    "correct": self.correct,
                    "history": self.result.history,
                    "seconds": self.result.seconds,
                }
            ),
        }
        write_tensors(self.output / STATE_FILE, tensors, header)

    def load(self) -> None:
        path = (self.output or Path()) / STATE_FILE
        if self.output is None or not path.is_file():
            raise CheckpointError(f"nothing to resume: {path} does not exist")
        tensors, header = read_tensors(path)
        check_format(path, header, STATE_FORMAT, STATE_VERSION)
        identity = read_json(path, header, "identity")
        different = [key for key in self.identity if identity.get(key) != json.loads(json.dumps(self.identity[key]))]
        if different:
            raise CheckpointError(
                f"{path} belongs to another run: {', '.join(different)} differ. Its {different[0]}: "
                f"{identity.get(different[0])}; this run's: {self.identity[different[0]]}"
            )
        load_model_state(path, self.model, tensors)
        state = self.optimizer.state_dict()
        state["state"] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer/"):
                _, index, name = key.split("/", 2)
                state["state"].setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict(state)
        for number, hook in enumerate(self.hooks):
            prefix = f"hook/{number}/"
            hook.load_state_dict({key[len(prefix) :]: v for key, v in tensors.items() if key.startswith(prefix)})
        saved = read_json(path, header, "progress")
        self.position, self.loss_sum, self.correct = saved["position"], saved["loss_sum"], saved["correct"]
        self.result = TrainResult(saved["history"], saved["seconds"])


def train_classifier(
    model: nn.Module,
    train_set: Frames,
    config: TrainConfig,
    *,
    val_set: Frames | None = None,
    hooks: Sequence[TrainingHook] = (),
    output: Path | None = None,
    resume: bool = False,
    name: str = "train",
    quiet: bool = False,
    device: str | torch.device = "cpu",
) -> TrainResult:
    """Train ``model`` in place on event frames.

    Args:
        model: a network with ``forward_steps(x_seq [T, B, C, H, W]) -> [T, B, K]``.
        train_set: frames and labels, in memory or on disk; batches are made in a thread while the network works.
        config: settings; the same config, data and initial model give the same result, interrupted or not.
        val_set: its accuracy is recorded after the last epoch as ``val_accuracy`` (nothing is selected by it).
        hooks: pruners and the like.
        output: folder for the resumable state, written after every epoch and on an interrupt.
        resume: continue from that state.
        name: shown on the progress bar.
        quiet: no progress bar.
        device: where to train.

    Returns:
        History per epoch and seconds of training; ``model`` is left in evaluation mode.

    Raises:
        NonFiniteError: the loss became NaN or infinite.
        CheckpointError: nothing to resume, or the state is of another run.
        InterruptedRunError: Ctrl-C or SIGTERM; the state is saved.
    """
    device = torch.device(device)
    model.to(device).train()
    run = _Run(model, train_set, config, hooks, output)
    if resume:
        run.load()
    with deferred_interrupt() as interrupted:
        started = time.perf_counter()
        bar = progress(range(run.position, run.total_steps), description=name, total=run.total_steps, quiet=quiet)
        bar.update(run.position)
        batches = run.batches(device)
        for position in bar:
            run.train_step(*next(batches))
            end_of_epoch = (position + 1) % run.steps_per_epoch == 0
            if end_of_epoch:
                bar.set_postfix(**{key: f"{value:.3f}" for key, value in run.end_epoch().items()})
            if end_of_epoch or interrupted:
                now = time.perf_counter()
                run.result.seconds += now - started
                started = now
                run.check_parameters()
                run.save()
            if interrupted and run.position < run.total_steps:
                where = f"; state saved in {output}, resume to go on" if output else "; no output folder, nothing saved"
                raise InterruptedRunError(f"{name}: interrupted after step {run.position} of {run.total_steps}{where}")
    for hook in hooks:
        hook.end()
    model.eval()
    if val_set is not None:
        run.result.history[-1]["val_accuracy"] = evaluate_accuracy(model, val_set)
    return run.result
