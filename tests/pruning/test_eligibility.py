"""EID: captured credit against a brute-force loop over a real backward pass."""

import math

import pytest
import torch
from torch import nn

from snn_core import IF, LIF, PLIF, reset_net
from snn_core.errors import ArgumentError
from snn_core.kernels.topk_sampler.reference import soft_targets, standardise
from snn_core.pruning import PruneConfig, SpikeNMPruner
from snn_core.pruning.eligibility import (
    CreditCapture,
    following_neuron,
    neuron_leak,
    trace,
    weight_gradient,
)
from snn_core.seeding import seeded
from snn_core.sparsity import from_blocks, to_blocks

T, BATCH = 4, 3


def brute_force_linear(x_seq, delta, decay):
    """|sum_{t, b} delta_i[t] e_j[t]| with plain loops; x_seq [T, B, in], delta [T, B, out]."""
    credit = torch.zeros(delta.shape[-1], x_seq.shape[-1])
    for b in range(x_seq.shape[1]):
        for i in range(delta.shape[-1]):
            for j in range(x_seq.shape[-1]):
                e = 0.0
                for t in range(x_seq.shape[0]):
                    e = decay * e + float(x_seq[t, b, j])
                    credit[i, j] += float(delta[t, b, i]) * e
    return credit.abs()


def brute_force_conv(x_seq, delta, decay, kernel):
    """The same for a stride-1 convolution without padding; x_seq [T, B, C, H, W], delta [T, B, O, H', W']."""
    channels, outputs = x_seq.shape[2], delta.shape[2]
    credit = torch.zeros(outputs, channels, kernel, kernel)
    e = torch.zeros_like(x_seq[0])
    for t in range(x_seq.shape[0]):
        e = decay * e + x_seq[t]
        for o in range(outputs):
            for c in range(channels):
                for u in range(kernel):
                    for v in range(kernel):
                        window = e[:, c, u : u + delta.shape[3], v : v + delta.shape[4]]
                        credit[o, c, u, v] += (delta[t, :, o] * window).sum()
    return credit.abs()


def make_input(shape, seed=0):
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.4).float()


def run(layer, neuron, x, after):
    """Backward through layer and neuron; returns the gradient at the layer's output (the postsynaptic current)."""
    reset_net(neuron)
    current = layer(x)
    current.retain_grad()
    spikes = neuron(after(current) * 4)
    (spikes * torch.linspace(-1, 2, spikes.numel()).view(spikes.shape)).sum().backward()
    return current.grad


@pytest.mark.parametrize("flattened", [False, True])
@pytest.mark.parametrize("tau", [2.0, 4.0])
def test_linear_credit_equals_brute_force(flattened, tau):
    with seeded(0):
        model = nn.Sequential(nn.Linear(4, 3), LIF(tau=tau))
    capture = CreditCapture("0", model[0], model, decay=None, time_steps=None)
    capture.due = True
    x_seq = make_input((T, BATCH, 4))
    x = x_seq.flatten(0, 1) if flattened else x_seq
    delta = run(model[0], model[1], x, (lambda y: y.unflatten(0, (T, BATCH))) if flattened else (lambda y: y))
    expected = brute_force_linear(x_seq, delta.view(T, BATCH, 3), 1 - 1 / tau)
    credit = capture.take().abs()
    torch.testing.assert_close(credit, expected)
    assert float(expected.min()) > 0
    without_trace = (delta.view(-1, 3).t() @ x_seq.view(-1, 4)).abs()
    assert not torch.allclose(credit, without_trace)
    assert capture.take() is None


@pytest.mark.parametrize("flattened", [False, True])
def test_conv_credit_equals_brute_force(flattened):
    with seeded(0):
        conv = nn.Conv2d(4, 2, 2, bias=False)
        model = nn.Sequential(conv, LIF(tau=3.0))
    capture = CreditCapture("0", conv, model, decay=None, time_steps=None)
    capture.due = True
    x_seq = make_input((T, BATCH, 4, 4, 3))

    def layer(x):
        return conv(x) if flattened else conv(x.flatten(0, 1)).unflatten(0, (T, BATCH))

    x = x_seq.flatten(0, 1) if flattened else x_seq
    delta = run(layer, model[1], x, (lambda y: y.unflatten(0, (T, BATCH))) if flattened else (lambda y: y))
    expected = brute_force_conv(x_seq, delta.view(T, BATCH, 2, 3, 2), 1 - 1 / 3, 2)
    torch.testing.assert_close(capture.take().abs(), expected)
    assert float(expected.max()) > 0


