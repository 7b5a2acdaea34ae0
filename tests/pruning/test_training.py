"""Pruners inside training loops: density, gradients, freeze, resume, foreign models."""

import copy

import pytest
import torch
from torch import nn

from snn_core import LIF, reset_net
from snn_core.errors import CheckpointError, NonFiniteError
from snn_core.kernels.topk_sampler import reference
from snn_core.pruning import METHODS, PruneConfig, SpikeNMPruner, create_pruner
from snn_core.seeding import derive_seed, seeded
from snn_core.sparsity import check_nm, from_blocks, load_compressed, nm_mask_by_magnitude, save_compressed, to_blocks
from snn_core.training import LossObserver

STEPS = 10
NM_METHODS = [method for method in METHODS if method != "magnitude"]


class Net(nn.Module):
    """Conv2d, Conv1d and Linear layers between neurons; time folded into the batch, as convolutions want it."""

    def __init__(self, seed=0):
        super().__init__()
        with seeded(seed):
            self.stem = nn.Conv2d(2, 16, 3, padding=1)
            self.conv = nn.Conv2d(16, 16, 3, stride=2, bias=False)
            self.line = nn.Conv1d(16, 16, 1)
            self.hidden = nn.Linear(64, 16)
            self.head = nn.Linear(16, 3)
        self.neurons = nn.ModuleList([LIF(tau=2.0) for _ in range(4)])

    def forward(self, x_seq):
        reset_net(self)
        steps, batch = x_seq.shape[:2]
        x = x_seq.flatten(0, 1)
        layers = [self.stem, self.conv, lambda y: self.line(y.flatten(2)), lambda y: self.hidden(y.flatten(1))]
        for layer, neuron in zip(layers, self.neurons, strict=True):
            current = layer(x)
            current = nn.functional.layer_norm(current, current.shape) * 2  # keeps every layer firing
            x = neuron(current.unflatten(0, (steps, batch))).flatten(0, 1)
        return self.head(x).unflatten(0, (steps, batch)).mean(0)


# Net registers its neurons after all layers: the trace decay and T are given, as for any unusual model.
CONFIG = PruneConfig(time_steps=3, trace_decay=0.5, eid_interval=2)


def make_batch(step):
    generator = torch.Generator().manual_seed(100 + step)
    x_seq = torch.rand(3, 6, 2, 5, 5, generator=generator) * 2
    return x_seq, torch.randint(0, 3, (6,), generator=generator)


def make_optimizer(model, name="adamw"):
    if name == "sgd":
        return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2)
    return torch.optim.AdamW(model.parameters(), lr=5e-3, amsgrad=name == "amsgrad")


def train(model, optimizer, pruner, steps, each=None):
    model.train()
    for step in steps:
        x_seq, labels = make_batch(step)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x_seq), labels)
        if isinstance(pruner, LossObserver):
            pruner.observe_loss(loss.detach())
        loss.backward()
        if each is not None:
            each()
        optimizer.step()
        pruner.step()


@pytest.mark.parametrize("method", NM_METHODS)
@pytest.mark.parametrize("pattern", ["2:4", "1:4", "2:8", "1:16"])
def test_masks_obey_the_pattern_during_and_after_training(method, pattern):
    model = Net()
    optimizer = make_optimizer(model)
    pruner = create_pruner(method, model, CONFIG, pattern=pattern, optimizer=optimizer, total_steps=STEPS)
    assert [layer.name for layer in pruner.layers] == ["conv", "line", "hidden"]
    n, m = pruner.pattern.n, pruner.pattern.m

    def check_density():
        for layer in pruner.layers:
            assert pruner.frozen or layer.drawn is not None or method == "asp"
            for mask in (layer.drawn, pruner.masks[layer.name]):
                if mask is not None:
                    torch.testing.assert_close(
                        to_blocks(mask.float(), m).sum(-1), torch.tensor(float(n)).expand(to_blocks(mask, m).shape[:-1])
                    )

    train(model, optimizer, pruner, range(STEPS), check_density)
    assert pruner.metrics()["kept"] == n / m
    masks = pruner.finalize()
    for name, mask in masks.items():
        weight = model.get_submodule(name).weight
        assert check_nm(weight, pattern) == 0
        assert check_nm(mask, pattern) == 0
        assert (weight[~mask] == 0).all()
        assert 0 < int((weight != 0).sum()) <= mask.sum()
    assert check_nm(model.stem.weight.repeat(1, 8, 1, 1), "1:4") > 0
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    masks = {name: mask.clone() for name, mask in masks.items()}
    again = pruner.finalize()
    assert list(again) == list(masks)
    assert all(torch.equal(again[name], mask) for name, mask in masks.items())


