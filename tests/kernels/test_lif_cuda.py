"""The CUDA kernels of lif and spike_pack against the C++ operators.

Two implementations of one text: compiled by the C++ compiler and run thread by thread on CPU tensors (``emulated``, bit
for bit equal to the C++ operators), and on a GPU where there is one (equal spikes and potentials; gradients to
rounding, since surrogates divide approximately there).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from snn_core.kernels.lif import reference, schema  # noqa: F401  (defines the operators)
from snn_core.kernels.native import cpu_library
from snn_core.kernels.spike_pack import ops  # noqa: F401
from tests.kernels import cuda_implementations

pytestmark = pytest.mark.skipif(not cpu_library().available, reason=f"native library {cpu_library().reason}")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CPP = torch.ops.snn_core
DEFAULTS = (
    2.0,
    1.0,
    0.0,
    True,
    False,
    0,
    2.0,
)  # tau, v_threshold, v_reset, decay_input, detach_reset, surrogate, alpha
#: Charging by multiplication, by division, without decay, and not at all (IF).
CHARGES = [(2.0, True), (3.0, True), (3.0, False), (float("inf"), False)]
#: One step, less and more than the short chunk, chunk borders and their neighbours, several chunks.
STEPS = [1, 2, 4, 5, 16, 17, 33, 50]
#: Neurons that take the kernels with wide accesses: every multiprocessor must have enough, and emulation has one.
WIDE = {"emulated": 1024, "cuda": 1024 * 264}


@dataclass(frozen=True)
class Implementation(cuda_implementations.Implementation):
    exact: bool
    wide: int


@pytest.fixture(scope="module", params=cuda_implementations.DEVICES)
def cuda(request: pytest.FixtureRequest) -> Implementation:
    of = cuda_implementations.implementation(request.param)
    return Implementation(of.namespace, of.device, of.emulated, WIDE[request.param])


def normal(shape: Sequence[int], seed: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def assert_equal(actual: Sequence[Tensor], expected: Sequence[Tensor], names: str) -> None:
    """Equal values (NaN equals NaN), dtypes and strides."""
    for a, e, name in zip(actual, expected, names.split(), strict=True):
        assert (a.dtype, a.shape, a.stride()) == (e.dtype, e.shape, e.stride()), name
        torch.testing.assert_close(a, e, rtol=0, atol=0, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}")


def assert_gradients(implementation: Implementation, actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Of x and v0, then the learned tau, whose terms are summed in another order."""
    if implementation.exact:
        assert_equal(actual[:2], expected[:2], "grad_x grad_v0")
    else:
        for a, e in zip(actual[:2], expected[:2], strict=True):
            tolerance = {"rtol": 1e-5, "atol": 2e-6} if a.dtype == torch.float32 else {"rtol": 2e-2, "atol": 1e-3}
            torch.testing.assert_close(a, e, equal_nan=True, **tolerance)
    torch.testing.assert_close(actual[2], expected[2], rtol=1e-6 if implementation.exact else 1e-5, atol=0)


def assert_matches_cpp(
    implementation: Implementation, x: Tensor, options: tuple[Any, ...] = DEFAULTS, **changes: Any
) -> None:
    """Forward and backward of both, with random gradients of all outputs unless ``changes`` has others."""
    shape, dtype = x.shape, x.dtype
    v0 = changes.get("v0", normal(shape[1:], 1))
    q = changes.get("reciprocal_tau")
    every = changes.get("checkpoint_every", 16)
    grads = changes.get("grads", (normal(shape, 2, dtype), normal(shape[1:], 3), normal(shape, 4, dtype)))
    actual = implementation("lif", x, v0, q, *options, every, True)
    expected = CPP.lif(x, v0, q, *options, every, True)
    assert_equal(actual, expected, "s_seq v_last v_seq checkpoints")
    kept = actual[3] if changes.get("pass_checkpoints", True) else None
    assert_gradients(
        implementation,
        implementation("lif_backward", *grads, x, v0, q, kept, *options, every),
        CPP.lif_backward(*grads, x, v0, q, expected[3], *options, every),
    )


@pytest.mark.parametrize("surrogate", range(5))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_options_and_sizes(cuda: Implementation, dtype: torch.dtype, surrogate: int) -> None:
    # One neuron, odd, wide, odd, wide and more threads than the emulated grid has at once.
    sizes = itertools.cycle(itertools.product(STEPS, (1, 7, cuda.wide, 1003, 8 * 1032)))
    for (tau, decay), v_reset, detach in itertools.product(CHARGES, (0.0, None, -0.3), (True, False)):
        for _ in range(3):
            steps, width = next(sizes)
            x = normal((steps, width), steps * width, dtype, scale=2.0)
            assert_matches_cpp(cuda, x, (tau, 1.0, v_reset, decay, detach, surrogate, 1.5))


def gapped(x: Tensor) -> Tensor:
    wider = torch.zeros(*x.shape[:-1], x.shape[-1] + 5, dtype=x.dtype)
    wider[..., : x.shape[-1]] = x
    return wider[..., : x.shape[-1]]


