"""Ctrl-C and SIGTERM at a safe point: a long loop finishes its step, saves, and says how to go on."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class InterruptFlag:
    """Truthy once an interrupt has been asked for."""

    def __init__(self) -> None:
        self.requested = False

    def __bool__(self) -> bool:
        return self.requested


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[InterruptFlag]:
    """Turn the first SIGINT or SIGTERM into a flag that the loop polls; a second one interrupts at once.

    A loop that sees the flag saves its state and raises :class:`snn_core.errors.InterruptedRunError`. When the block
    ends without an exception although an interrupt was asked for, KeyboardInterrupt is raised.
    Outside the main thread signals cannot be caught; the flag then stays false.

    Example::

        with deferred_interrupt() as interrupted:
            for step in range(steps):
                train_one_step()
                if interrupted:
                    save(); raise InterruptedRunError("... resume with ...")
    """
    flag = InterruptFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def handle(signum: int, frame: FrameType | None) -> None:
        if flag.requested:
            raise KeyboardInterrupt
        flag.requested = True

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if flag.requested:
        # It came in the last step: this loop is done and saved, but whatever follows it was meant too.
        raise KeyboardInterrupt
