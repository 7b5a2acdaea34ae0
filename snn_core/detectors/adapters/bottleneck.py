"""Bottleneck adapters: down, a nonlinearity, up, behind attention and behind the MLP.

Source: Houlsby et al. 2019, "Parameter-Efficient Transfer Learning for NLP". GELU instead of the nonlinearity there is
our choice, since the network's own is GELU.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from snn_core.detectors.adapters.base import Adapter, Host, adapter_form, beside, positive, zero_


class Bottleneck(Adapter):
    """``up(gelu(down(y)))`` of the frozen module's output.

    Args:
        width: channels of a token.
        hidden: channels between.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.down, self.act, self.up = nn.Linear(width, hidden), nn.GELU(), zero_(nn.Linear(hidden, width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """``y [..., C]`` -> ``[..., C]``."""
        delta: Tensor = self.up(self.act(self.down(y)))
        return delta


@adapter_form("bottleneck")
def attach_bottleneck(host: Host, hidden: int = 32, targets: Sequence[str] = ("attn", "mlp")) -> None:
    """A bottleneck behind each of ``targets`` (``attn``, ``mlp``) in every block."""
    positive("hidden", hidden)
    for block in host.blocks.children():
        for path in targets:
            beside(host, block, path, Bottleneck(host.width, hidden), "bottleneck")
