"""Several processes that train one model: what they must agree on, and a check that they do.

With DistributedDataParallel every process has the same weights and, after the backward pass, the same gradients; the
noise comes from the same seed. So masks and logits are equal on every rank without being sent. Only what is summed
over the local batch outside autograd (EID's credit) has to be reduced.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from snn_core.errors import ArgumentError
from snn_core.pruning.groups import PrunedLayer

CHECK_INTERVAL = 100  # steps between two comparisons of all ranks: one all_gather of a few numbers


def inner_model(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel and ``torch.compile``, whose layer names have no prefix.

    Raises:
        ArgumentError: no ``nn.Module``, or ``nn.DataParallel``, whose replicas share nothing with a pruner's layers.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    while True:
        if isinstance(model, nn.DataParallel):
            raise ArgumentError("model: nn.DataParallel cannot be pruned; use DistributedDataParallel")
        inner = model.module if isinstance(model, DistributedDataParallel) else getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


class Ranks:
    """The processes that train one model together; one alone where there are no others.

    Args:
        model: of its DistributedDataParallel, if it is one, the group is taken, else the default group.
        distributed: False: this process trains alone, whatever ``torch.distributed`` says.
    """

    def __init__(self, model: nn.Module, distributed: bool) -> None:
        self.group: dist.ProcessGroup | None = None
        self.size = 1
        self._last_check: int | None = None
        if distributed and dist.is_available() and dist.is_initialized():
            self.group = model.process_group if isinstance(model, DistributedDataParallel) else dist.group.WORLD
            self.size = dist.get_world_size(self.group)

    def sum(self, tensor: Tensor) -> Tensor:
        """In place, over all ranks; the same bits on each of them."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def check_pruner(
        self, identity: Callable[[], Any], step: int, layers: list[PrunedLayer], shared: Callable[[], dict[str, Tensor]]
    ) -> None:
        """Whether the ranks are alike, at the first step of this process, then every ``CHECK_INTERVAL`` steps.

        Raises:
            ArgumentError: on every rank, naming what differs and where.
        """
        due = self._last_check is None or step - self._last_check >= CHECK_INTERVAL
        if self.size == 1 or not due:
            return
        self._last_check = step
        values = {"the config": zlib.crc32(json.dumps(identity(), sort_keys=True).encode()), "the step": step}
        for layer in layers:
            mask = layer.mask if layer.drawn is None else layer.drawn
            values[f"the mask of layer {layer.name!r}"] = 0 if mask is None else checksum(mask)
        values |= {name: checksum(value) for name, value in shared().items()}
        own = torch.tensor(list(values.values()), dtype=torch.int64, device=layers[0].weight.device)
        everyone = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(everyone, own, group=self.group)
        for position, name in enumerate(values):
            differ = [rank for rank in range(self.size) if everyone[rank][position] != everyone[0][position]]
            if differ:
                raise ArgumentError(
                    f"pruning: {name} of rank {differ[0]} and rank 0 differ; every rank needs the same config, seed, "
                    "initial weights and number of steps, and gradients reduced over all ranks (if the ranks train "
                    "models of their own: distributed=False)"
                )


def checksum(tensor: Tensor) -> int:
    """Checksum of the bits of a tensor, made on its device: sum of (word + 1) * (odd number of the place), mod 2^64."""
    flat = tensor.detach().contiguous().flatten()
    words = (flat.view(torch.int32) if flat.element_size() == 4 else flat).to(torch.int64)
    places = torch.arange(len(words), device=words.device).mul_(2654435761).bitwise_or_(1)
    return int(((words + 1) * places).sum())
