"""The LIF operator: the C++ kernel against the reference, the reference against its own smooth twin."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from snn_core.errors import ArgumentError, BackendUnavailableError
from snn_core.kernels import lif
from snn_core.kernels.lif import reference
from snn_core.kernels.native import cpu_library

needs_native = pytest.mark.skipif(not cpu_library().available, reason=f"native library {cpu_library().reason}")

SURROGATES = list(reference.SURROGATE_CODES)
#: Odd sizes, no state dimensions, one step, long time (several chunks of the backward), more than one block.
SHAPES = [(5, 7), (9,), (1, 1000), (63, 129), (1100, 261), (3, 2, 5, 7, 3), (4, 9001)]
OPTIONS = list(itertools.product((True, False), (True, False), (0.0, None, -0.3)))


def normal(shape: Any, seed: int, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def run(x: Tensor, backend: str, learn_tau: bool = False, **options: Any) -> dict[str, Tensor]:
    """Every output and every gradient, for random incoming gradients to all three outputs."""
    x = x.detach().requires_grad_()
    v0 = normal(x.shape[1:], 1).requires_grad_()
    q = torch.tensor(0.3, requires_grad=True) if learn_tau else None
    s_seq, v_last, v_seq = lif(x, v0, reciprocal_tau=q, backend=backend, return_v_seq=True, **options)
    gradients = [normal(t.shape, 2 + i).to(t.dtype) for i, t in enumerate((s_seq, v_last, v_seq))]
    torch.autograd.backward([s_seq, v_last, v_seq], gradients)
    result = {"s_seq": s_seq, "v_last": v_last, "v_seq": v_seq, "x.grad": x.grad, "v0.grad": v0.grad}
    if q is not None:
        result["q.grad"] = q.grad
    return {key: value.detach() for key, value in result.items() if value is not None}


def assert_same(x: Tensor, learn_tau: bool = False, **options: Any) -> None:
    expected = run(x, "reference", learn_tau, **options)
    actual = run(x, "cpp", learn_tau, **options)
    for name in ("s_seq", "v_last", "v_seq"):
        assert torch.equal(actual[name], expected[name]), name
    for name in ("x.grad", "v0.grad"):
        torch.testing.assert_close(
            actual[name], expected[name], rtol=1e-5, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}"
        )
    if learn_tau:  # a sum over all elements in float32 in the reference, in float64 in the kernel
        torch.testing.assert_close(actual["q.grad"], expected["q.grad"], rtol=1e-4, atol=1e-5 * math.sqrt(x.numel()))


@needs_native
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_cpp_equals_reference_on_odd_shapes(shape: tuple[int, ...], surrogate: str) -> None:
    assert_same(normal(shape, 0, 2.0), surrogate=surrogate, tau=3.3)


@needs_native
@pytest.mark.parametrize(("decay_input", "detach_reset", "v_reset"), OPTIONS)
@pytest.mark.parametrize("tau", [2.0, 3.3, "learned"])
def test_cpp_equals_reference_for_every_option(decay_input: bool, detach_reset: bool, v_reset: Any, tau: Any) -> None:
    learn = tau == "learned"
    for surrogate in SURROGATES:
        assert_same(
            normal((6, 3, 50), 0, 2.0), learn, tau=2.0 if learn else tau, decay_input=decay_input,
            detach_reset=detach_reset, v_reset=v_reset, surrogate=surrogate, alpha=1.7, v_threshold=0.8,
        )  # fmt: skip


def strided_inputs() -> dict[str, Tensor]:
    base = normal((4, 3, 6, 5, 8), 0, 2.0)
    images = base.flatten(0, 1).contiguous(memory_format=torch.channels_last)
    return {
        "channels_last": images.unflatten(0, (4, 3)),
        "time_second": base.transpose(0, 1),
        "time_last": base.permute(4, 1, 2, 3, 0),
        "sliced": base[..., ::2],
        "sliced_outer": base[:, :, 1:5:2],
        "expanded_over_time": base[:1].expand(7, -1, -1, -1, -1),
        "expanded_over_neurons": base[:, :1].expand(-1, 5, -1, -1, -1),
    }


@needs_native
@pytest.mark.parametrize("layout", list(strided_inputs()))
def test_cpp_takes_every_layout(layout: str) -> None:
    assert_same(strided_inputs()[layout], tau=3.0)


@needs_native
def test_channels_last_is_kept() -> None:
    x = strided_inputs()["channels_last"]
    s_seq, v_last = lif(x, backend="cpp")
    assert s_seq.stride() == x.stride()
    assert v_last.stride() == x[0].stride()


@needs_native
def test_gradient_of_another_layout_is_taken() -> None:
    x = normal((4, 3, 6, 5), 0, 2.0)
    gradient = normal((4, 3, 5, 6), 1).transpose(2, 3)
    grads = []
    for backend, grad in (("reference", gradient), ("cpp", gradient), ("cpp", gradient.contiguous())):
        leaf = x.clone().requires_grad_()
        lif(leaf, backend=backend)[0].backward(grad)
        grads.append(leaf.grad)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-5, atol=1e-6)
    assert torch.equal(grads[1], grads[2])


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_gradient_for_all_neurons_and_steps(dtype: torch.dtype) -> None:
    """The gradient of a sum is one number, expanded: its elements share memory."""
    x = normal((70, 3, 45), 0, 2.0).to(dtype)
    results = []
    for expanded in (True, False):
        leaf = x.clone().requires_grad_()
        spikes, _ = lif(leaf, backend="cpp")
        gradient = torch.tensor(0.37, dtype=dtype).expand(spikes.shape)
        spikes.backward(gradient if expanded else gradient.contiguous())
        results.append(leaf.grad)
    assert torch.equal(*results)


@needs_native
@pytest.mark.parametrize("shape", [(5, 700), (3, 2, 7)])
def test_bfloat16_stores_half_and_computes_in_float32(shape: tuple[int, ...]) -> None:
    x = normal(shape, 0, 2.0).bfloat16()
    actual, exact = run(x, "cpp", tau=3.0), run(x.float(), "cpp", tau=3.0)
    assert actual["s_seq"].dtype == actual["x.grad"].dtype == torch.bfloat16
    assert actual["v_last"].dtype == torch.float32
    assert torch.equal(actual["s_seq"].float(), exact["s_seq"])
    assert torch.equal(actual["v_last"], exact["v_last"])
    assert torch.equal(actual["v_seq"], exact["v_seq"].bfloat16())
    # The incoming gradients were rounded to bfloat16, so the result differs by that rounding.
    torch.testing.assert_close(actual["x.grad"].float(), exact["x.grad"], rtol=2e-2, atol=2e-2)


@needs_native
def test_bfloat16_rounds_to_nearest_even_like_torch() -> None:
    x = torch.cat([normal((1, 4000), 0, 1e3), normal((1, 4000), 1, 1e-30), torch.tensor([[0.0, -0.0, 3e38, -3e38]])], 1)
    _, _, v_seq = lif(x.bfloat16(), v_threshold=1e38, tau=1.3, backend="cpp", return_v_seq=True)
    _, _, exact = lif(x.bfloat16().float(), v_threshold=1e38, tau=1.3, backend="cpp", return_v_seq=True)
    assert torch.equal(v_seq, exact.bfloat16())


@needs_native
@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("detach_reset", [False, True])
@pytest.mark.parametrize("v_reset", [0.0, None])
def test_non_finite_and_extreme_inputs_do_as_the_reference(
    surrogate: str, detach_reset: bool, v_reset: float | None
) -> None:
    """Gradients of the spikes and of the last potential, NaN for NaN. What reaches neighbours is tested by the rest."""
    x = (
        torch.tensor([math.nan, math.inf, -math.inf, -0.0, 1e38, -1e38, 1e-45, 1.0, 2.0])
        .repeat_interleave(7)
        .repeat(5, 1)
    )
    results = []
    for backend in ("reference", "cpp"):
        leaf = x.clone().requires_grad_()
        spikes, v_last = lif(
            leaf, v_reset=v_reset, surrogate=surrogate, detach_reset=detach_reset, alpha=4.0, backend=backend
        )
        # The last potential of the infinite neurons is infinite or NaN; its gradient is what is looked at.
        torch.autograd.backward([spikes, v_last], [torch.ones_like(spikes), torch.ones_like(v_last)])
        results.append((spikes.detach(), v_last.detach(), leaf.grad))
    assert torch.equal(results[0][0], results[1][0])
    for expected, actual in zip(results[0][1:], results[1][1:], strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


@needs_native
@pytest.mark.parametrize("fill", [0.0, 100.0])
def test_silent_and_saturated_neurons(fill: float) -> None:
    x = torch.full((4, 300), fill)
    s_seq, _ = lif(x, backend="cpp")
    assert s_seq.unique().tolist() == [float(fill > 0)]
    assert_same(x)


@needs_native
def test_empty_neurons() -> None:
    x = torch.zeros(3, 0, 2, requires_grad=True)
    s_seq, v_last = lif(x, backend="cpp")
    s_seq.sum().backward()
    assert s_seq.shape == (3, 0, 2)
    assert v_last.shape == (0, 2)
    assert x.grad is not None


@needs_native
def test_threads_and_repetition_do_not_change_a_bit() -> None:
    x = normal((17, 70_001), 0, 2.0)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            results.append(run(x, "cpp", learn_tau=True))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(other[name], results[0][name]) for name in other)


def test_reference_gradient_is_the_true_derivative_of_its_smooth_twin() -> None:
    """With a smooth step in place of the spike, finite differences must agree with the surrogate's formulas."""
    primitives = {
        "atan": lambda u, a: torch.atan(math.pi / 2 * a * u) / math.pi + 0.5,
        "sigmoid": lambda u, a: torch.sigmoid(a * u),
        "triangle": lambda u, a: 0.5 + (a * u - (a * u).abs() * a * u / 2).where(u.abs() <= 1 / a, u.sign() / 2),
        "fast_sigmoid": lambda u, a: a * u / (1 + u.abs()),
    }

    class Smooth(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, u: Tensor, surrogate: str, alpha: float) -> Tensor:
            ctx.save_for_backward(u)
            ctx.settings = surrogate, alpha
            return primitives[surrogate](u, alpha)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Any:
            return grads[0] * reference.surrogate_gradient(ctx.saved_tensors[0], *ctx.settings), None, None

    x, v0 = normal((4, 5), 0).double().requires_grad_(), normal((5,), 1).double().requires_grad_()
    q = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    for surrogate, decay, v_reset in itertools.product(primitives, (True, False), (0.1, None)):

        def smooth(x: Tensor, v0: Tensor, q: Tensor, s: str = surrogate, d: bool = decay, r: Any = v_reset) -> Any:
            return reference.lif(
                x, v0, reciprocal_tau=q, surrogate=s, decay_input=d, v_reset=r, spike_function=Smooth.apply
            )

        assert torch.autograd.gradcheck(smooth, (x, v0, q))


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_surrogates_integrate_to_one(surrogate: str) -> None:
    """Each stands in for a unit step: its area is 1 (SuperSpike's, alpha / (1 + |u|)^2, is 2 alpha by definition)."""
    u = torch.linspace(-2000, 2000, 4_000_001, dtype=torch.float64)
    area = torch.trapezoid(reference.surrogate_gradient(u, surrogate, 1.5), u).item()
    assert area == pytest.approx(3.0 if surrogate == "fast_sigmoid" else 1.0, rel=2e-3)


