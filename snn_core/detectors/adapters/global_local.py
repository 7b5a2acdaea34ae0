"""Global and local adaptive modules beside attention: the form of FA-ViT.

Source: FA-ViT (Luo et al.), "Forgery-aware Adaptive Learning with Vision Transformer for Generalized Face Forgery
Detection", of whose abstract this takes: a frozen ViT; a global module that models the interaction of far tokens by
self-attention, a local one that exposes local inconsistency by local context. Our choices: both beside attention, on
its input; the global one is one-headed self-attention in few channels; the local one compares each token with the mean
of its neighbourhood, and convolves the difference.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from snn_core.detectors.adapters.base import Adapter, Host, MapAdapter, Pass, adapter_form, beside, positive, zero_


class GlobalModule(Adapter):
    """Self-attention of all tokens in ``hidden`` channels.

    Args:
        width: channels of a token.
        hidden: channels of query, key and value.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.qkv, self.up = nn.Linear(width, 3 * hidden), zero_(nn.Linear(hidden, width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """``x [B, ..., C]`` -> the same shape."""
        query, key, value = self.qkv(x.flatten(1, -2)).chunk(3, -1)
        delta: Tensor = self.up(F.scaled_dot_product_attention(query, key, value))
        return delta.view(x.shape)


class LocalModule(MapAdapter):
    """Each token less the mean of the 3 x 3 tokens around it, convolved.

    Args:
        width: channels of a token.
        hidden: channels between.
        state: of the network.
    """

    def __init__(self, width: int, hidden: int, state: Pass) -> None:
        super().__init__(state)
        self.down = nn.Conv2d(width, hidden, 1)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.up = zero_(nn.Conv2d(hidden, width, 1))

    def on_maps(self, maps: Tensor, tokens: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> the same shape."""
        maps = self.down(maps)
        difference = maps - F.avg_pool2d(maps, 3, 1, 1, count_include_pad=False)
        delta: Tensor = self.up(F.gelu(self.depthwise(difference)))
        return delta


@adapter_form("global_local")
def attach_global_local(host: Host, hidden: int = 16) -> None:
    """A global and a local module of ``hidden`` channels beside attention in every block."""
    positive("hidden", hidden)
    for block in host.blocks.children():
        beside(host, block, "attn", GlobalModule(host.width, hidden), "global_local")
        beside(host, block, "attn", LocalModule(host.width, hidden, host.state), "global_local")
