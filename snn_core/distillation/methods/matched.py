"""Methods that optimise synthetic frames against teachers: one loop, :func:`distill`, with other losses.

So PACE, its ablations, DM and NCFM-style matching see the same teachers, layers, augmentation, initial frames and
number of iterations; they differ in the loss and in nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

from snn_core.datasets import FrameDataset
from snn_core.distillation.condense import distill
from snn_core.distillation.config import DistillConfig
from snn_core.distillation.matching import MatchingLoss
from snn_core.distillation.methods.base import make_product, required
from snn_core.distillation.product import DistilledDataset
from snn_core.distillation.teachers import TeacherPool

Change = Callable[[DistillConfig], dict[str, Any]]
Loss = Callable[[DistillConfig], MatchingLoss | None]


def _nothing(config: DistillConfig) -> dict[str, Any]:
    return {}


def _own_loss(config: DistillConfig) -> MatchingLoss | None:
    """None: the loss that :func:`distill` makes of the configuration, ST-SM."""
    return None


class MatchedMethod:
    """Distil with the loss that ``loss(config)`` gives, after ``change(config)`` has replaced some settings."""

    needs_teachers = True

    def __init__(self, name: str, *, change: Change = _nothing, loss: Loss = _own_loss) -> None:
        self.name, self._change, self._loss = name, change, loss

    def config_of(self, config: DistillConfig) -> DistillConfig:
        """The settings it runs with, validated."""
        return DistillConfig.model_validate(config.model_dump() | self._change(config))

    def __call__(
        self, dataset: FrameDataset, config: DistillConfig, *, teachers: TeacherPool | None = None, seed: int = 0,
        state_path: str | os.PathLike[str] | None = None, resume: bool = False, quiet: bool = False,
        device: str | torch.device = "cpu",
    ) -> DistilledDataset:  # fmt: skip
        """Distil; see :func:`snn_core.distillation.distill` for arguments and errors."""
        pool = required(teachers, self.name)
        own = self.config_of(config)
        result = distill(
            dataset, pool, own, seed=seed, state_path=state_path, resume=resume, quiet=quiet, device=device,
            matching=self._loss(own),
        )  # fmt: skip
        return make_product(
            dataset, result.frames, result.labels, method=self.name, ipc=own.ipc, seed=seed,
            config=own.model_dump(mode="json"), teachers=pool, seconds=result.seconds,
            decoder=result.decoder,
        )  # fmt: skip
