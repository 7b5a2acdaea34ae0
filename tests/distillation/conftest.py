"""A tiny made-up data set and teachers for it: classes are bars at different places, moving with time."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from snn_core.backbones import create
from snn_core.datasets import FrameDataset
from snn_core.distillation import DistillConfig, TeacherPool


def make_bars(per_class: int = 6, *, T: int = 3, size: int = 10, num_classes: int = 3, seed: int = 0) -> FrameDataset:
    """``per_class`` samples of each class: a vertical bar at a class-dependent column that moves one pixel a step."""
    generator = torch.Generator().manual_seed(seed)
    samples: list[Tensor] = []
    for k in range(num_classes):
        for _ in range(per_class):
            frames = torch.poisson(torch.full((T, 2, size, size), 0.1), generator=generator)
            for t in range(T):
                frames[t, :, 2:8, 1 + 3 * k + t % 2] += 4
            samples.append(frames)
    return FrameDataset(
        torch.stack(samples).to(torch.uint8),
        torch.arange(num_classes).repeat_interleave(per_class),
        [str(i) for i in range(num_classes * per_class)],
        class_names=[f"bar {k}" for k in range(num_classes)],
        name="bars (simulated)",
        simulated=True,
        content_key=f"bars {per_class} {T} {size} {num_classes} {seed}",
    )


def make_pool(count: int = 2, *, size: int = 10, num_classes: int = 3) -> TeacherPool:
    """Untrained teachers, enough for everything but accuracy; their batch norms amplify, so that all layers fire."""
    options = {"channels": [4, 4], "num_classes": num_classes, "input_size": [size, size]}
    models = {str(i): create("conv-snn", seed=i, **options) for i in range(count)}
    for model in models.values():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.constant_(module.weight, 5.0)
                torch.nn.init.constant_(module.bias, 0.5)
    return TeacherPool.from_models(models)


def make_config(**values: object) -> DistillConfig:
    """Few iterations, small batches."""
    small = {"iterations": 8, "real_batch": 4, "num_frequencies": 16, "num_shifts": 2, "max_shift": 1}
    return DistillConfig.model_validate({**small, **values})


@pytest.fixture
def bars() -> FrameDataset:
    return make_bars()


@pytest.fixture
def pool() -> TeacherPool:
    return make_pool()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """These networks are too small for a second thread, which on a busy machine costs many times what it gives."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
