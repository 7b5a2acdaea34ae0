"""NCFM-style: characteristic functions of features, without any notion of time.

Source: Wang et al., "Dataset Distillation with Neural Characteristic Function: A Minmax Perspective", CVPR 2025. There
a small network learns which frequencies to weigh; here they are drawn afresh at every step, as PACE's are (its learned
form is an option of ``DistillConfig``, not of this comparison).

    ncfm              the features of all time steps as one bag of samples: when something happened is not seen
    ncfm/time-mean    the features averaged over time, one vector a recording

Both on spikes (beta 0): residual potentials are PACE's. With the time steps kept apart it is "pace/no-dft".
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from snn_core.distillation.config import DistillConfig
from snn_core.distillation.matching import (
    MatchingTerms,
    characteristic_function_loss,
    draw_frequencies,
    sigma_from_data,
)
from snn_core.distillation.methods.matched import MatchedMethod


class CharacteristicMatching:
    """Discrepancy of the characteristic functions of all (time step, sample) features of a class.

    Args:
        time_mean: average every sample's features over time first.
        sigma, modulus, num_frequencies, alpha, normalise: as in :class:`snn_core.distillation.SpatioTemporalMatching`.
    """

    def __init__(
        self, *, time_mean: bool = False, sigma: float | Literal["auto"] = 3.0, num_frequencies: int = 128,
        alpha: float = 0.5, normalise: bool = True, modulus: float = 0.65,
    ) -> None:  # fmt: skip
        self.time_mean, self.sigma, self.num_frequencies = time_mean, sigma, num_frequencies
        self.alpha, self.normalise, self.modulus = alpha, normalise, modulus

    def __call__(self, real: Tensor, synthetic: Tensor, *, generator: torch.Generator) -> MatchingTerms:
        """``[T, K, Br, D]`` and ``[T, K, Bs, D]`` -> terms; ``cf`` is ``[K]``. ArgumentError: shapes that differ."""
        real, synthetic = self._timeless(real), self._timeless(synthetic)
        sigma = self.sigma
        if isinstance(sigma, str):
            sigma = sigma_from_data(real, modulus=self.modulus, normalise=self.normalise)
        frequencies = draw_frequencies(
            real.shape[-1], self.num_frequencies, sigma, generator=generator, device=real.device
        )
        per_class = characteristic_function_loss(
            real, synthetic, frequencies.to(real.dtype),
            alpha=self.alpha, normalise=self.normalise,
        )  # fmt: skip
        return MatchingTerms(total=per_class.mean(), per_class={"cf": per_class})

    def _timeless(self, features: Tensor) -> Tensor:
        """``[T, K, B, D]`` -> ``[1, K, B, D]`` (mean over time) or ``[1, K, T * B, D]`` (a bag)."""
        if self.time_mean:
            return features.mean(0, keepdim=True)
        return features.transpose(0, 1).flatten(1, 2).unsqueeze(0)

    def __repr__(self) -> str:
        return (
            f"CharacteristicMatching(time_mean={self.time_mean}, sigma={self.sigma}, "
            f"num_frequencies={self.num_frequencies}, alpha={self.alpha}, normalise={self.normalise}, "
            f"modulus={self.modulus})"
        )


def _spikes(config: DistillConfig) -> dict[str, Any]:
    return {"beta": 0.0}


def _method(name: str, time_mean: bool) -> MatchedMethod:
    def loss(config: DistillConfig) -> CharacteristicMatching:
        return CharacteristicMatching(
            time_mean=time_mean, sigma=config.sigma, num_frequencies=config.num_frequencies, alpha=config.alpha,
            normalise=config.normalise, modulus=config.modulus,
        )  # fmt: skip

    return MatchedMethod(name, change=_spikes, loss=loss)


METHODS = {"ncfm": lambda: _method("ncfm", False), "ncfm/time-mean": lambda: _method("ncfm/time-mean", True)}