@pytest.mark.parametrize("optimizer_name", ["adamw", "sgd", "amsgrad"])
@pytest.mark.parametrize("method", METHODS)
def test_frozen_weights_stay_dead(method, optimizer_name):
    model = Net()
    optimizer = make_optimizer(model, optimizer_name)
    config = CONFIG.model_copy(update={"freeze": 0.5, "sr_ste_freeze": 0.5, "magnitude_freeze": 0.5})
    pruner = create_pruner(method, model, config, optimizer=optimizer, total_steps=STEPS)
    train(model, optimizer, pruner, range(5))
    assert pruner.frozen
    masks = {name: mask.clone() for name, mask in pruner.masks.items()}
    before = model.conv.weight.detach().clone()
    for name, mask in masks.items():
        weight = model.get_submodule(name).weight
        for value in optimizer.state.get(weight, {}).values():
            if isinstance(value, torch.Tensor) and value.shape == weight.shape:
                assert (value[~mask] == 0).all()
    train(model, optimizer, pruner, range(5, STEPS))
    assert not torch.equal(before, model.conv.weight)
    for name, mask in masks.items():
        weight = model.get_submodule(name).weight
        assert (weight[~mask] == 0).all()
        assert torch.equal(pruner.masks[name], mask)
        assert int((weight != 0).sum()) > 0.9 * int(mask.sum())


