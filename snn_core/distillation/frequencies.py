"""Frequencies of the characteristic function that are learned: min-max, in the way of NCFM.

Source: Wang et al., "Dataset Distillation with Neural Characteristic Function: A Minmax Perspective", CVPR 2025: the
frequencies' distribution is a scale mixture of normals whose parameters climb the loss that the synthetic data descend.
There a small network makes the scales; here they are parameters (this project's choice), so that a saved state is
two short vectors a layer:

    w = sigma * diag(exp(gain)) * exp(scale_j) * e,   e ~ N(0, I) drawn afresh,   j one of ``groups`` mixture components
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from snn_core.errors import ArgumentError

_LIMIT = (
    1.5  # of gain and scale: a factor of 4.5 either way, so that climbing cannot leave where the loss says something
)


class LearnedFrequencies(nn.Module):
    """A scale mixture of normal frequencies ``[D, M]`` whose spread per feature and per component is learned.

    Args:
        num_features: D. groups: mixture components, at most M are used.

    Raises:
        ArgumentError: a number below 1.
    """

    def __init__(self, num_features: int, groups: int = 8) -> None:
        super().__init__()
        if num_features < 1 or groups < 1:
            raise ArgumentError(f"num_features ({num_features}) and groups ({groups}) must be at least 1")
        self.gain = nn.Parameter(torch.zeros(num_features))
        # spread from the start: equal components would all climb alike
        self.scale = nn.Parameter(torch.linspace(-0.5, 0.5, groups) if groups > 1 else torch.zeros(1))

    def forward(self, draws: Tensor) -> Tensor:
        """Frequencies of plain draws ``[D, M]`` from N(0, sigma^2 I), in the graph of the parameters.

        Raises:
            ArgumentError: draws of another D.
        """
        if draws.ndim != 2 or draws.shape[0] != len(self.gain):
            raise ArgumentError(f"draws: got {tuple(draws.shape)}, need [D={len(self.gain)}, M]")
        component = torch.arange(draws.shape[1], device=draws.device) % len(self.scale)
        return draws * self.gain.exp().unsqueeze(1) * self.scale.exp()[component]

    @torch.no_grad()
    def project_(self) -> None:
        """Keep the logarithms of the spreads within +-1.5, in place."""
        self.gain.clamp_(-_LIMIT, _LIMIT)
        self.scale.clamp_(-_LIMIT, _LIMIT)
