"""SpikeNM's differentiable top-k sampler in plain torch: the oracle of the tests.

The abstract of SpikeNM says that N one-hot bases are drawn without replacement from M basis logits by a differentiable
top-k sampler at O(M) a block. How exactly is our own design: Gumbel top-k for the exact draw (Kool et al. 2019,
"Stochastic Beams and Where to Find Them"), successive relaxed draws for the gradient (Xie and Ermon 2019,
"Reparameterizable Subset Sampling via Continuous Relaxations").
"""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-6  # floor of 1 - p before its logarithm


def gumbel_from_uniform(uniform: Tensor) -> Tensor:
    """Standard Gumbel noise from uniform numbers in [0, 1); zeros are lifted to half of float32's spacing."""
    return -torch.log(-torch.log(uniform.clamp(min=2.0**-25)))


def perturbed_key(
    logits: Tensor, anchor: Tensor | None, noise: Tensor | None, kappa: float, rho: float, noise_scale: float
) -> Tensor:
    """``key = kappa * logits + rho * anchor + noise_scale * noise``; a None term is left out. All ``[..., M]``."""
    key = kappa * logits
    if anchor is not None:
        key = key + rho * anchor
    if noise is not None:
        key = key + noise_scale * noise
    return key


def hard_topk(key: Tensor, n: int) -> Tensor:
    """Boolean ``[..., M]``: true at the ``n`` largest entries of each block, ties to the lower index."""
    order = key.sort(dim=-1, descending=True, stable=True).indices
    return torch.zeros_like(key, dtype=torch.bool).scatter(-1, order[..., :n], True)


def relaxed_topk(key: Tensor, n: int, temperature: float) -> Tensor:
    """Sum of ``n`` relaxed draws without replacement: ``[..., M]``, each entry >= 0, every block sums to ``n``.

    ``a_1 = key / tau;  p_j = softmax(a_j);  a_{j+1} = a_j + log(max(1 - p_j, eps)) / tau;  soft = sum_j p_j``.
    """
    a = key / temperature
    soft = torch.zeros_like(key)
    for _ in range(n):
        p = torch.softmax(a, dim=-1)
        soft = soft + p
        a = a + torch.log((1 - p).clamp(min=EPSILON)) / temperature
    return soft