def test_sr_ste_gradient_is_its_formula():
    model, plain = Net(), Net()
    optimizer = make_optimizer(model, "sgd")
    create_pruner("sr-ste", model, CONFIG, optimizer=optimizer, total_steps=STEPS)
    x_seq, labels = make_batch(0)
    mask = nm_mask_by_magnitude(model.conv.weight, "2:4")
    weight = model.conv.weight.detach().clone()
    for name in ("conv", "line", "hidden"):
        layer = plain.get_submodule(name)
        layer.weight.data.mul_(nm_mask_by_magnitude(layer.weight, "2:4"))
    logits = model(x_seq)
    torch.testing.assert_close(logits, plain(x_seq))
    nn.functional.cross_entropy(logits, labels).backward()
    nn.functional.cross_entropy(plain(x_seq), labels).backward()
    optimizer.step()
    expected = plain.conv.weight.grad + 2e-4 * (~mask) * weight
    torch.testing.assert_close(model.conv.weight.grad, expected)
    assert not torch.allclose(plain.conv.weight.grad, expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("mask_decay", [0.0, 0.5])
def test_logit_gradient_equals_autograd_through_the_sampler(mask_decay):
    """The pruner's graph-free gradient against autograd through key, sampler, mask and network."""
    model = Net()
    optimizer = make_optimizer(model)
    config = CONFIG.model_copy(update={"eid_weight": 0.0, "kappa": 1.3, "temperature": 0.8, "mask_decay": mask_decay})
    pruner = SpikeNMPruner(model, config=config, include=["hidden"], optimizer=optimizer, total_steps=4 * STEPS)
    train(model, optimizer, pruner, range(3))
    logits = pruner.logits["hidden"].clone().requires_grad_()
    weight = model.hidden.weight.detach().clone()
    schedule = pruner.schedule()
    noise = reference.seeded_gumbel(derive_seed(0, "spikenm", "hidden"), pruner.steps_done, logits.shape[0], 4)
    blocks = to_blocks(weight, 4).reshape(-1, 4)
    key = schedule.kappa * logits + blocks.abs() / weight.abs().std() + schedule.eta * noise
    hard, soft = reference.hard_topk(key, 2).float(), reference.relaxed_topk(key, 2, schedule.temperature)
    mask = hard + (1 - schedule.beta) * (soft - soft.detach()) + schedule.beta * (1 - hard)
    reset_net(model)
    twin = copy.deepcopy(model).train()
    for hooks in (twin.hidden._forward_pre_hooks, twin.hidden._forward_hooks):
        hooks.clear()
    with torch.no_grad():
        twin.hidden.weight.copy_(weight)
    x_seq, labels = make_batch(3)
    masked = {"hidden.weight": (blocks * mask).reshape(weight.shape)}
    loss = nn.functional.cross_entropy(torch.func.functional_call(twin, masked, (x_seq,)), labels)
    (expected,) = torch.autograd.grad(loss, logits)
    (search,) = pruner._searches.values()
    search.exp_avg.zero_()
    train(model, optimizer, pruner, [3])
    torch.testing.assert_close(search.exp_avg.t() / (1 - 0.9), expected, rtol=1e-4, atol=1e-7)
    assert float(expected.abs().max()) > 1e-5


def test_relaxed_draws_train_with_their_own_value_and_gradient():
    """The ablation: loss, gradients of weights and logits against autograd through soft masks; hard at the freeze."""
    model = Net()
    optimizer = make_optimizer(model)
    config = CONFIG.model_copy(update={"draws": "relaxed", "temperature": 2.0, "eid_weight": 0.0, "freeze": 0.5})
    pruner = SpikeNMPruner(model, config=config, include=["hidden"], optimizer=optimizer, total_steps=STEPS)
    train(model, optimizer, pruner, range(2))
    logits = pruner.logits["hidden"].clone().requires_grad_()
    weight = model.hidden.weight.detach().clone().requires_grad_()
    schedule = pruner.schedule()
    assert schedule.beta == 0
    noise = reference.seeded_gumbel(derive_seed(0, "spikenm", "hidden"), 2, logits.shape[0], 4)
    blocks = to_blocks(weight.detach(), 4).reshape(-1, 4)
    key = schedule.kappa * logits + blocks.abs() / blocks.abs().std() + schedule.eta * noise
    soft = from_blocks(reference.relaxed_topk(key, 2, schedule.temperature), weight.shape)
    twin = Net()
    twin.load_state_dict(model.state_dict())
    x_seq, labels = make_batch(2)
    used = {"hidden.weight": weight * soft}
    loss = nn.functional.cross_entropy(torch.func.functional_call(twin, used, (x_seq,)), labels)
    of_weight, of_logits = torch.autograd.grad(loss, (weight, logits))
    (search,) = pruner._searches.values()
    search.exp_avg.zero_()
    train(model, optimizer, pruner, [2])
    torch.testing.assert_close(model.hidden.weight.grad, of_weight, rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(search.exp_avg.t() / (1 - 0.9), of_logits, rtol=1e-3, atol=1e-7)
    assert min(float(of_weight.abs().max()), float(of_logits.abs().max())) > 1e-5
    assert "draws" in config.model_dump()
    assert "draws" not in CONFIG.model_dump()
    train(model, optimizer, pruner, range(3, STEPS))
    assert pruner.frozen
    assert check_nm(model.hidden.weight, "2:4") == 0


def test_evaluation_is_deterministic_and_masked_during_the_search():
    model = Net()
    optimizer = make_optimizer(model)
    pruner = create_pruner("spikenm", model, CONFIG, optimizer=optimizer, total_steps=STEPS)
    train(model, optimizer, pruner, range(3))
    x_seq, _ = make_batch(50)
    reset_net(model)
    twin = copy.deepcopy(model).eval()
    model.eval()
    with torch.no_grad():
        logits = model(x_seq)
        assert torch.equal(model(x_seq), logits)
        assert torch.equal(twin(x_seq), logits)
        plain = Net()
        plain.load_state_dict(model.state_dict())
        assert not torch.equal(plain.eval()(x_seq), logits)
        for name, mask in pruner.masks.items():
            plain.get_submodule(name).weight.mul_(mask)
        torch.testing.assert_close(plain(x_seq), logits)
    assert list(model.state_dict()) == list(Net().state_dict())
    pruner.finalize()
    with torch.no_grad():
        assert torch.equal(model(x_seq), logits)
        assert torch.equal(twin(x_seq), logits)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stop", [3, 5, 8])
def test_resume_is_bit_identical(method, stop):
    config = CONFIG.model_copy(update={"sr_ste_freeze": 0.8, "mask_decay": 0.3})

    def start(seed=0):
        model = Net(seed)
        optimizer = make_optimizer(model)
        return model, optimizer, create_pruner(method, model, config, optimizer=optimizer, total_steps=STEPS)

    model, optimizer, pruner = start()
    train(model, optimizer, pruner, range(stop))
    figures = pruner.metrics()
    train(model, optimizer, pruner, range(stop, STEPS))
    first, first_optimizer, first_pruner = start()
    train(first, first_optimizer, first_pruner, range(stop))
    state = {name: value.clone() for name, value in first_pruner.state_dict().items()}
    assert all(isinstance(value, torch.Tensor) and value.is_contiguous() for value in state.values())
    second, second_optimizer, second_pruner = start(seed=9)
    second.load_state_dict(first.state_dict())
    second_optimizer.load_state_dict(first_optimizer.state_dict())
    second_pruner.load_state_dict(state)
    assert second_pruner.metrics() == first_pruner.metrics() == figures
    train(second, second_optimizer, second_pruner, range(stop, STEPS))
    assert pruner.finalize().keys() == second_pruner.finalize().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    for a, b in zip(pruner.state_dict().items(), second_pruner.state_dict().items(), strict=True):
        assert a[0] == b[0]
        assert torch.equal(a[1], b[1]), a[0]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"pattern": "1:4"}, "pattern.*1:4|1:4.*pattern"),
        ({"rho": 0.5}, "config"),
        ({"exclude": ("line",)}, "layers"),
    ],
)
def test_resuming_another_run_is_refused(change, word):
    state = create_pruner("spikenm", Net(), CONFIG.model_copy(update=change)).state_dict()
    with pytest.raises(CheckpointError, match=word):
        create_pruner("spikenm", Net(), CONFIG).load_state_dict(state)
    with pytest.raises(CheckpointError, match="method"):
        create_pruner("random", Net(), CONFIG.model_copy(update=change)).load_state_dict(state)


