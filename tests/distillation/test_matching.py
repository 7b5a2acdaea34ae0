"""ST-SM against naive formulas with angles, gradients everywhere finite, zero at equality."""

import cmath
import math

import pytest
import torch

from snn_core.distillation.matching import (
    characteristic_function,
    characteristic_function_loss,
    draw_frequencies,
    group_by_class,
    temporal_spectrum_loss,
    unit_length,
)
from snn_core.distillation.spatio_temporal import SpatioTemporalMatching
from snn_core.errors import ArgumentError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def streams(T=5, K=3, real=7, synthetic=2, D=6, dtype=torch.float64):
    source = generator(3)
    first = torch.rand(T, K, real, D, generator=source, dtype=dtype)
    second = torch.rand(T, K, synthetic, D, generator=source, dtype=dtype)
    return first, second


def naive_cf(real, synthetic, frequencies, alpha):
    """Loops, complex numbers and angles."""
    losses = []
    for k in range(real.shape[1]):
        values = []
        for t in range(real.shape[0]):
            for m in range(frequencies.shape[1]):
                p, q = (
                    sum(cmath.exp(1j * float(f @ frequencies[:, m])) for f in stream[t, k]) / stream.shape[2]
                    for stream in (real, synthetic)
                )
                difference = cmath.phase(p) - cmath.phase(q)
                inner = alpha * (abs(p) - abs(q)) ** 2
                inner += (1 - alpha) * 2 * abs(p) * abs(q) * (1 - math.cos(difference))
                values.append(math.sqrt(inner))
        losses.append(sum(values) / len(values))
    return torch.tensor(losses, dtype=torch.float64)


