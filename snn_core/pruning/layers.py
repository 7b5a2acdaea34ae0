"""Which layers are pruned, and why the others are not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.parameter import is_lazy

from snn_core.errors import ArgumentError
from snn_core.pruning.config import DENSE
from snn_core.sparsity import NMPattern

PRUNABLE = (nn.Linear, nn.Conv1d, nn.Conv2d)


@dataclass(frozen=True)
class LayerReport:
    """One Linear, Conv1d or Conv2d of the model: what happens to it.

    Attributes:
        name: as in ``model.named_modules()``.
        kind: ``"Linear"``, ``"Conv1d"`` or ``"Conv2d"``.
        shape: of the weight.
        state: ``"pruned"`` or ``"dense"``.
        reason: why it is dense; empty for a pruned layer.
        pattern: ``"N:M"`` of a pruned layer, else None.
        kept: weights that stay (at most).
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    state: Literal["pruned", "dense"]
    reason: str
    pattern: str | None
    kept: int


def select_layers(
    model: nn.Module,
    pattern: NMPattern,
    *,
    layer_patterns: Mapping[str, str],
    include: Sequence[str] | None,
    exclude: Sequence[str],
    keep_first_dense: bool,
    keep_last_dense: bool,
) -> tuple[list[tuple[str, nn.Module, NMPattern]], list[LayerReport]]:
    """The layers to prune and their patterns, in the model's order, and a report on every Linear, Conv1d and Conv2d.

    Raises:
        ArgumentError: a name in ``include``, ``exclude`` or ``layer_patterns`` matches no layer, or nothing is left to
            prune (the message lists every layer with its reason).
    """
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, PRUNABLE)]
    if not layers:
        raise ArgumentError(f"model {type(model).__name__} has no Linear, Conv1d or Conv2d layer: nothing to prune")
    for argument, globs in (("include", include or ()), ("exclude", exclude), ("layer_patterns", layer_patterns)):
        _check_globs(argument, globs, [name for name, _ in layers])
    uses = Counter(id(module._parameters.get("weight")) for _, module in layers)
    chosen: list[tuple[str, nn.Module, NMPattern]] = []
    reports = []
    for position, (name, module) in enumerate(layers):
        included = include is not None and _matches(name, include)
        named = name in layer_patterns or name in (include or ())
        own = next((value for glob, value in layer_patterns.items() if fnmatchcase(name, glob)), str(pattern))
        if _matches(name, exclude):
            reason = "excluded"
        elif include is not None and not included:
            reason = "not included"
        elif own == DENSE:
            reason = "dense by layer_patterns"
        elif keep_first_dense and position == 0 and not named:
            reason = "first layer"
        elif keep_last_dense and position == len(layers) - 1 and not named:
            reason = "last layer"
        else:
            reason = _obstacle(module, NMPattern.parse(own), uses)
        if not reason:
            chosen.append((name, module, NMPattern.parse(own)))
        reports.append(_report(name, module, None if reason else NMPattern.parse(own), reason))
    if not chosen:
        listed = "; ".join(f"{report.name}: {report.reason}" for report in reports)
        raise ArgumentError(f"no layer can be pruned to {pattern}: {listed}")
    return chosen, reports


def _matches(name: str, globs: Iterable[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)


def _check_globs(argument: str, globs: Iterable[str], names: list[str]) -> None:
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            raise ArgumentError(f"{argument}: {glob!r} matches no layer; layers: {', '.join(names)}")


def _obstacle(module: nn.Module, pattern: NMPattern, uses: Counter[int]) -> str:
    """Why the layer cannot be pruned; empty when it can."""
    weight = module._parameters.get("weight")
    if weight is None:
        return "its weight is computed by a parametrization"
    if is_lazy(weight):
        return "lazy: its weight has no shape yet"
    if hasattr(weight, "device_mesh"):
        return "its weight is sharded (DTensor), and blocks need all of it"
    if not pattern.divides(weight):
        return f"its reduction dimension {weight.shape[1]} is not a multiple of {pattern.m}"
    if not weight.is_floating_point():
        return f"its weight is {weight.dtype}"
    if not weight.requires_grad:
        return "its weight does not require a gradient"
    if uses[id(weight)] > 1:
        return "it shares its weight with another layer"
    if isinstance(module, NonDynamicallyQuantizableLinear):
        return "nn.MultiheadAttention uses its weight without calling it"
    return ""


def _report(name: str, module: nn.Module, pattern: NMPattern | None, reason: str) -> LayerReport:
    weight = getattr(module, "weight", None)
    shape = () if weight is None or is_lazy(weight) else tuple(weight.shape)
    size = torch.Size(shape).numel() if shape else 0
    kind = next(base.__name__ for base in PRUNABLE if isinstance(module, base))
    if pattern is None:
        return LayerReport(name, kind, shape, "dense", reason, None, size)
    return LayerReport(name, kind, shape, "pruned", "", str(pattern), size // pattern.m * pattern.n)
