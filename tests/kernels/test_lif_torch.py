"""The LIF operator inside torch's machinery: compile, vmap, autocast."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import snn_core
from snn_core.kernels import lif
from snn_core.kernels.lif.ops import CPU_CHECKPOINT_EVERY
from snn_core.kernels.native import cpu_library

pytestmark = pytest.mark.skipif(not cpu_library().available, reason=f"native library {cpu_library().reason}")


def normal(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2


@pytest.mark.parametrize(
    "shapes",
    [
        [(5, 40), (6, 41), (64, 43), (33, 44)],
        [(3 * CPU_CHECKPOINT_EVERY, 40), (200, 41), (500, 43), (1000, 44)],
    ],
    ids=["short", "long"],
)
def test_one_graph_serves_other_shapes_and_other_lengths(shapes: list[tuple[int, int]]) -> None:
    """No graph break; after the second shape the graph is dynamic and is not compiled again. Sequences with and
    without saved potentials are two classes, as every tensor without elements is one for torch.compile."""
    counter = CompileCounterWithBackend("aot_eager")

    def f(x: Tensor) -> Tensor:
        return lif(x * 2, tau=3.0)[0] * x

    torch._dynamo.reset()
    compiled = torch.compile(f, fullgraph=True, backend=counter)
    for shape in shapes:
        x = normal(shape, 0).requires_grad_()
        y = x.detach().clone().requires_grad_()
        expected = f(x)
        actual = compiled(y)
        assert torch.equal(actual, expected)
        expected.sum().backward()
        actual.sum().backward()
        assert torch.equal(x.grad, y.grad)
    assert counter.frame_count == 2


@pytest.mark.parametrize("neuron", [snn_core.LIF, snn_core.IF, snn_core.PLIF])
def test_no_graph_break_with_every_number_symbolic(neuron: type[nn.Module]) -> None:
    torch._dynamo.reset()
    eager, compiled = neuron(), neuron()
    run = torch.compile(compiled, fullgraph=True, dynamic=True, backend="aot_eager")
    x = normal((20, 6, 5), 0)
    assert torch.equal(run(x), eager(x))


def test_inductor_keeps_channels_last_and_gives_the_same_bits() -> None:
    conv = nn.Conv2d(3, 8, 3, padding=1).to(memory_format=torch.channels_last)

    def f(x: Tensor) -> tuple[Tensor, Tensor]:
        spikes, v_last = lif(conv(x.flatten(0, 1)).unflatten(0, x.shape[:2]) * 3, tau=3.0)
        return spikes * 2, v_last

    x = normal((4, 2, 3, 6, 6), 0)
    x = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (4, 2))
    torch._dynamo.reset()
    expected, actual = f(x), torch.compile(f, fullgraph=True)(x)
    assert torch.equal(actual[0], expected[0])
    torch.testing.assert_close(actual[1], expected[1])
    assert actual[0].stride() == expected[0].stride()


@pytest.mark.parametrize("form", [{"inplace": True}, {"pack_spikes_dim": -1}])
def test_the_forms_without_a_gradient_compile(form: dict[str, object]) -> None:
    def f(x: Tensor) -> tuple[Tensor, ...]:
        return lif(x * 2, **form)

    torch._dynamo.reset()
    x = normal((4, 3, 24), 0)
    for actual, expected in zip(torch.compile(f, fullgraph=True, backend="aot_eager")(x), f(x), strict=True):
        assert torch.equal(actual, expected)


def test_a_module_compiles_with_its_state() -> None:
    eager, compiled = snn_core.LIF(), snn_core.LIF()
    run = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    for seed in range(3):
        x = normal((4, 5), seed)
        assert torch.equal(run(x), eager(x))
    assert torch.equal(compiled.v, eager.v)


@pytest.mark.parametrize("in_dim", [0, 1, 2])
def test_vmap_equals_a_loop(in_dim: int) -> None:
    x = normal((4, 5, 6), 0)
    out = torch.func.vmap(lambda x: lif(x, tau=3.0)[0], in_dims=in_dim)(x)
    assert torch.equal(out, torch.stack([lif(part, tau=3.0)[0] for part in x.unbind(in_dim)]))


def test_vmap_over_the_state_and_every_output() -> None:
    x, v0 = normal((70, 5), 0), normal((3, 5), 1)

    def f(x: Tensor, v0: Tensor) -> tuple[Tensor, ...]:
        return lif(x, v0, return_v_seq=True)

    batched = torch.func.vmap(f, in_dims=(None, 0))(x, v0)
    for index in range(3):
        for got, want in zip(batched, f(x, v0[index]), strict=True):
            assert torch.equal(got[index], want)


def test_gradients_for_every_sample_by_vmap() -> None:
    x = normal((3, 70, 5), 0)

    def loss(x: Tensor) -> Tensor:
        return (lif(x)[0] * x).sum()

    batched = torch.func.vmap(torch.func.grad(loss))(x)
    for index in range(3):
        leaf = x[index].clone().requires_grad_()
        loss(leaf).backward()
        torch.testing.assert_close(batched[index], leaf.grad)


def test_a_named_backend_refuses_torch_func_grad() -> None:
    with pytest.raises(NotImplementedError, match=r"'cpp' of lif inside torch\.func\.grad"):
        torch.func.grad(lambda x: lif(x, backend="cpp")[0].sum())(normal((3, 4), 0))


def test_forward_mode_is_refused() -> None:
    x = normal((3, 4), 0)
    for f in (lambda x: lif(x)[1], lambda x: lif(torch.ones(3, 4), x[0])[1]):
        with pytest.raises(NotImplementedError, match="forward-mode"):
            torch.func.jvp(f, (x,), (torch.ones_like(x),))
        with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward-mode"):
            f(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))
    with torch.autograd.forward_ad.dual_level():
        assert torch.equal(lif(x)[0], lif(x, backend="reference")[0])


@pytest.mark.parametrize("form", [{"inplace": True}, {"pack_spikes_dim": -1}])
def test_vmap_refuses_the_forms(form: dict[str, object]) -> None:
    with pytest.raises(NotImplementedError, match=r"torch\.func"):
        torch.func.vmap(lambda x: lif(x, **form)[0])(normal((2, 3, 8), 0))


def test_vmap_over_a_learned_tau_is_refused() -> None:
    q = torch.tensor([0.3, 0.5])
    with pytest.raises(NotImplementedError, match="reciprocal_tau"):
        torch.func.vmap(lambda q: lif(torch.ones(3, 4), reciprocal_tau=q)[0])(q)


def test_autocast_stores_half_and_keeps_the_state_in_float32() -> None:
    layer, neuron = nn.Linear(6, 9), snn_core.LIF()
    x = normal((4, 2, 6), 0)
    with torch.autocast("cpu", torch.bfloat16):
        current = layer(x)
        spikes = neuron(current)
        spikes.float().sum().backward()
    assert current.dtype == spikes.dtype == torch.bfloat16
    assert neuron.v.dtype == torch.float32
    assert layer.weight.grad.dtype == torch.float32
    assert torch.equal(spikes, lif(current.detach())[0])
