"""Mixed precision, steps that a scaler leaves out, optimisers of every kind after the freeze, misuse."""

import copy
import warnings

import pytest
import torch
from torch import nn

from snn_core import LIF, reset_net
from snn_core.errors import ArgumentError, NonFiniteError
from snn_core.pruning import PruneConfig, SpikeNMPruner
from snn_core.seeding import seeded
from snn_core.sparsity import check_nm

T, BATCH, STEPS = 3, 8, 10
CONFIG = PruneConfig(eid_interval=2, eid_weight=0.5, logit_learning_rate=0.1, freeze=1.0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        with seeded(0):
            self.first, self.neuron1 = nn.Conv2d(2, 8, 3), LIF()
            self.conv, self.neuron2 = nn.Conv2d(8, 8, 3, bias=False), LIF()
            self.linear, self.neuron3 = nn.Linear(32, 16), LIF()
            self.last = nn.Linear(16, 3)

    def forward(self, x_seq):
        reset_net(self)
        time = x_seq.shape[:2]
        x = self.neuron1(4 * self.first(x_seq.flatten(0, 1)).unflatten(0, time))
        x = self.neuron2(6 * self.conv(x.flatten(0, 1)).unflatten(0, time))
        return self.last(self.neuron3(6 * self.linear(x.flatten(2)))).mean(0)


def batch(step):
    generator = torch.Generator().manual_seed(step)
    return torch.rand(T, BATCH, 2, 6, 6, generator=generator) * 2, torch.randint(0, 3, (BATCH,), generator=generator)


def start(config=CONFIG, make=None, **options):
    model = Net()
    optimizer = (make or (lambda p: torch.optim.SGD(p, lr=0.1)))(model.parameters())
    return model, optimizer, SpikeNMPruner(
        model, config=config, optimizer=optimizer, total_steps=STEPS, **options
    )  # fmt: skip


def train(model, optimizer, pruner, steps, scaler=None, spoil=(), dtype=None):
    """A usual loop; in the steps of ``spoil`` one gradient is infinite."""
    for step in steps:
        x_seq, labels = batch(step)
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            loss = nn.functional.cross_entropy(model(x_seq), labels)
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            if step in spoil:
                model.linear.weight.grad[0, 0] = float("inf")
            scaler.step(optimizer)
            scaler.update()
        pruner.step()


def searched(pruner):
    (search,) = pruner._searches.values()
    return {"logits": search.logits.detach(), "credit": search.credit, "targets": search.targets}


FUSED = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "fused-sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "fused-adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),
}


@pytest.mark.parametrize("name", FUSED)
def test_a_scaled_loss_trains_the_same_masks(name):
    """Scale 2^k is exact in binary, so that logits, credits and weights are the same bits as without a scaler."""
    plain = start(make=FUSED[name])
    train(*plain, range(5))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    scaled = start(make=FUSED[name], grad_scaler=scaler)
    train(*scaled, range(5), scaler)
    assert scaler.get_scale() == 2.0**12
    for key, value in searched(plain[2]).items():
        assert torch.equal(searched(scaled[2])[key], value), key
    assert all(torch.equal(value, scaled[0].state_dict()[key]) for key, value in plain[0].state_dict().items())


@pytest.mark.parametrize("name", FUSED)
def test_a_step_that_the_scaler_leaves_out_leaves_no_trace(name):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    model, optimizer, pruner = start(make=FUSED[name], grad_scaler=scaler)
    train(model, optimizer, pruner, range(2), scaler)
    before = copy.deepcopy(searched(pruner) | model.state_dict())
    train(model, optimizer, pruner, [2], scaler, spoil=[2])  # a step that would refresh the credit
    assert pruner.steps_done == 2
    assert scaler.get_scale() == 2.0**9
    assert all(torch.equal(value, (searched(pruner) | model.state_dict())[key]) for key, value in before.items())
    other_scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    other = start(make=FUSED[name], grad_scaler=other_scaler)
    train(*other, range(2), other_scaler)
    # The skipped step's mask stays drawn, its credit is forgotten with its gradients.
    train(model, optimizer, pruner, range(3, 6), scaler)
    train(*other, range(3, 6), other_scaler)
    assert pruner.steps_done == other[2].steps_done == 5
    for key, value in searched(pruner).items():
        assert torch.equal(searched(other[2])[key], value), key


