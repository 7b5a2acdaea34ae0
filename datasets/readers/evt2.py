"""Prophesee EVT2 (.raw): 32-bit little-endian words with their type in bits 31..28.

0 and 1: an OFF or ON event, time bits 5..0 in 27..22, x in 21..11, y in 10..0; 8: time bits 33..6. Others (triggers,
vendor words) are skipped, and so are events before the first time word. (0, 0) is at the top left.
"""

from __future__ import annotations

import numpy as np

from snn_core.datasets.readers.event_file import EventBlocks, EventFile, OpenedEvents, Unwrap, check_inside, pack

WORD_BYTES = 4
TIME_HIGH, TIME_HIGH_BITS, TIME_LOW_BITS = 8, 28, 6
KNOWN_TYPES = np.isin(np.arange(16), (0x0, 0x1, 0x8, 0xA, 0xE, 0xF))


def open_evt2(file: EventFile, size: tuple[int, int] | None) -> OpenedEvents:
    """Open an EVT2 file whose header has been read. DataError: a word of an unknown type, a cut-off file."""
    return OpenedEvents("Prophesee EVT2", size, _events(file, size))


def _events(file: EventFile, size: tuple[int, int] | None) -> EventBlocks:
    unwrap, high = Unwrap(TIME_HIGH_BITS), -1
    for start, data in file.blocks(WORD_BYTES, "word"):
        word = np.frombuffer(data, "<u4").astype(np.int64)
        kind = word >> 28
        if not KNOWN_TYPES[kind].all():
            index = int((~KNOWN_TYPES[kind]).argmax())
            raise file.error(start + index * WORD_BYTES, f"a word of type {kind[index]:#x}, which EVT2 has not")
        is_time = kind == TIME_HIGH
        highs = np.concatenate([[high], unwrap(word[is_time] & (1 << TIME_HIGH_BITS) - 1)])
        at_word = highs[np.cumsum(is_time)]
        high = int(highs[-1])
        rows = np.flatnonzero((kind <= 1) & (at_word >= 0))
        word = word[rows]
        t = at_word[rows] << TIME_LOW_BITS | word >> 22 & 0x3F
        events = pack(t, word >> 11 & 0x7FF, word & 0x7FF, kind[rows])
        offsets = start + rows * WORD_BYTES
        yield check_inside(file, events, size, lambda index, offsets=offsets: int(offsets[index]))  # type: ignore[misc]
