"""Triton kernels for N:M weights: product with dense activations, decompression, compression, masks.

Blocks of M weights are laid out over the next power of two (MP), so that any M from 2 on works; the N kept values of a
block are placed by comparing their positions with 0 ... MP - 1, in registers. Triton has no sparse tensor-core
instruction: what these kernels save is bytes.

Names: ``b_`` block, ``o_`` output row, ``t`` number of a block in the whole weight.
"""

from __future__ import annotations

import triton
import triton.language as tl

#: How values are stored: as they are used, as int8, or as e4m3.
PLAIN, INT8, E4M3 = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def _decoded(v, STORED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Stored values as floats. e4m3 comes as uint8: hardware before sm_89 has no such type.

    Its exponent and mantissa, moved to where float16 has them, are the value over 2^8, subnormal ones included.
    """
    found = v
    if STORED == INT8:
        found = v.to(tl.float32)
    if STORED == E4M3:
        bits = v.to(tl.int32)
        half = (((bits & 0x80) << 8) | ((bits & 0x7F) << 7)).to(tl.int16).to(tl.float16, bitcast=True)
        found = tl.where((bits & 0x7F) == 0x7F, float("nan"), half.to(tl.float32) * 256.0)
    return found


@triton.jit
def _position(indices, number, size, exists, BITS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Position ``number`` of the stream of ``size`` bytes."""
    offset = number.to(tl.int64) * BITS
    byte = offset >> 3
    word = tl.load(indices + byte, mask=exists, other=0).to(tl.int32)
    if 8 % BITS != 0:  # it may go on in the next byte
        word |= tl.load(indices + byte + 1, mask=exists & (byte + 1 < size), other=0).to(tl.int32) << 8
    return (word >> (offset & 7).to(tl.int32)) & ((1 << BITS) - 1)


@triton.jit
def _placed(w, v, position, e):  # type: ignore[no-untyped-def]
    """``w [..., MP]`` with the values ``v [...]`` at their positions."""
    return tl.where(position[:, :, None] == e, v[:, :, None], w)


@triton.jit
def _bits(v, STORED: tl.constexpr, COMPUTE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The 16 bits that a stored value, in the low bits of an integer, has in COMPUTE."""
    bits = v & 0xFFFF
    if STORED == INT8:
        signed = ((v & 0xFF) ^ 0x80) - 0x80
        bits = signed.to(tl.float32).to(COMPUTE).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    if STORED == E4M3:
        bits = _decoded(v & 0xFF, STORED).to(COMPUTE).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    return bits


@triton.jit
def _tile_of_fours(  # type: ignore[no-untyped-def]
    values, indices, o, rows_exist, first, B,
    N: tl.constexpr, STORED: tl.constexpr, COMPUTE: tl.constexpr, ROWS: tl.constexpr, NB: tl.constexpr,
):  # fmt: skip
    """As :func:`_dense_tile` for 2:4 and 1:4 in 16 bits, whose rows have whole 32-bit words of positions.

    ``values`` holds a block in one integer, ``indices`` int32. A block of the dense weight is put together in 64 bits
    by two shifts: a comparison and a selection for every weight took eight times the instructions (SASS), more than the
    bytes that are saved are worth.
    """
    BLOCKS: tl.constexpr = 16 // N  # a word of positions
    VALUE_BITS: tl.constexpr = 16 if STORED == PLAIN else 8
    word = first // BLOCKS + tl.arange(0, NB // BLOCKS)
    pointers = indices + (o.to(tl.int64) * (B // BLOCKS))[:, None] + word[None, :]
    code = tl.load(pointers, mask=rows_exist[:, None] & (word < B // BLOCKS)[None, :], other=0)
    b = first + tl.arange(0, NB)
    pointers = values + (o.to(tl.int64) * B)[:, None] + b[None, :]
    pair = tl.load(pointers, mask=rows_exist[:, None] & (b < B)[None, :], other=0).to(tl.int32)
    pair = tl.reshape(pair, (ROWS, NB // BLOCKS, BLOCKS))
    code = code[:, :, None] >> (tl.arange(0, BLOCKS) * (2 * N))[None, None, :]
    block = _bits(pair, STORED, COMPUTE).to(tl.int64) << ((code & 3) << 4).to(tl.int64)
    if N == 2:
        block |= _bits(pair >> VALUE_BITS, STORED, COMPUTE).to(tl.int64) << ((code & 12) << 2).to(tl.int64)
    # Joined, the four stay in one thread; by comparison with their numbers every block was made in four of them.
    even = tl.join(block.to(tl.int16), (block >> 32).to(tl.int16))
    odd = tl.join((block >> 16).to(tl.int16), (block >> 48).to(tl.int16))
    return tl.reshape(tl.join(even, odd), (ROWS, NB * 4)).to(COMPUTE, bitcast=True)


@triton.jit
def _dense_tile(  # type: ignore[no-untyped-def]
    values, indices, o, rows_exist, first, B, value_row, index_bytes,
    N: tl.constexpr, MP: tl.constexpr, BITS: tl.constexpr, FOURS: tl.constexpr, STORED: tl.constexpr,
    COMPUTE: tl.constexpr, ROWS: tl.constexpr, NB: tl.constexpr,
):  # fmt: skip
    """``[ROWS, NB * MP]`` of the dense weight: blocks ``first ...`` of the rows ``o``, of B blocks each."""
    if FOURS:
        w = _tile_of_fours(values, indices, o, rows_exist, first, B, N, STORED, COMPUTE, ROWS, NB)
    else:
        e = tl.arange(0, MP)[None, None, :]
        w = tl.zeros((ROWS, NB, MP), COMPUTE)
        b = first + tl.arange(0, NB)
        exists = rows_exist[:, None] & (b < B)[None, :]
        number = (o.to(tl.int64) * value_row)[:, None] + (b * N)[None, :]
        for i in tl.static_range(N):
            v = tl.load(values + number + i, mask=exists, other=0)
            position = _position(indices, number + i, index_bytes, exists, BITS)
            w = _placed(w, _decoded(v, STORED).to(COMPUTE), position, e)
        w = tl.reshape(w, (ROWS, NB * MP))
    return w


@triton.jit
def _finished(sums, scale, bias, o, exists):  # type: ignore[no-untyped-def]
    """``scale[o] * sums + bias[o]``; outputs lie along the first dimension."""
    if scale is not None:
        sums = sums * tl.load(scale + o, mask=exists, other=0.0)[:, None]
    if bias is not None:
        sums = sums + tl.load(bias + o, mask=exists, other=0.0)[:, None]
    return sums


@triton.jit
def _columns(first, B, K, M: tl.constexpr, MP: tl.constexpr, NB: tl.constexpr):  # type: ignore[no-untyped-def]
    """Columns of the dense weight that NB blocks stand for, with the padding of each, and which of them exist."""
    lane = tl.arange(0, NB * MP)
    k = first * M + lane
    exists = k < K
    if M != MP:
        k = (first + lane // MP) * M + lane % MP
        exists = (first + lane // MP < B) & (lane % MP < M)
    return k, exists


@triton.jit(do_not_specialize=["R", "index_bytes", "split_tiles"])
def dense_kernel(  # type: ignore[no-untyped-def]
    x, values, indices, scale, bias, y, partials, R, OUT, B, K, value_row, index_bytes, split_tiles,
    N: tl.constexpr, M: tl.constexpr, MP: tl.constexpr, BITS: tl.constexpr, FOURS: tl.constexpr, STORED: tl.constexpr,
    COMPUTE: tl.constexpr, BR: tl.constexpr, BO: tl.constexpr, NB: tl.constexpr,
):  # fmt: skip
    """``y[r, o] = scale[o] * sum_k x[r, k] w[o, k] + bias[o]`` over ``split_tiles`` times NB blocks of every row of w.

    x ``[R, K]``, y ``[R, O]``, B blocks and ``value_row`` values a row; with ``partials [splits, R, O]`` the bare sums
    of each split go there instead. The weight is the left operand, which tensor cores take from registers.
    """
    o = tl.program_id(0) * BO + tl.arange(0, BO)
    r = tl.program_id(1) * BR + tl.arange(0, BR)
    split = tl.program_id(2)
    o_exists, r_exists = o < OUT, r < R
    x_row = r.to(tl.int64) * K
    sums = tl.zeros((BO, BR), tl.float32)
    for tile in range(split * split_tiles, tl.minimum(tl.cdiv(B, NB), (split + 1) * split_tiles)):
        first = tile * NB
        w = _dense_tile(
            values, indices, o, o_exists, first, B, value_row, index_bytes, N, MP, BITS, FOURS, STORED, COMPUTE, BO, NB
        )
        k, k_exists = _columns(first, B, K, M, MP, NB)
        rows = tl.load(x + x_row[:, None] + k[None, :], mask=r_exists[:, None] & k_exists[None, :], other=0.0)
        sums = tl.dot(w, tl.trans(rows.to(COMPUTE)), sums, input_precision="ieee")
    exists = o_exists[:, None] & r_exists[None, :]
    place = r.to(tl.int64)[None, :] * OUT + o[:, None]
    if partials is not None:
        tl.store(partials + split.to(tl.int64) * R * OUT + place, sums, mask=exists)
    else:
        sums = _finished(sums, scale, bias, o, o_exists)
        tl.store(y + place, sums.to(y.dtype.element_ty), mask=exists)


@triton.jit(do_not_specialize=["R", "splits"])
def reduce_kernel(partials, scale, bias, y, R, OUT, splits, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Adds up ``partials [splits, R, O]``, always in the same order; a program takes BLOCK outputs of one row."""
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.program_id(1).to(tl.int64) * OUT
    exists = o < OUT
    sums = tl.zeros((BLOCK,), tl.float32)
    pointers = partials + row + o
    for _ in range(splits):
        sums += tl.load(pointers, mask=exists, other=0.0)
        pointers += R.to(tl.int64) * OUT
    sums = _finished(sums[:, None], scale, bias, o, exists)
    tl.store(y + row + o, tl.reshape(sums, (BLOCK,)).to(y.dtype.element_ty), mask=exists)


@triton.jit(do_not_specialize=["rows", "index_bytes"])
def decompress_kernel(  # type: ignore[no-untyped-def]
    values, indices, scale, dense, rows, B, K, value_row, index_bytes,
    N: tl.constexpr, M: tl.constexpr, MP: tl.constexpr, BITS: tl.constexpr, FOURS: tl.constexpr, STORED: tl.constexpr,
    COMPUTE: tl.constexpr, ROWS: tl.constexpr, NB: tl.constexpr,
):  # fmt: skip
    """``dense [rows, K]``, with the scale of its row multiplied in where there is one."""
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    first = tl.program_id(0) * NB
    exists = row < rows
    w = _dense_tile(
        values, indices, row, exists, first, B, value_row, index_bytes, N, MP, BITS, FOURS, STORED, COMPUTE, ROWS, NB
    )
    if scale is not None:
        w = w.to(tl.float32) * tl.load(scale + row, mask=exists, other=0.0)[:, None]
    k, k_exists = _columns(first, B, K, M, MP, NB)
    pointers = dense + (row.to(tl.int64) * K)[:, None] + k[None, :]
    tl.store(pointers, w.to(dense.dtype.element_ty), mask=exists[:, None] & k_exists[None, :])


@triton.jit
def _block_lanes(blocks, M: tl.constexpr, MP: tl.constexpr, NB: tl.constexpr):  # type: ignore[no-untyped-def]
    """Numbers ``[NB, 1]`` of this program's blocks, positions ``[1, MP]`` in them, and which of both exist."""
    t = tl.program_id(0).to(tl.int64) * NB + tl.arange(0, NB)[:, None]
    e = tl.arange(0, MP)[None, :]
    return t, e, (t < blocks) & (e < M)


@triton.jit(do_not_specialize=["blocks"])
def compress_kernel(  # type: ignore[no-untyped-def]
    dense, mask, values, positions, violations, blocks, SIGN: tl.constexpr,
    N: tl.constexpr, M: tl.constexpr, MP: tl.constexpr, NB: tl.constexpr,
):  # fmt: skip
    """Values ``[blocks, N]`` and positions (uint8, the same shape) of the kept entries of ``dense``.

    ``dense`` and ``values`` are integers of the weight's size, so that every bit survives; SIGN is the sign's bit.
    Kept are the masked entries, or non-zeros before negative zeros, then what comes first. ``violations``: blocks of
    each program with more than N masked entries or non-zeros.
    """
    t, e, exists = _block_lanes(blocks, M, MP, NB)
    bits = tl.load(dense + t * M + e, mask=exists, other=0)
    if mask is not None:
        strong = tl.load(mask + t * M + e, mask=exists, other=0) != 0
        bits = tl.where(strong, bits, 0)
        weak = tl.zeros_like(strong)
    else:
        weak = bits == SIGN
        strong = (bits != 0) & (bits != SIGN)
    strong_before = tl.cumsum(strong.to(tl.int32), 1)
    weak_before = tl.cumsum(weak.to(tl.int32), 1)
    none_before = tl.cumsum((exists & ~strong & ~weak).to(tl.int32), 1)
    strong_count = tl.sum(strong.to(tl.int32), 1)[:, None]
    weak_count = tl.sum(weak.to(tl.int32), 1)[:, None]
    # The number of entries that go before this one, and one.
    rank = tl.where(strong, strong_before, strong_count + tl.where(weak, weak_before, weak_count + none_before))
    kept = exists & (rank <= N)
    slot = t * N + tl.cumsum(kept.to(tl.int32), 1) - 1
    tl.store(values + slot, bits, mask=kept)
    tl.store(positions + slot, (e + tl.zeros_like(slot)).to(tl.uint8), mask=kept)
    tl.store(violations + tl.program_id(0), tl.sum((strong_count > N).to(tl.int32)))


@triton.jit(do_not_specialize=["count", "size"])
def pack_positions_kernel(  # type: ignore[no-untyped-def]
    positions, indices, count, size, BITS: tl.constexpr, BLOCK: tl.constexpr
):
    """``count`` positions of BITS bits as a stream of ``size`` bytes, low bit first."""
    byte = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    found = tl.zeros((BLOCK,), tl.int32)
    if 8 % BITS == 0:
        for i in tl.static_range(8 // BITS):
            number = byte * (8 // BITS) + i
            found |= tl.load(positions + number, mask=number < count, other=0).to(tl.int32) << (i * BITS)
    else:
        for i in tl.static_range(8):
            bit = byte * 8 + i
            position = tl.load(positions + bit // BITS, mask=bit // BITS < count, other=0).to(tl.int32)
            found |= ((position >> (bit % BITS).to(tl.int32)) & 1) << i
    tl.store(indices + byte, found.to(tl.uint8), mask=byte < size)


@triton.jit(do_not_specialize=["blocks"])
def mask_kernel(  # type: ignore[no-untyped-def]
    dense, mask, blocks, SIGN: tl.constexpr, N: tl.constexpr, M: tl.constexpr, MP: tl.constexpr, NB: tl.constexpr
):
    """The N largest magnitudes of each block, ties to the lower position: uint8 0 or 1. ``dense``: see compress."""
    t, e, exists = _block_lanes(blocks, M, MP, NB)
    # Without the sign, bits of floating-point numbers are ordered as integers are.
    size = tl.load(dense + t * M + e, mask=exists, other=0) & ~SIGN
    size = tl.where(exists, size, -1)
    other, mine = size[:, None, :], size[:, :, None]
    position = tl.arange(0, MP)
    earlier = (position[None, :] < position[:, None])[None, :, :]
    before = tl.sum(((other > mine) | ((other == mine) & earlier)).to(tl.int32), 2)
    tl.store(mask + t * M + e, (before < N).to(tl.uint8), mask=exists)
