"""A simulated event sensor: brightness over time -> events. *Simulated*, not a recording.

Model of one pixel, after the usual description of the dynamic vision sensor (Lichtsteiner, Posch, Delbruck 2008; event
generation by linear interpolation between rendered frames as in ESIM, Rebecq et al. 2018; leak and background noise as
in v2e, Hu, Liu, Delbruck 2021):

* It remembers the log brightness at its last event, and fires ON (OFF) when log brightness has risen (fallen) by its
  threshold since. ON and OFF thresholds differ from pixel to pixel by a fixed mismatch.
* For a refractory time after an event it does not see; its reference is the log brightness at the end of that time.
* Its reference leaks: without any change it fires ON at the leak rate.
* It also fires at random at a background rate, with random polarity; such an event resets it like any other.

Between two brightness frames log brightness is taken to be linear in time, so events have microsecond time stamps. The
arithmetic is in ``snn_core.kernels.event_sensor``; pictures and videos are in ``snn_core.datasets.simulate``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from snn_core.errors import ArgumentError
from snn_core.kernels.event_sensor import MAX_TIME_US, SensorExposure, SensorNoise, SensorPixels, event_keys
from snn_core.seeding import derive_seed

FloatArray = NDArray[np.float32]
#: Noise is drawn for so many microseconds at a time.
NOISE_CHUNK_US = 2**17
#: Of every parameter but the refractory time.
MOST = 1_000_000


@dataclass(frozen=True)
class SensorParameters:
    """Parameters of :class:`EventSensor`; thresholds in natural-log units, rates per pixel and second.

    Args:
        threshold_on, threshold_off: change of log brightness that fires.
        threshold_mismatch: standard deviation between pixels, relative to the threshold.
        refractory_us: time after an event in which a pixel does not see.
        noise_rate_hz: rate of spurious events of either polarity.
        leak_rate_hz: rate of ON events where nothing changes.
        refractory_mismatch: standard deviation of the refractory time between pixels, relative to it.

    Raises:
        ArgumentError: a parameter that is not positive (mismatch, noise and leak may be 0), or above 1,000,000 (the
            refractory time: 2**30 - 1, longer than any recording).
    """

    threshold_on: float = 0.25
    threshold_off: float = 0.25
    threshold_mismatch: float = 0.1
    refractory_us: int = 2000
    noise_rate_hz: float = 0.3
    leak_rate_hz: float = 0.0
    refractory_mismatch: float = 0.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            most = MAX_TIME_US if name == "refractory_us" else MOST
            if isinstance(value, bool) or not isinstance(value, float | int | np.number) or not 0 <= value <= most:
                raise ArgumentError(f"{name} must be a number from 0 to {most}, got {value!r}")
            if name in ("threshold_on", "threshold_off", "refractory_us") and not value > 0:
                raise ArgumentError(f"{name} must be positive, got {value}")


class EventSensor:
    """A sensor of width x height pixels whose mismatch is drawn once, from ``seed``.

    Args:
        width, height: pixels, together at most 65,536, and at most 32,768 each.
        parameters: see :class:`SensorParameters`.
        seed: of mismatch and noise.
        backend: "cpp", "numpy" or "auto" (the first that is there); both give the same events.

    Raises:
        ArgumentError: no pixels or too many.
    """

    def __init__(self, width: int, height: int, parameters: SensorParameters, seed: int, backend: str = "auto") -> None:
        self.width, self.height, self.parameters, self.seed, self.backend = width, height, parameters, seed, backend
        if not all(isinstance(side, int | np.integer) for side in (width, height)):
            raise ArgumentError(f"width and height must be integers, got {width!r} and {height!r}")
        count = max(0, width * height)
        generator = np.random.default_rng(derive_seed(seed, "mismatch"))
        on, off = (1 + generator.standard_normal((2, count)) * parameters.threshold_mismatch).clip(1 / 3, 3)
        blind = 1 + generator.standard_normal(count) * parameters.refractory_mismatch
        # A pixel far out in the tail would fire without end: everything is kept within a factor of three.
        self.pixels = SensorPixels(
            width,
            height,
            threshold_on=(on * parameters.threshold_on).astype(np.float32),
            threshold_off=(off * parameters.threshold_off).astype(np.float32),
            refractory=np.rint(blind.clip(1 / 3, 3) * parameters.refractory_us).clip(1, MAX_TIME_US).astype(np.int32),
            leak=(on * parameters.threshold_on * parameters.leak_rate_hz).astype(np.float32),
        )
        self.threshold_on, self.threshold_off = self.pixels.threshold_on, self.pixels.threshold_off

    def record(
        self, log_brightness: Iterable[FloatArray], step_us: int, noise_names: Sequence[str | int]
    ) -> list[NDArray[np.void]]:
        """Events of a batch of recordings.

        Args:
            log_brightness: float32 [batch, height * width] at times 0, step_us, 2 * step_us, ...; an array that is
                the same object as the one before says that nothing changed. Each is only read until the next comes.
            step_us: time between two frames in microseconds.
            noise_names: one name a recording: recordings of the same name and seed have the same noise, whatever
                batch they are in.

        Returns:
            For each recording its events (EVENT_DTYPE), in order of time, then pixel.

        Raises:
            ArgumentError: ``step_us`` below 1, frames of another type or shape, more than 2**30 microseconds.
        """
        if isinstance(step_us, bool) or not isinstance(step_us, int | np.integer) or step_us < 1:
            raise ArgumentError(f"step_us must be an integer of at least 1, got {step_us!r}")
        return self.record_at(log_brightness, itertools.count(0, step_us), noise_names)

    def record_at(
        self, log_brightness: Iterable[FloatArray], timestamps: Iterable[int], noise_names: Sequence[str | int]
    ) -> list[NDArray[np.void]]:
        """:meth:`record` of frames at given times: microseconds, ascending, from 0 to 2**30 - 1.

        Raises:
            ArgumentError: no frame, fewer times than frames, times that do not ascend, or as in :meth:`record`.
        """
        times = iter(timestamps)
        exposure, noise, previous = None, None, None
        for frame in log_brightness:
            end = next(times, None)
            if end is None:
                raise ArgumentError("there are more frames than timestamps")
            if not isinstance(end, int | np.integer):
                raise ArgumentError(f"timestamps must be integers, in microseconds, got {end!r}")
            if exposure is None or noise is None:
                if len(frame) != len(noise_names):
                    raise ArgumentError(f"noise_names holds {len(noise_names)} names for {len(frame)} recordings")
                exposure = SensorExposure(self.pixels, frame, int(end), self.backend)
                noise = NoiseStream(self, noise_names)
            else:
                exposure.advance(None if frame is previous else frame, int(end), noise.between(exposure.time, int(end)))
            previous = frame
        if exposure is None:
            raise ArgumentError("log_brightness holds no frame")
        return exposure.events()

    def noise(self, names: Sequence[str | int], duration_us: int) -> SensorNoise:
        """The noise of recordings of these names from 0 to ``duration_us``, the same as :meth:`record` draws."""
        return NoiseStream(self, names).between(0, duration_us)


class NoiseStream:
    """Spurious events of a batch of recordings, drawn piece after piece of time, each recording from its name."""

    def __init__(self, sensor: EventSensor, names: Sequence[str | int]) -> None:
        self.count = sensor.width * sensor.height
        self.expected = sensor.parameters.noise_rate_hz * self.count * NOISE_CHUNK_US * 1e-6
        silent = self.expected == 0
        seeds = [] if silent else [derive_seed(sensor.seed, "noise", name) for name in names]
        self.generators = [np.random.Generator(np.random.PCG64(seed)) for seed in seeds]
        self.silence = SensorNoise.of([np.empty(0, np.int64)] * len(names))
        self.chunks: list[tuple[int, list[NDArray[np.int64]]]] = []  # those still needed, with their numbers
        self.drawn = 0
        self.joined: tuple[tuple[int, int], SensorNoise] | None = None

    def between(self, start: int, end: int) -> SensorNoise:
        """Noise that holds all after ``start`` and up to ``end``, and maybe more; ``start`` must not go back."""
        if not self.generators:
            return self.silence
        first = start // NOISE_CHUNK_US
        last = max(first, (end - 1) // NOISE_CHUNK_US)
        if self.joined is None or self.joined[0] != (first, last):
            while self.drawn <= last:
                self.chunks.append((self.drawn, [self._draw(generator) for generator in self.generators]))
                self.drawn += 1
                self.chunks = [chunk for chunk in self.chunks if chunk[0] >= first]
            wanted = [chunk for number, chunk in self.chunks if first <= number <= last]
            self.joined = (first, last), SensorNoise.of([np.concatenate(parts) for parts in zip(*wanted, strict=True)])
        return self.joined[1]

    def _draw(self, generator: np.random.Generator) -> NDArray[np.int64]:
        size = int(generator.poisson(self.expected))
        time = generator.integers(1, NOISE_CHUNK_US + 1, size) + self.drawn * NOISE_CHUNK_US
        return np.sort(event_keys(time, generator.integers(self.count, size=size), generator.integers(2, size=size)))


def batches(count: int, size: int) -> Iterator[slice]:
    """Slices that cut 0 .. count - 1 into runs of ``size``."""
    return (slice(first, min(first + size, count)) for first in range(0, count, size))