@pytest.mark.parametrize("missing", ["identity", "steps_done", "logits/conv"])
def test_incomplete_state_is_refused(missing):
    pruner = create_pruner("spikenm", Net(), CONFIG)
    state = pruner.state_dict()
    del state[missing]
    with pytest.raises(CheckpointError, match=missing):
        pruner.load_state_dict(state)


def test_non_finite_values_stop_and_name_the_layer():
    model = Net()
    optimizer = make_optimizer(model)
    pruner = SpikeNMPruner(model, config=CONFIG, optimizer=optimizer, total_steps=STEPS)
    train(model, optimizer, pruner, range(2))
    before = pruner.logits["line"].clone()
    with pytest.raises(NonFiniteError, match=r"'line'.*gradient of the logits"):
        train(model, optimizer, pruner, [2], lambda: model.line.weight.grad.fill_(float("nan")))
    assert torch.equal(pruner.logits["line"], before)
    pruner.step()
    next(iter(pruner._searches.values())).logits.data[0, pruner.layers[2].columns.start] = float("inf")
    with pytest.raises(NonFiniteError, match="'hidden'"):
        train(model, optimizer, pruner, [3])


def test_learning_moves_masks_away_from_magnitude():
    model = Net()
    optimizer = make_optimizer(model)
    config = CONFIG.model_copy(update={"logit_learning_rate": 0.1})
    pruner = SpikeNMPruner(model, config=config, optimizer=optimizer, total_steps=STEPS)
    magnitude = {layer.name: nm_mask_by_magnitude(layer.weight, "2:4") for layer in pruner.layers}
    assert all(torch.equal(mask, magnitude[name]) for name, mask in pruner.masks.items())
    train(model, optimizer, pruner, range(6))
    assert 0 < pruner.metrics()["eid"] < 5
    assert float(pruner.logits["conv"].std()) > 0.01
    assert any(
        not torch.equal(mask, nm_mask_by_magnitude(model.get_submodule(name).weight, "2:4"))
        for name, mask in pruner.masks.items()
    )


