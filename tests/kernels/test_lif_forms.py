"""Forms of the LIF operator: 16-bit storage, checkpoints of the potential, packed spikes, in place."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from snn_core.errors import ArgumentError
from snn_core.kernels import lif, pack_spikes, unpack_spikes
from snn_core.kernels.lif.ops import CPU_CHECKPOINT_EVERY
from snn_core.kernels.native import cpu_library
from snn_core.kernels.spike_pack import reference as pack_reference

needs_native = pytest.mark.skipif(not cpu_library().available, reason=f"native library {cpu_library().reason}")
OPTIONS = (2.5, 1.0, 0.0, True, False, 0, 2.0)
HALF_DTYPES = [torch.bfloat16, torch.float16]


def normal(shape: Any, seed: int, scale: float = 2.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def gradients(x: Tensor, backend: str, **options: Any) -> tuple[Tensor, Tensor]:
    leaf = x.detach().requires_grad_()
    s_seq, _ = lif(leaf, backend=backend, tau=2.5, **options)
    s_seq.backward(normal(s_seq.shape, 1).to(s_seq.dtype))
    assert leaf.grad is not None
    return s_seq.detach(), leaf.grad


# Long sequences: the potential is saved at chunk borders.


@needs_native
@pytest.mark.parametrize("steps", [CPU_CHECKPOINT_EVERY + extra for extra in (0, 1, CPU_CHECKPOINT_EVERY, 77)])
@pytest.mark.parametrize("v_reset", [0.0, None])
def test_gradients_through_checkpoints_equal_the_reference(steps: int, v_reset: float | None) -> None:
    x = normal((steps, 33), 0)
    expected, actual = gradients(x, "reference", v_reset=v_reset), gradients(x, "cpp", v_reset=v_reset)
    assert torch.equal(actual[0], expected[0])
    torch.testing.assert_close(actual[1], expected[1], rtol=1e-5, atol=2e-6)


@needs_native
@pytest.mark.parametrize("every", [1, 4, 16, 40])
def test_checkpoints_are_the_potentials_at_the_borders_and_change_no_gradient(every: int) -> None:
    x, v0 = normal((41, 3, 700), 0), normal((3, 700), 1)
    lif(x)
    s_seq, _, v_seq, checkpoints = torch.ops.snn_core.lif(x, v0, None, *OPTIONS, every, True)
    assert torch.equal(checkpoints, v_seq[every - 1 : -1 : every])
    arguments = (normal(s_seq.shape, 2), normal(v0.shape, 3), None, x, v0, None)
    saved = torch.ops.snn_core.lif_backward(*arguments, checkpoints, *OPTIONS, every)
    for absent in (None, torch.empty(0)):
        found = torch.ops.snn_core.lif_backward(*arguments, absent, *OPTIONS, every)
        assert all(torch.equal(a, b) for a, b in zip(saved, found, strict=True))


@needs_native
def test_nothing_is_saved_where_no_gradient_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the backward keeps is x and the potentials at the borders, and only where there will be a backward."""
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    x = normal((2 * CPU_CHECKPOINT_EVERY + 1, 50), 0).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        lif(x)
        assert sorted(kept) == [2 * 50, x.numel()]
        with torch.no_grad():
            lif(x)
        lif(x.detach())
    assert len(kept) == 2


# Four steps have a backward of their own.


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("surrogate", ["atan", "sigmoid", "triangle", "rectangle", "fast_sigmoid"])
@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize("v_reset", [0.0, -0.3, None])
def test_four_steps_give_the_bits_of_the_general_backward(
    dtype: torch.dtype, surrogate: str, decay_input: bool, v_reset: float | None
) -> None:
    """A gradient that is not contiguous takes the general path."""
    x, v0 = normal((4, 3, 333), 0).to(dtype), normal((3, 333), 1)
    for detach_reset in (True, False):
        options = {"decay_input": decay_input, "v_reset": v_reset, "detach_reset": detach_reset}
        results = []
        for strided in (False, True):
            leaf, state = x.clone().requires_grad_(), v0.clone().requires_grad_()
            s_seq, v_last = lif(leaf, state, surrogate=surrogate, backend="cpp", **options)
            gradient = normal((*s_seq.shape, 2), 2).to(dtype)[..., 0]
            gradients = [gradient if strided else gradient.contiguous(), normal(v_last.shape, 3)]
            torch.autograd.backward([s_seq, v_last], gradients)
            results.append((leaf.grad, state.grad))
        assert torch.equal(results[0][0], results[1][0])
        assert torch.equal(results[0][1], results[1][1])


@needs_native
@pytest.mark.parametrize("width", [1, 15, 16, 31, 4096, 40_007])
def test_four_steps_of_every_width_equal_the_reference(width: int) -> None:
    x = normal((4, width), 0)
    for options in ({}, {"decay_input": False, "tau": math.inf, "v_reset": None}):
        results = []
        for backend in ("reference", "cpp"):
            leaf = x.clone().requires_grad_()
            lif(leaf, backend=backend, **options)[0].backward(normal(x.shape, 1))
            results.append(leaf.grad)
        torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=2e-6)


