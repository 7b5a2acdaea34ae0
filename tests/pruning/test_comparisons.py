"""ASP, mask decay and unstructured magnitude against their equations in plain torch; methods by name."""

import pytest
import torch
from torch import nn

from snn_core.errors import ArgumentError, NonFiniteError
from snn_core.pruning import METHODS, PruneConfig, create_pruner
from snn_core.pruning.magnitude import largest
from snn_core.seeding import seeded
from snn_core.sparsity import NMLinear, check_nm, nm_mask_by_magnitude
from snn_core.training import LossObserver

STEPS = 10
PRUNED = ("conv", "line", "hidden")
BASE = PruneConfig(exclude=("stem", "head"), eid_weight=0)


class Net(nn.Module):
    """A Conv2d, a Conv1d and a Linear to prune between two layers that stay dense."""

    def __init__(self):
        super().__init__()
        with seeded(0):
            self.stem = nn.Conv2d(2, 16, 3, padding=1)
            self.conv = nn.Conv2d(16, 16, 3, stride=2)
            self.line = nn.Conv1d(16, 16, 1)
            self.hidden = nn.Linear(64, 16)
            self.head = nn.Linear(16, 3)

    def forward(self, x):
        x = torch.tanh(self.stem(x))
        x = torch.tanh(self.conv(x)).flatten(2)
        return self.head(torch.tanh(self.hidden(torch.tanh(self.line(x)).flatten(1))))


def batch(step):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(6, 2, 5, 5, generator=generator), torch.randint(0, 3, (6,), generator=generator)


def backward(model, step, pruner=None):
    x, labels = batch(step)
    model.zero_grad()
    loss = nn.functional.cross_entropy(model(x), labels)
    if isinstance(pruner, LossObserver):
        pruner.observe_loss(loss.detach())
    loss.backward()
    return loss.detach()


def start(method, pattern="2:4", optimizer=torch.optim.AdamW, steps=STEPS, **changes):
    model = Net()
    optimizer = optimizer(model.parameters(), lr=0.02)
    config = BASE.model_copy(update=changes)
    return (
        model,
        optimizer,
        create_pruner(method, model, config, pattern=pattern, optimizer=optimizer, total_steps=steps),
    )


def train(model, optimizer, pruner, steps):
    for step in steps:
        backward(model, step, pruner)
        optimizer.step()
        if pruner is not None:
            pruner.step()


def plain_with(weights):
    model = Net()
    model.load_state_dict(weights)
    return model


