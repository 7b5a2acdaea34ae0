"""Unstructured magnitude pruning at the sparsity of N:M: what the block structure costs.

As SR-STE (Zhou et al., ICLR 2021, arXiv 2102.04010) without the blocks: at every step the N/M largest weights of a
layer are used, the gradient goes straight through to all of them, dropped ones are pulled to zero. Magnitude as the
criterion: Han, Pool, Tran, Dally: "Learning both Weights and Connections for Efficient Neural Networks", NeurIPS 2015
(arXiv 1506.02626). The cubic ramp: Zhu, Gupta: "To prune, or not to prune", 2017 (arXiv 1710.01878), equation 1:
``s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n dt))^3``, from ``s_i = 0``.

Ours differs from theirs: masks are chosen anew at every step (``dt = 1``), and dropped weights get a gradient.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from snn_core.errors import ArgumentError, NonFiniteError
from snn_core.pruning.base import NMPruner
from snn_core.pruning.groups import BlockGroup, PrunedLayer
from snn_core.pruning.layers import LayerReport
from snn_core.pruning.search import pull_dropped
from snn_core.sparsity import MaskedLayer


class MagnitudePruner(NMPruner):
    """The comparison "magnitude"; uses ``sr_ste_decay`` and ``magnitude_*`` of the config. See :class:`NMPruner`.

    It prunes the layers that N:M would prune, to N/M of their weights (or of all of them together), anywhere. The
    result obeys no N:M pattern: :attr:`patterns` is empty, and nothing can be compressed. While the ramp rises,
    evaluation uses the masks of the present step.

    Raises:
        ArgumentError: as :class:`NMPruner`, and for a layer that is N:M by itself (NMLinear, NMConv2d).
        NonFiniteError: weights became NaN or infinite; the message names the layer.
    """

    method = "magnitude"

    _ended = False

    def _attach(self) -> None:
        for layer in self.layers:
            if isinstance(layer.module, MaskedLayer):
                raise ArgumentError(f"layer {layer.name!r} is N:M by itself: it cannot be pruned without a pattern")
        super()._attach()

    @property
    def patterns(self) -> dict[str, str]:
        """Empty: no layer obeys a pattern."""
        return {}

    def report(self) -> list[LayerReport]:
        """As :meth:`NMPruner.report`; ``pattern`` is None, and ``kept`` counts the masks once they are final."""
        masks = self.masks if self.frozen else {}
        return [
            replace(item, pattern=None, kept=int(masks[item.name].sum()) if item.name in masks else item.kept)
            for item in super().report()
        ]

    def ramp(self) -> float:
        """Of the weights that are dropped in the end, the fraction that is dropped at the present step."""
        if self._ended or self.config.magnitude_schedule == "constant":
            return 1.0
        start, end = self.config.magnitude_ramp
        progress = (self.steps_done / max(1, self.total_steps) - start) / (end - start)
        return 1.0 - (1.0 - min(1.0, max(0.0, progress))) ** 3

    def _training_key(self, group: BlockGroup) -> Tensor:
        raise NotImplementedError("masks without blocks have no key")

    _evaluation_key = _training_key

    def _evaluation_masks(self) -> dict[str, Tensor]:
        return self._masks_at(self.ramp())

    @torch.no_grad()
    def _draw(self) -> None:
        masks = self._masks_at(self.ramp())
        for layer in self.layers:
            layer.drawn = masks[layer.name]

    def _masks_at(self, ramp: float) -> dict[str, Tensor]:
        magnitudes = {layer.name: layer.weight.detach().abs() for layer in self.layers}
        sums = torch.stack([magnitude.sum().double() for magnitude in magnitudes.values()]).tolist()
        for name, total in zip(magnitudes, sums, strict=True):
            if not math.isfinite(total):
                raise NonFiniteError(f"layer {name!r}: its weights became non-finite")
        counts = [self._count(layer, ramp) for layer in self.layers]
        if self.config.magnitude_scope == "layer":
            return {
                name: largest(magnitude, count)
                for (name, magnitude), count in zip(magnitudes.items(), counts, strict=True)
            }
        joined = largest(torch.cat([magnitude.flatten() for magnitude in magnitudes.values()]), sum(counts))
        parts = joined.split([magnitude.numel() for magnitude in magnitudes.values()])
        return {
            name: part.view(magnitude.shape) for (name, magnitude), part in zip(magnitudes.items(), parts, strict=True)
        }

    def _count(self, layer: PrunedLayer, ramp: float) -> int:
        size = layer.weight.numel()
        return size - round(ramp * (size - size // layer.pattern.m * layer.pattern.n))

    def _before_optimizer_step(self) -> None:
        if self.config.sr_ste_decay > 0:
            pull_dropped(self.layers, self.config.sr_ste_decay)

    def _freeze_fraction(self) -> float:
        return self.config.magnitude_freeze

    def _freeze(self, masks: dict[str, Tensor] | None = None) -> None:
        """At the final sparsity, wherever the ramp is."""
        self._ended, self._evaluation = True, None
        super()._freeze(masks)

    def _check(self, layer: PrunedLayer) -> None:
        """No pattern to check."""


def largest(magnitude: Tensor, count: int) -> Tensor:
    """Boolean mask, of the shape of ``magnitude``, of its ``count`` largest entries; ties to the lower index."""
    flat = magnitude.flatten()
    if count == 0 or count == flat.numel():
        return torch.full_like(magnitude, count > 0, dtype=torch.bool)
    # The threshold is found in linear time; a sort of all weights at every step would not be.
    threshold = flat.kthvalue(flat.numel() - count + 1).values
    above, equal = flat > threshold, flat == threshold
    first = equal & (equal.cumsum(0) <= count - above.sum())
    return (above | first).view(magnitude.shape)
