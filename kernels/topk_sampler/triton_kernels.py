"""Triton kernels of the top-k sampler: draw, relaxed draws, their gradient. Launchers: ``triton.py`` beside this file.

A program owns BLOCK blocks with their positions, padded to a power of two, in registers. Steps and their order are
those of ``topk_sampler.h``, compiled without fused multiply-add, so that masks are the same bits. Nothing is stored
between the passes: noise and draws are made again. The gradient makes the draws before the j-th again for each j (n^2
/ 2 softmaxes in place of n sets of registers).
"""
# Kernels are written in Triton's language, whose types mypy does not know.
# mypy: disable-error-code="no-untyped-def, assignment, attr-defined"

from __future__ import annotations

import triton
import triton.language as tl

from snn_core.kernels.native.triton_launch import aligned

EPSILON = tl.constexpr(1e-6)
NOTHING = tl.constexpr(float("-inf"))

_RUNTIME = ["blocks", "n", "l_block", "l_position", "a_block", "a_position", "g_block", "g_position", "o_block",
            "o_position", "seed", "offset_low", "offset_high"]  # fmt: skip


def _jit(function):
    """``triton.jit`` that never compiles for a value of a size, a stride, n, or the noise's place."""
    names = set(function.__code__.co_varnames[: function.__code__.co_argcount])
    return triton.jit(function, do_not_specialize=[name for name in _RUNTIME if name in names])


