"""MaskLLM against a few lines of torch: the Gumbel-softmax, its gradients by autograd, schedules, prior, refusal."""

import math
from itertools import combinations

import pytest
import torch
from torch import nn

from snn_core.errors import ArgumentError, NonFiniteError
from snn_core.kernels.topk_sampler import reference
from snn_core.pruning import MaskLLMPruner, PruneConfig
from snn_core.pruning.block_state import split_columns
from snn_core.pruning.maskllm import candidate_masks
from snn_core.seeding import make_generator, seeded
from snn_core.sparsity import NMPattern, from_blocks, nm_mask_by_magnitude, to_blocks

STEPS = 10


def start(pattern="2:4", **changes):
    with seeded(1):
        model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    config = PruneConfig(include=("0", "3"), **changes)
    return model, optimizer, MaskLLMPruner(model, pattern, config=config, optimizer=optimizer, total_steps=STEPS)


def loss_of(model, step=0):
    x = torch.randn(5, 8, 4, 4, generator=torch.Generator().manual_seed(step))
    return model(x).square().mean()


def train(model, optimizer, pruner, steps):
    for step in steps:
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()
        pruner.step()


@pytest.mark.parametrize(("pattern", "count"), [("2:4", 6), ("1:4", 4), ("2:8", 28), ("1:16", 16)])
def test_candidates_are_all_masks_of_a_block(pattern, count):
    parsed = NMPattern.parse(pattern)
    masks = candidate_masks(parsed)
    assert masks.shape == (count, parsed.m)
    assert {tuple(row.nonzero().flatten().tolist()) for row in masks} == set(combinations(range(parsed.m), parsed.n))
    if pattern != "1:16":
        assert start(pattern)[2].logits["3"].shape == (8 * 64 // parsed.m, count)


def test_too_many_candidates_are_refused():
    with pytest.raises(ArgumentError, match=r"pattern 4:8.*70 masks.*at most 64"):
        start("4:8")


@pytest.mark.parametrize(("step", "pattern"), [(0, "2:4"), (4, "2:4"), (4, "2:8")])
def test_soft_mask_and_gradients_equal_autograd(step, pattern):
    """Value, gradients of weights and logits: against autograd through softmax, mask, network and regulariser."""
    model, optimizer, pruner = start(pattern, maskllm_regularization=0.3, freeze=0.8)
    train(model, optimizer, pruner, range(step))
    progress = step / 8
    kappa, temperature = 100 + 400 * progress, 4 + (0.05 - 4) * progress
    assert set(pruner.masks) == {"0", "3"}  # reading them must not disturb the draws
    generator = make_generator(0, "unused")
    generator.set_state(pruner._generator.get_state())
    logits = {name: value.clone().requires_grad_() for name, value in pruner.logits.items()}
    weights = {name: model.get_submodule(name).weight.detach().clone().requires_grad_() for name in logits}
    blocks = sum(len(value) for value in logits.values())
    candidates = candidate_masks(pruner.pattern)
    uniform = torch.rand(len(candidates), blocks, generator=generator)
    noise = split_columns(reference.gumbel_from_uniform(uniform), pruner.groups[0])
    masked, reward = {}, torch.zeros(())
    for name, value in logits.items():
        y = torch.softmax((kappa * value + noise[name]) / temperature, dim=-1)
        mask = from_blocks(y @ candidates, weights[name].shape)
        masked[f"{name}.weight"] = weights[name] * mask
        reward = reward + (weights[name].detach() * mask).square().sum()
    unpruned = nn.Sequential(nn.Conv2d(8, 16, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 8))
    biases = {name: value.detach() for name, value in model.named_parameters() if name.endswith("bias")}
    plain = loss_of(lambda x: torch.func.functional_call(unpruned, masked | biases, (x,)), 3)
    expected = torch.autograd.grad(plain - 0.3 * (1 - progress) * reward, list(logits.values()), retain_graph=True)
    expected_weights = torch.autograd.grad(plain, list(weights.values()))

    optimizer.zero_grad()
    loss = loss_of(model, 3)
    torch.testing.assert_close(loss, plain)
    loss.backward()
    seen = {}
    search = pruner._searches[pruner.groups[0]]
    adam = search.adam
    original = adam.step
    adam.step = lambda: (seen.update(gradient=search.logits.grad.clone()), original())[1]
    optimizer.step()
    gradients = split_columns(seen["gradient"], pruner.groups[0])
    for name, gradient in zip(logits, expected, strict=True):
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-7)
    for name, gradient in zip(logits, expected_weights, strict=True):
        torch.testing.assert_close(model.get_submodule(name).weight.grad, gradient, rtol=1e-4, atol=1e-8)
    assert all(float(gradient.abs().max()) > 1e-5 for gradient in expected)


