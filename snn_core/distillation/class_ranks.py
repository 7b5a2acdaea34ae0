"""Classes dealt out to processes: matching is class by class, so each process passes its own through the teachers.

Draws are made from the same seed everywhere. What is exchanged is a number a class and term (the energies that losses
are relative to), and the gradient of the canvas.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from snn_core.errors import ArgumentError


class ClassRanks:
    """The classes ``start`` to ``stop`` of this process, and what it exchanges with the others, if there are any.

    Args:
        num_classes: K. distributed: False: this process works alone, whatever ``torch.distributed`` says.

    Raises:
        ArgumentError: more processes than classes.
    """

    def __init__(self, num_classes: int, distributed: bool = True) -> None:
        together = distributed and dist.is_available() and dist.is_initialized()
        self.size = dist.get_world_size() if together else 1
        self.rank = dist.get_rank() if together else 0
        if self.size > num_classes:
            raise ArgumentError(f"distillation: {self.size} processes for {num_classes} classes, at most one a class")
        self.num_classes = num_classes
        self._edges = [round(i * num_classes / self.size) for i in range(self.size + 1)]
        self.start, self.stop = self._edges[self.rank], self._edges[self.rank + 1]

    @property
    def count(self) -> int:
        """Classes of this process."""
        return self.stop - self.start

    def gather(self, values: Tensor) -> Tensor:
        """``[count, ...]`` values of the own classes -> ``[K, ...]`` of all, in order, without their graph."""
        values = values.detach()
        if self.size == 1:
            return values
        counts = [stop - start for start, stop in zip(self._edges[:-1], self._edges[1:], strict=True)]
        padded = values.new_zeros(max(counts), *values.shape[1:])
        padded[: len(values)] = values
        everyone = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(everyone, padded)
        return torch.cat([part[:count] for part, count in zip(everyone, counts, strict=True)])

    def sum_(self, tensor: Tensor) -> Tensor:
        """In place, over all processes."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether it is true on any process."""
        if self.size == 1:
            return flag
        return bool(self.sum_(torch.tensor(float(flag), device=device)) > 0)

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            dist.barrier()