def test_plain_sampler_without_learning_is_sr_ste():
    """rho > 0, no noise, no logits: step for step the same weights as SR-STE with the same freeze."""
    changes = {"eta": 0.0, "logit_learning_rate": 0.0, "eid_weight": 0.0, "mask_decay": 0.0, "sr_ste_freeze": 0.8}
    config = CONFIG.model_copy(update=changes)
    weights = []
    for method in ("spikenm", "sr-ste"):
        model = Net()
        optimizer = make_optimizer(model)
        pruner = create_pruner(method, model, config, optimizer=optimizer, total_steps=STEPS)
        train(model, optimizer, pruner, range(STEPS))
        weights.append(model.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_several_forward_passes_of_a_step_share_one_mask():
    model = Net().train()
    optimizer = make_optimizer(model)
    pruner = SpikeNMPruner(model, config=CONFIG, optimizer=optimizer, total_steps=STEPS)
    x_seq, _ = make_batch(0)
    assert torch.equal(model(x_seq), model(x_seq))
    first = pruner.layers[0].drawn
    optimizer.step()
    pruner.step()
    model(x_seq)
    assert not torch.equal(first, pruner.layers[0].drawn)


@pytest.mark.parametrize("step_mode", ["m", "s"])
def test_a_spikingjelly_model(step_mode, tmp_path):
    pytest.importorskip("spikingjelly", reason="SpikingJelly is not installed")
    from spikingjelly.activation_based import functional, layer, neuron

    def make():
        with seeded(4):
            return nn.Sequential(
                layer.Conv2d(2, 8, 3, step_mode=step_mode), neuron.LIFNode(step_mode=step_mode),
                layer.Conv2d(8, 8, 3, step_mode=step_mode), layer.BatchNorm2d(8, step_mode=step_mode),
                neuron.ParametricLIFNode(step_mode=step_mode), layer.Flatten(step_mode=step_mode),
                layer.Linear(8, 16, step_mode=step_mode), neuron.IFNode(step_mode=step_mode),
                layer.Linear(16, 3, step_mode=step_mode),
            )  # fmt: skip

    def forward(model, x_seq):
        functional.reset_net(model)
        x_seq = x_seq * 2
        return (model(x_seq) if step_mode == "m" else torch.stack([model(x) for x in x_seq])).mean(0)

    model = make()
    optimizer = make_optimizer(model)
    config = PruneConfig(eid_interval=2)
    pruner = SpikeNMPruner(model, "2:4", config=config, optimizer=optimizer, total_steps=STEPS)
    assert [layer.name for layer in pruner.layers] == ["2", "6"]
    model.train()
    for step in range(STEPS):
        x_seq, labels = make_batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(forward(model, x_seq), labels).backward()
        optimizer.step()
        pruner.step()
        if step == 0:
            assert "eid" in pruner.metrics()
    masks = pruner.finalize()
    model.eval()
    assert all(check_nm(model.get_submodule(name).weight, "2:4") == 0 for name in masks)
    save_compressed(tmp_path / "sj.safetensors", model, pruner.patterns, masks)
    loaded = load_compressed(tmp_path / "sj.safetensors", make())
    with torch.no_grad():
        assert torch.equal(forward(loaded, make_batch(77)[0]), forward(model, make_batch(77)[0]))


def test_random_masks_depend_on_the_seed_alone():
    masks = [
        create_pruner("random", Net(seed), PruneConfig(eid_weight=0, seed=prune_seed)).masks["conv"]
        for seed, prune_seed in ((0, 0), (1, 0), (0, 1))
    ]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_from_blocks_orders_like_the_pruner():
    pruner = create_pruner("random", Net(), PruneConfig(eid_weight=0))
    (group,) = pruner.groups
    key = pruner._evaluation_key(group)
    hard = reference.hard_topk(key.t(), 2)
    for layer in pruner.layers:
        assert torch.equal(from_blocks(group.block_rows(hard.t(), layer), layer.weight.shape), pruner.masks[layer.name])
