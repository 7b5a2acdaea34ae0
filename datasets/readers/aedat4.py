"""AEDAT-4 (DV): a header, then compressed packets, each a FlatBuffer; those marked ``EVTS`` hold events of 16 bytes.

File: ``#!AER-DAT4.0\\r\\n``; a size-prefixed FlatBuffer with the kind of compression, the place of a table at the end
and an XML text about the streams; packets of 32 bits stream, 32 bits size and so many bytes. (0, 0) is at the top left.
Only the first stream of events is read.

Own decoder, with the packages lz4 and zstandard: aedat 2.3.0 agrees with it, but unpacks whatever a packet's
compression promises (LZ4: 255 times the file), and names no offset.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snn_core.datasets.readers.event_file import (
    MAX_COORDINATE,
    EventBlocks,
    EventFile,
    OpenedEvents,
    check_inside,
    checked_size,
)

MAGIC = b"#!AER-DAT4.0\r\n"
EVENT = np.dtype({"names": ["t", "x", "y", "p"], "formats": ["<i8", "<i2", "<i2", "u1"],
                  "offsets": [0, 8, 10, 12], "itemsize": 16})  # fmt: skip
MAX_INFO_BYTES = 1 << 24
#: A packet holds some 10 ms: 4 million events would be 400 million a second.
MAX_PACKET_BYTES = 1 << 26
COMPRESSIONS = {0: "none", 1: "LZ4", 2: "LZ4", 3: "Zstandard", 4: "Zstandard"}


class _Bounds(Exception):
    """A FlatBuffer points outside itself."""


def open_aedat4(file: EventFile) -> OpenedEvents:
    """Open an AEDAT-4 file. DataError: no events in it, buffers or packets that cannot be, a package is missing."""
    file.exactly(len(MAGIC), "the version line")
    start = file.tell()
    (size,) = struct.unpack("<I", file.exactly(4, "the size of the header"))
    if size > MAX_INFO_BYTES:
        raise file.error(start, f"a header of {size} bytes")
    header = file.exactly(size, "the header")
    try:
        compression, table, info = _read_header(header)
    except (_Bounds, struct.error) as error:
        raise file.error(start, f"a damaged header: {error}") from error
    if compression not in COMPRESSIONS:
        raise file.error(start, f"packets of an unknown compression, {compression}")
    end = table if file.tell() <= table < file.size else file.size  # -1 in a recording that was never closed
    sizes = _stream_sizes(file, info, start)
    unpack = _unpacker(file, COMPRESSIONS[compression])
    first = min(sizes, default=None)
    size_of_first = sizes[first] if first is not None else None
    name = f"AEDAT-4, compression {COMPRESSIONS[compression]}"
    return OpenedEvents(name, size_of_first, _packets(file, end, unpack, first, size_of_first))


def _read_header(data: bytes) -> tuple[int, int, str]:
    """Compression, offset of the table, and the XML text."""
    table = _unpack("<I", data, 0)
    compression = _field(data, table, 0)
    place = _field(data, table, 1)
    text = _field(data, table, 2)
    info = ""
    if text is not None:
        begin = text + _unpack("<I", data, text)
        length = _unpack("<I", data, begin)
        info = data[begin + 4 : begin + 4 + length].decode("utf-8", "replace")
    return (
        0 if compression is None else _unpack("<i", data, compression),
        -1 if place is None else _unpack("<q", data, place),
        info,
    )


def _field(data: bytes, table: int, index: int) -> int | None:
    """Where a field of a FlatBuffer's table lies, None where it is left out."""
    vtable = table - _unpack("<i", data, table)
    if 4 + 2 * index >= _unpack("<H", data, vtable):
        return None
    offset = _unpack("<H", data, vtable + 4 + 2 * index)
    return table + offset if offset else None


def _unpack(form: str, data: bytes, offset: int) -> int:
    if not 0 <= offset <= len(data) - struct.calcsize(form):
        raise _Bounds(f"it points to {offset}, outside its {len(data)} bytes")
    return int(struct.unpack_from(form, data, offset)[0])


