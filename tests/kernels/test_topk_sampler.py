"""kernels/topk_sampler against its reference, against the Plackett-Luce law, and on bad input."""

from itertools import permutations

import pytest
import torch
from scipy.stats import chi2

from snn_core.errors import ArgumentError
from snn_core.kernels.native import cpu_library
from snn_core.kernels.topk_sampler import (
    gumbel_noise,
    hard_topk,
    reference,
    relaxed_topk,
    relaxed_topk_backward,
    sample_topk,
    straight_through,
    topk_sample,
)

BACKENDS = ["reference"] + ["cpp"] * cpu_library().available
SIZES = [(2, 4), (1, 4), (2, 8), (1, 16), (3, 5), (4, 4), (7, 32)]


def make_key(m, blocks=61, seed=0, dtype=torch.float64):
    return torch.randn(blocks, m, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize(("n", "m"), SIZES)
@pytest.mark.parametrize("position_major", [False, True])
def test_hard_and_relaxed_equal_the_reference(n, m, position_major):
    key = make_key(m)
    key = key.t().contiguous().t() if position_major else key
    assert torch.equal(hard_topk(key, n), reference.hard_topk(key, n))
    for temperature in (0.3, 1.0, 2.5):
        torch.testing.assert_close(relaxed_topk(key, n, temperature), reference.relaxed_topk(key, n, temperature))
        torch.testing.assert_close(relaxed_topk(key, n, temperature).sum(-1), torch.full((61,), float(n)).double())


def test_more_than_two_dimensions_and_chunks():
    key = make_key(4, blocks=2 * 3 * 20_000, dtype=torch.float32).view(2, 3, 20_000, 4)
    assert torch.equal(hard_topk(key, 2), reference.hard_topk(key, 2))
    torch.testing.assert_close(relaxed_topk(key, 2, 0.5), reference.relaxed_topk(key, 2, 0.5))


def test_ties_go_to_the_lower_index():
    key = torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 2.0, 2.0, 2.0], [3.0, 1.0, 3.0, 1.0]])
    expected = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0], [1, 0, 1, 0]], dtype=torch.bool)
    assert torch.equal(hard_topk(key, 2), expected)


@pytest.mark.parametrize(("n", "m"), SIZES)
@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_relaxed_gradient(n, m, temperature):
    key = make_key(m, blocks=5).requires_grad_()
    assert torch.autograd.gradcheck(lambda k: relaxed_topk(k, n, temperature), key)
    weight = make_key(m, blocks=5, seed=1)
    (ours,) = torch.autograd.grad((relaxed_topk(key, n, temperature) * weight).sum(), key)
    (plain,) = torch.autograd.grad((reference.relaxed_topk(key, n, temperature) * weight).sum(), key)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(relaxed_topk_backward(weight, key.detach(), n, temperature), plain)


def test_low_temperature_gradient_stays_finite_in_float32():
    key = (make_key(8, dtype=torch.float32) * 10).requires_grad_()
    relaxed_topk(key, 3, 0.05).pow(2).sum().backward()
    assert torch.isfinite(key.grad).all()


def test_operators_pass_opcheck():
    key = make_key(4, blocks=6, dtype=torch.float32)
    for tensor in (key, key.t().contiguous().t()):
        torch.library.opcheck(torch.ops.snn_core.topk_hard.default, (tensor, 2))
        torch.library.opcheck(torch.ops.snn_core.topk_relaxed.default, (tensor.detach().requires_grad_(), 2, 0.7))


def plackett_luce(logits, n):
    """Probability of each *set* of n positions drawn one after the other without replacement."""
    p = torch.softmax(logits.double(), -1)
    sets = {}
    for order in permutations(range(len(p)), n):
        probability, left = 1.0, 1.0
        for i in order:
            probability, left = probability * float(p[i]) / left, left - float(p[i])
        key = tuple(sorted(order))
        sets[key] = sets.get(key, 0.0) + probability
    return sets


def p_value(hard, logits, n):
    """Of the chi-square test of draws ``hard [draws, M]`` against the Plackett-Luce law of ``logits [M]``."""
    draws, m = hard.shape
    assert torch.equal(hard.sum(-1), torch.full((draws,), n))
    codes = (hard.long() << torch.arange(m)).sum(-1)
    expected = plackett_luce(logits, n)
    statistic, covered = 0.0, 0
    for chosen, probability in expected.items():
        observed = int((codes == sum(1 << i for i in chosen)).sum())
        statistic += (observed - draws * probability) ** 2 / (draws * probability)
        covered += observed
    assert covered == draws
    return chi2.sf(statistic, len(expected) - 1)


def chi_square_of_draws(n, m, backend, draws=40_000, noise_scale=1.0):
    logits = torch.randn(m, generator=torch.Generator().manual_seed(11))
    hard = topk_sample(logits.expand(draws, m), n, seed=5, offset=3, noise_scale=noise_scale, backend=backend)
    return p_value(hard, logits, n)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 8), (2, 8), (3, 6)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_hard_draws_follow_the_plackett_luce_law(n, m, backend):
    assert chi_square_of_draws(n, m, backend) > 1e-3


