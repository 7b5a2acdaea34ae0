"""The simulated sensor on single pixels, where the right answer is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from snn_core.datasets.event_sensor import EventSensor, SensorParameters
from snn_core.errors import ArgumentError

QUIET = SensorParameters(0.25, 0.5, threshold_mismatch=0, refractory_us=1000, noise_rate_hz=0)


def record(levels: list[float], parameters: SensorParameters = QUIET, step_us: int = 1000) -> np.ndarray:
    frames = (np.array([[level]], np.float32) for level in levels)
    (events,) = EventSensor(1, 1, parameters, seed=0).record(frames, step_us, [0])
    return events


def test_constant_brightness_gives_no_events() -> None:
    assert len(record([1.0] * 20)) == 0


def test_threshold_crossing_is_interpolated() -> None:
    events = record([0.0, 0.2, 0.4, 0.4])
    assert events[["t", "p"]].tolist() == [(1250, 1)]
    events = record([0.0, -0.4, -0.8, -0.8])  # the OFF threshold is twice the ON threshold here
    assert events[["t", "p"]].tolist() == [(1250, 0)]


def test_ramp_fires_once_per_threshold_and_refractory_time() -> None:
    # 0.1 a millisecond: 2.5 ms to the threshold, then 1 ms without sight, so an event every 3.5 ms.
    events = record((np.arange(30) * 0.1).tolist())
    assert np.abs(events["t"] - (2500 + 3500 * np.arange(len(events)))).max() <= 5
    assert len(events) == 8
    assert events["p"].all()


def test_reference_after_refractory_time_is_the_brightness_then() -> None:
    # Fires at 500 us on the way from 0 to 0.5. Sees again at 1500 us, at 0.8; the rise to 1.1 at 2000 us is 0.3 from
    # there, so it fires when 1.05 is reached, and sees again at 2917 us, at 1.1: nothing more to see.
    events = record([0.0, 0.5, 1.1, 1.1, 1.1])
    assert events[["t", "p"]].tolist() == [(500, 1), (1917, 1)]
    # What happens within the refractory time is not seen: up by 0.3 and back within the millisecond after 500 us.
    events = record([0.0, 0.5, 0.5, 0.5, 0.7])
    assert events[["t", "p"]].tolist() == [(500, 1)]


def test_noise_has_the_rate_asked_for_and_belongs_to_the_name() -> None:
    parameters = SensorParameters(noise_rate_hz=5.0, refractory_us=1000)
    sensor = EventSensor(20, 20, parameters, seed=4)
    frame = np.zeros((3, 400), np.float32)
    first, second, third = sensor.record([frame] * 1001, 1000, ["a", "b", "a"])
    assert abs(len(first) - 2000) < 5 * np.sqrt(2000)
    assert abs(first["p"].mean() - 0.5) < 0.06
    np.testing.assert_array_equal(first, third)
    assert not np.array_equal(first[:100], second[:100])


def test_mismatch_spreads_the_thresholds() -> None:
    sensor = EventSensor(50, 50, SensorParameters(0.2, 0.4, threshold_mismatch=0.1), seed=0)
    for threshold, mean in ((sensor.threshold_on, 0.2), (sensor.threshold_off, 0.4)):
        assert threshold.mean() == pytest.approx(mean, rel=0.02)
        assert threshold.std() == pytest.approx(0.1 * mean, rel=0.1)
    assert not np.allclose(sensor.threshold_on * 2, sensor.threshold_off)


@pytest.mark.parametrize("change", [{"threshold_on": 0}, {"refractory_us": -1}, {"noise_rate_hz": -1.0}])
def test_bad_parameters_are_named(change: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(change))):
        SensorParameters(**change)


def test_pixel_fires_several_times_in_a_long_step() -> None:
    # The same ramp as above, 0.1 a millisecond, in one step: nothing but rounding may change.
    events = record([0.0, 2.9], step_us=29_000)
    assert len(events) == 8
    assert np.abs(events["t"] - (2500 + 3500 * np.arange(8))).max() <= 8


def test_sensor_without_pixels() -> None:
    with pytest.raises(ArgumentError, match="the sensor must have 1 to 65536 pixels, got 0 x 5"):
        EventSensor(0, 5, QUIET, seed=0)