@needs_native
def test_operator_passes_opcheck() -> None:
    x, v0 = normal((3, 4, 5), 0).requires_grad_(), normal((4, 5), 1).requires_grad_()
    q = torch.tensor(0.5, requires_grad=True)
    options = (2.0, 1.0, 0.0, True, False, 0, 2.0)
    lif(x)  # loads the library
    for arguments in ((x, v0, q), (x, None, None), (strided_inputs()["channels_last"].requires_grad_(), None, q)):
        torch.library.opcheck(torch.ops.snn_core.lif.default, (*arguments, *options, 0, True))
        torch.library.opcheck(torch.ops.snn_core.lif.default, (*arguments, *options, 1, False))
    torch.library.opcheck(torch.ops.snn_core.lif_packed.default, (x.detach(), v0.detach(), None, *options, 2))
    torch.library.opcheck(torch.ops.snn_core.lif_inplace.default, (x.detach().clone(), None, None, *options))
    gradients = (normal((3, 4, 5), 2), None, normal((3, 4, 5), 3))
    for state in (v0.detach(), None):
        arguments = (*gradients, x.detach(), state, q.detach(), None, *options, 0)
        torch.library.opcheck(
            torch.ops.snn_core.lif_backward.default, arguments, test_utils=("test_schema", "test_faketensor")
        )
        grad_v0 = torch.ops.snn_core.lif_backward(*arguments)[1]
        assert grad_v0.shape == ((4, 5) if state is not None else (0,))


