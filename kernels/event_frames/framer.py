"""Frames of a recording that comes in chunks, for files larger than memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from snn_core.errors import ArgumentError
from snn_core.kernels.event_frames.layout import checked_events, time_at
from snn_core.kernels.event_frames.ops import add_to_frames, chosen_backend
from snn_core.kernels.event_frames.rules import MAX_WINDOWS, Cut, checked_sensor_size, empty_frames, rule_of
from snn_core.kernels.event_frames.schema import INDEX_FROM, TIME_FROM


@dataclass(frozen=True)
class RecordingExtent:
    """Number of events of a recording, and the times of its first and last in microseconds (0 without events)."""

    num_events: int = 0
    t_first: int = 0
    t_last: int = 0

    @staticmethod
    def of(chunks: Iterable[NDArray[Any]]) -> RecordingExtent:
        """The extent of a recording, in one pass over its chunks (structured arrays [num_events])."""
        num_events = t_first = t_last = 0
        for chunk in chunks:
            if len(chunk):
                t_first = t_first if num_events else time_at(chunk, 0)
                t_last = time_at(chunk, -1)
                num_events += len(chunk)
        return RecordingExtent(num_events, t_first, t_last)


class EventFramer:
    """:func:`snn_core.kernels.event_frames` of a recording that is handed over chunk by chunk.

        framer = EventFramer((1280, 720, 2), time_window=10_000)
        for chunk in chunks:
            for frame in framer.push(chunk):
                ...
        for frame in framer.finish():
            ...

    All frames together are those of ``event_frames`` on the whole recording; only unfinished frames are held.

    Args:
        sensor_size, n_time_bins, n_event_bins, time_window, convention, include_incomplete, dtype, backend: as of
            :func:`snn_core.kernels.event_frames`.
        extent: of the whole recording; needed for ``n_time_bins`` and ``n_event_bins``, whose bins depend on its end.

    Raises:
        ArgumentError: as there, or ``extent`` is missing.
    """

    def __init__(
        self,
        sensor_size: tuple[int, int, int],
        *,
        n_time_bins: int | None = None,
        n_event_bins: int | None = None,
        time_window: int | None = None,
        extent: RecordingExtent | None = None,
        convention: str = "tonic",
        include_incomplete: bool = False,
        dtype: DTypeLike = np.uint8,
        backend: str = "auto",
    ) -> None:
        self._rule = rule_of(n_time_bins, n_event_bins, time_window, convention, include_incomplete)
        width, height = checked_sensor_size(sensor_size)
        if extent is None and time_window is None:
            raise ArgumentError(f"{self._rule.name} needs extent: the bins depend on the end of the recording")
        self._extent = extent
        self._backend = chosen_backend(backend)
        #: Frames that are not finished, [k, 2, H, W], and the flat indices of their cells that were clipped.
        self._open = empty_frames((0, 2, height, width), dtype)
        self._clipped = np.empty(0, np.int64)
        self._handed_over = 0  # frames that were returned
        self._seen = RecordingExtent()
        self._finished = False
        #: Cells of the frames returned so far whose count was clipped.
        self.saturated = 0

    def push(self, events: NDArray[Any]) -> NDArray[Any]:
        """Count the next events and return the frames [k, 2, H, W] that they finish; k may be 0.

        Raises:
            ArgumentError: events as :func:`snn_core.kernels.event_frames` refuses them (numbered over the whole
                recording), or after too many empty frames, or before the extent. The framer is then as it was.
        """
        if self._finished:
            raise ArgumentError("events were pushed after finish()")
        events = checked_events(events)
        if len(events) == 0:
            return self._open[:0]
        self._check_start(events)
        seen = self._extended_by(events)
        last = self._frame_of_last(seen)
        frames = self._widened(last)
        clipped = np.union1d(self._clipped, self._count(frames, events, seen))
        # In SpikingJelly's convention an event at the end of a window belongs to it if nothing comes later.
        held = self._rule.rest and self._total is None and self._distance(seen) == last * self._step
        self._seen, self._clipped = seen, clipped
        return self._hand_over(frames, last - self._handed_over - (1 if held else 0))

    def finish(self) -> NDArray[Any]:
        """The frames [k, 2, H, W] that are left.

        Raises:
            ArgumentError: called twice, or the recording was not as ``extent`` said.
        """
        if self._finished:
            raise ArgumentError("finish() was called twice")
        if self._extent is not None and self._seen != self._extent:
            raise ArgumentError(f"extent is {self._extent}, but the events that came have {self._seen}")
        self._finished = True
        total = self._total
        if total is None:
            total = self._rule.window_count(self._seen.t_last - self._seen.t_first)
            if len(self._open) > total - self._handed_over > 0 and self._rule.rest:
                self._merge_last()
        frames = self._widened(total - 1) if total > self._handed_over else self._open[:0]
        return self._hand_over(frames, total - self._handed_over)

    @property
    def _total(self) -> int | None:
        """Number of frames of the recording; None where its end decides."""
        return None if self._rule.name == "time_window" else self._rule.number

    @property
    def _by_time(self) -> bool:
        return self._rule.name != "n_event_bins"

    @property
    def _step(self) -> int:
        """Microseconds or events of a frame; 0 where there are fewer than frames."""
        extent = self._extent
        if extent is None or self._rule.name == "time_window":
            return self._rule.number
        return (extent.t_last - extent.t_first if self._by_time else extent.num_events) // self._rule.number

    def _distance(self, seen: RecordingExtent) -> int:
        """From the beginning of the recording to the last event seen: microseconds or events."""
        start = (self._extent or seen).t_first
        return seen.t_last - start if self._by_time else seen.num_events - 1

    def _frame_of_last(self, seen: RecordingExtent) -> int:
        """Frame of the last event seen; the number of frames where it lies behind them."""
        step, total = self._step, self._total
        frame = self._distance(seen) // step if step else total or 0
        return frame if total is None else min(frame, total - 1 if self._rule.rest else total)

    def _check_start(self, events: NDArray[Any]) -> None:
        if not self._by_time:
            return
        earliest = time_at(events, 0)
        if self._seen.num_events and earliest < self._seen.t_last:
            raise ArgumentError(
                f"events['t'] must ascend for bins of time, but event {self._seen.num_events} is at {earliest} us "
                f"after {self._seen.t_last} us"
            )
        if self._extent is not None and earliest < self._extent.t_first:
            raise ArgumentError(f"extent begins at {self._extent.t_first} us, but an event is at {earliest} us")

    def _extended_by(self, events: NDArray[Any]) -> RecordingExtent:
        before = self._seen
        t_first = before.t_first if before.num_events else time_at(events, 0)
        # Time stamps that go backwards inside the chunk are found where it is counted.
        t_last = max(time_at(events, -1), t_first) if self._by_time else time_at(events, -1)
        return RecordingExtent(before.num_events + len(events), t_first, t_last)

    def _widened(self, last: int) -> NDArray[Any]:
        """The open frames and empty ones behind them, up to frame ``last`` or to the last of all."""
        top = last if self._total is None else min(last, self._total - 1)
        count = max(len(self._open), top - self._handed_over + 1)
        if count > MAX_WINDOWS:
            raise ArgumentError(
                f"event {self._seen.num_events} and those after it come up to {count} frames later than the one before"
            )
        frames = empty_frames((count, *self._open.shape[1:]), self._open.dtype)
        frames[: len(self._open)] = self._open
        return frames

    def _count(self, frames: NDArray[Any], events: NDArray[Any], seen: RecordingExtent) -> NDArray[np.int64]:
        """Count into the frames; returns the flat indices of clipped cells."""
        step, before = self._step, self._seen.num_events
        if step == 0 or len(frames) == 0:
            return self._count_in_one(frames, events)
        by, start = TIME_FROM, (self._extent or seen).t_first + self._handed_over * step
        if not self._by_time:
            by, start = INDEX_FROM, before - self._handed_over * step
        return add_to_frames(frames[None], [events], Cut(by, start, step, self._rule.rest), self._backend, before)[1]

    def _count_in_one(self, frames: NDArray[Any], events: NDArray[Any]) -> NDArray[np.int64]:
        """All events in the last frame; or, where the rule drops them, aside, so that they are checked."""
        kept = self._rule.rest and len(frames) > 0
        target = frames[-1:] if kept else empty_frames((1, *frames.shape[1:]), frames.dtype)
        cut = Cut(TIME_FROM, time_at(events, 0), 1, True) if self._by_time else Cut(INDEX_FROM, 0, 1, True)
        clipped = add_to_frames(target[None], [events], cut, self._backend, self._seen.num_events)[1]
        return clipped + (frames.size - target.size) if kept else clipped[:0]

    def _merge_last(self) -> None:
        """Add the last open frame to the one before."""
        cells, limit = self._open[0].size, np.iinfo(self._open.dtype).max
        both = self._open[-2].astype(np.int64) + self._open[-1]
        beyond = np.flatnonzero(both > limit) + (len(self._open) - 2) * cells
        moved = np.where(self._clipped >= (len(self._open) - 1) * cells, self._clipped - cells, self._clipped)
        self._clipped = np.union1d(moved, beyond)
        self._open = self._open[:-1]
        self._open[-1] = np.minimum(both, limit)

    def _hand_over(self, frames: NDArray[Any], count: int) -> NDArray[Any]:
        """Return the first ``count`` of the frames and keep the others open."""
        count = min(max(count, 0), len(frames))
        border = count * int(np.prod(frames.shape[1:]))
        self.saturated += int(np.count_nonzero(self._clipped < border))
        self._clipped = self._clipped[self._clipped >= border] - border
        self._open = frames[count:].copy()
        self._handed_over += count
        return frames[:count]
