"""accelerate(): SpikingJelly's spikes bit for bit, its gradients, and everything that is attached to a neuron."""

from __future__ import annotations

import copy
import io
import itertools
from typing import Any

import pytest
import torch
from torch import nn

from snn_core.interop.spikingjelly import accelerate
from snn_core.kernels.native import cpu_library

functional = pytest.importorskip("spikingjelly.activation_based.functional", reason="SpikingJelly is not installed")
from spikingjelly.activation_based import base, layer, neuron, surrogate  # noqa: E402

from snn_core.interop import spikingjelly_neuron  # noqa: E402
from snn_core.interop.spikingjelly_neuron import SURROGATE_NAMES, AcceleratedNeuron  # noqa: E402
from snn_core.surrogate import SURROGATES  # noqa: E402

KINDS = {"if": neuron.IFNode, "lif": neuron.LIFNode, "plif": neuron.ParametricLIFNode}
RESETS = list(itertools.product((True, False), (0.0, None, -0.4), (0.7, 1.0)))


class Renamed(neuron.LIFNode):
    """A subclass that changes nothing that matters."""

    def extra_repr(self) -> str:
        return "renamed"

    def reset(self) -> None:
        super().reset()


def currents(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2


def pair(node: nn.Module) -> tuple[Any, Any]:
    """The node, and an accelerated copy."""
    fast = copy.deepcopy(node)
    accelerate(fast, strict=True)
    return node, fast


def relative(value: torch.Tensor, expected: torch.Tensor) -> float:
    return ((value - expected).norm() / expected.norm().clamp(min=1e-12)).item()


def assert_same(slow: Any, fast: Any, calls: tuple[torch.Tensor, ...], unroll: bool = False) -> None:
    """Equal spikes and state after every call; gradients through all calls, of inputs and parameters."""
    losses, inputs = [0.0, 0.0], ([], [])
    spikes = 0.0
    for x in calls:
        outputs = []
        for leaves, node in zip(inputs, (slow, fast), strict=True):
            leaves.append(x.clone().requires_grad_())
            outputs.append(torch.stack([node(step) for step in leaves[-1]]) if unroll else node(leaves[-1]))
        assert torch.equal(*outputs)
        assert torch.equal(slow.v, fast.v)
        assert (slow.v_seq is None) == (fast.v_seq is None)
        assert slow.v_seq is None or torch.equal(slow.v_seq, fast.v_seq)
        spikes += outputs[0].sum().item()
        weight = currents(*x.shape, seed=7)
        for k, (output, node) in enumerate(zip(outputs, (slow, fast), strict=True)):
            kept = 0.0 if node.v_seq is None else node.v_seq.square().sum()
            losses[k] = losses[k] + (output * weight).sum() + node.v.square().sum() + kept
    assert spikes > 0
    for loss in losses:
        loss.backward()
    for mine, theirs in zip(inputs[1], inputs[0], strict=True):
        assert relative(mine.grad, theirs.grad) <= 1e-5
    for mine, theirs in zip(fast.parameters(), slow.parameters(), strict=True):
        assert relative(mine.grad, theirs.grad) <= 1e-4


@pytest.mark.parametrize("surrogate_name", [cls.__name__ for cls in SURROGATE_NAMES])
@pytest.mark.parametrize("kind", KINDS)
def test_every_option_keeps_spikes_and_gradients(kind: str, surrogate_name: str) -> None:
    """Two calls, so that the state carries over, in both step modes."""
    calls = (currents(4, 3, 21), currents(3, 3, 21, seed=1))
    for number, (detach_reset, v_reset, v_threshold) in enumerate(RESETS):
        for decay_input in (True, False) if kind != "if" else (None,):
            leaky = {} if decay_input is None else {"decay_input": decay_input}
            leaky |= {"tau": (2.0, 3.7)[number % 2]} if kind == "lif" else {}
            for step_mode in ("m", "s"):
                slow, fast = pair(KINDS[kind](
                    v_threshold=v_threshold, v_reset=v_reset, detach_reset=detach_reset, step_mode=step_mode,
                    surrogate_function=getattr(surrogate, surrogate_name)(), store_v_seq=number % 2 == 0, **leaky,
                ))  # fmt: skip
                assert_same(slow, fast, calls, unroll=step_mode == "s")


@pytest.mark.parametrize("cls", list(SURROGATE_NAMES))
@pytest.mark.parametrize("alpha", [0.5, 1.0, 3.0])
def test_mapped_surrogates_have_the_same_derivative(cls: type, alpha: float) -> None:
    """On a grid that holds the borders of the piecewise ones."""
    u = torch.cat([torch.linspace(-4, 4, 4001), torch.tensor([1 / alpha, -1 / alpha, 0.5 / alpha, -0.5 / alpha, 0.0])])
    u.requires_grad_()
    cls(alpha=alpha)(u).sum().backward()
    by_kernel_name = {ours.kernel_name: ours for ours in SURROGATES.values()}
    expected = by_kernel_name[SURROGATE_NAMES[cls]](alpha).gradient(u.detach())
    torch.testing.assert_close(u.grad, expected, rtol=1e-6, atol=1e-7)


def test_state_is_kept_as_spikingjelly_keeps_it() -> None:
    net = nn.Sequential(neuron.LIFNode(v_reset=-0.4, step_mode="m"), Renamed(v_threshold=0.4, step_mode="m"))
    accelerate(net, strict=True)
    assert net[0].v == -0.4
    assert net[1].v == 0.0
    first = net(currents(4, 2, 30))
    assert first.sum() > 0
    assert [name for name, _ in base.named_memories(net)] == ["0.v", "1.v"]
    assert not torch.equal(net(currents(4, 2, 30)), first)
    functional.reset_net(net)
    assert net[0].v == -0.4
    assert torch.equal(net(currents(4, 2, 30)), first)
    net(currents(4, 5, 30))  # another batch size starts from the reset value, without a call of reset
    assert net[0].v.shape == (5, 30)
    for number in (0.8, 0.0):  # set by hand, and not the reset value
        slow, fast = pair(neuron.LIFNode(v_reset=-0.4, step_mode="m"))
        slow.v = fast.v = number
        assert torch.equal(slow(currents(3, 90)), fast(currents(3, 90)))
        assert torch.equal(slow.v, fast.v)


def test_functional_tools_work() -> None:
    net = nn.Sequential(neuron.LIFNode(step_mode="m"), neuron.ParametricLIFNode(v_threshold=0.4, step_mode="m"))
    slow = copy.deepcopy(net)
    accelerate(net, strict=True)
    net(currents(3, 4).requires_grad_())
    assert net[0].v.requires_grad
    functional.detach_net(net)
    assert not net[0].v.requires_grad
    for model in (slow, net):
        functional.reset_net(model)
        functional.set_step_mode(model, "s")
    x = currents(6, 4)
    assert torch.equal(torch.stack([net(step) for step in x]), torch.stack([slow(step) for step in x]))
    for model in (slow, net):
        functional.reset_net(model)
        functional.set_step_mode(model, "m")
    forward = base.to_functional_forward(net)
    (output,), states = forward((x,), (0.0, 0.0))
    assert torch.equal(output, slow(x))
    assert torch.equal(states[0], slow[0].v)
    assert net[0].v == 0.0
    assert isinstance(net[0], neuron.LIFNode)


def test_state_dicts_and_optimizers_go_on() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(layer.Linear(6, 40), neuron.ParametricLIFNode(step_mode="m"), layer.Linear(40, 3))
    functional.set_step_mode(net, "m")
    slow = copy.deepcopy(net)
    optimizers = [torch.optim.Adam(model.parameters(), lr=0.05) for model in (net, slow)]
    checkpoint, w = copy.deepcopy(net.state_dict()), net[1].w
    accelerate(net, strict=True)
    assert net[1].w is w
    assert list(net.state_dict()) == list(checkpoint)
    for step in range(4):
        for model, optimizer in zip((net, slow), optimizers, strict=True):
            functional.reset_net(model)
            optimizer.zero_grad()
            model(currents(5, 8, 6, seed=step)).square().sum().backward()
            optimizer.step()
    assert relative(net[1].w - checkpoint["1.w"], slow[1].w - checkpoint["1.w"]) <= 1e-4
    assert net[1].w != checkpoint["1.w"]
    slow.load_state_dict(net.state_dict())
    net.load_state_dict(checkpoint)
    assert net[1].w is w
    assert torch.equal(w, checkpoint["1.w"])


def test_copies_and_pickles() -> None:
    net = nn.Sequential(Renamed(step_mode="m"), neuron.IFNode(step_mode="m"))
    accelerate(net, strict=True)
    x = currents(4, 12)
    expected = net(x)
    functional.reset_net(net)
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(net), torch.load(buffer, weights_only=False)):
        assert type(twin[0]) is type(net[0])
        assert isinstance(twin[0], AcceleratedNeuron)
        assert torch.equal(twin(x), expected)
    assert net[0].v == 0.0


