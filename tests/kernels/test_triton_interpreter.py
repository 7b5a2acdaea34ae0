"""Triton kernels in Triton's interpreter, against the reference: on a machine without a GPU.

Its bfloat16 truncates where a GPU rounds to nearest: compared to within that.
"""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kernels.triton_cases import Cases

CASES = Cases(__name__)
case = CASES.add
SURROGATES = ("atan", "sigmoid", "triangle", "rectangle", "fast_sigmoid")


def normal(shape: tuple[int, ...], seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def run(x: Tensor, backend: str, *, tau: Any = 2.0, outputs: str = "svo", with_v0: bool = True, **options: Any) -> Any:
    """Outputs and gradients of one call. ``outputs``: whose gradients flow: s_seq, v_last, v_seq (o)."""
    from snn_core.kernels import lif

    leaf = x.detach().requires_grad_()
    v0 = (0.5 * normal(x.shape[1:], 1)).requires_grad_() if with_v0 else None
    q = torch.tensor(0.45, requires_grad=True) if tau == "learned" else None
    if q is None:
        options["tau"] = tau
    result = lif(leaf, v0, reciprocal_tau=q, backend=backend, return_v_seq=True, **options)
    gradients = [normal(tuple(t.shape), 2 + i).to(t.dtype) for i, t in enumerate(result)]
    chosen = ["svo".index(o) for o in outputs]
    torch.autograd.backward([result[i] for i in chosen], [gradients[i] for i in chosen])
    found = {"s_seq": result[0], "v_last": result[1], "v_seq": result[2], "x": leaf.grad}
    return found | ({} if v0 is None else {"v0": v0.grad}) | ({} if q is None else {"reciprocal_tau": q.grad})


def assert_same(x: Tensor, **options: Any) -> None:
    expected, actual = run(x, "reference", **options), run(x, "triton", **options)
    half = {torch.bfloat16: 2**-7, torch.float16: 2**-10}.get(x.dtype, 0.0)
    for name, want in expected.items():
        got = actual[name]
        assert got.dtype == want.dtype, name
        if name in ("s_seq", "v_last") or (name == "v_seq" and x.dtype != torch.bfloat16):
            assert torch.equal(got, want), name
        elif name == "reciprocal_tau":
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5 * math.sqrt(x.numel()))
        else:
            rtol = max(1e-5, half if got.dtype == x.dtype else 0.0)
            torch.testing.assert_close(got, want, rtol=rtol, atol=max(2e-6, half), msg=lambda m, n=name: f"{n}: {m}")


def steps(T: int, dtype: torch.dtype, tau: Any) -> None:
    assert_same(normal((T, 3, 11), 0, 2.0).to(dtype), tau=tau, v_reset=0.1, surrogate="sigmoid")


for _T in (1, 16, 17, 35):
    case(steps, _T, torch.float32, 2.0)
case(steps, 17, torch.float16, 3.3)
case(steps, 17, torch.bfloat16, 3.3)
case(steps, 35, torch.float32, "learned")
case(steps, 35, torch.float16, "learned")


def options(*chosen: Any) -> None:
    tau, surrogate, v_reset, decay_input, detach_reset, outputs, with_v0 = chosen
    x = normal((3, 2, 10), 0, 2.0)
    assert_same(
        x, tau=tau, surrogate=surrogate, v_reset=v_reset, decay_input=decay_input and tau != math.inf,
        detach_reset=detach_reset, outputs=outputs, with_v0=with_v0, alpha=1.7, v_threshold=0.8,
    )  # fmt: skip


_EVERY = list(
    itertools.product(
        (2.0, 3.3, math.inf, "learned"), SURROGATES, (0.0, -0.2, None), (True, False), (True, False),
        ("svo", "s", "v", "o"), (True, False),
    )
)  # fmt: skip
for _chosen in random.Random(0).sample(_EVERY, 28):
    case(options, *_chosen)


