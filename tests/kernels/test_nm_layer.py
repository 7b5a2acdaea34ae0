"""Layers of few outputs, whose sums and neurons stay in registers: the same bits as sums first, neurons behind them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from snn_core.kernels import CompressedNM, lif, pack_spikes, unpack_spikes
from snn_core.kernels.native import cpu_library
from snn_core.sparsity import nm_mask_by_magnitude

pytestmark = pytest.mark.skipif(not cpu_library().available, reason="no native library here")
OPS = torch.ops.snn_core
EVENT = 1
PLAIN: dict[str, Any] = {"tau": 2.0, "v_threshold": 1.0, "v_reset": 0.0, "decay_input": True}


def make_weight(shape: tuple[int, ...], dtype: torch.dtype, affine: bool) -> tuple[Any, ...]:
    """Arguments of a 2:4 weight [O, C, kh, kw], with or without scale and bias."""
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(shape, generator=generator)
    weight = weight * nm_mask_by_magnitude(weight, "2:4")
    if dtype == torch.int8:
        weight = (weight * 40).round().clamp(-128, 127)
    compressed = CompressedNM.from_dense(weight, "2:4")
    scale, bias = torch.rand(shape[0], generator=generator) / 4, torch.rand(shape[0], generator=generator)
    values = compressed.values.to(dtype)
    return (values, compressed.indices, 2, 4, list(shape), *((scale, bias) if affine else (None, None)))


def make_bits(*shape: int, rate: float = 0.2) -> Tensor:
    """[B, H, W, C] as bits."""
    return pack_spikes((torch.rand(shape, generator=torch.Generator().manual_seed(7)) < rate).float())


def assert_sums_then_lif(
    bits: Tensor, weight: tuple[Any, ...], conv: tuple[Any, ...], steps: int, v0: Tensor | None, neuron: dict[str, Any]
) -> float:
    """The operator's bits against its own sums with LIF behind them; returns the firing rate."""
    outputs, channels = weight[4][:2]
    sums = OPS.nm_spikes(bits, channels, *weight, *conv, torch.float32, EVENT)
    expected, v_expected = lif(sums.unflatten(0, (steps, -1)), v0, **neuron, backend="cpp")
    s, v = OPS.nm_spikes_lif(bits, channels, *weight, *conv, steps, v0, *neuron.values(), True, torch.float32, EVENT)
    assert torch.equal(unpack_spikes(s, outputs).view_as(expected), expected)
    assert torch.equal(v, v_expected)
    return float(expected.mean())


@pytest.mark.parametrize("outputs", [8, 32, 64, 96, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8, torch.float32], ids=str)
@pytest.mark.parametrize("steps", [1, 3, 8, 19])
def test_outputs_steps_and_types(outputs: int, dtype: torch.dtype, steps: int) -> None:
    weight = make_weight((outputs, 24, 3, 3), dtype, affine=dtype == torch.int8)
    rate = assert_sums_then_lif(make_bits(2 * steps, 6, 5, 24), weight, ([1, 1], [1, 1], [1, 1], 1), steps, None, PLAIN)
    assert 0.01 < rate < 0.99


@pytest.mark.parametrize("stride", [[1, 1], [2, 3]], ids=str)
@pytest.mark.parametrize("padding", [[0, 0], [1, 2], [0, 3]], ids=str)
@pytest.mark.parametrize("dilation", [[1, 1], [2, 1], [1, 2]], ids=str)
@pytest.mark.parametrize("window", [(3, 3), (1, 1), (2, 5), (4, 1)], ids=str)
def test_windows(window: tuple[int, int], dilation: list[int], padding: list[int], stride: list[int]) -> None:
    weight = make_weight((32, 16, *window), torch.bfloat16, affine=True)
    neuron = PLAIN | {"v_threshold": 0.3}
    rate = assert_sums_then_lif(make_bits(6, 9, 10, 16), weight, (stride, padding, dilation, 1), 3, None, neuron)
    assert 0.01 < rate < 0.99


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    "neuron",
    [
        {"tau": float("inf"), "v_threshold": 2.0, "v_reset": 0.0, "decay_input": False},
        {"tau": 3.0, "v_threshold": 0.7, "v_reset": None, "decay_input": True},
        {"tau": 3.0, "v_threshold": 1.0, "v_reset": -0.5, "decay_input": False},
        {"tau": 4.0, "v_threshold": 0.5, "v_reset": None, "decay_input": False},
    ],
    ids=str,
)
def test_neurons_and_their_state(neuron: dict[str, Any], affine: bool) -> None:
    weight = make_weight((64, 32, 3, 3), torch.bfloat16, affine)
    v0 = torch.randn(2, 4, 4, 64, generator=torch.Generator().manual_seed(1))
    rate = assert_sums_then_lif(make_bits(10, 4, 4, 32), weight, ([1, 1], [1, 1], [1, 1], 1), 5, v0, neuron)
    assert 0.01 < rate < 0.99


def test_images_of_any_strides() -> None:
    weight = make_weight((32, 16, 2, 3), torch.bfloat16, affine=True)
    bits = make_bits(4, 8, 12, 32)
    for padding in ([0, 0], [1, 1]):
        for view in (bits[:, 1:6, 2:9, :2], bits[..., :2], bits.transpose(1, 2)[..., 2:], bits[:, :, 3:, :2].flip(0)):
            assert_sums_then_lif(view, weight, ([1, 1], padding, [1, 1], 1), 2, None, PLAIN)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_no_spike_and_all_of_them(rate: float) -> None:
    weight = make_weight((64, 64, 3, 3), torch.bfloat16, affine=True)
    assert_sums_then_lif(make_bits(4, 5, 5, 64, rate=rate), weight, ([1, 1], [1, 1], [1, 1], 1), 4, None, PLAIN)


def test_thread_counts_give_the_same_bits() -> None:
    weight = make_weight((64, 32, 3, 3), torch.bfloat16, affine=True)
    conv, bits = ([1, 1], [1, 1], [1, 1], 1), make_bits(40, 17, 17, 32)
    arguments = (bits, 32, *weight, *conv, 4, None, *PLAIN.values(), True, torch.float32, EVENT)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(OPS.nm_spikes_lif(*arguments))
    torch.set_num_threads(1)
    for s, v in results[1:]:
        assert torch.equal(s, results[0][0])
        assert torch.equal(v, results[0][1])
