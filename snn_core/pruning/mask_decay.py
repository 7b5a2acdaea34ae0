"""Mask decay: magnitude masks at every step; what they drop fades from 1 to 0 instead of vanishing at once.

Kao, Yazdanbakhsh, Subramanian, Agrawal, Evci, Krishna: "Training Recipe for N:M Structured Sparsity with Decaying
Pruning Mask", 2022 (arXiv 2209.07617), "pruning mask decay": forward with ``w * (m + beta (1 - m))``, beta falling
linearly from 1 to 0, the gradient straight through to the dense weights. The same authors call it MdGf-Linear in
"Progressive Gradient Flow for Robust N:M Sparsity Training in Transformers" (arXiv 2402.04744); their exponential decay
(MdGf-Exponential) is not implemented.

Ours differs: beta falls over the first half of the steps (they set a rate per step), and the masks are final after
``freeze`` of the steps, so that this is SpikeNM with its option ``mask_decay`` but without sampler, EID and pull.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from snn_core.pruning.base import NMPruner
from snn_core.pruning.groups import BlockGroup
from snn_core.pruning.schedule import Schedule, schedule_at


class MaskDecayPruner(NMPruner):
    """The comparison "mask-decay"; uses ``decay_steps`` and ``freeze`` of the config. See :class:`NMPruner`."""

    method = "mask-decay"

    def _training_key(self, group: BlockGroup) -> Tensor:
        return self._evaluation_key(group)

    def _evaluation_key(self, group: BlockGroup) -> Tensor:
        return group.gather(lambda layer: layer.weight.detach().abs())

    def schedule(self) -> Schedule:
        """As :meth:`NMPruner.schedule`, with the ``beta`` of SpikeNM's option ``mask_decay`` set to ``decay_steps``."""
        decaying = self.config.model_copy(update={"mask_decay": self.config.decay_steps})
        beta = schedule_at(decaying, self.steps_done, self._freeze_step(), self.total_steps).beta
        return replace(super().schedule(), beta=beta)

    def metrics(self) -> dict[str, float]:
        """As :meth:`NMPruner.metrics`, and in the search phase ``beta``: what is left of a dropped weight."""
        figures = super().metrics()
        return figures if self.frozen else figures | {"beta": self.schedule().beta}