def layout(name: str) -> None:
    base = normal((4, 3, 6, 5, 8), 0, 2.0)
    x = {
        "batch_first": base.transpose(0, 1),
        "channels_last": base.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (4, 3)),
        "time_last": base.permute(4, 1, 2, 3, 0),
        "sliced": base[..., ::2],
        "sliced_outer": base[:, :, 1:5:2],
        "unaligned": base.flatten()[3:].as_strided((4, 3, 50), (152, 50, 1)),
        "expanded_over_time": base[:1].expand(5, -1, -1, -1, -1),
        "expanded_over_neurons": base[:, :1].expand(-1, 5, -1, -1, -1),
        "scalar_step": base[:, 0, 0, 0, 0],
        "five_dimensions": normal((3, 4, 4, 4, 4, 4), 0, 2.0)[:, ::2, ::2, ::2, ::2, ::2],
    }[name]
    assert_same(x, tau=3.0)
    assert_same(x.half(), tau="learned")


for _name in (
    "batch_first", "channels_last", "time_last", "sliced", "sliced_outer", "unaligned", "expanded_over_time",
    "expanded_over_neurons", "scalar_step", "five_dimensions",
):  # fmt: skip
    case(layout, _name)


@case
def gradients_of_other_layouts() -> None:
    from snn_core.kernels import lif

    x = normal((4, 3, 6, 8), 0, 2.0)
    expanded = torch.tensor(0.5).expand(4, 3, 6, 8)
    for gradient in (normal((4, 3, 8, 6), 1).transpose(2, 3), normal((3, 4, 6, 8), 1).transpose(0, 1), expanded):
        found = []
        for backend, given in (("reference", gradient), ("triton", gradient), ("triton", gradient.contiguous())):
            leaf = x.clone().requires_grad_()
            lif(leaf, backend=backend)[0].backward(given)
            found.append(leaf.grad)
        torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)
        assert torch.equal(found[1], found[2])


@case
def more_neurons_than_a_program_takes() -> None:
    assert_same(normal((3, 2500), 0, 2.0), tau="learned")


@case
def configurations_do_not_change_a_bit() -> None:
    from snn_core.kernels.lif import triton as module
    from snn_core.kernels.native.triton_launch import Config

    x = normal((5, 700), 0, 2.0)
    wanted = run(x, "triton", tau="learned"), run(x, "triton")
    before, module.INTERPRETER_CONFIG = module.INTERPRETER_CONFIG, Config(1)
    try:
        found = run(x, "triton", tau="learned"), run(x, "triton")
    finally:
        module.INTERPRETER_CONFIG = before
    for a, b in zip(found, wanted, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in b)


@case
def wide_offsets() -> None:
    """The 64-bit form of the strided walk, which small tensors do not need."""
    from snn_core.kernels.native import triton_launch

    before = triton_launch.reaches_beyond_32_bits
    triton_launch.plan_walk.cache_clear()
    triton_launch.reaches_beyond_32_bits = lambda *_: True
    try:
        assert triton_launch.plan_walk((2, 3), (3, 1), ((1, 2),)).constants["WIDE"]
        layout("batch_first")
        layout("time_last")
        packed("permuted", 2, torch.float32)
        packed("contiguous", 4, torch.float16)
        spike_pack(torch.float32)
    finally:
        triton_launch.reaches_beyond_32_bits = before
        triton_launch.plan_walk.cache_clear()


@case
def learned_tau_over_many_steps() -> None:
    """Small terms between large ones that cancel: a float32 sum over all steps would lose them. With 1 / tau = 1 and no
    spikes the gradient of h is that of v, and d h / d reciprocal_tau is x[t] - x[t - 1], here 1."""
    x = (torch.arange(100.0) + 1)[:, None].repeat(1, 3)
    gradient = torch.zeros(100, 3)
    gradient[0], gradient[16:96], gradient[99] = -(2.0**26), 1.0, 2.0**26
    chosen = (2.0, 1e30, 0.0, True, True, 3, 2.0)
    found = torch.ops.snn_core.lif_triton_backward(None, None, gradient, x, None, torch.tensor(1.0), None, *chosen, 0)
    assert found[2].item() == 3 * 80