def channels_last(x: Tensor) -> Tensor:
    return x.movedim(-3, -1).contiguous().movedim(-1, -3)


#: Layouts of [T, B, C, H, W]: what a layer may hand over.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels_last": channels_last,
    "batch_outermost": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "time_innermost": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "gapped": gapped,
    "every_second": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "misaligned": lambda x: torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape),
    "one_for_all": lambda x: x[:1, :1, :1, :1, :1].expand(x.shape),
    "one_a_channel": lambda x: x[..., :1, :1].expand(x.shape),
}


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(cuda: Implementation, layout: str, dtype: torch.dtype) -> None:
    shape = (18, cuda.wide // 256, 8, 4, 8)
    x, change = normal(shape, 0, dtype, scale=2.0), LAYOUTS[layout]
    grads = (normal(shape, 2, dtype), normal(shape[1:], 3), normal(shape, 4, dtype))
    assert_matches_cpp(cuda, change(x), grads=grads)
    everything = (change(grads[0]), change(grads[1][None])[0], change(grads[2]))
    assert_matches_cpp(cuda, x, grads=everything)
    assert_matches_cpp(cuda, change(x), v0=change(normal((1, *shape[1:]), 1))[0], grads=everything)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_absent_inputs(cuda: Implementation, dtype: torch.dtype) -> None:
    for width in (cuda.wide, 37):
        x = normal((20, width), 0, dtype, scale=2.0)
        grads = (normal(x.shape, 2, dtype), normal(x.shape[1:], 3), normal(x.shape, 4, dtype))
        for kept in itertools.product((True, False), repeat=3):
            assert_matches_cpp(
                cuda, x, v0=None, grads=tuple(g if keep else None for g, keep in zip(grads, kept, strict=True))
            )
        s_seq, v_last, v_seq, checkpoints = cuda("lif", x, None, None, *DEFAULTS, 0, False)
        assert_equal((s_seq, v_last), CPP.lif(x, None, None, *DEFAULTS, 0, False)[:2], "s_seq v_last")
        assert v_seq.shape == checkpoints.shape == (0,)


@pytest.mark.parametrize("every", [0, 1, 7, 16, 40])
@pytest.mark.parametrize("wide", [True, False])
def test_checkpoints(cuda: Implementation, every: int, wide: bool) -> None:
    x = normal((50, cuda.wide if wide else 33), 0, scale=2.0)
    _, _, v_seq, checkpoints = cuda("lif", x, None, None, *DEFAULTS, every, True)
    if every > 0:
        assert torch.equal(checkpoints, v_seq[every - 1 : -1 : every])
    assert_matches_cpp(cuda, x, checkpoint_every=every)
    assert_matches_cpp(cuda, x, checkpoint_every=every, pass_checkpoints=False)


@pytest.mark.parametrize("surrogate", range(5))
def test_nan_and_infinity(cuda: Implementation, surrogate: int) -> None:
    for width in (cuda.wide, 61):
        x = normal((20, width), 0, scale=2.0)
        for index, value in enumerate((float("nan"), float("inf"), float("-inf"), 3e38, -3e38, -0.0, 1e-40)):
            x[index::9, index::11] = value
        for v_reset in (0.0, None):
            assert_matches_cpp(cuda, x, (2.0, 1.0, v_reset, True, False, surrogate, 2.0))


def test_nan_does_not_come_through_spikes_that_have_no_gradient(cuda: Implementation) -> None:
    options = (2.0, 1.0, None, True, True, 0, 2.0)  # soft reset, detach_reset
    for width in (cuda.wide, 61):
        x, gradient = normal((20, width), 0, scale=2.0), normal((width,), 1)
        x[5::6, ::3] = float("nan")
        leaf = x.clone().requires_grad_()
        reference.lif(leaf, None, tau=2.0, v_reset=None, detach_reset=True)[1].backward(gradient)
        v0 = torch.zeros(width)
        grad_x, grad_v0, _ = cuda("lif_backward", None, gradient, None, x, v0, None, None, *options, 0)
        assert leaf.grad is not None
        assert not leaf.grad.isnan().any()
        torch.testing.assert_close(grad_x, leaf.grad, rtol=1e-6, atol=0)
        assert not grad_v0.isnan().any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 9), (4, 4096), (33, 1003), (18, 65536), (2, 300000)], ids=str)
def test_learned_tau(cuda: Implementation, shape: tuple[int, int], dtype: torch.dtype) -> None:
    x, q = normal(shape, 0, dtype, scale=2.0), torch.tensor(0.3)
    grads = (normal(shape, 2, dtype).abs(), normal(shape[1:], 3), None)
    for decay in (True, False):
        assert_matches_cpp(cuda, x, (2.0, 1.0, None, decay, True, 0, 2.0), reciprocal_tau=q, grads=grads)
    arguments = (*grads, x, None, q, None, *DEFAULTS, 0)
    assert torch.equal(cuda("lif_backward", *arguments)[2], cuda("lif_backward", *arguments)[2])