@pytest.mark.parametrize("zero", [True, False])
def test_credit_of_a_skipped_step_goes_with_its_gradients_only(zero):
    """Skipped by an accumulating loop the captured credit stays, as the gradients do."""
    model, optimizer, pruner = start()
    capture = pruner._captures["linear"]
    for step in (0, 1):
        x_seq, labels = batch(step)
        nn.functional.cross_entropy(model(x_seq), labels).backward()
        if step == 0:
            first = capture._credit.clone()
            pruner.step()
            if zero:
                optimizer.zero_grad(set_to_none=False)
    assert pruner.steps_done == 0
    twin, _, twin_pruner = start()
    x_seq, labels = batch(1)
    nn.functional.cross_entropy(twin(x_seq), labels).backward()
    second = twin_pruner._captures["linear"]._credit
    torch.testing.assert_close(capture._credit, second if zero else first + second)


def test_credits_that_overflow_are_left_out_with_a_scaler_and_stop_the_run_without():
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    model, optimizer, pruner = start(grad_scaler=scaler)
    train(model, optimizer, pruner, range(2), scaler)
    before = copy.deepcopy(searched(pruner))
    conv, linear = (layer.columns for layer in pruner.layers)
    pruner._captures["linear"]._add = lambda *_: pruner._captures["linear"].__dict__.update(
        _credit=torch.full_like(model.linear.weight, float("inf"))
    )
    train(model, optimizer, pruner, [2], scaler)
    after = searched(pruner)
    assert torch.equal(after["credit"][:, linear], before["credit"][:, linear])
    assert not torch.equal(after["credit"][:, conv], before["credit"][:, conv])
    model, optimizer, pruner = start()
    pruner._captures["linear"]._add = lambda *_: pruner._captures["linear"].__dict__.update(
        _credit=torch.full_like(model.linear.weight, float("inf"))
    )
    with pytest.raises(NonFiniteError, match="layer 'linear': EID's credit"):
        train(model, optimizer, pruner, [0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    """Training under autocast: the pattern holds, logits learn, credits agree with those of float32."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8) if dtype == torch.float16 else None
    model, optimizer, pruner = start(grad_scaler=scaler)
    train(model, optimizer, pruner, [0], scaler, dtype=dtype)
    credit = searched(pruner)["credit"].clone()
    exact = start()
    train(*exact, [0])
    expected = searched(exact[2])["credit"]
    assert credit.dtype == torch.float32
    correlation = torch.corrcoef(torch.stack([credit.flatten(), expected.flatten()]))[0, 1]
    assert correlation > 0.9  # a few spikes differ
    assert float(credit.sum() / expected.sum()) == pytest.approx(1, abs=0.1)
    train(model, optimizer, pruner, range(1, STEPS), scaler, dtype=dtype)
    assert float(pruner.logits["conv"].std()) > 0.05
    assert model.conv.weight.dtype == torch.float32
    masks = pruner.finalize()
    assert all(check_nm(model.get_submodule(name).weight, "2:4") == 0 for name in masks)


# ---- after the freeze ------------------------------------------------------------------------------------------------

OPTIMIZERS = {
    "sgd-nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
    "sgd-foreach": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1, foreach=True),
    "sgd-fused": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1, fused=True),
    "adam-l2": lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=0.1),
    "adamw-foreach": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, foreach=True),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, fused=True, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2, initial_accumulator_value=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_dropped_weights_stay_zero_under_every_optimiser(name):
    model, optimizer, pruner = start(CONFIG.model_copy(update={"freeze": 0.5}), OPTIMIZERS[name])
    train(model, optimizer, pruner, range(5))
    assert pruner.frozen
    before = {layer.name: layer.weight.detach().clone() for layer in pruner.layers}
    for step in range(5, STEPS):
        train(model, optimizer, pruner, [step])
        for layer in pruner.layers:
            dropped = ~pruner.masks[layer.name]
            assert (layer.weight[dropped] == 0).all()
            assert (layer.weight.grad[dropped] == 0).all()
            states = [value for value in optimizer.state[layer.weight].values() if value.shape == layer.weight.shape]
            assert all((value[dropped] == 0).all() for value in states)
            assert any(bool((value != 0).any()) for value in states)
    assert all(not torch.equal(before[layer.name], layer.weight) for layer in pruner.layers)


class Mixing(torch.optim.Optimizer):
    """An update that spreads gradients over a whole matrix, as orthogonalised momentum (Muon) does."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            parameter.sub_(parameter.grad.mean() * torch.ones_like(parameter), alpha=0.1)


def test_dropped_weights_stay_zero_where_updates_mix_weights():
    model, optimizer, pruner = start(CONFIG.model_copy(update={"freeze": 0.5}), Mixing)
    train(model, optimizer, pruner, range(5))
    kept = {layer.name: layer.weight.detach().clone() for layer in pruner.layers}
    train(model, optimizer, pruner, range(5, 8))
    for layer in pruner.layers:
        assert (layer.weight[~pruner.masks[layer.name]] == 0).all()
        assert not torch.equal(layer.weight, kept[layer.name])


@pytest.mark.parametrize("keyword", [True, False])
@pytest.mark.parametrize("name", ["sgd", "lbfgs"])
def test_closures(name, keyword):
    """With a closure (Lightning) gradients exist only inside the optimiser's step; LBFGS asks for them many times."""
    make = {"sgd": lambda p: torch.optim.SGD(p, lr=0.1), "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.01, max_iter=3)}
    results = []
    for use_closure in (True, False) if name == "sgd" else (True,):
        model, optimizer, pruner = start(CONFIG.model_copy(update={"freeze": 0.5}), make[name])
        for step in range(STEPS):
            x_seq, labels = batch(step)

            def closure(model=model, optimizer=optimizer, x_seq=x_seq, labels=labels):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(x_seq), labels)
                loss.backward()
                return loss

            if not use_closure:
                closure()
                optimizer.step()
            elif keyword:
                optimizer.step(closure=closure)
            else:
                optimizer.step(closure)
            pruner.step()
            if step == 3:
                (search,) = pruner._searches.values()
                assert search.adam_steps == 4
                logits = pruner.logits["conv"].clone()
        assert pruner.steps_done == STEPS
        assert all((layer.weight[~pruner.masks[layer.name]] == 0).all() for layer in pruner.layers)
        results.append(logits)
    assert torch.equal(results[0], results[-1])
    assert float(results[0].std()) > 0.05


# ---- misuse ----------------------------------------------------------------------------------------------------------


def test_a_replaced_optimizer_is_noticed_and_can_be_announced():
    model, optimizer, pruner = start()
    train(model, optimizer, pruner, range(2))
    other = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ArgumentError, match="'conv' was changed, but the optimizer given to begin\\(\\) did not step"):
        train(model, other, pruner, [2])
    pruner.begin(model, other, STEPS)
    logits = pruner.logits["conv"].clone()
    train(model, other, pruner, [3])
    assert not torch.equal(logits, pruner.logits["conv"])
    assert pruner.steps_done == 3


def test_a_replaced_weight_is_noticed():
    model, optimizer, pruner = start()
    train(model, optimizer, pruner, range(2))
    model.linear.weight = nn.Parameter(model.linear.weight.detach().clone())
    with pytest.raises(ArgumentError, match="'linear' has another weight than at begin"):
        train(model, optimizer, pruner, [2])


def test_no_step_after_finalize():
    model, optimizer, pruner = start()
    train(model, optimizer, pruner, range(2))
    masks = pruner.finalize()
    assert all(torch.equal(mask, masks[name]) for name, mask in pruner.finalize().items())
    with pytest.raises(ArgumentError, match="after finalize"):
        pruner.step()
    with pytest.raises(ArgumentError, match="after finalize"):
        pruner.begin(model, optimizer, STEPS)


def test_a_model_moved_in_the_search_is_an_error():
    """The second device is "meta": no other is on every machine."""
    model, optimizer, pruner = start()
    train(model, optimizer, pruner, range(2))
    model.to("meta")
    with pytest.raises(ArgumentError, match="model: moved from cpu to meta"):
        model.linear(torch.empty(2, 32, device="meta"))


def test_a_layer_without_calls_or_gradients_keeps_its_mask_and_is_named():
    """Never called, or called without a gradient: logits stay, EID does not pull, the freeze names the first kind."""
    model, optimizer, _ = start()
    model.spare = nn.Linear(8, 8)
    optimizer.add_param_group({"params": model.spare.parameters()})
    pruner = SpikeNMPruner(
        model, config=CONFIG, include=["conv", "linear", "spare"], optimizer=optimizer, total_steps=STEPS
    )
    forward = model.conv.forward
    model.conv.forward = lambda x: forward(x).detach()
    before = {name: mask.clone() for name, mask in pruner.masks.items()}
    train(model, optimizer, pruner, range(4))
    logits = pruner.logits
    assert float(logits["conv"].abs().max()) == float(logits["spare"].abs().max()) == 0
    assert float(logits["linear"].abs().max()) > 0.05
    assert torch.isfinite(torch.tensor(pruner.metrics()["eid"]))
    with pytest.warns(UserWarning, match="layer .spare. was never called"):
        masks = pruner.finalize()
    assert all(torch.equal(masks[name], before[name]) for name in ("conv", "spare"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pruner.finalize()
