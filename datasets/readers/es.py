"""Event Stream (.es), version 2, of a DVS: a 20-byte header, then bytes that must be walked from the first.

Header: ``Event Stream``, three bytes of version, a byte for the type of the events (1 DVS), width and height as 16-bit
little-endian numbers. Then: 0xFE is a reset; 0xFF adds 127 us; any other byte begins an event: us since the last in
bits 7..1, ON in bit 0, then x and y of 16 bits each. **y counts from the bottom**; here it is turned, so that (0, 0) is
at the top left, as faery does and event_stream does not.

Own decoder: event_stream 1.6.3 and faery 0.7.1 agree with it on real recordings and refused 116 of 150 damaged files
without a crash, but neither names an offset, and event_stream has no release for new Pythons since 2024.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from snn_core.datasets.readers.event_file import EventBlocks, EventFile, OpenedEvents, check_inside, checked_size, pack

MAGIC = b"Event Stream"
TYPES = {0: "generic", 1: "dvs", 2: "atis", 3: "amd", 4: "color"}
DVS = 1
RESET, OVERFLOW, OVERFLOW_MICROSECONDS = 0xFE, 0xFF, 127
EVENT_BYTES = 5
#: Rows that are walked side by side.
ROWS = 1024


def open_es(file: EventFile) -> OpenedEvents:
    """Open an .es file. DataError: another version or type of events, pixels outside the sensor, a cut-off file."""
    header = file.exactly(16, "the header")
    version, kind = tuple(header[12:15]), header[15]
    if version[0] != 2:
        raise file.error(12, f"Event Stream of version {'.'.join(map(str, version))}; only 2 is read")
    if kind != DVS:
        raise file.error(15, f"events of type {kind} ({TYPES.get(kind, 'unknown')}); only 1 (dvs) is read")
    width, height = np.frombuffer(file.exactly(4, "the sensor's size"), "<u2").tolist()
    size = checked_size(file, width, height, 16)
    return OpenedEvents(f"Event Stream {'.'.join(map(str, version))}, DVS", size, _events(file, size))


def _events(file: EventFile, size: tuple[int, int]) -> EventBlocks:
    now, rest, start = 0, b"", file.tell()
    for offset, fresh in file.blocks(1, "byte"):
        data, start = np.frombuffer(rest + fresh, np.uint8), offset - len(rest)
        # What begins in the last four bytes may not be whole: it waits for the next block.
        whole = max(len(data) - (EVENT_BYTES - 1), 0)
        begins, end = _walk(data, whole)
        now, events, rows = _decode(data, begins, now, size)
        rest = data[end:].tobytes()
        yield check_inside(file, events, size, lambda index, rows=rows, start=start: int(start + rows[index]))  # type: ignore[misc]
        start += end
    tail = np.frombuffer(rest, np.uint8)
    marks = tail >= RESET
    if not marks.all():
        first = start + int((~marks).argmax())
        raise file.error(
            first, f"an incomplete event: {file.size - first} of {EVENT_BYTES} bytes (the file is cut off)"
        )


def _decode(
    data: NDArray[np.uint8], begins: NDArray[np.int64], now: int, size: tuple[int, int]
) -> tuple[int, NDArray[np.void], NDArray[np.int64]]:
    """Time after all ``begins``, the events among them, and where in ``data`` these begin."""
    first = data[begins].astype(np.int64)
    is_event = first < RESET
    step = np.where(is_event, first >> 1, np.where(first == OVERFLOW, OVERFLOW_MICROSECONDS, 0))
    t = now + np.cumsum(step)
    rows = begins[is_event]
    x = data[rows + 1].astype(np.int64) | data[rows + 2].astype(np.int64) << 8
    y = data[rows + 3].astype(np.int64) | data[rows + 4].astype(np.int64) << 8
    x, y = np.minimum(x, size[0]), np.maximum(size[1] - 1 - y, -1)  # stay outside, but fit in 16 bits
    return int(t[-1]) if len(t) else now, pack(t[is_event], x, y, first[is_event] & 1), rows


def _walk(data: NDArray[np.uint8], whole: int) -> tuple[NDArray[np.int64], int]:
    """Where events and marks begin among the first ``whole`` bytes, ascending, and where the next one begins.

    An event's last four bytes look like marks or not, so the bytes must be walked. They are cut into rows; each row is
    walked from all five places where its first beginning can lie, all rows at once; then only the entries are chained.
    """
    if whole == 0:
        return np.empty(0, np.int64), 0
    length = -(-whole // ROWS)
    step = np.where(data[:whole] >= RESET, 1, EVENT_BYTES).astype(np.int64)
    first = np.arange(0, whole, length)
    last = np.minimum(first + length, whole)
    exits = np.minimum(first[:, None] + np.arange(EVENT_BYTES), np.maximum(whole, last)[:, None])
    while (inside := exits < last[:, None]).any():
        exits[inside] += step[exits[inside]]
    entries, place = np.empty(len(first), np.int64), 0
    for row, begin in enumerate(first.tolist()):
        entries[row] = place
        if place < last[row]:
            place = int(exits[row, place - begin])
    found = np.zeros(whole, np.bool_)
    while (inside := entries < last).any():
        found[entries[inside]] = True
        entries[inside] += step[entries[inside]]
    return np.flatnonzero(found), place
