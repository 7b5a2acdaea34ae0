"""Whole networks for inference: spikes stay bits from layer to layer.

::

    small = compress(pruned_model)      # N:M weights
    fast = fuse(small)                  # the same outputs, sooner
    logits = fast(frames)

In a chain of layers, convolution or linear, batch norm, neuron, max-pooling and flattening become a few calls: the norm
is folded into scale and bias, the neurons run inside the product, so that currents never reach memory, and what goes
from one layer to the next is one bit a spike.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from snn_core.errors import ArgumentError
from snn_core.kernels.native import BACKENDS
from snn_core.kernels.nm_compress import CompressedNM
from snn_core.kernels.nm_matmul.candidates import MORE_BACKENDS
from snn_core.neurons import reset_net
from snn_core.sparsity import chain
from snn_core.sparsity.chain import Leaf
from snn_core.sparsity.fused import Call, Flat, Neuron, Pool, ReadOut, SpikingLayer, Synapses, Unpack, native_for


@dataclass(frozen=True)
class KeptLayer:
    """A layer with weights, or a neuron, that runs as it did: its name, its class, and why."""

    name: str
    kind: str
    reason: str


class FusedRun(nn.Module):
    """Consecutive layers between which spikes are bits; dense tensors in and out.

    ``[T, ..., C, H, W]`` (``[T, ..., K]`` where it begins with a Linear) in; ``plain``: of one dimension before C, as
    torch's layers take it.
    """

    def __init__(self, parts: Sequence[nn.Module], backend: str, plain: bool) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.backend, self.plain = backend, plain
        first: Any = parts[0]
        self.sample_dims = 1 if first.synapses.linear else 3
        self.keep_state = True
        self._runs = [first.begin, *(part.run for part in parts[1:])]

    def forward(self, x: Tensor) -> Tensor:
        lead = tuple(x.shape[: max(0, x.ndim - self.sample_dims)])
        if not lead or (self.plain and len(lead) != 1):
            form = ("T, " if self.plain else "T, ..., ") + ("K" if self.sample_dims == 1 else "C, H, W")
            raise ArgumentError(f"x has shape {list(x.shape)}; it must be [{form}]")
        call = Call(lead, native_for(self.backend, x.device), self.backend, self.keep_state)
        return self._run(x, call)

    def from_counts(self, counts: Tensor, table: Tensor) -> Tensor:
        """:meth:`forward` of ``table[counts]``, counts ``uint8 [T, B, C, H, W]``."""
        call = Call(counts.shape[:2], native_for(self.backend, counts.device), self.backend, self.keep_state, table)
        return self._run(counts, call)

    def _run(self, x: Tensor, call: Call) -> Tensor:
        lead, y = call.lead, x
        with torch.no_grad():
            for run in self._runs:
                y = run(y, call)
        y = y.view(*lead, *y.shape[1:]) if y.ndim == 2 else y.unflatten(0, lead)
        return y.to(x.dtype) if x.is_floating_point() and y.dtype != x.dtype else y


class FoldTime(nn.Module):
    """A layer that knows no time on ``[T, B, ...]``."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x_seq: Tensor) -> Tensor:
        return self.module(x_seq.flatten(0, 1)).unflatten(0, x_seq.shape[:2])


class FusedClassifier(nn.Module):
    """A classifier (an encoder of frames, then a chain whose output is averaged over time), fused.

    Calls do not depend on each other: no potential is kept between them.
    """

    table: Tensor | None

    def __init__(self, encoder: nn.Module, layers: nn.Sequential, dtype: torch.dtype) -> None:
        super().__init__()
        self.encoder, self.layers, self.dtype = encoder, layers, dtype
        by_table = hasattr(encoder, "count_table") and dtype == torch.float32 and isinstance(layers[0], FusedRun)
        table: Any = encoder.count_table if by_table else lambda: None
        self.register_buffer("table", table(), persistent=False)
        self._resets = False
        for part in layers:
            if isinstance(part, FusedRun):
                part.keep_state = False
            else:
                self._resets = True

    def forward_steps(self, x_seq: Tensor) -> Tensor:
        """Logits of every time step ``[T, B, K]`` from frames ``x_seq [T, B, C, H, W]``."""
        if self._resets:
            reset_net(self)
        if self.table is None or x_seq.dtype != torch.uint8:
            with torch.no_grad():
                return self.layers(self.encoder(x_seq, self.dtype))
        self.encoder.check(x_seq)  # type: ignore[operator]
        first, *others = self.layers
        y = first.from_counts(x_seq, self.table)  # type: ignore[operator]
        with torch.no_grad():
            for layer in others:
                y = layer(y)
        return y

    def forward(self, x_seq: Tensor) -> Tensor:
        """Logits ``[B, K]``, the mean over time."""
        return self.forward_steps(x_seq).mean(0)


