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
    L     = L_cf + mu L_dft,  summed over layers            (put together in spatio_temporal.py)

Beside the literal L_dft stand its coherent form (amplitudes sample by sample) and the means alone (DM).

``|p||q| - Re Re - Im Im`` is ``|p||q| (1 - cos(arg p - arg q))`` without an arctangent: it is clamped at 1e-12 and
amplitudes are ``sqrt(Re^2 + Im^2 + 1e-12)``, so that every gradient is finite where an amplitude is zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from snn_core.errors import ArgumentError

_TINY = 1e-12
_ROOT_EPSILON = 1e-8
_SHORTEST = 1e-2
_SIGMA_RANGE = (0.1, 1000.0)
#: ``[k, ...]`` values of this process's classes -> ``[K, ...]`` of all classes, in order, equal on every process.
GatherClasses = Callable[[Tensor], Tensor]


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


def temporal_spectrum_loss(
    real: Tensor, synthetic: Tensor, *, gamma: float = 1.0, gather: GatherClasses | None = None
) -> Tensor:
    """L_dft of each class, read literally: the Fourier transform along time of the class-*mean* feature.

    Args:
        real: ``[T, K, Br, D]`` features; synthetic: ``[T, K, Bs, D]`` features.
        gamma: weight of the phase term beside the amplitude term. At 1 the loss is the squared distance of the class
            means at every step (Parseval), but for the weight of frequencies that a real transform has twice.
        gather: where other processes hold other classes, see :data:`GatherClasses`.

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
    return _relative((amplitude + gamma * phase).sum((0, 2)), amplitude_real.square().sum((0, 2)), gather)


def coherent_spectrum_loss(
    real: Tensor, synthetic: Tensor, *, gamma: float = 1.0, gather: GatherClasses | None = None
) -> Tensor:
    """L_dft of each class with the amplitude of single samples, and phase only where the class has one.

    With ``Z`` the Fourier transform along time of every *sample*, and ``E`` the mean over samples of a class::

        ( (E|Z_F| - E|Z_G|)^2 + gamma 2 (|E Z_F| |E Z_G| - Re conj(E Z_F) E Z_G) )  /  sum (E|Z_F|)^2

    ``|E Z_F| / E|Z_F|`` is the class's coherence. Where motion starts anywhere, E Z vanishes although every sample
    moves: matching the mean's amplitude (:func:`temporal_spectrum_loss`) then asks for a still picture, this does not.

    Args, returns and errors as :func:`temporal_spectrum_loss`; 1 is silence without any phase term.
    """
    _check_streams(real, synthetic)
    both = [torch.fft.rfft(stream, dim=0) for stream in (real, synthetic)]
    amplitude_real, amplitude_synthetic = ((z.real.square() + z.imag.square() + _TINY).sqrt().mean(2) for z in both)
    mean_real, mean_synthetic = (z.mean(2) for z in both)
    _, phase, _ = _amplitude_and_phase_terms(
        (mean_real.real, mean_real.imag), (mean_synthetic.real, mean_synthetic.imag)
    )
    amplitude = (amplitude_real - amplitude_synthetic).square()
    return _relative((amplitude + gamma * phase).sum((0, 2)), amplitude_real.square().sum((0, 2)), gather)


def mean_feature_loss(
    real: Tensor, synthetic: Tensor, *, average_time: bool = False, gather: GatherClasses | None = None
) -> Tensor:
    """DM of each class: squared distance of mean features, at every step or (``average_time``) of their time average.

    Source: Zhao, Bilen, "Dataset Condensation with Distribution Matching", WACV 2023.

    Args:
        real: ``[T, K, Br, D]`` features; synthetic: ``[T, K, Bs, D]`` features. gather: as above.

    Returns:
        ``[K]``, relative to the mean over classes of the real means' squared norm: 0 for equal means, 1 for silence.

    Raises:
        ArgumentError: shapes that do not fit each other.
    """
    _check_streams(real, synthetic)
    mean_real, mean_synthetic = real.mean(2), synthetic.mean(2)
    if average_time:
        mean_real, mean_synthetic = mean_real.mean(0, keepdim=True), mean_synthetic.mean(0, keepdim=True)
    distance = (mean_real - mean_synthetic).square().sum((0, 2))
    return _relative(distance, mean_real.square().sum((0, 2)), gather)


def sigma_from_data(
    real: Tensor, *, modulus: float = 0.65, normalise: bool = True, gather: GatherClasses | None = None
) -> float:
    """The frequencies' standard deviation at which the real ``|phi|`` is ``modulus`` on average over steps and classes.

    Too large a sigma leaves ``|phi|`` near 0 and the characteristic function says nothing; too small, near 1, it says
    no more than the mean does. Under a Gaussian projection ``|phi(w)| = exp(-sigma^2 v / 2)``, v the total variance of
    the class's samples at the step; that is solved here, without a draw.

    Args:
        real: ``[T, K, Br, D]``. modulus: in (0, 1), sensibly 0.5 to 0.8. normalise: unit length first, as the loss.
        gather: as above.

    Returns:
        sigma, within 0.1 .. 1000 (the largest where no class varies).

    Raises:
        ArgumentError: ``modulus`` outside (0, 1).
    """
    if not 0 < modulus < 1:
        raise ArgumentError(f"modulus: got {modulus}, must lie between 0 and 1")
    features = unit_length(real) if normalise else real
    variance = (features - features.mean(2, keepdim=True)).square().sum(3).mean(2).T  # [K, T]
    variance = (gather(variance) if gather else variance).detach().double().flatten()
    low, high = _SIGMA_RANGE
    for _ in range(40):
        middle = (low * high) ** 0.5
        if float(torch.exp(-0.5 * middle**2 * variance).mean()) > modulus:
            low = middle
        else:
            high = middle
    return (low * high) ** 0.5


def _relative(values: Tensor, energies: Tensor, gather: GatherClasses | None) -> Tensor:
    """``[K]`` values relative to the mean energy ``[K]`` of all classes."""
    return values / (gather(energies) if gather else energies).mean().clamp_min(_TINY)


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
