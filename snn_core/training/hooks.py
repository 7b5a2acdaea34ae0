"""What takes part in training beside the optimiser: pruners, above all."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@runtime_checkable
class TrainingHook(Protocol):
    """Called by :func:`snn_core.training.train_classifier`; any training loop can call the same methods."""

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer, total_steps: int) -> None:
        """Before the first step (also of a resumed run, before :meth:`load_state_dict`)."""

    def step(self) -> None:
        """After every ``optimizer.step()``."""

    def end(self) -> None:
        """After the last step, before the final evaluation."""

    def metrics(self) -> dict[str, float]:
        """Figures for the log of an epoch."""

    def state_dict(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, as tensors."""

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what :meth:`state_dict` gave."""


@runtime_checkable
class LossObserver(Protocol):
    """What a hook has beside :class:`TrainingHook` when it learns from the loss itself."""

    def observe_loss(self, loss: float) -> None:
        """After the forward pass of every step, before ``optimizer.step()``."""