def test_single_step_calls_carry_the_trace():
    with seeded(0):
        model = nn.Sequential(nn.Linear(4, 3), LIF(tau=2.0, step_mode="s"))
    capture = CreditCapture("0", model[0], model, decay=None, time_steps=None)
    capture.due = True
    x_seq = make_input((T, BATCH, 4))
    for _ in range(2):  # the second optimiser step must not see the first one's trace
        reset_net(model)
        currents = [model[0](x) for x in x_seq]
        for current in currents:
            current.retain_grad()
        spikes = torch.stack([model[1](current * 4) for current in currents])
        (spikes * torch.linspace(-1, 2, spikes.numel()).view(spikes.shape)).sum().backward()
        delta = torch.stack([current.grad for current in currents])
        torch.testing.assert_close(capture.take().abs(), brute_force_linear(x_seq, delta, 0.5))


def test_the_trace_of_single_steps_starts_anew_after_a_backward_pass():
    """Two backward passes of one optimiser step (accumulation): the second sequence has a trace of its own."""
    with seeded(0):
        model = nn.Sequential(nn.Linear(4, 3), LIF(tau=2.0, step_mode="s"))
    capture = CreditCapture("0", model[0], model, decay=None, time_steps=None)
    capture.due = True
    signed = 0
    for seed in (0, 1):
        reset_net(model)
        x_seq = make_input((T, BATCH, 4), seed)
        currents = [model[0](x) for x in x_seq]
        for current in currents:
            current.retain_grad()
        torch.stack([model[1](current * 4) for current in currents]).square().sum().backward()
        delta = torch.stack([current.grad for current in currents])
        signed = signed + delta.flatten(0, 1).t() @ trace(x_seq, 0.5).flatten(0, 1)
    torch.testing.assert_close(capture.take(), signed)


def test_backward_passes_of_one_step_add_up_and_nothing_is_captured_when_not_due():
    with seeded(0):
        model = nn.Sequential(nn.Linear(4, 3), LIF())
    capture = CreditCapture("0", model[0], model, decay=0.5, time_steps=None)
    run(model[0], model[1], make_input((T, BATCH, 4)), lambda y: y)
    assert capture.take() is None
    capture.due = True
    signed = 0
    for seed in (1, 2):
        x_seq = make_input((T, BATCH, 4), seed)
        delta = run(model[0], model[1], x_seq, lambda y: y)
        signed = signed + delta.flatten(0, 1).t() @ trace(x_seq, 0.5).flatten(0, 1)
    torch.testing.assert_close(capture.take(), signed)
    model.eval()
    run(model[0], model[1], make_input((T, BATCH, 4)), lambda y: y)
    assert capture.take() is None


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(8, 4),
        nn.Conv1d(8, 4, 3, stride=2, padding=1),
        nn.Conv2d(8, 4, (3, 2), stride=(2, 1), padding=1, dilation=2),
        nn.Conv2d(8, 4, 3, padding="same", groups=4),
        nn.Conv2d(8, 4, 3, padding="valid"),
        nn.Conv2d(8, 4, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(8, 4, 3, padding="same", padding_mode="reflect"),
    ],
    ids=str,
)
def test_weight_gradient_equals_autograd(layer):
    shape = {nn.Linear: (5, 8), nn.Conv1d: (5, 8, 9), nn.Conv2d: (5, 8, 9, 7)}[type(layer)]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    output = layer(x)
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    (expected,) = torch.autograd.grad(output, layer.weight, grad)
    torch.testing.assert_close(weight_gradient(layer, x, grad), expected, rtol=1e-4, atol=1e-5)


def test_leaks():
    assert neuron_leak(LIF(tau=4.0)) == pytest.approx(0.75)
    assert neuron_leak(IF()) == 1.0
    assert neuron_leak(PLIF(init_tau=4.0)) == pytest.approx(0.75)
    pytest.importorskip("spikingjelly", reason="SpikingJelly is not installed")
    from spikingjelly.activation_based import neuron

    assert neuron_leak(neuron.LIFNode(tau=4.0)) == pytest.approx(0.75)
    assert neuron_leak(neuron.ParametricLIFNode(init_tau=4.0)) == pytest.approx(0.75)
    assert neuron_leak(neuron.IFNode()) == 1.0


def test_targets_prefer_the_larger_credit():
    credit = torch.tensor([[1.0, 2.0, 3.0, 10.0], [5.0, 5.0, 5.0, 5.0]]).t()
    q = soft_targets(credit, 1.0)
    torch.testing.assert_close(q.sum(0), torch.ones(2))
    assert (q[:, 0].diff() > 0).all()
    torch.testing.assert_close(q[:, 1], torch.full((4,), 0.25))
    torch.testing.assert_close(standardise(credit)[:, 0].std(), torch.tensor(1.0))
    assert soft_targets(credit, 0.1)[3, 0] > q[3, 0]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        with seeded(0):
            self.first, self.neuron1 = nn.Linear(6, 8), LIF()
            self.middle, self.neuron2 = nn.Linear(8, 8), LIF()
            self.last = nn.Linear(8, 3)

    def forward(self, x_seq):
        reset_net(self)
        return self.last(self.neuron2(4 * self.middle(self.neuron1(4 * self.first(x_seq))))).mean(0)