@pytest.mark.parametrize("temperature", [0.3, 4.0])
def test_draws_from_a_generator_follow_the_law_at_any_temperature(temperature):
    generator = torch.Generator().manual_seed(11)
    logits = torch.randn(4, generator=generator)
    sample = sample_topk(logits.expand(40_000, 4), 2, temperature=temperature, generator=generator)
    assert p_value(sample.hard, logits, 2) > 1e-3


def test_the_law_test_can_fail():
    """At half the noise the draws must be rejected: the statistical test above has power."""
    assert chi_square_of_draws(2, 4, "auto", noise_scale=0.5) < 1e-6


def test_sample_is_deterministic_by_seed_and_uses_the_anchor():
    logits, anchor = make_key(4), make_key(4, seed=3).abs()
    first = sample_topk(logits, 2, temperature=1.0, generator=torch.Generator().manual_seed(5))
    again = sample_topk(logits, 2, temperature=1.0, generator=torch.Generator().manual_seed(5))
    assert torch.equal(first.hard, again.hard)
    assert torch.equal(first.soft, again.soft)
    fixed = sample_topk(logits, 2, temperature=1.0, noise_scale=0.0, kappa=0.5, anchor=anchor, rho=2.0)
    assert torch.equal(fixed.hard, reference.hard_topk(0.5 * logits + 2.0 * anchor, 2))


def test_straight_through_has_the_hard_value_and_the_soft_gradient():
    logits = make_key(8).requires_grad_()
    weight = make_key(8, seed=2)
    generator = torch.Generator().manual_seed(1)
    mask = straight_through(sample_topk(logits, 2, temperature=0.7, generator=generator, kappa=1.5))
    assert torch.equal(mask.detach().sum(-1), torch.full((61,), 2.0).double())
    (mask * weight).sum().backward()
    noise = gumbel_noise(logits.shape, torch.Generator().manual_seed(1), torch.float64)
    plain = logits.detach().clone().requires_grad_()
    (reference.relaxed_topk(1.5 * plain + noise, 2, 0.7) * weight).sum().backward()
    torch.testing.assert_close(logits.grad, plain.grad)


def test_gumbel_noise_is_finite_and_has_its_mean():
    noise = gumbel_noise((200_000,), torch.Generator().manual_seed(0), torch.float32)
    assert torch.isfinite(noise).all()
    assert abs(float(noise.mean()) - 0.5772) < 0.01
    assert torch.isfinite(reference.gumbel_from_uniform(torch.zeros(3))).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_draw_as_float32_does(dtype):
    """20,000 blocks: float16's uniform numbers hold a 0 in every 2,048, whose noise would be infinite."""
    logits, anchor = (make_key(4, blocks=20_000, seed=seed, dtype=torch.float32).to(dtype) for seed in (0, 1))
    half, full = (
        sample_topk(
            value.requires_grad_(), 2, temperature=0.7, generator=torch.Generator().manual_seed(3),
            kappa=1.3, anchor=other, rho=0.5,
        )
        for value, other in ((logits, anchor), (logits.detach().float(), anchor.float()))
    )  # fmt: skip
    assert torch.equal(half.hard, full.hard)
    assert half.soft.dtype == dtype
    assert torch.equal(half.soft, full.soft.to(dtype))
    straight_through(half)[..., 0].sum().backward()
    assert logits.grad.dtype == dtype
    assert torch.isfinite(logits.grad).all()
    noise = gumbel_noise((100_000,), torch.Generator().manual_seed(0), dtype)
    assert noise.dtype == dtype
    assert torch.equal(noise, gumbel_noise((100_000,), torch.Generator().manual_seed(0), torch.float32).to(dtype))
    assert torch.isfinite(noise).all()


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda k: hard_topk(k, 0), "n must"),
        (lambda k: hard_topk(k, 5), "n must"),
        (lambda k: hard_topk(k.long(), 1), "floating"),
        (lambda k: hard_topk(torch.full_like(k, float("nan")), 1), "finite"),
        (lambda k: relaxed_topk(k, 2, 0.0), "temperature"),
        (lambda k: relaxed_topk_backward(k[:1], k, 2, 1.0), "grad_soft"),
        (lambda k: sample_topk(k, 2, temperature=1.0), "generator"),
        (lambda k: sample_topk(k, 2, temperature=1.0, noise_scale=-1.0), "noise_scale"),
        (lambda k: sample_topk(k, 2, temperature=1.0, seed=1, generator=torch.Generator()), "generator and seed"),
        (lambda k: topk_sample(k, 2, seed=2**64), "seed must"),
        (lambda k: topk_sample(k, 2, seed=0, offset=0.5), "offset must"),
        (lambda k: topk_sample(k.index_fill(1, torch.tensor([2]), float("nan")), 2, seed=0), "61 of 244 .* not finite"),
        (lambda k: topk_sample(k.float() * float("inf"), 2, seed=0), "not finite"),
        (lambda k: sample_topk(k, 2, temperature=1.0, noise_scale=0.0, anchor=k[:1]), "anchor"),
    ],
)
def test_bad_arguments_are_named(call, word):
    with pytest.raises(ArgumentError, match=word):
        call(make_key(4))
