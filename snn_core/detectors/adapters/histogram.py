"""Statistical tokens from local histograms: the form of S-Adapter.

Source: S-Adapter (Cai et al.), "Generalizing Vision Transformer for Face Anti-Spoofing with Statistical Tokens", of
whose abstract this takes: a frozen ViT, and adapters that gather local information from localised histograms of the
tokens. Our choices: behind the MLP; soft histograms with bins whose centres and widths are learned (Peeples et al.
2022, "Histogram Layers for Texture Analysis"), averaged over 3 x 3 tokens, and a 1x1 convolution of all bins.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snn_core.detectors.adapters.base import Host, MapAdapter, Pass, adapter_form, beside, positive, zero_


class HistogramAdapter(MapAdapter):
    """Soft histograms of ``hidden`` channels around each token.

    Args:
        width: channels of a token.
        hidden: channels that histograms are taken of.
        bins: of a histogram; centres start evenly from -1 to 1, as wide as they are apart.
        state: of the network.
    """

    of_output = True

    def __init__(self, width: int, hidden: int, bins: int, state: Pass) -> None:
        super().__init__(state)
        self.down = nn.Conv2d(width, hidden, 1)
        # Channels of any size become about one wide, which is where the bins are.
        self.norm = nn.GroupNorm(1, hidden)
        self.centres = nn.Parameter(torch.linspace(-1, 1, bins).repeat(hidden, 1))
        self.log_width = nn.Parameter(torch.full((hidden, bins), 2 / max(bins - 1, 1)).log())
        self.up = zero_(nn.Conv2d(hidden * bins, width, 1))

    def histograms(self, maps: Tensor) -> Tensor:
        """``[B, hidden, H, W]`` -> ``[B, hidden * bins, H, W]``: how much of the neighbourhood lies in each bin."""
        centres, width = self.centres[..., None, None], self.log_width.exp()[..., None, None]
        votes = (-((maps.unsqueeze(2) - centres) / width).square()).exp()
        return F.avg_pool2d(votes.flatten(1, 2), 3, 1, 1, count_include_pad=False)

    def on_maps(self, maps: Tensor, tokens: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> the same shape."""
        delta: Tensor = self.up(self.histograms(self.norm(self.down(maps))))
        return delta


@adapter_form("histogram")
def attach_histogram(host: Host, hidden: int = 8, bins: int = 4) -> None:
    """Histograms of ``hidden`` channels with ``bins`` bins behind the MLP in every block."""
    positive("hidden", hidden), positive("bins", bins)
    for block in host.blocks.children():
        beside(host, block, "mlp", HistogramAdapter(host.width, hidden, bins, host.state), "histogram")
