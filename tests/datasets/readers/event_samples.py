"""Small event files of every format, made byte by byte here (not by the package's writers), and their events."""

from __future__ import annotations

import importlib.util
import io
import struct
from dataclasses import dataclass

import numpy as np

from snn_core.datasets import make_events

Events = np.ndarray


@dataclass(frozen=True)
class Sample:
    """A file's content and what reading it must give."""

    data: bytes
    events: Events


def some_events(num: int, width: int, height: int, *, seed: int = 0, step: int = 40, start: int = 1000) -> Events:
    generator = np.random.default_rng(seed)
    t = start + np.cumsum(generator.integers(0, step, num))
    return make_events(t, *(generator.integers(0, size, num) for size in (width, height, 2)))


def columns(events: Events) -> list[np.ndarray]:
    return [events[name].astype(np.int64) for name in "txyp"]


def nmnist(events: Events) -> bytes:
    return b"".join(
        bytes([x, y, p << 7 | t >> 16, t >> 8 & 255, t & 255]) for t, x, y, p in zip(*columns(events), strict=True)
    )


def aedat2(events: Events, header: bytes = b"# Timestamps tick is 1 us\r\n") -> bytes:
    t, x, y, p = columns(events)
    address = (127 - y) << 8 | (127 - x) << 1 | (1 - p)
    return b"#!AER-DAT2.0\r\n" + header + np.stack([address, t & 0xFFFFFFFF], axis=1).astype(">u4").tobytes()


def aedat2_davis(events: Events) -> bytes:
    t, x, y, p = columns(events)
    address = (259 - y) << 22 | (345 - x) << 12 | p << 11
    header = b"#!AER-DAT2.0\r\n# AEChip: eu.seebetter.ini.chips.davis.Davis346B\r\n#End Of ASCII Header\r\n"
    return header + np.stack([address, t], axis=1).astype(">u4").tobytes()


def aedat3_packet(events: Events, *, overflow: int = 0, kind: int = 1, valid: int | None = None, bit: int = 1) -> bytes:
    t, x, y, p = columns(events)
    word = x << 17 | y << 2 | p << 1 | bit
    number = len(events)
    header = struct.pack("<hhiiiiii", kind, 1, 8, 4, overflow, number, number, number if valid is None else valid)
    return header + np.stack([word, t & 0x7FFFFFFF], axis=1).astype("<u4").tobytes()


AEDAT3_HEADER = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#!END-HEADER\r\n"


def aedat3(events: Events, packet: int = 37) -> bytes:
    parts = [aedat3_packet(events[first : first + packet]) for first in range(0, len(events), packet)]
    parts.insert(1, aedat3_packet(events[:3], kind=0))  # special events, to be skipped
    return AEDAT3_HEADER + b"".join(parts)


def aedat4_header(compression: int, table: int = -1, size: tuple[int, int] = (64, 48)) -> bytes:
    keys = {"typeIdentifier": "EVTS", "sizeX": size[0], "sizeY": size[1]}
    info = '<node name="0">' + "".join(f'<attr key="{key}">{value}</attr>' for key, value in keys.items())
    text = info.encode() + b"\0"
    # A table of compression i32, place of the table i64, text; its vtable before it.
    vtable = struct.pack("<HHHHH", 10, 24, 4, 8, 16)
    table_start = 4 + 4 + 12
    body = struct.pack("<I", table_start) + b"IOHE" + vtable.ljust(12, b"\0")
    body += struct.pack("<iiqI", table_start - 8, compression, table, 8) + b"\0" * 4
    body += struct.pack("<I", len(text) - 1) + text
    return b"#!AER-DAT4.0\r\n" + struct.pack("<I", len(body)) + body


def aedat4_buffer(events: Events, mark: bytes = b"EVTS") -> bytes:
    vtable = struct.pack("<HHH", 6, 8, 4)
    body = struct.pack("<I", 16) + mark + vtable + b"\0\0" + struct.pack("<iI", 8, 4) + struct.pack("<I", len(events))
    body += b"".join(struct.pack("<qhhBxxx", *event) for event in events.tolist())
    return struct.pack("<I", len(body)) + body


def aedat4_packet(content: bytes, stream: int = 0) -> bytes:
    return struct.pack("<ii", stream, len(content)) + content


def aedat4(events: Events, compression: int = 0, packet: int = 50) -> bytes:
    def squeeze(content: bytes) -> bytes:
        if compression == 0:
            return content
        if compression in (1, 2):
            import lz4.frame

            return bytes(lz4.frame.compress(content))
        import zstandard

        return bytes(zstandard.ZstdCompressor().compress(content))

    parts = [aedat4_buffer(events[first : first + packet]) for first in range(0, len(events), packet)]
    packets = [aedat4_packet(squeeze(part)) for part in parts]
    packets.insert(1, aedat4_packet(squeeze(aedat4_buffer(events[:2], b"IMUS")), stream=2))
    return aedat4_header(compression) + b"".join(packets)