@case
def checkpoints() -> None:
    """v at the borders is that of v_seq; gradients are the same bits with them, without, or with others."""
    namespace, x, v0 = torch.ops.snn_core, normal((35, 3, 8), 0, 2.0), normal((3, 8), 1)
    chosen = (2.0, 1.0, 0.0, True, False, 0, 2.0)
    gradient, found = normal((35, 3, 8), 2), []
    for every in (16, 5, 35, 0):
        _, _, v_seq, kept = namespace.lif_triton(x, v0, None, *chosen, every, True)
        if every:
            assert torch.equal(kept, v_seq[every - 1 : 34 : every])
        given = kept if every else None
        found.append(namespace.lif_triton_backward(gradient, None, None, x, v0, None, given, *chosen, every))
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(other, found[0], strict=True))


@case
def non_finite_and_extreme() -> None:
    from snn_core.kernels import lif

    x = torch.tensor([math.nan, math.inf, -math.inf, -0.0, 1e38, 1e-45, 1.0, 2.0]).repeat(5, 1)
    for v_reset, surrogate in itertools.product((0.0, None), SURROGATES):
        found = []
        for backend in ("reference", "triton"):
            leaf = x.clone().requires_grad_()
            s_seq, v_last = lif(leaf, v_reset=v_reset, surrogate=surrogate, backend=backend)
            s_seq.sum().backward()
            found.append((s_seq.detach(), v_last.detach(), leaf.grad))
        assert torch.equal(found[0][0], found[1][0])
        torch.testing.assert_close(found[0][1], found[1][1], rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(found[0][2][:, 3:], found[1][2][:, 3:], rtol=1e-5, atol=1e-6)
        if v_reset is not None:
            assert not found[1][2][:, 1].isnan().any(), "the gradient at +inf"


@case
def empty() -> None:
    from snn_core.kernels import lif

    x = torch.zeros(3, 0, 2, requires_grad=True)
    s_seq, v_last = lif(x, backend="triton")
    s_seq.sum().backward()
    assert (s_seq.shape, v_last.shape, x.grad.shape) == ((3, 0, 2), (0, 2), (3, 0, 2))


def packed(name: str, dim: int, dtype: torch.dtype) -> None:
    from snn_core.kernels import lif
    from snn_core.kernels.lif.schema import dense_strides

    base = normal((3, 3, 16, 4, 11), 0, 2.0).to(dtype)
    x = {"contiguous": base, "permuted": base.permute(0, 1, 3, 4, 2), "sliced": base[:, :, :, :, 1:9]}[name]
    for v0 in (None, normal(x.shape[1:], 1).transpose(1, 2).contiguous().transpose(1, 2)):
        expected = lif(x, v0, tau=3.3, backend="reference", pack_spikes_dim=dim)
        actual = lif(x, v0, tau=3.3, backend="triton", pack_spikes_dim=dim)
        assert actual[0].dtype == torch.uint8
        step = actual[0].shape[1:]
        strides = (math.prod(step), *dense_strides(step, torch.empty_like(x[0]).stride()))
        assert actual[0].stride() == strides
        assert torch.equal(actual[0], expected[0])
        assert torch.equal(actual[1], expected[1])


for _name, _dim in itertools.product(("contiguous", "permuted", "sliced"), (1, 2, 4)):
    case(packed, _name, _dim, torch.float16 if _dim == 4 else torch.float32)


@case
def inplace() -> None:
    from snn_core.kernels import lif

    base = normal((5, 6, 4, 8), 0, 2.0)
    deep = normal((3, 4, 4, 4, 4, 4), 0, 2.0)[:, ::2, ::2, ::2, ::2, ::2]
    for x in (base, base.transpose(0, 1), base[..., ::2], base.permute(0, 2, 3, 1), base.half(), deep):
        whole = x._base if x._base is not None else x
        untouched = whole.clone()
        expected_s, expected_v = lif(x.clone(), backend="reference")
        copy = whole.clone().as_strided(x.shape, x.stride(), x.storage_offset())
        s_seq, v_last = lif(copy, backend="triton", inplace=True)
        assert s_seq.data_ptr() == copy.data_ptr()
        assert torch.equal(s_seq, expected_s)
        assert torch.equal(v_last, expected_v)
        whole_after = copy._base
        mine = torch.zeros_like(whole, dtype=torch.bool)
        mine.as_strided(x.shape, x.stride(), x.storage_offset()).fill_(True)
        assert torch.equal(whole_after[~mine], untouched[~mine]), "wrote beside x_seq"
    for shared in (base[:1].expand(4, -1, -1, -1), base.as_strided((4, 8), (4, 1))):
        with pytest.raises(RuntimeError, match="share memory"):
            torch.ops.snn_core.lif_triton_inplace(shared, None, None, 2.0, 1.0, 0.0, True, False, 0, 2.0)


def spike_pack(dtype: torch.dtype) -> None:
    from snn_core.kernels.lif.schema import dense_strides
    from snn_core.kernels.spike_pack import pack_spikes, unpack_spikes

    base = (normal((3, 16, 4, 11), 0) > 0).to(dtype)
    base[0, 0, 0, :3] = torch.tensor([math.nan, -0.0, -2.0])
    deep = (normal((4, 4, 4, 4, 4), 0) > 0).to(dtype)[::2, ::2, ::2, ::2, ::2]
    for s in (base, base.permute(0, 2, 3, 1), base[..., 1:9], base[:, :, :1], base.flatten(), deep):
        for dim in range(s.ndim):
            expected = pack_spikes(s, dim, backend="reference")
            actual = pack_spikes(s, dim, backend="triton")
            assert torch.equal(actual, expected), (s.shape, dim)
            assert list(actual.stride()) == dense_strides(actual.shape, s.stride()), (s.shape, dim)
            again = unpack_spikes(actual, s.shape[dim], dim, dtype=dtype, backend="triton")
            assert torch.equal(again, (s != 0).to(dtype)), (s.shape, dim)
            assert list(again.stride()) == dense_strides(again.shape, actual.stride()), (s.shape, dim)


case(spike_pack, torch.float32)
case(spike_pack, torch.bfloat16)


@case
def opcheck() -> None:
    """Schema, autograd registration and fake kernels fit what the operators do."""
    namespace, chosen = torch.ops.snn_core, (2.0, 1.0, 0.0, True, False, 0, 2.0)
    x = normal((3, 8, 4, 2), 0).transpose(1, 2)
    for every in (0, 2):
        torch.library.opcheck(
            namespace.lif_triton.default, (x.detach().requires_grad_(), None, None, *chosen, every, True),
            test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
        )  # fmt: skip
    tests = {"test_utils": ("test_schema", "test_faketensor")}
    torch.library.opcheck(
        namespace.lif_triton_backward.default, (x, None, None, x, None, torch.tensor(0.5), None, *chosen, 0), **tests
    )
    torch.library.opcheck(namespace.lif_triton_packed.default, (x, None, None, *chosen, 2), **tests)
    torch.library.opcheck(namespace.lif_triton_inplace.default, (x.clone(), None, None, *chosen), **tests)
    torch.library.opcheck(namespace.spike_pack_triton.default, (x, 2), **tests)
    torch.library.opcheck(namespace.spike_unpack_triton.default, (x.to(torch.uint8), 63, 1, torch.half), **tests)


@case
def planted_failure() -> None:
    """Not a test: shows that a difference is seen and reported."""
    x = normal((3, 40), 0, 2.0)
    assert torch.equal(run(x, "triton", tau=2.0)["v_last"], run(x, "reference", tau=2.001)["v_last"]), "planted"


@pytest.fixture(scope="module")
def reports() -> dict[str, str]:
    return CASES.reports()


@pytest.mark.parametrize("name", CASES.names)
def test_triton_equals_reference(name: str, reports: dict[str, str]) -> None:
    assert not reports[name], reports[name]


def test_the_harness_reports_a_difference(reports: dict[str, str]) -> None:
    assert "AssertionError: planted" in reports["planted_failure"]
