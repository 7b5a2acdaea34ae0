"""What every reader is given and what it gives back.

A reader never believes a size that it finds in a file: it reads blocks of bounded size, and what a header announces is
compared with the bytes that are there before anything is allocated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from snn_core.datasets.events import EVENT_DTYPE
from snn_core.errors import DataError

#: Bytes that a reader takes from a file at once; a multiple of every event's size but N-MNIST's.
BLOCK_BYTES = 1 << 20
#: jAER writes all its preferences into the header: kilobytes, seldom hundreds of them.
MAX_HEADER_BYTES = 1 << 22
MAX_COORDINATE = int(np.iinfo(EVENT_DTYPE["x"]).max)

EventBlocks = Iterator[NDArray[np.void]]


@dataclass
class EventFile:
    """A file being read: its stream, what it is called in error messages, its size in bytes, and its path."""

    stream: BinaryIO
    name: str
    size: int
    path: str

    def error(self, offset: int, what: str) -> DataError:
        """The error to raise: names file and offset."""
        return DataError(f"{self.name}: at offset {offset}: {what}")

    def tell(self) -> int:
        """Offset of the next byte."""
        return self.stream.tell()

    def exactly(self, count: int, what: str) -> bytes:
        """The next ``count`` bytes; DataError when the file ends before them."""
        start = self.tell()
        if not 0 <= count <= self.size - start:
            raise self.error(start, f"{what} of {count} bytes, but the file ends at {self.size}")
        data = self.stream.read(count)
        if len(data) != count:
            raise self.error(start, f"the file was cut off while it was read, in {what}")
        return data

    def blocks(self, event_bytes: int, what: str) -> Iterator[tuple[int, bytes]]:
        """(offset, bytes) of the rest of the file, each a whole number of ``what``; DataError for a part of one."""
        left = (self.size - self.tell()) % event_bytes
        size = BLOCK_BYTES // event_bytes * event_bytes
        while (start := self.tell()) + event_bytes <= self.size:
            yield start, self.exactly(min(size, self.size - start - left), what)
        if left:
            raise self.error(start, f"an incomplete {what}: {left} of {event_bytes} bytes (the file is cut off)")

    def header_lines(self, mark: bytes, last: tuple[bytes, ...]) -> list[str]:
        """The lines of text at the current position that begin with ``mark``; the stream is left after them.

        A line that begins with one of ``last`` ends the header. So does a line with bytes that are no text: events
        may happen to begin with ``mark``.
        """
        lines: list[str] = []
        begin = self.tell()
        while self.tell() - begin < MAX_HEADER_BYTES:
            start = self.tell()
            line = self.stream.readline(MAX_HEADER_BYTES)
            if not line.startswith(mark) or not line.endswith(b"\n") or not _is_text(line):
                self.stream.seek(start)
                return lines
            lines.append(line.decode("latin-1").rstrip("\r\n"))
            if line.startswith(last):
                return lines
        raise self.error(begin, f"a header of more than {MAX_HEADER_BYTES} bytes")


@dataclass
class OpenedEvents:
    """An event file whose header has been read.

    Attributes:
        format: what it is, for people.
        sensor_size: (width, height) where the file says so, else None.
        blocks: EVENT_DTYPE arrays in file order, of whatever size suits the format.
    """

    format: str
    sensor_size: tuple[int, int] | None
    blocks: EventBlocks


OpenReader = Callable[[EventFile], OpenedEvents]


class Unwrap:
    """Time stamps of ``bits`` bits that start again at 0 when they run over -> int64 that goes on.

    A step back by more than half the range is an overflow; a smaller one is a step back and stays.
    """

    def __init__(self, bits: int) -> None:
        self.period, self.laps = 1 << bits, 0
        self.previous: int | None = None

    def __call__(self, t: NDArray[np.int64]) -> NDArray[np.int64]:
        if len(t) == 0:
            return t
        first = int(t[0]) if self.previous is None else self.previous
        self.previous = int(t[-1])
        step = np.diff(t, prepend=first)
        half = self.period // 2
        if not (np.abs(step) > half).any():
            return t + self.laps * self.period
        laps = self.laps + np.cumsum((step < -half).astype(np.int64) - (step > half))
        laps -= np.minimum(np.minimum.accumulate(laps), 0)  # a leap ahead in the first lap is only a leap
        self.laps = int(laps[-1])
        return t + laps * self.period


def pack(t: NDArray[np.int64], x: NDArray[np.int64], y: NDArray[np.int64], p: NDArray[np.int64]) -> NDArray[np.void]:
    """EVENT_DTYPE array of four arrays that are known to fit."""
    events = np.empty(len(t), EVENT_DTYPE)
    events["t"], events["x"], events["y"], events["p"] = t, x, y, p
    return events


def check_inside(
    file: EventFile, events: NDArray[np.void], size: tuple[int, int] | None, offset_of: Callable[[int], int]
) -> NDArray[np.void]:
    """``events``, all within the sensor of that (width, height); DataError with the offset of the first that is not."""
    if size is None or len(events) == 0:
        return events
    outside = (events["x"] < 0) | (events["x"] >= size[0]) | (events["y"] < 0) | (events["y"] >= size[1])
    if outside.any():
        index = int(outside.argmax())
        x, y = int(events["x"][index]), int(events["y"][index])
        raise file.error(offset_of(index), f"an event at x={x}, y={y}, outside the {size[0]} x {size[1]} sensor")
    return events


def checked_size(file: EventFile, width: int, height: int, offset: int) -> tuple[int, int]:
    """(width, height) as a header gives them; DataError when no sensor has that size."""
    if not (1 <= width <= MAX_COORDINATE + 1 and 1 <= height <= MAX_COORDINATE + 1):
        raise file.error(offset, f"a sensor of {width} x {height} pixels")
    return width, height


def _is_text(line: bytes) -> bool:
    return all(byte >= 32 or byte in b"\t\r\n" for byte in line)
