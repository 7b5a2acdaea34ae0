"""What every method shares: the interface, the product made of its frames."""

from __future__ import annotations

import os
from typing import Any, Protocol

import torch
from torch import Tensor

import snn_core
from snn_core.datasets import FrameDataset
from snn_core.distillation.config import DistillConfig
from snn_core.distillation.decoder import ClipDecoder
from snn_core.distillation.product import DistilledDataset, Provenance
from snn_core.distillation.teachers import TeacherPool
from snn_core.errors import ArgumentError


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
    decoder: ClipDecoder | None = None,
) -> DistilledDataset:
    """Frames uint8 [K * ipc, T, 2, H, W] with the provenance that ``dataset`` and the arguments give them, and
    the decoder learned for them.

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
    return DistilledDataset(frames, labels, provenance, decoder)


def required(teachers: TeacherPool | None, name: str) -> TeacherPool:
    """``teachers``. Raises ArgumentError where there are none."""
    if teachers is None:
        raise ArgumentError(f"teachers: method {name!r} needs a pool, see train_teachers")
    return teachers