@triton.jit
def log_portable(x):
    """``log_portable`` of topk_sampler.h."""
    field = x.to(tl.uint32, bitcast=True) + (0x3F800000 - 0x3F3504F3)
    e = ((field >> 23) | 0x4B000000).to(tl.float32, bitcast=True) - 8388735.0
    f = ((field & 0x7FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True) - 1.0
    q = f * 0.08734588 - 0.14307415
    q = q * f + 0.14918016
    q = q * f - 0.16570525
    q = q * f + 0.1996207
    q = q * f - 0.25001755
    q = q * f + 0.3333395
    q = q * f - 0.4999999
    return (f + (f * f) * q) + e * 0.6931472


@triton.jit
def gumbel(block, position, seed, offset_low, offset_high):
    """Noise of positions ``[P, 1]`` of blocks ``[1, BLOCK]``: word position % 4 of counter (block, position / 4)."""
    shape = position * 0 + block * 0
    counter = shape + block.to(tl.uint32, bitcast=False)
    quarter = shape + position // 4
    w0, w1, w2, w3 = tl.philox(
        seed, counter.to(tl.uint32), quarter.to(tl.uint32), (shape + offset_low).to(tl.uint32),
        (shape + offset_high).to(tl.uint32),
    )  # fmt: skip
    part = shape + position % 4
    word = tl.where(part == 0, w0, tl.where(part == 1, w1, tl.where(part == 2, w2, w3)))
    u = ((word.to(tl.uint32) >> 9) | 0x3F800000).to(tl.float32, bitcast=True) - 0.99999994
    return -log_portable(-log_portable(u))


@triton.jit
def load_rows(pointer, start, lane, position, block_stride, position_stride, mask, ALIGN: tl.constexpr):
    """``[P, BLOCK]`` of a tensor; a block stride of None is 1 (positions outermost), a position stride of None is 1."""
    places = row_pointers(pointer, start, lane, position, block_stride, position_stride, ALIGN)
    return tl.load(places, mask=mask, other=0.0)


@triton.jit
def row_pointers(pointer, start, lane, position, block_stride, position_stride, ALIGN: tl.constexpr):
    """Where the elements are."""
    if block_stride is None:
        places = pointer + position.to(tl.int64) * aligned(position_stride, ALIGN) + start + lane
    else:
        step = position if position_stride is None else position.to(tl.int64) * position_stride
        places = pointer + (start + lane) * block_stride + step
    return places


@triton.jit
def make_key(
    logits, anchor, start, lane, position, mask, l_block, l_position, a_block, a_position, kappa, rho, eta, seed,
    offset_low, offset_high, NOISE: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """The key of the program's blocks; padded positions are left to the caller."""
    key = kappa * load_rows(logits, start, lane, position, l_block, l_position, mask, ALIGN)
    if anchor is not None:
        key = key + rho * load_rows(anchor, start, lane, position, a_block, a_position, mask, ALIGN)
    if NOISE:
        key = key + eta * gumbel(start + lane, position, seed, offset_low, offset_high)
    return key


@triton.jit
def softmax(a):
    """Along positions."""
    e = tl.exp(a - tl.max(a, axis=0)[None, :])
    return e / tl.sum(e, axis=0)[None, :]


@triton.jit
def next_draw(a, p, reciprocal):
    """What the draw after ``p = softmax(a)`` is a softmax of."""
    return a + log_portable(tl.maximum(1.0 - p, EPSILON)) * reciprocal


@triton.jit
def _tile(blocks, M: tl.constexpr, PADDED: tl.constexpr, ALIGN: tl.constexpr, BLOCK: tl.constexpr):
    """First block of this program, its blocks ``[1, BLOCK]``, positions ``[PADDED, 1]``, and what there is of them."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    lane = tl.arange(0, BLOCK)[None, :]
    position = tl.arange(0, PADDED)[:, None]
    count = tl.multiple_of(tl.minimum(blocks - start, BLOCK).to(tl.int32), ALIGN)
    return start, lane, position, (position < M) & (lane < count)


@_jit
def sample_kernel(
    logits, anchor, mask, wrong, blocks: tl.int64, n, l_block, l_position, a_block,
    a_position, o_block, o_position, kappa, rho, eta, seed: tl.int64,
    offset_low: tl.int64, offset_high: tl.int64,
    M: tl.constexpr, PADDED: tl.constexpr, NOISE: tl.constexpr, ALIGN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The mask, and into ``wrong`` the number of blocks whose key is not finite."""
    start, lane, position, exists = _tile(blocks, M, PADDED, ALIGN, BLOCK)
    key = make_key(
        logits, anchor, start, lane, position, exists, l_block, l_position, a_block, a_position, kappa, rho, eta, seed,
        offset_low, offset_high, NOISE, ALIGN,
    )  # fmt: skip
    finite = tl.where(exists, key - key, 0.0) == 0.0
    left = tl.where(position < M, key, NOTHING)
    taken = position * 0 + lane * 0
    for _ in range(n):
        best = tl.max(left, axis=0)[None, :]
        first = tl.min(tl.where((left == best) & (taken == 0) & (position < M), position, PADDED), axis=0)[None, :]
        taken = tl.where(position == first, 1, taken)
        left = tl.where(position == first, NOTHING, left)
    fine = (tl.sum(taken, axis=0) == n) & (tl.min(finite.to(tl.int32), axis=0) == 1)
    count = tl.sum(tl.where((start + tl.arange(0, BLOCK) < blocks) & (fine == 0), 1, 0), axis=0)
    tl.atomic_add(wrong, count.to(tl.int64), mask=count > 0)
    tl.store(row_pointers(mask, start, lane, position, o_block, o_position, ALIGN), taken.to(tl.uint8), mask=exists)


@_jit
def soft_kernel(
    logits, anchor, soft, blocks: tl.int64, n, l_block, l_position, a_block,
    a_position, o_block, o_position, kappa, rho, eta, reciprocal, seed: tl.int64,
    offset_low: tl.int64, offset_high: tl.int64,
    M: tl.constexpr, PADDED: tl.constexpr, NOISE: tl.constexpr, ALIGN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The sum of the relaxed draws."""
    start, lane, position, exists = _tile(blocks, M, PADDED, ALIGN, BLOCK)
    key = make_key(
        logits, anchor, start, lane, position, exists, l_block, l_position, a_block, a_position, kappa, rho, eta, seed,
        offset_low, offset_high, NOISE, ALIGN,
    )  # fmt: skip
    a = tl.where(position < M, key * reciprocal, NOTHING)
    total = tl.zeros_like(a)
    for _ in range(n):
        p = softmax(a)
        total += p
        a = next_draw(a, p, reciprocal)
    tl.store(row_pointers(soft, start, lane, position, o_block, o_position, ALIGN), total, mask=exists)


@_jit
def backward_kernel(
    grad, logits, anchor, result, blocks: tl.int64, n, g_block, g_position, l_block,
    l_position, a_block, a_position, o_block, o_position, kappa, rho,
    eta, reciprocal, seed: tl.int64, offset_low: tl.int64, offset_high: tl.int64,
    M: tl.constexpr, PADDED: tl.constexpr, NOISE: tl.constexpr, ALIGN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradient of the relaxed draws to the logits."""
    start, lane, position, exists = _tile(blocks, M, PADDED, ALIGN, BLOCK)
    key = make_key(
        logits, anchor, start, lane, position, exists, l_block, l_position, a_block, a_position, kappa, rho, eta, seed,
        offset_low, offset_high, NOISE, ALIGN,
    )  # fmt: skip
    g = load_rows(grad, start, lane, position, g_block, g_position, exists, ALIGN)
    first = tl.where(position < M, key * reciprocal, NOTHING)
    grad_a = tl.zeros_like(first)
    for back in range(n):
        a = first
        for _ in range(n - 1 - back):
            a = next_draw(a, softmax(a), reciprocal)
        p = softmax(a)
        rest = 1.0 - p
        # The last draw has no successor: grad_a is 0 there.
        weighted = (g - tl.where(rest > EPSILON, grad_a * reciprocal / tl.maximum(rest, EPSILON), 0.0)) * p
        grad_a += weighted - p * tl.sum(weighted, axis=0)[None, :]
    grad_a = grad_a * reciprocal * kappa
    tl.store(row_pointers(result, start, lane, position, o_block, o_position, ALIGN), grad_a, mask=exists)
