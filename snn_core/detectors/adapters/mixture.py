"""Mixtures of LoRA experts and of convolutional experts, each with a router: the form of MoE-FFD.

Source: MoE-FFD (Kong et al.), "Mixture of Experts for Generalized and Parameter-Efficient Face Forgery Detection", of
whose abstract this takes: a frozen ViT, LoRA experts and convolutional adapter experts, chosen dynamically. Our
choices: LoRA experts beside ``attn.qkv``, convolutional ones beside the MLP; a router sees the mean token of a picture;
its probabilities are softmax over all experts, and the top k of them are used as they are (Fedus et al. 2022, "Switch
Transformers", whose load-balancing loss this is too); the convolutional experts differ in the size of their kernels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snn_core.detectors.adapters.base import (
    Adapter,
    Host,
    MapAdapter,
    Pass,
    adapter_form,
    beside,
    features_of,
    positive,
    zero_,
)
from snn_core.errors import ArgumentError


class Router(nn.Module):
    """Which experts serve a picture.

    Args:
        width: channels of a token.
        experts: how many there are.
        top_k: how many serve each picture (each window, where attention has windows).
        state: its load-balancing loss goes to ``state.losses``.
    """

    def __init__(self, width: int, experts: int, top_k: int, state: Pass) -> None:
        super().__init__()
        if not 1 <= top_k <= experts:
            raise ArgumentError(f"adapters: top_k is {top_k}; allowed: 1 to the {experts} experts")
        self.linear = nn.Linear(width, experts)
        # Almost even at first: which expert starts best is chance, and must not decide who learns.
        nn.init.normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)
        self.top_k, self.state = top_k, state

    def forward(self, x: Tensor) -> Tensor:
        """``[B, ..., C]`` -> ``[B, experts]``: probabilities, zero for all but the top k."""
        probability = self.linear(x.flatten(1, -2).mean(1)).softmax(-1)
        chosen = torch.zeros_like(probability).scatter(-1, probability.topk(self.top_k, -1).indices, 1.0)
        if self.training:
            share = chosen.mean(0) / self.top_k  # of the pictures; no gradient passes
            self.state.losses.append(chosen.shape[1] * (share * probability.mean(0)).sum())
        return probability * chosen


class LoRAExperts(Adapter):
    """``sum of gate_e B_e A_e x``; all experts' thin matrices are one product each.

    Args:
        in_features, out_features: of the linear layer beside it.
        ranks: of the experts.
        top_k, state: of the router.
    """

    def __init__(self, in_features: int, out_features: int, ranks: Sequence[int], top_k: int, state: Pass) -> None:
        super().__init__()
        self.router = Router(in_features, len(ranks), top_k, state)
        self.down = nn.Parameter(torch.empty(sum(ranks), in_features))
        self.up = nn.Parameter(torch.zeros(out_features, sum(ranks)))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        self.register_buffer("expert", torch.arange(len(ranks)).repeat_interleave(torch.tensor(ranks)), False)

    expert: Tensor

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """``x [B, ..., in]`` -> ``[B, ..., out]``."""
        gates = self.router(x)[:, self.expert]
        gates = gates.view(len(x), *(1,) * (x.ndim - 2), -1)
        return F.linear(F.linear(x, self.down) * gates, self.up)


class ConvExperts(MapAdapter):
    """Experts of a 1x1 convolution down, a depthwise one of their own size, GELU and 1x1 up, beside the MLP.

    Tokens before those of the picture get nothing.

    Args:
        width: channels of a token.
        hidden: channels of an expert.
        kernels: odd sizes, one an expert.
        top_k, state: of the router.
    """

    def __init__(self, width: int, hidden: int, kernels: Sequence[int], top_k: int, state: Pass) -> None:
        super().__init__(state)
        if any(not isinstance(kernel, int) or kernel < 1 or kernel % 2 == 0 for kernel in kernels):
            raise ArgumentError(f"adapters: kernels are {list(kernels)}; each must be an odd positive integer")
        self.router = Router(width, len(kernels), top_k, state)
        self.down = nn.Conv2d(width, hidden * len(kernels), 1)
        self.depthwise = nn.ModuleList(
            nn.Conv2d(hidden, hidden, kernel, padding=kernel // 2, groups=hidden) for kernel in kernels
        )
        self.up = zero_(nn.Conv2d(hidden * len(kernels), width, 1))

    def on_maps(self, maps: Tensor, tokens: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> the same shape."""
        gates = self.router(tokens)
        parts = self.down(maps).chunk(len(self.depthwise), 1)
        hidden = [
            F.gelu(conv(part)) * gate.view(-1, 1, 1, 1)
            for conv, part, gate in zip(self.depthwise, parts, gates.unbind(1), strict=True)
        ]
        delta: Tensor = self.up(torch.cat(hidden, 1))
        return delta


@adapter_form("mixture")
def attach_mixture(
    host: Host,
    ranks: Sequence[int] = (4, 4, 4, 4),
    kernels: Sequence[int] = (1, 3, 5),
    hidden: int = 8,
    top_k: int = 1,
) -> None:
    """LoRA experts beside ``attn.qkv`` and convolutional experts beside ``mlp`` in every block.

    Args:
        host: the network.
        ranks: of the LoRA experts; empty: none.
        kernels: of the convolutional experts; empty: none.
        hidden: channels of a convolutional expert.
        top_k: experts that serve a picture.
    """
    if not ranks and not kernels:
        raise ArgumentError("adapters: mixture has neither ranks nor kernels, so no expert")
    for rank in ranks:
        positive("ranks", rank)
    positive("hidden", hidden), positive("top_k", top_k)
    for block in host.blocks.children():
        if ranks:
            experts = LoRAExperts(*features_of(block, "attn.qkv", "mixture"), ranks, top_k, host.state)
            beside(host, block, "attn.qkv", experts, "mixture")
        if kernels:
            beside(host, block, "mlp", ConvExperts(host.width, hidden, kernels, top_k, host.state), "mixture")
