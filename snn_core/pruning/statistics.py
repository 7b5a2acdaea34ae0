"""What masks look like (see :mod:`snn_core.sparsity.mask_statistics`) and how much all masks of a model changed."""

from __future__ import annotations

from torch import Tensor

from snn_core.sparsity import MaskStatistics, mask_statistics

__all__ = ["MaskStatistics", "flipped_fraction", "mask_statistics"]


def flipped_fraction(before: dict[str, Tensor], after: dict[str, Tensor]) -> float:
    """Fraction of mask entries that differ, over all layers."""
    changed = sum(int((before[name].to(mask.device) != mask).sum()) for name, mask in after.items())
    return changed / sum(mask.numel() for mask in after.values())
