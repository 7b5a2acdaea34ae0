"""Everything that turns a real training set into a small one, behind one interface: ``create_method(name)``.

PACE and its comparisons (random selection, herding) give the same kind of product, so that they are evaluated alike.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

import snn_core
from snn_core.datasets import FrameDataset
from snn_core.distillation.condense import distill
from snn_core.distillation.config import DistillConfig
from snn_core.distillation.densify import collect_features
from snn_core.distillation.product import DistilledDataset, Provenance
from snn_core.distillation.selection import select_herding, select_random
from snn_core.distillation.teachers import TeacherPool
from snn_core.errors import ArgumentError
from snn_core.seeding import make_generator


class CondensationMethod(Protocol):
    """Makes a product of ``config.ipc`` samples per class out of a real set."""

    name: str
    needs_teachers: bool

    def __call__(
        self,
        dataset: FrameDataset,
        config: DistillConfig,
        *,
        teachers: TeacherPool | None = None,
        seed: int = 0,
        state_path: str | os.PathLike[str] | None = None,
        resume: bool = False,
        quiet: bool = False,
        device: str | torch.device = "cpu",
    ) -> DistilledDataset:
        """The product. ``teachers`` may be None only where ``needs_teachers`` is false; methods without a long loop
        have no state to resume. Errors as in :func:`snn_core.distillation.distill`."""
        ...


class Pace:
    """PACE: :func:`snn_core.distillation.distill`."""

    name = "pace"
    needs_teachers = True

    def __call__(
        self, dataset: FrameDataset, config: DistillConfig, *, teachers: TeacherPool | None = None, seed: int = 0,
        state_path: str | os.PathLike[str] | None = None, resume: bool = False, quiet: bool = False,
        device: str | torch.device = "cpu",
    ) -> DistilledDataset:  # fmt: skip
        """Distil; see :func:`snn_core.distillation.distill` for arguments and errors."""
        pool = _required(teachers, self.name)
        result = distill(
            dataset, pool, config, seed=seed, state_path=state_path, resume=resume, quiet=quiet, device=device
        )
        return make_product(
            dataset, result.frames, result.labels, method=self.name, ipc=config.ipc, seed=seed,
            config=config.model_dump(mode="json"), teachers=pool, seconds=result.seconds,
        )  # fmt: skip


class RandomSelection:
    """Comparison: ``ipc`` real samples of every class, drawn uniformly."""

    name = "random"
    needs_teachers = False

    def __call__(
        self, dataset: FrameDataset, config: DistillConfig, *, teachers: TeacherPool | None = None, seed: int = 0,
        state_path: str | os.PathLike[str] | None = None, resume: bool = False, quiet: bool = False,
        device: str | torch.device = "cpu",
    ) -> DistilledDataset:  # fmt: skip
        """Draw; see :func:`snn_core.distillation.select_random` for errors."""
        started = time.perf_counter()
        generator = make_generator(seed, "random selection")
        chosen = select_random(dataset.labels, dataset.num_classes, config.ipc, generator=generator)
        return _selected(dataset, chosen, self.name, config, seed, None, time.perf_counter() - started)


class Herding:
    """Comparison: herding on a teacher's spike features, averaged over time, of all layers (teacher by ``seed``)."""

    name = "herding"
    needs_teachers = True

    def __call__(
        self, dataset: FrameDataset, config: DistillConfig, *, teachers: TeacherPool | None = None, seed: int = 0,
        state_path: str | os.PathLike[str] | None = None, resume: bool = False, quiet: bool = False,
        device: str | torch.device = "cpu",
    ) -> DistilledDataset:  # fmt: skip
        """Select; see :func:`snn_core.distillation.select_herding` for errors."""
        started = time.perf_counter()
        pool = _required(teachers, self.name).to(device)
        features = _time_mean_features(dataset, pool[seed % len(pool)].model, config, device)
        chosen = select_herding(features, dataset.labels, dataset.num_classes, config.ipc)
        return _selected(dataset, chosen, self.name, config, seed, pool, time.perf_counter() - started)


_METHODS: dict[str, Callable[[], CondensationMethod]] = {m.name: m for m in (Pace, RandomSelection, Herding)}


def list_methods() -> list[str]:
    """Names that :func:`create_method` knows, sorted."""
    return sorted(_METHODS)


def create_method(name: str) -> CondensationMethod:
    """The method of that name. Raises ArgumentError for an unknown one, listing those there are."""
    if name not in _METHODS:
        raise ArgumentError(f"method: {name!r} is unknown; there are {', '.join(list_methods())}")
    return _METHODS[name]()


def make_product(
    dataset: FrameDataset,
    frames: Tensor,
    labels: Tensor,
    *,
    method: str,
    ipc: int,
    seed: int,
    config: dict[str, Any] | None = None,
    teachers: TeacherPool | None = None,
    seconds: float = 0.0,
) -> DistilledDataset:
    """Frames uint8 [K * ipc, T, 2, H, W] with the provenance that ``dataset`` and the arguments give them.

    Raises:
        ArgumentError: frames and labels that do not fit together.
    """
    provenance = Provenance(
        method=method,
        source_name=dataset.name,
        source_content_key=dataset.content_key,
        source_description=dataset.description,
        source_samples=len(dataset),
        simulated=dataset.simulated,
        class_names=dataset.class_names,
        ipc=ipc,
        seed=seed,
        config=config or {},
        teacher_hashes=teachers.hashes if teachers is not None else [],
        teacher_seconds=teachers.seconds if teachers is not None else 0.0,
        package_version=snn_core.__version__,
        seconds=seconds,
    )
    return DistilledDataset(frames, labels, provenance)


def _selected(
    dataset: FrameDataset, chosen: Tensor, name: str, config: DistillConfig, seed: int, teachers: TeacherPool | None,
    seconds: float,
) -> DistilledDataset:  # fmt: skip
    return make_product(
        dataset, dataset.frames[chosen], dataset.labels[chosen], method=name, ipc=config.ipc, seed=seed,
        config={"ipc": config.ipc}, teachers=teachers, seconds=seconds,
    )  # fmt: skip


def _required(teachers: TeacherPool | None, name: str) -> TeacherPool:
    if teachers is None:
        raise ArgumentError(f"teachers: method {name!r} needs a pool, see train_teachers")
    return teachers


@torch.no_grad()
def _time_mean_features(
    dataset: FrameDataset, model: torch.nn.Module, config: DistillConfig, device: str | torch.device
) -> Tensor:
    """Unit-length time-averaged spike features of every layer, concatenated: ``[num, D]`` on the CPU."""
    parts = []
    for start in range(0, len(dataset), 50):
        frames = dataset.frames[start : start + 50].transpose(0, 1).to(device).float()
        layers = collect_features(model, frames, config.layers, beta=0.0, feature_pool=config.feature_pool)
        means = [torch.nn.functional.normalize(layer.mean(0), dim=1) for layer in layers]
        parts.append(torch.cat(means, 1).cpu())
    return torch.cat(parts)
