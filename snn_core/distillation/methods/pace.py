"""PACE (ST-DSM, PEQ-N), and what is left of it when one piece is taken away."""

from __future__ import annotations

import functools
from typing import Any

from snn_core.distillation.config import DistillConfig
from snn_core.distillation.methods.matched import Change, MatchedMethod


def _fixed(**values: Any) -> Change:
    return lambda config: values


def _no_dft(config: DistillConfig) -> dict[str, Any]:
    return {"mu": 0.0, "cf_weight": config.cf_weight or 1.0}


def _no_cf(config: DistillConfig) -> dict[str, Any]:
    return {"cf_weight": 0.0, "mu": config.mu or 1.0}


#: Name after "pace/" -> what it changes. ``no-sdr``: spikes only. ``amplitude-only``: no phase, in neither term.
#: ``no-dft``: characteristic functions at every step alone. ``no-cf``: the Fourier transform alone.
ABLATIONS: dict[str, Change] = {
    "no-sdr": _fixed(beta=0.0),
    "amplitude-only": _fixed(alpha=1.0, gamma=0.0),
    "no-dft": _no_dft,
    "no-cf": _no_cf,
}


def _ablated(name: str) -> MatchedMethod:
    return MatchedMethod(f"pace/{name}", change=ABLATIONS[name])


METHODS = {"pace": lambda: MatchedMethod("pace")} | {
    f"pace/{name}": functools.partial(_ablated, name) for name in ABLATIONS
}
