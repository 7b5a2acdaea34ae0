"""AEDAT-3.1 (cAER; DVS128 Gesture): header lines, then packets of a 28-byte header and equal events, little-endian.

A polarity event: 32 bits with x in 31..17, y in 16..2, ON in bit 1 and validity in bit 0; then 32 bits of time in us,
continued by the packet's overflow counter. (0, 0) is at the top left. Other packets are skipped.

tonic's reader takes the packet's *capacity* for the number of its events, and reads packets of every type as polarity
events; both are followed here as the format says.
"""

from __future__ import annotations

import re
import struct

import numpy as np
from numpy.typing import NDArray

from snn_core.datasets.readers.event_file import EventBlocks, EventFile, OpenedEvents, check_inside, pack

PACKET_HEADER = struct.Struct("<hhiiiiii")
POLARITY, POLARITY_BYTES = 1, 8
SENSOR_SIZES = {"DVS128": (128, 128), "eDVS": (128, 128), "DAVIS240": (240, 180), "DAVIS346": (346, 260)}


def open_aedat3(file: EventFile) -> OpenedEvents:
    """Open an AEDAT-3.1 file of the format RAW. DataError: another format, packets that cannot be, a cut-off file."""
    lines = file.header_lines(b"#", (b"#!END-HEADER",))
    if not lines or not lines[-1].startswith("#!END-HEADER"):
        raise file.error(file.tell(), "the header has no line #!END-HEADER")
    form = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("#Format:")), "RAW")
    if form != "RAW":
        raise file.error(0, f"AEDAT-3.1 of the format {form[:40]!r}; only RAW is read")
    sources = [match.group(1) for line in lines if (match := re.match(r"#Source \d+:\s*(\S+)", line))]
    sizes = [size for source in sources for known, size in SENSOR_SIZES.items() if source.startswith(known)]
    size = sizes[0] if len(sources) == 1 and sizes else None
    return OpenedEvents(f"AEDAT-3.1, {', '.join(sources)[:80] or 'no source named'}", size, _packets(file, size))


def _packets(file: EventFile, size: tuple[int, int] | None) -> EventBlocks:
    while (start := file.tell()) < file.size:
        header = PACKET_HEADER.unpack(file.exactly(PACKET_HEADER.size, "a packet header"))
        kind, _, event_bytes, _, overflow, _, number, valid = header
        if kind < 0 or event_bytes < 1 or overflow < 0 or not 0 <= valid <= number:
            raise file.error(start, f"a packet header that cannot be: {header}")
        if kind == POLARITY and event_bytes != POLARITY_BYTES:
            raise file.error(start, f"polarity events of {event_bytes} bytes, expected {POLARITY_BYTES}")
        data = file.exactly(event_bytes * number, f"a packet of {number} events")
        if kind == POLARITY and number:
            yield _polarity(file, data, overflow, valid, size, start + PACKET_HEADER.size)


def _polarity(
    file: EventFile, data: bytes, overflow: int, valid: int, size: tuple[int, int] | None, start: int
) -> NDArray[np.void]:
    word, t = np.frombuffer(data, "<u4").reshape(-1, 2).T.astype(np.int64)
    if (t >= 1 << 31).any():
        index = int((t >= 1 << 31).argmax())
        raise file.error(start + index * POLARITY_BYTES, f"a negative time stamp, {t[index] - (1 << 32)}")
    events = pack((overflow << 31) + t, word >> 17, word >> 2 & 0x7FFF, word >> 1 & 1)
    rows = np.arange(len(events))
    if valid < len(events):  # files exist that count their events as valid without marking each
        rows = np.flatnonzero(word & 1)
        events = events[rows]
    return check_inside(file, events, size, lambda index: int(start + rows[index] * POLARITY_BYTES))
