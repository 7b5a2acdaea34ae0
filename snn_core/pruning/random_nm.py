"""Random N:M: masks drawn once, before training. The floor under every method that chooses."""

from __future__ import annotations

import torch
from torch import Tensor

from snn_core.pruning.base import NMPruner
from snn_core.pruning.groups import BlockGroup, PrunedLayer
from snn_core.seeding import make_generator


class RandomNMPruner(NMPruner):
    """The comparison "random": N of M positions at random, from ``config.seed`` and the layer's name."""

    method = "random"

    def _training_key(self, group: BlockGroup) -> Tensor:
        return self._evaluation_key(group)

    def _evaluation_key(self, group: BlockGroup) -> Tensor:
        return group.gather(self._uniform)

    def _uniform(self, layer: PrunedLayer) -> Tensor:
        generator = make_generator(self.config.seed, "random-nm", layer.name)
        return torch.rand(layer.weight.shape, generator=generator)

    def _freeze_fraction(self) -> float:
        return 0.0
