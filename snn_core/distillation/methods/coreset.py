"""Comparisons that choose real samples: random, herding, k-centre (sources in ``selection.py``)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch
from torch import Tensor

from snn_core.datasets import FrameDataset
from snn_core.distillation.config import DistillConfig
from snn_core.distillation.initial import time_mean_features
from snn_core.distillation.methods.base import required, selected_product
from snn_core.distillation.product import DistilledDataset
from snn_core.distillation.selection import select_herding, select_k_centre, select_random
from snn_core.distillation.teachers import TeacherPool
from snn_core.seeding import make_generator


class Coreset:
    """``ipc`` real samples of every class, chosen by ``choose``; no state to resume."""

    name = ""
    needs_teachers = False

    def __call__(
        self, dataset: FrameDataset, config: DistillConfig, *, teachers: TeacherPool | None = None, seed: int = 0,
        state_path: str | os.PathLike[str] | None = None, resume: bool = False, quiet: bool = False,
        device: str | torch.device = "cpu",
    ) -> DistilledDataset:  # fmt: skip
        """Select. ArgumentError: no teachers where they are needed. DataError: a class with fewer than ``ipc``."""
        started = time.perf_counter()
        pool = required(teachers, self.name).to(device) if self.needs_teachers else None
        chosen = self.choose(dataset, config, pool, seed, quiet, device)
        return selected_product(dataset, chosen, self.name, config, seed, pool, time.perf_counter() - started)

    def choose(
        self, dataset: FrameDataset, config: DistillConfig, teachers: TeacherPool | None, seed: int, quiet: bool,
        device: str | torch.device,
    ) -> Tensor:  # fmt: skip
        """Indices int64 [K * ipc], sorted by class."""
        raise NotImplementedError


class RandomSelection(Coreset):
    """Uniform draws, see :func:`snn_core.distillation.select_random`."""

    name = "random"

    def choose(
        self, dataset: FrameDataset, config: DistillConfig, teachers: TeacherPool | None, seed: int, quiet: bool,
        device: str | torch.device,
    ) -> Tensor:  # fmt: skip
        """See :func:`select_random`."""
        generator = make_generator(seed, "random selection")
        return select_random(dataset.labels, dataset.num_classes, config.ipc, generator=generator)


class _ByFeatures(Coreset):
    """On the time-averaged spike features of all layers of one teacher (the ``seed``-th of the pool)."""

    needs_teachers = True
    select: Callable[[Tensor, Tensor, int, int], Tensor]

    def choose(
        self, dataset: FrameDataset, config: DistillConfig, teachers: TeacherPool | None, seed: int, quiet: bool,
        device: str | torch.device,
    ) -> Tensor:  # fmt: skip
        """Features, then ``select``."""
        assert teachers is not None
        features = time_mean_features(dataset, teachers[seed % len(teachers)].model, config, device)
        return type(self).select(features, dataset.labels, dataset.num_classes, config.ipc)


class Herding(_ByFeatures):
    """See :func:`snn_core.distillation.select_herding`."""

    name = "herding"
    select = staticmethod(select_herding)


class KCentre(_ByFeatures):
    """See :func:`snn_core.distillation.select_k_centre`."""

    name = "k-centre"
    select = staticmethod(select_k_centre)


METHODS = {method.name: method for method in (RandomSelection, Herding, KCentre)}
