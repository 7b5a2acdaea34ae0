"""Pruned layers; those with one pattern are worked on together as one tensor ``[M, blocks]``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from snn_core.errors import ArgumentError, NonFiniteError
from snn_core.kernels.topk_sampler import hard_topk
from snn_core.sparsity import NMPattern, to_blocks


class WeightMarks(NamedTuple):
    """What tells the values of a weight from those of another moment without looking at them: no GPU is waited for.

    Only a write in place through ``weight.data`` leaves no mark; see :func:`content_sum`.
    """

    identity: int
    version: int
    address: int
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, weight: Tensor) -> WeightMarks:
        """Of a weight as it is now."""
        return cls(id(weight), weight._version, weight.data_ptr(), weight.dtype, weight.device)


def content_sum(weight: Tensor) -> Tensor | float:
    """The sum of a weight, where it is: it also changes by writes through ``weight.data`` (swapped averages, clipping).

    A pass over the weight, and to compare two sums waits for a GPU: for evaluation, not for training.
    """
    if weight.device.type == "meta":
        return 0.0
    return weight.detach().sum(dtype=torch.float32 if weight.element_size() < 4 else None)


@dataclass(eq=False)
class PrunedLayer:
    """A layer under a pruner.

    Attributes:
        name, module: as in ``model.named_modules()``.
        pattern: N:M.
        columns: its place among the blocks of its group.
        mask: final boolean mask of the weight's shape once frozen, else None.
        drawn: mask of the present training step, or None.
        effective: the masked weight of the present step, made from the weight ``effective_of``; until a backward pass.
        called: whether the layer was ever called; a model that uses its weight directly cannot be pruned there.
    """

    name: str
    module: nn.Module
    pattern: NMPattern
    columns: slice = field(default_factory=lambda: slice(0))
    mask: Tensor | None = None
    drawn: Tensor | None = None
    effective: Tensor | None = None
    effective_of: WeightMarks | None = None
    called: bool = False

    @property
    def weight(self) -> nn.Parameter:
        """The dense weight (also while a masked one is shown to the layer)."""
        weight = self.module._parameters["weight"]
        assert weight is not None
        return weight

    def clear_dropped(self, values: Tensor) -> None:
        """Set to zero, in place, what the final mask drops."""
        assert self.mask is not None
        values.masked_fill_(~self.mask, 0)

    def check_called(self) -> None:
        """Raise ArgumentError where the weight has a gradient that did not come through the layer."""
        if self.weight.grad is not None and not self.called:
            raise ArgumentError(
                f"layer {self.name!r} got a gradient without ever being called: the model uses its weight "
                "directly, so its mask cannot take part; exclude it"
            )

    def keep_effective(self, effective: Tensor) -> None:
        """Use this masked weight until :meth:`forget_effective`, or until the weight has other marks."""
        self.effective, self.effective_of = effective, WeightMarks.of(self.weight)

    def forget_effective(self) -> None:
        """The next forward call makes its masked weight anew, with the mask of the step."""
        self.effective = self.effective_of = None

    def forget_step(self) -> None:
        """Drop what belongs to one training step."""
        self.drawn = self.effective = self.effective_of = None


class BlockGroup:
    """Blocks of several layers with one pattern side by side: ``[M, blocks]`` tensors, positions outermost.

    That layout makes every operation over a block a vector operation over blocks, and one call serves all layers.
    """

    def __init__(self, layers: list[PrunedLayer]) -> None:
        self.layers = layers
        self.pattern = layers[0].pattern
        start = 0
        for layer in layers:
            count = layer.weight.numel() // self.pattern.m
            layer.columns = slice(start, start + count)
            start += count
        self.num_blocks = start

    @property
    def device(self) -> torch.device:
        """Where the group's tensors are."""
        return self.layers[0].weight.device

    def empty(self) -> Tensor:
        """Uninitialised float32 ``[M, blocks]``."""
        return torch.empty(self.pattern.m, self.num_blocks, device=self.device)

    def gather(self, value: Callable[[PrunedLayer], Tensor]) -> Tensor:
        """Tensors of the weights' shapes -> float32 ``[M, blocks]``."""
        result = self.empty()
        for layer in self.layers:
            blocks = to_blocks(value(layer), self.pattern.m)
            self.part(result, layer, blocks.shape).copy_(blocks)
        return result

    def spread(self, columns: Tensor, layer: PrunedLayer) -> Tensor:
        """The layer's part of ``[M, blocks]`` -> a tensor of the weight's shape and memory layout."""
        result = torch.empty_like(layer.weight, dtype=columns.dtype, requires_grad=False)
        blocks = to_blocks(result, self.pattern.m)
        blocks.copy_(self.part(columns, layer, blocks.shape))
        return result

    def top(self, key: Tensor) -> Tensor:
        """Boolean ``[M, blocks]``, exactly N of M true: the largest of the key, ties to the lower position.

        Raises:
            NonFiniteError: the key is not finite; the message names the layer.
        """
        try:
            return hard_topk(key.t(), self.pattern.n).t()  # looks at the key itself
        except ArgumentError:
            self.name_non_finite(key, "the weights or logits")
            raise

    def check_finite(self, columns: Tensor, what: str) -> None:
        """Raise NonFiniteError naming the first layer whose part of ``columns`` is not finite."""
        if bool(torch.isfinite(columns.sum())):
            return
        self.name_non_finite(columns, what)

    def name_non_finite(self, columns: Tensor, what: str) -> None:
        """As :meth:`check_finite`, where it is known that something is wrong."""
        for layer in self.layers:
            bad = int((~torch.isfinite(columns[:, layer.columns])).sum())
            if bad:
                raise NonFiniteError(f"layer {layer.name!r}: {what} became non-finite ({bad} values)")

    def part(self, columns: Tensor, layer: PrunedLayer, shape: torch.Size) -> Tensor:
        """[M, blocks of the layer] seen as ``shape`` = [O, *kernel, in / M, M].

        The blocks lie in the order of the weight's memory, [O, in / M, *kernel], as the sampler's kernels take them.
        """
        return columns[:, layer.columns].unflatten(1, (shape[0], shape[-2], *shape[1:-2])).movedim((0, 2), (-1, -2))

    def block_rows(self, columns: Tensor, layer: PrunedLayer) -> Tensor:
        """[M, blocks] -> a copy of the layer's part, ``[blocks, M]`` in the order of ``sparsity.to_blocks``."""
        shape = to_blocks(layer.weight.detach(), self.pattern.m).shape
        return self.part(columns, layer, shape).reshape(-1, self.pattern.m).contiguous()

    def set_block_rows(self, columns: Tensor, layer: PrunedLayer, rows: Tensor) -> None:
        """The inverse of :meth:`block_rows`, into ``columns``."""
        shape = to_blocks(layer.weight.detach(), self.pattern.m).shape
        self.part(columns, layer, shape).copy_(rows.reshape(shape))


def group_by_pattern(layers: list[PrunedLayer]) -> list[BlockGroup]:
    """One group a pattern, in the order of the layers; sets the layers' ``columns``."""
    by_pattern: dict[NMPattern, list[PrunedLayer]] = {}
    for layer in layers:
        by_pattern.setdefault(layer.pattern, []).append(layer)
    return [BlockGroup(members) for members in by_pattern.values()]