# 16-bit storage.


@needs_native
@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=str)
def test_every_16_bit_input_is_read_exactly(dtype: torch.dtype) -> None:
    """An IF neuron with an unreachable threshold returns its input as its potential."""
    x = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16).view(dtype).unsqueeze(0)
    for values in (x, torch.stack([x, x], -1)[..., 0]):  # contiguous, and with stride 2
        _, v_last = lif(values, tau=math.inf, decay_input=False, v_threshold=3e38, backend="cpp")
        finite = values[0].float().abs() < 3e38
        assert torch.equal(v_last[finite], values[0].float()[finite])
        assert v_last[values[0].isnan()].isnan().all()


@needs_native
@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=str)
def test_potentials_are_rounded_to_nearest_even_like_torch(dtype: torch.dtype) -> None:
    bits = torch.randint(-(1 << 31), (1 << 31) - 1, (200_003,), generator=torch.Generator().manual_seed(0))
    halves = torch.arange(0, 1 << 15, dtype=torch.int16).view(dtype).float()
    ties = (halves[:-1] + halves[1:]) / 2  # half way between neighbours
    special = torch.tensor([0.0, -0.0, 65504.0, 65519.996, 65520.0, -65520.0, 1e-8, 6e-8])
    v0 = torch.cat([bits.to(torch.int32).view(torch.float32), ties, -ties, special])
    v0 = v0[v0.abs() < 3e38]
    x = torch.zeros(1, v0.numel(), dtype=dtype)
    _, _, v_seq = lif(x, v0, tau=math.inf, decay_input=False, v_threshold=3e38, backend="cpp", return_v_seq=True)
    assert torch.equal(v_seq[0], v0.to(dtype))


