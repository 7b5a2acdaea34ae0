"""How a masked weight gets into a layer's forward pass, and how pruned weights are kept at zero afterwards.

The layer keeps its dense ``weight`` parameter: for the length of its forward call an instance attribute of the same
name shadows it. So ``state_dict``, optimisers, ``deepcopy`` and layers of other libraries that compute with
``self.weight`` (SpikingJelly's, for example) work unchanged, which a parametrization with its renamed parameters
would not give.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class StraightThrough(torch.autograd.Function):
    """Value of ``effective``, gradient to ``weight`` as if it had been used itself."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, effective: Tensor) -> Tensor:
        return effective.view_as(effective)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def show_weight(module: nn.Module, weight: Tensor) -> None:
    """Let ``module.weight`` be ``weight`` until :class:`RestoreHook` runs."""
    module.__dict__["weight"] = weight


class RestoreHook:
    """Forward hook (``always_call=True``): ``module.weight`` is the parameter again."""

    def __init__(self) -> None:
        self._restore = torch.compiler.disable(lambda module: module.__dict__.pop("weight", None))

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        self._restore(module)

    def __reduce__(self) -> tuple[type[RestoreHook], tuple[()]]:
        return RestoreHook, ()


class MaskHook:
    """Forward pre-hook of a pruned layer. A copy of the model gets a snapshot of the mask, not of the pruner.

    Args:
        weight: gives the masked weight of a forward call.
        mask: gives the mask that evaluation uses now.
    """

    def __init__(self, weight: Callable[[], Tensor], mask: Callable[[], Tensor]) -> None:
        self.weight, self.mask = weight, mask
        # torch.compile ends its graph here: it would trace the pruner, and bake one step's mask in.
        self._show = torch.compiler.disable(lambda module: show_weight(module, self.weight()))

    def __call__(self, module: nn.Module, args: Any) -> None:
        self._show(module)

    def __reduce__(self) -> tuple[type[SnapshotMask], tuple[Tensor]]:
        return SnapshotMask, (self.mask().clone(),)


class SnapshotMask:
    """Forward pre-hook of a copied model: the mask as it was when the copy was made."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def __call__(self, module: nn.Module, args: Any) -> None:
        weight = module._parameters["weight"]
        assert weight is not None
        show_weight(module, weight * self.mask.to(weight.device))


def clear_dropped(parameter: nn.Parameter, dropped: Tensor, optimizer: torch.optim.Optimizer | None) -> None:
    """Set dropped weights and their optimiser state to zero: moments would bring them back to life."""
    with torch.no_grad():
        parameter.masked_fill_(dropped, 0)
    for value in (optimizer.state.get(parameter, {}) if optimizer is not None else {}).values():
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            value.masked_fill_(dropped, 0)
