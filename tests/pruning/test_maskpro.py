"""MaskPro against enumeration: the law of its masks, its estimator, its baseline; loops that hide the loss."""

from itertools import combinations, permutations

import pytest
import torch
from torch import nn

from snn_core.errors import ArgumentError, CheckpointError, NonFiniteError
from snn_core.pruning import MaskProPruner, PruneConfig
from snn_core.pruning.maskpro import log_probability, score
from snn_core.seeding import seeded
from snn_core.sparsity import nm_mask_by_magnitude
from snn_core.training import LossObserver


def all_masks(n, m):
    """Bool [M, C(M, N)]."""
    result = torch.zeros(m, len(list(combinations(range(m), n))), dtype=torch.bool)
    for column, positions in enumerate(combinations(range(m), n)):
        result[list(positions), column] = True
    return result


def probability_by_orders(p, positions):
    """Sum over the orders of drawing without replacement."""
    total = 0.0
    for order in permutations(positions):
        chance, left = 1.0, 1.0
        for position in order:
            chance, left = chance * p[position] / left, left - p[position]
        total += chance
    return total


@pytest.mark.parametrize(("n", "m"), [(1, 4), (2, 4), (3, 5), (4, 8), (4, 4)])
def test_probability_of_a_mask_is_the_sum_over_its_orders(n, m):
    logits = torch.randn(m, 1, generator=torch.Generator().manual_seed(n), dtype=torch.float64) * 2
    masks = all_masks(n, m)
    logarithms = log_probability(logits.expand(m, masks.shape[1]), masks)
    assert float(logarithms.exp().sum()) == pytest.approx(1.0)
    p = torch.softmax(logits[:, 0], dim=0).tolist()
    for column, positions in enumerate(combinations(range(m), n)):
        assert float(logarithms[column].exp()) == pytest.approx(probability_by_orders(p, positions))


def test_probability_and_score_stay_finite_for_extreme_logits():
    logits = torch.tensor([[200.0], [0.0], [-200.0], [-1e4]], requires_grad=True)
    for positions in combinations(range(4), 2):
        mask = torch.zeros(4, 1, dtype=torch.bool)
        mask[list(positions)] = True
        value = log_probability(logits, mask)
        (expected,) = torch.autograd.grad(value.sum(), logits)
        assert torch.isfinite(value).all()
        assert torch.isfinite(expected).all()
        torch.testing.assert_close(score(logits.detach(), mask), expected)


@pytest.mark.parametrize(("n", "m"), [(1, 4), (2, 4), (3, 5), (4, 8), (4, 4)])
def test_score_is_the_gradient_of_the_logarithm(n, m):
    masks = all_masks(n, m)
    logits = torch.randn(masks.shape, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    variable = logits.clone().requires_grad_()
    (expected,) = torch.autograd.grad(log_probability(variable, masks).sum(), variable)
    torch.testing.assert_close(score(logits, masks), expected)
    assert (expected.abs().sum() > 0.1) == (n < m)


@pytest.mark.parametrize("baseline", [0.0, 3.0])
def test_the_estimator_is_unbiased_for_any_baseline(baseline):
    """sum_m P(m) (loss(m) - b) grad log P(m)  =  grad sum_m P(m) loss(m), over all masks of a block."""
    masks = all_masks(2, 4)
    losses = torch.tensor([0.3, 1.0, -0.5, 2.0, 0.1, 0.7], dtype=torch.float64)
    logits = torch.tensor([0.5, -1.0, 0.2, 0.0], dtype=torch.float64, requires_grad=True)
    logarithms = log_probability(logits.unsqueeze(1).expand(4, 6), masks)
    (expected,) = torch.autograd.grad((logarithms.exp() * losses).sum(), logits, retain_graph=True)
    estimate = torch.zeros_like(expected)
    for k in range(6):
        (direction,) = torch.autograd.grad(logarithms[k], logits, retain_graph=True)
        estimate += logarithms[k].exp().detach() * (losses[k] - baseline) * direction
    torch.testing.assert_close(estimate, expected)


CONFIG = PruneConfig(include=("0",), maskpro_learning_rate=1.0, maskpro_initial=1.0)


def start(pattern="2:4", config=CONFIG, steps=10**6, rate=0.0):
    with seeded(3):
        model = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 1))
        model[0].weight.data.normal_()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    return model, optimizer, MaskProPruner(model, pattern, config=config, optimizer=optimizer, total_steps=steps)


def loss_of(model):
    return (model(torch.tensor([[1.0, -2.0, 0.5, 1.5]])) - 1).square().mean()


def one_step(model, optimizer, pruner, loss=None):
    optimizer.zero_grad()
    value = loss_of(model)
    pruner.observe_loss(value.detach() if loss is None else loss)
    value.backward()
    optimizer.step()
    pruner.step()


