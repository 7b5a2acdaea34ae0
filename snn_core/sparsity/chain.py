"""Chains of layers: taking them apart, and what :func:`snn_core.sparsity.fuse` can do with each layer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from snn_core.kernels.nm_compress import CompressedNM
from snn_core.neurons import SpikingNeuron
from snn_core.sparsity.fused import LINEAR, Geometry, Neuron, pair
from snn_core.sparsity.layers import CompressedLayer
from snn_core.sparsity.masked import MaskedLayer

_SPIKINGJELLY = "spikingjelly.activation_based."
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d)


@dataclass(frozen=True)
class Leaf:
    """A layer of a chain. ``folded``: the chain gives it ``[T * B, ...]`` unless it knows time; else what it got."""

    name: str
    module: nn.Module
    folded: bool

    @property
    def knows_time(self) -> bool:
        """Whether it takes ``[T, ...]``: neurons, and SpikingJelly's layers, in step mode "m"."""
        return getattr(self.module, "step_mode", None) == "m"

    @property
    def plain(self) -> bool:
        """Whether it wants exactly one dimension before C, H, W, as torch's layers do."""
        return not (self.folded or self.knows_time or isinstance(self.module, CompressedLayer))

    @property
    def kind(self) -> str:
        """Name of its class."""
        return type(self.module).__name__


@dataclass(frozen=True)
class Layer:
    """What a Conv2d or Linear computes with."""

    weight: Tensor | CompressedNM
    bias: Tensor | None
    geometry: Geometry

    @property
    def linear(self) -> bool:
        """Linear, or Conv2d."""
        return len(self.weight.shape) == 2


def is_chain(module: nn.Module) -> bool:
    """Whether ``module`` does nothing but call its layers one after the other."""
    return not has_hooks(module) and (type(module) is nn.Sequential or hasattr(module, "inference_chain"))


def leaves_of(module: nn.Module, name: str = "", folded: bool = False) -> list[Leaf]:
    """The layers of a chain in order; a module that is no chain is one leaf."""
    if not is_chain(module):
        return [Leaf(name, module, folded)]
    named = getattr(module, "inference_chain", None)
    children: Any = module.named_children() if named is None else named()
    folded = folded or named is not None
    return [
        leaf
        for child_name, child in children
        for leaf in leaves_of(child, f"{name}.{child_name}" if name else child_name, folded)
    ]


def has_hooks(module: nn.Module) -> bool:
    """Whether something (a pruner that is still attached, say) wants to see the module called."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def passes_through(leaf: Leaf) -> bool:
    """Whether it does nothing in evaluation mode."""
    cls = type(leaf.module)
    of_spikingjelly = cls.__module__.startswith(f"{_SPIKINGJELLY}layer.") and cls.__name__.startswith("Dropout")
    return not has_hooks(leaf.module) and (of_spikingjelly or isinstance(leaf.module, (nn.Identity, *_DROPOUTS)))


def layer_of(leaf: Leaf) -> Layer | str:
    """A Conv2d or Linear, compressed or not; else why it cannot be fused, empty where it is neither."""
    module: Any = leaf.module
    compressed = isinstance(module, (CompressedLayer, MaskedLayer))
    if not compressed and not isinstance(module, (nn.Linear, nn.Conv2d)):
        return ""
    if has_hooks(module):
        return "has hooks (a pruner that is not finalized?)"
    if not compressed and not _computes_as(module, (nn.Linear, nn.Conv2d)):
        return f"{leaf.kind} overrides forward"
    weight = module.compressed_weight() if isinstance(module, MaskedLayer) else module.weight
    bias = module.bias
    if len(weight.shape) == 2:
        return Layer(weight, bias, LINEAR)
    if getattr(module, "padding_mode", "zeros") != "zeros":
        return f"padding_mode {module.padding_mode!r}"
    padding = module.padding
    if padding == "valid":
        padding = 0
    elif padding == "same":
        total = [dilation * (kernel - 1) for dilation, kernel in zip(module.dilation, weight.shape[2:], strict=True)]
        if any(side % 2 for side in total):
            return "padding 'same' that is not the same on both sides"
        padding = [side // 2 for side in total]
    return Layer(weight, bias, (pair(module.stride), pair(padding), pair(module.dilation), module.groups))


def norm_of(leaf: Leaf, layer: Layer) -> nn.Module | None:
    """A batch norm that can be folded into ``layer`` before it."""
    module: Any = leaf.module
    kind = nn.BatchNorm1d if layer.linear else nn.BatchNorm2d
    foldable = isinstance(module, kind) and _computes_as(module, (kind,)) and not has_hooks(module)
    fits = foldable and module.num_features == layer.weight.shape[0]
    return module if fits and module.running_mean is not None else None


def pool_of(leaf: Leaf) -> nn.MaxPool2d | None:
    """A max-pooling that can be done on bits."""
    module = leaf.module
    if not isinstance(module, nn.MaxPool2d) or not _computes_as(module, (nn.MaxPool2d,)) or has_hooks(module):
        return None
    plain = pair(module.dilation) == (1, 1) and not module.ceil_mode and not module.return_indices
    return module if plain else None


def is_flatten(leaf: Leaf) -> bool:
    """Whether it flattens images to vectors."""
    module = leaf.module
    return (
        isinstance(module, nn.Flatten)
        and not has_hooks(module)
        and _computes_as(module, (nn.Flatten,))
        and (module.start_dim, module.end_dim) == (1, -1)
    )


def neuron_of(leaf: Leaf) -> Neuron | str:
    """A neuron as the kernels run it; else why not, empty where it is none."""
    module: Any = leaf.module
    if not hasattr(module, "v_threshold") or not hasattr(module, "step_mode"):
        return ""
    if has_hooks(module):
        return "has hooks"
    if leaf.folded and module.step_mode != "m":
        return f"step_mode is {module.step_mode!r}"
    if getattr(module, "store_v_seq", False):
        return "store_v_seq is True: the potentials of all steps are asked for"
    if isinstance(module, SpikingNeuron):
        if type(module).forward is not SpikingNeuron.forward:
            return f"{leaf.kind} overrides forward"
        tau, decay_input, reciprocal_tau = module.tau, module.decay_input, module.reciprocal_tau
    elif type(module).__module__.startswith(_SPIKINGJELLY) or _is_accelerated(module):
        from snn_core.interop.spikingjelly_neuron import kernel_options, why_not

        reason = why_not(module)
        if reason:
            return reason
        options: Any = kernel_options(module)
        tau, decay_input = options["tau"], options["decay_input"]
        reciprocal_tau = partial(_sigmoid_of_w, module)
    else:
        return f"{leaf.kind} is no neuron that is known"
    return Neuron(
        module, tau, module.v_threshold, module.v_reset, decay_input, module.step_mode == "s", reciprocal_tau
    )  # fmt: skip


def _sigmoid_of_w(node: Any) -> Tensor | None:
    """``1 / tau`` of SpikingJelly's ParametricLIFNode; None for a constant one."""
    return node.w.float().sigmoid() if isinstance(getattr(node, "w", None), Tensor) else None


def _is_accelerated(module: nn.Module) -> bool:
    return type(module).__module__ == "snn_core.interop.spikingjelly_neuron"


def _computes_as(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    """Whether the module's forward is that of one of ``kinds``, or SpikingJelly's of the same on ``[T, B, ...]``."""
    cls = type(module)
    if cls.__module__.startswith(f"{_SPIKINGJELLY}layer."):
        return cls.__name__ in {kind.__name__ for kind in kinds}
    return any(cls.forward is kind.forward for kind in kinds)
