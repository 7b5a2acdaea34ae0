"""A training step hardly ever waits for the device: what the host reads from tensors is counted, on the CPU."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from snn_core import LIF, reset_net
from snn_core.errors import NonFiniteError
from snn_core.kernels.topk_sampler import weights
from snn_core.pruning import METHODS, PruneConfig, create_pruner

READING = {"_local_scalar_dense", "equal", "nonzero", "is_nonzero", "masked_select", "_unique2"}


class Reads(TorchDispatchMode):
    """Counts the operators whose result the host needs at once; ``tolist`` of a CPU tensor is counted by hand."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.count, tolist = 0, torch.Tensor.tolist

        def counted(tensor):
            self.count += 1
            return tolist(tensor)

        monkeypatch.setattr(torch.Tensor, "tolist", counted)

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        self.count += operator.overloadpacket.__name__ in READING
        return operator(*arguments, **(options or {}))


class Net(nn.Module):
    def __init__(self, depth):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(16, 16) for _ in range(depth)])
        self.neurons = nn.ModuleList([LIF() for _ in range(depth)])

    def forward(self, x_seq):
        reset_net(self)
        for layer, neuron in zip(self.layers, self.neurons, strict=True):
            x_seq = neuron(4 * layer(x_seq))
        return x_seq.mean(0)


def start(method, config, depth, monkeypatch):
    """As on a device without compiled code for weights: what compiled code returns to the CPU is no waiting."""
    monkeypatch.setattr(weights, "runs_natively", lambda *_: False)
    model = Net(depth)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, optimizer, create_pruner(method, model, config, pattern="1:4", optimizer=optimizer, total_steps=50)


def step(model, optimizer, pruner, number=0):
    x_seq = (torch.rand(3, 8, 16, generator=torch.Generator().manual_seed(number)) < 0.5).float()
    optimizer.zero_grad()
    loss = model(x_seq).square().sum()
    loss.backward()
    if hasattr(pruner, "observe_loss"):
        pruner.observe_loss(loss.detach())
    optimizer.step()
    pruner.step()


#: A step's reads: whether all was finite; SpikeNM's credits; Adam's count; MaskPro's loss and places of its masks.
ALLOWED = {"spikenm": 2, "maskllm": 2, "maskpro": 5}


@pytest.mark.parametrize("method", METHODS)
def test_reads_of_a_step_do_not_grow_with_the_layers(method, monkeypatch):
    config = PruneConfig(eid_interval=1, eid_weight=0.1)
    found = []
    for depth in (3, 6):
        running = start(method, config, depth, monkeypatch)
        step(*running)
        with Reads(monkeypatch) as reads:
            step(*running, 1)
        found.append(reads.count)
    assert found[0] == found[1] <= ALLOWED.get(method, 1)


def test_passes_forward_and_backward_read_nothing(monkeypatch):
    model, optimizer, pruner = start("spikenm", PruneConfig(eid_interval=1), 4, monkeypatch)
    step(model, optimizer, pruner)
    with Reads(monkeypatch) as reads:
        model(torch.ones(3, 8, 16)).sum().backward()
        model(torch.ones(3, 8, 16)).sum().backward()
    assert reads.count == 0


@pytest.mark.parametrize("bad", ["logits", "weight", "grad"])
def test_what_is_read_late_still_stops_before_the_weights_change(bad, monkeypatch):
    model, optimizer, pruner = start("spikenm", PruneConfig(eid_weight=0), 4, monkeypatch)
    step(model, optimizer, pruner)
    (search,) = pruner._searches.values()
    layer = pruner.layers[1]
    with torch.no_grad():
        if bad == "logits":
            search.logits[2, layer.columns.start] = float("nan")
        elif bad == "weight":
            layer.weight[3, 3] = float("inf")
    optimizer.zero_grad()
    model(torch.ones(3, 8, 16)).square().sum().backward()
    if bad == "grad":
        layer.weight.grad[3, 3] = float("nan")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(NonFiniteError, match=f"layer {layer.name!r}"):
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