def fuse(model: nn.Module, *, backend: str = "auto", strict: bool = False) -> nn.Module:
    """A network for inference with the outputs of ``model`` in evaluation mode.

    Runs of (Conv2d or Linear, BatchNorm, LIF, IF or PLIF), MaxPool2d and Flatten are fused: in ``nn.Sequential``, in
    this package's backbones, and in anything with a method ``inference_chain()`` that names its layers in order; of
    SpikingJelly's layers those in step mode "m". A layer in a run may be dense or compressed; the first one of a run
    may get any input, the others get spikes. All else is kept as it is, in a model with a ``forward`` of its own, too,
    and gets dense tensors.

    The result shares weights with ``model`` where it can, and behaves like it: neurons keep their potential from call
    to call until :func:`snn_core.reset_net`, where ``model`` does not reset them itself. Later changes of ``model`` do
    not reach it. Outputs are those of ``model`` as far as float32 sums in another order are: a potential within
    rounding of its threshold may fall on the other side of it.

    Args:
        model: left as it is.
        backend: of products, as in :func:`snn_core.kernels.nm_matmul`; what has no such backend uses its own.
        strict: raise where a layer with a weight, or a neuron, could not be fused.

    Returns:
        A network without gradients; ``print`` shows its parts, :func:`kept_layers` what was not fused and why.

    Raises:
        ArgumentError: nothing in the model can be fused, or ``strict`` and not everything.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model is a {type(model).__name__}; it must be a torch.nn.Module")
    if backend not in ("auto", *BACKENDS, *MORE_BACKENDS):
        raise ArgumentError(f"backend is {backend!r}; allowed: auto, {', '.join((*BACKENDS, *MORE_BACKENDS))}")
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    model = copy.deepcopy(model, shared).eval()
    kept: list[KeptLayer] = []
    fused = _fused(model, "", backend, kept)
    if not any(isinstance(module, FusedRun) for module in fused.modules()):
        raise ArgumentError(f"nothing in model {type(model).__name__} can be fused: {_listed(kept)}")
    if strict and kept:
        raise ArgumentError(f"strict is True, and these are not fused: {_listed(kept)}")
    fused.kept_layers = tuple(kept)  # type: ignore[assignment]
    return fused.eval().requires_grad_(False)


def kept_layers(fused: nn.Module) -> tuple[KeptLayer, ...]:
    """What :func:`fuse` left as it was, of layers with weights and of neurons."""
    layers: Any = fused.kept_layers
    return layers


def _listed(kept: Sequence[KeptLayer]) -> str:
    return "; ".join(f"{layer.name} ({layer.kind}): {layer.reason}" for layer in kept) or "it has no layers"


def _fused(module: nn.Module, name: str, backend: str, kept: list[KeptLayer]) -> nn.Module:
    """``module`` with its chains fused; the same object where it is none itself."""
    if chain.is_chain(module):
        parts = _fused_chain(chain.leaves_of(module, name), backend, kept)
        encoder: Any = getattr(module, "encoder", None)
        if encoder is not None and hasattr(module, "forward_steps"):
            return FusedClassifier(encoder, nn.Sequential(*parts), next(module.parameters()).dtype)
        return parts[0] if len(parts) == 1 else nn.Sequential(*parts)
    leaf = Leaf(name, module, False)
    reason = _why_kept(leaf)
    if reason is not None:
        kept.append(KeptLayer(name, leaf.kind, reason or "no layer and neuron stand together here"))
        return module
    for child_name, child in list(module.named_children()):
        fused = _fused(child, f"{name}.{child_name}" if name else child_name, backend, kept)
        if fused is not child:
            setattr(module, child_name, fused)
    return module


def _why_kept(leaf: Leaf) -> str | None:
    """What stands against fusing a layer with weights or a neuron; empty: its neighbours; None for anything else."""
    layer, neuron = chain.layer_of(leaf), chain.neuron_of(leaf)
    if layer == "" and neuron == "":
        return None
    return layer if isinstance(layer, str) and layer else neuron if isinstance(neuron, str) else ""


def _fused_chain(leaves: list[Leaf], backend: str, kept: list[KeptLayer]) -> list[nn.Module]:
    """Fused runs, and the layers between them as they are."""
    parts: list[nn.Module] = []
    position = 0
    while position < len(leaves):
        builder = _RunBuilder(leaves, position)
        if builder.parts:
            parts.append(FusedRun(builder.parts, backend, builder.plain))
            position = builder.position
            continue
        leaf = leaves[position]
        position += 1
        if chain.passes_through(leaf):
            continue
        module = _fused(leaf.module, leaf.name, backend, kept)
        fold = leaf.folded and not leaf.knows_time and not isinstance(module, (FusedRun, nn.Sequential))
        parts.append(FoldTime(module) if fold else module)
    return parts


class _RunBuilder:
    """Takes as many layers as can be fused from ``position`` on; ``parts`` is empty where the first one cannot."""

    def __init__(self, leaves: list[Leaf], position: int) -> None:
        self.leaves, self.position = leaves, position
        self.parts: list[nn.Module] = []
        self.plain = False
        self.channels, self.linear = 0, False
        if self._take_layer(packed=False):
            while self._take_next():
                pass
            if not isinstance(self.parts[-1], ReadOut):
                self.parts.append(Unpack(self.channels, self.linear))

    def _take_next(self) -> bool:
        self.position = self._skip(self.position)
        if self.position >= len(self.leaves) or isinstance(self.parts[-1], ReadOut):
            return False
        leaf = self.leaves[self.position]
        pool = chain.pool_of(leaf)
        if pool is not None and not self.linear:
            self._add(Pool(pool, self.channels), leaf, self.position + 1)
            return True
        if chain.is_flatten(leaf):
            return self._take_flatten(leaf)
        return self._take_layer(packed=True)

    def _skip(self, position: int) -> int:
        while position < len(self.leaves) and chain.passes_through(self.leaves[position]):
            position += 1
        return position

    def _add(self, part: nn.Module, leaf: Leaf, position: int) -> None:
        self.parts.append(part)
        self.plain = self.plain or leaf.plain
        self.position = position

    def _take_flatten(self, leaf: Leaf) -> bool:
        if self.linear:
            return False
        following = self._skip(self.position + 1)
        layer = chain.layer_of(self.leaves[following]) if following < len(self.leaves) else ""
        if isinstance(layer, str) or not layer.linear or layer.weight.shape[1] % self.channels:
            return False
        behind_each_other = self.channels % 8 == 0 and not isinstance(layer.weight, CompressedNM)
        as_it_lies = behind_each_other or layer.weight.shape[1] == self.channels
        channels = self.channels
        self._add(Flat(channels, as_it_lies), leaf, following)
        self.linear, self.channels = True, layer.weight.shape[1]
        assert self._take_layer(packed=True)
        if as_it_lies:
            taken: Any = self.parts[-1]
            taken.synapses.reorder_flat(channels)
        return True

    def _take_layer(self, packed: bool) -> bool:
        """A Conv2d or Linear, the norm behind it, and the neuron behind that; without one it ends the run."""
        leaf = self.leaves[self.position]
        layer = chain.layer_of(leaf)
        if isinstance(layer, str) or (packed and layer.linear != self.linear):
            return False
        following = self._skip(self.position + 1)
        norm, norm_leaf = None, leaf
        if following < len(self.leaves):
            norm_leaf = self.leaves[following]
            norm = chain.norm_of(norm_leaf, layer)
        after_norm = self._skip(following + 1) if norm is not None else following
        neuron: Neuron | str = chain.neuron_of(self.leaves[after_norm]) if after_norm < len(self.leaves) else ""
        if isinstance(neuron, str) and not packed:
            return False
        synapses = Synapses(layer.weight, layer.bias, layer.geometry, norm)
        part = ReadOut(synapses) if isinstance(neuron, str) else SpikingLayer(synapses, neuron)
        end = after_norm if isinstance(neuron, str) else after_norm + 1
        plain = self.plain
        self._add(part, leaf, end)
        # A Linear takes any dimensions before K, torch's other layers one.
        self.plain = plain if layer.linear else self.plain
        if norm is not None:
            self.plain = self.plain or norm_leaf.plain
        self.channels, self.linear = layer.weight.shape[0], layer.linear
        return True
