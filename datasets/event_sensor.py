"""A simulated event sensor: brightness over time -> events. *Simulated*, not a recording.

Model of one pixel, after the usual description of the dynamic vision sensor (Lichtsteiner, Posch, Delbruck 2008; event
generation by linear interpolation between rendered frames as in ESIM, Rebecq et al. 2018):

* It remembers the log brightness at its last event, and fires ON (OFF) when log brightness has risen (fallen) by its
  threshold since. ON and OFF thresholds differ from pixel to pixel by a fixed mismatch.
* For a refractory time after an event it does not see; its reference is the log brightness at the end of that time.
* It also fires at random at a background rate, with random polarity; such an event resets it like any other.

Between two brightness frames log brightness is taken to be linear in time, so events have microsecond time stamps.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from snn_core.datasets.events import EVENT_DTYPE
from snn_core.errors import ArgumentError
from snn_core.seeding import derive_seed

FloatArray = NDArray[np.float32]
#: Bits of the sort key: pixel above polarity, time above pixel, sample above time.
PIXEL_BITS, TIME_BITS = 16, 32


@dataclass(frozen=True)
class SensorParameters:
    """Parameters of :class:`EventSensor`; thresholds in natural-log units, rates per pixel and second.

    Raises:
        ArgumentError: a parameter that is not positive (mismatch and noise may be 0).
    """

    threshold_on: float = 0.25
    threshold_off: float = 0.25
    threshold_mismatch: float = 0.1  # standard deviation, relative to the threshold
    refractory_us: int = 2000
    noise_rate_hz: float = 0.3

    def __post_init__(self) -> None:
        for name in ("threshold_on", "threshold_off", "refractory_us"):
            if not getattr(self, name) > 0:
                raise ArgumentError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("threshold_mismatch", "noise_rate_hz"):
            if not getattr(self, name) >= 0:
                raise ArgumentError(f"{name} must not be negative, got {getattr(self, name)}")


class EventSensor:
    """A sensor of width x height pixels whose mismatch is drawn once, from ``seed``.

    Args:
        width, height: pixels, together at most 65,536.
        parameters: see :class:`SensorParameters`.
        seed: of mismatch and noise.
    """

    def __init__(self, width: int, height: int, parameters: SensorParameters, seed: int) -> None:
        if width < 1 or height < 1 or width * height > 1 << PIXEL_BITS:
            raise ArgumentError(f"the sensor must have 1 to {1 << PIXEL_BITS} pixels, got {width} x {height}")
        self.width, self.height, self.parameters, self.seed = width, height, parameters, seed
        generator = np.random.default_rng(derive_seed(seed, "mismatch"))
        spread = generator.standard_normal((2, width * height)) * parameters.threshold_mismatch
        # A pixel far out in the tail would fire without end: keep thresholds within a factor of three.
        scale = np.clip(1 + spread, 1 / 3, 3)
        self.threshold_on = (scale[0] * parameters.threshold_on).astype(np.float32)
        self.threshold_off = (scale[1] * parameters.threshold_off).astype(np.float32)

    def record(
        self, log_brightness: Iterable[FloatArray], step_us: int, noise_names: list[str | int]
    ) -> list[NDArray[np.void]]:
        """Events of a batch of recordings.

        Args:
            log_brightness: float32 [batch, height * width] at times 0, step_us, 2 * step_us, ...; an array that is
                the same object as the one before says that nothing changed. Each is only read until the next comes.
            step_us: time between two frames in microseconds, at most the refractory time.
            noise_names: one name a recording: recordings of the same name and seed have the same noise, whatever
                batch they are in.

        Returns:
            For each recording its events (EVENT_DTYPE), in order of time, then pixel.

        Raises:
            ArgumentError: ``step_us`` longer than the refractory time (then a pixel could fire twice in a step).
        """
        if not 0 < step_us <= self.parameters.refractory_us:
            raise ArgumentError(f"step_us must lie in 1..{self.parameters.refractory_us}, got {step_us}")
        frames = iter(log_brightness)
        state = _Exposure(self, next(frames), noise_names)
        for step, frame in enumerate(frames):
            state.advance(frame, step * step_us, step_us)
        return state.events()


class _Exposure:
    """State of one batch while it is being recorded; ``reference`` is NaN where a pixel is refractory."""

    def __init__(self, sensor: EventSensor, first: FloatArray, noise_names: list[str | int]) -> None:
        self.sensor = sensor
        self.batch, self.pixels = first.shape
        self.refractory = sensor.parameters.refractory_us
        self.reference = first.copy()
        self.previous = first
        self.generators = [np.random.default_rng(derive_seed(sensor.seed, "noise", name)) for name in noise_names]
        self.waiting_cell = np.empty(0, np.int64)  # refractory pixels: flat index, and when they see again
        self.waiting_until = np.empty(0, np.int64)
        self.keys: list[NDArray[np.int64]] = []

    def advance(self, frame: FloatArray, start: int, step: int) -> None:
        """Go on from ``start`` to ``start + step`` microseconds, where log brightness is ``frame``."""
        self._fire_noise(start, step)
        # Noise comes before release: a pixel that is refractory at the start of the step does not fire from noise.
        self._release(frame, start, step)
        if frame is not self.previous:
            change = frame - self.reference
            self._fire_crossings(frame, change >= self.sensor.threshold_on, 1, start, step)
            self._fire_crossings(frame, change <= -self.sensor.threshold_off, 0, start, step)
        self.previous = frame

    def _fire_noise(self, start: int, step: int) -> None:
        expected = self.sensor.parameters.noise_rate_hz * self.pixels * step * 1e-6
        draws = [(generator.poisson(expected), generator) for generator in self.generators]
        cells, times, polarities = [], [], []
        for sample, (count, generator) in enumerate(draws):
            if count:
                cells.append(generator.integers(self.pixels, size=count) + sample * self.pixels)
                times.append(generator.integers(1, step + 1, size=count) + start)
                polarities.append(generator.integers(2, size=count))
        if cells:
            cell, first = np.unique(np.concatenate(cells), return_index=True)
            free = ~np.isnan(self.reference.reshape(-1)[cell])
            self._emit(cell[free], np.concatenate(times)[first][free], np.concatenate(polarities)[first][free])

    def _release(self, frame: FloatArray, start: int, step: int) -> None:
        """Pixels whose refractory time ends in this step see again, from the brightness at that moment on."""
        due = self.waiting_until <= start + step
        cell = self.waiting_cell[due]
        fraction = ((self.waiting_until[due] - start) / step).astype(np.float32)
        before = self.previous.reshape(-1)[cell]
        self.reference.reshape(-1)[cell] = before + fraction * (frame.reshape(-1)[cell] - before)
        self.waiting_cell, self.waiting_until = self.waiting_cell[~due], self.waiting_until[~due]

    def _fire_crossings(self, frame: FloatArray, fired: NDArray[np.bool_], p: int, start: int, step: int) -> None:
        cell = np.flatnonzero(fired)
        threshold = self.sensor.threshold_on if p else -self.sensor.threshold_off
        level = self.reference.reshape(-1)[cell] + threshold[cell % self.pixels]
        before = self.previous.reshape(-1)[cell]
        fraction = (level - before) / (frame.reshape(-1)[cell] - before)
        # Rounded up, so that an event never lies before the end of its pixel's refractory time.
        time = start + np.ceil(np.clip(fraction, 0, 1) * step).astype(np.int64)
        self._emit(cell, time, np.full(len(cell), p))

    def _emit(self, cell: NDArray[np.int64], time: NDArray[np.int64], p: NDArray[np.int64]) -> None:
        self.reference.reshape(-1)[cell] = np.nan
        self.waiting_cell = np.concatenate([self.waiting_cell, cell])
        self.waiting_until = np.concatenate([self.waiting_until, time + self.refractory])
        sample, pixel = np.divmod(cell, self.pixels)
        self.keys.append(((sample << TIME_BITS | time) << PIXEL_BITS | pixel) << 1 | p)

    def events(self) -> list[NDArray[np.void]]:
        """Everything fired so far, one array a recording, in order of time."""
        key = np.sort(np.concatenate(self.keys)) if self.keys else np.empty(0, np.int64)
        pixel = key >> 1 & (1 << PIXEL_BITS) - 1
        events = np.empty(len(key), EVENT_DTYPE)
        events["p"] = key & 1
        events["y"], events["x"] = np.divmod(pixel, self.sensor.width)
        events["t"] = key >> PIXEL_BITS + 1 & (1 << TIME_BITS) - 1
        bounds = np.searchsorted(key, np.arange(1, self.batch, dtype=np.int64) << TIME_BITS + PIXEL_BITS + 1)
        return np.split(events, bounds)
