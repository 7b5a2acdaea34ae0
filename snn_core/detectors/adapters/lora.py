"""LoRA: a product of two thin matrices beside a frozen linear layer.

Source: Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models".
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snn_core.detectors.adapters.base import Adapter, Host, adapter_form, beside, features_of, positive


class LoRA(Adapter):
    """``scaling * (x A^T) B^T``, with ``A [rank, in]`` random and ``B [out, rank]`` zero at the start.

    Args:
        in_features, out_features: of the linear layer beside it.
        rank: of the product.
        scaling: the paper's alpha / rank.
    """

    def __init__(self, in_features: int, out_features: int, rank: int, scaling: float = 1.0) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, in_features))
        self.up = nn.Parameter(torch.zeros(out_features, rank))
        self.scaling = scaling
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """``x [..., in]`` -> ``[..., out]``."""
        return F.linear(F.linear(x, self.down), self.up * self.scaling)


@adapter_form("lora")
def attach_lora(
    host: Host, rank: int = 8, alpha: float | None = None, targets: Sequence[str] = ("attn.qkv", "attn.proj")
) -> None:
    """LoRA beside the named linear layers of every block.

    Args:
        host: the network.
        rank: of each product.
        alpha: the product is scaled by alpha / rank; default alpha = rank. timm keeps query, key and value in one
            layer ``attn.qkv``, so that one product serves all three (the paper has one for each).
        targets: linear layers of a block: ``attn.qkv``, ``attn.proj``, ``mlp.fc1``, ``mlp.fc2``.
    """
    positive("rank", rank)
    for block in host.blocks.children():
        for path in targets:
            adapter = LoRA(*features_of(block, path, "lora"), rank, 1.0 if alpha is None else alpha / rank)
            beside(host, block, path, adapter, "lora")
