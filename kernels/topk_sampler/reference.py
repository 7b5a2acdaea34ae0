"""SpikeNM's differentiable top-k sampler in plain torch: the oracle of the tests.

The abstract of SpikeNM says that N one-hot bases are drawn without replacement from M basis logits by a differentiable
top-k sampler at O(M) a block. How exactly is our own design: Gumbel top-k for the exact draw (Kool et al. 2019,
"Stochastic Beams and Where to Find Them"), successive relaxed draws for the gradient (Xie and Ermon 2019,
"Reparameterizable Subset Sampling via Continuous Relaxations"), and noise that is a function of a seed, a step and a
place (Philox4x32-10: Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3"), so that none is stored.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-6  # floor of 1 - p before its logarithm
_WORD = 0xFFFFFFFF
#: log(1 + f) = f + f^2 q(f) for 1 + f in [sqrt(1/2), sqrt(2)): q from its highest power down. As in topk_sampler.h.
LOG_COEFFICIENTS = (
    0.08734588, -0.14307415, 0.14918016, -0.16570525, 0.1996207, -0.25001755, 0.3333395, -0.4999999,
)  # fmt: skip


def gumbel_from_uniform(uniform: Tensor) -> Tensor:
    """Standard Gumbel noise from uniform numbers in [0, 1); zeros are lifted to half of float32's spacing."""
    return -torch.log(-torch.log(uniform.clamp(min=2.0**-25)))


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10: four random words (int64 tensors of 32-bit values) of four counter words and a 64-bit seed."""
    c0, c1, c2, c3 = counter
    k0, k1 = seed & _WORD, seed >> 32 & _WORD
    for _ in range(10):
        first, second = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # int64 wraps; of the 64 bits none is lost
        c0, c1, c2, c3 = (
            (second >> 32 & _WORD) ^ c1 ^ k0, second & _WORD, (first >> 32 & _WORD) ^ c3 ^ k1, first & _WORD,
        )  # fmt: skip
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return c0, c1, c2, c3


def random_words(seed: int, offset: int, blocks: int, m: int, device: torch.device | str = "cpu") -> Tensor:
    """Random words ``[blocks, M]`` (int64): word i % 4 of counter (block, i // 4, offset), whatever the layout."""
    block = torch.arange(blocks, device=device).unsqueeze(0) & _WORD
    quarter = torch.arange((m + 3) // 4, device=device).unsqueeze(1)
    low, high = (torch.full_like(block, part) for part in (offset & _WORD, offset >> 32 & _WORD))
    words = torch.stack(torch.broadcast_tensors(*philox((block, quarter, low, high), seed)), dim=1)
    return words.reshape(-1, blocks)[:m].t()


def log_portable(x: Tensor) -> Tensor:
    """Logarithm of positive, normal float32 numbers, the same bits on every backend; relative error below 1.2e-7."""
    field = x.view(torch.int32).to(torch.int64) + (0x3F800000 - 0x3F3504F3)
    e = (field >> 23).to(torch.float32) - 127.0
    f = ((field & 0x7FFFFF) + 0x3F3504F3).to(torch.int32).view(torch.float32) - 1.0
    q = torch.full_like(f, LOG_COEFFICIENTS[0])
    for coefficient in LOG_COEFFICIENTS[1:]:
        q = q * f + coefficient
    return (f + (f * f) * q) + e * 0.6931472


def seeded_gumbel(seed: int, offset: int, blocks: int, m: int, device: torch.device | str = "cpu") -> Tensor:
    """Standard Gumbel noise, float32 ``[blocks, M]``, from u = (k + 1/2) / 2^23, k the upper 23 bits of a word."""
    words = random_words(seed, offset, blocks, m, device)
    uniform = ((words >> 9) | 0x3F800000).to(torch.int32).view(torch.float32) - (1.0 - 2.0**-24)
    return -log_portable(-log_portable(uniform))


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


def seeded_key(
    logits: Tensor, anchor: Tensor | None, kappa: float, rho: float, noise_scale: float, seed: int, offset: int
) -> Tensor:
    """:func:`perturbed_key` with :func:`seeded_gumbel` noise; blocks of ``logits [..., M]`` count in their order."""
    noise = None
    if noise_scale > 0:
        m = logits.shape[-1]
        noise = seeded_gumbel(seed, offset, logits.numel() // m, m, logits.device).reshape(logits.shape)
        noise = noise.to(logits.dtype)
    return perturbed_key(logits, anchor, noise, kappa, rho, noise_scale)


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


def standardise(columns: Tensor) -> Tensor:
    """``[M, blocks]`` with mean 0 and deviation 1 in each block (all 0 where a block is constant)."""
    centred = columns - columns.mean(dim=0)
    return centred / (centred.square().sum(dim=0) / (len(columns) - 1)).sqrt_().add_(1e-12)


def soft_targets(credit: Tensor, temperature: float) -> Tensor:
    """``q = softmax(standardise(credit) / temperature)`` over each block of ``[M, blocks]``."""
    return torch.softmax(standardise(credit) / temperature, dim=0)
