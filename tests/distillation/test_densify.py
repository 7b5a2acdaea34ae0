"""SDR against a computation by hand, on this package's neurons, SpikingJelly's, and any module with v_seq."""

import pytest
import torch
from torch import nn

from snn_core.distillation.densify import FeatureCollector, collect_features, densify, pool_feature_maps
from snn_core.errors import ArgumentError


class HandNeuron(nn.Module):
    """A LIF by the textbook (tau 2, threshold 1, hard reset to 0), without a surrogate: what SDR must agree with."""

    def __init__(self, v_threshold: float = 1.0) -> None:
        super().__init__()
        self.v_threshold = v_threshold
        self.step_mode = "m"
        self.store_v_seq = False

    def forward(self, x_seq):
        v, spikes, potentials = torch.zeros_like(x_seq[0]), [], []
        for x in x_seq:
            h = v + (x - v) / 2
            s = (h >= self.v_threshold).to(x)
            v = (1 - s) * h
            spikes.append(s)
            potentials.append(v)
        if self.store_v_seq:
            self.v_seq = torch.stack(potentials)
        return torch.stack(spikes)


def test_densify_by_hand():
    spikes, potential = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.6, -0.2]])
    torch.testing.assert_close(densify(spikes, potential, v_threshold=2.0, beta=0.5), torch.tensor([[0.15, 0.95]]))
    assert densify(spikes, potential, beta=0) is spikes
    with pytest.raises(ArgumentError, match="v_seq"):
        densify(spikes, potential[0])


def test_collector_on_a_hand_made_neuron():
    # x = 1.2 charges 0.6, 0.9, 1.05 -> spike at the third step, potential 0 after it
    model = nn.Sequential(HandNeuron(), HandNeuron())
    x_seq = torch.full((3, 1, 1), 1.2)
    first, second = collect_features(model, x_seq, beta=1.0)
    torch.testing.assert_close(first.flatten(), torch.tensor([0.6, 0.9, 1.0]))
    torch.testing.assert_close(second.flatten(), torch.tensor([0.0, 0.0, 0.5]))
    (half,) = collect_features(model, x_seq, layers=[0], beta=0.5)
    torch.testing.assert_close(half.flatten(), torch.tensor([0.3, 0.45, 1.0]))


def test_threshold_scales_the_residual():
    (features,) = collect_features(nn.Sequential(HandNeuron(v_threshold=2.0)), torch.full((2, 1, 1), 1.2))
    torch.testing.assert_close(features.flatten(), torch.tensor([0.3, 0.45]))


@pytest.mark.parametrize("node_name", ["LIFNode", "IFNode", "ParametricLIFNode"])
def test_spikingjelly_nodes_stay_in_the_graph(node_name):
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron", reason="spikingjelly is not installed")
    node = getattr(neuron, node_name)(step_mode="m")
    linear = nn.Linear(4, 5)
    with torch.no_grad():
        linear.weight.uniform_(0, 1, generator=torch.Generator().manual_seed(0))
        linear.bias.zero_()
    model = nn.Sequential(linear, node).eval()
    x_seq = torch.rand(6, 3, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    (features,) = collect_features(model, x_seq, beta=1.0)
    node.store_v_seq = True
    spikes = model(x_seq)
    assert spikes.any()
    torch.testing.assert_close(features, spikes + node.v_seq)
    features.sum().backward()
    assert x_seq.grad is not None
    assert x_seq.grad.abs().sum() > 0


def test_hooks_are_removed_and_flags_restored():
    model = nn.Sequential(HandNeuron())
    with FeatureCollector(model) as collector:
        model(torch.ones(2, 1, 1))
        assert len(collector.take()) == 1
        with pytest.raises(ArgumentError, match="did not run"):
            collector.take()
    assert model[0].store_v_seq is False
    assert not model[0]._forward_hooks


def test_pooling():
    features = torch.arange(16.0).reshape(1, 1, 1, 4, 4)
    assert pool_feature_maps(features, 2).tolist() == [[[2.5, 4.5, 10.5, 12.5]]]
    assert pool_feature_maps(features, 3).tolist() == [[[5.0]]]
    assert pool_feature_maps(features, 1).tolist() == [[list(range(16))]]
    assert pool_feature_maps(features, 5).shape == (1, 1, 16)
    assert pool_feature_maps(torch.zeros(3, 2, 7), 2).shape == (3, 2, 7)


def test_layers_are_chosen_by_name_and_index():
    model = nn.Sequential(HandNeuron(), nn.Identity(), HandNeuron())
    assert FeatureCollector(model).layer_names == ["0", "2"]
    assert FeatureCollector(model, [-1]).layer_names == ["2"]
    assert FeatureCollector(model, ["2", 0]).layer_names == ["2", "0"]
    for wrong in (["1"], [2], []):
        with pytest.raises(ArgumentError, match="layers"):
            FeatureCollector(model, wrong)


def test_models_that_cannot_serve_are_refused():
    with pytest.raises(ArgumentError, match="no spiking layer"):
        FeatureCollector(nn.Linear(2, 2))
    model = nn.Sequential(HandNeuron())
    model[0].step_mode = "s"
    with pytest.raises(ArgumentError, match="step_mode"):
        collect_features(model, torch.ones(2, 1, 1))
