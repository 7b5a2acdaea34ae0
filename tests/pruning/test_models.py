"""Anybody's model: SpikingJelly's layers and a Spikformer block, odd convolutions, copies, checkpointing, compile."""

import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from snn_core import LIF, reset_net
from snn_core.pruning import PruneConfig, SpikeNMPruner, create_pruner
from snn_core.seeding import seeded
from snn_core.sparsity import NMLinear, check_nm, load_compressed, save_compressed

STEPS = 6
CONFIG = PruneConfig(eid_interval=2, logit_learning_rate=0.1, eid_weight=0.1)


def make_x(step, shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(step)) * 2


def train(model, forward, x_shape, pattern="2:4", config=CONFIG, steps=STEPS, **options):
    """A whole run on made-up data; returns the pruner, not yet finalized."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    pruner = SpikeNMPruner(model, pattern, config=config, optimizer=optimizer, total_steps=STEPS, **options)
    model.train()
    for step in range(steps):
        x_seq = make_x(step, x_shape)
        labels = torch.arange(x_shape[1]) % 3
        optimizer.zero_grad()
        nn.functional.cross_entropy(forward(model, x_seq), labels).backward()
        optimizer.step()
        pruner.step()
    return pruner


def finish(model, pruner, forward, x_shape, make, path):
    """Finalize, check patterns, save compressed, reload into a new model: the same outputs to the last bit."""
    masks = pruner.finalize()
    for name, pattern in pruner.patterns.items():
        assert check_nm(model.get_submodule(name).weight, pattern) == 0
    save_compressed(path, model.eval(), pruner.patterns, masks)
    loaded = load_compressed(path, make()).eval()
    with torch.no_grad():
        assert torch.equal(forward(loaded, make_x(77, x_shape)), forward(model, make_x(77, x_shape)))


# ---- SpikingJelly ----------------------------------------------------------------------------------------------------


def spikformer(embedding=16, heads=4, blocks=1):
    """Spiking patch splitting, spiking self-attention and MLP after Zhou et al. 2023, on SpikingJelly's layers."""
    pytest.importorskip("spikingjelly", reason="SpikingJelly is not installed")
    from spikingjelly.activation_based import functional, layer, neuron

    class ConvBNLIF(nn.Module):
        def __init__(self, conv, channels, norm):
            super().__init__()
            self.conv, self.norm, self.lif = conv, norm(channels), neuron.LIFNode(tau=2.0, detach_reset=True)

        def forward(self, x_seq):
            return self.lif(self.norm(self.conv(x_seq)))

    def line(inside, outside):
        return ConvBNLIF(layer.Conv1d(inside, outside, 1, bias=False), outside, layer.BatchNorm1d)

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v = (line(embedding, embedding) for _ in range(3))
            self.attention_lif = neuron.LIFNode(tau=2.0, v_threshold=0.5, detach_reset=True)
            self.projection = line(embedding, embedding)

        def forward(self, x_seq):  # [T, B, C, tokens]
            q, k, v = (part(x_seq).unflatten(2, (heads, -1)).transpose(-2, -1) for part in (self.q, self.k, self.v))
            x_seq = (q @ (k.transpose(-2, -1) @ v) * 0.25).transpose(-2, -1).flatten(2, 3)
            return self.projection(self.attention_lif(x_seq))

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = Attention()
            self.fc1, self.fc2 = line(embedding, 2 * embedding), line(2 * embedding, embedding)

        def forward(self, x_seq):
            x_seq = x_seq + self.attention(x_seq)
            return x_seq + self.fc2(self.fc1(x_seq))

    class Spikformer(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch = ConvBNLIF(
                layer.Conv2d(2, embedding, 3, stride=2, padding=1, bias=False), embedding, layer.BatchNorm2d
            )
            self.blocks = nn.Sequential(*[Block() for _ in range(blocks)])
            self.head = nn.Linear(embedding, 3)

        def forward(self, x_seq):
            return self.head(self.blocks(self.patch(x_seq).flatten(3)).mean(3)).mean(0)

    with seeded(0):
        model = Spikformer()
    functional.set_step_mode(model, "m")
    return model, functional


def test_a_spikformer(tmp_path):
    model, functional = spikformer()

    def forward(model, x_seq):
        functional.reset_net(model)
        return model(x_seq)

    shape = (2, 6, 2, 6, 6)
    config = CONFIG.model_copy(update={"layer_patterns": {"*.fc?.conv": "1:8"}})
    pruner = train(model, forward, shape, config=config)
    assert {name.split(".", 2)[2]: pattern for name, pattern in pruner.patterns.items()} == {
        "attention.q.conv": "2:4", "attention.k.conv": "2:4", "attention.v.conv": "2:4",
        "attention.projection.conv": "2:4", "fc1.conv": "1:8", "fc2.conv": "1:8",
    }  # fmt: skip
    for name, capture in pruner._captures.items():
        assert capture.neuron is model.get_submodule(name.removesuffix("conv") + "lif")
    assert sum(float(logits.abs().max()) > 0.01 for logits in pruner.logits.values()) >= 4
    finish(model, pruner, forward, shape, lambda: spikformer()[0], tmp_path / "model.safetensors")


@pytest.mark.parametrize("step_mode", ["m", "s"])
def test_spikingjelly_convolutions_of_every_kind(step_mode, tmp_path):
    """Groups, strides, biases and a Linear layer; time in one call or step by step, with the same credits."""
    pytest.importorskip("spikingjelly", reason="SpikingJelly is not installed")
    from spikingjelly.activation_based import functional, layer, neuron

    def make():
        with seeded(4):
            model = nn.Sequential(
                layer.Conv2d(2, 16, 3, padding=1), neuron.LIFNode(),
                layer.Conv2d(16, 16, 3, stride=2, groups=2), layer.BatchNorm2d(16), neuron.ParametricLIFNode(),
                layer.Conv2d(16, 8, (2, 1), dilation=1, padding=(1, 0), bias=False), neuron.IFNode(),
                layer.Flatten(), layer.Linear(48, 16), neuron.LIFNode(), layer.Linear(16, 3),
            )  # fmt: skip
        functional.set_step_mode(model, step_mode)
        return model

    def forward(model, x_seq):
        functional.reset_net(model)
        x_seq = x_seq * 3
        return (model(x_seq) if step_mode == "m" else torch.stack([model(x) for x in x_seq])).mean(0)

    shape = (3, 6, 2, 5, 5)
    model = make()
    pruner = train(model, forward, shape)
    assert list(pruner.patterns) == ["2", "5", "8"]
    assert "eid" not in pruner.metrics()
    assert pruner.frozen
    finish(model, pruner, forward, shape, make, tmp_path / "model.safetensors")


def test_credits_do_not_depend_on_the_step_mode():
    pytest.importorskip("spikingjelly", reason="SpikingJelly is not installed")
    from spikingjelly.activation_based import functional, layer, neuron

    credits = []
    for step_mode in ("m", "s"):
        with seeded(4):
            model = nn.Sequential(
                layer.Conv2d(2, 16, 3), neuron.LIFNode(), layer.Conv2d(16, 8, 2, groups=2), neuron.LIFNode(),
                layer.Flatten(), layer.Linear(32, 3),
            )  # fmt: skip
        functional.set_step_mode(model, step_mode)

        def forward(model, x_seq, step_mode=step_mode):
            functional.reset_net(model)
            return (model(x_seq * 3) if step_mode == "m" else torch.stack([model(x * 3) for x in x_seq])).mean(0)

        pruner = train(model, forward, (4, 6, 2, 5, 5), steps=1)
        (search,) = pruner._searches.values()
        credits.append(search.credit)
    torch.testing.assert_close(credits[0], credits[1], rtol=1e-3, atol=1e-7)
    assert float(credits[0].max()) > 1e-4


# ---- models of our own and plain torch -------------------------------------------------------------------------------


class Folded(nn.Module):
    """Grouped, strided, one-dimensional; one layer called twice in a step (weights shared in depth and time)."""

    def __init__(self, recompute=False):
        super().__init__()
        self.recompute = recompute
        with seeded(0):
            self.stem, self.stem_lif = nn.Conv2d(2, 16, 3, padding=1), LIF()
            self.grouped, self.grouped_lif = nn.Conv2d(16, 16, 3, stride=2, groups=4, padding=1), LIF()
            self.line, self.line_lif = nn.Conv1d(16, 8, 3, padding="same", bias=False), LIF()
            self.twice, self.twice_lif = nn.Linear(8, 8), LIF()
            self.head = nn.Linear(8, 3)

    def forward(self, x_seq):
        reset_net(self)
        time = x_seq.shape[:2]

        def through(layer, neuron, x_seq):
            return neuron(4 * layer(x_seq.flatten(0, 1)).unflatten(0, time))

        x_seq = through(self.stem, self.stem_lif, x_seq)
        if self.recompute:
            x_seq = self.grouped_lif(
                checkpoint(lambda x: 4 * self.grouped(x.flatten(0, 1)).unflatten(0, time), x_seq, use_reentrant=False)
            )
        else:
            x_seq = through(self.grouped, self.grouped_lif, x_seq)
        x_seq = through(self.line, self.line_lif, x_seq.flatten(3)).mean(3)
        return self.head(self.twice(self.twice_lif(4 * self.twice(x_seq)))).mean(0)


def plain(model, x_seq):
    return model(x_seq)


SHAPE = (3, 6, 2, 6, 6)


def test_odd_convolutions_and_a_layer_called_twice(tmp_path):
    model = Folded()
    pruner = train(model, plain, SHAPE)
    assert list(pruner.patterns) == ["grouped", "line", "twice"]
    assert all(float(logits.abs().max()) > 0.01 for logits in pruner.logits.values())
    finish(model, pruner, plain, SHAPE, Folded, tmp_path / "model.safetensors")


def test_a_recomputed_layer_sees_the_same_mask():
    models = [Folded(), Folded(recompute=True)]
    pruners = [train(model, plain, SHAPE, steps=3) for model in models]
    for name, logits in pruners[0].logits.items():
        torch.testing.assert_close(pruners[1].logits[name], logits)
    assert all(torch.equal(mask, pruners[1].masks[name]) for name, mask in pruners[0].masks.items())


def test_frozen_weights_stay_out():
    model = Folded()
    model.line.weight.requires_grad_(False)
    before = model.line.weight.clone()
    pruner = train(model, plain, SHAPE)
    assert list(pruner.patterns) == ["grouped", "twice"]
    assert torch.equal(model.line.weight, before)


def test_masked_layers_of_ours_take_the_found_mask():
    with seeded(0):
        model = nn.Sequential(nn.Linear(4, 8), LIF(), NMLinear(8, 8, pattern="2:4"), LIF(), nn.Linear(8, 3))

    def forward(model, x_seq):
        reset_net(model)
        return model(x_seq * 3).mean(0)

    config = CONFIG.model_copy(update={"layer_patterns": {"2": "1:8"}})
    pruner = train(model, forward, (3, 6, 4), config=config)
    masks = pruner.finalize()
    assert str(model[2].pattern) == "1:8"
    assert torch.equal(model[2].mask, masks["2"])


def test_weights_given_from_outside_are_not_confused_with_the_layers_own():
    """functional_call with other weights of the same version must not meet the cached masked weight."""
    model = Folded().train()
    SpikeNMPruner(model, config=CONFIG, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), total_steps=5)
    x = torch.rand(4, 8, generator=torch.Generator().manual_seed(0))
    own = model.twice(x)
    other = {"weight": torch.zeros(8, 8), "bias": torch.ones(8)}
    while other["weight"]._version < model.twice.weight._version:
        other["weight"].zero_()
    assert torch.equal(torch.func.functional_call(model.twice, other, (x,)), torch.ones(4, 8))
    assert torch.equal(model.twice(x), own)


