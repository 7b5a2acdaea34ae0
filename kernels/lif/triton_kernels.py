"""Triton kernels of the LIF operator: forward, backward, packed forward. Launchers: ``triton.py`` beside this file.

Arithmetic and its order are those of ``lif.h``, compiled without fused multiply-add, so that spikes are the same bits.
A program owns a block of neurons and runs through all time steps with their state in registers; x is loaded a few steps
ahead, because a store of spikes is a wall for the compiler's own scheduling of loads. Sizes, strides and T are plain
arguments: no value of them compiles anything again.
"""
# Kernels are written in Triton's language, whose types mypy does not know.
# mypy: disable-error-code="no-untyped-def, assignment, attr-defined"
# Triton knows no starred tuples, and no `and` of a constant and a run-time value.
# ruff: noqa: RUF005, SIM102

from __future__ import annotations

import triton
import triton.language as tl

from snn_core.kernels.native.triton_launch import bit_offsets, block_offsets

#: Time steps whose h the backward keeps in registers; also the distance of its checkpoints.
CHUNK = 16
FLOAT_MAX = tl.constexpr(3.402823466e38)
HALF_PI = tl.constexpr(1.57079632679489662)

_RUNTIME = [
    "T", "N", "x_time", "every", "checkpoint_count", "n1", "n2", "n3",
    *(f"{name}_{d}" for name in ("x", "v0", "gs", "gvl", "gvs", "vl", "i") for d in range(4)),
    "gs_time", "gvs_time", "x_bit", "v0_bit", "vl_bit", "K",
]  # fmt: skip


def _jit(function):
    """``triton.jit`` that never compiles for a value of a size, a stride or T."""
    names = set(function.__code__.co_varnames[: function.__code__.co_argcount])
    return triton.jit(function, do_not_specialize=[name for name in _RUNTIME if name in names])


@triton.jit
def charge(x, v, q, tau, v_reset, DECAY_INPUT: tl.constexpr, DIVIDE: tl.constexpr):
    """h of one step; ``q`` is 1 / tau."""
    leak = v - v_reset
    if DECAY_INPUT:
        drive = x - leak
        h = v + (tl.div_rn(drive, tau) if DIVIDE else drive * q)
    else:
        h = v - (tl.div_rn(leak, tau) if DIVIDE else leak * q) + x
    return h


@triton.jit
def reset(h, v_threshold, v_reset, SOFT_RESET: tl.constexpr):
    """v after the spike, if any; a NaN does not spike."""
    after = h - v_threshold if SOFT_RESET else tl.zeros_like(h) + v_reset
    return tl.where(h >= v_threshold, after, h)


@triton.jit
def surrogate_gradient(u, alpha, width, SURROGATE: tl.constexpr):
    """ds/dh at u = h - v_threshold, by code of lif.h. ``width``: where triangle and rectangle end."""
    magnitude = tl.where(u < 0, -u, u)
    if SURROGATE == 0:  # atan
        z = u * (alpha * HALF_PI)
        g = (alpha * 0.5) / (1.0 + z * z)
    elif SURROGATE == 1:  # sigmoid: symmetric, so the side that does not overflow serves both signs
        e = tl.exp(-(alpha * magnitude))
        d = 1.0 + e
        g = alpha * e / (d * d)
    elif SURROGATE == 2:  # triangle
        g = tl.where(magnitude > width, 0.0, alpha - alpha * alpha * magnitude)
    elif SURROGATE == 3:  # rectangle
        g = tl.where(magnitude < width, tl.zeros_like(u) + alpha, 0.0)
    else:  # fast sigmoid
        d = 1.0 + magnitude
        g = alpha / (d * d)
    return g


@triton.jit
def step_backward(
    gs, h, gv, q, v_threshold, v_reset, alpha, width,
    SURROGATE: tl.constexpr, SOFT_RESET: tl.constexpr, DETACH_RESET: tl.constexpr,
):  # fmt: skip
    """Gradients of h[t] and of v[t - 1], from those of s[t] (None: zero) and v[t]."""
    dv_dh = tl.full(h.shape, 1.0, tl.float32) if SOFT_RESET else tl.where(h >= v_threshold, 0.0, 1.0)
    gh = gv * dv_dh
    if gs is not None or not DETACH_RESET:
        g = surrogate_gradient(h - v_threshold, alpha, width, SURROGATE)
        if not DETACH_RESET:
            finite_h = tl.where(h > FLOAT_MAX, FLOAT_MAX, h)  # where h is infinite g is 0, and so must this be
            gh = gv * (dv_dh + ((0.0 - v_threshold) if SOFT_RESET else (v_reset - finite_h)) * g)
        if gs is not None:
            gh = gs * g + gh
    return gh, gh - gh * q