@needs_native
def test_fake_kernel_gives_the_strides_of_the_real_one() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    lif(torch.zeros(1, 1))
    namespace = torch.ops.snn_core
    options = (None, None, 2.0, 1.0, 0.0, True, False, 0, 2.0)
    for name, x in strided_inputs().items():
        for operator, rest in (
            (namespace.lif, (1, True)),
            (namespace.lif_packed, (x.ndim - 1,)),
            (namespace.lif_packed, (1,)),
        ):
            real = operator(x, *options, *rest)
            with FakeTensorMode() as mode:
                fake = operator(mode.from_tensor(x), *options, *rest)
            for got, want in zip(fake, real, strict=True):
                assert (got.shape, got.stride(), got.dtype) == (want.shape, want.stride(), want.dtype), (name, operator)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_learned_tau_may_have_any_shape_of_one_element(shape: Any, dtype: torch.dtype, backend: str) -> None:
    q = torch.full(shape, 0.5, dtype=dtype, requires_grad=True)
    spikes, _ = lif(normal((3, 4), 0, 2.0), reciprocal_tau=q, backend=backend)
    spikes.sum().backward()
    assert spikes.shape == (3, 4)
    assert q.grad.shape == shape
    assert q.grad.dtype == dtype


@needs_native
def test_the_registered_operator_refuses_what_the_kernel_cannot_read() -> None:
    options = (None, None, 2.0, 1.0, 0.0, True, False, 0, 2.0)
    lif(torch.zeros(1, 1))
    with pytest.raises(RuntimeError, match="float32, bfloat16 or float16"):
        torch.ops.snn_core.lif(torch.zeros(3, 4, dtype=torch.float64), *options, 0, False)
    state, rest = options[:2], (*options[2:], 0)
    for gradient in (torch.zeros(1, 4), torch.zeros(3, 5), torch.zeros(3, 4).bfloat16()):
        with pytest.raises(RuntimeError, match="another shape, dtype or device"):
            torch.ops.snn_core.lif_backward(gradient, None, None, torch.zeros(3, 4), *state, None, *rest)
    with pytest.raises(RuntimeError, match="checkpoints has another shape"):
        torch.ops.snn_core.lif_backward(
            torch.zeros(9, 4), None, None, torch.zeros(9, 4), *state, torch.zeros(3, 4), *options[2:], 4
        )
    with pytest.raises(RuntimeError, match="dim to pack"):
        torch.ops.snn_core.lif_packed(torch.zeros(3, 4), *options, 0)


