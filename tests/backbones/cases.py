"""The backbones that every test of ``test_backbones.py`` runs on, as small as they get.

A new one is a line here: its name, the options that make it tiny, and what its feature maps must be.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

SIDE, STEPS, BATCH, CLASSES = 16, 2, 2, 5


@dataclass(frozen=True)
class Case:
    """A spiking backbone.

    Attributes:
        name, options: for ``create``, beside ``in_channels`` and ``num_classes``.
        features: channels and stride of every feature map.
        in_channels: of the frames.
        label: of the test, where it is not the name.
    """

    name: str
    options: dict[str, Any]
    features: tuple[tuple[int, int], ...]
    in_channels: int = 2
    label: str = ""
    everything: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        both = {"in_channels": self.in_channels, "num_classes": CLASSES} | self.options
        object.__setattr__(self, "everything", both)

    def __str__(self) -> str:
        return self.label or self.name

    def frames(self, seed: int = 0, batch: int = BATCH, side: int = SIDE) -> torch.Tensor:
        """Event counts ``[T, B, C, H, W]``, uint8."""
        shape = (STEPS, batch, self.in_channels, side, side)
        return torch.randint(0, 6, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


FOUR, THREE = [8, 8, 16, 16], [8, 8, 16]

CASES = [
    Case("conv-snn", {"channels": [8, 8], "input_size": [SIDE, SIDE]}, ((8, 4), (8, 8))),
    Case("spiking_vgg9", {"channels": THREE, "hidden": [16], "pool_to": 2}, ((8, 2), (8, 4), (16, 8))),
    Case(
        "spiking_vgg11",
        {"channels": [8, 8, 8, 8, 16], "pools": 4, "norm": "bn", "dropout": 0.5},
        ((8, 2), (8, 4), (8, 8), (8, 16), (16, 16)),
    ),
    Case(
        "spiking_vgg16",
        {"channels": [8, 8, 8, 8, 16], "pools": 3, "pool": "avg", "neuron": "if"},
        ((8, 2), (8, 4), (8, 8), (8, 8), (16, 8)),
    ),
    Case("spiking_resnet18", {"channels": FOUR, "stem": "cifar"}, ((8, 1), (8, 2), (16, 4), (16, 8))),
    Case(
        "spiking_resnet19",
        {"channels": THREE, "stem_channels": 8, "hidden": [16]},
        ((8, 1), (8, 2), (16, 4)),
    ),
    Case("spiking_resnet34", {"channels": FOUR}, ((8, 4), (8, 8), (16, 16), (16, 32))),
    Case("sew_resnet18", {"channels": FOUR, "stem": "events"}, ((8, 2), (8, 4), (16, 8), (16, 16))),
    Case(
        "sew_resnet18",
        {"channels": FOUR, "stem": "events", "connect_f": "AND", "zero_init_residual": True},
        ((8, 2), (8, 4), (16, 8), (16, 16)),
        label="sew_resnet18-AND",
    ),
    Case(
        "sew_resnet19",
        {"channels": THREE, "connect_f": "IAND", "neuron": "plif", "stem": "events", "hidden": [16]},
        ((8, 2), (8, 4), (16, 8)),
    ),
    Case("sew_resnet34", {"channels": FOUR}, ((8, 4), (8, 8), (16, 16), (16, 32)), in_channels=3),
    Case("ms_resnet18", {"channels": FOUR}, ((8, 4), (8, 8), (16, 16), (16, 32)), in_channels=3),
    Case("ms_resnet19", {"channels": THREE, "stem": "events", "hidden": []}, ((8, 2), (8, 4), (16, 8))),
    Case("ms_resnet34", {"channels": FOUR, "stem": "cifar"}, ((8, 1), (8, 2), (16, 4), (16, 8))),
    Case("spikformer", {"embed_dim": 32, "depth": 1, "num_heads": 4, "norm_gain": 2.0}, ((8, 1), (16, 2), (32, 4))),
    Case(
        "spikformer",
        {"embed_dim": 32, "depth": 1, "num_heads": 4, "stem": "dvs", "norm_gain": 4.0, "scale": 1.0},
        ((4, 2), (8, 4), (16, 8), (32, 16)),
        label="spikformer-dvs",
    ),
    Case("sdt", {"embed_dim": 32, "depth": 1, "norm_gain": 2.0}, ((8, 1), (16, 2), (32, 4)), in_channels=3),
]
