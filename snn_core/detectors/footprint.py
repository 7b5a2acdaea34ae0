"""How many parameters of a network train, and how many bytes its frozen part takes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from snn_core.sparsity import CompressedLayer


@dataclass(frozen=True)
class Footprint:
    """Counts of a network; a compressed weight counts as the dense one it stands for.

    Attributes:
        parameters: of the network, those that train included.
        trained: those that train.
        frozen_nbytes: bytes of what is frozen, as it is stored: values, positions, biases, norms, embeddings.
        dense_nbytes: of the same with dense weights, in the dtype of the stored values.
    """

    parameters: int
    trained: int
    frozen_nbytes: int
    dense_nbytes: int

    @property
    def trained_share(self) -> float:
        """Of all parameters."""
        return self.trained / max(self.parameters, 1)

    @property
    def bytes_ratio(self) -> float:
        """Bytes of what is frozen, of those with dense weights."""
        return self.frozen_nbytes / max(self.dense_nbytes, 1)


def footprint(network: nn.Module) -> Footprint:
    """Counts of ``network``; buffers count as frozen."""
    trained = sum(value.numel() for value in network.parameters() if value.requires_grad)
    count = sum(value.numel() for value in network.parameters())
    stored = dense = sum(value.nbytes for value in network.parameters() if not value.requires_grad)
    inside: set[int] = set()
    for module in network.modules():
        if isinstance(module, CompressedLayer):
            inside |= {id(part) for part in (module.values, module.indices, module.scale) if part is not None}
            size = 1
            for extent in module.shape:
                size *= extent
            count += size
            stored += module.weight_nbytes
            dense += size * module.values.element_size()
    rest = sum(value.nbytes for value in network.buffers() if id(value) not in inside)
    return Footprint(count, trained, stored + rest, dense + rest)
