"""N:M pruning from scratch: SpikeNM and its comparisons behind one interface."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from snn_core.errors import ArgumentError
from snn_core.pruning.asp import ASPPruner
from snn_core.pruning.base import NMPruner
from snn_core.pruning.config import PruneConfig
from snn_core.pruning.layers import LayerReport
from snn_core.pruning.magnitude import MagnitudePruner
from snn_core.pruning.mask_decay import MaskDecayPruner
from snn_core.pruning.maskllm import MaskLLMPruner
from snn_core.pruning.maskpro import MaskProPruner
from snn_core.pruning.random_nm import RandomNMPruner
from snn_core.pruning.schedule import Schedule, schedule_at
from snn_core.pruning.spikenm import SpikeNMPruner
from snn_core.pruning.sr_ste import SRSTEPruner
from snn_core.pruning.statistics import MaskStatistics, mask_statistics
from snn_core.sparsity import NMPattern

_METHODS: dict[str, type[NMPruner]] = {
    pruner.method: pruner
    for pruner in (
        SpikeNMPruner,
        SRSTEPruner,
        MaskDecayPruner,
        ASPPruner,
        MaskLLMPruner,
        MaskProPruner,
        MagnitudePruner,
        RandomNMPruner,
    )
}
#: Names for :func:`create_pruner`; all obey N:M but ``"magnitude"``, which has no blocks.
METHODS = tuple(_METHODS)


def create_pruner(
    method: str,
    model: nn.Module,
    config: PruneConfig | None = None,
    *,
    pattern: NMPattern | str | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    total_steps: int | None = None,
    grad_scaler: torch.amp.GradScaler | None = None,
    distributed: bool = True,
) -> NMPruner:
    """A pruner by name, attached to ``model``; arguments as for :class:`NMPruner`.

    Args:
        method: one of ``METHODS``: ``"spikenm"``, or a comparison.

    Raises:
        ArgumentError: an unknown method, and what :class:`NMPruner` raises.
    """
    if method not in _METHODS:
        raise ArgumentError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    return _METHODS[method](
        model,
        pattern,
        config=config,
        include=include,
        exclude=exclude,
        optimizer=optimizer,
        total_steps=total_steps,
        grad_scaler=grad_scaler,
        distributed=distributed,
    )


__all__ = [
    "METHODS",
    "ASPPruner",
    "LayerReport",
    "MagnitudePruner",
    "MaskDecayPruner",
    "MaskLLMPruner",
    "MaskProPruner",
    "MaskStatistics",
    "NMPruner",
    "PruneConfig",
    "RandomNMPruner",
    "SRSTEPruner",
    "Schedule",
    "SpikeNMPruner",
    "create_pruner",
    "mask_statistics",
    "schedule_at",
]