def snapshot(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def test_methods_by_name():
    expected = {"spikenm", "sr-ste", "mask-decay", "asp", "maskllm", "maskpro", "magnitude", "random"}
    assert set(METHODS) == expected
    with pytest.raises(ArgumentError, match=r"mask-decay.*got 'dense'"):
        create_pruner("dense", Net(), BASE)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_prunes_with_a_pattern_per_layer_and_resumes_exactly(method):
    patterns = {"conv": "1:8", "line": "dense", "hidden": "2:8"}
    changes = {"layer_patterns": patterns, "exclude": (), "sr_ste_freeze": 0.8, "magnitude_freeze": 0.8}
    whole, cut, rest = (start(method, **changes) for _ in range(3))
    train(*whole, range(STEPS))
    train(*cut, range(4))
    for part, other in zip(rest, cut, strict=True):
        part.load_state_dict(other.state_dict())
    train(*rest, range(4, STEPS))
    assert all(torch.equal(value, rest[0].state_dict()[name]) for name, value in whole[0].state_dict().items())
    masks = whole[2].finalize()
    assert {name: float(mask.float().mean()) for name, mask in masks.items()} == {"conv": 0.125, "hidden": 0.25}
    if method != "magnitude":
        assert whole[2].patterns == {"conv": "1:8", "hidden": "2:8"}
        assert all(check_nm(mask, patterns[name]) == 0 for name, mask in masks.items())


# ---- ASP -----------------------------------------------------------------------------------------------------------


def test_asp_is_dense_training_then_one_cut():
    model, optimizer, pruner = start("asp", asp_dense=0.6)
    plain = Net()
    plain_optimizer = torch.optim.AdamW(plain.parameters(), lr=0.02)
    train(plain, plain_optimizer, None, range(6))
    train(model, optimizer, pruner, range(5))
    assert not pruner.frozen
    masks = {name: mask.clone() for name, mask in pruner.masks.items()}
    assert all(
        torch.equal(mask, nm_mask_by_magnitude(model.get_submodule(name).weight, "2:4")) for name, mask in masks.items()
    )
    train(model, optimizer, pruner, [5])
    assert pruner.frozen
    for name, value in plain.state_dict().items():
        layer = name.removesuffix(".weight")
        expected = value * nm_mask_by_magnitude(value, "2:4") if layer in PRUNED else value
        assert torch.equal(model.state_dict()[name], expected), name
    cut = snapshot(model)
    train(model, optimizer, pruner, range(6, STEPS))
    for name in PRUNED:
        weight, before = model.get_submodule(name).weight, cut[f"{name}.weight"]
        assert torch.equal(weight != 0, before != 0)
        assert not torch.equal(weight, before)


def test_asp_evaluates_the_cut_it_would_make():
    model, optimizer, pruner = start("asp")
    train(model, optimizer, pruner, range(3))
    x, _ = batch(50)
    dense = plain_with(model.state_dict())
    assert torch.equal(model(x), dense(x))
    for name, mask in pruner.masks.items():
        dense.get_submodule(name).weight.data.mul_(mask)
    torch.testing.assert_close(model.eval()(x), dense(x))


# ---- mask decay ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "beta"), [(0, 1.0), (1, 0.75), (3, 0.25), (4, 0.0), (6, 0.0)])
def test_mask_decay_forward_and_gradient(step, beta):
    model, optimizer, pruner = start("mask-decay", decay_steps=0.4)
    train(model, optimizer, pruner, range(step))
    assert pruner.metrics()["beta"] == pytest.approx(beta, abs=1e-12)
    faded = snapshot(model)
    for name in PRUNED:
        weight = faded[f"{name}.weight"]
        mask = nm_mask_by_magnitude(weight, "2:4").float()
        faded[f"{name}.weight"] = weight * (mask + beta * (1 - mask))
    plain = plain_with(faded)
    torch.testing.assert_close(backward(model, step), backward(plain, step))
    for (name, parameter), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, msg=name)


def test_mask_decay_is_spikenm_without_its_sampler():
    changes = {"eta": 0.0, "logit_learning_rate": 0.0, "sr_ste_decay": 0.0}
    first = start("spikenm", **changes, mask_decay=0.4)
    second = start("mask-decay", decay_steps=0.4)
    for run in (first, second):
        train(*run, range(STEPS))
    assert all(torch.equal(value, second[0].state_dict()[name]) for name, value in first[0].state_dict().items())


# ---- unstructured magnitude ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 7, 12, 23, 24])
def test_largest_breaks_ties_like_a_stable_sort(count):
    magnitude = torch.randint(0, 5, (4, 6), generator=torch.Generator().manual_seed(count)).float()
    order = magnitude.flatten().sort(descending=True, stable=True).indices
    expected = torch.zeros(24, dtype=torch.bool)
    expected[order[:count]] = True
    assert torch.equal(largest(magnitude, count), expected.view(4, 6))


@pytest.mark.parametrize("pattern", ["2:4", "1:16"])
def test_magnitude_masks_and_gradient_are_sr_ste_without_blocks(pattern):
    model, optimizer, pruner = start("magnitude", pattern, optimizer=torch.optim.SGD, sr_ste_decay=0.1)
    kept = pruner.pattern.density
    dense = snapshot(model)
    masked, masks = dict(dense), {}
    for name in PRUNED:
        weight = dense[f"{name}.weight"]
        threshold = weight.abs().flatten().sort(descending=True).values[round(kept * weight.numel()) - 1]
        masks[name] = weight.abs() >= threshold
        masked[f"{name}.weight"] = weight * masks[name]
    plain = plain_with(masked)
    torch.testing.assert_close(backward(model, 0), backward(plain, 0))
    optimizer.step()
    for name in PRUNED:
        weight = dense[f"{name}.weight"]
        expected = plain.get_submodule(name).weight.grad + 0.1 * ~masks[name] * weight
        torch.testing.assert_close(model.get_submodule(name).weight.grad, expected)
    pruner.step()
    train(model, optimizer, pruner, range(1, STEPS))
    final = pruner.finalize()
    assert {name: int(mask.sum()) for name, mask in final.items()} == {
        name: round(kept * mask.numel()) for name, mask in final.items()
    }
    assert all((model.get_submodule(name).weight[~mask] == 0).all() for name, mask in final.items())
    assert pruner.patterns == {}
    states = {item.name: (item.state, item.pattern, item.kept) for item in pruner.report()}
    assert states["hidden"] == ("pruned", None, round(kept * 1024))
    assert not model.conv._forward_pre_hooks


