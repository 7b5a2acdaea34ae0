"""The distillation loop of PACE: only the synthetic frames are optimised, against frozen teachers, class by class.

Each iteration draws a teacher, a view and a batch of real samples of every class; quantizes the canvas (PEQ-N);
sees real and synthetic frames in the same view; collects SDR features of both at every chosen layer; and takes an
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
from snn_core.distillation.augment import views_of
from snn_core.distillation.class_ranks import ClassRanks
from snn_core.distillation.config import DistillConfig
from snn_core.distillation.decoder import DECODER_BATCH, ClipDecoder, learn_decoder
from snn_core.distillation.densify import choose_layers
from snn_core.distillation.initial import initial_frames
from snn_core.distillation.matching import MatchingLoss, MatchingTerms, group_by_class
from snn_core.distillation.micro_batches import backward_in_batches
from snn_core.distillation.min_max import FrequencyClimb
from snn_core.distillation.quantizer import PEQN
from snn_core.distillation.real_features import RealFeatures
from snn_core.distillation.selection import class_indices
from snn_core.distillation.spatio_temporal import SpatioTemporalMatching
from snn_core.distillation.state import DistillState, adam_moments, load_state, restore_adam, save_state
from snn_core.distillation.teachers import TeacherPool
from snn_core.errors import ArgumentError, CheckpointError, InterruptedRunError, NonFiniteError
from snn_core.interrupt import deferred_interrupt
from snn_core.progress import progress
from snn_core.seeding import make_generator, seeded


@dataclass
class DistillResult:
    """What distillation gives.

    ``frames`` uint8 [K * ipc, T, 2, H, W], as stored (``config.formation()`` decodes them), and ``labels`` int64,
    sorted by class; ``canvas`` float32, before rounding and packing (sheets of :class:`Formation`); ``history``: one
    record of loss parts an iteration; ``seconds`` of wall-clock; ``decoder``: the learned one, on the CPU, where the
    configuration asks for it.
    """

    frames: Tensor
    labels: Tensor
    canvas: Tensor
    history: list[dict[str, float]]
    seconds: float
    decoder: ClipDecoder | None = None


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

    Where ``torch.distributed`` is initialised, every process calls this with the same arguments and takes a share of
    the classes; all get the result of one process, but for rounding. The first one writes the state, which all read.

    Args:
        dataset: the real training set.
        teachers: frozen networks, see :func:`snn_core.distillation.train_teachers`.
        config: all settings.
        seed: of initialisation and every draw; the same inputs give the same frames, interrupted or not.
        state_path: where the resumable state is kept (every ``config.checkpoint_every`` iterations, on an interrupt,
            and at the end). None keeps none.
        resume: go on from that state.
        quiet: no progress bar. device: where features are computed; draws are made on the CPU whatever it is.
        matching: another loss in place of ST-SM with the config's settings, which several processes share only if it
            is a :class:`snn_core.distillation.SpatioTemporalMatching`. A saved state knows it by its ``repr``, so
            that should tell its settings; without one of its own it is known by its qualified name.

    Returns:
        The frames and how they came about.

    Raises:
        ArgumentError: ``config.T`` that the data does not have, a teacher of another shape, an unknown layer, teachers
            with different numbers of spiking layers, frames that the formation cannot divide, more processes than
            classes.
        DataError: a class with fewer samples than start the canvas (or none at all).
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
    elif run.decoder is not None:
        run.learn_decoder(quiet)
    _iterate(run, path, quiet)
    return run.result()


def _iterate(run: _Run, path: Path | None, quiet: bool) -> None:
    """All steps that are left, saving where ``path`` says."""
    total, every = run.config.iterations, run.config.checkpoint_every
    with deferred_interrupt() as interrupted:
        bar = progress(range(run.iteration, total), description="distill", quiet=quiet)
        started = time.perf_counter() - run.seconds
        for _ in bar:
            record = run.step()
            run.seconds = time.perf_counter() - started
            bar.set_postfix(loss=f"{record['loss']:.3f}")
            last = run.iteration == total
            stop = run.ranks.any(bool(interrupted), run.device)
            if path is not None and (stop or last or run.iteration % every == 0):
                run.save(path)
            if stop and not last:
                where = f"state saved in {path}, resume to go on" if path else "no state_path, nothing saved"
                raise InterruptedRunError(
                    f"distillation interrupted after iteration {run.iteration} of {total}; {where}"
                )


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
        self.formation = config.formation()
        self.formation.check(dataset.frames[:1])
        self.classes = class_indices(dataset.labels, dataset.num_classes)
        self.ranks = ClassRanks(dataset.num_classes)
        self.layer_names = _common_layers(teachers, config.layers)
        self.matching = matching or config.loss()
        if isinstance(self.matching, SpatioTemporalMatching):
            self.matching.gather = self.ranks.gather if self.ranks.size > 1 else None
            betas = [config.beta if beta is None else beta for beta in self.matching.betas]
        elif self.ranks.size > 1:
            raise ArgumentError(
                f"matching: {_loss_name(self.matching)} cannot be shared by {self.ranks.size} processes"
            )
        else:
            betas = [config.beta]
        self.features = self._real_features(betas)
        initial = initial_frames(dataset, config, generator=self.generator, teachers=teachers, device=device)
        levels = min(config.levels, self.formation.levels)
        self.quantizer = PEQN(initial, levels, generator=self.generator, quantize=config.quantize).to(device)
        # A floor is Adam's epsilon, in units of the gradient's root mean square (see step()).
        epsilon = config.gradient_floor or 1e-8
        self.optimizer = torch.optim.Adam(
            [self.quantizer.canvas], config.learning_rate, betas=config.betas, eps=epsilon
        )
        self.decoder = self._decoder()
        self.climb = FrequencyClimb(self.matching, self.features.widths, len(betas), config.frequency_rate, device)
        self.iteration = 0
        self.seconds = 0.0
        self.history_names: list[str] = []
        self.rows: list[list[float]] = []

    def _real_features(self, betas: list[float]) -> RealFeatures:
        config, dataset = self.config, self.dataset
        return RealFeatures(
            dataset,
            self.teachers,
            views_of(config, dataset.sensor_size[:2], generator=self.generator),
            layers=config.layers,
            beta=betas,
            feature_pool=config.feature_pool,
            cache_megabytes=config.cache_megabytes,
            chunk=config.micro_batch,
            device=self.device,
            samples=torch.cat(self.classes[self.ranks.start : self.ranks.stop]).sort().values,
            draws=config.iterations * self.ranks.count * config.real_batch,
        )

    def _decoder(self) -> ClipDecoder | None:
        """A fresh one, where the configuration asks for it."""
        config, formation = self.config, self.formation
        if config.decoder == "repeat":
            return None
        with seeded(self.seed, "decoder"):
            decoder = ClipDecoder(
                self.dataset.frames.shape[2], formation.space, formation.time, width=config.decoder_width,
                draw=config.decoder_draw,
            )  # fmt: skip
        return decoder.to(self.device)

    def learn_decoder(self, quiet: bool) -> None:
        """On all real samples, the same on every process. Its draws are its own: the loop's do not depend on it."""
        assert self.decoder is not None
        started, config, gather = time.perf_counter(), self.config, None
        generator = make_generator(self.seed, "decoder")
        if isinstance(self.matching, SpatioTemporalMatching):
            gather, self.matching.gather = self.matching.gather, None  # pairs of clips, not classes
            self.matching.set_progress(1.0)

        def paired_loss(real: Tensor, decoded: Tensor) -> Tensor:
            chosen = self.teachers[int(torch.randint(len(self.teachers), (1,), generator=generator))]
            with torch.no_grad():
                wanted = self.features.collect(chosen, real.transpose(0, 1))
            found = self.features.collect(chosen, decoded.transpose(0, 1))
            wanted, found = ([layer.unsqueeze(2) for layer in layers] for layers in (wanted, found))
            return config.decoder_matching * self._sum_of_layers(wanted, found, generator)[0]

        learn_decoder(
            self.decoder, self.dataset, self.formation, generator=generator, iterations=config.decoder_iterations,
            batch_size=min(config.micro_batch or DECODER_BATCH, DECODER_BATCH),
            learning_rate=config.decoder_rate, paired_loss=paired_loss if config.decoder_matching else None,
            quiet=quiet, device=self.device,
        )  # fmt: skip
        self.decoder.store_as_half_()
        if isinstance(self.matching, SpatioTemporalMatching):
            self.matching.gather = gather
        for parameter in self.decoder.parameters() if self.ranks.size > 1 else ():
            if self.ranks.rank:
                parameter.data.zero_()
            self.ranks.sum_(parameter.data)
        self.decoder.requires_grad_(False)
        self.seconds = time.perf_counter() - started

    def step(self) -> dict[str, float]:
        """One iteration; returns its record for the log."""
        config, generator = self.config, self.generator
        teacher = int(torch.randint(len(self.teachers), (1,), generator=generator))
        view = int(torch.randint(len(self.features.views), (1,), generator=generator))
        picks = [group[torch.randint(len(group), (config.real_batch,), generator=generator)] for group in self.classes]
        real = self.features(teacher, view, torch.stack(picks)[self.ranks.start : self.ranks.stop])
        frames = self._synthetic_frames(view)
        record: dict[str, float] = {}

        def loss_of(features: list[Tensor]) -> Tensor:
            loss, terms = self._loss(real, group_by_class(features, self.ranks.count))
            record.update(self._record(loss, terms))
            return loss

        self.optimizer.zero_grad(set_to_none=True)
        self.climb.zero_grad()
        chosen = self.teachers[teacher]
        backward_in_batches(frames, lambda x: self.features.collect(chosen, x), loss_of, config.micro_batch)
        self._reduce_gradients()
        if config.gradient_floor:
            unit_gradients_(self.quantizer.canvas)
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        self.optimizer.step()
        self.quantizer.project_()
        self.climb.step()
        self.iteration += 1
        self.history_names = list(record)
        self.rows.append(list(record.values()))
        return record

    def _synthetic_frames(self, view: int) -> Tensor:
        """Clips of the own classes ``[T, k * ipc * draws * clips, P, H, W]``, sorted by class, quantized and viewed."""
        sheets = self.config.ipc * self.formation.digits
        own = slice(self.ranks.start * sheets, self.ranks.stop * sheets)
        draws = [self._decoded(self.quantizer()[own]) for _ in range(self.config.draws)]
        clips = draws[0] if len(draws) == 1 else torch.stack(draws, 1).flatten(0, 1)
        return self.features.views[view].apply(clips.transpose(0, 1))

    def _decoded(self, sheets: Tensor) -> Tensor:
        """Clips of the own classes as networks see them, with gradient."""
        if self.decoder is None:
            return self.formation.unfold(sheets)
        clips = self.config.ipc * self.formation.clips
        return self.decoder.draw(
            self.decoder(self.formation.take_apart(sheets)), generator=self.generator,
            rows_of=(self.ranks.start * clips, self.ranks.num_classes * clips),
        )  # fmt: skip

    def _loss(self, real: list[Tensor], synthetic: list[Tensor]) -> tuple[Tensor, list[MatchingTerms]]:
        """The own classes' share of the loss, and the terms of each layer."""
        if isinstance(self.matching, SpatioTemporalMatching):
            self.matching.set_progress(self.iteration / self.config.iterations)
        loss, terms = self._sum_of_layers(real, synthetic, self.generator)
        if self.ranks.size > 1:
            loss = loss * (self.ranks.count / self.ranks.num_classes)
        return loss, terms

    def _sum_of_layers(
        self, real: list[Tensor], synthetic: list[Tensor], generator: torch.Generator
    ) -> tuple[Tensor, list[MatchingTerms]]:
        ours = isinstance(self.matching, SpatioTemporalMatching)
        terms = [
            self.matching(r, s, generator=generator, **({"layer": layer} if ours else {}))
            for layer, (r, s) in enumerate(zip(real, synthetic, strict=True))
        ]
        return torch.stack([layer.total for layer in terms]).sum(), terms

    def _reduce_gradients(self) -> None:
        """Gradients of all classes, on every process. Raises NonFiniteError naming the classes in which one is not."""
        canvas = self.quantizer.canvas
        assert canvas.grad is not None
        for gradient in [canvas.grad, *self.climb.gradients()]:
            self.ranks.sum_(gradient)
        self._check_gradient()

    def _learning_rate(self) -> float:
        """Cosine from ``learning_rate`` down to ``final_learning_rate`` times it: a function of the iteration only."""
        low = self.config.final_learning_rate
        factor = low + (1 - low) * 0.5 * (1 + math.cos(math.pi * self.iteration / self.config.iterations))
        return self.config.learning_rate * factor

    def _record(self, loss: Tensor, terms: list[MatchingTerms]) -> dict[str, float]:
        """What is logged of a step, equal on every process. Raises NonFiniteError naming layer, term and class."""
        everyone = [
            {
                name: self.ranks.gather(value) if self.ranks.size > 1 else value
                for name, value in layer.per_class.items()
            }
            for layer in terms
        ]
        total = self.ranks.sum_(loss.detach().clone()).item()
        if not math.isfinite(total):
            raise NonFiniteError(self._explain(everyone))
        record = {"loss": total}
        for layer, values in zip(self.layer_names, everyone, strict=True):
            record |= {f"{layer}/{term}": value.mean().item() for term, value in values.items()}
        return record

    def _where(self) -> str:
        return f"in iteration {self.iteration + 1} of {self.config.iterations}"

    def _explain(self, terms: list[dict[str, Tensor]]) -> str:
        """Which layer, term and class made the loss non-finite."""
        names = self.dataset.class_names
        for layer, values in zip(self.layer_names, terms, strict=True):
            for term, value in values.items():
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
            "config": self.config.model_dump(mode="json", exclude={"checkpoint_every"}),
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
            extra=self.climb.state() | self._decoder_state(),
        )

    def _decoder_state(self) -> dict[str, Tensor]:
        tensors = {} if self.decoder is None else self.decoder.state_dict()
        return {f"decoder/{name}": value for name, value in tensors.items()}

    def save(self, path: Path) -> None:
        """Written by the first process; none goes on before it is there."""
        if self.ranks.rank == 0:
            save_state(path, self.state(), self.identity())
        self.ranks.wait()

    def restore(self, state: DistillState) -> None:
        with torch.no_grad():
            self.quantizer.canvas.copy_(state.canvas)
        restore_adam(self.optimizer, self.quantizer.canvas, state)
        self.climb.restore(state.extra)
        if self.decoder is not None:
            self.decoder.load_state_dict({name: state.extra[f"decoder/{name}"] for name in self.decoder.state_dict()})
            self.decoder.requires_grad_(False)
        self.generator.set_state(state.generator_state)
        self.iteration, self.seconds = state.iteration, state.seconds
        self.history_names, self.rows = state.history_names, state.history.tolist()

    def result(self) -> DistillResult:
        return DistillResult(
            frames=self.formation.pack(self.quantizer.export().cpu()),
            labels=torch.arange(self.dataset.num_classes).repeat_interleave(self.config.ipc),
            canvas=self.quantizer.canvas.detach().cpu().clone(),
            history=[dict(zip(self.history_names, row, strict=True)) for row in self.rows],
            seconds=self.seconds,
            decoder=None if self.decoder is None else self.decoder.cpu(),
        )


def unit_gradients_(canvas: Tensor) -> None:
    """Scale the gradient of every sheet of ``canvas`` ``[N, ...]`` to a root mean square of 1, in place; 0 stays 0."""
    assert canvas.grad is not None
    rms = canvas.grad.flatten(1).square().mean(1).sqrt()
    canvas.grad /= torch.where(rms > 0, rms, 1.0).view(-1, *(1,) * (canvas.ndim - 1))


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