def test_the_pruners_average_step_is_the_gradient_of_the_expected_loss():
    """300 steps of the pruner from the same logits with fixed weights, against all 36 pairs of masks."""
    model, optimizer, pruner = start()
    logits = torch.cat([value.t() for value in pruner.logits.values()], dim=1)  # [4, 2 blocks]
    first, weight = logits.clone().requires_grad_(), model[0].weight.detach()
    masks, expected_loss = all_masks(2, 4), torch.zeros(())
    for a in range(6):
        for b in range(6):
            both = masks[:, [a, b]]
            with torch.no_grad():
                hidden = nn.functional.linear(torch.tensor([[1.0, -2.0, 0.5, 1.5]]), weight * both.t(), model[0].bias)
                loss = (model[1](hidden) - 1).square().mean()
            expected_loss = expected_loss + log_probability(first, both).sum().exp() * loss
    (expected,) = torch.autograd.grad(expected_loss, first)
    steps = []
    for _ in range(300):
        pruner._logits[pruner.groups[0]].copy_(logits)
        pruner._baseline = float(expected_loss.detach())
        one_step(model, optimizer, pruner)
        steps.append(logits - pruner._logits[pruner.groups[0]])
    average, deviation = torch.stack(steps).mean(0), torch.stack(steps).std(0)
    assert ((average - expected).abs() < 4 * deviation / 300**0.5).all()
    assert (expected.abs() > 5 * deviation / 300**0.5).any()


def test_masks_are_drawn_as_often_as_their_probability_says():
    with seeded(0):
        model = nn.Sequential(nn.Linear(64, 1000))
    pruner = MaskProPruner(model, "2:4", config=CONFIG)
    pruner._prepare()
    group = pruner.groups[0]
    pruner._logits[group].copy_(torch.tensor([1.0, 0.0, -0.5, 0.3]).unsqueeze(1).expand(4, 16000))
    model.train()(torch.zeros(1, 64))
    drawn = group.gather(lambda layer: layer.drawn.float())
    masks = all_masks(2, 4)
    counts = (drawn.t() @ masks.float() == 2).sum(0)
    expected = 16000 * log_probability(pruner._logits[group][:, :6], masks).exp()
    assert counts.sum() == 16000
    assert ((counts - expected) ** 2 / expected).sum() < 25.7  # 1e-4, 5 degrees of freedom


class OtherRank:
    """A second process, whose loss is 5."""

    size = 2

    def sum(self, total):
        return total.add_(5.0)

    def check_pruner(self, *arguments):
        pass


def test_logits_follow_the_loss_against_the_baseline_of_the_steps_before():
    model, optimizer, pruner = start()
    first = pruner.logits["0"].clone()
    assert torch.equal(first.view(2, 4), nm_mask_by_magnitude(model[0].weight, "2:4").float())
    one_step(model, optimizer, pruner, loss=4.0)  # nothing to compare with yet
    assert torch.equal(pruner.logits["0"], first)
    assert pruner.metrics()["baseline"] == 4.0
    optimizer.zero_grad()
    for loss in (torch.tensor(6.0), 8.0):  # a batch in two parts: the same masks, and no step in between
        loss_of(model).backward()
        pruner.observe_loss(loss)
        pruner.step()
    pruner._ranks = OtherRank()
    drawn = pruner.layers[0].drawn.clone()
    optimizer.step()
    pruner.step()
    variable = first.t().clone().requires_grad_()
    (direction,) = torch.autograd.grad(log_probability(variable, drawn.view(2, 4).t()).sum(), variable)
    torch.testing.assert_close(pruner.logits["0"], first - (6.0 - 4.0) * direction.t())
    assert pruner.metrics()["baseline"] == pytest.approx(0.9 * 4 + 0.1 * 6)


def test_weights_get_the_gradient_of_the_drawn_mask():
    model, optimizer, pruner = start(rate=0.1)
    loss = loss_of(model)
    drawn = pruner.layers[0].drawn.clone()
    weight = model[0].weight.detach().clone().requires_grad_()
    hidden = nn.functional.linear(torch.tensor([[1.0, -2.0, 0.5, 1.5]]), weight * drawn, model[0].bias.detach())
    plain = (model[1](hidden) - 1).square().mean()
    torch.testing.assert_close(loss, plain)
    (expected,) = torch.autograd.grad(plain, weight)
    pruner.observe_loss(loss.detach())
    loss.backward()
    optimizer.step()
    torch.testing.assert_close(model[0].weight.grad, expected)
    assert (expected[~drawn] == 0).all()


def test_it_finds_the_mask_that_the_loss_wants():
    """One informative pair of positions in each block; the weights stay as they are."""
    model, optimizer, pruner = start(config=CONFIG.model_copy(update={"maskpro_initial": 0.0}), steps=300)
    wanted = torch.tensor([[True, False, False, True], [False, True, True, False]])
    for _ in range(239):
        loss_of(model).backward()
        pruner.observe_loss(float((pruner.layers[0].drawn != wanted).sum()))
        optimizer.step()
        pruner.step()
    assert torch.equal(pruner.masks["0"], wanted)
    assert torch.equal(pruner.finalize()["0"], wanted)


def test_a_loop_that_keeps_the_loss_to_itself_is_told():
    model, optimizer, pruner = start()
    assert isinstance(pruner, LossObserver)
    loss_of(model).backward()
    with pytest.raises(ArgumentError, match=r"observe_loss\(loss\) in every step"):
        optimizer.step()
    with pytest.raises(NonFiniteError, match="loss became nan"):
        pruner.observe_loss(float("nan"))


def test_large_n_is_refused():
    with pytest.raises(ArgumentError, match=r"pattern 16:32.*at most 8"):
        MaskProPruner(nn.Linear(32, 4), "16:32", config=CONFIG.model_copy(update={"include": ("",)}))


def test_state_of_another_shape_is_refused():
    _, _, pruner = start()
    state = pruner.state_dict()
    with pytest.raises(CheckpointError, match="logits/0 has shape"):
        start()[2].load_state_dict(state | {"logits/0": torch.zeros(1, 1)})