PACKED_CASES = [  # shape, dim, layout
    ((5, 1024), 1, "contiguous"), ((3, 33), 1, "contiguous"), ((1, 5), 1, "contiguous"),
    ((4, 3, 4, 16, 8), 4, "contiguous"), ((4, 3, 4, 16, 8), 2, "contiguous"), ((4, 3, 16, 4, 5), 2, "channels_last"),
    ((4, 3, 13, 4, 5), 2, "channels_last"), ((4, 3, 16, 4, 5), 3, "channels_last"), ((4, 2, 3, 16, 6), 1, "gapped"),
    ((4, 2, 3, 4, 16), 4, "batch_outermost"), ((4, 2, 3, 4, 16), 4, "misaligned"), ((4, 2, 3, 4, 17), 4, "gapped"),
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "dim", "layout"), PACKED_CASES, ids=str)
def test_packed(cuda: Implementation, shape: tuple[int, ...], dim: int, layout: str, dtype: torch.dtype) -> None:
    x = LAYOUTS[layout](normal(shape, 0, dtype, scale=2.0))
    for v0, q, options in (
        (normal(shape[1:], 1), None, DEFAULTS),
        (None, torch.tensor(0.3), (2.0, 1.0, None, False, False, 0, 2.0)),
        (torch.tensor(0.1).expand(shape[1:]), None, (3.0, 1.0, -0.3, True, False, 0, 2.0)),
    ):
        arguments = (x, v0, q, *options, dim)
        assert_equal(cuda("lif_packed", *arguments), CPP.lif_packed(*arguments), "packed v_last")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if not name.startswith("one_")])
def test_inplace(cuda: Implementation, layout: str, dtype: torch.dtype) -> None:
    x, v0 = LAYOUTS[layout](normal((6, 4, 8, 4, 8), 0, dtype, scale=2.0)), normal((4, 8, 4, 8), 1)
    expected = CPP.lif(x, v0, None, *DEFAULTS, 0, False)
    overwritten = cuda.place(x)
    v_last = cuda.namespace.lif_inplace(overwritten, cuda.place(v0), None, *DEFAULTS)
    assert torch.equal(overwritten.cpu(), expected[0])
    assert_equal((v_last.cpu(),), (expected[1],), "v_last")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "dim", "layout"), [*PACKED_CASES, ((16, 5), 0, "contiguous")], ids=str)
def test_spike_pack(cuda: Implementation, shape: tuple[int, ...], dim: int, layout: str, dtype: torch.dtype) -> None:
    spikes = (normal(shape, 0) > 0.5).to(dtype)
    spikes[0, 0], spikes[-1, -1] = -0.0, float("nan")
    spikes = LAYOUTS[layout](spikes)
    packed = CPP.spike_pack(spikes, dim)
    assert_equal(cuda("spike_pack", spikes, dim), (packed,), "packed")
    arguments = (packed, shape[dim], dim, dtype)
    assert_equal(cuda("spike_unpack", *arguments), (CPP.spike_unpack(*arguments),), "unpacked")


def test_nothing_to_do(cuda: Implementation) -> None:
    x, q = torch.zeros(3, 0, 8), torch.tensor(0.3)
    assert_matches_cpp(cuda, x, reciprocal_tau=q)
    assert [t.shape for t in cuda("lif_packed", x, None, None, *DEFAULTS, 2)] == [(3, 0, 1), (0, 8)]
    assert cuda("spike_pack", x, 1)[0].shape == (3, 0, 8)


def test_refusals(cuda: Implementation) -> None:
    x = torch.zeros(3, 8)
    allowed = (x, None, None, *DEFAULTS)
    for name, arguments, message in (
        ("lif", (x.double(), *allowed[1:], 0, False), "x_seq must be float32"),
        ("lif", (x[:0], *allowed[1:], 0, False), "at least 1"),
        ("lif", (x, torch.zeros(7), *allowed[2:], 0, False), "v0 has another shape"),
        ("lif", (x, None, torch.zeros(2), *DEFAULTS, 0, False), "reciprocal_tau"),
        ("lif_inplace", (x[:1].expand(3, 8), *allowed[1:]), "share memory"),
        ("lif_inplace", (x.as_strided((3, 8), (4, 1)), *allowed[1:]), "share memory"),
        ("lif_packed", (*allowed, 0), "dim"),
        ("lif_backward", (x.half(), None, None, x, None, None, None, *DEFAULTS, 0), "grad_s has another"),
        ("lif_backward", (None, None, None, torch.zeros(40, 8), None, None, x, *DEFAULTS, 16), "checkpoints has"),
        ("spike_pack", (x.int(), 1), "float32, bfloat16 or float16"),
        ("spike_unpack", (torch.zeros(3, 2, dtype=torch.uint8), 8, 1, torch.float32), "ceil"),
    ):
        with pytest.raises(RuntimeError, match=message):
            cuda(name, *arguments)
