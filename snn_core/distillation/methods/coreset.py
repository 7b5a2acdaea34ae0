"""Comparisons that choose real samples: random, herding, k-centre (sources in ``selection.py``)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from snn_core.datasets import FrameDataset
from snn_core.distillation.config import DistillConfig
from snn_core.distillation.densify import choose_layers
from snn_core.distillation.initial import time_mean_features
from snn_core.distillation.methods.base import make_product, required
from snn_core.distillation.product import DistilledDataset
from snn_core.distillation.selection import select_herding, select_k_centre, select_random
from snn_core.distillation.teachers import TeacherPool
from snn_core.seeding import make_generator


@dataclass(frozen=True)
class Selection:
    """Real samples, int64 [K * ipc] sorted by class, and what they were chosen by.

    ``settings``: beside ``ipc`` all that decided it, as plain JSON values, for the product's file. ``teachers``: those
    that were used, no others: their training is charged to the product.
    """

    indices: Tensor
    settings: dict[str, Any] = field(default_factory=dict)
    teachers: TeacherPool | None = None


class Coreset:
    """``ipc`` real samples of every class, chosen by ``choose``; with multi-formation as many as it holds clips.

    No state to resume.
    """

    name = ""
    needs_teachers = False

    def __call__(
        self, dataset: FrameDataset, config: DistillConfig, *, teachers: TeacherPool | None = None, seed: int = 0,
        state_path: str | os.PathLike[str] | None = None, resume: bool = False, quiet: bool = False,
        device: str | torch.device = "cpu",
    ) -> DistilledDataset:  # fmt: skip
        """Select. ArgumentError: no teachers where they are needed. DataError: a class with too few samples."""
        started = time.perf_counter()
        pool = required(teachers, self.name) if self.needs_teachers else None
        formation = config.formation()
        several = config.model_copy(update={"ipc": config.ipc * formation.clips})
        chosen = self.choose(dataset, several, pool, seed, quiet, device)
        frames, labels = dataset.frames[chosen.indices], dataset.labels[chosen.indices]
        settings = {"ipc": config.ipc} | chosen.settings
        if not formation.plain:
            frames = formation.pack(formation.encode(frames).round().clamp(max=formation.levels))
            labels = labels[:: formation.clips]
            settings |= {f"formation_{name}": value for name, value in asdict(formation).items()}
        seconds = time.perf_counter() - started
        return make_product(
            dataset, frames, labels, method=self.name, ipc=config.ipc, seed=seed, config=settings,
            teachers=chosen.teachers, seconds=seconds,
        )  # fmt: skip

    def choose(
        self, dataset: FrameDataset, config: DistillConfig, teachers: TeacherPool | None, seed: int, quiet: bool,
        device: str | torch.device,
    ) -> Selection:  # fmt: skip
        """Which samples, and by what."""
        raise NotImplementedError


class RandomSelection(Coreset):
    """Uniform draws, see :func:`snn_core.distillation.select_random`."""

    name = "random"

    def choose(
        self, dataset: FrameDataset, config: DistillConfig, teachers: TeacherPool | None, seed: int, quiet: bool,
        device: str | torch.device,
    ) -> Selection:  # fmt: skip
        """See :func:`select_random`."""
        generator = make_generator(seed, "random selection")
        return Selection(select_random(dataset.labels, dataset.num_classes, config.ipc, generator=generator))


class _ByFeatures(Coreset):
    """On the time-averaged spike features of ``config.layers`` of one teacher (the ``seed``-th of the pool).

    Deterministic but for the teacher: sets of several seeds differ only where their teachers do. So a comparison over
    many sets gives each one a pool of its own.
    """

    needs_teachers = True
    select: Callable[[Tensor, Tensor, int, int], Tensor]

    def choose(
        self, dataset: FrameDataset, config: DistillConfig, teachers: TeacherPool | None, seed: int, quiet: bool,
        device: str | torch.device,
    ) -> Selection:  # fmt: skip
        """Features, then ``select``."""
        assert teachers is not None
        used = teachers.only(seed % len(teachers)).to(device)
        model = used[0].model
        features = time_mean_features(dataset, model, config, device)
        settings = {
            "layers": [name for name, _ in choose_layers(model, config.layers)],
            "feature_pool": config.feature_pool,
            "teacher": used[0].name,
        }
        return Selection(
            type(self).select(features, dataset.labels, dataset.num_classes, config.ipc), settings, used
        )  # fmt: skip


class Herding(_ByFeatures):
    """See :func:`snn_core.distillation.select_herding`."""

    name = "herding"
    select = staticmethod(select_herding)


class KCentre(_ByFeatures):
    """See :func:`snn_core.distillation.select_k_centre`."""

    name = "k-centre"
    select = staticmethod(select_k_centre)


METHODS = {method.name: method for method in (RandomSelection, Herding, KCentre)}
