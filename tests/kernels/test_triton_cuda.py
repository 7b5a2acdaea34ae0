"""Triton kernels on a GPU: the cases of the interpreter's tests that need a real one.

The reference runs on the CPU: on CUDA, torch divides by a Python number through its reciprocal, which rounds otherwise.
Compilation takes most of the time, so that option combinations are few.
"""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from snn_core.kernels import lif
from snn_core.kernels.spike_pack import pack_spikes, unpack_spikes

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SURROGATES = ("atan", "sigmoid", "triangle", "rectangle", "fast_sigmoid")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def fixed_configurations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNN_TRITON_AUTOTUNE", "0")


def normal(shape: tuple[int, ...], seed: int, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).cuda()


def run(x: Tensor, backend: str, *, learned: bool = False, **options: Any) -> dict[str, Tensor]:
    device = "cpu" if backend == "reference" else "cuda"
    leaf = x.detach().to(device).requires_grad_()
    v0 = (0.5 * normal(x.shape[1:], 1)).to(device).requires_grad_()
    q = torch.tensor(0.45, device=device, requires_grad=True) if learned else None
    s_seq, v_last, v_seq = lif(leaf, v0, reciprocal_tau=q, backend=backend, return_v_seq=True, **options)
    gradients = [normal(tuple(t.shape), 2 + i).to(t) for i, t in enumerate((s_seq, v_last, v_seq))]
    torch.autograd.backward([s_seq, v_last, v_seq], gradients)
    found = {"s_seq": s_seq, "v_last": v_last, "v_seq": v_seq, "x": leaf.grad, "v0": v0.grad}
    found |= {} if q is None else {"reciprocal_tau": q.grad}
    return {name: tensor.cuda() for name, tensor in found.items()}


def assert_same(x: Tensor, **options: Any) -> None:
    expected, actual = run(x, "reference", **options), run(x, "triton", **options)
    for name, want in expected.items():
        if name in ("s_seq", "v_last", "v_seq"):
            assert torch.equal(actual[name], want), name
        elif name == "reciprocal_tau":
            torch.testing.assert_close(actual[name], want, rtol=1e-4, atol=1e-5 * x.numel() ** 0.5)
        else:
            half = {torch.bfloat16: 2**-7, torch.float16: 2**-10}.get(want.dtype, 0.0)
            torch.testing.assert_close(actual[name], want, rtol=max(1e-5, half), atol=max(2e-6, half))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("T", [1, 4, 17, 50])
