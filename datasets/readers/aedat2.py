"""AEDAT-2.0 (jAER): header lines that begin with ``#``, then big-endian pairs of 32 bits, address and time in us.

DVS128 (also where no chip is named, as in MNIST-DVS and CIFAR10-DVS): x in bits 7..1, y in bits 14..8, polarity in bit
0, bit 15 marks an external event. **Bit 0 set means OFF**, whatever iniVation's description of the format says: so read
jAER (``DVS128.java``, ``type = (1 - addr) & 1``), libcaer and dv-processing, and so does the hardware. tonic and others
give the bit as it is. DAVIS: x in bits 21..12, y in bits 30..22, ON in bit 11; bit 31 (a frame or inertial
sample) and bit 10 (an external event) mark what is no polarity event.

jAER counts x from the right and y from the bottom; here both are turned, so that (0, 0) is at the top left.
"""

from __future__ import annotations

import re

import numpy as np

from snn_core.datasets.readers.event_file import EventBlocks, EventFile, OpenedEvents, Unwrap, check_inside, pack

DAVIS_SIZES = {"128": (128, 128), "208": (208, 192), "240": (240, 180), "346": (346, 260), "640": (640, 480)}
DVS128_SIZE = (128, 128)
EVENT_BYTES = 8


def open_aedat2(file: EventFile) -> OpenedEvents:
    """Open an AEDAT-2.0 file of a DVS128 or DAVIS. DataError: another chip, an impossible address, a cut-off file."""
    lines = file.header_lines(b"#", (b"#End Of ASCII Header",))
    chip = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("# AEChip:")), "")
    davis = re.search(r"davis(?:rgb)?-?(\d{3})", chip, re.IGNORECASE)
    if davis and davis.group(1) in DAVIS_SIZES:
        size = DAVIS_SIZES[davis.group(1)]
        return OpenedEvents(f"AEDAT-2.0, DAVIS{davis.group(1)}", size, _davis(file, size))
    if chip and "DVS128" not in chip:
        raise file.error(0, f"AEDAT-2.0 of the chip {chip[:80]!r}; read are DVS128 and DAVIS {', '.join(DAVIS_SIZES)}")
    return OpenedEvents("AEDAT-2.0, DVS128", DVS128_SIZE, _dvs128(file))


def _dvs128(file: EventFile) -> EventBlocks:
    unwrap = Unwrap(32)
    for start, data in file.blocks(EVENT_BYTES, "event"):
        address, t = np.frombuffer(data, ">u4").reshape(-1, 2).T.astype(np.int64)
        external = (address & 0x8000_8000) != 0
        wrong = (address > 0x7FFF) & ~external
        if wrong.any():
            index = int(wrong.argmax())
            raise file.error(start + index * EVENT_BYTES, f"address {address[index]:#x}, which no DVS128 has")
        t = unwrap(t)
        events = pack(t, 127 - (address >> 1 & 0x7F), 127 - (address >> 8 & 0x7F), 1 - (address & 1))
        yield events[~external] if external.any() else events


def _davis(file: EventFile, size: tuple[int, int]) -> EventBlocks:
    unwrap = Unwrap(32)
    for start, data in file.blocks(EVENT_BYTES, "event"):
        address, t = np.frombuffer(data, ">u4").reshape(-1, 2).T.astype(np.int64)
        kept = np.flatnonzero((address & 0x8000_0400) == 0)
        t, address = unwrap(t)[kept], address[kept]
        x, y = size[0] - 1 - (address >> 12 & 0x3FF), size[1] - 1 - (address >> 22 & 0x1FF)
        events = pack(t, x, y, address >> 11 & 1)
        offsets = start + kept * EVENT_BYTES
        yield check_inside(file, events, size, lambda index, offsets=offsets: int(offsets[index]))  # type: ignore[misc]
