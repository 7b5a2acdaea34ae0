"""The simulated sensor with parameters, times and sizes at and beyond the ends of what is possible."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from snn_core.datasets.event_sensor import EventSensor, SensorParameters
from snn_core.datasets.simulate import Scene, simulate_images, simulate_video
from snn_core.errors import ArgumentError
from snn_core.kernels.event_sensor import MAX_TIME_US, PictureOptics, SensorPixels

PICTURES = np.arange(2 * 36, dtype=np.uint8).reshape(2, 6, 6)
VIDEO = np.random.default_rng(0).random((4, 5, 6))


def sensor(width: int = 6, height: int = 5, backend: str = "auto", **parameters: Any) -> EventSensor:
    return EventSensor(width, height, SensorParameters(**parameters), 0, backend)


@pytest.mark.parametrize("backend", ["auto", "numpy"])
def test_the_longest_refractory_time_lets_every_pixel_fire_once(backend: str) -> None:
    seen = sensor(backend=backend, refractory_us=MAX_TIME_US, refractory_mismatch=3.0, noise_rate_hz=0)
    events = simulate_video(VIDEO, [2**30 - 5, 2**30 - 4, 2**30 - 3, 2**30 - 1], seen)
    assert len(events) > 0
    assert len(np.unique(events[["x", "y"]])) == len(events)
    one = np.ones(1, np.float32)
    with pytest.raises(ArgumentError, match="refractory must be int32"):
        SensorPixels(1, 1, one, one, np.array([2**31 - 1], np.int32), one)


def test_coordinates_fit_into_events() -> None:
    events = simulate_video(np.tile([[0.0], [1.0]], 2**15)[:, None], [0, 10], sensor(2**15, 1))
    assert (events["x"].min(), events["x"].max()) == (0, 2**15 - 1)
    with pytest.raises(ArgumentError, match="a side of the sensor has at most 32768 pixels"):
        sensor(2**16, 1)


def test_no_recording_and_no_duration() -> None:
    assert sensor().record([np.zeros((0, 30), np.float32)] * 2, 5, []) == []
    assert [len(events) for events in simulate_images(PICTURES, np.zeros((1, 2)), [0], sensor())] == [0, 0]


def test_optics_are_finite() -> None:
    ones, bad = np.ones(256, np.float32), np.full((256, 4), np.nan, np.float32)
    with pytest.raises(ArgumentError, match="taps must be finite"):
        PictureOptics((1, 1), bad, ones, ones)


def still(times: Any, path: Any = None, **options: Any) -> object:
    return simulate_images(PICTURES, np.zeros((len(times), 2)) if path is None else path, times, sensor(), **options)


# Images are simulated lazily: what is wrong is to be said at the call all the same.
BAD: dict[str, tuple[Callable[[], object], str]] = {
    "infinite": (
        lambda: SensorParameters(threshold_on=float("inf")),
        "threshold_on must be a number from 0 to 1000000",
    ),
    "nan": (lambda: SensorParameters(leak_rate_hz=float("nan")), "leak_rate_hz must be a number"),
    "text": (lambda: SensorParameters(threshold_off="0.2"), "threshold_off must be a number"),  # type: ignore[arg-type]
    "rest": (lambda: SensorParameters(refractory_us=2**30), "refractory_us must be a number from 0 to 1073741823"),
    "noise": (lambda: SensorParameters(noise_rate_hz=1e20), "noise_rate_hz must be a number"),
    "width": (lambda: sensor(3.5), "width and height must be integers"),  # type: ignore[arg-type]
    "step": (lambda: sensor().record([], 2.5, []), "step_us must be an integer"),  # type: ignore[arg-type]
    "fraction": (lambda: simulate_video(VIDEO, [0.5, 1, 2, 3], sensor()), "timestamps must be integers"),  # type: ignore[list-item]
    "more times": (
        lambda: simulate_video(VIDEO, range(9), sensor()),
        "more timestamps than frames: 4 frames, 9 timestamps",
    ),
    "negative": (lambda: still([-1, 0, 1]), "times must ascend"),
    "backwards": (lambda: still([3, 0, 1]), "times must ascend"),
    "wrapped": (lambda: still(np.array([3, 2**64 - 1], np.uint64)), "times must ascend"),
    "ragged": (lambda: still([0, 1], [[1, 2], [3]]), "path must hold numbers"),
    "far": (lambda: still([0], np.full((1, 2), 16000.0), scene=Scene(pixels_a_cell=1 / 16)), "path goes 16006"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_named_at_the_call(case: str) -> None:
    call, message = BAD[case]
    with pytest.raises(ArgumentError, match=message):
        call()
