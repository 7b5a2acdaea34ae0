"""Operator ``event_frames``: the events of recordings counted into frames.

Bin edges, in the two conventions of the field, which differ only in what becomes of the end of a recording:

* Equal time (``n_time_bins=T``): ``window = (t_last - t_first) // T`` in whole microseconds; frame k holds the events
  with ``t_first + k * window <= t < t_first + (k + 1) * window``. tonic (``ToFrame`` without overlap): events at or
  after ``t_first + T * window`` belong to no frame, so the last event (and all at its time stamp) is always dropped,
  together with a remainder of at most T - 1 microseconds; a recording shorter than T microseconds gives empty frames.
  SpikingJelly (``integrate_events_by_fixed_frames_number``, split by "time"): the last frame takes them all.
  (SpikingJelly itself fails where a frame before the last has no event; here it stays empty.)
* Equal count (``n_event_bins=T``): ``share = number of events // T``; frame k holds the events ``k * share`` to
  ``(k + 1) * share - 1`` in file order. tonic: the last ``number of events mod T`` events belong to no frame, and fewer
  than T events give empty frames. SpikingJelly (split by "number"): the last frame takes them.
* Fixed window (``time_window`` microseconds): frame k holds the events with ``t_first + k * time_window <= t <
  t_first + (k + 1) * time_window``; with ``span = t_last - t_first`` there are, and at least one, in tonic's convention
  ``span // time_window`` frames, or with ``include_incomplete`` the next whole number up; what comes later is dropped
  (the event at the very end of a whole number of windows too). In SpikingJelly's
  (``integrate_events_by_fixed_duration``) it is the next whole number up, and the last frame takes an event at its end.

Channel 0 counts OFF events (p = 0), channel 1 ON events (p = 1). Zero events give empty frames [T, 2, H, W], one for
``time_window`` (tonic gives [T, 2, W, H], which differs for sensors that are not square, and fails for windows).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from snn_core.errors import ArgumentError, BackendUnavailableError
from snn_core.kernels.event_frames.layout import bytes_of, checked_events, fields_tensor
from snn_core.kernels.event_frames.numpy_frames import add_events
from snn_core.kernels.event_frames.rules import Cut, checked_sensor_size, empty_frames, rule_of
from snn_core.kernels.native import BACKEND_VARIABLE, cpu_library, native_backend, wanted_backend

BACKENDS = ("cpp", "numpy")
_CPU = torch.device("cpu")


def event_frames(
    events: NDArray[Any],
    sensor_size: tuple[int, int, int],
    *,
    n_time_bins: int | None = None,
    n_event_bins: int | None = None,
    time_window: int | None = None,
    convention: str = "tonic",
    include_incomplete: bool = False,
    dtype: DTypeLike = np.uint8,
    backend: str = "auto",
) -> tuple[NDArray[Any], int]:
    """Count the events of one recording per bin, polarity and pixel.

    Args:
        events: structured array [num_events], of any layout and strides, with integer (or, for ``p``, boolean) fields
            ``t x y p``; ``t`` in microseconds and ascending for bins of time; 0 <= x < W, 0 <= y < H, p 0 (OFF) or 1
            (ON). It is read where it lies; only other byte orders and arrays that run backwards are copied.
        sensor_size: (W, H, 2), as tonic writes it.
        n_time_bins: T frames of equal length in time.
        n_event_bins: T frames of equal number of events.
        time_window: frames of so many microseconds; T follows from the recording. Exactly one of the three is given.
        convention: "tonic" or "spikingjelly": what becomes of the last events, see the top of this module.
        include_incomplete: for ``time_window`` in tonic's convention, keep the last window that is not full.
        dtype: of the counts: uint8, int16 (tonic's) or int32.
        backend: "cpp" (torch's threads), "numpy", or "auto", the first of them that is there.

    Returns:
        frames [T, 2, H, W] of ``dtype``, counts clipped at its largest value; and how many cells of these frames were
        clipped (0 means that the counts are exact).

    Raises:
        ArgumentError: not exactly one of the three bin arguments, one below 1, an array without the four integer
            fields, coordinates or polarities outside the sensor, time stamps that go backwards, frames beyond memory.
        BackendUnavailableError: ``backend="cpp"`` without the native library.

    Source: the conventions of tonic's ``ToFrame`` (Lenz et al., tonic, doi 10.5281/zenodo.5079802) and of
    SpikingJelly's ``integrate_events_by_*`` (Fang et al., Science Advances 9, eadi1480, 2023).
    """
    rule = rule_of(n_time_bins, n_event_bins, time_window, convention, include_incomplete)
    width, height = checked_sensor_size(sensor_size)
    events = checked_events(events)
    bins, cut = rule.cut(events)
    frames = empty_frames((1, bins, 2, height, width), dtype)
    saturated, _ = add_to_frames(frames, [events], cut, chosen_backend(backend))
    return frames[0], int(saturated[0])


def event_frames_batch(
    recordings: Sequence[NDArray[Any]],
    sensor_size: tuple[int, int, int],
    *,
    n_time_bins: int | None = None,
    n_event_bins: int | None = None,
    convention: str = "tonic",
    dtype: DTypeLike = np.uint8,
    out: NDArray[Any] | None = None,
    backend: str = "auto",
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """:func:`event_frames` of many recordings in one call, on several threads.

    Args:
        recordings: structured arrays [num_events], as for :func:`event_frames`; their layouts may differ.
        sensor_size, n_time_bins, n_event_bins, convention, dtype, backend: as there, for all of them.
        out: C-contiguous [B, T, 2, H, W] of ``dtype`` to write to, instead of a new array.

    Returns:
        frames [B, T, 2, H, W], and int64 [B], how many cells of each were clipped.

    Raises:
        ArgumentError, BackendUnavailableError: as there; the message names the recording.
    """
    rule = rule_of(n_time_bins, n_event_bins, None, convention, False)
    width, height = checked_sensor_size(sensor_size)
    chosen = chosen_backend(backend)
    checked = [checked_events(events, f"recordings[{index}]") for index, events in enumerate(recordings)]
    frames = _frames_in(out, (len(checked), rule.number, 2, height, width), dtype)
    return frames, add_to_frames(frames, checked, Cut(rule.by, 0, 0, rule.rest), chosen)[0]


def add_to_frames(
    frames: NDArray[Any], recordings: Sequence[NDArray[Any]], cut: Cut, backend: str, before: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count recordings, from :func:`checked_events`, into ``frames`` [B, T, 2, H, W].

    ``before`` is added to the index of an event in messages.

    Returns:
        int64 [B], the number of clipped cells of each, and their flat indices into ``frames``.

    Raises:
        ArgumentError: events that cannot be counted; ``frames`` are then undefined.
    """
    count = len(recordings)
    if backend == "cpp":
        report = torch.ops.snn_core.event_frames(
            torch.from_numpy(frames), [bytes_of(events) for events in recordings], _fields(recordings), *cut
        ).numpy()
        bad = report[count : 2 * count]
        if bad[0] if count == 1 else bad.any():
            _raise_for_bad(frames, recordings, cut, before, bad)
        return report[:count], report[2 * count :]
    cells = []
    for index, events in enumerate(recordings):
        with _naming(index, count):
            cells.append(add_events(frames[index], events, *cut, before) + index * frames[index].size)
    return np.array([len(found) for found in cells], np.int64), np.concatenate([np.empty(0, np.int64), *cells])


def _raise_for_bad(
    frames: NDArray[Any], recordings: Sequence[NDArray[Any]], cut: Cut, before: int, bad: NDArray[np.int64]
) -> NoReturn:
    """Count the first recording that the kernel refused with numpy, for the message."""
    index = int(np.flatnonzero(bad)[0])
    with _naming(index, len(recordings)):
        add_events(np.zeros_like(frames[index]), recordings[index], *cut, before)
        # Only a boolean whose byte is neither 0 nor 1 is none to the kernel and one to numpy.
        raise ArgumentError(f"events['p'] must be 0 or 1, but the byte of event {before + bad[index] - 1} is neither")


@contextlib.contextmanager
def _naming(index: int, count: int) -> Iterator[None]:
    """Put the recording into messages where there are several."""
    try:
        yield
    except ArgumentError as error:
        raise error if count == 1 else ArgumentError(f"recordings[{index}]: {error}") from None


def _fields(recordings: Sequence[NDArray[Any]]) -> Tensor:
    dtypes = {events.dtype for events in recordings}
    if len(dtypes) == 1:
        return fields_tensor(dtypes.pop())
    return torch.cat([fields_tensor(events.dtype) for events in recordings] or [torch.empty(0, 8, dtype=torch.int64)])


def _frames_in(out: NDArray[Any] | None, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    if out is None:
        return empty_frames(shape, dtype)
    if not isinstance(out, np.ndarray) or out.shape != shape or not out.flags.c_contiguous or not out.flags.writeable:
        found = list(out.shape) if isinstance(out, np.ndarray) else type(out).__name__
        raise ArgumentError(f"out must be a writeable, C-contiguous array of shape {list(shape)}, got {found}")
    if out.dtype != empty_frames((), dtype).dtype:
        raise ArgumentError(f"out must hold {np.dtype(dtype)}, got {out.dtype}")
    out[...] = 0
    return out


def chosen_backend(backend: str) -> str:
    """ "cpp" or "numpy" for the argument ``backend``. The variable SNN_BACKEND counts where it names one of them (or
    "reference", for numpy): frames are made on the CPU, whatever networks run on.

    Raises:
        ArgumentError: an unknown name.
        BackendUnavailableError: "cpp" where the native library does not load.
    """
    if backend == "auto":
        backend = wanted_backend("auto") if BACKEND_VARIABLE in os.environ else "auto"
        if backend not in ("cpp", "reference"):
            return "cpp" if cpu_library().available else native_backend(_CPU) or "numpy"
        backend = backend.replace("reference", "numpy")
    if backend not in BACKENDS:
        raise ArgumentError(f"backend is {backend!r}; allowed: auto, {', '.join(BACKENDS)}")
    if backend == "cpp" and native_backend(_CPU) != "cpp":
        raise BackendUnavailableError(f"backend 'cpp' is not available: native library {cpu_library().reason}")
    return backend
