"""ST-SM as one loss: characteristic functions at every step, Fourier transform along time, and means beside them.

    L = cf_weight L_cf + mu L_dft + dm_weight L_dm + dm_step_weight L_dm_step      one layer; summed over layers

Each term can have its own SDR weight ``beta`` and its own stage, the part of the optimisation in which it counts
(appearance first, phase after). The terms themselves are functions in ``matching.py``.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from snn_core.distillation.alignment import aligned
from snn_core.distillation.frequencies import LearnedFrequencies
from snn_core.distillation.matching import (
    GatherClasses,
    MatchingTerms,
    characteristic_function_loss,
    coherent_spectrum_loss,
    draw_frequencies,
    mean_feature_loss,
    sigma_from_data,
    temporal_spectrum_loss,
)
from snn_core.errors import ArgumentError

Stage = tuple[float, float]
TimeMatching = Literal["mean", "coherent", "aligned", "aligned-coherent"]
ALWAYS: Stage = (0.0, 1.0)
#: Names of the terms in the log -> of the settings that they share (DM at every step goes with DM of the average).
_GROUP = {"cf": "cf", "dft": "dft", "dm": "dm", "dm_step": "dm"}


class SpatioTemporalMatching(nn.Module):
    """ST-SM as a loss for one layer at a time; usable alone, in anybody's loop.

    Args:
        sigma: standard deviation of the frequencies (with unit-length features ``<w, f>`` has it too), or ``"auto"``:
            from the real features of every call, so that ``|phi|`` is ``modulus`` on average.
        num_frequencies: M, drawn afresh at every call. modulus: see ``sigma``.
        alpha: share of the amplitude term in L_cf. normalise: unit-length features for L_cf.
        cf_weight, mu, dm_weight, dm_step_weight: weights of the terms ``cf`` (every step), ``dft``, ``dm`` (mean
            features averaged over time) and ``dm_step`` (mean features at every step); 0 turns a term off.
        time_matching: ``"mean"``: DFT of class means (the literal reading); ``"coherent"``: amplitudes sample by sample
            and phase weighted by coherence; ``"aligned"`` and ``"aligned-coherent"``: the same after every sample was
            turned in time to agree with the class's first synthetic one (:mod:`snn_core.distillation.alignment`), for
            classes whose recordings start anywhere in their movement. gamma: weight of the phase in each.
        cf_beta, dft_beta, dm_beta: SDR weight of the features of single terms; None: of whatever features are given.
            With more than one value, features come concatenated along D, one part for each of :attr:`betas`.
        cf_stage, dft_stage, dm_stage: ``(from, to)``, fractions of the optimisation; see :meth:`set_progress`.
        learn_frequencies: frequencies from a learned distribution (:class:`LearnedFrequencies`, one for each
            ``layer``), whose parameters (this module's) are to climb the loss.

    Raises:
        ArgumentError: a parameter outside its range, every term turned off, or a part of the run in which none counts.

    Example::

        loss = SpatioTemporalMatching(sigma="auto", time_matching="coherent")
        terms = loss(real, synthetic, generator=generator)      # [T, K, Br, D], [T, K, Bs, D]
        terms.total.backward()
    """

    def __init__(
        self,
        *,
        sigma: float | Literal["auto"] = 3.0,
        num_frequencies: int = 128,
        alpha: float = 0.5,
        mu: float = 1.0,
        gamma: float = 1.0,
        cf_weight: float = 1.0,
        normalise: bool = True,
        time_matching: TimeMatching = "mean",
        dm_weight: float = 0.0,
        dm_step_weight: float = 0.0,
        modulus: float = 0.65,
        cf_beta: float | None = None,
        dft_beta: float | None = None,
        dm_beta: float | None = None,
        cf_stage: Stage = ALWAYS,
        dft_stage: Stage = ALWAYS,
        dm_stage: Stage = ALWAYS,
        learn_frequencies: bool = False,
    ) -> None:
        super().__init__()
        if (sigma != "auto" and (isinstance(sigma, str) or sigma <= 0)) or not 0 < modulus < 1:
            raise ArgumentError(f"sigma ({sigma!r}) must be > 0 or 'auto', and modulus ({modulus}) between 0 and 1")
        if num_frequencies < 1 or not 0 <= alpha <= 1:
            raise ArgumentError(f"num_frequencies ({num_frequencies}) must be >= 1 and alpha ({alpha}) in [0, 1]")
        if time_matching not in get_args(TimeMatching):
            raise ArgumentError(f"time_matching is {time_matching!r}; allowed: {', '.join(get_args(TimeMatching))}")
        self.weights = {"cf": cf_weight, "dft": mu, "dm": dm_weight, "dm_step": dm_step_weight}
        if min(*self.weights.values(), gamma) < 0 or not any(self.weights.values()):
            raise ArgumentError(
                f"mu ({mu}), cf_weight ({cf_weight}), dm_weight ({dm_weight}), dm_step_weight ({dm_step_weight}) and "
                f"gamma ({gamma}) must be >= 0, and one of the weights positive"
            )
        self.settings: dict[str, object] = {
            "sigma": sigma, "modulus": modulus, "num_frequencies": num_frequencies, "alpha": alpha, "mu": mu,
            "gamma": gamma, "cf_weight": cf_weight, "dm_weight": dm_weight, "dm_step_weight": dm_step_weight,
            "normalise": normalise, "time_matching": time_matching, "cf_beta": cf_beta, "dft_beta": dft_beta,
            "dm_beta": dm_beta, "cf_stage": tuple(cf_stage), "dft_stage": tuple(dft_stage), "dm_stage": tuple(dm_stage),
            "learn_frequencies": learn_frequencies,
        }  # fmt: skip
        self.sigma, self.num_frequencies, self.alpha, self.modulus = sigma, num_frequencies, alpha, modulus
        self.gamma, self.normalise, self.time_matching = gamma, normalise, time_matching
        self.stages = {"cf": cf_stage, "dft": dft_stage, "dm": dm_stage}
        self.term_betas = {"cf": cf_beta, "dft": dft_beta, "dm": dm_beta}
        if any(value is not None and value < 0 for value in self.term_betas.values()):
            raise ArgumentError(f"cf_beta, dft_beta, dm_beta: must be >= 0, got {self.term_betas}")
        self.learn_frequencies = learn_frequencies
        self.learned = nn.ModuleDict()
        self.gather: GatherClasses | None = None
        self.progress = 0.0
        self._check_stages()

    @property
    def betas(self) -> tuple[float | None, ...]:
        """The distinct SDR weights that the terms turned on need; features are given for each, concatenated along D.

        None stands for the features' own, whatever that is.
        """
        return tuple(dict.fromkeys(self.term_betas[_GROUP[name]] for name, weight in self.weights.items() if weight))

    def set_progress(self, fraction: float) -> None:
        """How much of the optimisation is done, 0 .. 1: which terms count, by their stages."""
        self.progress = fraction

    def forward(self, real: Tensor, synthetic: Tensor, *, generator: torch.Generator, layer: int = 0) -> MatchingTerms:
        """Loss of ``synthetic`` ``[T, K, Bs, D]`` against ``real`` ``[T, K, Br, D]``; draws from ``generator``.

        A term outside its stage is 0 in ``per_class``. ``layer`` tells learned frequencies apart.

        Raises:
            ArgumentError: shapes that do not fit each other or the number of :attr:`betas`.
        """
        betas = self.betas
        if real.shape[-1] % len(betas) or real.shape[-1] != synthetic.shape[-1]:
            raise ArgumentError(
                f"features: {real.shape[-1]} real and {synthetic.shape[-1]} synthetic, need one part for each of the "
                f"betas {betas}"
            )
        both = zip(real.chunk(len(betas), -1), synthetic.chunk(len(betas), -1), strict=True)
        pairs = dict(zip(betas, both, strict=True))
        per_class: dict[str, Tensor] = {}
        total = synthetic.new_zeros(())
        for name, weight in self.weights.items():
            if not weight:
                continue
            if not self._counts(_GROUP[name]):
                per_class[name] = synthetic.new_zeros(synthetic.shape[1])
                continue
            per_class[name] = self._term(name, *pairs[self.term_betas[_GROUP[name]]], generator, layer)
            total = total + weight * per_class[name].mean()
        return MatchingTerms(total=total, per_class=per_class)

    def _term(self, name: str, real: Tensor, synthetic: Tensor, generator: torch.Generator, layer: int) -> Tensor:
        if name == "cf":
            frequencies = self._frequencies(real, generator, layer)
            return characteristic_function_loss(
                real, synthetic, frequencies, alpha=self.alpha, normalise=self.normalise
            )
        if name == "dft":
            if self.time_matching.startswith("aligned"):
                real, synthetic = aligned(real, synthetic)
            spectrum = coherent_spectrum_loss if self.time_matching.endswith("coherent") else temporal_spectrum_loss
            return spectrum(real, synthetic, gamma=self.gamma, gather=self.gather)
        return mean_feature_loss(real, synthetic, average_time=name == "dm", gather=self.gather)

    def _frequencies(self, real: Tensor, generator: torch.Generator, layer: int) -> Tensor:
        sigma = self.sigma
        if isinstance(sigma, str):
            sigma = sigma_from_data(real, modulus=self.modulus, normalise=self.normalise, gather=self.gather)
        width = real.shape[-1]
        draws = draw_frequencies(width, self.num_frequencies, sigma, generator=generator, device=real.device)
        if self.learn_frequencies:
            draws = self.prepare_layer(layer, width).to(real.device)(draws)
        return draws.to(real.dtype)

    def prepare_layer(self, layer: int, num_features: int) -> LearnedFrequencies:
        """The learned distribution of a layer with so many features, made when it is asked for first."""
        name = f"{layer}x{num_features}"  # teachers of other backbones have layers of other widths
        if name not in self.learned:
            self.learned[name] = LearnedFrequencies(num_features)
        module = self.learned[name]
        assert isinstance(module, LearnedFrequencies)
        return module

    def _counts(self, group: str) -> bool:
        start, end = self.stages[group]
        return start <= self.progress < end or self.progress >= end == 1.0

    def _check_stages(self) -> None:
        for name, (start, end) in self.stages.items():
            if not 0 <= start < end <= 1:
                raise ArgumentError(f"{name}_stage: got ({start}, {end}), need 0 <= from < to <= 1")
        on = {_GROUP[name] for name, weight in self.weights.items() if weight}
        for moment in sorted({0.0} | {edge for stage in self.stages.values() for edge in stage if edge < 1}):
            self.progress = moment
            if not any(self._counts(name) for name in on):
                raise ArgumentError(f"stages: no term counts from {moment} of the optimisation on ({self.stages})")
        self.progress = 0.0

    def extra_repr(self) -> str:
        # All of them: a saved state is compared with the run that resumes it by this.
        return ", ".join(f"{name}={value!r}" for name, value in self.settings.items())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"  # not the learned modules, which come while it runs
