"""Counts of the energy report against sums done by hand."""

import json

import pytest
import torch
from torch import nn

from snn_core import LIF, reset_net
from snn_core.backbones import create
from snn_core.errors import ArgumentError
from snn_core.pruning import PruneConfig, create_pruner
from snn_core.reports import AC_PICOJOULE, MAC_PICOJOULE, measure_energy
from snn_core.seeding import seeded
from snn_core.sparsity import CompressedNM, compress, nm_mask_by_magnitude

T, BATCH = 3, 4


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        with seeded(0):
            self.conv = nn.Conv2d(2, 8, 3, padding=1, groups=2)
            self.neuron = LIF(tau=1.5)
            self.fc = nn.Linear(8 * 16, 8)
        self.seen = []

    def forward(self, x_seq):
        reset_net(self)
        spikes = self.neuron(3 * self.conv(x_seq.flatten(0, 1)).unflatten(0, x_seq.shape[:2]))
        self.seen.append(spikes)
        return self.fc(spikes.flatten(2)).mean(0)


def make_batches(count=2, binary=False):
    generator = torch.Generator().manual_seed(0)
    x = [torch.rand(T, BATCH, 2, 4, 4, generator=generator) * 2 for _ in range(count)]
    return [(value > 1).float() for value in x] if binary else x


@pytest.mark.parametrize("binary", [False, True])
def test_counts_equal_sums_by_hand(binary):
    model = Net()
    mask = nm_mask_by_magnitude(model.fc.weight, "2:4")
    model.fc.weight.data.mul_(mask)
    batches = make_batches(binary=binary)
    report = measure_energy(model, batches, patterns={"fc": "2:4"})
    conv, fc = report.layers
    conv_macs = T * 8 * 16 * (1 * 9)
    fc_macs = T * 8 * 128
    rate = float(torch.cat(model.seen, 1).mean())
    input_rate = float((torch.cat(batches, 1) != 0).float().mean())
    assert 0.05 < rate < 0.95
    assert (report.samples, conv.dense_macs, fc.dense_macs) == (2 * BATCH, conv_macs, fc_macs)
    assert (conv.name, conv.kind, conv.binary_input, fc.binary_input) == ("conv", "Conv2d", binary, True)
    assert report.firing_rates == {"neuron": pytest.approx(rate)}
    assert conv.input_rate == pytest.approx(input_rate)
    assert fc.acs == pytest.approx(fc_macs * rate * 0.5)
    assert fc.macs == 0
    assert conv.macs == (0 if binary else conv_macs)
    assert conv.acs == pytest.approx(conv_macs * input_rate if binary else 0)
    picojoule = AC_PICOJOULE * (fc.acs + conv.acs) + MAC_PICOJOULE * conv.macs
    assert report.energy_microjoule == pytest.approx(picojoule * 1e-6)
    assert report.synops == fc.acs + conv.acs
    assert report.dense_energy_microjoule == pytest.approx((conv_macs + fc_macs) * 4.6e-6)
    assert report.kept_connections == model.conv.weight.numel() + int((model.fc.weight != 0).sum())
    dense = sum(p.nbytes for p in model.parameters())
    assert report.bytes_dense == dense
    saved = model.fc.weight.nbytes - CompressedNM.from_dense(model.fc.weight, "2:4").nbytes
    assert report.bytes_compressed == dense - saved
    assert json.loads(json.dumps(report.as_dict()))["layers"][1]["name"] == "fc"


def test_a_compressed_model_counts_as_the_pruned_one():
    model = Net().eval()
    model.fc.weight.data.mul_(nm_mask_by_magnitude(model.fc.weight, "2:4"))
    report = measure_energy(model, make_batches(), patterns={"fc": "2:4"})
    assert measure_energy(compress(model), make_batches()) == report


def test_an_attached_pruner_counts_as_masked_and_the_model_is_left_alone():
    model = Net().train()
    config = PruneConfig(include=("fc",), eid_weight=0)
    pruner = create_pruner("spikenm", model, config, pattern="1:8")
    report = measure_energy(model, [(x, None) for x in make_batches()], max_batches=1)
    assert report.layers[1].kept == pytest.approx(1 / 8)
    assert report.samples == BATCH
    assert model.training
    assert (model.fc.weight != 0).all()
    pruner.finalize()
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert measure_energy(model, make_batches(1)).layers[1].acs == report.layers[1].acs


def test_on_a_dataset_and_a_backbone():
    class Frames:
        frames = torch.randint(0, 3, (7, 3, 2, 12, 12), generator=torch.Generator().manual_seed(0)).to(torch.uint8)

    model = create("conv-snn", input_size=(12, 12), channels=(4, 8))
    report = measure_energy(model, Frames(), batch_size=3)
    assert report.samples == 7
    assert [layer.name for layer in report.layers] == ["blocks.0.conv", "blocks.1.conv", "readout"]
    assert [layer.binary_input for layer in report.layers] == [False, True, True]
    assert list(report.firing_rates) == [name for name, _ in model.spiking_layers()]


def test_batches_do_not_see_each_others_state():
    class Stateful(nn.Module):
        """As SpikingJelly's models: whoever calls it resets it."""

        def __init__(self):
            super().__init__()
            self.fc, self.neuron, self.out = nn.Linear(4, 6), LIF(tau=4.0, decay_input=False), nn.Linear(6, 2)
            nn.init.constant_(self.fc.weight, 0.11)
            nn.init.zeros_(self.fc.bias)

        def forward(self, x_seq):
            return self.out(self.neuron(self.fc(x_seq)))

    model, ones = Stateful(), torch.ones(2, BATCH, 4)
    alone = measure_energy(model, [ones])
    # 0.44, then 0.77: silent in one batch, but a second one on top of it would fire. Another batch size would not fit.
    assert alone.firing_rates == {"neuron": 0}
    several = measure_energy(model, [ones, ones, ones[:, :1]])
    assert several.firing_rates == {"neuron": 0}
    assert several.layers == alone.layers
    assert not isinstance(model.neuron.v, torch.Tensor)


def test_a_spikingjelly_model_in_batches():
    pytest.importorskip("spikingjelly", reason="SpikingJelly is not installed")
    from spikingjelly.activation_based import layer, neuron

    with seeded(0):
        model = nn.Sequential(
            layer.Linear(4, 16, step_mode="m"), neuron.IFNode(step_mode="m"), layer.Linear(16, 2, step_mode="m")
        )
    x_seq = torch.rand(3, 6, 4, generator=torch.Generator().manual_seed(0)) * 2
    whole = measure_energy(model, [x_seq])
    parts = measure_energy(model, [x_seq[:, :3], x_seq[:, 3:]])
    assert whole.firing_rates["1"] > 0.05
    assert parts.firing_rates == pytest.approx(whole.firing_rates)
    assert parts.synops == pytest.approx(whole.synops)


@pytest.mark.parametrize(
    ("batches", "patterns", "word"),
    [
        ([], {}, "no sample"),
        ([torch.zeros(3)], {}, r"\[T, B"),
        (["text"], {}, "got str"),
        (make_batches(), {"nothing": "2:4"}, "'nothing'"),
        (make_batches(), {"conv": "2:4"}, "'conv'.*cannot be cut"),
    ],
)
def test_bad_input(batches, patterns, word):
    with pytest.raises(ArgumentError, match=word):
        measure_energy(Net(), batches, patterns=patterns)