@pytest.mark.parametrize("match", ["key", "logits"])
@pytest.mark.parametrize("use_weight", [True, False])
def test_the_pruner_pulls_the_logits_to_the_credit(match, use_weight):
    """Logit gradient of EID alone against autograd through the KL divergence written out."""
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    config = PruneConfig(
        eid_match=match,
        eid_use_weight=use_weight,
        eid_weight=100.0,
        eta=0.0,
        kappa=1.5,
        sr_ste_decay=0.0,
        freeze=1.0,
        logit_learning_rate=1e-20,
    )
    pruner = SpikeNMPruner(model, config=config, optimizer=optimizer, total_steps=10)
    layer = pruner.layers[0]
    assert layer.name == "middle"
    initial = torch.randn(4, 16, generator=torch.Generator().manual_seed(3))
    (search,) = pruner._searches.values()
    search.logits.copy_(initial)
    seen = {}
    model.middle.register_forward_hook(lambda m, a, out: seen.update(x=a[0], out=out) or out.retain_grad())
    model(make_input((T, BATCH, 6))).square().sum().backward()
    credit = brute_force_linear(seen["x"].detach(), seen["out"].grad, 0.5)

    optimizer.step()
    pruner.step()
    weight = model.middle.weight.detach()
    if use_weight:
        credit = credit * weight.abs()
    target = soft_targets(to_blocks(credit, 4).reshape(-1, 4).t(), 1.0)
    logits = initial.clone().requires_grad_()
    key = 1.5 * logits + (to_blocks(weight, 4).reshape(-1, 4).t().abs() / weight.abs().std())
    distribution = torch.log_softmax(key if match == "key" else logits, 0)
    kl = (target * (target.log() - distribution)).sum(0).mean()
    (expected,) = torch.autograd.grad(kl, logits)
    assert pruner.metrics()["eid"] == pytest.approx(kl.item(), rel=1e-4)

    plain = SpikeNMPruner(Net(), config=config.model_copy(update={"eid_weight": 0.0}))
    plain.begin(plain.model, torch.optim.SGD(plain.model.parameters(), lr=0.0), 10)
    plain._prepare()
    (plain_search,) = plain._searches.values()
    plain_search.logits.copy_(initial)
    plain.model(make_input((T, BATCH, 6))).square().sum().backward()
    plain._optimizer.step()
    gradient, loss_part = search.exp_avg / (1 - 0.9), plain_search.exp_avg / (1 - 0.9)
    torch.testing.assert_close(gradient - loss_part, 100 * expected, rtol=1e-3, atol=1e-3)


def test_targets_are_refreshed_every_k_steps_with_a_running_mean():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = SpikeNMPruner(model, config=PruneConfig(eid_interval=3), optimizer=optimizer, total_steps=100)
    changed, previous = [], None
    for step in range(7):
        optimizer.zero_grad()
        model(make_input((T, BATCH, 6), step)).square().sum().backward()
        optimizer.step()
        (search,) = pruner._searches.values()
        changed.append(previous is None or not torch.equal(previous, search.credit))
        previous = search.credit.clone()
        pruner.step()
    assert changed == [True, False, False, True, False, False, True]


def test_the_free_credit_is_the_gradient_of_the_weight():
    """What a trace without memory gives, captured or not; with bfloat16 products credits keep their order."""
    credits = {}
    for name, change in {
        "gradient": {"eid_credit": "gradient"},
        "no memory": {"trace_decay": 0.0},
        "exact": {},
        "bfloat16": {"eid_credit": "bfloat16"},
    }.items():
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        config = PruneConfig(eid_use_weight=False, **change)
        pruner = SpikeNMPruner(model, config=config, optimizer=optimizer, total_steps=100)
        assert bool(pruner._captures) == (name in ("exact", "bfloat16"))
        model(make_input((T, BATCH, 6))).square().sum().backward()
        gradient = model.middle.weight.grad.clone()
        optimizer.step()
        (search,) = pruner._searches.values()
        credits[name] = from_blocks(pruner.groups[0].block_rows(search.credit, pruner.layers[0]), gradient.shape)
    assert torch.equal(credits["gradient"], gradient.abs())
    assert torch.equal(credits["no memory"], gradient.abs())
    assert not torch.allclose(credits["exact"], gradient.abs())
    torch.testing.assert_close(
        credits["bfloat16"], credits["exact"], rtol=0.05, atol=0.01 * float(gradient.abs().max())
    )
    assert not torch.equal(credits["bfloat16"], credits["exact"])


