"""HDF5 and MATLAB files, read by library_worker.py in a process of its own with limits of time and memory.

These libraries do not say where in the file an error is, so errors name offset 0.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from snn_core.datasets.readers.columns import events_from_columns
from snn_core.datasets.readers.event_file import EventFile, OpenedEvents

WORKER = Path(__file__).with_name("library_worker.py")
#: Longest silence before the reader is taken for hung.
SECONDS = 30.0
#: Memory beyond what the libraries themselves take: a fixed part and so many times the file's size.
MEMORY_BYTES, MEMORY_RATIO = 1 << 28, 32
MAX_PIECE_BYTES = 1 << 30


def open_hdf5(file: EventFile) -> OpenedEvents:
    """Open an HDF5 file with data sets t x y p, or a table of them, at the top, in ``events`` or in ``CD/events``."""
    return _open(file, "hdf5", "HDF5")


def open_mat(file: EventFile) -> OpenedEvents:
    """Open a MATLAB 5 file: an ATIS structure (coordinates from 1, moved to 0 here), or ST-MNIST's spiketrain."""
    return _open(file, "mat", "MATLAB 5")


def _open(file: EventFile, kind: str, name: str) -> OpenedEvents:
    blocks = _blocks(file, kind)
    layout = next(blocks)  # the header is read at once, so that opening says what is wrong
    return OpenedEvents(f"{name}, {layout}", None, blocks)


def _blocks(file: EventFile, kind: str) -> Iterator[Any]:
    """First the layout, then blocks of events."""
    first = 0
    for columns, about in ask_library(file, kind):
        if first == 0:
            yield about["layout"]
        yield events_from_columns(file, columns, first, about["origin"])
        first += len(columns["t"]) or 1


def ask_library(file: EventFile, kind: str, **request: Any) -> Iterator[tuple[dict[str, NDArray[Any]], dict[str, Any]]]:
    """The parts that the worker of that kind sends: columns by name, and what it says of them.

    Raises:
        DataError: the library cannot read the file, hangs, crashes or takes too much memory.
    """
    request |= {"path": os.path.abspath(file.path), "memory": MEMORY_BYTES + MEMORY_RATIO * file.size}
    with _worker(file, kind, request) as source:
        while "columns" in (message := _message(file, source.line())):
            yield (
                {
                    name: np.frombuffer(source.exactly(np.dtype(form).itemsize * count), form)
                    for name, (form, count) in message["columns"].items()
                },
                message["about"],
            )


def _message(file: EventFile, line: bytes) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(line)
    if "error" in message:
        raise file.error(0, f"it cannot be read (the library names no offset): {message['error']}")
    return message


@contextlib.contextmanager
def _worker(file: EventFile, kind: str, request: dict[str, Any]) -> Iterator[_Source]:
    """A worker that has been sent the request. One that answered to the end is kept for the next file."""
    process = _idle.pop((os.getpid(), kind), None)
    if process is None or process.poll() is not None:
        process = _start(kind)
    assert process.stdin is not None
    assert process.stdout is not None
    source = _Source(file, process.stdout)
    try:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
        yield source
    finally:
        if source.complete and _idle.setdefault((os.getpid(), kind), process) is process:
            pass
        else:
            _end(process)


#: The worker that waits for the next file, by process and kind. A forked process must not use its parent's.
_idle: dict[tuple[int, str], subprocess.Popen[bytes]] = {}


def _start(kind: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    # -P: the folder of the script must not come before the libraries it imports. A session of its own: ending it ends
    # the process that reads too, and Ctrl-C does not reach it.
    return subprocess.Popen(
        [sys.executable, "-P", str(WORKER), kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    for stream in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            stream.close()  # type: ignore[union-attr]
    process.wait()


@atexit.register
def _end_idle() -> None:
    for (owner, _), process in list(_idle.items()):
        if owner == os.getpid():
            _end(process)


class _Source:
    """Lines and bytes from the worker, with a limit of time."""

    def __init__(self, file: EventFile, stream: IO[bytes]) -> None:
        self.file, self.handle, self.rest = file, stream.fileno(), b""
        self.complete = False  # whether the worker has answered to the end

    def line(self) -> bytes:
        while b"\n" not in self.rest:
            self.rest += self._more()
        line, self.rest = self.rest.split(b"\n", 1)
        self.complete = not line.startswith(b'{"columns"') and not self.rest
        return line

    def exactly(self, count: int) -> bytes:
        if count > MAX_PIECE_BYTES:
            raise self.file.error(0, f"a part of {count} bytes")
        parts, have = [self.rest], len(self.rest)
        while have < count:
            parts.append(self._more())
            have += len(parts[-1])
        data = b"".join(parts)
        self.rest = data[count:]
        return data[:count]

    def _more(self) -> bytes:
        until = time.monotonic() + SECONDS
        while not select.select([self.handle], [], [], max(until - time.monotonic(), 0))[0]:
            if time.monotonic() >= until:
                raise self.file.error(0, f"the library was still reading after {SECONDS:.0f} s: the file is damaged")
        data = os.read(self.handle, 1 << 20)
        if not data:
            raise self.file.error(0, "the library crashed on it: the file is damaged")
        return data