@needs_native
def test_compiles_without_a_graph_break() -> None:
    def loss(x: Tensor) -> Tensor:
        return (lif(x * 2, tau=3.0)[0] * x).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    x = normal((5, 40), 0).requires_grad_()
    y = x.detach().clone().requires_grad_()
    loss(x).backward()
    compiled(y).backward()
    assert torch.equal(x.grad, y.grad)


@needs_native
def test_double_backward_is_refused() -> None:
    x = normal((3, 4), 0).requires_grad_()
    (gradient,) = torch.autograd.grad(lif(x, backend="cpp")[0].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"tau": 0.5}, "tau is 0.5"),
        ({"tau": 1.0}, "tau is 1.0"),
        ({"tau": math.nan}, "tau is nan"),
        ({"tau": math.inf}, "tau is inf"),
        ({"v_threshold": 0.0}, "v_threshold is 0.0"),
        ({"v_threshold": math.inf}, "v_threshold is inf"),
        ({"v_reset": math.nan}, "v_reset is nan"),
        ({"alpha": math.inf}, "alpha is inf"),
        ({"v0": torch.zeros(4, device="meta")}, "v0 is .* on meta"),
        ({"v0": torch.zeros(4).to_sparse()}, "v0 is .*sparse"),
        ({"reciprocal_tau": torch.ones(1, dtype=torch.int64)}, "reciprocal_tau is torch.int64"),
        ({"reciprocal_tau": 0.5}, "reciprocal_tau is a float"),
        ({"v0": 0.0}, "v0 is a float"),
        ({"tau": "2"}, "tau is '2'"),
        ({"tau": None}, "tau is None"),
        ({"v_reset": "0"}, "v_reset is '0'"),
        ({"v_threshold": torch.ones(4)}, "v_threshold is tensor"),
        ({"surrogate": "step"}, "surrogate"),
        ({"alpha": -1.0}, "alpha"),
        ({"backend": "cuda9"}, "cuda9"),
        ({"v0": torch.zeros(5)}, "v0"),
        ({"v0": torch.zeros(4, dtype=torch.float64)}, "v0"),
        ({"reciprocal_tau": torch.zeros(3)}, "reciprocal_tau"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], word: str) -> None:
    with pytest.raises(ArgumentError, match=word):
        lif(torch.zeros(3, 4), **arguments)


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(3, 4, dtype=torch.int64), torch.zeros(0, 4), torch.zeros(()), torch.zeros(3, 4, device="meta"),
        torch.zeros(3, 4).to_sparse(), [[1.0]],
    ],
)  # fmt: skip
def test_bad_input_is_named(x: Tensor) -> None:
    with pytest.raises(ArgumentError, match="x_seq"):
        lif(x)


def test_a_backend_asked_for_is_never_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendUnavailableError, match="float64"):
        lif(torch.zeros(3, 4, dtype=torch.float64), backend="cpp")
    for backend in ("cuda", "triton"):
        with pytest.raises(BackendUnavailableError, match=f"backend '{backend}' takes CUDA tensors"):
            lif(torch.zeros(3, 4), backend=backend)
    monkeypatch.setenv("SNN_BACKEND", "nonsense")
    with pytest.raises(ArgumentError, match="SNN_BACKEND"):
        lif(torch.zeros(3, 4))
