"""What a small training set is worth: train fresh networks on it, test on real data at the last epoch.

The last epoch, never the best: choosing the best by the test set would be looking at the answers. The same function
with the full training set gives the reference.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from snn_core.backbones import create
from snn_core.datasets import FrameDataset
from snn_core.distillation.config import TrainingOverrides, options_of_other_backbones
from snn_core.distillation.product import DistilledDataset
from snn_core.distillation.teachers import make_train_config, network_options
from snn_core.errors import ArgumentError
from snn_core.seeding import derive_seed
from snn_core.training import TrainConfig, predict_logits, train_classifier

#: Time-averaged logits [num, K] and labels [num] of the test set -> a number.
Measure = Callable[[Tensor, Tensor], float]


class EvaluationConfig(BaseModel):
    """How the fresh networks are made and trained.

    ``steps``: optimiser steps on a small set, rounded up to whole epochs; None: ``training`` decides by its epochs, as
    the full-data reference does. ``training``: keys of :class:`snn_core.training.TrainConfig`.
    """

    model_config = ConfigDict(extra="forbid")

    backbone: str = "conv-snn"
    backbone_options: dict[str, Any] = Field(default_factory=lambda: {"channels": [16, 32, 32], "norm_gain": 1.0})
    networks: int = Field(default=3, ge=1)
    steps: int | None = Field(default=200, ge=1)
    training: TrainingOverrides = Field(
        default_factory=lambda: {"learning_rate": 5e-3, "tet_weight": 0.0, "label_smoothing": 0.1}
    )

    _other_backbones = model_validator(mode="after")(options_of_other_backbones)


@dataclass(frozen=True)
class Evaluation:
    """Result of :func:`evaluate_product`.

    ``accuracies``: fractions, one a network, at the last epoch; ``mean`` and sample standard deviation ``std`` of them
    (0 for one network). ``train_seconds``: mean wall-clock of training one network, ``train_cpu_seconds``: of processor
    time; ``steps`` of its optimiser. ``samples`` and ``frame_bytes`` (uncompressed, with a learned decoder's weights)
    of the training set; ``file_bytes`` on disk where known. ``measures``: other figures asked for, by name, one a
    network. ``curves``: one a network, ``[seconds of training, accuracy]`` at the points asked for.
    """

    accuracies: list[float]
    mean: float
    std: float
    train_seconds: float
    samples: int
    frame_bytes: int
    file_bytes: int | None
    steps: int
    test_samples: int
    train_cpu_seconds: float = 0.0
    measures: dict[str, list[float]] = field(default_factory=dict)
    curves: list[list[list[float]]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


class AccuracyCurve:
    """A training hook that tests the network on the way, at steps spaced geometrically; nothing is selected by it.

    ``points``: ``[seconds of training, accuracy]``; the time of the tests themselves (``seconds``, ``cpu_seconds``) is
    left out. It draws nothing, so that the training is the same without it.
    """

    def __init__(self, test_set: FrameDataset, count: int) -> None:
        self.test_set, self.count = test_set, count
        self.points: list[list[float]] = []
        self.seconds = self.cpu_seconds = 0.0

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer, total_steps: int) -> None:
        """Fix the steps at which it tests; the last is always among them."""
        exponents = [number / max(1, self.count - 1) for number in range(self.count)]
        self._at = {round(total_steps**exponent) for exponent in exponents} | {total_steps}
        self._model, self._done, self._began = model, 0, time.perf_counter()

    def step(self) -> None:
        """Test at the chosen steps."""
        self._done += 1
        if self._done in self._at:
            now, cpu = time.perf_counter(), time.process_time()
            right = predict_logits(self._model, self.test_set).argmax(1) == self.test_set.labels
            self.points.append([now - self._began - self.seconds, right.double().mean().item()])
            self.seconds += time.perf_counter() - now
            self.cpu_seconds += time.process_time() - cpu

    def end(self) -> None:
        """Nothing is left to do."""

    def metrics(self) -> dict[str, float]:
        """Nothing to log."""
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing: evaluations are not resumed inside a network."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """See :meth:`state_dict`."""


def evaluate_product(
    product: FrameDataset,
    test_set: FrameDataset,
    *,
    networks: int | None = None,
    config: EvaluationConfig | None = None,
    seed: int = 0,
    path: str | os.PathLike[str] | None = None,
    quiet: bool = False,
    device: str | torch.device = "cpu",
    measures: Mapping[str, Measure] | None = None,
    curve_points: int = 0,
) -> Evaluation:
    """Train fresh networks on ``product`` only and test each on ``test_set`` after its last epoch.

    Args:
        product: a :class:`snn_core.distillation.DistilledDataset`, or any training set (see also
            :func:`evaluate_full`).
        test_set: real samples. networks: how many, by default ``config.networks``. config: networks and training.
        seed: network ``i`` is initialised and trained with a seed derived from it and ``i``.
        path: the product's file, to report its size. quiet: no progress bars. device: where to train.
        measures: name -> function of the time-averaged logits [num, K] and labels [num] of the test set.
        curve_points: test each network so many times on its way too, for accuracy against training time; 0: not.

    Returns:
        An :class:`Evaluation`.

    Raises:
        ArgumentError: sets of different T, frame size or classes, an empty set, or no file at ``path``. ConfigError:
        an unknown key in ``config.training``. InterruptedRunError: Ctrl-C.
    """
    config = config or EvaluationConfig()
    count = config.networks if networks is None else networks
    if count < 1:
        raise ArgumentError(f"networks: got {count}, at least 1 is needed")
    # as stored
    frame_bytes = product.num_bytes if isinstance(product, DistilledDataset) else product.frames.numel()
    if isinstance(product, DistilledDataset):
        product = product.decoded()
    _check_fit(product, test_set)
    file_bytes = _file_bytes(path)  # before the training, which a missing file must not cost
    if curve_points < 0:
        raise ArgumentError(f"curve_points: got {curve_points}, at least 0 is needed")
    training = _train_config(config, len(product), 0)
    runs = []
    for number in range(count):
        network_seed = derive_seed(seed, "evaluation", number)
        model = create(config.backbone, seed=network_seed, **network_options(product, config.backbone_options))
        runs.append(
            _one_network(
                model, product, test_set, training.model_copy(update={"seed": network_seed}), measures or {},
                curve_points, name=f"network {number + 1} of {count}", quiet=quiet, device=device,
            )
        )  # fmt: skip
    return _summary(
        runs, samples=len(product), frame_bytes=frame_bytes, file_bytes=file_bytes, test_samples=len(test_set),
        steps=training.epochs * math.ceil(len(product) / training.batch_size),
    )  # fmt: skip


@dataclass(frozen=True)
class _Trained:
    """What one fresh network came to."""

    accuracy: float
    seconds: float
    cpu_seconds: float
    measures: dict[str, float]
    curve: list[list[float]]


def _summary(runs: list[_Trained], **known: Any) -> Evaluation:
    """What the networks came to, all together; ``known``: the fields that do not depend on them."""
    accuracies = [run.accuracy for run in runs]
    return Evaluation(
        accuracies=accuracies,
        mean=statistics.fmean(accuracies),
        std=statistics.stdev(accuracies) if len(runs) > 1 else 0.0,
        train_seconds=statistics.fmean(run.seconds for run in runs),
        train_cpu_seconds=statistics.fmean(run.cpu_seconds for run in runs),
        measures={name: [run.measures[name] for run in runs] for name in runs[0].measures},
        curves=[run.curve for run in runs if run.curve],
        **known,
    )


def _one_network(
    model: nn.Module, product: FrameDataset, test_set: FrameDataset, training: TrainConfig,
    measures: Mapping[str, Measure], curve_points: int, **options: Any,
) -> _Trained:  # fmt: skip
    """Train it on the product, test it at its last step."""
    curve = AccuracyCurve(test_set, curve_points)
    cpu = time.process_time()
    result = train_classifier(model, product, training, hooks=[curve] if curve_points else [], **options)
    cpu = time.process_time() - cpu - curve.cpu_seconds
    logits = predict_logits(model, test_set)
    return _Trained(
        accuracy=(logits.argmax(1) == test_set.labels).double().mean().item(),
        seconds=result.seconds - curve.seconds,
        cpu_seconds=cpu,
        measures={name: measure(logits, test_set.labels) for name, measure in measures.items()},
        curve=curve.points,
    )


def evaluate_full(
    train_set: FrameDataset,
    test_set: FrameDataset,
    *,
    networks: int | None = None,
    config: EvaluationConfig | None = None,
    training: dict[str, Any] | None = None,
    seed: int = 0,
    quiet: bool = False,
    device: str | torch.device = "cpu",
    measures: Mapping[str, Measure] | None = None,
    curve_points: int = 0,
) -> Evaluation:
    """The full-data reference: the same function and networks, with a training that suits the full set.

    Args:
        training: keys of TrainConfig; by default its own defaults (50 epochs, TET and rate loss), so that the
            reference is trained well and a fraction of it is not flattered. The others as in :func:`evaluate_product`.

    Raises:
        As :func:`evaluate_product`.
    """
    full = (config or EvaluationConfig()).model_copy(update={"steps": None, "training": training or {}})
    return evaluate_product(
        train_set, test_set, networks=networks, config=full, seed=seed, quiet=quiet, device=device, measures=measures,
        curve_points=curve_points,
    )  # fmt: skip


def compare(product: Evaluation, full: Evaluation) -> dict[str, float]:
    """The product beside the full set: fraction of its accuracy, how many times faster and smaller."""
    return {
        "fraction_of_full": product.mean / full.mean if full.mean else math.nan,
        "training_speedup": full.train_seconds / product.train_seconds if product.train_seconds else math.nan,
        "frame_bytes_ratio": full.frame_bytes / product.frame_bytes,
        "samples_ratio": full.samples / product.samples,
    }


def _train_config(config: EvaluationConfig, samples: int, seed: int) -> TrainConfig:
    training = make_train_config(config.training, "evaluation.training", seed=seed)
    batch_size = min(training.batch_size, samples)
    epochs = training.epochs
    if config.steps is not None:
        epochs = math.ceil(config.steps / math.ceil(samples / batch_size))
    return training.model_copy(update={"batch_size": batch_size, "epochs": epochs})


def _file_bytes(path: str | os.PathLike[str] | None) -> int | None:
    if path is None:
        return None
    if not Path(path).is_file():
        raise ArgumentError(f"path: {os.fspath(path)} is no file")
    return Path(path).stat().st_size


def _check_fit(product: FrameDataset, test_set: FrameDataset) -> None:
    for name, dataset in (("product", product), ("test_set", test_set)):
        if not len(dataset):
            raise ArgumentError(f"{name}: holds no samples")
    if product.frames.shape[1:] != test_set.frames.shape[1:] or product.num_classes != test_set.num_classes:
        raise ArgumentError(
            f"product has frames {list(product.frames.shape[1:])} and {product.num_classes} classes, test_set "
            f"{list(test_set.frames.shape[1:])} and {test_set.num_classes}: they must be equal"
        )