def test_hooks_and_shared_neurons() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = self.second = neuron.LIFNode(step_mode="m")
            self.seen: list[torch.Tensor] = []
            self.first.register_forward_hook(lambda module, inputs, output: self.seen.append(output))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(2 * self.first(x))

    net = Twice()
    slow = Twice()
    report = accelerate(net)
    assert [item.name for item in report.replaced] == ["first"]
    assert net.first is net.second
    assert torch.equal(net(currents(4, 9)), slow(currents(4, 9)))
    assert len(net.seen) == 2


def test_inside_recurrent_containers() -> None:
    slow = layer.ElementWiseRecurrentContainer(
        neuron.LIFNode(), element_wise_function=lambda x, y: x - 0.5 * y, step_mode="m"
    )
    fast = copy.deepcopy(slow)
    accelerate(fast, strict=True)
    x = currents(6, 5)
    assert torch.equal(fast(x), slow(x))


def test_settings_changed_later_run_spikingjelly_s_code() -> None:
    slow, fast = pair(neuron.LIFNode(step_mode="m", store_v_seq=True))
    for node in (slow, fast):
        node.surrogate_function = surrogate.Erf()
    assert_same(slow, fast, (currents(4, 11), currents(4, 11, seed=1)))
    for node in (slow, fast):
        node.surrogate_function, node.v_threshold = surrogate.ATan(3.0), 0.5
        node.reset()
    assert_same(slow, fast, (currents(4, 11),))
    for node in (slow, fast):
        node.reset()
    assert_same(slow, fast, (currents(4, 11).double(),))
    assert fast.v.dtype == torch.float64


