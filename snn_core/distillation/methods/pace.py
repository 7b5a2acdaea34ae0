"""PACE (ST-DSM, PEQ-N), what is left of it when one piece is taken away, and its form with several clips a sample."""

from __future__ import annotations

import functools
from typing import Any

from snn_core.distillation.config import DistillConfig
from snn_core.distillation.methods.matched import Change, MatchedMethod
from snn_core.distillation.spatio_temporal import ALWAYS
from snn_core.errors import ArgumentError


def _fixed(**values: Any) -> Change:
    return lambda config: values


def _filled(config: DistillConfig, changes: dict[str, Any]) -> dict[str, Any]:
    """``changes``; where they leave a part of a run without any term, the terms that are left count always."""
    try:
        config.model_copy(update=changes).loss()
    except ArgumentError:
        return changes | {"cf_stage": ALWAYS, "dft_stage": ALWAYS, "dm_stage": ALWAYS}
    return changes


def _no_dft(config: DistillConfig) -> dict[str, Any]:
    others = config.cf_weight or config.dm_weight or config.dm_step_weight
    return _filled(config, {"mu": 0.0} if others else {"mu": 0.0, "cf_weight": 1.0})


def _no_cf(config: DistillConfig) -> dict[str, Any]:
    others = config.mu or config.dm_weight or config.dm_step_weight
    return _filled(config, {"cf_weight": 0.0} if others else {"cf_weight": 0.0, "mu": 1.0})


def _of_decoder(config: DistillConfig, **values: Any) -> dict[str, Any]:
    """``values`` where a decoder is learned; else they mean nothing and stay what they are."""
    return values if config.decoder == "learned" else {}


def _several_clips(config: DistillConfig) -> dict[str, Any]:
    return {} if config.formation().clips > 1 else {"formation_space": 2}


#: Name after "pace/" -> what it changes. ``no-sdr``: spikes only, in every term. ``amplitude-only``: no phase, in
#: neither term. ``no-coherence``: phases of the class means. ``no-dft``: nothing but what is matched step by step or on
#: average. ``no-cf``: no characteristic functions. ``no-peqn``: real-valued frames in the loop, rounded at the end, and
#: a decoder's rates rounded. ``no-decoder``: stored cells repeated. ``no-decoder-matching``: a decoder learned by the
#: likelihood of the counts alone.
ABLATIONS: dict[str, Change] = {
    "no-sdr": _fixed(beta=0.0, cf_beta=None, dft_beta=None, dm_beta=None),
    "amplitude-only": _fixed(alpha=1.0, gamma=0.0),
    "no-coherence": _fixed(time_matching="mean"),
    "no-dft": _no_dft,
    "no-cf": _no_cf,
    "no-peqn": lambda config: {"quantize": "none"} | _of_decoder(config, decoder_draw="round"),
    "no-decoder": _fixed(decoder="repeat"),
    "no-decoder-matching": lambda config: _of_decoder(config, decoder_matching=0.0),
}


def _ablated(name: str) -> MatchedMethod:
    return MatchedMethod(f"pace/{name}", change=ABLATIONS[name])


def _multi() -> MatchedMethod:
    """Multi-formation, the configuration's; where that has one clip a sample, four: one in each quadrant."""
    return MatchedMethod("pace/multi", change=_several_clips)


METHODS = {"pace": lambda: MatchedMethod("pace"), "pace/multi": _multi} | {
    f"pace/{name}": functools.partial(_ablated, name) for name in ABLATIONS
}
