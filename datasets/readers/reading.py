"""Event files of any known format behind one function; the format is told by content, never by name."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snn_core.datasets.events import EVENT_DTYPE
from snn_core.datasets.readers.aedat2 import open_aedat2
from snn_core.datasets.readers.aedat3 import open_aedat3
from snn_core.datasets.readers.aedat4 import open_aedat4
from snn_core.datasets.readers.arrays import open_npy, open_npz
from snn_core.datasets.readers.es import open_es
from snn_core.datasets.readers.event_file import EventFile, OpenedEvents, OpenReader
from snn_core.datasets.readers.library import open_hdf5, open_mat
from snn_core.datasets.readers.nmnist import looks_like_nmnist, open_nmnist
from snn_core.datasets.readers.prophesee import open_prophesee
from snn_core.errors import ArgumentError, DataError

PathLike = str | os.PathLike[str]

#: How the formats begin. HDF5 may also begin after 512, 1024, ... bytes of something else (ours and MATLAB 7.3 do).
BEGINNINGS: tuple[tuple[bytes, OpenReader], ...] = (
    (b"#!AER-DAT2.", open_aedat2),
    (b"#!AER-DAT3.1", open_aedat3),
    (b"#!AER-DAT4.0", open_aedat4),
    (b"Event Stream", open_es),
    (b"\x93NUMPY", open_npy),
    (b"PK\x03\x04", open_npz),
    (b"PK\x05\x06", open_npz),
    (b"MATLAB 5.0 MAT-file", open_mat),
    (b"% ", open_prophesee),
)
HDF5_MARK = b"\x89HDF\r\n\x1a\n"
HDF5_PLACES = (0, 512, 1024, 2048)
HEAD_BYTES = 1 << 15
FORMATS = (
    "N-MNIST .bin, AEDAT-2.0, AEDAT-3.1, AEDAT-4, Prophesee DAT, EVT2 and EVT3, Event Stream .es, .npy, .npz, HDF5, "
    "ATIS and ST-MNIST .mat"
)
#: Events a chunk: 22 MB.
CHUNK = 1 << 20
MAX_BLOCKS = 1 << 14


def read_events(path: PathLike) -> NDArray[np.void]:
    """All events of a file, whatever its format (see :data:`FORMATS`) and name.

    Returns:
        EVENT_DTYPE array [num_events] in file order, not sorted: ``t`` int64 in microseconds as recorded (not shifted
        to 0), ``x`` column and ``y`` row from 0 at the top left, ``p`` 1 for ON, 0 for OFF. What is no change of
        brightness (triggers, frames, inertial samples) is left out. Formats that count from 1 (ATIS .mat) or from
        another corner (.es, AEDAT-2.0) are turned.

    Raises:
        DataError: the file cannot be read, is of no known format, damaged or cut off; the message names file and
            offset. Memory stays bounded by the events that are there, whatever the file announces.
    """
    blocks: list[NDArray[np.void]] = []
    with _opened(path) as opened:
        for block in opened.blocks:
            blocks.append(block)
            if len(blocks) == MAX_BLOCKS:  # packets of few events each: the arrays would weigh more than the events
                blocks = [np.concatenate(blocks)]
    return np.concatenate(blocks) if blocks else np.empty(0, EVENT_DTYPE)


def iterate_event_chunks(path: PathLike, chunk: int = CHUNK) -> Iterator[NDArray[np.void]]:
    """The events of :func:`read_events` in arrays of ``chunk`` events (the last may be shorter), for large files.

    The file is opened and its header read at the call. Memory stays at some multiple of the chunk; only N-MNIST's .bin
    and MATLAB files are read whole.

    Raises:
        ArgumentError: ``chunk`` below 1.
        DataError: as :func:`read_events`; damage is found when the iteration reaches it.
    """
    if isinstance(chunk, bool) or not isinstance(chunk, (int, np.integer)) or chunk < 1:
        raise ArgumentError(f"chunk must be an integer of at least 1, got {chunk!r}")
    context = _opened(path)
    opened = context.__enter__()
    return _chunks(context, opened, int(chunk))


def _chunks(
    context: contextlib.AbstractContextManager[OpenedEvents], opened: OpenedEvents, chunk: int
) -> Iterator[NDArray[np.void]]:
    with contextlib.ExitStack() as stack:
        stack.push(context)
        waiting: list[NDArray[np.void]] = []
        count = 0
        for block in opened.blocks:
            waiting.append(block)
            count += len(block)
            if count >= chunk:
                joined = np.concatenate(waiting)
                whole = count // chunk * chunk
                yield from (joined[first : first + chunk] for first in range(0, whole, chunk))
                waiting, count = [joined[whole:].copy()], count - whole
        if count:
            yield np.concatenate(waiting)


@dataclass(frozen=True)
class EventFileInfo:
    """What :func:`event_file_info` finds; times in us, ranges are (lowest, highest), None where there are no events."""

    path: str
    format: str
    bytes: int
    sensor_size: tuple[int, int] | None  # (width, height), where the file says so
    num_events: int
    t_range: tuple[int, int] | None
    x_range: tuple[int, int] | None
    y_range: tuple[int, int] | None
    num_on: int
    num_backwards: int  # events earlier than the one before

    @property
    def duration(self) -> int:
        """From the earliest to the latest event, in us."""
        return self.t_range[1] - self.t_range[0] if self.t_range else 0

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "duration": self.duration}


def event_file_info(path: PathLike) -> EventFileInfo:
    """Format, counts and ranges of an event file, read in blocks. Errors as :func:`read_events`."""
    ranges: dict[str, tuple[int, int]] = {}
    num = num_on = backwards = 0
    previous: int | None = None
    with _opened(path) as opened:
        for events in opened.blocks:
            if len(events) == 0:
                continue
            for name in "txy":
                low, high = int(events[name].min()), int(events[name].max())
                known = ranges.get(name, (low, high))
                ranges[name] = (min(low, known[0]), max(high, known[1]))
            t = events["t"]
            backwards += int((np.diff(t) < 0).sum()) + int(previous is not None and t[0] < previous)
            previous = int(t[-1])
            num, num_on = num + len(events), num_on + int(np.count_nonzero(events["p"]))
    t_range, x_range, y_range = (ranges.get(name) for name in "txy")
    size = os.path.getsize(path)
    return EventFileInfo(
        os.fspath(path), opened.format, size, opened.sensor_size, num, t_range, x_range, y_range, num_on, backwards
    )


@contextlib.contextmanager
def _opened(path: PathLike) -> Iterator[OpenedEvents]:
    """Open a file and read its header. What the operating system refuses becomes a DataError."""
    name = os.fspath(path)
    if not Path(name).is_file():
        what = "a folder, not a file" if Path(name).is_dir() else "no such file"
        raise DataError(f"cannot read {name}: {what}")
    try:
        with open(name, "rb") as stream:
            file = EventFile(stream, name, os.fstat(stream.fileno()).st_size, name)
            opened = _reader(file)(file)
            try:
                yield opened
            finally:
                opened.blocks.close()  # type: ignore[attr-defined]
    except OSError as error:
        raise DataError(f"cannot read {name}: {error.strerror or error}") from error


def _reader(file: EventFile) -> OpenReader:
    head = file.stream.read(HEAD_BYTES)
    file.stream.seek(0)
    if not head:
        raise file.error(0, "the file is empty")
    if any(head[place : place + len(HDF5_MARK)] == HDF5_MARK for place in HDF5_PLACES):
        return open_hdf5
    for beginning, reader in BEGINNINGS:
        if head.startswith(beginning):
            return reader
    version = head[:14] if head.startswith(b"#!AER-DAT") else b""
    if not version and looks_like_nmnist(head, file.size):
        return open_nmnist
    what = f"{version.decode('latin-1').strip()!r} is not read" if version else f"it begins with {head[:12]!r}"
    raise file.error(0, f"no known event format: {what}. Read are {FORMATS}")
