"""Recordings -> frames, many at a time, by one of the rules of ``load_frames``."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snn_core.datasets.source import EventSource, Recording
from snn_core.errors import ArgumentError, DataError
from snn_core.kernels.event_frames import event_frames, event_frames_batch

BIN_ARGUMENTS = {"time": "n_time_bins", "count": "n_event_bins", "window": "time_window"}
#: Frames of one recording; far above any use, and far below what exhausts the memory with a single recording.
MAX_T = 2**16
#: Recordings are binned together until they hold so many events, or their frames so many bytes.
BATCH_EVENTS, BATCH_BYTES = 2**20, 2**24


@dataclass(frozen=True)
class Binning:
    """How a recording becomes ``T`` frames; see :func:`snn_core.datasets.load_frames`.

    Raises:
        ArgumentError: a bad ``T``, ``by`` or ``time_window``, or a window where none belongs.
    """

    T: int
    by: str
    time_window: int | None = None

    def __post_init__(self) -> None:
        if not _is_integer(self.T) or self.T < 1:
            raise ArgumentError(f"T must be an integer of at least 1, got {self.T!r}")
        if self.T > MAX_T:
            raise ArgumentError(f"T must be at most {MAX_T}, got {self.T}")
        if not isinstance(self.by, str) or self.by not in BIN_ARGUMENTS:
            raise ArgumentError(f"by must be one of {', '.join(BIN_ARGUMENTS)}, got {self.by!r}")
        if (self.time_window is not None) != (self.by == "window"):
            raise ArgumentError(
                f'time_window (microseconds) goes with by="window" alone, got by={self.by!r} and '
                f"time_window={self.time_window!r}"
            )
        # Beyond 2**40 us, 12 days, start + T * window could leave int64.
        if self.by == "window" and not (_is_integer(self.time_window) and 1 <= int(self.time_window or 0) <= 2**40):
            raise ArgumentError(f"time_window must be an integer from 1 to {2**40}, got {self.time_window!r}")

    def key(self) -> dict[str, Any]:
        """What the content key needs to know."""
        window = {} if self.time_window is None else {"time_window": int(self.time_window)}
        return {"T": int(self.T), "by": self.by, **window}

    def __str__(self) -> str:
        return f"by {self.by}" + (f" of {self.time_window} us" if self.time_window is not None else "")

    def shape(self, sensor_size: tuple[int, int, int]) -> tuple[int, int, int, int]:
        """Of the frames of a recording: [T, polarities, H, W]."""
        width, height, polarities = sensor_size
        return int(self.T), polarities, height, width

    def frames(self, batch: Sequence[NDArray[Any]], sensor_size: tuple[int, int, int]) -> tuple[NDArray[np.uint8], Any]:
        """Frames uint8 [B, T, P, H, W] of recordings in ascending time, and int [B], their clipped cells."""
        width, height, polarities = sensor_size
        if polarities == 1:  # the kernel tells two apart: here all count as OFF
            batch = [_without_polarity(events) for events in batch]
        both = (width, height, 2)
        if self.by == "window":
            frames = np.zeros((len(batch), *self.shape(both)), np.uint8)
            clipped = np.array([self._windows(events, both, out) for events, out in zip(batch, frames, strict=True)])
        else:
            frames, clipped = event_frames_batch(batch, both, **{BIN_ARGUMENTS[self.by]: int(self.T)})  # type: ignore[arg-type]
        return (frames if polarities == 2 else np.ascontiguousarray(frames[:, :, :polarities])), clipped

    def _windows(self, events: NDArray[Any], sensor_size: tuple[int, int, int], out: NDArray[np.uint8]) -> int:
        """Count the events of the first T windows into ``out`` [T, 2, H, W]; clipped cells."""
        if len(events) == 0:
            return 0
        window = int(self.time_window or 0)
        # A copy of the last event at the end of the last window makes every window whole; it falls behind all of them.
        end = int(events["t"][0]) + int(self.T) * window
        if end >= 2**63:
            raise ArgumentError(f"events begin at {events['t'][0]} us: {self.T} windows of {window} us leave int64")
        inside = events[: np.searchsorted(events["t"], end)]
        closed = np.append(inside, inside[-1:])
        closed["t"][-1] = end
        frames, clipped = event_frames(closed, sensor_size, time_window=window)
        out[...] = frames
        return clipped


def binned(
    source: EventSource, recordings: Sequence[Recording], binning: Binning
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """Frames [B, T, P, H, W] of the next recordings, and how many cells of each were clipped, until all are through.

    Recordings whose time stamps go backwards are sorted by time (stable), with a warning that counts them.

    Raises:
        DataError: events outside the sensor; the message names the recording. And whatever the source raises.
    """
    unsorted = 0

    def in_order() -> Iterator[NDArray[Any]]:
        nonlocal unsorted
        for events in source.read(recordings):
            if (events["t"][1:] < events["t"][:-1]).any():
                unsorted += 1
                events = events[np.argsort(events["t"], kind="stable")]
            yield events

    sample_bytes = int(np.prod(binning.shape(source.sensor_size)))
    done = 0
    for batch in _batches(in_order(), max(1, BATCH_BYTES // sample_bytes)):
        try:
            frames, clipped = binning.frames(batch, source.sensor_size)
        except ArgumentError:
            _name_the_bad_one(batch, source, recordings[done:], binning)
            raise
        yield frames, clipped
        done += len(batch)
    if unsorted:
        warnings.warn(
            f"{source.name}: time stamps went backwards in {unsorted} of {len(recordings)} recordings; "
            "their events were sorted by time",
            stacklevel=4,
        )


def _name_the_bad_one(
    batch: Sequence[NDArray[Any]], source: EventSource, recordings: Sequence[Recording], binning: Binning
) -> None:
    for events, recording in zip(batch, recordings, strict=False):
        try:
            binning.frames([events], source.sensor_size)
        except ArgumentError as error:
            raise DataError(f"{source.name}, recording {recording.id}: {error}") from error


def _batches(recordings: Iterator[NDArray[Any]], most: int) -> Iterator[list[NDArray[Any]]]:
    batch: list[NDArray[Any]] = []
    events = 0
    for recording in recordings:
        batch.append(recording)
        events += len(recording)
        if len(batch) == most or events >= BATCH_EVENTS:
            yield batch
            batch, events = [], 0
    if batch:
        yield batch


def _without_polarity(events: NDArray[Any]) -> NDArray[Any]:
    events = events.copy()
    events["p"] = 0
    return events


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
