"""The distillation loop of PACE: only the synthetic frames are optimised, against frozen teachers, class by class.

Each iteration draws a teacher, a shift and a batch of real samples of every class; quantizes the canvas (PEQ-N);
moves real and synthetic frames by the same shift; collects SDR features of both at every chosen layer; and takes an
Adam step on the canvas down the ST-SM loss, summed over layers. The concrete recipe is this project's (see
docs/notes/pace.md for what was tried).
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snn_core.datasets import FrameDataset
from snn_core.distillation.augment import choose_shifts, shift_frames
from snn_core.distillation.config import DistillConfig
from snn_core.distillation.densify import choose_layers
from snn_core.distillation.matching import MatchingLoss, MatchingTerms, SpatioTemporalMatching, group_by_class
from snn_core.distillation.quantizer import PEQN
from snn_core.distillation.real_features import RealFeatures
from snn_core.distillation.selection import class_indices, select_random
from snn_core.distillation.state import DistillState, adam_moments, load_state, restore_adam, save_state
from snn_core.distillation.teachers import TeacherPool
from snn_core.errors import ArgumentError, CheckpointError, InterruptedRunError, NonFiniteError
from snn_core.interrupt import deferred_interrupt
from snn_core.progress import progress
from snn_core.seeding import make_generator


@dataclass
class DistillResult:
    """What distillation gives: ``frames`` uint8 [K * ipc, T, 2, H, W] and ``labels`` int64, sorted by class;
    ``canvas`` float32, before rounding; ``history``: one record of loss parts an iteration; ``seconds`` of wall-clock.
    """

    frames: Tensor
    labels: Tensor
    canvas: Tensor
    history: list[dict[str, float]]
    seconds: float


def distill(
    dataset: FrameDataset,
    teachers: TeacherPool,
    config: DistillConfig | None = None,
    *,
    seed: int = 0,
    state_path: str | os.PathLike[str] | None = None,
    resume: bool = False,
    quiet: bool = False,
    device: str | torch.device = "cpu",
    matching: MatchingLoss | None = None,
) -> DistillResult:
    """Condense ``dataset`` into ``config.ipc`` synthetic samples per class.

    Args:
        dataset: the real training set.
        teachers: frozen networks, see :func:`snn_core.distillation.train_teachers`.
        config: all settings.
        seed: of initialisation and every draw; the same inputs give the same frames, interrupted or not.
        state_path: where the resumable state is kept (every ``config.checkpoint_every`` iterations, on an interrupt,
            and at the end). None keeps none.
        resume: go on from that state.
        quiet: no progress bar. device: where features are computed; draws are made on the CPU whatever it is.
        matching: another loss in place of ST-SM with the config's settings. A saved state knows it by its ``repr``, so
            that should tell its settings; without one of its own it is known by its qualified name.

    Returns:
        The frames and how they came about.

    Raises:
        ArgumentError: ``config.T`` that the data does not have, a teacher of another shape, an unknown layer, teachers
            with different numbers of spiking layers.
        DataError: a class with fewer samples than ``ipc`` (or none at all).
        NonFiniteError: a loss or gradient became NaN or infinite; the message names layer, term and class. The last
            state on disk is kept.
        CheckpointError: nothing to resume, or the state is corrupt or of another run.
        InterruptedRunError: Ctrl-C or SIGTERM; the state is saved.
    """
    config = config or DistillConfig()
    run = _Run(dataset, teachers, config, seed, torch.device(device), matching)
    path = Path(state_path) if state_path is not None else None
    if resume:
        if path is None:
            raise CheckpointError("nothing to resume: no state_path was given")
        run.restore(load_state(path, run.identity()))
    with deferred_interrupt() as interrupted:
        bar = progress(range(run.iteration, config.iterations), description="distill", quiet=quiet)
        started = time.perf_counter() - run.seconds
        for _ in bar:
            record = run.step()
            run.seconds = time.perf_counter() - started
            bar.set_postfix(loss=f"{record['loss']:.3f}")
            last = run.iteration == config.iterations
            if path is not None and (interrupted or last or run.iteration % config.checkpoint_every == 0):
                save_state(path, run.state(), run.identity())
            if interrupted and not last:
                where = f"state saved in {path}, resume to go on" if path else "no state_path, nothing saved"
                raise InterruptedRunError(
                    f"distillation interrupted after iteration {run.iteration} of {config.iterations}; {where}"
                )
    return run.result()


class _Run:
    """One distillation: its position, and how that is saved and taken up again."""

    def __init__(
        self,
        dataset: FrameDataset,
        teachers: TeacherPool,
        config: DistillConfig,
        seed: int,
        device: torch.device,
        matching: MatchingLoss | None,
    ) -> None:
        if config.T is not None and config.T != dataset.T:
            raise ArgumentError(f"T: the config asks for {config.T} time steps, the data has {dataset.T}")
        if not len(teachers):
            raise ArgumentError("teachers: the pool is empty")
        self.dataset, self.teachers, self.config, self.seed, self.device = (
            dataset,
            teachers.to(device),
            config,
            seed,
            device,
        )
        self.generator = make_generator(seed, "distill")
        needed = config.ipc if config.init == "real" else 1
        self.classes = class_indices(dataset.labels, dataset.num_classes, at_least=needed)
        self.layer_names = _common_layers(teachers, config.layers)
        self.features = RealFeatures(
            dataset,
            teachers,
            choose_shifts(config.num_shifts, config.max_shift, generator=self.generator),
            layers=config.layers,
            beta=config.beta,
            feature_pool=config.feature_pool,
            cache_megabytes=config.cache_megabytes,
            device=device,
        )
        self.matching = matching or SpatioTemporalMatching(
            sigma=config.sigma,
            num_frequencies=config.num_frequencies,
            alpha=config.alpha,
            mu=config.mu,
            gamma=config.gamma,
            cf_weight=config.cf_weight,
            normalise=config.normalise,
        )
        initial = initial_frames(dataset, config, generator=self.generator)
        self.quantizer = PEQN(initial, config.levels, generator=self.generator).to(device)
        self.optimizer = torch.optim.Adam([self.quantizer.canvas], config.learning_rate, betas=config.betas)
        self.iteration = 0
        self.seconds = 0.0
        self.history_names: list[str] = []
        self.rows: list[list[float]] = []

    def step(self) -> dict[str, float]:
        """One iteration; returns its record for the log."""
        config, generator = self.config, self.generator
        teacher = int(torch.randint(len(self.teachers), (1,), generator=generator))
        shift = int(torch.randint(len(self.features.shifts), (1,), generator=generator))
        picks = [group[torch.randint(len(group), (config.real_batch,), generator=generator)] for group in self.classes]
        real = self.features(teacher, shift, torch.stack(picks))
        synthetic = self._synthetic_features(teacher, shift)

        terms = [self.matching(r, s, generator=generator) for r, s in zip(real, synthetic, strict=True)]
        loss = torch.stack([layer.total for layer in terms]).sum()
        if not math.isfinite(loss.item()):
            raise NonFiniteError(self._explain(terms))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._check_gradient()
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        self.optimizer.step()
        self.quantizer.project_()
        self.iteration += 1
        return self._log(loss, terms)

    def _synthetic_features(self, teacher: int, shift: int) -> list[Tensor]:
        """Features of the quantized canvas ``[T, K, draws * ipc, D]``, one tensor a layer."""
        draws = []
        for _ in range(self.config.draws):
            frames = shift_frames(self.quantizer().transpose(0, 1), self.features.shifts[shift])
            draws.append(self.features.collect(self.teachers[teacher], frames))
        grouped = [group_by_class(features, self.dataset.num_classes) for features in draws]
        return [torch.cat(layer, 2) for layer in zip(*grouped, strict=True)]

    def _learning_rate(self) -> float:
        """Cosine from ``learning_rate`` down to ``final_learning_rate`` times it: a function of the iteration only."""
        low = self.config.final_learning_rate
        factor = low + (1 - low) * 0.5 * (1 + math.cos(math.pi * self.iteration / self.config.iterations))
        return self.config.learning_rate * factor

    def _log(self, loss: Tensor, terms: list[MatchingTerms]) -> dict[str, float]:
        record = {"loss": loss.item()}
        for layer, values in zip(self.layer_names, terms, strict=True):
            record |= {f"{layer}/{term}": value.mean().item() for term, value in values.per_class.items()}
        self.history_names = list(record)
        self.rows.append(list(record.values()))
        return record

    def _where(self) -> str:
        return f"in iteration {self.iteration + 1} of {self.config.iterations}"

    def _explain(self, terms: list[MatchingTerms]) -> str:
        """Which layer, term and class made the loss non-finite."""
        names = self.dataset.class_names
        for layer, values in zip(self.layer_names, terms, strict=True):
            for term, value in values.per_class.items():
                bad = [names[k] for k in torch.nonzero(~torch.isfinite(value.detach())).flatten().tolist()]
                if bad:
                    return f"loss term {term} of layer {layer} is not finite for class {', '.join(bad)} {self._where()}"
        return f"the sum of the loss terms is not finite {self._where()}"

    def _check_gradient(self) -> None:
        gradient = self.quantizer.canvas.grad
        assert gradient is not None
        finite = torch.isfinite(gradient).flatten(1).all(1).view(self.dataset.num_classes, -1).all(1)
        if not bool(finite.all()):
            bad = [self.dataset.class_names[k] for k in torch.nonzero(~finite).flatten().tolist()]
            raise NonFiniteError(
                f"the gradient of the frames of class {', '.join(bad)} is not finite {self._where()} "
                f"(layers {', '.join(self.layer_names)})"
            )

    def identity(self) -> dict[str, Any]:
        """What a saved state belongs to."""
        return {
            "config": self.config.model_dump(exclude={"checkpoint_every"}),
            "data": self.dataset.content_key,
            "teachers": self.teachers.hashes,
            "matching": _loss_name(self.matching),
            "seed": self.seed,
        }

    def state(self) -> DistillState:
        exp_avg, exp_avg_sq = adam_moments(self.optimizer, self.quantizer.canvas)
        return DistillState(
            iteration=self.iteration,
            canvas=self.quantizer.canvas.detach(),
            exp_avg=exp_avg,
            exp_avg_sq=exp_avg_sq,
            generator_state=self.generator.get_state(),
            history=torch.tensor(self.rows).reshape(self.iteration, -1),
            history_names=self.history_names,
            seconds=self.seconds,
        )

    def restore(self, state: DistillState) -> None:
        with torch.no_grad():
            self.quantizer.canvas.copy_(state.canvas)
        restore_adam(self.optimizer, self.quantizer.canvas, state)
        self.generator.set_state(state.generator_state)
        self.iteration, self.seconds = state.iteration, state.seconds
        self.history_names, self.rows = state.history_names, state.history.tolist()

    def result(self) -> DistillResult:
        return DistillResult(
            frames=self.quantizer.export().cpu(),
            labels=torch.arange(self.dataset.num_classes).repeat_interleave(self.config.ipc),
            canvas=self.quantizer.canvas.detach().cpu().clone(),
            history=[dict(zip(self.history_names, row, strict=True)) for row in self.rows],
            seconds=self.seconds,
        )


def _common_layers(teachers: TeacherPool, layers: Sequence[str | int] | None) -> list[str]:
    """Names of the first teacher's chosen layers. Raises ArgumentError when another teacher has more or fewer."""
    names = [name for name, _ in choose_layers(teachers[0].model, layers)]
    for teacher in teachers:
        count = len(choose_layers(teacher.model, layers))
        if count != len(names):
            raise ArgumentError(
                f"teachers: {teacher.name} has {count} spiking layers to match, {teachers[0].name} has {len(names)}; "
                "they must be equal, or choose by layers those that all have"
            )
    return names


def _loss_name(matching: MatchingLoss) -> str:
    """The loss's own repr; for one that only has an address to tell, the qualified name of its class or function."""
    text = repr(matching)
    if not re.search(r" at 0x[0-9A-Fa-f]+", text):
        return text
    named = matching if hasattr(matching, "__qualname__") else type(matching)
    return f"{named.__module__}.{named.__qualname__}"


def initial_frames(dataset: FrameDataset, config: DistillConfig, *, generator: torch.Generator) -> Tensor:
    """Where the canvas starts, float32 [K * ipc, T, 2, H, W] sorted by class: real samples, or noise of their mean.

    Raises:
        DataError: ``init="real"`` and a class with fewer samples than ``ipc``.
    """
    if config.init == "real":
        chosen = select_random(dataset.labels, dataset.num_classes, config.ipc, generator=generator)
        return dataset.frames[chosen].float()
    shape = (dataset.num_classes * config.ipc, *dataset.frames.shape[1:])
    # exponential noise has the mean of event counts and, like them, is mostly small; nothing of a class is in it
    uniform = torch.rand(shape, generator=generator)
    return -torch.log1p(-uniform) * dataset.frames.float().mean()
