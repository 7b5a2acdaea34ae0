"""Numbers kept beside the blocks of a group, and as tensors of a checkpoint: one for each layer, blocks first."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from snn_core.errors import ArgumentError
from snn_core.pruning.groups import BlockGroup, PrunedLayer
from snn_core.sparsity import to_blocks


def _rows(columns: Tensor, group: BlockGroup, layer: PrunedLayer) -> Tensor:
    """``[K, blocks]`` -> a view of the layer's part, ``[..., K]``, blocks in the order of ``sparsity.to_blocks``."""
    return group.part(columns, layer, to_blocks(layer.weight.detach(), group.pattern.m).shape)


def split_columns(columns: Tensor, group: BlockGroup) -> dict[str, Tensor]:
    """``[K, blocks]`` -> by layer name: ``[blocks of the layer, K]``, contiguous, in the order of ``to_blocks``."""
    return {
        layer.name: _rows(columns, group, layer).reshape(-1, len(columns)).clone(memory_format=torch.contiguous_format)
        for layer in group.layers
    }


def save_columns(name: str, columns: Tensor, group: BlockGroup) -> dict[str, Tensor]:
    """:func:`split_columns` under ``"name/layer"``."""
    return {f"{name}/{layer}": rows for layer, rows in split_columns(columns, group).items()}


def load_columns(name: str, state: Mapping[str, Tensor], group: BlockGroup, like: Tensor) -> Tensor:
    """The inverse of :func:`save_columns`: a new tensor like ``like`` ``[K, blocks]``.

    Raises:
        KeyError: a layer is missing.
        ValueError: a tensor has another shape.
    """
    result = torch.empty_like(like)
    for layer in group.layers:
        value = state[f"{name}/{layer.name}"]
        rows = _rows(result, group, layer)
        expected = [rows[..., 0].numel(), len(like)]
        if list(value.shape) != expected:
            raise ValueError(f"{name}/{layer.name} has shape {list(value.shape)}, not {expected}")
        rows.copy_(value.view(rows.shape))
    return result


def has_moved(columns: Tensor, group: BlockGroup, steps_done: int) -> bool:
    """Whether the weights have left the device where ``columns`` are, so that these have to be made anew.

    Raises:
        ArgumentError: they have, and there was a step: what was learned is not thrown away.
    """
    moved = columns.device != group.device
    if moved and steps_done > 0:
        raise ArgumentError(
            f"model: moved from {columns.device} to {group.device} while its masks are searched; move it before the "
            "first step, or make a new pruner and load this one's state_dict()"
        )
    return moved
