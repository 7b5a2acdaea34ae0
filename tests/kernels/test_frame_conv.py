"""Convolution of frames that are mostly zero, with LIF behind it: C++ against plain torch."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from snn_core.errors import ArgumentError, BackendUnavailableError
from snn_core.kernels import frame_conv2d_lif
from snn_core.kernels.native import compiled_instruction_sets, cpu_library

needs_cpp = pytest.mark.skipif(not cpu_library().available, reason=cpu_library().reason)


def dyadic(*shape: int, seed: int) -> torch.Tensor:
    """Multiples of 1/16 in [-1, 1]: sums are exact in any order, so that results can be compared bit for bit."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-16, 17, shape, generator=generator) / 16


def frames(*shape: int, seed: int = 0) -> torch.Tensor:
    """Counts, nine of ten zero."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, 7, shape, generator=generator, dtype=torch.uint8)
    return counts * (torch.rand(shape, generator=generator) < 0.1)


GEOMETRIES: list[dict[str, Any]] = [
    {},
    {"stride": 2, "padding": 2},
    {"stride": (1, 3), "padding": (0, 2), "dilation": (2, 1)},
    {"padding": 4, "dilation": 3},
]


@needs_cpp
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("outputs", [1, 12, 32, 64, 72])
@pytest.mark.parametrize("form", ["counts", "table", "float"])
def test_equals_the_reference(form: str, outputs: int, geometry: dict[str, Any]) -> None:
    x_seq = frames(6, 3, 2, 11, 13)
    weight, bias = dyadic(outputs, 2, 3, 4, seed=1), dyadic(outputs, seed=2)
    options = geometry | {"v_threshold": 0.5}
    if form == "table":
        options["table"] = 4 * dyadic(256, seed=3)
        options["table"][0] = 1 / 16  # a count of 0 need not be 0
    if form == "float":
        x_seq = x_seq.float() * 0.5
    expected, v_expected = frame_conv2d_lif(x_seq, weight, bias, **options, backend="reference")
    spikes, v_last = frame_conv2d_lif(x_seq, weight, bias, **options, backend="cpp")
    assert 0.005 < expected.firing_rate < 0.9
    assert spikes.shape == expected.shape
    assert torch.equal(spikes.bits, expected.bits)
    assert torch.equal(v_last, v_expected)


@needs_cpp
@pytest.mark.parametrize(
    ("shape", "window", "geometry"),
    [
        ((3, 2, 2, 7, 150), (5, 5), {"stride": 2, "padding": 2}),  # rows of several words
        ((19, 1, 1, 9, 70), (3, 7), {"padding": (1, 6), "stride": (1, 5)}),  # more steps than are taken at once
        ((4, 2, 1, 23, 9), (2, 3), {"dilation": (4, 1), "padding": (3, 0), "stride": (3, 1)}),
        ((3, 1, 7, 8, 9), (3, 3), {}),  # 63 inputs of a window
        ((3, 1, 8, 8, 9), (3, 3), {}),  # 72
        ((2, 1, 1, 6, 64), (4, 16), {"padding": (0, 15), "stride": (1, 8)}),
    ],
    ids=str,
)
@pytest.mark.parametrize("outputs", [16, 48, 80])
def test_windows_of_a_word_of_bits(
    shape: tuple[int, ...], window: tuple[int, int], geometry: dict[str, Any], outputs: int
) -> None:
    x_seq = frames(*shape)
    weight, bias = dyadic(outputs, shape[2], *window, seed=1), dyadic(outputs, seed=2)
    table = dyadic(256, seed=3)
    table[0] = 0
    for options in (geometry, geometry | {"table": table}):
        expected, v_expected = frame_conv2d_lif(x_seq, weight, bias, **options, v_threshold=0.5, backend="reference")
        spikes, v_last = frame_conv2d_lif(x_seq, weight, bias, **options, v_threshold=0.5, backend="cpp")
        assert 0.005 < expected.firing_rate < 0.9
        assert torch.equal(spikes.bits, expected.bits)
        assert torch.equal(v_last, v_expected)


@needs_cpp
@pytest.mark.parametrize(
    "neuron",
    [
        {"tau": float("inf"), "decay_input": False},
        {"v_reset": None},
        {"v_reset": -0.25, "v_threshold": 0.5},
        {"tau": 4.0, "decay_input": False},
    ],
    ids=str,
)
def test_neurons_and_state_over_two_calls(neuron: dict[str, Any]) -> None:
    x_seq, weight = frames(8, 2, 2, 9, 9), dyadic(16, 2, 3, 3, seed=1)
    whole, v_whole = frame_conv2d_lif(x_seq, weight, padding=1, backend="reference", **neuron)
    first, v_first = frame_conv2d_lif(x_seq[:5], weight, padding=1, backend="cpp", **neuron)
    second, v_second = frame_conv2d_lif(x_seq[5:], weight, None, 1, 1, 1, v_first, backend="cpp", **neuron)
    assert torch.equal(torch.cat([first.bits, second.bits]), whole.bits)
    assert torch.equal(v_second, v_whole)


@needs_cpp
def test_real_values_agree_to_rounding_and_strides_do_not_matter() -> None:
    generator = torch.Generator().manual_seed(0)
    x_seq = torch.log1p(frames(4, 3, 2, 20, 34).float())
    weight, bias = torch.randn(24, 2, 5, 5, generator=generator), torch.randn(24, generator=generator)
    expected, v_expected = frame_conv2d_lif(x_seq, weight, bias, 2, 2, backend="reference")
    spikes, v_last = frame_conv2d_lif(x_seq, weight, bias, 2, 2, backend="cpp")
    differ = spikes.to_dense() != expected.to_dense()
    assert differ.float().mean() < 1e-3
    same = ~differ.any(0)
    torch.testing.assert_close(v_last[same], v_expected[same], rtol=1e-5, atol=1e-5)
    for other in (
        x_seq.transpose(0, 1).contiguous().transpose(0, 1),
        x_seq.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3),
        torch.stack([x_seq, x_seq], -1)[..., 0],
    ):
        again, v_again = frame_conv2d_lif(other, weight, bias, 2, 2, backend="cpp")
        assert torch.equal(again.bits, spikes.bits)
        assert torch.equal(v_again, v_last)


@needs_cpp
def test_negative_zero_nan_and_empty() -> None:
    weight = dyadic(8, 1, 3, 3, seed=1)
    zeros, _ = frame_conv2d_lif(torch.zeros(2, 1, 1, 4, 4), torch.full_like(weight, torch.inf), backend="cpp")
    negative, _ = frame_conv2d_lif(-torch.zeros(2, 1, 1, 4, 4), torch.full_like(weight, torch.inf), backend="cpp")
    assert zeros.count == negative.count == 0
    x_seq = torch.zeros(2, 1, 1, 4, 4)
    x_seq[0, 0, 0, 0, 0] = torch.nan
    _, v_last = frame_conv2d_lif(x_seq, weight, backend="cpp")
    assert v_last[0, :, 0, 0].isnan().all()
    assert not v_last[0, :, 1, 1].isnan().any()
    empty, v_last = frame_conv2d_lif(torch.zeros(2, 0, 1, 4, 4), weight, backend="cpp")
    assert tuple(empty.shape) == (2, 0, 8, 2, 2)
    assert tuple(v_last.shape) == (0, 8, 2, 2)


@needs_cpp
def test_thread_counts_give_the_same_bits() -> None:
    x_seq, weight = torch.log1p(frames(8, 4, 2, 34, 34).float()), torch.randn(32, 2, 3, 3)
    one, v_one = frame_conv2d_lif(x_seq, weight, padding=1, backend="cpp")
    torch.set_num_threads(2)
    try:
        two, v_two = frame_conv2d_lif(x_seq, weight, padding=1, backend="cpp")
    finally:
        torch.set_num_threads(1)
    assert torch.equal(one.bits, two.bits)
    assert torch.equal(v_one, v_two)


@needs_cpp
def test_every_instruction_set_gives_the_same_bits() -> None:
    program = (
        "import hashlib, torch; from snn_core.kernels import frame_conv2d_lif\n"
        "torch.set_num_threads(1); g = torch.Generator().manual_seed(0); digest = hashlib.sha256()\n"
        "for outputs in (5, 32, 40, 112):\n"
        "    x = torch.rand(5, 3, 2, 19, 17, generator=g); x *= x > 0.8\n"
        "    w = torch.randn(outputs, 2, 3, 3, generator=g)\n"
        "    s, v = frame_conv2d_lif(x, w, backend='cpp')\n"
        "    digest.update(s.bits.numpy().tobytes() + v.contiguous().numpy().tobytes())\n"
        "print(digest.hexdigest())"
    )
    seen = set()
    for isa in (name for name in compiled_instruction_sets() if name != "avx512_vbmi"):  # which has none of its own
        environment = os.environ | {"SNN_CPU_ISA": isa, "OMP_NUM_THREADS": "1"}
        result = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        seen.add(result.stdout)
    assert len(seen) == 1


@needs_cpp
def test_opcheck() -> None:
    arguments = (
        frames(3, 2, 2, 7, 7), None, dyadic(3, 3, 2, 8, seed=1), None, [1, 1], [1, 1], [1, 1], None,
        2.0, 1.0, 0.0, True,
    )  # fmt: skip
    torch.library.opcheck(torch.ops.snn_core.frame_conv_lif.default, arguments)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"x_seq": torch.zeros(2, 2, 9, 9)}, "x_seq"),
        ({"x_seq": torch.zeros(2, 1, 3, 9, 9)}, "channels"),
        ({"x_seq": torch.zeros(0, 1, 2, 9, 9)}, "time step"),
        ({"x_seq": torch.zeros(2, 1, 2, 2, 9)}, "window"),
        ({"x_seq": torch.zeros(2, 1, 2, 9, 9, dtype=torch.int64)}, "x_seq"),
        ({"weight": torch.zeros(4, 2, 3, 3, dtype=torch.float64)}, "weight"),
        ({"bias": torch.zeros(5)}, "bias"),
        ({"table": torch.zeros(256)}, "table"),
        ({"v0": torch.zeros(1, 4, 6, 7)}, "v0"),
        ({"stride": 0}, "stride"),
        ({"padding": -1}, "padding"),
        ({"tau": 0.5}, "tau"),
        ({"v_threshold": 0.0}, "v_threshold"),
    ],
)
def test_bad_arguments_are_named(changes: dict[str, Any], word: str) -> None:
    arguments: dict[str, Any] = {"x_seq": torch.zeros(2, 1, 2, 9, 9), "weight": torch.zeros(4, 2, 3, 3)}
    with pytest.raises(ArgumentError, match=word):
        frame_conv2d_lif(**(arguments | changes))


def test_unknown_backend() -> None:
    with pytest.raises((ArgumentError, BackendUnavailableError), match="triton"):
        frame_conv2d_lif(torch.zeros(2, 1, 2, 9, 9), torch.zeros(4, 2, 3, 3), backend="triton")
