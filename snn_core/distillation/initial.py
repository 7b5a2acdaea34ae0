"""Where the canvas starts: real samples, drawn or chosen, or noise."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snn_core.datasets import FrameDataset
from snn_core.distillation.config import DistillConfig
from snn_core.distillation.densify import collect_features
from snn_core.distillation.selection import select_herding, select_k_centre, select_random
from snn_core.distillation.teachers import TeacherPool
from snn_core.errors import ArgumentError

_CHUNK = 50  # samples a forward pass


def initial_frames(
    dataset: FrameDataset,
    config: DistillConfig,
    *,
    generator: torch.Generator,
    teachers: TeacherPool | None = None,
    device: str | torch.device = "cpu",
) -> Tensor:
    """Sheets float32 [K * ipc * digits, T, 2, H, W] sorted by class (:class:`Formation`); with
    multi-formation each holds several real clips.

    A coreset is chosen on the spike features, averaged over time, of a teacher that ``generator`` draws.

    Raises:
        DataError: a class with fewer samples than ``ipc`` times the clips of a sample, unless ``init="noise"``.
        ArgumentError: a coreset without teachers; frames that cannot be divided into clips.
    """
    formation = config.formation()
    if config.init == "noise":
        formation.check(dataset.frames[:1])
        shape = (dataset.num_classes * config.ipc * formation.digits, *dataset.frames.shape[1:])
        # exponential noise has the mean of event counts and, like them, is mostly small; nothing of a class is in it
        uniform = torch.rand(shape, generator=generator)
        return -torch.log1p(-uniform) * dataset.frames.float().mean() / formation.gain
    count, labels, num_classes = config.ipc * formation.clips, dataset.labels, dataset.num_classes
    if config.init == "real":
        chosen = select_random(labels, num_classes, count, generator=generator)
    elif teachers is None:
        raise ArgumentError(f"teachers: init {config.init!r} chooses by a teacher's features, none was given")
    else:
        drawn = int(torch.randint(len(teachers), (1,), generator=generator))
        features = time_mean_features(dataset, teachers[drawn].model, config, device)
        select = select_herding if config.init == "herding" else select_k_centre
        chosen = select(features, labels, num_classes, count)
    return formation.encode(dataset.frames[chosen])


@torch.no_grad()
def time_mean_features(
    dataset: FrameDataset, model: nn.Module, config: DistillConfig, device: str | torch.device
) -> Tensor:
    """Spike features of every layer, averaged over time, each of unit length: ``[num, D]`` on the CPU."""
    parts = []
    for start in range(0, len(dataset), _CHUNK):
        frames = dataset.frames[start : start + _CHUNK].transpose(0, 1).to(device).float()
        layers = collect_features(model, frames, config.layers, beta=0.0, feature_pool=config.feature_pool)
        parts.append(torch.cat([F.normalize(layer.mean(0), dim=1) for layer in layers], 1).cpu())
    return torch.cat(parts)