def _stream_sizes(file: EventFile, info: str, offset: int) -> dict[int, tuple[int, int]]:
    """Sensor size of every stream of events, by stream, from the XML text (which no XML parser is trusted with)."""
    sizes = {}
    nodes = list(re.finditer(r'<node name="(\d{1,9})"', info))
    for node, end in zip(nodes, [*(node.start() for node in nodes[1:]), len(info)], strict=False):
        part, stream = info[node.start() : end], int(node.group(1))
        width, height = (re.search(rf'key="{key}"[^>]{{0,200}}>(\d{{1,9}})<', part) for key in ("sizeX", "sizeY"))
        if ">EVTS<" in part and width and height:
            sizes[stream] = checked_size(file, int(width.group(1)), int(height.group(1)), offset)
    return sizes


def _unpacker(file: EventFile, compression: str) -> Callable[[bytes], bytes]:
    """Undoes the compression, never beyond MAX_PACKET_BYTES + 1."""
    if compression == "none":
        return lambda data: data
    try:
        if compression == "LZ4":
            import lz4.frame as lz4

            return lambda data: lz4.LZ4FrameDecompressor().decompress(data, max_length=MAX_PACKET_BYTES + 1)
        import zstandard

        # Not decompress(): it believes the size in the frame.
        return lambda data: zstandard.ZstdDecompressor(max_window_size=MAX_PACKET_BYTES).stream_reader(data).read(
            MAX_PACKET_BYTES + 1
        )  # fmt: skip
    except ImportError as error:
        what = f"packets compressed with {compression}, which need pip install 'snn-core[aedat4]' ({error})"
        raise file.error(file.tell(), what) from error


def _packets(
    file: EventFile, end: int, unpack: Callable[[bytes], bytes], stream: int | None, size: tuple[int, int] | None
) -> EventBlocks:
    found = False
    while (start := file.tell()) < end:
        number, length = struct.unpack("<ii", file.exactly(8, "a packet header"))
        if number < 0 or length < 0:
            raise file.error(start, f"a packet of stream {number} with {length} bytes")
        data = file.exactly(length, "a packet")
        if stream is not None and number != stream:
            continue
        content = _content(file, data, unpack, start)
        if content[8:12] != b"EVTS":
            if stream is None:
                continue
            raise file.error(start, f"a packet marked {content[8:12]!r} in the stream of events {stream}")
        stream, found = number, True
        yield _events(file, content, size, start)
    if not found:
        raise file.error(end, "the file holds no events")


def _content(file: EventFile, data: bytes, unpack: Callable[[bytes], bytes], start: int) -> bytes:
    try:
        content = unpack(data)
    except MemoryError:
        raise
    except Exception as error:  # lz4 and zstandard each have exceptions of their own
        raise file.error(start, f"a packet that cannot be unpacked: {error}") from error
    if len(content) > MAX_PACKET_BYTES:
        raise file.error(start, f"a packet that unpacks to more than {MAX_PACKET_BYTES} bytes")
    return content


def _events(file: EventFile, content: bytes, size: tuple[int, int] | None, start: int) -> NDArray[np.void]:
    from snn_core.datasets.events import make_events

    try:
        elements = _field(content, 4 + _unpack("<I", content, 4), 0)
        begin = 0 if elements is None else elements + _unpack("<I", content, elements)
        count = 0 if elements is None else _unpack("<I", content, begin)
        if begin + 4 + count * EVENT.itemsize > len(content):
            raise _Bounds(f"{count} events do not fit in its {len(content)} bytes")
    except _Bounds as error:
        raise file.error(start, f"a damaged packet: {error}") from error
    raw: Any = np.frombuffer(content, EVENT, count, begin + 4) if count else np.empty(0, EVENT)
    events = make_events(raw["t"], raw["x"], raw["y"], raw["p"] != 0)
    return check_inside(file, events, size or (MAX_COORDINATE + 1, MAX_COORDINATE + 1), lambda _: start)