def test_global_magnitude_has_one_threshold():
    model, _, pruner = start("magnitude", "1:4", magnitude_scope="global")
    with torch.no_grad():
        model.line.weight.mul_(10)
    masks = pruner.masks
    weights = torch.cat([model.get_submodule(name).weight.abs().flatten() for name in masks])
    chosen = torch.cat([mask.flatten() for mask in masks.values()])
    assert int(chosen.sum()) == len(weights) // 4
    assert weights[chosen].min() >= weights[~chosen].max()
    assert masks["line"].float().mean() > 0.5
    assert pruner.metrics()["kept"] == 0.25


def test_cubic_ramp_is_zhu_and_gupta():
    model, optimizer, pruner = start(
        "magnitude", "1:4", steps=20, magnitude_schedule="cubic", magnitude_ramp=(0.1, 0.6)
    )
    final = 0.75
    for step in range(20):
        sparsity = final + (0 - final) * (1 - min(1.0, max(0.0, (step - 2) / 10))) ** 3
        for mask in pruner.masks.values():
            assert int((~mask).sum()) == pytest.approx(sparsity * mask.numel(), abs=1)
        backward(model, step)
        for layer in pruner.layers:
            assert int((~layer.drawn).sum()) == int((~pruner.masks[layer.name]).sum())
        optimizer.step()
        pruner.step()
    assert pruner.metrics()["kept"] == 0.25


def test_magnitude_ends_at_its_sparsity_even_when_the_ramp_does_not():
    model, optimizer, pruner = start("magnitude", "1:4", magnitude_schedule="cubic", magnitude_ramp=(0.0, 1.0))
    train(model, optimizer, pruner, range(3))
    assert pruner.metrics()["kept"] > 0.4
    pruner.finalize()
    assert pruner.metrics()["kept"] == 0.25


def test_cubic_ramp_resumes_exactly():
    options = {"magnitude_schedule": "cubic", "magnitude_ramp": (0.1, 0.9), "magnitude_scope": "global"}
    whole, cut, rest = (start("magnitude", **options) for _ in range(3))
    train(*whole, range(STEPS))
    train(*cut, range(4))
    rest[0].load_state_dict(cut[0].state_dict())
    rest[1].load_state_dict(cut[1].state_dict())
    rest[2].load_state_dict(cut[2].state_dict())
    train(*rest, range(4, STEPS))
    assert all(torch.equal(value, rest[0].state_dict()[name]) for name, value in whole[0].state_dict().items())


def test_magnitude_refuses_layers_that_are_nm_by_themselves_and_names_what_is_not_finite():
    model = nn.Sequential(nn.Linear(8, 8), NMLinear(8, 8), nn.Linear(8, 2))
    with pytest.raises(ArgumentError, match="layer '1' is N:M by itself"):
        create_pruner("magnitude", model, BASE.model_copy(update={"exclude": ()}))
    model, *_ = start("magnitude")
    model.line.weight.data[3] = torch.nan
    with pytest.raises(NonFiniteError, match="'line'"):
        backward(model, 0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("asp_dense", 1.5), ("decay_steps", 0.0), ("maskllm_kappa", (0.0, 1.0)), ("maskllm_temperature", (1.0, -1.0)),
        ("magnitude_ramp", (0.5, 0.5)), ("magnitude_ramp", (0.5, 1.5)), ("magnitude_scope", "block"),
        ("maskpro_momentum", 1.0),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        PruneConfig(**{field: value})
