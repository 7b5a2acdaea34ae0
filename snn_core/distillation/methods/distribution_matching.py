"""DM: distribution matching, the class means of features.

Source: Zhao, Bilen, "Dataset Condensation with Distribution Matching", WACV 2023. There the features are the last ones
of networks that were never trained; here those of every spiking layer of the same trained teachers as PACE's, the
stronger form on event data (docs/notes/pace.md), so that only the loss differs.

    dm              | mean_b f_F[t] - mean_b f_G[t] |^2 at every time step
    dm/time-mean    | mean_{t,b} f_F - mean_{t,b} f_G |^2: knows nothing of time
    dm/sdr, dm/time-mean-sdr: the same on features densified by residual potentials; without, on spikes
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from snn_core.distillation.config import DistillConfig
from snn_core.distillation.matching import MatchingTerms, mean_feature_loss
from snn_core.distillation.methods.matched import MatchedMethod


class DistributionMatching:
    """Squared distance of class-mean features, relative to the squared norm of the real means (all classes together).

    Args:
        time_mean: average over time first.
    """

    def __init__(self, *, time_mean: bool = False) -> None:
        self.time_mean = time_mean

    def __call__(self, real: Tensor, synthetic: Tensor, *, generator: torch.Generator) -> MatchingTerms:
        """``[T, K, Br, D]`` and ``[T, K, Bs, D]`` -> terms; ``dm`` is ``[K]``: 0 for equal means, about 1 for silence.

        Raises:
            ArgumentError: shapes that do not fit each other.
        """
        per_class = mean_feature_loss(real, synthetic, average_time=self.time_mean)
        return MatchingTerms(total=per_class.mean(), per_class={"dm": per_class})

    def __repr__(self) -> str:
        return f"DistributionMatching(time_mean={self.time_mean})"


def _spikes(config: DistillConfig) -> dict[str, Any]:
    return {"beta": 0.0}


def _densified(config: DistillConfig) -> dict[str, Any]:
    return {"beta": config.beta or 1.0}


def _method(name: str, time_mean: bool, sdr: bool) -> MatchedMethod:
    change = _densified if sdr else _spikes
    return MatchedMethod(name, change=change, loss=lambda config: DistributionMatching(time_mean=time_mean))


METHODS = {
    "dm": lambda: _method("dm", False, False),
    "dm/sdr": lambda: _method("dm/sdr", False, True),
    "dm/time-mean": lambda: _method("dm/time-mean", True, False),
    "dm/time-mean-sdr": lambda: _method("dm/time-mean-sdr", True, True),
}
