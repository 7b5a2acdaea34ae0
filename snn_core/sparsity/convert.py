"""Whole models: layers made N:M by magnitude, pruned layers compressed, and back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from snn_core.errors import ArgumentError
from snn_core.kernels.nm_compress import (
    CompressedNM,
    NMPattern,
    check_nm,
    nm_mask_by_magnitude,
    transposable_mask,
)
from snn_core.kernels.nm_compress.compressed import QUANTIZED_LIMITS
from snn_core.sparsity.layers import CompressedConv2d, CompressedLayer, CompressedLinear, of_dense
from snn_core.sparsity.masked import MaskedLayer, NMConv2d, NMLinear

#: Patterns that :func:`compress` looks for, sparsest first; among equals 4 first, which has most kernels.
KNOWN_PATTERNS = tuple(NMPattern.parse(text) for text in ("1:32", "1:16", "1:8", "2:16", "1:4", "2:8", "2:4", "4:8"))


PRUNABLE = (nn.Linear, nn.Conv1d, nn.Conv2d)


@dataclass(frozen=True)
class LayerPlan:
    """What :func:`compress` does with one Linear, Conv1d or Conv2d layer.

    Attributes:
        name: as in ``model.named_modules()``.
        kind: class name.
        shape: of the weight.
        pattern: it will be compressed to; None: it stays as it is.
        reason: why it stays; empty otherwise.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    pattern: NMPattern | None
    reason: str


def plan_compression(
    model: nn.Module,
    patterns: Mapping[str, NMPattern | str] | NMPattern | str | None = None,
    masks: Mapping[str, Tensor] | None = None,
) -> list[LayerPlan]:
    """What :func:`compress` would do with every Linear, Conv1d and Conv2d layer of ``model``; arguments as there."""
    masks = masks or {}
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, PRUNABLE)]
    for argument, named in (("patterns", patterns if isinstance(patterns, Mapping) else ()), ("masks", masks)):
        unknown = sorted(set(named) - {name for name, _ in layers})
        if unknown:
            raise ArgumentError(f"{argument}: the model has no Linear, Conv1d or Conv2d layer {unknown[0]!r}")
    plans = []
    for name, module in layers:
        pattern, reason = None, _obstacle(module)
        asked = patterns.get(name) if isinstance(patterns, Mapping) else patterns
        if not reason and isinstance(patterns, Mapping) and asked is None:
            reason = "not among the patterns"
        if not reason:
            pattern, reason = _pattern_of(module, asked, masks.get(name))
        if reason and isinstance(patterns, Mapping) and asked is not None and not isinstance(module, nn.Conv1d):
            raise ArgumentError(f"patterns: layer {name!r} cannot be compressed to {asked}: {reason}")
        plans.append(LayerPlan(name, type(module).__name__, _shape(module), pattern, reason))
    return plans


def compress(
    model: nn.Module,
    patterns: Mapping[str, NMPattern | str] | NMPattern | str | None = None,
    masks: Mapping[str, Tensor] | None = None,
    *,
    dtype: torch.dtype | None = None,
    backend: str = "auto",
    inplace: bool = False,
) -> nn.Module:
    """The model with its pruned Linear and Conv2d layers compressed, for inference.

    Every layer whose weight obeys an N:M pattern of density 1/2 or less is replaced by a :class:`CompressedLinear` or
    :class:`CompressedConv2d`; the others stay. In the layers' own dtype the function is the same; the sums may be
    formed in another order.

    Args:
        model: any module: what ``snn prune`` trained, a model of :class:`NMLinear` layers, or a layer alone. Without
            pruners attached (``pruner.finalize()`` detaches).
        patterns: layer name -> N:M of the layers to compress (``pruner.patterns``), or one pattern for every layer that
            obeys it; by default the sparsest known pattern of each layer. A Conv1d among them stays dense.
        masks: layer name -> boolean mask of the kept weights (``pruner.masks``); by default the non-zero ones.
        dtype: of the stored values: bfloat16, float16, or int8 and float8_e4m3fn with a scale for each output channel;
            by default that of the weights.
        backend: of ``snn_core.kernels.nm_matmul``.
        inplace: replace the layers in ``model`` itself, without copying the rest.

    Returns:
        The compressed model, in evaluation mode; ``model`` itself with ``inplace`` (unless it is a layer).

    Raises:
        ArgumentError: names that match nothing, a layer of ``patterns`` that cannot be compressed, a mask that breaks
            its pattern, a ``dtype`` that is not allowed, or nothing to compress (the message says why, layer by layer).
    """
    masks = masks or {}
    plans = plan_compression(model, patterns, masks)
    if all(plan.pattern is None for plan in plans):
        listed = "; ".join(f"{plan.name or 'the layer'}: {plan.reason}" for plan in plans)
        raise ArgumentError(f"nothing to compress: {listed or 'no Linear or Conv2d layer'}")
    if dtype is not None and not (dtype.is_floating_point or dtype in QUANTIZED_LIMITS):
        raise ArgumentError(f"dtype {dtype}; allowed: floating point, {', '.join(map(str, QUANTIZED_LIMITS))}")
    chosen = {plan.name: plan.pattern for plan in plans if plan.pattern is not None}

    def make(name: str, module: nn.Module) -> nn.Module:
        mask = masks.get(name, getattr(module, "mask", None) if isinstance(module, MaskedLayer) else None)
        weight = _dense_weight(module)
        compressed = CompressedNM.from_dense(weight, chosen[name], None if mask is None else mask.to(weight.device))
        if dtype is not None:
            compressed = compressed.quantize(dtype) if dtype in QUANTIZED_LIMITS else compressed.to(dtype=dtype)
        return of_dense(module, compressed, backend=backend)

    return replace_layers(model, chosen, make, inplace=inplace).eval()


