"""SR-STE: magnitude masks at every step, a straight-through gradient, and a pull of the dropped weights to zero.

Zhou, Ma, Zhu, Liu, Zhang, Yuan, Sun, Li: "Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch",
ICLR 2021 (arXiv 2102.04010): forward with ``w * mask``, backward ``g + 2e-4 * (1 - mask) * w``.
"""

from __future__ import annotations

from torch import Tensor

from snn_core.pruning.base import NMPruner
from snn_core.pruning.groups import BlockGroup
from snn_core.pruning.spikenm import pull_dropped


class SRSTEPruner(NMPruner):
    """The comparison "sr-ste"; uses ``sr_ste_decay`` and ``sr_ste_freeze`` of the config. See :class:`NMPruner`."""

    method = "sr-ste"

    def _training_key(self, group: BlockGroup) -> Tensor:
        return self._evaluation_key(group)

    def _evaluation_key(self, group: BlockGroup) -> Tensor:
        return group.gather(lambda layer: layer.weight.detach().abs())

    def _before_optimizer_step(self) -> None:
        if self.config.sr_ste_decay > 0:
            pull_dropped(self.layers, self.config.sr_ste_decay)

    def _freeze_fraction(self) -> float:
        return self.config.sr_ste_freeze
