"""The top-k sampler's noise and compiled code: known answers, the reference, weights in their layout, equal bits."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from snn_core.errors import BackendUnavailableError
from snn_core.kernels.native import compiled_instruction_sets, cpu_library
from snn_core.kernels.topk_sampler import (
    AdamOptions,
    KeyOptions,
    absolute_deviation,
    columns_to_weight,
    mask_weight,
    reference,
    relaxed_topk,
    sample_topk,
    topk_sample,
    topk_sample_backward,
    update_credit_,
    update_logits_,
    weight_columns,
    weights,
)

native = pytest.mark.skipif(not cpu_library().available, reason="the native CPU library is absent")
SIZES = [(2, 4), (1, 8), (1, 16), (3, 5), (7, 32), (1, 1), (2, 2), (4, 4)]
OPTIONS = {"seed": 2**63 + 5, "offset": 77 + (3 << 40), "kappa": 1.3, "rho": 0.7, "noise_scale": 0.9}


def normal(shape, seed, position_major=False):
    shape = tuple(shape)
    value = torch.randn(shape[::-1] if position_major else shape, generator=torch.Generator().manual_seed(seed))
    return value.t() if position_major else value


# ---- noise ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # kat_vectors of Random123
        ([0] * 4, 0, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, 2**64 - 1, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            0x299F31D0A4093822,
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_published_words(counter, key, expected):
    words = reference.philox(tuple(torch.tensor([word]) for word in counter), key)
    assert [int(word) for word in words] == expected


def test_the_logarithm_is_as_accurate_as_it_says():
    near = 1 + torch.arange(-100_000, 100_000) * 2.0**-24
    x = torch.cat([torch.logspace(-37, 38, 200_000), near[near != 1].float()])
    exact = x.double().log()
    assert float(((reference.log_portable(x).double() - exact) / exact).abs().max()) < 1.2e-7
    assert reference.log_portable(torch.ones(1)) == 0


def test_noise_is_standard_gumbel_and_a_function_of_its_place():
    noise = reference.seeded_gumbel(1, 2, 100_000, 4)
    assert abs(float(noise.mean()) - 0.57722) < 0.01
    assert abs(float(noise.var()) - 1.64493) < 0.03
    assert torch.isfinite(noise).all()
    assert torch.equal(reference.seeded_gumbel(1, 2, 100, 3), noise[:100, :3])
    others = [reference.seeded_gumbel(seed, offset, 1000, 4) for seed, offset in ((2, 2), (1, 3), (1, 2 + 2**32))]
    for other in others:
        assert abs(float(torch.corrcoef(torch.stack([noise[:1000].flatten(), other.flatten()]))[0, 1])) < 0.08
    extreme = torch.tensor([0, 0xFFFFFFFF])
    uniform = ((extreme >> 9) | 0x3F800000).to(torch.int32).view(torch.float32) - (1.0 - 2.0**-24)
    assert float(uniform.min()) == 2.0**-24
    assert float(uniform.max()) == 1 - 2.0**-24


# ---- operators on [blocks, M] --------------------------------------------------------------------------------------


@native
@pytest.mark.parametrize(("n", "m"), SIZES)
@pytest.mark.parametrize("blocks", [1, 61, 2500])
@pytest.mark.parametrize("position_major", [False, True])
def test_compiled_code_equals_the_reference(n, m, blocks, position_major):
    logits, anchor, grad = (normal((blocks, m), seed, position_major) for seed in range(3))
    options = OPTIONS | {"anchor": anchor}
    hard = topk_sample(logits, n, backend="cpp", **options)
    assert torch.equal(hard, topk_sample(logits, n, backend="reference", **options))
    assert hard.stride() == logits.stride() or blocks == 1 or m == 1
    # In float64 from the same float32 key: single precision may lose 1 - p where one entry takes all.
    key = reference.seeded_key(logits, anchor, 1.3, 0.7, 0.9, OPTIONS["seed"] - 2**64, OPTIONS["offset"])
    key = key.double().requires_grad_()
    soft = reference.relaxed_topk(key, n, 0.7)
    (expected,) = torch.autograd.grad(soft, key, grad.double())
    actual = topk_sample_backward(grad, logits, n, temperature=0.7, backend="cpp", **options)
    torch.testing.assert_close(actual.double(), 1.3 * expected, rtol=5e-3, atol=1e-3)
    assert float((actual - 1.3 * expected).abs().mean()) < 1e-5
    sampled = sample_topk(logits, n, temperature=0.7, backend="cpp", **options)
    torch.testing.assert_close(sampled.soft.double(), soft.detach(), rtol=5e-3, atol=2e-3)
    assert float((sampled.soft - soft.detach()).abs().mean()) < 2e-6
    assert torch.equal(sampled.hard, hard)


@native
def test_odd_strides_and_more_dimensions():
    logits = normal((2, 3, 300, 8), 0)[..., ::2]
    expected = topk_sample(logits.contiguous(), 2, seed=3, backend="reference")
    assert torch.equal(topk_sample(logits, 2, seed=3, backend="cpp"), expected)
    one = normal((1, 4), 1).expand(500, 4)
    assert torch.equal(
        topk_sample(one, 1, seed=3, backend="cpp"), topk_sample(one.contiguous(), 1, seed=3, backend="reference")
    )
    assert topk_sample(torch.empty(0, 4), 2, seed=0).shape == (0, 4)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_gradient_of_a_seeded_sample_equals_autograd_through_the_reference(backend):
    if backend == "cpp" and not cpu_library().available:
        pytest.skip("the native CPU library is absent")
    logits, anchor, weight = (normal((200, 8), seed) for seed in range(3))
    leaf = logits.clone().requires_grad_()
    sample = sample_topk(leaf, 2, temperature=0.8, anchor=anchor, backend=backend, **OPTIONS)
    (sample.soft * weight).sum().backward()
    plain = logits.double().requires_grad_()
    noise = reference.seeded_gumbel(OPTIONS["seed"] - 2**64, OPTIONS["offset"], 200, 8)
    key = reference.perturbed_key(plain, anchor, noise, 1.3, 0.7, 0.9)
    (reference.relaxed_topk(key, 2, 0.8) * weight).sum().backward()
    torch.testing.assert_close(leaf.grad.double(), plain.grad, rtol=5e-3, atol=2e-4)
    assert float((leaf.grad - plain.grad).abs().mean()) < 1e-5


def test_a_backend_asked_for_by_name_is_not_replaced():
    with pytest.raises(BackendUnavailableError, match="no CUDA C"):
        topk_sample(normal((3, 4), 0), 2, seed=0, backend="cuda")
    with pytest.raises(BackendUnavailableError, match="M up to 32, got 33"):
        topk_sample(normal((3, 33), 0), 2, seed=0, backend="cpp")
    wide = topk_sample(normal((3, 33), 0), 2, seed=0)
    assert torch.equal(wide, topk_sample(normal((3, 33), 0), 2, seed=0, backend="reference"))


def test_gradcheck_of_a_seeded_sample():
    logits = normal((5, 4), 0).double().requires_grad_()
    options = {"temperature": 0.8, "seed": 4, "kappa": 1.5}
    assert torch.autograd.gradcheck(lambda x: sample_topk(x, 2, **options).soft, logits)


@native
def test_operators_pass_opcheck():
    namespace = torch.ops.snn_core
    for logits in (normal((7, 4), 0), normal((7, 4), 0, position_major=True)):
        arguments = (logits, logits.abs(), 2, 1.2, 0.5, 0.9, 3, 4)
        torch.library.opcheck(namespace.topk_sample.default, arguments)
        leaf = logits.detach().requires_grad_()
        torch.library.opcheck(namespace.topk_sample_soft.default, (leaf, *arguments[1:], 0.7))
        torch.library.opcheck(namespace.topk_sample_backward.default, (logits, *arguments, 0.7))
    weight = torch.randn(6, 8, 3, 3, generator=torch.Generator().manual_seed(1))
    state = [torch.rand(4, 108) for _ in range(3)]
    torch.library.opcheck(namespace.topk_mask_weight.default, (weight, state[0], 4, 2, 1.0, 1.0, 0.3, 1, 2, 0.0))
    torch.library.opcheck(namespace.absolute_deviation.default, (weight,))
    torch.library.opcheck(namespace.topk_update_credit.default, (*state[:2], weight, weight, 0.9, 0.7))
    torch.library.opcheck(
        namespace.topk_update_logits.default,
        (*state, torch.randn_like(weight), weight, None, 2, 1.0, 1.0, 0.3, 1, 2, 0.7, 1.0, 0.0, True, 0.1, 0.9, 0.99,
         1e-8, 1, 2e-4),
    )  # fmt: skip


@native
def test_a_second_derivative_is_refused():
    key = normal((5, 4), 0).requires_grad_()
    (grad,) = torch.autograd.grad(relaxed_topk(key, 2, 0.7).square().sum(), key, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        grad.sum().backward()


# ---- on weights ----------------------------------------------------------------------------------------------------

WEIGHTS = [
    ((24, 32, 3, 3), 4, 2, False), ((24, 32, 3, 3), 8, 1, True), ((40, 64), 4, 2, False), ((33, 48), 16, 2, False),
    ((7, 96, 5), 32, 3, False), ((5, 10, 1, 1), 5, 2, False), ((6, 12, 3, 3), 3, 1, True), ((9, 6, 2, 5), 2, 1, False),
    ((1, 8, 3, 3), 8, 2, False), ((64, 64, 1, 1), 8, 8, True),
]  # fmt: skip


def make_case(shape, m, channels_last):
    generator = torch.Generator().manual_seed(7)
    weight, grad = (torch.randn(shape, generator=generator) * 0.1 for _ in range(2))
    if channels_last:
        weight, grad = (value.contiguous(memory_format=torch.channels_last) for value in (weight, grad))
    columns = [torch.rand(m, weight.numel() // m, generator=generator) for _ in range(4)]
    return weight, grad, columns


@pytest.mark.parametrize(("shape", "m", "n", "channels_last"), WEIGHTS)
def test_columns_are_the_blocks_of_the_weight(shape, m, n, channels_last):
    weight, _, _ = make_case(shape, m, channels_last)
    columns = weight_columns(weight, m)
    assert columns.shape == (m, weight.numel() // m)
    kernel = weight[0, 0].numel()
    block = shape[1] // m * kernel + kernel - 1 if shape[0] > 1 else kernel - 1  # of output 1 (or 0), last place
    output = block // (shape[1] // m * kernel)
    assert torch.equal(
        columns[:, block], weight[output, :m].flatten(1)[:, -1] if kernel > 1 else weight[output, :m].flatten()
    )
    back = columns_to_weight(columns, weight)
    assert torch.equal(back, weight)
    assert back.stride() == weight.stride()


@native
@pytest.mark.parametrize(("shape", "m", "n", "channels_last"), WEIGHTS)
@pytest.mark.parametrize("eta", [0.0, 0.4])
def test_weights_in_their_own_layout_equal_plain_torch(shape, m, n, channels_last, eta, monkeypatch):
    weight, grad, (logits, average, square, other) = make_case(shape, m, channels_last)
    target = torch.softmax(other * 3, dim=0)
    deviation = absolute_deviation(weight)
    assert deviation == pytest.approx(float(weight.double().abs().std()), rel=1e-12)
    options = KeyOptions(n, 1.2, 1 / deviation, eta, 99, 5)
    adam = AdamOptions(0.02, 3, 0.9, 0.99)
    settings = {"temperature": 0.8, "scale": 0.9, "target": target, "pull": 0.01, "decay": 2e-4}
    found = []
    for compiled in (True, False):
        if not compiled:
            monkeypatch.setattr(weights, "runs_natively", lambda *arguments: False)
        masked, mask, wrong = mask_weight(weight, logits, m, options, 0.25)
        state, gradient = tuple(t.clone() for t in (logits, average, square)), grad.clone()
        assert wrong == update_logits_(state, gradient, weight, options, adam, **settings) == 0
        found.append((masked, mask, *state, gradient))
        assert masked.stride() == mask.stride() == weight.stride()
        assert torch.equal(weight_columns(mask, m).sum(0), torch.full((weight.numel() // m,), n))
        assert torch.equal(gradient, grad.add(weight.masked_fill(mask, 0), alpha=2e-4)) or compiled
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    for ours, plain, tolerance in zip(found[0][2:], found[1][2:], (1e-4, 1e-4, 1e-4, 1e-9), strict=True):
        torch.testing.assert_close(ours, plain, rtol=2e-3, atol=tolerance)


@native
@pytest.mark.parametrize("match", [True, False])
def test_a_step_of_the_logits_is_torch_s_adam_on_autograd_s_gradient(match):
    weight, grad, (logits, _, _, other) = make_case((16, 16, 3, 3), 4, False)
    options = KeyOptions(2, 1.5, 1 / absolute_deviation(weight), 0.3, 1, 2)
    target = torch.softmax(other, dim=0)
    leaf = logits.double().requires_grad_()
    adam = torch.optim.Adam([leaf], lr=0.05, betas=(0.9, 0.99))
    state = (logits.clone(), torch.zeros_like(logits), torch.zeros_like(logits))
    magnitude = weight_columns(weight, 4).abs()
    for step in (1, 2, 3):
        options = KeyOptions(2, 1.5, options.rho, 0.3, 1, step)
        assert update_logits_(
            state, grad.clone(), weight, options, AdamOptions(0.05, step, 0.9, 0.99), temperature=0.9, scale=1.5 * 0.7,
            target=target, pull=0.02, pull_key=match,
        ) == 0  # fmt: skip
        clean = 1.5 * leaf + options.rho * magnitude
        key = clean + 0.3 * reference.seeded_gumbel(1, step, magnitude.shape[1], 4).t()
        soft = reference.relaxed_topk(key.t(), 2, 0.9).t()
        p = torch.softmax((clean if match else leaf).detach(), dim=0)
        loss = 0.7 * (soft * weight_columns(weight * grad, 4)).sum() + 0.02 * ((p - target) * leaf).sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
    torch.testing.assert_close(state[0].double(), leaf.detach(), rtol=1e-3, atol=2e-3)
    assert float((state[0] - leaf.detach()).abs().mean()) < 1e-5


def test_blocks_that_are_not_finite_are_counted_and_left_as_they_were():
    weight, grad, (logits, average, square, _) = make_case((8, 16), 4, False)
    options = KeyOptions(2, 1.0, 1.0, 0.3, 1, 2)
    grad[3, 5] = float("nan")
    state = tuple(t.clone() for t in (logits, average, square))
    assert update_logits_(state, grad, weight, options, AdamOptions(0.1, 1), temperature=1.0) == 1
    for new, old in zip(state, (logits, average, square), strict=True):
        same = (new == old).all(0)
        assert bool(same[3 * 4 + 1])
        assert int(same.sum()) < 3
    weight[2, 9], weight[7, 15] = float("inf"), float("nan")
    assert mask_weight(weight, logits, 4, options)[2] == 2
    assert mask_weight(weight, logits, 4, KeyOptions(2))[2] == 2


@native
@pytest.mark.parametrize("use_weight", [True, False])
@pytest.mark.parametrize(("shape", "m", "n", "channels_last"), WEIGHTS)
def test_credits_and_targets_equal_plain_torch(shape, m, n, channels_last, use_weight, monkeypatch):
    weight, fresh, (credit, _, _, _) = make_case(shape, m, channels_last)
    credit[:, 3], fresh[0, :m] = 0, 0  # a block without any
    factor = weight if use_weight else None
    found = []
    for compiled in (True, False):
        if not compiled:
            monkeypatch.setattr(weights, "_is_compiled", lambda *arguments: False)
        for keep in (0.9, 0.0):
            mean, targets = credit.clone(), torch.full_like(credit, torch.nan)
            counts = update_credit_(mean, targets, fresh, factor, keep=keep, temperature=0.7)
            again = torch.empty_like(targets)
            assert torch.equal(update_credit_(mean, again, None, keep=0.3, temperature=0.7), counts)
            assert torch.equal(again, targets)  # what a resumed run makes of a saved credit
            found.append((mean, targets, counts))
    for ours, plain in zip(found[:2], found[2:], strict=True):
        for a, b in zip(ours, plain, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-5, atol=1e-6)
    expected = weight_columns(fresh * weight if use_weight else fresh, m).abs()
    torch.testing.assert_close(found[0][0], 0.9 * credit + 0.1 * expected)
    assert torch.equal(found[1][0], expected)
    assert found[0][2].tolist() == [0, int(found[0][0].any(dim=0).sum())]


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=native), False])
def test_blocks_whose_credit_is_not_finite_keep_it(compiled, monkeypatch):
    weight, fresh, (credit, targets, _, _) = make_case((8, 16), 4, False)
    if not compiled:
        monkeypatch.setattr(weights, "_is_compiled", lambda *arguments: False)
    fresh[3, 5], weight[7, 0] = float("inf"), float("nan")
    mean = credit.clone()
    assert update_credit_(mean, targets, fresh, weight, keep=0.5, temperature=1.0).tolist() == [2, 32]
    same = (mean == credit).all(dim=0)
    assert same.nonzero().flatten().tolist() == [3 * 4 + 1, 7 * 4]
    torch.testing.assert_close(targets.sum(dim=0), torch.ones(32))


# ---- equal bits ----------------------------------------------------------------------------------------------------


def digest() -> str:
    """Of everything that compiled code makes, over several tiles."""
    made = hashlib.sha256()
    for m, n in ((4, 2), (5, 2), (16, 3)):
        logits, grad = normal((3000, m), 0, True), normal((3000, m), 1)
        options = {"seed": 3, "offset": 4, "anchor": grad.abs(), "rho": 0.5, "noise_scale": 0.8}
        results = [topk_sample(logits, n, **options), topk_sample_backward(grad, logits, n, temperature=0.7, **options)]
        weight, gradient, columns = make_case((60, 80, 3, 3), m, m == 5)
        key = KeyOptions(n, 1.1, 1 / absolute_deviation(weight), 0.4, 5, 6)
        masked, mask, _ = mask_weight(weight, columns[0], m, key)
        update_logits_(
            tuple(columns[:3]), gradient, weight, key, AdamOptions(0.1, 2), temperature=0.7, target=columns[3],
            pull=0.1, decay=1e-3,
        )  # fmt: skip
        credit, targets = torch.zeros_like(columns[0]), torch.empty_like(columns[0])
        update_credit_(credit, targets, gradient, weight, keep=0.0, temperature=0.8)
        for result in (*results, masked, mask, gradient, credit, targets, *columns[:3]):
            made.update(result.contiguous().numpy().tobytes())
    return made.hexdigest()


@native
def test_equal_bits_for_every_instruction_set_and_thread_count():
    found = {"here": digest()}
    sets = compiled_instruction_sets()
    for isa, threads in (("baseline", 1), ("avx2" if "avx2" in sets else "baseline", 3)):  # here: the best there is
        environment = os.environ | {"SNN_CPU_ISA": isa, "OMP_NUM_THREADS": str(threads), "SNN_BACKEND": "cpp"}
        command = [sys.executable, str(Path(__file__).resolve()), str(threads)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found[f"{isa}, {threads} threads"] = done.stdout.split()[-1]
    assert len(set(found.values())) == 1, found


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]))
    print(digest())
