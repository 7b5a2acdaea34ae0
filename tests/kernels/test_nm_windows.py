"""Convolutions of packed spikes: the ways in which windows are brought together give the bits of plain sums."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from snn_core.kernels import CompressedNM, lif, pack_spikes
from snn_core.kernels.native import cpu_library
from snn_core.sparsity import nm_mask_by_magnitude

pytestmark = pytest.mark.skipif(not cpu_library().available, reason="no native library here")
OPS = torch.ops.snn_core
EVENT, LOOKUP = 1, 2
#: channels, outputs, (height, width), kernel, stride, padding, dilation, groups
SHAPES = [
    (8, 7, (5, 4), (3, 3), (1, 1), (1, 1), (1, 1), 1),
    (32, 64, (8, 8), (3, 3), (1, 1), (1, 1), (1, 1), 1),
    (64, 130, (4, 4), (3, 3), (1, 1), (1, 1), (1, 1), 1),
    (16, 20, (7, 90), (5, 3), (2, 3), (4, 2), (2, 1), 1),
    (24, 33, (3, 70), (2, 5), (1, 1), (0, 6), (1, 1), 1),
    (48, 34, (6, 5), (3, 1), (2, 1), (1, 0), (3, 2), 2),
    (16, 16, (9, 8), (3, 3), (2, 2), (2, 2), (2, 2), 1),
    (16, 16, (20, 1), (17, 1), (1, 1), (1, 1), (1, 1), 1),
    (40, 17, (4, 3), (1, 3), (1, 1), (3, 0), (1, 1), 1),
    (16, 300, (7, 6), (3, 3), (2, 2), (1, 1), (1, 1), 1),
]


def operands(shape: tuple[Any, ...], dtype: torch.dtype, rate: float, batch: int) -> tuple[Tensor, Tensor, list[Any]]:
    """Spikes [B, C, H, W], the dense weight in float32, and the arguments of nm_spikes from ``values`` on."""
    channels, outputs, size, kernel, stride, padding, dilation, groups = shape
    generator = torch.Generator().manual_seed(11)
    s = (torch.rand((batch, channels, *size), generator=generator) < rate).float()
    weight = torch.randn((outputs, channels // groups, *kernel), generator=generator).to(dtype).float()
    weight = weight * nm_mask_by_magnitude(weight, "2:4")
    kept = CompressedNM.from_dense(weight.to(dtype), "2:4")
    convolution = [list(stride), list(padding), list(dilation), groups]
    return s, weight, [kept.values, kept.indices, 2, 4, list(weight.shape), None, None, *convolution]


def bits_of(s: Tensor) -> Tensor:
    return pack_spikes(s.permute(0, 2, 3, 1).contiguous())


def sums_one_by_one(s: Tensor, weight: Tensor, shape: tuple[Any, ...]) -> Tensor:
    """[B, OH, OW, O] with the spikes of a window added in the order of its rows, columns and channels."""
    kernel, stride, padding, dilation, groups = shape[3:]
    padded = F.pad(s, (padding[1], padding[1], padding[0], padding[0]))
    out_h, out_w = F.conv2d(s, weight, None, stride, padding, dilation, groups).shape[2:]
    outputs, channels = weight.shape[:2]
    total = torch.zeros(len(s), out_h, out_w, outputs)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            top, left = i * dilation[0], j * dilation[1]
            part = padded[:, :, top : top + out_h * stride[0] : stride[0], left : left + out_w * stride[1] : stride[1]]
            part = part[:, :, :out_h, :out_w].reshape(len(s), groups, channels, out_h, out_w)
            for c in range(channels):
                own = weight[:, c, i, j].view(groups, -1)
                total += torch.einsum("bghw,go->bhwgo", part[:, :, c], own).flatten(3)
    return total


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("dtype", "rate"), [(torch.bfloat16, 0.01), (torch.bfloat16, 0.6), (torch.float32, 0.2)])
def test_event_path_adds_one_spike_after_the_other(shape: tuple[Any, ...], dtype: torch.dtype, rate: float) -> None:
    s, weight, arguments = operands(shape, dtype, rate, batch=3)
    y = OPS.nm_spikes(bits_of(s), shape[0], *arguments, torch.float32, EVENT)
    assert torch.equal(y, sums_one_by_one(s, weight, shape))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_lookup_path_has_the_sums_of_its_windows(shape: tuple[Any, ...]) -> None:
    """Those of the same rows of spikes in a Linear, to the last bit."""
    channels, outputs, _, kernel, stride, padding, dilation, groups = shape
    if cpu_library().isa != "avx512_vbmi":
        pytest.skip("no lookup path here")
    if groups > 1:
        pytest.skip("a Linear has no groups")
    s, _, arguments = operands(shape, torch.bfloat16, 0.4, batch=5)
    bits = bits_of(s)
    y = OPS.nm_spikes(bits, channels, *arguments, torch.float32, LOOKUP)
    windows = OPS.spike_im2col(bits, channels, list(kernel), list(stride), list(padding), list(dilation))
    k = channels * kernel[0] * kernel[1]
    linear = [*arguments[:4], [outputs, k, 1, 1], None, None, [1, 1], [0, 0], [1, 1], 1]
    expected = OPS.nm_spikes(windows[:, None, None], k, *linear, torch.float32, LOOKUP)
    assert torch.equal(y.view(-1, outputs), expected.view(-1, outputs))


@pytest.mark.parametrize("path", [EVENT, LOOKUP])
@pytest.mark.parametrize("steps", [2, 40])
@pytest.mark.parametrize("shape", [SHAPES[0], (16, 72, (6, 70), (3, 3), (2, 1), (1, 1), (1, 1), 1)], ids=str)
def test_neurons_behind_windows(shape: tuple[Any, ...], steps: int, path: int) -> None:
    if path == LOOKUP and cpu_library().isa != "avx512_vbmi":
        pytest.skip("no lookup path here")
    s, _, arguments = operands(shape, torch.bfloat16, 0.2, batch=2 * steps)
    bits = bits_of(s)
    x = OPS.nm_spikes(bits, shape[0], *arguments, torch.float32, path)
    spikes, v = OPS.nm_spikes_lif(
        bits, shape[0], *arguments, steps, None, 2.0, 1.0, 0.0, True, False, torch.float32, path
    )
    expected, expected_v = lif(x.view(steps, -1, *x.shape[1:]), tau=2.0, v_threshold=1.0, v_reset=0.0, decay_input=True)
    assert 0.01 < expected.mean() < 0.99
    assert torch.equal(spikes.view_as(expected), expected)
    assert torch.equal(v, expected_v)


def test_windows_on_pixels_by_stride() -> None:
    """Every second pixel of a wider image, and the channels of a group."""
    shape = (16, 24, (6, 8), (3, 3), (1, 1), (1, 1), (1, 1), 1)
    s, weight, arguments = operands(shape, torch.bfloat16, 0.3, batch=2)
    wide = torch.full((2, 6, 16, 5), 0xFF, dtype=torch.uint8)
    wide[:, :, ::2, 1:3] = bits_of(s)
    bits = wide[:, :, ::2, 1:3]
    assert not bits.is_contiguous()
    y = OPS.nm_spikes(bits, 16, *arguments, torch.float32, EVENT)
    assert torch.equal(y, sums_one_by_one(s, weight, shape))
    if cpu_library().isa == "avx512_vbmi":
        y = OPS.nm_spikes(bits, 16, *arguments, torch.float32, LOOKUP)
        assert torch.equal(y, OPS.nm_spikes(bits.contiguous(), 16, *arguments, torch.float32, LOOKUP))
