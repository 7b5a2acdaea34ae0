"""The simulated sensor in C++ against numpy, and both against what one pixel must do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from snn_core.datasets.events import EVENT_DTYPE
from snn_core.errors import ArgumentError
from snn_core.kernels.event_sensor import (
    PictureOptics,
    SensorExposure,
    SensorNoise,
    SensorPixels,
    event_keys,
    sensor_pictures,
)
from snn_core.kernels.event_sensor.ops import MAX_TIME_US, RECORD_DTYPE
from snn_core.kernels.event_sensor.schema import SEEING
from snn_core.kernels.native import cpu_library

needs_native = pytest.mark.skipif(not cpu_library().available, reason="native library not built")
SILENCE = SensorNoise.of([np.empty(0, np.int64)])


def pixels(width: int, height: int, generator: np.random.Generator, leak: float = 0.0) -> SensorPixels:
    count = width * height
    thresholds = generator.uniform(0.05, 0.4, (2, count)).astype(np.float32)
    refractory = generator.integers(1, 4000, count).astype(np.int32)
    return SensorPixels(width, height, *thresholds, refractory, np.full(count, leak, np.float32))


def noise(generator: np.random.Generator, batch: int, count: int, end: int, rate: int) -> SensorNoise:
    sizes = generator.poisson(rate, batch)
    draws = [(generator.integers(0, end + 1, n), generator.integers(count, size=n), generator.integers(2, size=n))
             for n in sizes]  # fmt: skip
    return SensorNoise.of([np.sort(event_keys(*draw)) for draw in draws])


def exposed(backend: str, sensor: SensorPixels, frames: np.ndarray, times: list[int], spurious: SensorNoise) -> Any:
    exposure = SensorExposure(sensor, frames[0], times[0], backend)
    for frame, before, end in zip(frames[1:], frames, times[1:], strict=False):
        exposure.advance(None if frame is before else frame, end, spurious)
    return exposure


@needs_native
@pytest.mark.parametrize("leak", [0.0, 3.0])
@pytest.mark.parametrize("rate", [0, 300])
@pytest.mark.parametrize(("width", "height", "batch"), [(1, 1, 1), (5, 3, 2), (17, 9, 3), (16, 16, 1)])
def test_steps_equal_the_reference(width: int, height: int, batch: int, rate: int, leak: float) -> None:
    generator = np.random.default_rng(width)
    sensor = pixels(width, height, generator, leak)
    times = np.cumsum([7, 1, 2000, 1, 500, 60_000, 3, 900, 900, 900, 40_000]).tolist()
    steps = generator.standard_normal((len(times), batch, width * height)).astype(np.float32)
    frames = list(np.cumsum(steps, 0))
    frames[4] = frames[3]
    frames[8] = frames[7].copy()
    spurious = noise(generator, batch, width * height, times[-1], rate)
    ours, reference = (exposed(backend, sensor, frames, times, spurious) for backend in ("cpp", "numpy"))
    assert sum(len(events) for events in ours.events()) > 4 * batch
    for mine, expected in zip(ours.events(), reference.events(), strict=True):
        assert mine.dtype == EVENT_DTYPE
        np.testing.assert_array_equal(mine, expected)
        assert (np.diff(mine["t"]) >= 0).all()
        assert mine["t"].min() > times[0]
        assert mine["t"].max() <= times[-1]


def test_record_dtype_is_that_of_the_datasets() -> None:
    assert RECORD_DTYPE == EVENT_DTYPE


def optics(generator: np.random.Generator, taps: int, stride: tuple[int, int]) -> PictureOptics:
    weights = generator.uniform(-0.1, 0.5, (256, taps)).astype(np.float32)
    response = np.log(0.1 + np.arange(513) / 512).astype(np.float32)
    return PictureOptics(stride, weights, np.linspace(0, 1, 256, dtype=np.float32), response)


@needs_native
@pytest.mark.parametrize(
    ("shape", "size", "taps", "stride"),
    [((28, 28), (34, 34), 4, (65536, 65536)), ((3, 9), (7, 5), 1, (30000, 50000)), ((20, 5), (16, 3), 7, (9, 200000))],
)
def test_pictures_equal_the_reference(
    shape: tuple[int, int], size: tuple[int, int], taps: int, stride: tuple[int, int]
) -> None:
    generator = np.random.default_rng(taps)
    sensor, batch = pixels(*size, generator, leak=1.0), 3
    times = np.cumsum(generator.integers(1, 3000, 25))
    pictures = generator.integers(0, 256, (batch, *shape)).astype(np.uint8)
    path = np.cumsum(generator.integers(-60_000, 60_000, (batch, 25, 2)), 1).astype(np.int32)
    path[:, 10] = path[:, 9]
    path[1, 20:] = 2**30  # far beyond the picture
    spurious = noise(generator, batch, size[0] * size[1], int(times[-1]), 20)
    arguments = pictures, path, times, sensor, optics(generator, taps, stride), spurious
    ours, reference = (sensor_pictures(*arguments, backend=backend) for backend in ("cpp", "numpy"))
    for mine, expected in zip(ours, reference, strict=True):
        assert len(mine) > 20
        np.testing.assert_array_equal(mine, expected)


@needs_native
def test_same_events_for_any_number_of_threads() -> None:
    generator = np.random.default_rng(0)
    sensor = pixels(12, 12, generator)
    pictures = generator.integers(0, 256, (20, 9, 9)).astype(np.uint8)
    path = np.cumsum(generator.integers(-60_000, 60_000, (20, 30, 2)), 1).astype(np.int32)
    spurious = SensorNoise.of([np.empty(0, np.int64)] * 20)
    arguments = pictures, path, np.arange(30) * 1000, sensor, optics(generator, 4, (65536, 65536)), spurious
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(sensor_pictures(*arguments, backend="cpp"))
    finally:
        torch.set_num_threads(before)
    for one, several in zip(*results, strict=True):
        np.testing.assert_array_equal(one, several)


@pytest.mark.parametrize("backend", [pytest.param("cpp", marks=needs_native), "numpy"])
class TestOnePixel:
    """What is fired, by hand. Threshold 0.25 either way, blind for 1 ms."""

    sensor = SensorPixels(
        1, 1, np.float32([0.25]), np.float32([0.25]), np.array([1000], np.int32), np.zeros(1, np.float32)
    )

    def events(self, backend: str, levels: list[float], times: list[int], keys: list[tuple[int, int]]) -> list[Any]:
        spurious = SensorNoise.of([np.array([event_keys(t, 0, p) for t, p in keys], np.int64)])  # type: ignore[arg-type]
        frames = np.float32(levels).reshape(-1, 1, 1)
        return exposed(backend, self.sensor, frames, times, spurious).events()[0][["t", "p"]].tolist()

    def test_noise_resets_the_pixel(self, backend: str) -> None:
        # Rises by 0.1 a ms. Without noise it fires at 2500; with noise at 2000 it compares with what was at 3000.
        levels, times = [0.0, 0.6], [0, 6000]
        assert self.events(backend, levels, times, []) == [(2500, 1), (6000, 1)]
        assert self.events(backend, levels, times, [(2000, 0)]) == [(2000, 0), (5500, 1)]

    def test_noise_of_a_blind_pixel_is_not_seen(self, backend: str) -> None:
        keys = [(2499, 0), (2500, 1), (3498, 0), (3499, 1)]
        assert self.events(backend, [0.0, 0.3], [0, 3600], keys) == [(2499, 0), (3499, 1)]

    def test_noise_outside_the_exposure_is_left_out(self, backend: str) -> None:
        assert self.events(backend, [0.0, 0.0], [100, 200], [(100, 1), (201, 1)]) == []

    def test_leak_fires_on(self, backend: str) -> None:
        leaking = SensorPixels(
            1, 1, np.float32([0.25]), np.float32([0.25]), np.array([1000], np.int32), np.float32([2.5])
        )
        events = exposed(backend, leaking, np.zeros((3, 1, 1), np.float32), [0, 250_000, 500_000], SILENCE).events()[0]
        np.testing.assert_allclose(events["t"], [100_000 + 101_000 * k for k in range(4)], atol=8)
        assert events["p"].all()


@needs_native
def test_opcheck() -> None:
    generator = np.random.default_rng(1)
    sensor = pixels(4, 4, generator)
    state = [torch.randn(2, 16), torch.randn(2, 16), torch.zeros(2, 16), torch.full((2, 16), SEEING, dtype=torch.int32)]
    rest = [torch.from_numpy(values) for values in (sensor.threshold_on, sensor.threshold_off, sensor.refractory)]
    nothing = [torch.empty(0, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)]
    torch.library.opcheck(torch.ops.snn_core.event_sensor_step.default, (*state, *rest, *nothing, 0, 1000))


@needs_native
def test_operator_refuses_what_would_read_past_the_end() -> None:
    state = [torch.zeros(1, 4), torch.zeros(1, 4), torch.zeros(1, 4), torch.full((1, 4), SEEING, dtype=torch.int32)]
    rest = [torch.ones(4), torch.ones(4), torch.ones(4, dtype=torch.int32)]
    step = torch.ops.snn_core.event_sensor_step

    def run(*, after: Any = state[1], keys: Any = (), bounds: Any = (0, 0), end: int = 10) -> Any:
        spurious = [torch.tensor(keys, dtype=torch.int64), torch.tensor(bounds)]
        return step(state[0], after, *state[2:], *rest, *spurious, 0, end)

    assert run().tolist() == [0]
    pixel_4 = int(event_keys(np.int64(5), np.int64(4), np.int64(1)))  # type: ignore[arg-type]
    bad: list[Callable[[], Any]] = [
        lambda: run(after=torch.zeros(1, 5)),
        lambda: run(after=torch.zeros(1, 4, dtype=torch.float64)),
        lambda: run(after=torch.zeros(1, 8)[:, ::2]),
        lambda: run(bounds=(0, 1)),
        lambda: run(keys=(1,), bounds=(-1, 1)),
        lambda: run(keys=(pixel_4,), bounds=(0, 1)),
        lambda: run(end=2**30),
    ]
    for call in bad:
        with pytest.raises(RuntimeError, match="event_sensor"):
            call()


def test_bad_arguments_are_named() -> None:
    sensor = TestOnePixel.sensor
    with pytest.raises(ArgumentError, match=r"frames must be float32 \[1, 1\], got float64 \[1, 1\]"):
        SensorExposure(sensor, np.zeros((1, 1)))  # type: ignore[arg-type]
    exposure = SensorExposure(sensor, np.zeros((2, 1), np.float32))
    with pytest.raises(ArgumentError, match=r"frames must be float32 \[2, 1\], got float32 \[1, 1\]"):
        exposure.advance(np.zeros((1, 1), np.float32), 10, SILENCE)
    with pytest.raises(ArgumentError, match="frames must be finite, but the one after 0 us is not"):
        exposure.advance(np.full((2, 1), np.nan, np.float32), 10, SILENCE)
    for end in (0, MAX_TIME_US + 1):
        with pytest.raises(ArgumentError, match=f"times must ascend .* got {end} after 0"):
            exposure.advance(None, end, SILENCE)
    with pytest.raises(ArgumentError, match=r"threshold_off must be float32 \[1\], each above 0"):
        SensorPixels(1, 1, np.float32([1]), np.float32([0]), sensor.refractory, sensor.leak)
