"""Prophesee EVT3 (.raw): 16-bit little-endian words with their type in bits 15..12, read with a running state.

0: y; 2: an event at x, with its polarity; 3: x and polarity for vectors; 4 and 5: a vector of 12 or 8 pixels, a bit
each; 6 and 8: the lower and upper 12 bits of the time, which runs over every 16.8 s. Others (triggers, continued and
vendor words) are skipped, and so are events before the first time and y. (0, 0) is at the top left.

Own decoder: expelliarmus 1.1.12 gives time stamps of another file's length (measured on a recording of 8.8 ms: 53.9 ms,
where the last time words say 8.8 as faery reads them).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from snn_core.datasets.readers.event_file import EventBlocks, EventFile, OpenedEvents, Unwrap, check_inside, pack

WORD_BYTES = 2
ADDR_Y, ADDR_X, VECT_BASE_X, VECT_12, VECT_8, TIME_LOW, TIME_HIGH = 0, 2, 3, 4, 5, 6, 8
KNOWN_TYPES = np.isin(np.arange(16), (0x0, 0x2, 0x3, 0x4, 0x5, 0x6, 0x7, 0x8, 0xA, 0xE, 0xF))
TIME_BITS = 12
#: What 11 bits of x can say; a vector could go on beyond.
ADDRESSABLE = (2048, 2048)

IntArray = NDArray[np.int64]


@dataclass
class _State:
    """What the words so far have set; -1 where nothing has."""

    y: int = -1
    high: int = -1
    low: int = 0
    base: int = 0  # where the next vector begins
    polarity: int = 0
    unwrap: Unwrap = field(default_factory=lambda: Unwrap(TIME_BITS))


def open_evt3(file: EventFile, size: tuple[int, int] | None) -> OpenedEvents:
    """Open an EVT3 file whose header has been read. DataError: a word of an unknown type, a cut-off file."""
    return OpenedEvents("Prophesee EVT3", size, _events(file, size or ADDRESSABLE))


def _events(file: EventFile, size: tuple[int, int]) -> EventBlocks:
    state = _State()
    for start, data in file.blocks(WORD_BYTES, "word"):
        word = np.frombuffer(data, "<u2").astype(np.int64)
        kind, value = word >> 12, word & 0xFFF
        if not KNOWN_TYPES[kind].all():
            index = int((~KNOWN_TYPES[kind]).argmax())
            raise file.error(start + index * WORD_BYTES, f"a word of type {kind[index]:#x}, which EVT3 has not")
        t = _times(kind, value, state)
        y = _last_set(kind == ADDR_Y, value & 0x7FF, state.y)
        row, x, p = _addresses(kind, value, state)
        state.y = int(y[-1])
        known = (t[row] >= 0) & (y[row] >= 0)
        row, x, p = row[known], x[known], p[known]
        events = pack(t[row], np.minimum(x, size[0]), y[row], p)
        offsets = start + row * WORD_BYTES
        yield check_inside(file, events, size, lambda index, offsets=offsets: int(offsets[index]))  # type: ignore[misc]


def _last_set(sets: NDArray[np.bool_], values: IntArray, before: int) -> IntArray:
    """At each word the value that was last set, up to and including it; ``before`` where none was in this block."""
    return np.concatenate([[before], values[sets]])[np.cumsum(sets)]


def _times(kind: IntArray, value: IntArray, state: _State) -> IntArray:
    """Time in us at each word, negative before the first upper part."""
    is_high, is_low = kind == TIME_HIGH, kind == TIME_LOW
    highs = state.unwrap(value[is_high])
    # A new upper part means lower part 0 until it comes; the same again, as sent every few us, leaves it.
    renewed = is_high.copy()
    renewed[is_high] = np.diff(highs, prepend=state.high) != 0
    low = _last_set(is_low | renewed, np.where(is_low, value, 0), state.low)
    spread = np.zeros_like(value)
    spread[is_high] = highs
    high = _last_set(is_high, spread, state.high)
    state.high, state.low = int(high[-1]), int(low[-1])
    return np.where(high >= 0, high << TIME_BITS | low, -1)


def _addresses(kind: IntArray, value: IntArray, state: _State) -> tuple[IntArray, IntArray, IntArray]:
    """Of every event: index of its word, x, polarity; in file order."""
    is_base, is_12, is_8 = kind == VECT_BASE_X, kind == VECT_12, kind == VECT_8
    moved = np.cumsum(12 * is_12 + 8 * is_8)
    before = moved - 12 * is_12 - 8 * is_8
    origin = _last_set(is_base, (value & 0x7FF) - moved, state.base)  # minus what was moved before it
    polarity = _last_set(is_base, value >> 11, state.polarity)
    state.base, state.polarity = int(origin[-1] + moved[-1]), int(polarity[-1])

    vectors = np.flatnonzero(is_12 | is_8)
    bits = np.where(is_8[vectors], value[vectors] & 0xFF, value[vectors])
    which, bit = np.nonzero(bits[:, None] >> np.arange(12) & 1)
    inside = vectors[which]
    single = np.flatnonzero(kind == ADDR_X)
    row = np.concatenate([single, inside])
    x = np.concatenate([value[single] & 0x7FF, origin[inside] + before[inside] + bit])
    p = np.concatenate([value[single] >> 11, polarity[inside]])
    order = np.argsort(row, kind="stable")
    return row[order], x[order], p[order]