def decompress(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """The model with plain ``nn.Linear`` and ``nn.Conv2d`` in place of compressed layers: the inverse of
    :func:`compress`.

    Weights have zeros where nothing was kept, are in the dtype of the layer that was compressed, and take no gradient.

    Raises:
        ArgumentError: no compressed layer.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, CompressedLayer)]
    if not names:
        raise ArgumentError(f"model {type(model).__name__} has no compressed layer")

    def make(name: str, module: nn.Module) -> nn.Module:
        assert isinstance(module, (CompressedLinear, CompressedConv2d))
        return module.to_dense()

    return replace_layers(model, names, make, inplace=inplace)


def make_nm(
    model: nn.Module,
    pattern: NMPattern | str = "2:4",
    *,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    transposable: bool = False,
    compressed: bool = False,
    dtype: torch.dtype | None = None,
    inplace: bool = False,
) -> nn.Module:
    """Make the Linear and Conv2d layers of any model N:M by magnitude, in one call.

    For example ``make_nm(vit, exclude=["head"], compressed=True)``. The N largest magnitudes of each block stay.

    Args:
        model: any module, or a layer alone; frozen parameters stay frozen.
        pattern: N:M.
        include, exclude: layer names with shell wildcards; without ``include`` all layers that M divides.
        transposable: choose masks that obey the pattern along the output channels too (N:4).
        compressed: go on to the compressed layers (see :func:`compress`), for inference; otherwise the layers become
            :class:`NMLinear` and :class:`NMConv2d`, on the same parameters, for fine-tuning.
        dtype: of the compressed values.
        inplace: change ``model`` itself, dropped weights included, instead of a copy.

    Returns:
        The changed model; ``model`` itself with ``inplace`` (unless it is a layer).

    Raises:
        ArgumentError: a pattern that makes no sense, names that match nothing, a named layer that cannot be made N:M,
            or no layer at all (the message says why, layer by layer).
    """
    pattern = NMPattern.parse(pattern)
    chosen = dict.fromkeys(_layers_to_make(model, pattern, include, exclude, transposable), pattern)

    model = model if inplace else copy.deepcopy(model)  # masked layers take over parameters, and change them

    def make(name: str, module: nn.Module) -> nn.Module:
        weight = _dense_weight(module)
        mask = transposable_mask(weight, pattern) if transposable else nm_mask_by_magnitude(weight, pattern)
        if isinstance(module, nn.Linear):
            return NMLinear.from_dense(module, pattern, mask)
        assert isinstance(module, nn.Conv2d)
        return NMConv2d.from_dense(module, pattern, mask)

    masked = replace_layers(model, chosen, make, inplace=True)
    return compress(masked, chosen, dtype=dtype, inplace=True) if compressed else masked


def _layers_to_make(
    model: nn.Module, pattern: NMPattern, include: Sequence[str] | None, exclude: Sequence[str], transposable: bool
) -> list[str]:
    """Names of the layers that :func:`make_nm` changes; its errors where there is none."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))}
    for argument, globs in (("include", include or ()), ("exclude", exclude)):
        for glob in globs:
            if not any(fnmatchcase(name, glob) for name in layers):
                raise ArgumentError(f"{argument}: {glob!r} matches no layer; layers: {', '.join(layers)}")
    reasons = {}
    for name, module in layers.items():
        named = include is not None and any(fnmatchcase(name, glob) for glob in include)
        if any(fnmatchcase(name, glob) for glob in exclude):
            reasons[name] = "excluded"
        elif include is not None and not named:
            reasons[name] = "not included"
        else:
            reasons[name] = _obstacle(module) or _undivided(module, pattern, transposable)
            if named and reasons[name]:
                raise ArgumentError(f"include: layer {name!r} cannot be made {pattern}: {reasons[name]}")
    chosen = [name for name, reason in reasons.items() if not reason]
    if not chosen:
        listed = "; ".join(f"{name or 'the layer'}: {reason}" for name, reason in reasons.items())
        raise ArgumentError(f"no layer can be made {pattern}: {listed or 'no Linear or Conv2d layer'}")
    return chosen


def _dense_weight(module: nn.Module) -> Tensor:
    weight = module._parameters["weight"]
    assert weight is not None
    return weight.detach()


def _shape(module: nn.Module) -> tuple[int, ...]:
    weight = module._parameters.get("weight")
    return () if weight is None or nn.parameter.is_lazy(weight) else tuple(weight.shape)


def _obstacle(module: nn.Module) -> str:
    """Why a layer cannot be replaced at all; empty when it can."""
    weight = module._parameters.get("weight")
    forward = type(module).forward
    if isinstance(module, nn.Conv1d):
        return "there is no compressed Conv1d"
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return "nn.MultiheadAttention uses its weight without calling it"
    if weight is None:
        return "its weight is computed by a parametrization"
    if nn.parameter.is_lazy(weight):
        return "lazy: its weight has no shape yet"
    # SpikingJelly's layers only fold time into the batch, which the layers here do for any leading dimensions.
    known = isinstance(module, MaskedLayer) or type(module).__module__.startswith("spikingjelly.")
    if not known and forward not in (nn.Linear.forward, nn.Conv2d.forward):
        return f"{type(module).__name__} has a forward of its own"
    if module._forward_pre_hooks or module._forward_hooks:
        return "it has forward hooks; finalize() the pruner, or remove them"
    if weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"its weight is {weight.dtype}"
    return ""


def _undivided(module: nn.Module, pattern: NMPattern, transposable: bool) -> str:
    weight = _dense_weight(module)
    if not pattern.divides(weight):
        return f"its reduction dimension {weight.shape[1]} is not a multiple of {pattern.m}"
    if transposable and weight.shape[0] % 4:
        return f"its {weight.shape[0]} outputs are not a multiple of 4"
    return ""


def _pattern_of(module: nn.Module, asked: NMPattern | str | None, mask: Tensor | None) -> tuple[NMPattern | None, str]:
    """The pattern to compress a layer to, or None and why not."""
    weight = _dense_weight(module)
    own = module.mask if isinstance(module, MaskedLayer) else weight
    kept = own if mask is None else mask
    if kept.shape != weight.shape:
        raise ArgumentError(f"masks: expected shape {list(weight.shape)}, got {list(kept.shape)}")
    candidates: Sequence[NMPattern] = KNOWN_PATTERNS
    if asked is not None:
        candidates = (NMPattern.parse(asked),)
    elif isinstance(module, MaskedLayer):
        candidates = (module.pattern,)
    for pattern in candidates:
        if pattern.divides(weight) and check_nm(kept, pattern) == 0:
            return pattern, ""
    if not any(pattern.divides(weight) for pattern in candidates):
        return None, f"its reduction dimension {weight.shape[1]} is no multiple of M"
    return None, f"its weight obeys {'no N:M pattern' if len(candidates) > 1 else f'no {candidates[0]} pattern'}"


def replace_layers(
    model: nn.Module, names: Iterable[str], make: Callable[[str, nn.Module], nn.Module], *, inplace: bool
) -> nn.Module:
    """``model`` or a copy of it with the named modules exchanged, everywhere they occur; ``make`` leaves its argument
    alone. Exchanged modules are not copied: of large weights there is never a second dense set.
    """
    modules = dict(model.named_modules())
    new = {id(modules[name]): make(name, modules[name]) for name in names}
    if id(model) in new:
        return new[id(model)]
    if not inplace:
        model = copy.deepcopy(model, dict(new))  # what deepcopy finds in its memo it takes for copied already
    for parent in list(model.modules()):
        for child_name, child in parent._modules.items():
            if child is not None and id(child) in new:
                parent._modules[child_name] = new[id(child)]
    for module in model.modules():
        _leave_fused_path(module)
    return model


def _leave_fused_path(module: nn.Module) -> None:
    """torch's encoder layers read weights without calling the layers; this is how they leave that path themselves."""
    if not any(isinstance(child, CompressedLayer) for child in module.modules()):
        return
    if isinstance(module, nn.TransformerEncoderLayer):
        module.activation_relu_or_gelu = 0
    if isinstance(module, nn.TransformerEncoder):
        module.use_nested_tensor = False