def test_a_copy_has_its_mask_but_no_pruner():
    model = Folded()
    pruner = train(model, plain, SHAPE, steps=3)
    reset_net(model)
    average = torch.optim.swa_utils.AveragedModel(model)
    pickled = pickle.loads(pickle.dumps(model))
    pruner.finalize()
    with torch.no_grad():
        assert torch.equal(pickled.eval()(make_x(5, SHAPE)), model.eval()(make_x(5, SHAPE)))
        assert torch.equal(average.eval()(make_x(5, SHAPE)), model.eval()(make_x(5, SHAPE)))


@pytest.mark.parametrize("method", ["spikenm", "sr-ste"])
def test_a_compiled_model_trains_as_the_plain_one(method):
    """torch.compile breaks its graph at pruned layers, and computes the same."""
    pytest.importorskip("torch._dynamo")
    results = []
    for compiled in (False, True):
        with seeded(0):
            model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
        called = torch.compile(model, backend="eager") if compiled else model
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        config = PruneConfig(eid_credit="gradient", eid_interval=1, logit_learning_rate=0.1, freeze=0.7)
        pruner = create_pruner(method, called, config, optimizer=optimizer, total_steps=STEPS)
        assert list(pruner.patterns) == ["2"]
        called.train()
        outputs = []
        for step in range(STEPS):
            optimizer.zero_grad()
            output = called(make_x(step, (6, 4)))
            nn.functional.cross_entropy(output, torch.arange(6) % 3).backward()
            optimizer.step()
            pruner.step()
            outputs.append(output.detach())
        called.eval()
        outputs.append(called(make_x(99, (6, 4))).detach())
        pruner.finalize()
        outputs.append(called(make_x(99, (6, 4))).detach())
        results.append((outputs, model.state_dict()))
        torch._dynamo.reset()
    for plain_output, output in zip(results[0][0], results[1][0], strict=True):
        torch.testing.assert_close(output, plain_output)
    for name, value in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], value)
