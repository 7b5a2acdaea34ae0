"""The forms of matching in time: coherent amplitude and phase, DM, stages, SDR weights a term, sigma from the data."""

import cmath
import math

import pytest
import torch

from snn_core.distillation import (
    LearnedFrequencies,
    SpatioTemporalMatching,
    characteristic_function,
    coherent_spectrum_loss,
    draw_frequencies,
    mean_feature_loss,
    sigma_from_data,
    temporal_spectrum_loss,
    unit_length,
)
from snn_core.distillation.alignment import aligned, best_turns, turn
from snn_core.distillation.min_max import FrequencyClimb
from snn_core.errors import ArgumentError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def streams(T=4, K=2, real=3, synthetic=2, D=3):
    source = generator(3)
    shapes = [(T, K, real, D), (T, K, synthetic, D)]
    return [torch.rand(shape, generator=source, dtype=torch.float64) for shape in shapes]


def rotors(starts, T=8):
    """One feature a sample that swings once in T steps, from the given starts: [T, 1, B, 1]."""
    t = torch.arange(T, dtype=torch.float64).view(-1, 1)
    return (1 + torch.cos(2 * math.pi * t / T + torch.tensor(starts))).view(T, 1, -1, 1)


def naive_coherent(real, synthetic, gamma):
    T, K, _, D = real.shape
    values, energy = torch.zeros(K, dtype=torch.float64), 0.0
    for k in range(K):
        for d in range(D):
            for n in range(T // 2 + 1):
                spectra = []
                for stream in (real, synthetic):
                    own = [
                        sum(float(stream[t, k, b, d]) * cmath.exp(-2j * math.pi * n * t / T) for t in range(T))
                        for b in range(stream.shape[2])
                    ]
                    spectra.append((sum(map(abs, own)) / len(own), sum(own) / len(own)))
                (a, p), (b, q) = spectra
                values[k] += (a - b) ** 2 + gamma * 2 * (abs(p) * abs(q) - (p.conjugate() * q).real)
                energy += a**2
    return K * values / energy


@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_coherent_form_equals_sums_written_out(gamma):
    real, synthetic = streams()
    torch.testing.assert_close(
        coherent_spectrum_loss(real, synthetic, gamma=gamma), naive_coherent(real, synthetic, gamma)
    )


def test_random_starts_wash_out_the_mean_but_not_the_coherent_form():
    """The class swings, its mean is still: the literal form wants a still clip, the coherent one a swinging clip."""
    real = rotors([0.0, math.pi / 2, math.pi, 3 * math.pi / 2])
    swinging, still = rotors([0.7]), torch.ones(8, 1, 1, 1, dtype=torch.float64)
    assert temporal_spectrum_loss(real, still) < 1e-6 < 0.1 < temporal_spectrum_loss(real, swinging)
    assert coherent_spectrum_loss(real, swinging) < 1e-6 < 0.1 < coherent_spectrum_loss(real, still)


def test_coherent_phase_counts_where_the_class_has_one():
    real = rotors([0.5, 0.5])
    late = rotors([0.5 + math.pi / 2])
    assert coherent_spectrum_loss(real, late, gamma=0.0) < 1e-6 < 0.1 < coherent_spectrum_loss(real, late)


def orbits(starts, T=8, direction=1):
    """Two features that go round a circle: [T, 1, B, 2]; which way round is a phase between them."""
    angle = direction * (2 * math.pi * torch.arange(T, dtype=torch.float64).view(-1, 1) / T + torch.tensor(starts))
    return (2 + torch.stack([angle.cos(), angle.sin()], -1)).unsqueeze(1)


def test_turns_are_those_of_the_smallest_distance():
    real, synthetic = streams(T=5)
    reference = synthetic[:, :, 0]
    distance = torch.stack(
        [(real.roll(-tau, 0) - reference.unsqueeze(2)).square().sum((0, 3)) for tau in range(real.shape[0])]
    )
    turns = best_turns(real, reference)
    assert torch.equal(turns, distance.argmin(0))
    assert len(turns.unique()) > 1
    for k, b in ((0, 0), (1, 2)):
        assert torch.equal(turn(real, turns)[:, k, b], real[:, k, b].roll(-int(turns[k, b]), 0))
    assert not best_turns(torch.ones_like(real), reference).any()
    with pytest.raises(ArgumentError, match="reference"):
        best_turns(real, reference[1:])


@pytest.mark.parametrize("form", ["aligned", "aligned-coherent"])
def test_aligned_forms_know_the_direction_where_starts_are_random(form):
    """With evenly spread starts neither other form does: the class mean is still, amplitudes are those of both ways."""
    real = orbits([2 * math.pi * n / 8 for n in range(8)])
    forwards, backwards = orbits([0.9]), orbits([0.9], direction=-1)

    def loss_of(clips, form):
        loss = SpatioTemporalMatching(cf_weight=0, time_matching=form)
        return loss(real, clips, generator=generator()).total.item()

    assert loss_of(forwards, form) < 0.01 < 0.03 < loss_of(backwards, form)
    # A still clip gives no sample anything to turn by: only amplitudes of single samples tell that it is still.
    assert (loss_of(torch.full_like(forwards, 2.0), form) > 0.03) == (form == "aligned-coherent")
    for blind in ("mean", "coherent"):
        assert loss_of(forwards, blind) == pytest.approx(loss_of(backwards, blind), abs=1e-6)
    # Of several clips only the agreement of their mean is asked for, wherever each of them starts.
    both = torch.cat([orbits([0.9]), orbits([0.9 + math.pi / 2])], 2)
    assert loss_of(both, form) < 0.01


def test_gradcheck_of_the_aligned_pair():
    real, synthetic = streams(T=4, K=1)
    synthetic.requires_grad_()
    assert torch.autograd.gradcheck(lambda g: aligned(real, g), (synthetic,))


def test_dm_is_relative_and_averages_over_time():
    real, synthetic = streams()
    mean, other = real.mean(2), synthetic.mean(2)
    expected = 2 * (mean - other).square().sum((0, 2)) / mean.square().sum()
    torch.testing.assert_close(mean_feature_loss(real, synthetic), expected)
    assert (
        mean_feature_loss(real, real.flip(0), average_time=True).max()
        < 1e-12
        < mean_feature_loss(real, real.flip(0)).min()
    )
    assert mean_feature_loss(real, torch.zeros_like(real)).mean().item() == pytest.approx(1.0)


def test_gradcheck_of_the_coherent_form():
    real, synthetic = streams(T=3, K=1)
    synthetic.requires_grad_()
    assert torch.autograd.gradcheck(lambda g: coherent_spectrum_loss(real, g), (synthetic,))
    silent = torch.zeros_like(synthetic).requires_grad_()
    coherent_spectrum_loss(torch.zeros_like(real), silent).sum().backward()
    assert torch.isfinite(silent.grad).all()


@pytest.mark.parametrize("modulus", [0.5, 0.8])
def test_sigma_from_data_gives_the_modulus(modulus):
    real = torch.rand(3, 2, 40, 200, generator=generator())
    sigma = sigma_from_data(real, modulus=modulus)
    frequencies = draw_frequencies(200, 256, sigma, generator=generator())
    re, im = characteristic_function(unit_length(real), frequencies)
    assert (re.square() + im.square()).sqrt().mean().item() == pytest.approx(modulus, abs=0.05)
    assert sigma_from_data(real * 0, modulus=modulus) == pytest.approx(1000, rel=0.01)
    with pytest.raises(ArgumentError, match="modulus"):
        sigma_from_data(real, modulus=1.0)


def test_stages_and_weights():
    real, synthetic = streams()
    loss = SpatioTemporalMatching(
        cf_weight=0, dm_weight=2.0, dm_stage=(0, 0.5), dft_stage=(0.5, 1), time_matching="coherent"
    )
    seen = []
    for progress in (0.0, 0.49, 0.5, 1.0):
        loss.set_progress(progress)
        terms = loss(real, synthetic, generator=generator())
        assert set(terms.per_class) == {"dft", "dm"}
        seen.append([terms.per_class[name].mean().item() > 0 for name in ("dm", "dft")])
        torch.testing.assert_close(terms.total, terms.per_class["dft"].mean() + 2 * terms.per_class["dm"].mean())
    assert seen == [[True, False]] * 2 + [[False, True]] * 2


def test_each_term_sees_the_features_of_its_beta():
    spikes, synthetic_spikes = streams()
    dense, synthetic_dense = spikes + 0.3, synthetic_spikes * 2
    loss = SpatioTemporalMatching(cf_weight=0, dm_weight=1.0, dm_beta=0.0)
    assert loss.betas == (None, 0.0)
    terms = loss(
        torch.cat([dense, spikes], -1), torch.cat([synthetic_dense, synthetic_spikes], -1), generator=generator()
    )
    torch.testing.assert_close(terms.per_class["dft"], temporal_spectrum_loss(dense, synthetic_dense))
    torch.testing.assert_close(terms.per_class["dm"], mean_feature_loss(spikes, synthetic_spikes, average_time=True))
    with pytest.raises(ArgumentError, match="betas"):
        loss(spikes, synthetic_spikes, generator=generator())


@pytest.mark.parametrize(
    "values",
    [
        {"dft_stage": (0.5, 1.0), "cf_weight": 0},
        {"cf_stage": (0.5, 0.5)},
        {"time_matching": "phase"},
        {"dm_beta": -1.0},
        {"sigma": "large"},
        {"modulus": 0.0},
        {"dm_weight": -1.0},
    ],
)
def test_bad_settings_are_refused(values):
    with pytest.raises(ArgumentError, match=next(iter(values)).split("_")[0]):
        SpatioTemporalMatching(**values)


def test_learned_frequencies_start_near_the_draws_and_climb_the_loss():
    real, synthetic = (stream.float() for stream in streams(D=6))
    loss = SpatioTemporalMatching(mu=0, sigma=0.5, learn_frequencies=True)
    climb = FrequencyClimb(loss, [[6]], 1, 0.1, torch.device("cpu"))
    values = []
    for _ in range(15):
        climb.zero_grad()
        total = loss(real, synthetic, generator=generator()).total
        total.backward()
        climb.step()
        values.append(total.item())
    assert values[-1] > 1.2 * values[0]
    module = LearnedFrequencies(6, groups=1)
    draws = torch.randn(6, 4, generator=generator())
    assert torch.equal(module(draws), draws)
    module.gain.data.fill_(9.0)
    module.project_()
    assert module.gain.max() == 1.5
    with pytest.raises(ArgumentError, match="D=6"):
        module(draws.T)
