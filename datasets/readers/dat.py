"""Prophesee DAT: header lines that begin with ``%``, two bytes for type and size of an event, then 64 bits an event.

Little-endian: 32 bits of time in us; 32 bits with x in 13..0, y in 27..14, ON in bit 28. Files of version 0 and 1 have
x in 8..0, y in 16..9, ON in bit 17. (0, 0) is at the top left.

expelliarmus reads these files too, but does not look at the version, at the type or at the end of a cut-off file.
"""

from __future__ import annotations

import re

import numpy as np

from snn_core.datasets.readers.event_file import (
    EventBlocks,
    EventFile,
    OpenedEvents,
    Unwrap,
    check_inside,
    checked_size,
    pack,
)

CHANGE_TYPES = (0x00, 0x0C)  # "2D" and "CD": changes of brightness
EVENT_BYTES = 8


def open_dat(file: EventFile, lines: list[str]) -> OpenedEvents:
    """Open a DAT file whose header lines have been read. DataError: other events than changes, a cut-off file."""
    found = [match for line in lines if (match := re.match(r"%\s*(\w+)\s+(\d{1,9})\s*$", line))]
    fields = {match.group(1): match.group(2) for match in found}
    start = file.tell()
    kind, event_bytes = file.exactly(2, "type and size of the events,")
    if kind not in CHANGE_TYPES or event_bytes != EVENT_BYTES:
        raise file.error(start, f"events of type {kind:#x} and {event_bytes} bytes; expected type 0x0 or 0xc, 8 bytes")
    version = int(fields.get("Version", 0))
    size = None
    if "Width" in fields and "Height" in fields:
        size = checked_size(file, int(fields["Width"]), int(fields["Height"]), 0)
    return OpenedEvents(f"Prophesee DAT, version {version}", size, _events(file, version, size))


def _events(file: EventFile, version: int, size: tuple[int, int] | None) -> EventBlocks:
    unwrap = Unwrap(32)
    x_bits, y_bits, p_shift = (14, 14, 28) if version >= 2 else (9, 8, 17)
    for start, data in file.blocks(EVENT_BYTES, "event"):
        t, word = np.frombuffer(data, "<u4").reshape(-1, 2).T.astype(np.int64)
        x, y = word & (1 << x_bits) - 1, word >> x_bits & (1 << y_bits) - 1
        events = pack(unwrap(t), x, y, word >> p_shift & 1)
        yield check_inside(file, events, size, lambda index, start=start: start + index * EVENT_BYTES)  # type: ignore[misc]