def naive_dft(real, synthetic, gamma):
    """The Fourier sum written out for every frequency, with angles."""
    T, K, _, D = real.shape
    numerator, denominator = torch.zeros(K, dtype=torch.float64), 0.0
    for k in range(K):
        for d in range(D):
            for n in range(T // 2 + 1):
                a, b = (
                    sum(float(stream[t, k, :, d].mean()) * cmath.exp(-2j * math.pi * n * t / T) for t in range(T))
                    for stream in (real, synthetic)
                )
                turn = 1 - math.cos(cmath.phase(a) - cmath.phase(b))
                numerator[k] += (abs(a) - abs(b)) ** 2 + gamma * 2 * abs(a) * abs(b) * turn
                denominator += abs(a) ** 2
    return K * numerator / denominator


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_cf_equals_naive_formula(alpha):
    real, synthetic = streams(T=3)
    frequencies = draw_frequencies(6, 11, 2.0, generator=generator()).double()
    ours = characteristic_function_loss(real, synthetic, frequencies, alpha=alpha, normalise=False)
    torch.testing.assert_close(ours, naive_cf(real, synthetic, frequencies, alpha), rtol=1e-4, atol=1e-6)


def test_cf_normalises_to_unit_length():
    real, synthetic = streams()
    frequencies = draw_frequencies(6, 16, 3.0, generator=generator()).double()
    scaled = characteristic_function_loss(real * 9, synthetic * 0.2, frequencies)
    by_hand = characteristic_function_loss(
        real / real.norm(dim=-1, keepdim=True),
        synthetic / synthetic.norm(dim=-1, keepdim=True),
        frequencies,
        normalise=False,
    )
    torch.testing.assert_close(scaled, by_hand, rtol=1e-4, atol=1e-6)


def test_cf_is_zero_for_identical_sets_and_grows_with_distance():
    real, _ = streams(real=8)
    frequencies = draw_frequencies(6, 64, 3.0, generator=generator()).double()
    same = characteristic_function_loss(real, real.flip(2), frequencies, normalise=False)
    assert (same <= 1.01e-4).all()  # sqrt(1e-8), the epsilon under the root
    steps = [
        characteristic_function_loss(real, real + shift, frequencies, normalise=False).mean() for shift in (0.01, 0.05)
    ]
    assert 10 * same.mean() < steps[0] < steps[1]


def test_cf_sees_time_order():
    real, _ = streams()
    frequencies = draw_frequencies(6, 64, 3.0, generator=generator()).double()
    assert characteristic_function_loss(real, real.flip(0), frequencies).mean() > 0.05


@pytest.mark.parametrize(("T", "gamma"), [(1, 1.0), (4, 0.0), (5, 1.0), (6, 0.25)])
def test_dft_equals_naive_formula(T, gamma):
    real, synthetic = streams(T=T)
    torch.testing.assert_close(temporal_spectrum_loss(real, synthetic, gamma=gamma), naive_dft(real, synthetic, gamma))


def test_dft_reference_points():
    real, _ = streams()
    assert temporal_spectrum_loss(real, real[:, :, :1] * 0 + real.mean(2, keepdim=True)).max() < 1e-8
    assert temporal_spectrum_loss(real, torch.zeros_like(real)).mean().item() == pytest.approx(1.0, abs=1e-4)
    # rolling in time changes phases only: invisible to gamma = 0
    rolled = real.roll(1, 0)
    assert temporal_spectrum_loss(real, rolled, gamma=0.0).mean() < 1e-10
    assert temporal_spectrum_loss(real, rolled, gamma=1.0).mean() > 1e-3


def test_gradcheck_of_both_losses():
    real, synthetic = streams(T=3, K=2, real=3, synthetic=2, D=4)
    synthetic.requires_grad_()
    frequencies = draw_frequencies(4, 5, 2.0, generator=generator()).double()
    assert torch.autograd.gradcheck(lambda g: characteristic_function_loss(real, g, frequencies), (synthetic,))
    assert torch.autograd.gradcheck(lambda g: temporal_spectrum_loss(real, g), (synthetic,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_at_zero_amplitude(dtype):
    """Silent features, a characteristic function that cancels to zero, and equality: all finite."""
    frequencies = torch.full((1, 4), math.pi, dtype=dtype)
    cancelling = torch.tensor([0.0, 1.0], dtype=dtype).reshape(1, 1, 2, 1)  # exp(0) + exp(i pi) = 0
    for normalise in (True, False):
        for start in (torch.zeros(2, 1, 2, 1, dtype=dtype), cancelling.expand(2, 1, 2, 1).clone()):
            for real in (torch.zeros_like(start), cancelling.expand(2, 1, 2, 1)):
                synthetic = start.clone().requires_grad_()
                loss = characteristic_function_loss(real, synthetic, frequencies, normalise=normalise).sum()
                (loss + temporal_spectrum_loss(real, synthetic).sum()).backward()
                assert synthetic.grad is not None
                assert torch.isfinite(loss)
                assert torch.isfinite(synthetic.grad).all()


def test_characteristic_function_at_frequency_zero_is_one():
    features = torch.rand(4, 9, 3, generator=generator())
    re, im = characteristic_function(features, torch.zeros(3, 2))
    assert torch.equal(re, torch.ones(4, 2))
    assert torch.equal(im, torch.zeros(4, 2))


def test_characteristic_function_of_a_gaussian():
    """phi of N(0, I) is exp(-|w|^2 / 2)."""
    features = torch.randn(200_000, 2, generator=generator())
    frequencies = torch.tensor([[0.5, 1.0, 0.0], [0.0, 1.0, 2.0]])
    re, im = characteristic_function(features, frequencies)
    expected = torch.exp(-frequencies.square().sum(0) / 2)
    assert (re - expected).abs().max() < 0.01
    assert im.abs().max() < 0.01


def test_frequencies_follow_sigma_and_generator():
    first = draw_frequencies(50, 4000, 3.0, generator=generator(1))
    assert first.shape == (50, 4000)
    assert first.std().item() == pytest.approx(3.0, rel=0.02)
    assert torch.equal(first, draw_frequencies(50, 4000, 3.0, generator=generator(1)))


def test_module_weighs_and_reports_terms():
    real, synthetic = streams(dtype=torch.float32)
    terms = SpatioTemporalMatching(mu=0.5, cf_weight=2.0)(real, synthetic, generator=generator(4))
    assert set(terms.per_class) == {"cf", "dft"}
    assert all(value.shape == (3,) for value in terms.per_class.values())
    expected = 2.0 * terms.per_class["cf"].mean() + 0.5 * terms.per_class["dft"].mean()
    torch.testing.assert_close(terms.total, expected)
    assert set(SpatioTemporalMatching(mu=0.0)(real, synthetic, generator=generator()).per_class) == {"cf"}
    assert set(SpatioTemporalMatching(cf_weight=0.0)(real, synthetic, generator=generator()).per_class) == {"dft"}


def test_group_by_class_keeps_order():
    features = torch.arange(2 * 6 * 1).reshape(2, 6, 1)
    (grouped,) = group_by_class([features], 3)
    assert grouped.shape == (2, 3, 2, 1)
    assert grouped[0, :, :, 0].tolist() == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(ArgumentError, match="multiple"):
        group_by_class([features], 4)


def test_unit_length():
    features = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    scaled = unit_length(features)
    torch.testing.assert_close(scaled.detach(), torch.tensor([[0.6, 0.8], [0.0, 0.0]]), rtol=1e-5, atol=1e-6)
    scaled.sum().backward()
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()


def test_unit_length_has_a_bounded_gradient_however_short_the_vector():
    direction = torch.tensor([0.6, 0.8], dtype=torch.float64)
    for length in (0.0, 1e-12, 1e-6, 1e-3, 9e-3, 1.1e-2, 1.0):
        jacobian = torch.autograd.functional.jacobian(unit_length, direction * length)
        assert torch.linalg.matrix_norm(jacobian, 2) <= 100.001


def test_a_silent_sample_does_not_explode_the_gradient_of_the_loss():
    """As happens with beta = 0: compared with the same loss at features of ordinary length."""
    real, synthetic = streams(T=1, K=1)
    frequencies = draw_frequencies(6, 64, 3.0, generator=generator()).double()
    largest = []
    for start in (synthetic, torch.zeros_like(synthetic)):
        start = start.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(characteristic_function_loss(real, start, frequencies).sum(), start)
        largest.append(gradient.abs().max())
    assert 0 < largest[1] < 1000 * largest[0]


def test_repr_tells_every_setting():
    defaults = SpatioTemporalMatching()
    other = {
        "sigma": 2.0, "num_frequencies": 64, "alpha": 0.25, "mu": 0.5, "gamma": 0.5, "cf_weight": 2.0,
        "normalise": False,
    }  # fmt: skip
    for name, value in other.items():
        changed = SpatioTemporalMatching(**{name: value})
        assert f"{name}={value}" in repr(changed)
        assert repr(changed) != repr(defaults)


@pytest.mark.parametrize("shape", [(5, 3, 7), (4, 3, 2, 6), (5, 2, 2, 6), (5, 3, 2, 5), (5, 3, 0, 6)])
def test_shapes_that_do_not_fit_are_refused(shape):
    real, _ = streams()
    with pytest.raises(ArgumentError, match="synthetic"):
        temporal_spectrum_loss(real, torch.zeros(shape, dtype=torch.float64))


@pytest.mark.parametrize(
    "options", [{"sigma": 0.0}, {"num_frequencies": 0}, {"alpha": 1.5}, {"mu": -1.0}, {"mu": 0.0, "cf_weight": 0.0}]
)
def test_bad_parameters_are_refused(options):
    with pytest.raises(ArgumentError, match=next(iter(options))):
        SpatioTemporalMatching(**options)