def test_equals_reference(T: int, dtype: torch.dtype) -> None:
    for shape in ((3, 11), (4099,), (8, 8192)):
        assert_same(normal((T, *shape), 0, 2.0).to(dtype), tau=3.3)


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_options(surrogate: str) -> None:
    every = list(itertools.product((0.0, -0.2, None), (True, False), (True, False), (True, False)))
    for v_reset, decay_input, detach_reset, learned in random.Random(surrogate).sample(every, 4):
        assert_same(
            normal((5, 3000), 0, 2.0), learned=learned, surrogate=surrogate, v_reset=v_reset, decay_input=decay_input,
            detach_reset=detach_reset, alpha=1.7, v_threshold=0.8,
        )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_layouts(dtype: torch.dtype) -> None:
    base = normal((4, 6, 16, 8, 32), 0, 2.0).to(dtype)
    images = base.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (4, 6))
    for x in (
        base.transpose(0, 1),
        images,
        base[..., ::2],
        base[:, :, 1:9],
        base.permute(4, 1, 3, 2, 0),
        base[..., 1:],
    ):
        assert_same(x)
    assert_same(images, learned=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_packed_and_inplace(dtype: torch.dtype) -> None:
    base = normal((5, 6, 32, 100), 0, 2.0).to(dtype)
    for x, dim in itertools.product((base, base.permute(0, 1, 3, 2), base[..., 1:]), (1, 2, 3)):
        s_seq, v_last = lif(x, backend="reference")
        packed, packed_v = lif(x, backend="triton", pack_spikes_dim=dim)
        assert torch.equal(packed, pack_spikes(s_seq, dim, backend="reference"))
        assert torch.equal(packed, pack_spikes(s_seq, dim, backend="triton"))
        assert torch.equal(unpack_spikes(packed, x.shape[dim], dim, dtype=dtype, backend="triton"), s_seq)
        assert torch.equal(packed_v, v_last)
        copy = x.clone()
        assert torch.equal(lif(copy, backend="triton", inplace=True)[1], v_last)
        assert torch.equal(copy, s_seq)


def test_configurations_and_repetition_do_not_change_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    from snn_core.kernels.lif import triton as module

    x, wanted = normal((18, 70_000), 0, 2.0), None
    for config in (*module.FORWARD_CONFIGS, *module.CHUNK_CONFIGS, module.SMALL_CONFIG, module.SMALL_CONFIG):
        monkeypatch.setattr(module, "_config", lambda *_, chosen=config: chosen)
        for learned in (False, True):
            found = run(x, "triton", learned=learned)
            wanted = (wanted or {}) | {(learned, k): v for k, v in found.items() if (learned, k) not in (wanted or {})}
            assert all(torch.equal(found[name], wanted[learned, name]) for name in found)


def test_nothing_is_compiled_for_another_shape_or_number_of_steps() -> None:
    from snn_core.kernels.lif.triton_kernels import backward_kernel, forward_kernel

    def compilations() -> int:
        device = torch.cuda.current_device()
        return sum(len(kernel.device_caches[device][0]) for kernel in (forward_kernel, backward_kernel))

    run(normal((17, 2**16), 0), "triton")
    before = compilations()
    for shape in ((32, 2**16 + 64), (100, 2**17), (18, 300, 1024)):
        run(normal(shape, 0), "triton")
    assert compilations() == before
    run(normal((17, 2**16 + 1), 0), "triton")  # not aligned: another class
    assert compilations() > before


def test_cuda_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SNN_TRITON_AUTOTUNE")  # configurations are timed in the warm-up
    x, gradient = normal((20, 2**17), 0, 2.0), normal((20, 2**17), 1)

    def step() -> tuple[Tensor, Tensor]:
        leaf = static.detach().requires_grad_()
        s_seq, _ = lif(leaf, backend="triton")
        return s_seq.detach(), torch.autograd.grad(s_seq, leaf, gradient)[0]

    static = x.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for seed in (2, 3):
        static.copy_(normal((20, 2**17), seed, 2.0))
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(captured, step(), strict=True))


def test_more_than_2_to_the_31_elements() -> None:
    if torch.cuda.mem_get_info()[0] < 24 * 2**30:
        pytest.skip("needs 24 GiB of GPU memory")
    x = torch.zeros((2, 2**30 + 2**20), dtype=torch.float16, device="cuda")
    x[:, -5:] = 3.0
    s_seq, _ = lif(x, backend="triton")
    assert s_seq.sum(dtype=torch.float32).item() == 10
    assert s_seq[:, -5:].min().item() == 1


def test_bits_of_a_byte_beyond_32_bits() -> None:
    """Seven strides along the packed dimension are more than 2^31, one is less."""
    if torch.cuda.mem_get_info()[0] < 24 * 2**30:
        pytest.skip("needs 24 GiB of GPU memory")
    s = torch.zeros((8, 2**29), dtype=torch.float16, device="cuda")
    s[:, -3:] = 1
    packed = pack_spikes(s, 0, backend="triton")
    assert packed.sum(dtype=torch.int64).item() == 3 * 255
    assert packed[0, -3:].min().item() == 255
    again = unpack_spikes(packed, 8, 0, dtype=torch.float16, backend="triton")
    assert torch.equal(again, s)
    spikes, _ = lif(s[None] * 3, backend="triton", pack_spikes_dim=1)
    assert torch.equal(spikes[0], packed)
