"""ASP: train dense, cut once by magnitude, go on training what is left.

Mishra, Albericio Latorre, Pool, Stosic, Stosic, Venkatesh, Yu, Micikevicius: "Accelerating Sparse Deep Neural
Networks", 2021 (arXiv 2104.08378): a trained network is pruned to 2:4 by magnitude, then retrained with fixed masks,
the learning-rate schedule, optimiser and length of the dense training *repeated*.

Ours differs: both phases share one budget of steps, as every other method has, and the learning rate is *not* started
anew; it goes on along the schedule of the training loop.
"""

from __future__ import annotations

from torch import Tensor

from snn_core.pruning.base import NMPruner
from snn_core.pruning.groups import BlockGroup, PrunedLayer


class ASPPruner(NMPruner):
    """The comparison "asp"; uses ``asp_dense`` of the config. See :class:`NMPruner`.

    In the dense phase training uses the dense weights, and evaluation the masks that a cut at that moment would give.
    """

    method = "asp"

    def _training_key(self, group: BlockGroup) -> Tensor:
        return self._evaluation_key(group)

    def _evaluation_key(self, group: BlockGroup) -> Tensor:
        return group.gather(lambda layer: layer.weight.detach().abs())

    def _masked_weight(self, layer: PrunedLayer) -> Tensor:
        if not layer.module.training:
            return super()._masked_weight(layer)
        layer.called = True
        return layer.weight

    def _freeze_fraction(self) -> float:
        return self.config.asp_dense