@pytest.mark.parametrize("step_mode", ["m", "s"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_operator_runs(monkeypatch: pytest.MonkeyPatch, kind: str, step_mode: str) -> None:
    """Once a call, with the state of the call before; the other tests would pass on SpikingJelly's code too."""
    states: list[Any] = []
    real = spikingjelly_neuron.lif
    monkeypatch.setattr(
        spikingjelly_neuron, "lif", lambda x_seq, v0, **options: states.append(v0) or real(x_seq, v0, **options)
    )
    node = KINDS[kind](step_mode=step_mode)
    accelerate(node, backend="reference")
    node(currents(4, 5))
    v = node.v
    node(currents(4, 5))
    assert states[0] is None
    assert torch.equal(states[1], v)
    assert len(states) == 2


@pytest.mark.skipif(not cpu_library().available, reason=f"native library {cpu_library().reason}")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_a_float32_state(dtype: torch.dtype) -> None:
    """Spikes are those of a float32 neuron on the same input; SpikingJelly's state would round to ``dtype``."""
    fast, exact = neuron.LIFNode(step_mode="m", tau=3.0), neuron.LIFNode(step_mode="m", tau=3.0)
    accelerate(fast)
    x = currents(6, 200).to(dtype)
    for _ in range(2):
        output = fast(x)
        assert output.dtype == dtype
        assert torch.equal(output.float(), exact(x.float()))
        assert fast.v.dtype == torch.float32
        assert torch.equal(fast.v, exact.v)


def test_single_numbers_as_a_step() -> None:
    slow, fast = pair(neuron.LIFNode())
    for value in (1.0, 3.0, 0.5):
        assert torch.equal(slow(torch.tensor(value)), fast(torch.tensor(value)))
        assert torch.equal(slow.v, fast.v)


def test_compiled_without_graph_breaks() -> None:
    net = nn.Sequential(neuron.LIFNode(step_mode="m"), neuron.ParametricLIFNode(v_threshold=0.4, step_mode="m"))
    accelerate(net, strict=True)
    x = currents(4, 3, 10)
    expected = net(x)
    functional.reset_net(net)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), expected)
    torch.compiler.reset()
