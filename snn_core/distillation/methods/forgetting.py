"""Forgetting: the samples that a network in training gets right and then wrong again most often.

Source: Toneva et al., "An Empirical Study of Example Forgetting during Deep Neural Network Learning", ICLR 2019; as a
coreset in Zhao, Mopuri, Bilen, "Dataset Condensation with Gradient Matching", ICLR 2021. There a sample is looked at
when it is in the batch; here all are, after every epoch, without augmentation. A sample that is never right counts as
forgotten at every epoch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from snn_core.backbones import create
from snn_core.datasets import FrameDataset
from snn_core.distillation.config import DistillConfig, TeacherConfig
from snn_core.distillation.methods.coreset import Coreset, Selection
from snn_core.distillation.selection import select_by_score
from snn_core.distillation.teachers import TeacherPool, make_train_config, network_options
from snn_core.seeding import derive_seed, make_generator
from snn_core.training import predict_logits, train_classifier


class ForgettingHook:
    """A training hook that counts, for every sample of ``dataset``, how often it was right and is wrong an epoch later.

    ``counts`` int64 [num]; samples that were never right have the number of epochs.
    """

    def __init__(self, dataset: FrameDataset, batch_size: int) -> None:
        self.dataset = dataset
        self.steps_per_epoch = math.ceil(len(dataset) / batch_size)
        self.counts = torch.zeros(len(dataset), dtype=torch.int64)

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer, total_steps: int) -> None:
        """Start counting."""
        self._model, self._steps, self._epochs = model, 0, 0
        self._right = torch.zeros(len(self.dataset), dtype=torch.bool)
        self._ever = self._right.clone()

    def step(self) -> None:
        """After the last step of an epoch, look at all samples."""
        self._steps += 1
        if self._steps % self.steps_per_epoch:
            return
        right = predict_logits(self._model, self.dataset).argmax(1) == self.dataset.labels
        self.counts += self._right & ~right
        self._right, self._ever = right, self._ever | right
        self._epochs += 1

    def end(self) -> None:
        """Count what was never learned."""
        self.counts[~self._ever] = self._epochs

    def metrics(self) -> dict[str, float]:
        """Nothing to log."""
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """Counts and what the last epoch was like."""
        position = torch.tensor([self._steps, self._epochs])
        return {"counts": self.counts, "right": self._right, "ever": self._ever, "position": position}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self.counts, self._right, self._ever = state["counts"], state["right"], state["ever"]
        self._steps, self._epochs = (int(value) for value in state["position"])


def count_forgetting(
    dataset: FrameDataset, config: TeacherConfig, *, seed: int = 0, quiet: bool = False,
    device: str | torch.device = "cpu",
) -> Tensor:  # fmt: skip
    """Forgetting events of every sample, int64 [num], in one training as the teachers' is (its own seed).

    Raises:
        ConfigError, ArgumentError: settings or a backbone that are not allowed. InterruptedRunError: Ctrl-C.
    """
    own = derive_seed(seed, "forgetting")
    training = make_train_config(config.training, "teachers.training", seed=own)
    model = create(config.backbone, seed=own, **network_options(dataset, config.backbone_options))
    hook = ForgettingHook(dataset, training.batch_size)
    train_classifier(model, dataset, training, hooks=[hook], name="forgetting", quiet=quiet, device=device)
    return hook.counts


class Forgetting(Coreset):
    """The most forgotten samples of every class; equal counts in random order."""

    name = "forgetting"

    def choose(
        self, dataset: FrameDataset, config: DistillConfig, teachers: TeacherPool | None, seed: int, quiet: bool,
        device: str | torch.device,
    ) -> Selection:  # fmt: skip
        """See :func:`count_forgetting` and :func:`snn_core.distillation.select_by_score`."""
        counts = count_forgetting(dataset, config.teachers, seed=seed, quiet=quiet, device=device)
        generator = make_generator(seed, "forgetting ties")
        chosen = select_by_score(counts, dataset.labels, dataset.num_classes, config.ipc, generator=generator)
        kept = ("backbone", "backbone_options", "training")
        return Selection(chosen, config.teachers.model_dump(mode="json", include=set(kept)))


METHODS = {Forgetting.name: Forgetting}
