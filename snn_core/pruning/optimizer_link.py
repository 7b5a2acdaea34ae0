"""A pruner's hooks around the steps of the optimiser that trains the weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from snn_core.errors import ArgumentError
from snn_core.pruning.groups import PrunedLayer
from snn_core.pruning.masking import CopyableHook


class OptimizerLink:
    """Calls back when gradients are complete and when weights have changed, and notices steps that did not happen.

    Args:
        optimizer: of the weights; wrappers (accelerate's, Lightning's) are looked through, hooks run on the inner one.
        layers: whose weights it trains.
        before: called with unscaled gradients, before the weights change; with a closure, each time it has run. Its
            argument: whether this is the first time in this step.
        after: called when the weights have changed.

    Attributes:
        stepped: whether the optimiser has stepped since the last :meth:`note_weights`.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        layers: list[PrunedLayer],
        before: Callable[[bool], None],
        after: Callable[[], None],
    ) -> None:
        while isinstance(getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
            optimizer = optimizer.optimizer  # type: ignore[attr-defined]
        self.optimizer, self.layers = optimizer, layers
        self.stepped = False
        self._before, self._after = before, after
        self._weights: list[tuple[nn.Parameter, int]] = []
        self._handles = [
            optimizer.register_step_pre_hook(self._pre_hook),
            optimizer.register_step_post_hook(lambda *_: self._after()),
        ]
        # Weights that were loaded are no sign of another optimiser.
        self._handles += [
            layer.module.register_load_state_dict_post_hook(CopyableHook(partial(self._note_weight, position)))
            for position, layer in enumerate(layers)
        ]
        self.note_weights()

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def note_weights(self) -> None:
        """A step is over: the weights as they are now."""
        self.stepped = False
        self._weights = [(layer.weight, layer.weight._version) for layer in self.layers]

    def _note_weight(self, position: int, *_: Any) -> None:
        weight = self.layers[position].weight
        if weight is self._weights[position][0]:
            self._weights[position] = (weight, weight._version)

    def check_weights(self) -> None:
        """Raise ArgumentError unless the weights are still those noted, and only this optimiser has changed them."""
        for layer, (weight, version) in zip(self.layers, self._weights, strict=True):
            if layer.weight is not weight:
                raise ArgumentError(
                    f"layer {layer.name!r} has another weight than at begin(), which the optimizer does not train: "
                    "call begin() again with the optimizer of the new one"
                )
            if not self.stepped and weight._version != version:
                raise ArgumentError(
                    f"layer {layer.name!r} was changed, but the optimizer given to begin() did not step: "
                    "call begin() again after replacing the optimizer"
                )

    def _pre_hook(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._gradients_are_complete()
            return None

        def closure_then_ours() -> Any:
            loss = closure()
            self._gradients_are_complete()
            return loss

        if "closure" in kwargs:
            return args, kwargs | {"closure": closure_then_ours}
        return (args[0], closure_then_ours, *args[2:]), kwargs

    @torch.no_grad()
    def _gradients_are_complete(self) -> None:
        if _unscale_gradients(self.optimizer):
            first, self.stepped = not self.stepped, True
            self._before(first)


def check_held(model: nn.Module, optimizer: torch.optim.Optimizer, layers: list[PrunedLayer]) -> None:
    """Raise ArgumentError unless ``model`` contains the layers and ``optimizer`` trains their weights."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    inside = {id(parameter) for parameter in model.parameters()}
    for layer in layers:
        if id(layer.weight) not in inside:
            raise ArgumentError(f"model: does not contain layer {layer.name!r}, which this pruner is attached to")
        if id(layer.weight) not in held:
            raise ArgumentError(f"optimizer: does not hold the weight of pruned layer {layer.name!r}")


def _unscale_gradients(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimiser is going to step; gradients are divided by the loss scale if it would do that itself.

    A ``torch.amp.GradScaler`` leaves both to fused optimisers: it sets ``grad_scale`` and ``found_inf`` on them. Others
    get unscaled gradients, and no call at all where these are not finite.
    """
    found_inf = getattr(optimizer, "found_inf", None)
    if found_inf is not None and bool(found_inf):
        return False
    scale = getattr(optimizer, "grad_scale", None)
    if scale is not None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.div_(scale)
        optimizer.grad_scale = None  # type: ignore[attr-defined]
    return True