@triton.jit
def load_block(pointer, base, offset, mask, ALIGN: tl.constexpr):
    """A block as float32; ALIGN > 1 says that ``pointer + base`` is a multiple of 16 bytes."""
    row = pointer + base
    if ALIGN > 1:
        row = tl.multiple_of(row, 16)
    return tl.load(row + offset, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store_block(pointer, base, offset, value, mask, ALIGN: tl.constexpr):
    row = pointer + base
    if ALIGN > 1:
        row = tl.multiple_of(row, 16)
    tl.store(row + offset, value.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def block_of_neurons(N, ALIGN: tl.constexpr, BLOCK: tl.constexpr):
    """First neuron of this program, lanes, and which of them exist. N is a multiple of ALIGN."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    count = tl.multiple_of(tl.minimum(N - start, BLOCK).to(tl.int32), ALIGN)
    lane = tl.arange(0, BLOCK)
    return start, lane, lane < count


@_jit
def forward_kernel(
    x, v0, q_pointer, s, v_last, v_seq, checkpoints, T, N: tl.int64, x_time: tl.int64, every, checkpoint_count,
    tau, reciprocal_tau, v_threshold, v_reset, n1, n2, n3, x_0, x_1, x_2, x_3, v0_0, v0_1, v0_2, v0_3,
    DECAY_INPUT: tl.constexpr, DIVIDE: tl.constexpr, SOFT_RESET: tl.constexpr, INPLACE: tl.constexpr,
    DIMS: tl.constexpr, WIDE: tl.constexpr, ALIGN: tl.constexpr, UNROLL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Outputs are dense in walking order; those that are None are not written. INPLACE: ``s`` is laid out as ``x``."""
    start, lane, mask = block_of_neurons(N, ALIGN, BLOCK)
    sizes = (n1, n2, n3)
    x_align: tl.constexpr = ALIGN if x_3 is None else 1
    v0_align: tl.constexpr = ALIGN if v0_3 is None else 1
    x_base, x_offset = block_offsets(start, lane, sizes, (x_0, x_1, x_2, x_3), DIMS, WIDE, ALIGN, x_align)
    q = reciprocal_tau if q_pointer is None else tl.load(q_pointer)
    if v0 is None:
        v = tl.full([BLOCK], 0.0, tl.float32) + v_reset
    else:
        v0_base, v0_offset = block_offsets(start, lane, sizes, (v0_0, v0_1, v0_2, v0_3), DIMS, WIDE, ALIGN, v0_align)
        v = load_block(v0, v0_base, v0_offset, mask, v0_align)
    slot = 0
    t = 0
    while t < T:
        xs = ()
        for i in tl.static_range(UNROLL):
            row = (t + i).to(tl.int64) * x_time + x_base
            xs = xs + (load_block(x, row, x_offset, mask & (t + i < T), x_align),)
        for i in tl.static_range(UNROLL):
            live = mask & (t + i < T)
            row = (t + i).to(tl.int64) * N + start
            h = charge(xs[i], v, q, tau, v_reset, DECAY_INPUT, DIVIDE)
            spikes = tl.where(h >= v_threshold, 1.0, 0.0)
            if INPLACE:
                x_row = (t + i).to(tl.int64) * x_time + x_base
                store_block(s, x_row, x_offset, spikes, live, x_align)
            elif s is not None:
                store_block(s, row, lane, spikes, live, ALIGN)
            v = tl.where(t + i < T, reset(h, v_threshold, v_reset, SOFT_RESET), v)
            if v_seq is not None:
                store_block(v_seq, row, lane, v, live, ALIGN)
            if checkpoints is not None:
                # A branch, not a mask: a masked store would still rearrange v through shared memory at every step.
                if (slot < checkpoint_count) & (t + i + 1 == (slot + 1) * every):
                    store_block(checkpoints, slot.to(tl.int64) * N + start, lane, v, mask, ALIGN)
                    slot += 1
        t += UNROLL
    if v_last is not None:
        store_block(v_last, start, lane, v, mask, ALIGN)


@_jit
def backward_kernel(
    x, v0, q_pointer, checkpoints, grad_s, grad_v_last, grad_v_seq, grad_x, grad_v0, tau_partials,
    T, N: tl.int64, x_time: tl.int64, gs_time: tl.int64, gvs_time: tl.int64,
    tau, reciprocal_tau, v_threshold, v_reset, alpha, width, n1, n2, n3,
    x_0, x_1, x_2, x_3, v0_0, v0_1, v0_2, v0_3, gs_0, gs_1, gs_2, gs_3,
    gvl_0, gvl_1, gvl_2, gvl_3, gvs_0, gvs_1, gvs_2, gvs_3,
    DECAY_INPUT: tl.constexpr, DIVIDE: tl.constexpr, SOFT_RESET: tl.constexpr, DETACH_RESET: tl.constexpr,
    SURROGATE: tl.constexpr, DIMS: tl.constexpr, WIDE: tl.constexpr, ALIGN: tl.constexpr, STEPS: tl.constexpr,
    AHEAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """From the last chunk of STEPS time steps to the first: recompute h of the chunk into registers, then walk back.

    ``checkpoints`` (None where one chunk is all) are dense in walking order; gradients are loaded AHEAD steps ahead.
    """
    start, lane, mask = block_of_neurons(N, ALIGN, BLOCK)
    sizes = (n1, n2, n3)
    x_align: tl.constexpr = ALIGN if x_3 is None else 1
    v0_align: tl.constexpr = ALIGN if v0_3 is None else 1
    gs_align: tl.constexpr = ALIGN if gs_3 is None else 1
    gvl_align: tl.constexpr = ALIGN if gvl_3 is None else 1
    gvs_align: tl.constexpr = ALIGN if gvs_3 is None else 1
    x_base, x_offset = block_offsets(start, lane, sizes, (x_0, x_1, x_2, x_3), DIMS, WIDE, ALIGN, x_align)
    gs_base, gs_offset = block_offsets(start, lane, sizes, (gs_0, gs_1, gs_2, gs_3), DIMS, WIDE, ALIGN, gs_align)
    gvs_base, gvs_offset = block_offsets(start, lane, sizes, (gvs_0, gvs_1, gvs_2, gvs_3), DIMS, WIDE, ALIGN, gvs_align)
    q = reciprocal_tau if q_pointer is None else tl.load(q_pointer)
    gv = tl.zeros([BLOCK], tl.float32)
    tau_sum = tl.zeros([BLOCK], tl.float64)
    if grad_v_last is not None:
        gvl_base, gvl_offset = block_offsets(
            start, lane, sizes, (gvl_0, gvl_1, gvl_2, gvl_3), DIMS, WIDE, ALIGN, gvl_align
        )
        gv = load_block(grad_v_last, gvl_base, gvl_offset, mask, gvl_align)
    first = (T - 1) // STEPS * STEPS
    while first >= 0:
        v = tl.full([BLOCK], 0.0, tl.float32) + v_reset
        if v0 is not None:
            v0_base, v0_offset = block_offsets(
                start, lane, sizes, (v0_0, v0_1, v0_2, v0_3), DIMS, WIDE, ALIGN, v0_align
            )
            v = load_block(v0, v0_base, v0_offset, mask & (first == 0), v0_align)
        if checkpoints is not None:
            row = (first // STEPS - 1).to(tl.int64) * N + start
            v = tl.where(first == 0, v, load_block(checkpoints, row, lane, mask & (first > 0), ALIGN))
        v_first = v
        hs = ()
        for i in tl.static_range(STEPS):
            row = (first + i).to(tl.int64) * x_time + x_base
            x_t = load_block(x, row, x_offset, mask & (first + i < T), x_align)
            h = charge(x_t, v, q, tau, v_reset, DECAY_INPUT, DIVIDE)
            v = reset(h, v_threshold, v_reset, SOFT_RESET)
            hs = hs + (h,)
        chunk_sum = tl.zeros([BLOCK], tl.float32)  # float32 within a chunk alone, so that errors do not grow with T
        for last in tl.static_range(STEPS - 1, 0 - 1, 0 - AHEAD):
            gss = ()
            if grad_s is not None:
                for i in tl.static_range(last, last - AHEAD, 0 - 1):
                    row = (first + i).to(tl.int64) * gs_time + gs_base
                    live = first + i < T
                    gss = gss + (load_block(grad_s, row, gs_offset, mask & live, gs_align),)
            for i in tl.static_range(last, last - AHEAD, 0 - 1):
                live = first + i < T
                if grad_v_seq is not None:
                    row = (first + i).to(tl.int64) * gvs_time + gvs_base
                    gv += load_block(grad_v_seq, row, gvs_offset, mask & live, gvs_align)
                gs = None if grad_s is None else gss[last - i]
                gh, gv_before = step_backward(
                    gs, hs[i], gv, q, v_threshold, v_reset, alpha, width, SURROGATE, SOFT_RESET, DETACH_RESET
                )
                gv = tl.where(live, gv_before, gv)
                row = (first + i).to(tl.int64) * N + start
                store_block(grad_x, row, lane, gh * q if DECAY_INPUT else gh, mask & live, ALIGN)
                if tau_partials is not None:  # dh/dq = x - leak with decay_input, else -leak
                    slope = v_reset - (v_first if i == 0 else reset(hs[i - 1], v_threshold, v_reset, SOFT_RESET))
                    if DECAY_INPUT:
                        row = (first + i).to(tl.int64) * x_time + x_base
                        slope += load_block(x, row, x_offset, mask & live, x_align)
                    chunk_sum += tl.where(live, gh * slope, 0.0)
        if tau_partials is not None:
            tau_sum += chunk_sum.to(tl.float64)
        first -= STEPS
    if grad_v0 is not None:
        store_block(grad_v0, start, lane, gv, mask, ALIGN)
    if tau_partials is not None:
        total = tl.sum(tl.where(mask, tau_sum, 0.0), axis=0)
        tl.store(tau_partials + tl.program_id(0), total)


@_jit
def packed_kernel(
    x, v0, q_pointer, packed, v_last, T, N: tl.int64, x_time: tl.int64, K,
    tau, reciprocal_tau, v_threshold, v_reset, n1, n2, n3, x_0, x_1, x_2, x_3, v0_0, v0_1, v0_2, v0_3,
    vl_0, vl_1, vl_2, vl_3, i_0, i_1, i_2, i_3, x_bit, v0_bit, vl_bit,
    DECAY_INPUT: tl.constexpr, DIVIDE: tl.constexpr, SOFT_RESET: tl.constexpr, TAIL: tl.constexpr,
    DIMS: tl.constexpr, WIDE: tl.constexpr, ALIGN: tl.constexpr, BIT_ALIGN: tl.constexpr, LAST_ALIGN: tl.constexpr,
    UNROLL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Forward over N bytes a step, eight neurons each; ``packed`` is dense in walking order, the rest has two strides:
    between bytes (that of one neuron times 8 along the packed dimension) and, ``*_bit``, between their neurons.

    TAIL: K, the size of the packed dimension, is no multiple of 8; the ``i`` strides then count bytes along it.
    ALIGN: as elsewhere, where neighbouring bytes are neighbours in x. BIT_ALIGN: all strides between bytes are
    multiples of it, and the neurons of a byte are neighbours. LAST_ALIGN: either, of v_last.
    """
    start, lane, byte_mask = block_of_neurons(N, ALIGN, BLOCK)
    sizes = (n1, n2, n3)
    bit = tl.arange(0, 8)[None, :]
    x_align: tl.constexpr = ALIGN * BIT_ALIGN
    x_base, x_offset = block_offsets(start, lane, sizes, (x_0, x_1, x_2, x_3), DIMS, WIDE, ALIGN, x_align)
    x_offset = x_offset[:, None] + bit_offsets(bit, x_bit, ALIGN, WIDE)
    mask = byte_mask[:, None]
    if TAIL:
        i_base, i_offset = block_offsets(start, lane, sizes, (i_0, i_1, i_2, i_3), DIMS, WIDE, ALIGN, 1)
        mask = mask & ((i_base + i_offset)[:, None] * 8 + bit < K)
    q = reciprocal_tau if q_pointer is None else tl.load(q_pointer)
    v = tl.full([BLOCK, 8], 0.0, tl.float32) + v_reset
    if v0 is not None:
        v0_base, v0_offset = block_offsets(start, lane, sizes, (v0_0, v0_1, v0_2, v0_3), DIMS, WIDE, ALIGN, 1)
        v0_offset = v0_offset[:, None] + bit_offsets(bit, v0_bit, 1, WIDE)
        v = load_block(v0, v0_base, v0_offset, mask, 1)
    t = 0
    while t < T:
        xs = ()
        for i in tl.static_range(UNROLL):
            row = (t + i).to(tl.int64) * x_time + x_base
            xs = xs + (load_block(x, row, x_offset, mask & (t + i < T), x_align),)
        for i in tl.static_range(UNROLL):
            h = charge(xs[i], v, q, tau, v_reset, DECAY_INPUT, DIVIDE)
            v = tl.where(t + i < T, reset(h, v_threshold, v_reset, SOFT_RESET), v)
            byte = tl.sum(tl.where((h >= v_threshold) & mask, 1 << bit, 0), axis=1)
            row = (t + i).to(tl.int64) * N + start
            store_block(packed, row, lane, byte, byte_mask & (t + i < T), 1)
        t += UNROLL
    vl_base, vl_offset = block_offsets(start, lane, sizes, (vl_0, vl_1, vl_2, vl_3), DIMS, WIDE, ALIGN, LAST_ALIGN)
    vl_offset = vl_offset[:, None] + bit_offsets(bit, vl_bit, LAST_ALIGN, WIDE)
    store_block(v_last, vl_base, vl_offset, v, mask, LAST_ALIGN)
