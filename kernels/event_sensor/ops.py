"""Operator ``event_sensor``: log brightness over time -> the events of a simulated sensor.

A pixel remembers the log brightness at its last event. It fires ON (OFF) when log brightness has risen (fallen) by its
threshold since; it is then blind for its refractory time, and what it compares with is the log brightness at the end of
that time. Between two frames log brightness is linear in time, so events have times of their own, in whole
microseconds; a pixel may fire several times in between. Noise is given as events that a pixel fires unless it is blind;
they reset it like any other. C++ and numpy give the same events, whatever the batch and the number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from snn_core.errors import ArgumentError
from snn_core.kernels.event_frames.ops import chosen_backend
from snn_core.kernels.event_sensor.reference import Floats, Keys, look_reference, sensor_step_reference
from snn_core.kernels.event_sensor.schema import FRACTION_BITS, PHASE_BITS, PIXEL_BITS, SEEING, TIME_BITS

#: EVENT_DTYPE of snn_core.datasets, which kernels do not import.
RECORD_DTYPE = np.dtype([("t", "<i8"), ("x", "<i2"), ("y", "<i2"), ("p", "<i1")])
MAX_PIXELS, MAX_SIDE, MAX_TIME_US = 2**PIXEL_BITS, 2**15, 2**TIME_BITS - 1


@dataclass(frozen=True)
class SensorPixels:
    """The pixels of a sensor, row by row; each array holds one number a pixel.

    Args:
        width, height: of the sensor, at most 65,536 pixels, and at most 32,768 of each, as EVENT_DTYPE holds them.
        threshold_on, threshold_off: float32 [width * height], above 0: change of log brightness that fires.
        refractory: int32 [width * height], microseconds, 1 to 2**30 - 1.
        leak: float32 [width * height], rise of log brightness a second that every pixel sees besides what is there.
    """

    width: int
    height: int
    threshold_on: Floats
    threshold_off: Floats
    refractory: NDArray[np.int32]
    leak: Floats

    def __post_init__(self) -> None:
        count = self.width * self.height
        if self.width < 1 or self.height < 1 or count > MAX_PIXELS:
            raise ArgumentError(f"the sensor must have 1 to {MAX_PIXELS} pixels, got {self.width} x {self.height}")
        if max(self.width, self.height) > MAX_SIDE:
            raise ArgumentError(f"a side of the sensor has at most {MAX_SIDE} pixels, got {self.width} x {self.height}")
        # Beyond MAX_TIME_US the end of a pixel's blindness would leave 32 bits.
        limits = {"threshold_on": (0, np.inf), "threshold_off": (0, np.inf), "refractory": (0, MAX_TIME_US + 1),
                  "leak": (-np.inf, np.inf)}  # fmt: skip
        for name, (lowest, beyond) in limits.items():
            values = getattr(self, name)
            wanted = np.dtype(np.int32 if name == "refractory" else np.float32)
            if values.dtype != wanted or values.shape != (count,) or not ((values > lowest) & (values < beyond)).all():
                raise ArgumentError(f"{name} must be {wanted} [{count}], each above {lowest} and below {beyond}")


@dataclass(frozen=True)
class SensorNoise:
    """Spurious events: ``keys`` int64 (see :func:`event_keys`), ascending in each recording, ``bounds`` [B + 1]."""

    keys: Keys
    bounds: Keys

    @staticmethod
    def of(keys: Sequence[Keys]) -> SensorNoise:
        """From one array of keys a recording."""
        bounds = np.concatenate([[0], np.cumsum([len(part) for part in keys])]).astype(np.int64)
        return SensorNoise(np.concatenate([np.empty(0, np.int64), *keys]), bounds)


def event_keys(t: Keys, pixel: Keys, p: Keys) -> Keys:
    """Events as single numbers that sort by time, then pixel (row * width + column)."""
    return t << PIXEL_BITS + 1 | pixel << 1 | p


def keys_to_events(keys: Keys, width: int) -> NDArray[np.void]:
    """EVENT_DTYPE array of keys."""
    events = np.empty(len(keys), RECORD_DTYPE)
    events["t"] = keys >> PIXEL_BITS + 1
    events["y"], events["x"] = np.divmod(keys >> 1 & (1 << PIXEL_BITS) - 1, width)
    events["p"] = keys & 1
    return events


class SensorExposure:
    """A batch of recordings while it is being made, frame after frame.

    Args:
        pixels: the sensor.
        first: float32 [B, width * height], log brightness at ``start`` microseconds; copied.
        backend: "cpp", "numpy" or "auto".

    Raises:
        ArgumentError: a frame of another shape or type, or one that is not finite.
    """

    def __init__(self, pixels: SensorPixels, first: Floats, start: int = 0, backend: str = "auto") -> None:
        self.pixels, self.time, self.backend = pixels, _checked_time(start, -1), chosen_backend(backend)
        self._shape = first.shape
        self._log_brightness = self._checked(first).copy()
        self._leaks = bool(pixels.leak.any())
        self._before = self._seen(self._log_brightness, start)
        self._reference = self._before.copy()
        self._blind_until = np.full(first.shape, SEEING, np.int32)
        self._counts: list[Keys] = []
        self._keys: list[Keys] = []

    def advance(self, frame: Floats | None, end: int, noise: SensorNoise) -> None:
        """Go on to ``end`` microseconds, where log brightness is ``frame`` [B, width * height]; None: as it was."""
        _checked_time(end, self.time)
        if frame is not None:
            self._log_brightness[...] = self._checked(frame)
        after = self._seen(self._log_brightness, end) if frame is not None or self._leaks else self._before
        pixels = self.pixels
        arrays = (self._before, after, self._reference, self._blind_until, pixels.threshold_on, pixels.threshold_off,
                  pixels.refractory, noise.keys, noise.bounds)  # fmt: skip
        if self.backend == "cpp":
            tensors = (torch.from_numpy(array) for array in arrays)
            result = torch.ops.snn_core.event_sensor_step(*tensors, self.time, end).numpy()
            counts, keys = result[: len(after)], result[len(after) :]
        else:
            found = sensor_step_reference(*arrays, self.time, end)
            counts, keys = np.array([len(part) for part in found]), np.concatenate(found)
        if len(keys):
            self._counts.append(counts)
            self._keys.append(keys)
        self._before, self.time = after, end

    def events(self) -> list[NDArray[np.void]]:
        """Everything fired so far, one array a recording, in order of time, then pixel."""
        batch = len(self._before)
        if batch == 0:
            return []
        counts = np.concatenate([np.empty(0, np.int64), *self._counts])
        sample = np.repeat(np.tile(np.arange(batch), len(self._counts)), counts)
        keys = np.concatenate([np.empty(0, np.int64), *self._keys])[np.argsort(sample, kind="stable")]
        totals = counts.reshape(-1, batch).sum(0)
        return np.split(keys_to_events(keys, self.pixels.width), np.cumsum(totals)[:-1])

    def _seen(self, log_brightness: Floats, time: int) -> Floats:
        return log_brightness + self.pixels.leak * np.float32(time * 1e-6)

    def _checked(self, frame: Floats) -> Floats:
        count = self.pixels.width * self.pixels.height
        if frame.dtype != np.float32 or frame.ndim != 2 or frame.shape[1] != count or frame.shape != self._shape:
            wanted = f"[{self._shape[0]}, {count}]" if len(self._shape) == 2 else f"[recordings, {count}]"
            raise ArgumentError(f"frames must be float32 {wanted}, got {frame.dtype} {list(frame.shape)}")
        if not np.isfinite(frame).all():
            raise ArgumentError(f"frames must be finite, but the one after {self.time} us is not")
        return frame


@dataclass(frozen=True)
class PictureOptics:
    """How a sensor looks at pictures. Coordinates count picture pixels times 2**16; (0, 0) is a pixel's centre.

    Args:
        stride: (x, y), how much further on the picture the next column (row) of the sensor looks.
        taps: float32 [256, K]: weights of picture pixels floor(c) - K // 2 + 1 and on, for each 256th part of a pixel.
        brightness: float32 [256], of the values of a picture; what lies beyond it has brightness 0.
        response: float32 [levels + 1], log brightness of brightness 0, 1 / levels, ..., 1; beyond it is clipped.
    """

    stride: tuple[int, int]
    taps: Floats
    brightness: Floats
    response: Floats

    def __post_init__(self) -> None:
        for name, shape in (("taps", (2**PHASE_BITS, -1)), ("brightness", (256,)), ("response", (-1,))):
            values = getattr(self, name)
            fits = values.dtype == np.float32 and values.ndim == len(shape) and values.size
            if not fits or any(want not in (-1, have) for want, have in zip(shape, values.shape, strict=True)):
                raise ArgumentError(f"{name} must be float32 {list(shape)}, got {values.dtype} {list(values.shape)}")
            if not np.isfinite(values).all():
                raise ArgumentError(f"{name} must be finite")
        if len(self.response) < 2 or len(self.response) > 2**20:
            raise ArgumentError(f"response must have 2 to {2**20} entries, got {len(self.response)}")


def sensor_pictures(
    pictures: NDArray[np.uint8],
    path: NDArray[np.int32],
    times: Keys,
    pixels: SensorPixels,
    optics: PictureOptics,
    noise: SensorNoise,
    backend: str = "auto",
) -> list[NDArray[np.void]]:
    """Recordings of pictures that move in front of a sensor.

    Args:
        pictures: uint8 [B, h, w].
        path: int32 [B, S, 2], where on the picture (x, y; units of :class:`PictureOptics`) pixel (0, 0) looks at each
            of ``times``.
        times: int64 [S], microseconds, ascending, 0 to 2**30 - 1.
        pixels, optics, noise: the sensor, how it looks, and its spurious events.
        backend: "cpp" (torch's threads, a recording each), "numpy", or "auto", the first of them that is there.

    Returns:
        Events (EVENT_DTYPE) of each, in order of time, then pixel.

    Raises:
        ArgumentError: shapes or types that do not fit.
        BackendUnavailableError: ``backend="cpp"`` without the native library.
    """
    _check_pictures(pictures, path, times)
    if chosen_backend(backend) == "cpp":
        return _pictures_cpp(pictures, path, times, pixels, optics, noise)
    result = []
    for index, picture in enumerate(pictures):
        frames = (
            look_reference(picture, int(x), int(y), (pixels.width, pixels.height), optics.stride, optics.taps,
                           optics.brightness, optics.response)[None]
            for x, y in path[index]
        )  # fmt: skip
        own = SensorNoise.of([noise.keys[noise.bounds[index] : noise.bounds[index + 1]]])
        exposure = SensorExposure(pixels, next(frames), int(times[0]), "numpy")
        for end, frame in zip(times[1:].tolist(), frames, strict=True):
            exposure.advance(frame, end, own)
        result += exposure.events()
    return result


def _pictures_cpp(
    pictures: NDArray[np.uint8],
    path: NDArray[np.int32],
    times: Keys,
    pixels: SensorPixels,
    optics: PictureOptics,
    noise: SensorNoise,
) -> list[NDArray[np.void]]:
    x, y = (np.ascontiguousarray(path[..., axis]) for axis in (0, 1))
    tensor = torch.from_numpy
    records, counts = torch.ops.snn_core.event_sensor_pictures(
        tensor(np.ascontiguousarray(pictures)), tensor(x), tensor(y), tensor(times), pixels.width, pixels.height,
        *optics.stride, tensor(optics.taps), tensor(optics.brightness), tensor(optics.response),
        tensor(pixels.threshold_on), tensor(pixels.threshold_off), tensor(pixels.refractory), tensor(pixels.leak),
        tensor(noise.keys), tensor(noise.bounds),
    )  # fmt: skip
    events = records.numpy().reshape(-1).view(RECORD_DTYPE)
    return np.split(events, np.cumsum(counts.numpy())[:-1]) if len(pictures) else []


def _check_pictures(pictures: NDArray[np.uint8], path: NDArray[np.int32], times: Keys) -> None:
    if pictures.dtype != np.uint8 or pictures.ndim != 3 or 0 in pictures.shape[1:]:
        raise ArgumentError(f"pictures must be uint8 [recordings, h, w], got {pictures.dtype} {list(pictures.shape)}")
    if times.dtype != np.int64 or times.ndim != 1 or not len(times):
        raise ArgumentError(f"times must be int64 [steps], got {times.dtype} {list(times.shape)}")
    before = -1
    for time in times.tolist():
        before = _checked_time(time, before)
    if path.dtype != np.int32 or path.shape != (len(pictures), len(times), 2):
        wanted = [len(pictures), len(times), 2]
        raise ArgumentError(f"path must be int32 {wanted}, got {path.dtype} {list(path.shape)}")


def _checked_time(time: int, before: int) -> int:
    if not before < time <= MAX_TIME_US:
        raise ArgumentError(f"times must ascend from 0 to {MAX_TIME_US} microseconds, got {time} after {before}")
    return time


def to_fixed(coordinate: NDArray[np.float64]) -> NDArray[np.int32]:
    """Coordinates in picture pixels as :func:`sensor_pictures` takes them. ArgumentError: beyond 2**15 pixels."""
    if not (abs(coordinate) < 2 ** (31 - FRACTION_BITS) - 1).all():
        raise ArgumentError(f"a place on the picture must lie within 2**{31 - FRACTION_BITS} of its pixels")
    return np.rint(coordinate * 2**FRACTION_BITS).astype(np.int32)