def make_credit(change):
    """The signed credit of one step of Net's middle layer under a pruner, its input and the gradient of its output."""
    model = Net()
    config = PruneConfig(trace_decay=0.7, **change)
    pruner = SpikeNMPruner(model, config=config, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), total_steps=100)
    seen = {}
    model.middle.register_forward_hook(lambda m, a, out: seen.update(x=a[0].detach(), out=out) or out.retain_grad())
    model(make_input((T, BATCH, 6))).square().sum().backward()
    return pruner._captures["middle"].take(), seen["x"], seen["out"].grad


def test_under_a_pruner_the_credit_is_made_of_the_gradient_and_the_memory():
    credit, x_seq, delta = make_credit({})
    torch.testing.assert_close(credit.abs(), brute_force_linear(x_seq, delta, 0.7))


def test_credits_from_sums_over_time_equal_their_formula():
    credit, x_seq, delta = make_credit({"eid_credit": "sums"})
    e = trace(x_seq, 0.7)
    now = torch.einsum("tbo,tbi->oi", delta, x_seq)
    memory = 0.7 / (T - 1) * torch.einsum("bo,bi->oi", delta[1:].sum(0), e[:-1].sum(0))
    torch.testing.assert_close(credit, now + memory)
    assert float(memory.abs().max()) > 0.1 * float(now.abs().max())
    assert not torch.allclose(credit.abs(), brute_force_linear(x_seq, delta, 0.7), rtol=1e-3)


def test_a_model_without_neurons_can_use_the_free_credit():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2))
    with pytest.raises(ArgumentError, match=r"no spiking neuron.*layer '2'"):
        SpikeNMPruner(model)
    pruner = SpikeNMPruner(model, config=PruneConfig(eid_credit="gradient"))
    pruner.begin(model, torch.optim.SGD(model.parameters(), lr=0.1), 10)
    model(torch.rand(3, 4)).sum().backward()
    pruner._optimizer.step()
    assert pruner.metrics()["eid"] > 0


def test_a_neuron_registered_before_its_layer_is_found():
    model = nn.Sequential(LIF(tau=4.0), nn.Linear(4, 4))
    assert following_neuron(model, model[1]) is model[0]
    model.append(LIF(tau=3.0))
    assert following_neuron(model, model[1]) is model[2]


def test_unknown_time_steps_are_an_error():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    capture = CreditCapture("0", model[0], model, decay=0.5, time_steps=None)
    capture.due = True
    with pytest.raises(ArgumentError, match="time steps at layer '0' is unknown"):
        model(make_input((T * BATCH, 4))).sum().backward()
    model.time_steps = 5
    with pytest.raises(ArgumentError, match="12 rows, which is no multiple of 5"):
        model(make_input((T * BATCH, 4))).sum().backward()
    model.time_steps = T
    model(make_input((T * BATCH, 4))).sum().backward()
    assert capture.take() is not None


def test_trace():
    x_seq = make_input((5, 2))
    expected = sum(x_seq[t] * 0.5 ** (4 - t) for t in range(5))
    torch.testing.assert_close(trace(x_seq, 0.5)[-1], expected)
    torch.testing.assert_close(trace(x_seq[1:], 0.5, trace(x_seq[:1], 0.5)[-1])[-1], expected)
    assert math.isclose(float(trace(torch.ones(3, 1), 0.0)[2]), 1.0)


@pytest.mark.parametrize("batch", [2 * T, 2 * T + 1])
def test_layers_behind_an_average_over_time_have_no_trace(batch):
    """Of a head on means ``[B, ...]`` the credit is the gradient, whether or not T divides the batch."""
    with seeded(0):
        spiking = nn.Sequential(nn.Linear(4, 8), LIF(), nn.Linear(8, 8), LIF())
        model = nn.Sequential(spiking, nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = SpikeNMPruner(model, "2:4", optimizer=optimizer, total_steps=10)
    reset_net(model)
    rates = spiking[3](8 * spiking[2](spiking[1](8 * spiking[0](make_input((T, batch, 4)))))).mean(0)
    assert float(rates.detach().mean()) > 0.05
    model[3](model[2](model[1](rates))).square().sum().backward()
    torch.testing.assert_close(pruner._captures["1"].take(), model[1].weight.grad, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(pruner._captures["0.2"].take(), spiking[2].weight.grad)