@needs_native
@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(5, 700), (3, 2, 7), (70, 65)], ids=str)
def test_16_bit_storage_computes_in_float32(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = normal(shape, 0).to(dtype)
    stored, exact = gradients(x, "cpp"), gradients(x, "reference")
    assert stored[0].dtype == stored[1].dtype == dtype
    assert torch.equal(stored[0], exact[0])
    # Both round float32 to the storage once; the order of the sums behind it differs in the last bit.
    torch.testing.assert_close(stored[1], exact[1], rtol=1e-2 if dtype == torch.bfloat16 else 2e-3, atol=1e-6)


# Packed spikes.


def packable() -> dict[str, tuple[Tensor, int]]:
    images = normal((6, 16, 5, 7), 0).contiguous(memory_format=torch.channels_last).unflatten(0, (3, 2))
    return {
        "last": (normal((4, 3, 37), 0), -1),
        "whole_bytes": (normal((4, 3, 64), 0), -1),
        "one_byte_rows": (normal((4, 9, 5), 0), -1),
        "channels_last": (images, 2),
        "first_of_contiguous": (normal((4, 19, 6), 0), 1),
        "middle": (normal((3, 4, 24, 5), 0), 2),
        "transposed": (normal((5, 4, 40), 0).transpose(0, 1), 2),
        "long": (normal((2, 3, 5001), 0), -1),
        "single": (normal((3, 1), 0), -1),
        "one_step": (normal((1, 8), 0), -1),
        "sliced": (normal((3, 4, 48), 0)[..., ::2], -1),
        "empty": (torch.zeros(3, 0, 8), -1),
        "nothing_to_pack": (torch.zeros(3, 4, 0), -1),
    }


@needs_native
@pytest.mark.parametrize("case", list(packable()))
@pytest.mark.parametrize("dtype", [torch.float32, *HALF_DTYPES], ids=str)
def test_packed_spikes_are_the_spikes(case: str, dtype: torch.dtype) -> None:
    x, dim = packable()[case]
    x = x.to(dtype)
    v0 = normal(x.shape[1:], 5)
    for state in (None, v0):
        s_seq, v_last = lif(x, state, tau=2.5, backend="cpp")
        packed, packed_v_last = lif(x, state, tau=2.5, backend="cpp", pack_spikes_dim=dim)
        assert torch.equal(packed, pack_reference.pack_spikes(s_seq, dim))
        assert torch.equal(packed_v_last, v_last)
        by_reference, _ = lif(x, state, tau=2.5, backend="reference", pack_spikes_dim=dim)
        assert torch.equal(packed, by_reference)


@needs_native
@pytest.mark.parametrize("case", list(packable()))
@pytest.mark.parametrize("dtype", [torch.float32, *HALF_DTYPES], ids=str)
def test_pack_and_unpack(case: str, dtype: torch.dtype) -> None:
    x, dim = packable()[case]
    s = (x > 0.5).to(dtype)
    packed = pack_spikes(s, dim, backend="cpp")
    assert packed.dtype == torch.uint8
    assert torch.equal(packed, pack_reference.pack_spikes(s, dim))
    restored = unpack_spikes(packed, s.shape[dim], dim, dtype=dtype, backend="cpp")
    assert restored.dtype == dtype
    assert torch.equal(restored, s)
    assert torch.equal(pack_reference.unpack_spikes(packed, s.shape[dim], dim, dtype), s)


@needs_native
def test_packing_counts_nan_and_every_non_zero_value_as_a_spike() -> None:
    s = torch.tensor([0.0, -0.0, math.nan, -1.0, 1e-45, 3.0, math.inf, 0.0, 1.0] * 9)
    for values in (s, torch.stack([s, s], -1)[:, 0]):
        assert torch.equal(pack_spikes(values, backend="cpp"), pack_reference.pack_spikes(s, 0))


@needs_native
def test_pack_operators_pass_opcheck() -> None:
    pack_spikes(torch.zeros(8))
    for x, dim in packable().values():
        s = (x > 0).float()
        packed = pack_spikes(s, dim)
        torch.library.opcheck(torch.ops.snn_core.spike_pack.default, (s, dim % s.ndim))
        torch.library.opcheck(
            torch.ops.snn_core.spike_unpack.default, (packed, s.shape[dim], dim % s.ndim, torch.float32)
        )


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: pack_spikes(torch.zeros(3, 4), 2), "dim is 2"),
        (lambda: pack_spikes(torch.zeros(3, dtype=torch.int64)), "int64"),
        (lambda: unpack_spikes(torch.zeros(3), 20), "uint8"),
        (lambda: unpack_spikes(torch.zeros(3, dtype=torch.uint8), 25), "size is 25"),
        (lambda: unpack_spikes(torch.zeros(3, dtype=torch.uint8), -1), "size is -1"),
        (lambda: lif(torch.zeros(3, 4), pack_spikes_dim=0), "pack_spikes_dim is 0"),
        (lambda: lif(torch.zeros(3, 4), pack_spikes_dim=2), "pack_spikes_dim is 2"),
        (lambda: lif(torch.zeros(3, 4), pack_spikes_dim=1, inplace=True), "pack_spikes_dim and inplace"),
        (lambda: lif(torch.zeros(3, 4), pack_spikes_dim=1, return_v_seq=True), "return_v_seq"),
        (lambda: lif(torch.zeros(3, 4).requires_grad_(), pack_spikes_dim=1), "gradient"),
        (lambda: lif(torch.zeros(3, 4).requires_grad_(), inplace=True), "gradient"),
        (lambda: lif(torch.zeros(3, 1).expand(3, 4), inplace=True), "share memory"),
        (lambda: lif(torch.zeros(64).as_strided((4, 8), (4, 1)), inplace=True), "share memory"),
        (lambda: lif(torch.zeros(3, 4), pack_spikes_dim=1.0), r"pack_spikes_dim is 1\.0"),
        (lambda: pack_spikes([0.0]), "s is a list"),
        (lambda: pack_spikes(torch.zeros(3, device="meta")), "meta"),
        (lambda: pack_spikes(torch.zeros(3, 4).to_sparse()), "sparse"),
        (lambda: unpack_spikes(torch.zeros(3, dtype=torch.uint8, device="meta"), 20), "meta"),
        (lambda: unpack_spikes(torch.zeros(3, dtype=torch.uint8), 20.0), r"size is 20\.0"),
    ],
)
def test_bad_forms_are_named(call: Any, word: str) -> None:
    with pytest.raises(ArgumentError, match=word):
        call()


# In place.


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, *HALF_DTYPES], ids=str)
@pytest.mark.parametrize("shape", [(5, 7), (9, 4099), (70, 130)], ids=str)
@pytest.mark.parametrize("strided", [False, True])
def test_in_place_writes_the_spikes_over_the_input(dtype: torch.dtype, shape: Any, strided: bool) -> None:
    base = normal((*shape, 2), 0).to(dtype)
    x = base[..., 0] if strided else base[..., 0].clone()
    other = base[..., 1].clone()
    expected, v_expected = lif(x.clone(), tau=2.5, backend="cpp")
    memory = x.data_ptr()
    s_seq, v_last = lif(x, tau=2.5, backend="cpp", inplace=True)
    assert s_seq.data_ptr() == memory
    assert torch.equal(x, expected)
    assert torch.equal(v_last, v_expected)
    assert torch.equal(base[..., 1], other), "elements between those of x"


@needs_native
def test_the_registered_in_place_operator_refuses_overlapping_memory() -> None:
    lif(torch.zeros(1, 1))
    for x in (torch.zeros(3, 1).expand(3, 4), torch.zeros(64).as_strided((4, 8), (4, 1))):
        with pytest.raises(RuntimeError, match="share memory"):
            torch.ops.snn_core.lif_inplace(x, None, None, *OPTIONS)


@needs_native
def test_in_place_is_seen_by_autograd() -> None:
    """What another operation saved for its backward must not be overwritten unnoticed."""
    weight = torch.ones(3, requires_grad=True)
    x = weight.exp().expand(4, 3).clone()
    square = x * x
    with torch.no_grad():
        lif(x, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        square.sum().backward()
