"""DC: gradient matching. Synthetic samples whose training gradients point where those of real samples do.

Source: Zhao, Mopuri, Bilen, "Dataset Condensation with Gradient Matching", ICLR 2021 (one shared augmentation draw for
real and synthetic as in DSA, Zhao, Bilen, ICML 2021). Networks are freshly initialised every EPISODE steps and, between
steps, trained on the synthetic set. Batch norms take their statistics from one batch of real samples, then stay.

    d(A, B) = sum over output units (1 - cos(A_unit, B_unit)),  A, B: a layer's gradients from real and synthetic
    samples

Its second derivative goes through the neurons: only their plain torch form has one, so this method is slow.

    dc              cross-entropy of the logits at every time step
    dc/time-mean    cross-entropy of the logits averaged over time
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snn_core.backbones import create
from snn_core.datasets import FrameDataset
from snn_core.distillation.augment import views_of
from snn_core.distillation.config import DistillConfig
from snn_core.distillation.initial import initial_frames
from snn_core.distillation.methods.base import make_product
from snn_core.distillation.product import DistilledDataset
from snn_core.distillation.quantizer import PEQN
from snn_core.distillation.selection import class_indices
from snn_core.distillation.state import DistillState, adam_moments, load_state, restore_adam, save_state
from snn_core.distillation.teachers import TeacherPool, network_options
from snn_core.errors import ArgumentError, CheckpointError, InterruptedRunError, NonFiniteError
from snn_core.interrupt import deferred_interrupt
from snn_core.progress import progress
from snn_core.seeding import derive_seed, make_generator

EPISODE = 10  # steps with one network
NETWORK_STEPS, NETWORK_RATE = 5, 0.01  # of its training on the synthetic set, after every step
_NORM_BATCH = 64
_TINY = 1e-6


def gradient_distance(real: list[Tensor], synthetic: list[Tensor]) -> Tensor:
    """Sum over tensors and their output units of one minus the cosine; tensors of one dimension are one unit."""
    total = real[0].new_zeros(())
    for a, b in zip(real, synthetic, strict=True):
        rows_a, rows_b = (value.flatten(1) if value.ndim > 1 else value.unsqueeze(0) for value in (a, b))
        lengths = torch.linalg.vector_norm(rows_a, dim=1) * torch.linalg.vector_norm(rows_b, dim=1)
        total = total + (1 - (rows_a * rows_b).sum(1) / (lengths + _TINY)).sum()
    return total


class GradientMatching:
    """DC. ``time_mean``: the loss is that of the time-averaged logits; teachers are not used."""

    needs_teachers = False

    def __init__(self, name: str, time_mean: bool) -> None:
        self.name, self.time_mean = name, time_mean

    def __call__(
        self, dataset: FrameDataset, config: DistillConfig, *, teachers: TeacherPool | None = None, seed: int = 0,
        state_path: str | os.PathLike[str] | None = None, resume: bool = False, quiet: bool = False,
        device: str | torch.device = "cpu",
    ) -> DistilledDataset:  # fmt: skip
        """Distil. The state is kept at the end of every episode: a resumed run repeats the one it was stopped in.

        Raises:
            As :func:`snn_core.distillation.distill`; ArgumentError: a backbone of ``config.teachers`` without a form in
            plain torch (option ``backend``).
        """
        run = _Run(dataset, config, seed, torch.device(device), self.time_mean, teachers)
        path = Path(state_path) if state_path is not None else None
        if resume:
            if path is None:
                raise CheckpointError("nothing to resume: no state_path was given")
            run.restore(load_state(path, run.identity(self.name)))
        started = time.perf_counter() - run.seconds
        episodes = range(run.iteration // EPISODE, math.ceil(config.iterations / EPISODE))
        with deferred_interrupt() as interrupted:
            for episode in progress(episodes, description=self.name, quiet=quiet):
                run.episode(episode, interrupted)
                run.seconds = time.perf_counter() - started
                if not interrupted and path is not None:
                    save_state(path, run.state(), run.identity(self.name))
                if interrupted:
                    where = f"the state in {path} is of the last whole episode" if path else "nothing saved"
                    raise InterruptedRunError(f"{self.name}: interrupted in step {run.iteration + 1}; {where}")
        return make_product(
            dataset, run.formation.pack(run.quantizer.export().cpu()), run.labels.cpu(), method=self.name,
            ipc=config.ipc, seed=seed, config=config.model_dump(mode="json"), seconds=run.seconds,
        )  # fmt: skip


class _Run:
    """One distillation by gradient matching."""

    def __init__(
        self,
        dataset: FrameDataset,
        config: DistillConfig,
        seed: int,
        device: torch.device,
        time_mean: bool,
        teachers: TeacherPool | None = None,
    ) -> None:
        if config.T is not None and config.T != dataset.T:
            raise ArgumentError(f"T: the config asks for {config.T} time steps, the data has {dataset.T}")
        if config.decoder != "repeat":
            raise ArgumentError("decoder: gradient matching has no features to learn one by; it needs 'repeat'")
        self.dataset, self.config, self.seed, self.device, self.time_mean = dataset, config, seed, device, time_mean
        self.classes = class_indices(dataset.labels, dataset.num_classes)
        generator = make_generator(seed, "dc")
        self.views = views_of(config, dataset.sensor_size[:2], generator=generator)
        self.formation = config.formation()
        self.formation.check(dataset.frames[:1])
        initial = initial_frames(dataset, config, generator=generator, teachers=teachers, device=device)
        levels = min(config.levels, self.formation.levels)
        self.quantizer = PEQN(initial, levels, generator=generator, quantize=config.quantize).to(device)
        self.labels = torch.arange(dataset.num_classes, device=device).repeat_interleave(config.ipc)
        self.optimizer = torch.optim.Adam([self.quantizer.canvas], config.learning_rate, betas=config.betas)
        self.iteration, self.seconds = 0, 0.0
        self.losses: list[float] = []

    def identity(self, name: str) -> dict[str, Any]:
        """What a saved state belongs to."""
        config = self.config.model_dump(mode="json", exclude={"checkpoint_every"})
        return {"method": name, "config": config, "data": self.dataset.content_key, "seed": self.seed}

    def state(self) -> DistillState:
        """At the end of an episode: the next one's draws depend on its number alone."""
        exp_avg, exp_avg_sq = adam_moments(self.optimizer, self.quantizer.canvas)
        return DistillState(
            iteration=self.iteration, canvas=self.quantizer.canvas.detach(), exp_avg=exp_avg, exp_avg_sq=exp_avg_sq,
            generator_state=self.quantizer.generator.get_state(), history=torch.tensor(self.losses).view(-1, 1),
            history_names=["loss"], seconds=self.seconds,
        )  # fmt: skip

    def restore(self, state: DistillState) -> None:
        """Take up a saved state."""
        with torch.no_grad():
            self.quantizer.canvas.copy_(state.canvas)
        restore_adam(self.optimizer, self.quantizer.canvas, state)
        self.iteration, self.seconds, self.losses = state.iteration, state.seconds, state.history.flatten().tolist()

    def episode(self, number: int, interrupted: Any) -> None:
        """Steps with one network; ends early after an interrupt."""
        generator = make_generator(self.seed, "dc", number)
        self.quantizer.generator = generator
        network = self._network(number, generator)
        training = torch.optim.SGD(network.parameters(), NETWORK_RATE, momentum=0.5)
        for step in range(number * EPISODE, min((number + 1) * EPISODE, self.config.iterations)):
            self._match(network, generator, step)
            if interrupted:
                return
            for _ in range(NETWORK_STEPS):
                frames = self.formation.unfold(self.quantizer().detach())
                training.zero_grad()
                self._loss(
                    network, frames.transpose(0, 1), self.labels.repeat_interleave(self.formation.clips)
                ).backward()
                training.step()
        self.iteration = min((number + 1) * EPISODE, self.config.iterations)

    def _network(self, number: int, generator: torch.Generator) -> nn.Module:
        """Fresh weights; batch norms hold the statistics of real samples."""
        options = self.config.teachers.backbone_options | {"backend": "reference"}
        own = derive_seed(self.seed, "dc network", number)
        teachers = self.config.teachers
        network = create(teachers.backbone, seed=own, **network_options(self.dataset, options)).to(self.device)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        chosen = torch.randint(len(self.dataset), (min(_NORM_BATCH, len(self.dataset)),), generator=generator)
        with torch.no_grad():
            network.train()(self._real(chosen))
        return network.eval()

    def _match(self, network: nn.Module, generator: torch.Generator, step: int) -> None:
        """One step of the canvas down the distance of the gradients, class by class."""
        config, sheets = self.config, self.config.ipc * self.formation.digits
        view = self.views[int(torch.randint(len(self.views), (1,), generator=generator))]
        parameters = list(network.parameters())
        low = config.final_learning_rate
        factor = low + (1 - low) * 0.5 * (1 + math.cos(math.pi * step / config.iterations))
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * factor
        self.optimizer.zero_grad(set_to_none=True)
        synthetic = self.quantizer()
        total = 0.0
        for k, group_k in enumerate(self.classes):
            picks = group_k[torch.randint(len(group_k), (config.real_batch,), generator=generator)]
            labels = torch.full((config.real_batch,), k, device=self.device)
            real = self._loss(network, view.apply(self._real(picks)), labels)
            wanted = [value.detach() for value in torch.autograd.grad(real, parameters)]
            own = view.apply(self.formation.unfold(synthetic[k * sheets : (k + 1) * sheets]).transpose(0, 1))
            loss = self._loss(network, own, labels[:1].expand(own.shape[1]))
            got = torch.autograd.grad(loss, parameters, create_graph=True)
            distance = gradient_distance(wanted, list(got))
            if not math.isfinite(distance.item()):
                raise NonFiniteError(
                    f"the gradient distance is not finite for class {self.dataset.class_names[k]} in step {step + 1}"
                )
            distance.backward(retain_graph=k + 1 < len(self.classes), inputs=[self.quantizer.canvas])
            total += distance.item()
        self.optimizer.step()
        self.quantizer.project_()
        self.losses.append(total / len(self.classes))

    def _loss(self, network: nn.Module, frames: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of frames ``[T, B, 2, H, W]``."""
        logits = network.forward_steps(frames)  # type: ignore[operator]
        if self.time_mean:
            return F.cross_entropy(logits.mean(0), labels)
        return F.cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits)))

    def _real(self, indices: Tensor) -> Tensor:
        """Real frames, time first."""
        return self.dataset.frames[indices].transpose(0, 1).to(self.device).float()


METHODS = {
    "dc": lambda: GradientMatching("dc", time_mean=False),
    "dc/time-mean": lambda: GradientMatching("dc/time-mean", time_mean=True),
}