def test_gumbel_softmax_takes_each_mask_as_often_as_its_logit_says():
    """Chi-square over 16,000 blocks with the same logits; and the soft masks keep N of M in every block."""
    with seeded(0):
        model = nn.Sequential(nn.Linear(64, 1000))
    pruner = MaskLLMPruner(model, "2:4", config=PruneConfig(include=("0",)))
    wanted = torch.tensor([0.3, 0.05, 0.1, 0.25, 0.2, 0.1])
    pruner._prepare()
    categories = pruner._searches[pruner.groups[0]]
    categories.logits.data.copy_((wanted.log() / 100).unsqueeze(1).expand_as(categories.logits))
    soft = categories.draw(100.0, 0.05, pruner._generator)
    torch.testing.assert_close(soft.sum(0), torch.full((16000,), 2.0))
    counts = torch.bincount(categories.choice.argmax(dim=0), minlength=6)
    chi_square = ((counts - 16000 * wanted) ** 2 / (16000 * wanted)).sum()
    assert chi_square < 25.7  # 1e-4 of the chi-square distribution with 5 degrees of freedom


def test_evaluation_takes_the_likeliest_mask():
    model, optimizer, pruner = start("2:8", maskllm_learning_rate=0.1)
    train(model, optimizer, pruner, range(4))
    candidates = candidate_masks(pruner.pattern).bool()
    for name, mask in pruner.masks.items():
        best = candidates[pruner.logits[name].argmax(dim=1)]
        assert torch.equal(to_blocks(mask, 8).reshape(-1, 8), best)
    assert any(
        not torch.equal(mask, nm_mask_by_magnitude(model.get_submodule(name).weight, "2:8"))
        for name, mask in pruner.masks.items()
    )


def test_prior_is_the_magnitude_mask_of_the_initial_weights():
    model, _, pruner = start(maskllm_prior=100.0)
    initial = {name: nm_mask_by_magnitude(model.get_submodule(name).weight, "2:4") for name in ("0", "3")}
    assert all(torch.equal(mask, initial[name]) for name, mask in pruner.masks.items())
    _, _, without = start(maskllm_prior=0.0)
    logits = torch.cat([value.flatten() for value in without.logits.values()])
    assert logits.std() == pytest.approx(0.01, rel=0.05)
    # The published strength moves a mask that shares both positions by 3 deviations over one that shares one.
    _, _, published = start()
    difference = torch.cat([a - b for a, b in zip(published.logits.values(), without.logits.values(), strict=True)])
    torch.testing.assert_close(
        difference.sort(dim=1).values, torch.tensor([-0.03, 0, 0, 0, 0, 0.03]).expand_as(difference)
    )


def test_schedules_end_at_the_freeze():
    model, optimizer, pruner = start(freeze=0.4)
    values = []
    for step in range(4):
        values.append((pruner.metrics()["kappa"], pruner.metrics()["temperature"]))
        train(model, optimizer, pruner, [step])
    assert values == [(pytest.approx(100 + 100 * step), pytest.approx(4 + (0.05 - 4) * step / 4)) for step in range(4)]
    assert pruner.frozen
    assert "kappa" not in pruner.metrics()


def test_non_finite_gradients_name_the_layer():
    model, optimizer, pruner = start()
    loss_of(model).backward()
    model[3].weight.grad[0, 0] = math.nan
    before = pruner.logits["3"].clone()
    with pytest.raises(NonFiniteError, match=r"'3'.*gradient of the logits"):
        optimizer.step()
    assert torch.equal(pruner.logits["3"], before)
