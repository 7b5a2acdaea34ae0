"""Run a command in a process group of its own, show what it prints, and end it in time. Standard library alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

#: Bytes of the output that are kept; its reports show less, but the cause may stand far before the end.
TAIL = 20_000
#: Between the request to end and the end by force; a part passes the request on to what it started.
GRACE_SECONDS = 3.0


@dataclass
class Ended:
    """How a command ended: its exit code, None when it was stopped, and the end of what it printed."""

    code: int | None
    tail: str
    seconds: float

    @property
    def how(self) -> str:
        """In words."""
        return f"stopped after {self.seconds:.0f} s" if self.code is None else f"ended with exit code {self.code}"


def watched(
    command: list[str],
    seconds: float,
    *,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    meanwhile: Callable[[], None] = lambda: None,
) -> Ended:
    """Run ``command`` for at most ``seconds``, its output shown as it comes.

    Args:
        command: program and arguments.
        seconds: then it is stopped, with all that is in its process group.
        environment: added to this process's.
        cwd: where it runs.
        meanwhile: called a few times a second while it runs, and once when it has ended.
    """
    began = time.monotonic()
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=cwd, start_new_session=True,
            env=os.environ | (environment or {}),
        )  # fmt: skip
        shown = 0
        try:
            while child.poll() is None and time.monotonic() < began + seconds:
                time.sleep(0.05)
                shown += _show(log.fileno(), shown)
                meanwhile()
            code = child.poll()
        finally:
            if child.poll() is None:
                _stop(child)
        shown += _show(log.fileno(), shown)
        meanwhile()
        size = os.fstat(log.fileno()).st_size
        tail = os.pread(log.fileno(), TAIL, max(0, size - TAIL)).decode(errors="replace")
    return Ended(code, tail.strip(), time.monotonic() - began)


def _show(file: int, offset: int) -> int:
    """Print what is new. The command shares the file's position, so that it must not be moved here."""
    text = os.pread(file, 1 << 20, offset)
    if text:
        sys.stdout.write(text.decode(errors="replace"))
        sys.stdout.flush()
    return len(text)


def _stop(child: subprocess.Popen[bytes]) -> None:
    os.killpg(child.pid, signal.SIGTERM)
    try:
        child.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def end_on_request() -> None:
    """Make a request to end (SIGTERM) an exit like any other, on which a watched command is stopped, too."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
