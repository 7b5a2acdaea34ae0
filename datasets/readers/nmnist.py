"""N-MNIST's and N-Caltech101's .bin among files of unknown content: it has no magic number, so it must be plausible."""

from __future__ import annotations

import numpy as np

from snn_core.datasets.nmnist_format import EVENT_BYTES, OVERFLOW_MICROSECONDS, OVERFLOW_Y, decode_nmnist
from snn_core.datasets.readers.event_file import EventBlocks, EventFile, OpenedEvents

#: What the format's 8 bits can address: N-MNIST uses 34 x 34 of it, N-Caltech101 240 x 180.
SENSOR_SIZE = (256, OVERFLOW_Y, 2)
#: Events that are looked at, and the share of them that may be earlier than the one before.
LOOKED_AT, MAX_BACKWARDS = 4096, 0.02
#: Recordings are read whole; real ones have at most a few megabytes.
MAX_BYTES = 1 << 28


def looks_like_nmnist(head: bytes, size: int) -> bool:
    """Whether the first bytes and the size of a file fit: rows below 240 or its mark, and times that ascend."""
    raw = np.frombuffer(head[: min(len(head) // EVENT_BYTES, LOOKED_AT) * EVENT_BYTES], np.uint8).reshape(
        -1, EVENT_BYTES
    )
    is_text = head.isascii() and head.decode().replace("\n", "").isprintable()
    if len(raw) == 0 or size > MAX_BYTES or is_text:
        return False
    _, y, high, middle, low = raw.T.astype(np.int64)
    overflow = y == OVERFLOW_Y
    t = ((high & 0x7F) << 16 | middle << 8 | low) + np.cumsum(overflow) * OVERFLOW_MICROSECONDS
    t = t[~overflow]
    if len(t) == 0 or (y > OVERFLOW_Y).any():
        return False
    return bool((np.diff(t) < 0).sum() <= MAX_BACKWARDS * len(t))


def open_nmnist(file: EventFile) -> OpenedEvents:
    """Open an N-MNIST .bin file; errors are those of :func:`snn_core.datasets.decode_nmnist`."""
    return OpenedEvents("N-MNIST .bin (by plausibility: the format has no mark)", None, _events(file))


def _events(file: EventFile) -> EventBlocks:
    yield decode_nmnist(file.exactly(file.size, "the file"), file.name, SENSOR_SIZE)
