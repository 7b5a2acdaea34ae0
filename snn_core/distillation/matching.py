"""ST-SM: match real and synthetic feature streams in distribution at every step, and in amplitude and phase over time.

PACE describes spatio-temporal matching as a characteristic-function projection in feature space plus a discrete
Fourier transform along time. The concrete losses are this project's reading of it; the characteristic-function
discrepancy follows NCFM (Wang et al., "Dataset Distillation with Neural Characteristic Function", CVPR 2025).

Shapes: ``T`` time steps, ``K`` classes, ``B`` samples of a class, ``D`` features, ``M`` frequencies. Features are
time-first and class-wise, ``[T, K, B, D]``; real and synthetic streams may differ in ``B`` only.

    phi_F[t,k](w) = mean_b exp(i <w, f[t,k,b]>),  w ~ N(0, sigma^2 I)
    L_cf  = mean_{t,k,w} sqrt( alpha (|phi_F|-|phi_G|)^2 + (1-alpha) 2 (|phi_F||phi_G| - Re Re - Im Im) + eps )
    Z_F[k] = rFFT over t of mean_b f[t,k,b],  A_F = |Z_F|
    L_dft = sum ( (A_F-A_G)^2 + gamma 2 (A_F A_G - Re Re - Im Im) ) / sum A_F^2
    L     = L_cf + mu L_dft,  summed over layers

``|p||q| - Re Re - Im Im`` is ``|p||q| (1 - cos(arg p - arg q))`` without an arctangent: it is clamped at 1e-12 and
amplitudes are ``sqrt(Re^2 + Im^2 + 1e-12)``, so that every gradient is finite where an amplitude is zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from snn_core.errors import ArgumentError

_TINY = 1e-12
_ROOT_EPSILON = 1e-8
_SHORTEST = 1e-2


def unit_length(features: Tensor, shortest: float = _SHORTEST) -> Tensor:
    """Scale feature vectors ``[..., D]`` to unit Euclidean length; those shorter than ``shortest`` by ``1 / shortest``.

    So all-zero vectors stay zero, and no singular value of the derivative exceeds ``1 / shortest``, here 100. (The
    floor is this project's choice.)
    """
    # Without a floor that matters (say norm + 1e-6) one silent sample would outweigh the gradient of all others: with
    # beta = 0 features are exactly zero wherever no neuron fires.
    return features / torch.linalg.vector_norm(features, dim=-1, keepdim=True).clamp_min(shortest)


def draw_frequencies(
    num_features: int,
    num_frequencies: int,
    sigma: float,
    *,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> Tensor:
    """``[D, M]`` frequencies from N(0, sigma^2 I), float32, drawn on the generator's device and moved to ``device``."""
    if sigma <= 0 or num_frequencies < 1:
        raise ArgumentError(f"sigma and num_frequencies must be positive, got {sigma} and {num_frequencies}")
    draws = torch.randn(num_features, num_frequencies, generator=generator, device=generator.device)
    return (draws * sigma).to(device)


def characteristic_function(features: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """Empirical characteristic function of each set of samples.

    Args:
        features: ``[..., B, D]``, the samples of a set along the last dimension but one.
        frequencies: ``[D, M]``.

    Returns:
        Real and imaginary part of ``mean_b exp(i <w, f_b>)``, each ``[..., M]``.
    """
    angle = features @ frequencies
    return angle.cos().mean(-2), angle.sin().mean(-2)


def _amplitude_and_phase_terms(
    real: tuple[Tensor, Tensor], synthetic: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """``(|p|-|q|)^2``, ``2 |p||q| (1 - cos(arg p - arg q))`` and ``|p|`` of complex p, q given as (Re, Im)."""
    amplitude_p = (real[0].square() + real[1].square() + _TINY).sqrt()
    amplitude_q = (synthetic[0].square() + synthetic[1].square() + _TINY).sqrt()
    aligned = real[0] * synthetic[0] + real[1] * synthetic[1]
    # minus the clamp again: silent streams then match exactly
    phase = 2 * ((amplitude_p * amplitude_q - aligned).clamp_min(_TINY) - _TINY)
    return (amplitude_p - amplitude_q).square(), phase, amplitude_p


def characteristic_function_loss(
    real: Tensor, synthetic: Tensor, frequencies: Tensor, *, alpha: float = 0.5, normalise: bool = True
) -> Tensor:
    """L_cf of each class: discrepancy of the characteristic functions, at every time step.

    Args:
        real: ``[T, K, Br, D]`` features; synthetic: ``[T, K, Bs, D]`` features.
        frequencies: ``[D, M]``, see :func:`draw_frequencies`.
        alpha: weight of the amplitude term; ``1 - alpha`` weighs the phase term.
        normalise: scale feature vectors to unit length first (as NCFM does).

    Returns:
        ``[K]``; its mean is L_cf. At identical sets every entry is ``sqrt(1e-8)`` up to rounding.

    Raises:
        ArgumentError: shapes that do not fit each other.
    """
    _check_streams(real, synthetic)
    if frequencies.ndim != 2 or frequencies.shape[0] != real.shape[-1]:
        raise ArgumentError(f"frequencies: got {tuple(frequencies.shape)}, need [D={real.shape[-1]}, M]")
    if normalise:
        real, synthetic = unit_length(real), unit_length(synthetic)
    amplitude, phase, _ = _amplitude_and_phase_terms(
        characteristic_function(real, frequencies), characteristic_function(synthetic, frequencies)
    )
    return (alpha * amplitude + (1 - alpha) * phase + _ROOT_EPSILON).sqrt().mean((0, 2))


def temporal_spectrum_loss(real: Tensor, synthetic: Tensor, *, gamma: float = 1.0) -> Tensor:
    """L_dft of each class: amplitude and phase of the Fourier transform along time of the class-mean feature.

    Args:
        real: ``[T, K, Br, D]`` features; synthetic: ``[T, K, Bs, D]`` features.
        gamma: weight of the phase term beside the amplitude term.

    Returns:
        ``[K]``; its mean is L_dft: 0 for equal means, 1 for silent synthetic features. The denominator
        ``sum A_F^2`` runs over all classes, so that a class with weak features does not outweigh the others.

    Raises:
        ArgumentError: shapes that do not fit each other.
    """
    _check_streams(real, synthetic)
    spectrum_real = torch.fft.rfft(real.mean(2), dim=0)
    spectrum_synthetic = torch.fft.rfft(synthetic.mean(2), dim=0)
    amplitude, phase, amplitude_real = _amplitude_and_phase_terms(
        (spectrum_real.real, spectrum_real.imag), (spectrum_synthetic.real, spectrum_synthetic.imag)
    )
    num_classes = real.shape[1]
    return num_classes * (amplitude + gamma * phase).sum((0, 2)) / amplitude_real.square().sum().clamp_min(_TINY)


@dataclass(frozen=True)
class MatchingTerms:
    """What a matching loss returns for one layer.

    ``total``: scalar, the layer's loss. ``per_class``: name of a term -> ``[K]`` values (before the term's weight),
    for the log and to name the class in which something became non-finite.
    """

    total: Tensor
    per_class: dict[str, Tensor]


class MatchingLoss(Protocol):
    """A class-wise loss between real and synthetic features of one layer; the place where other methods plug in."""

    def __call__(self, real: Tensor, synthetic: Tensor, *, generator: torch.Generator) -> MatchingTerms:
        """``[T, K, Br, D]`` and ``[T, K, Bs, D]`` -> terms; random draws only from ``generator``."""
        ...


class SpatioTemporalMatching(nn.Module):
    """ST-SM as a loss: L_cf at every step + mu * L_dft over time, for one layer at a time.

    Args:
        sigma: standard deviation of the frequencies. With unit-length features ``<w, f>`` has it too.
        num_frequencies: M, drawn afresh at every call.
        alpha: share of the amplitude term in L_cf. mu: weight of L_dft (0 turns it off).
        gamma: weight of the phase in L_dft. normalise: unit-length features for L_cf.
        cf_weight: weight of L_cf (0 turns it off).

    Raises:
        ArgumentError: a parameter outside its range, or every term turned off.
    """

    def __init__(
        self,
        *,
        sigma: float = 3.0,
        num_frequencies: int = 128,
        alpha: float = 0.5,
        mu: float = 1.0,
        gamma: float = 1.0,
        cf_weight: float = 1.0,
        normalise: bool = True,
    ) -> None:
        super().__init__()
        if sigma <= 0 or num_frequencies < 1 or not 0 <= alpha <= 1:
            raise ArgumentError(
                f"sigma ({sigma}) must be > 0, num_frequencies ({num_frequencies}) >= 1 and alpha ({alpha}) in [0, 1]"
            )
        if min(mu, gamma, cf_weight) < 0 or mu == cf_weight == 0:
            raise ArgumentError(
                f"mu ({mu}), gamma ({gamma}) and cf_weight ({cf_weight}) must be >= 0, and mu or cf_weight positive"
            )
        self.sigma, self.num_frequencies, self.alpha = sigma, num_frequencies, alpha
        self.mu, self.gamma, self.cf_weight, self.normalise = mu, gamma, cf_weight, normalise

    def forward(self, real: Tensor, synthetic: Tensor, *, generator: torch.Generator) -> MatchingTerms:
        """Loss of ``synthetic`` ``[T, K, Bs, D]`` against ``real`` ``[T, K, Br, D]``; draws from ``generator``."""
        per_class: dict[str, Tensor] = {}
        total = synthetic.new_zeros(())
        if self.cf_weight:
            frequencies = draw_frequencies(
                real.shape[-1], self.num_frequencies, self.sigma, generator=generator, device=real.device
            ).to(real.dtype)
            per_class["cf"] = characteristic_function_loss(
                real, synthetic, frequencies, alpha=self.alpha, normalise=self.normalise
            )
            total = total + self.cf_weight * per_class["cf"].mean()
        if self.mu:
            per_class["dft"] = temporal_spectrum_loss(real, synthetic, gamma=self.gamma)
            total = total + self.mu * per_class["dft"].mean()
        return MatchingTerms(total=total, per_class=per_class)

    def extra_repr(self) -> str:
        # All of them: a saved state is compared with the run that resumes it by this.
        return (
            f"sigma={self.sigma}, num_frequencies={self.num_frequencies}, alpha={self.alpha}, mu={self.mu}, "
            f"gamma={self.gamma}, cf_weight={self.cf_weight}, normalise={self.normalise}"
        )


def group_by_class(features: Sequence[Tensor], num_classes: int) -> list[Tensor]:
    """``[T, K*B, D]`` features of samples sorted by class -> ``[T, K, B, D]``, for each layer.

    Raises:
        ArgumentError: the number of samples is no multiple of ``num_classes``.
    """
    for layer in features:
        if layer.shape[1] % num_classes:
            raise ArgumentError(f"features: {layer.shape[1]} samples are not a multiple of {num_classes} classes")
    return [layer.unflatten(1, (num_classes, -1)) for layer in features]


def _check_streams(real: Tensor, synthetic: Tensor) -> None:
    fits = real.ndim == synthetic.ndim == 4 and real.shape[:2] == synthetic.shape[:2]
    if not (fits and real.shape[3] == synthetic.shape[3] and real.shape[2] and synthetic.shape[2]):
        raise ArgumentError(
            f"real {tuple(real.shape)} and synthetic {tuple(synthetic.shape)}: need [T, K, B, D] with the same T, K, D "
            "and at least one sample a class"
        )
