"""Runs every native CPU operator over its options on a library built with sanitizers: ``program.py library.so``.

Started by test_sanitizers.py in a process of its own, with the sanitizers' runtimes preloaded. Values are compared with
the reference only roughly, so that a run that computed nothing cannot pass; the other tests compare bits.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from pathlib import Path

import numpy as np
import torch

from snn_core.errors import ArgumentError
from snn_core.kernels import event_frames, event_frames_batch, lif, native

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SURROGATES = ("atan", "sigmoid", "triangle", "rectangle", "fast_sigmoid")
#: T and the shape of a step: odd tails for every vector width, single elements, none, many steps, several blocks.
SHAPES = ((1, (1,)), (5, (3, 7)), (3, (0, 4)), (2, ()), (70, (19,)), (4, (2, 3, 5, 9)), (3, (4, 1031)))


def layouts(x: torch.Tensor) -> list[torch.Tensor]:
    """The same values contiguous, every second element of a larger tensor, transposed, misaligned, channels last."""
    wide = torch.empty(*x.shape[:-1], 2 * x.shape[-1]) if x.ndim > 1 else torch.empty(2 * x.shape[0])
    shifted = torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape)
    views = [x, wide.to(x.dtype)[..., ::2], x.mT.contiguous().mT if x.ndim > 2 else x.clone(), shifted]
    if x.ndim == 5:
        views.append(x.flatten(0, 1).contiguous(memory_format=torch.channels_last).view_as(x))
    for view in views[1:]:
        view.copy_(x)
    return views


def expanded_like(x: torch.Tensor) -> torch.Tensor:
    """A gradient of stride 0, as ``sum()`` makes it."""
    return torch.ones((), dtype=x.dtype).expand(x.shape)


def run_lif(generator: torch.Generator) -> int:
    """Forward and backward over all options, dtypes and layouts, with and without each optional tensor."""
    count = 0
    flags = (True, False)
    for (steps, shape), dtype, surrogate, v_reset, decay_input, detach_reset in itertools.product(
        SHAPES, DTYPES, SURROGATES, (0.0, None), flags, flags
    ):
        options = {"v_reset": v_reset, "decay_input": decay_input, "detach_reset": detach_reset, "surrogate": surrogate}
        values = (torch.randn(steps, *shape, generator=generator) * 2).to(dtype)
        if values.numel() > 20:
            values.view(-1)[::17] = float("nan") if surrogate == "atan" else float("inf")
        for number, x in enumerate(layouts(values)):
            tau = {"tau": (2.0, 3.7)[count % 2]}
            if count % 3 == 0:
                tau = {"reciprocal_tau": torch.tensor(0.3, requires_grad=True)}
            v0 = torch.randn(shape, generator=generator, requires_grad=True) if count % 2 else None
            x.requires_grad_()
            return_v_seq = number % 2 == 1
            s, v, *v_seq = lif(x, v0, backend="cpp", return_v_seq=return_v_seq, **tau, **options)
            if number == 0 and surrogate != "atan":
                s_reference, *_ = lif(values.detach(), v0, backend="reference", **tau, **options)
                assert torch.equal(s, s_reference), (steps, shape, dtype, options)
            targets = [x] + [t for t in (v0, tau.get("reciprocal_tau")) if t is not None]
            outputs = [s, v, *v_seq]
            kept = outputs[: 1 + count % len(outputs)]  # absent gradients too
            torch.autograd.grad(kept, targets, [expanded_like(t) for t in kept], allow_unused=True)
            x.requires_grad_(False)
            count += 1
    return count


def run_raw(generator: torch.Generator) -> int:
    """Checkpoints of any distance, and the backward without them."""
    count = 0
    for steps, every in itertools.product((1, 2, 16, 17, 64, 70), (0, 1, 3, 16, 64, 100)):
        x = torch.randn(steps, 3, 11, generator=generator)
        options = (2.0, 1.0, 0.0, True, False, 0, 2.0)
        s, v, _, checkpoints = torch.ops.snn_core.lif(x, None, None, *options, every, False)
        expected = None
        for given in (None, checkpoints):
            grads = torch.ops.snn_core.lif_backward(s, v, None, x, None, None, given, *options, every)
            assert expected is None or torch.equal(grads[0], expected)
            expected = grads[0]
            count += 1
    return count


def run_packed(generator: torch.Generator) -> int:
    """Packed and in-place forwards, and packing itself."""
    from snn_core.kernels import pack_spikes, unpack_spikes

    count = 0
    for (steps, shape), dtype in itertools.product(SHAPES, DTYPES):
        for x in layouts((torch.randn(steps, *shape, generator=generator) * 2).to(dtype)):
            s, v = lif(x, backend="cpp")
            for dim in range(1, x.ndim):
                packed, v_packed = lif(x, backend="cpp", pack_spikes_dim=dim)
                assert torch.equal(v, v_packed)
                assert torch.equal(packed, pack_spikes(s, dim, backend="cpp"))
                for size in {s.shape[dim], max(0, s.shape[dim] - 1)}:
                    unpacked = unpack_spikes(pack_spikes(s.narrow(dim, 0, size), dim), size, dim, dtype=dtype)
                    assert torch.equal(unpacked, s.narrow(dim, 0, size))
                count += 1
            spikes, _ = lif(x, backend="cpp", inplace=True)
            assert torch.equal(spikes, s)
    return count


def run_event_frames(generator: torch.Generator) -> int:
    """Every rule, count and layout, in pieces and in batches, with events that are refused."""
    random = np.random.default_rng(int(torch.randint(1000, (), generator=generator)))
    rules = ({"n_time_bins": 5}, {"n_event_bins": 5}, {"time_window": 777})
    layouts_of_events = ("<i8,<i2,<i2,i1", "<i8,<u2,<u2,<i2", "<i8,<i8,<i8,<i8", "<u4,u1,<i4,?")
    count = 0
    for formats, num in itertools.product(layouts_of_events, (0, 1, 2, 700, 200_000)):
        events = np.zeros(num, np.dtype({"names": ["t", "x", "y", "p"], "formats": formats.split(",")}))
        for name, size in (("t", 10_000), ("x", 7), ("y", 5), ("p", 2)):
            events[name] = random.integers(0, size, num)
        events["t"].sort()
        for rule, convention, dtype in itertools.product(rules, ("tonic", "spikingjelly"), (np.uint8, np.int32)):
            options = {**rule, "convention": convention, "dtype": dtype}
            frames, saturated = event_frames(events, (7, 5, 2), **options, backend="cpp")
            expected, expected_saturated = event_frames(events, (7, 5, 2), **options, backend="numpy")
            assert np.array_equal(frames, expected), (formats, num, options)
            assert saturated == expected_saturated
            count += 1
        event_frames_batch([events, events[::2], events[:9]], (7, 5, 2), n_time_bins=3, backend="cpp")
        for name in "txy" if num > 1 else "":
            bad = events.copy()
            bad[name][num // 2] = 200
            bad["t"][-1] = 1
            with contextlib.suppress(ArgumentError):
                event_frames(bad, (7, 5, 2), n_time_bins=3, backend="cpp")
    return count


def run_large(generator: torch.Generator) -> int:
    """Outputs past 8 MiB, which are written around the caches and on huge pages, in several blocks on two threads."""
    torch.set_num_threads(2)
    for dtype in DTYPES:
        x = torch.randn(5, (9 << 20) // (5 * dtype.itemsize) + 3, generator=generator).to(dtype).requires_grad_()
        s, v = lif(x, backend="cpp")
        assert s.sum(dtype=torch.float64) > 0
        (s.sum() + v.sum()).backward()
    return len(DTYPES)


def run_nm(generator: torch.Generator) -> int:
    """Products of packed spikes and of dense rows with N:M weights: every path that takes them, types, odd sizes."""
    from snn_core.kernels import CompressedNM, pack_spikes
    from snn_core.kernels.nm_compress.pattern import nm_mask_by_magnitude

    ops, count = torch.ops.snn_core, 0
    patterns = ("2:4", "1:4", "4:8", "1:8", "2:10", "8:16", "1:32")
    types = (torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.float8_e4m3fn)
    sizes = ((1, 1, 1, 1, 0), (7, 3, 3, 2, 1), (70, 33, 1, 1, 0), (3, 260, 2, 3, 2))
    for pattern, dtype, (batch, outputs, kh, kw, pad) in itertools.product(patterns, types, sizes):
        n, m = (int(number) for number in pattern.split(":"))
        channels = 3 * m if m < 32 else 2 * m
        weight = torch.randn(outputs, channels, kh, kw, generator=generator)
        compressed = CompressedNM.from_dense(weight * nm_mask_by_magnitude(weight, pattern), pattern)
        values, scale = compressed.values.mul(20).to(dtype), torch.rand(outputs, generator=generator)
        arguments = (values, compressed.indices, n, m, list(weight.shape), scale, scale)
        s = (torch.rand(2 * batch, 3, 4, channels, generator=generator) < 0.3).float()
        bits, conv = pack_spikes(s, backend="cpp"), ([1, 2], [pad, pad], [1, 1], 1)
        expected = None
        for path in range(5):
            with contextlib.suppress(RuntimeError):  # paths that do not take this weight
                y = ops.nm_spikes(bits, channels, *arguments, *conv, torch.float32, path)
                assert expected is None or torch.allclose(y, expected, rtol=1e-4, atol=1e-3)
                expected = y
                lif_arguments = (None, 2.0, 1.0, 0.0, True, path % 2 == 0, torch.bfloat16, path)
                ops.nm_spikes_lif(bits, channels, *arguments, *conv, 2, *lif_arguments)
                count += 1
        rows = outputs * kh * kw
        dense = ops.nm_decompress(values, compressed.indices, n, m, rows, None, torch.bfloat16)
        if dtype == torch.bfloat16:
            again, indices, _ = ops.nm_compress(dense, None, n, m)
            assert torch.equal(again, values)
            assert torch.equal(indices, compressed.indices)
        if kh == kw == 1:
            x = torch.randn(batch, channels, generator=generator).to(DTYPES[count % 3])
            ops.nm_dense(x, *arguments, 0)
        ops.spike_im2col(bits, channels, [kh, kw], *conv[:3])
        ops.spike_max_pool(bits, [2, 2], [2, 2], [0, 1])
    return count


def main() -> None:
    native.LIBRARY_PATH = Path(sys.argv[1])
    library = native.cpu_library()
    assert library.available, library.reason
    generator = torch.Generator().manual_seed(0)
    counts = [
        run_lif(generator),
        run_raw(generator),
        run_packed(generator),
        run_event_frames(generator),
        run_nm(generator),
        run_large(generator),
    ]
    print("finished", library.isa, *counts)


if __name__ == "__main__":
    main()
