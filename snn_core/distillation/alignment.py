"""Circular alignment in time: what a class moves like, where its recordings start anywhere in the movement.

The mean over recordings that start at random is still; the mean over recordings that were first turned in time until
they agree with one of them is not, and it keeps the direction of the movement: a turn by ``tau`` multiplies the n-th
Fourier coefficient of *every* feature by ``exp(2 pi i n tau / T)``, so phases between features stay. A reference that
is still turns nothing: start from real recordings. (This project's choice; averaging after alignment is as old as
signal averaging.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from snn_core.errors import ArgumentError


def best_turns(features: Tensor, reference: Tensor) -> Tensor:
    """By how many steps each sample is to be turned so that it agrees best with its class's reference.

    Args:
        features: ``[T, K, B, D]``. reference: ``[T, K, D]``.

    Returns:
        int64 ``[K, B]``: the ``tau`` in 0 .. T - 1 that makes ``sum_{t,d} f[(t + tau) % T] reference[t]`` largest,
        which makes the squared distance smallest; the lowest where several do (a still sample: 0).

    Raises:
        ArgumentError: shapes that do not fit each other.
    """
    if features.ndim != 4 or reference.shape != features[:, :, 0].shape:
        raise ArgumentError(
            f"features {tuple(features.shape)} and reference {tuple(reference.shape)}: need [T, K, B, D], [T, K, D]"
        )
    steps = features.shape[0]
    with torch.no_grad():
        # the time averages give every turn the same; without them rounding cannot decide between turns of a still one
        spectra = [torch.fft.rfft(stream - stream.mean(0), dim=0) for stream in (features, reference)]
        product = torch.einsum("nkbd,nkd->nkb", spectra[0], spectra[1].conj())
        correlation = torch.fft.irfft(product, n=steps, dim=0)
        least = 1e-6 * correlation.abs().amax(0)
        return (correlation >= correlation.amax(0) - least).int().argmax(0)


def turn(features: Tensor, turns: Tensor) -> Tensor:
    """``features[(t + turns[k, b]) % T, k, b]``: ``[T, K, B, D]``, differentiable in ``features`` ``[T, K, B, D]``."""
    steps = features.shape[0]
    index = (torch.arange(steps, device=features.device).view(-1, 1, 1) + turns) % steps
    return features.gather(0, index.unsqueeze(-1).expand_as(features))


def aligned(real: Tensor, synthetic: Tensor) -> tuple[Tensor, Tensor]:
    """Both turned in time to agree with the first synthetic sample of each class, which itself stays as it is.

    Args:
        real: ``[T, K, Br, D]``. synthetic: ``[T, K, Bs, D]``.

    Returns:
        The same shapes; differentiable, the choice of the turns is not.

    Raises:
        ArgumentError: shapes that do not fit each other.
    """
    reference = synthetic[:, :, 0].detach()
    if synthetic.shape[2] > 1:
        rest = synthetic[:, :, 1:]
        synthetic = torch.cat([synthetic[:, :, :1], turn(rest, best_turns(rest, reference))], 2)
    return turn(real, best_turns(real, reference)), synthetic
