"""How a masked weight gets into a layer's forward pass, and how pruned weights are kept at zero afterwards.

The layer keeps its dense ``weight`` parameter: for the length of its forward call an instance attribute of the same
name shadows it. So ``state_dict``, optimisers, ``deepcopy`` and layers of other libraries that compute with
``self.weight`` (SpikingJelly's, for example) work unchanged, which a parametrization with its renamed parameters
would not give.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class StraightThrough(torch.autograd.Function):
    """Value of ``effective``, gradient to ``weight`` as if that had been used; the backward pass calls ``used``."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, effective: Tensor, used: Callable[[], None] | None = None) -> Tensor:
        ctx.used = used
        return effective.view_as(effective)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        if ctx.used is not None:
            ctx.used()
        return grads[0], None, None


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
        self._show = torch.compiler.disable(self._make_and_show)

    def __call__(self, module: nn.Module, args: Any) -> None:
        self._show(module)

    def _make_and_show(self, module: nn.Module) -> None:
        if torch.is_inference_mode_enabled():
            # Masks made now serve until the step ends: autograd would refuse inference tensors then.
            with torch.inference_mode(False), torch.no_grad():
                show_weight(module, self.weight())
        else:
            show_weight(module, self.weight())

    def __reduce__(self) -> tuple[type[SnapshotMask], tuple[Tensor]]:
        return SnapshotMask, (self.mask().clone(),)

    def __deepcopy__(self, memo: dict[int, Any]) -> SnapshotMask:
        return SnapshotMask(self.mask().clone(), version=0)  # that of a deep copy's weight


class SnapshotMask:
    """Forward pre-hook of a copied model: the mask as it was when the copy was made.

    A running average that is copied so early keeps this mask while its weights, and the masks of the model, go on: a
    warning says so.

    Args:
        mask: of the weight's shape.
        version: of the copied weight; None: as it is at the first call.
    """

    def __init__(self, mask: Tensor, version: int | None = None) -> None:
        self.mask, self.version, self.warned = mask, version, False

    def __call__(self, module: nn.Module, args: Any) -> None:
        weight = module._parameters["weight"]
        assert weight is not None
        if not self.warned and not torch.compiler.is_compiling():
            self._check_version(module, weight._version)
        show_weight(module, weight * self.mask.to(weight.device))

    def __reduce__(self) -> tuple[type[SnapshotMask], tuple[Tensor]]:
        return SnapshotMask, (self.mask.clone(),)

    def _check_version(self, module: nn.Module, version: int) -> None:
        if self.version not in (None, version):
            self.warned = True
            warnings.warn(
                f"{module} of a model that was copied while its masks were searched has the mask of that moment, but "
                "its weight has changed since; copy the model (for an average of its weights, say) after the freeze",
                stacklevel=2,
            )
        self.version = version


class CopyableHook:
    """A hook that does nothing in a copy of the model."""

    def __init__(self, call: Any = None) -> None:
        self.call = None if call is None else torch.compiler.disable(call)

    def __call__(self, *arguments: Any) -> None:
        if self.call is not None:
            self.call(*arguments)

    def __reduce__(self) -> tuple[type[CopyableHook], tuple[()]]:
        return CopyableHook, ()


def take_over(module: nn.Module, name: str) -> None:
    """Take the hooks of a :class:`SnapshotMask` off a layer that is pruned anew, and warn where a pruner is at it."""
    if any(isinstance(hook, MaskHook) for hook in module._forward_pre_hooks.values()):
        warnings.warn(
            f"layer {name!r} is under another pruner, whose masks are not final: both choose masks and change its "
            "gradient; finalize() the other one first, or begin with a fresh model and optimizer",
            stacklevel=2,
        )
    found = [key for key, hook in module._forward_pre_hooks.items() if isinstance(hook, SnapshotMask)]
    for key in found:
        del module._forward_pre_hooks[key]
    restoring = [key for key, hook in module._forward_hooks.items() if isinstance(hook, RestoreHook)]
    for key in restoring[: len(found)]:
        del module._forward_hooks[key]
        module._forward_hooks_always_called.pop(key, None)


def clear_dropped(parameter: nn.Parameter, dropped: Tensor, optimizer: torch.optim.Optimizer | None) -> None:
    """Set dropped weights and their optimiser state to zero: moments would bring them back to life."""
    with torch.no_grad():
        parameter.masked_fill_(dropped, 0)
    for value in (optimizer.state.get(parameter, {}) if optimizer is not None else {}).values():
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            value.masked_fill_(dropped, 0)