def dat(events: Events, version: int = 2, kind: int = 0x0C) -> bytes:
    t, x, y, p = columns(events)
    word = p << 28 | y << 14 | x if version >= 2 else p << 17 | y << 9 | x
    header = f"% Data file containing CD events.\n% Version {version}\n".encode() + bytes([kind, 8])
    return header + np.stack([t & 0xFFFFFFFF, word], axis=1).astype("<u4").tobytes()


def evt2(events: Events, header: bytes = b"% evt 2.0\n% end\n") -> bytes:
    words, high = [], -1
    for t, x, y, p in zip(*columns(events), strict=True):
        if t >> 6 != high:
            high = t >> 6
            words += [8 << 28 | int(high) & 0xFFFFFFF, 0xA << 28 | 1]  # a trigger, to be skipped
        words.append(int(p << 28 | (t & 63) << 22 | x << 11 | y))
    return header + np.array(words, "<u4").tobytes()


def evt3(events: Events, header: bytes = b"% evt 3.0\n% format EVT3;height=48;width=64\n% end\n") -> bytes:
    """Every event as a vector of 12 or 8 in turn, or alone."""
    words = [0x0000 | 7, 0x2000 | 5]  # an event before any time, to be left out
    for index, (t, x, y, p) in enumerate(zip(*(column.tolist() for column in columns(events)), strict=True)):
        words += [0x8000 | t >> 12 & 0xFFF, 0x6000 | t & 0xFFF, y]
        if index % 3 == 0:
            words.append(0x2000 | p << 11 | x)
        else:  # empty vectors move the base too
            back = min(x, 20)
            words += [0x3000 | p << 11 | x - back]
            if back == 20:
                words += [0x4000, 0x5F00, 0x4001] if index % 3 == 1 else [0x5000, 0x4000, 0x5001]
            else:
                width = 12 if index % 3 == 1 else 8
                kind = 0x4000 if width == 12 else 0x5000
                words += [kind] * (back // width) + [kind | 1 << back % width]
    return header + np.array(words, "<u2").tobytes()


def es(events: Events, size: tuple[int, int] = (64, 48)) -> bytes:
    data, now = bytearray(b"Event Stream\x02\x00\x00\x01" + struct.pack("<HH", *size)), 0
    for t, x, y, p in zip(*(column.tolist() for column in columns(events)), strict=True):
        while t - now > 126:
            data.append(0xFF)
            now += 127
        data += struct.pack("<BHH", (t - now) << 1 | p, x, size[1] - 1 - y)
        now = t
    return bytes(data)


def npy(events: Events) -> bytes:
    output = io.BytesIO()
    np.save(output, events)
    return output.getvalue()


def npz(events: Events) -> bytes:
    output = io.BytesIO()
    np.savez_compressed(output, **{name: events[name] for name in "txyp"})
    return output.getvalue()


def hdf5(events: Events) -> bytes:
    import h5py

    with h5py.File("x", "w", driver="core", backing_store=False) as file:
        for name in "txyp":
            file.create_dataset(
                f"events/{name}", data=events[name], chunks=(min(len(events), 4096),), compression="gzip"
            )
        file.flush()
        return bytes(file.id.get_file_image())


def mat(events: Events) -> bytes:
    from scipy.io import savemat

    t, x, y, p = (column[:, None] for column in columns(events))
    output = io.BytesIO()
    savemat(output, {"TD": {"x": x + 1.0, "y": y + 1.0, "ts": t, "p": p}}, do_compression=True)
    return output.getvalue()


def make_samples(num: int = 200) -> dict[str, Sample]:
    """One file of every format with ``num`` events. Compressed AEDAT-4 where the packages are there."""
    small, square = some_events(num, 64, 48), some_events(num, 128, 128, seed=1)
    davis = some_events(num, 346, 260, seed=2)
    slow = some_events(num, 64, 48, seed=3, step=500)
    samples = {
        "nmnist": Sample(nmnist(small), small),
        "aedat2": Sample(aedat2(square), square),
        "aedat2-davis": Sample(aedat2_davis(davis), davis),
        "aedat3": Sample(aedat3(square), square),
        "aedat4": Sample(aedat4(small), small),
        "dat": Sample(dat(davis), davis),
        "evt2": Sample(evt2(davis), davis),
        "evt3": Sample(evt3(slow), slow),
        "es": Sample(es(slow), slow),
        "npy": Sample(npy(small), small),
        "npz": Sample(npz(small), small),
        "hdf5": Sample(hdf5(small), small),
        "mat": Sample(mat(small), small),
    }
    if importlib.util.find_spec("lz4") is not None:
        samples["aedat4-lz4"] = Sample(aedat4(small, 1), small)
    if importlib.util.find_spec("zstandard") is not None:
        samples["aedat4-zstd"] = Sample(aedat4(small, 3), small)
    return samples
