"""Pictures and videos in front of the simulated sensor, where the right answer is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from snn_core.datasets import simulate
from snn_core.datasets.event_sensor import EventSensor, SensorParameters
from snn_core.datasets.simulate import Scene, simulate_images, simulate_video
from snn_core.errors import ArgumentError
from snn_core.kernels.event_sensor.reference import look_reference

QUIET = SensorParameters(0.25, 0.25, threshold_mismatch=0, refractory_us=500, noise_rate_hz=0)
NOISY = SensorParameters(noise_rate_hz=20)
TIMES = np.arange(0, 40_001, 1000)


def dots(num: int = 1, size: int = 9) -> np.ndarray:
    images = np.zeros((num, size, size), np.uint8)
    images[:, size // 2, size // 2] = 255
    return images


def look(image: np.ndarray, scene: Scene, size: tuple[int, int], x: float = 0, y: float = 0) -> np.ndarray:
    optics = scene.optics()
    corner = int(x * 2**16), int(y * 2**16)
    seen = look_reference(image, *corner, size, optics.stride, optics.taps, optics.brightness, optics.response)
    return np.exp(seen.reshape(size[::-1])) - scene.background


def test_a_dot_moving_right_is_on_before_and_off_behind() -> None:
    path = np.stack([TIMES / 10_000, np.zeros(len(TIMES))], 1)  # four pixels to the right
    (events,) = simulate_images(dots(), path, TIMES, EventSensor(15, 9, QUIET, 0))
    middle = events[events["y"] == 4]
    on, off = middle[middle["p"] == 1], middle[middle["p"] == 0]
    # The dot starts at column 7, reaches column 7 + k after 10 k ms, and has then left the one before.
    assert sorted(set(on["x"])) == [8, 9, 10, 11]
    assert set(off["x"]) >= {7, 8, 9, 10}
    for column in (8, 9, 10):
        arrival = (column - 7) * 10_000
        assert on["t"][on["x"] == column].max() <= arrival < off["t"][(off["x"] == column)].min() + 1000


def test_a_picture_at_rest_gives_no_events() -> None:
    path = np.full((len(TIMES), 2), 0.3)
    assert [len(events) for events in simulate_images(dots(3), path, TIMES, EventSensor(9, 9, QUIET, 0))] == [0, 0, 0]


def test_interpolation_keeps_whole_pixels_and_total_brightness() -> None:
    image = np.random.default_rng(0).integers(0, 256, (6, 8)).astype(np.uint8)
    np.testing.assert_allclose(look(image, Scene(), (8, 6)), image / 255, atol=2e-4)
    np.testing.assert_allclose(look(image, Scene(), (8, 6), x=-2, y=1)[:5, 2:], image[1:, :6] / 255, atol=2e-4)
    for scene in (Scene(blur=0.8), Scene(pixels_a_cell=2.25), Scene(pixels_a_cell=0.5)):
        scale = scene.pixels_a_cell
        seen = look(dots()[0] // 3, scene, (45, 45), x=4 - 22 / scale, y=4 - 22 / scale)
        assert seen.sum() == pytest.approx(scale**2 * 85 / 255, rel=0.2)
        assert seen.argmax() == 22 * 45 + 22


def test_gamma_and_white() -> None:
    image = np.array([[0, 2, 4, 8]], np.uint8)
    np.testing.assert_allclose(look(image, Scene(white=4, gamma=2), (4, 1))[0], [0, 0.25, 1, 1], atol=2e-4)


def test_same_events_whatever_the_batch_and_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(1)
    images = generator.integers(0, 256, (5, 7, 6)).astype(np.uint8)
    path = np.cumsum(generator.uniform(-1, 1, (5, len(TIMES), 2)), 1)
    names = ["a", "b", "c", "d", "b"]
    sensor = EventSensor(11, 9, NOISY, seed=3)
    whole = list(simulate_images(images, path, TIMES, sensor, names=names))
    monkeypatch.setattr(simulate, "BATCH", 2)
    (alone,) = simulate_images(images[3:4], path[3:4], TIMES, sensor, names=["d"])
    np.testing.assert_array_equal(alone, whole[3])
    numpy_sensor = EventSensor(11, 9, NOISY, seed=3, backend="numpy")
    for other in (sensor, numpy_sensor):
        for mine, expected in zip(simulate_images(images, path, TIMES, other, names=names), whole, strict=True):
            np.testing.assert_array_equal(mine, expected)


def test_video_is_what_its_frames_say() -> None:
    sensor = EventSensor(3, 2, QUIET, 0)
    frames = np.zeros((3, 2, 3))
    frames[1:, 1, 2] = np.e - 1  # log(background + value) rises by 1 where the background is 1
    frames[2, 0, 0] = np.e - 1
    frames /= np.e - 1
    events = simulate_video(frames, [0, 30_000, 50_000], sensor, background=1 / (np.e - 1))
    assert len(events) > 4
    first = events[events["t"] <= 30_000]
    # A threshold every 7.5 ms, less what is not seen while blind, 0.5 ms after each event.
    assert first[["x", "y", "p"]].tolist() == [(2, 1, 1)] * 3
    np.testing.assert_allclose(first["t"], [7500, 15_500, 23_500], atol=10)
    assert set(events[events["t"] > 30_000][["x", "y", "p"]].tolist()) == {(0, 0, 1)}


def test_video_of_bytes_is_that_of_floats_and_is_read_one_by_one() -> None:
    video = np.random.default_rng(0).integers(0, 256, (6, 4, 5)).astype(np.uint8)
    sensor, times = EventSensor(5, 4, NOISY, 0), range(0, 60_000, 10_000)
    buffer = np.empty((4, 5))

    def reused() -> Any:
        for frame in video:
            buffer[...] = frame / 255
            yield buffer

    expected = simulate_video(video, times, sensor)
    assert len(expected) > 50
    np.testing.assert_array_equal(simulate_video(reused(), times, sensor), expected)
    assert not np.array_equal(simulate_video(video, times, sensor, name="other"), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((1, 4, 4))}, r"images must be uint8 \[num, h, w\], got float64 \[1, 4, 4\]"),
        ({"timestamps": [0.5, 1.5]}, r"timestamps must be integers \[steps\], got float64 \[2\]"),
        ({"timestamps": [0, 0]}, r"times must ascend from 0 to \d+ microseconds, got 0 after 0"),
        ({"path": np.zeros((3, 2))}, r"path must be \[2, 2\] or \[1, 2, 2\], .* got \[3, 2\]"),
        ({"path": np.full((2, 2), np.nan)}, r"path must be .* within 2\*\*14 pixels"),
        ({"names": ["a", "b"]}, "names holds 2 names for 1 images"),
    ],
)
def test_bad_arguments_of_images_are_named(change: dict[str, Any], message: str) -> None:
    arguments = {"images": dots(), "path": np.zeros((2, 2)), "timestamps": [0, 1000]} | change
    with pytest.raises(ArgumentError, match=message):
        list(simulate_images(sensor=EventSensor(9, 9, QUIET, 0), **arguments))


@pytest.mark.parametrize(
    ("frame", "times", "message"),
    [
        (np.zeros((3, 2)), [0, 1], r"frame 0 must be \[2, 3\] as the sensor, got \[3, 2\]"),
        (np.full((2, 3), 2.0), [0, 1], "frame 0 must be uint8 or float within 0 .. 1, got float64"),
        (np.full((2, 3), np.nan), [0, 1], "frame 0 must be uint8 or float within 0 .. 1"),
        (np.zeros((2, 3), np.int64), [0, 1], "frame 0 must be uint8 or float within 0 .. 1, got int64"),
        (np.zeros((2, 3)), [0], "more frames than timestamps"),
        (np.zeros((2, 3)), [5, 5], "times must ascend"),
    ],
)
def test_bad_videos_are_named(frame: np.ndarray, times: list[int], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        simulate_video([frame, frame], times, EventSensor(3, 2, QUIET, 0))


@pytest.mark.parametrize("change", [{"background": 0.0}, {"blur": -1}, {"pixels_a_cell": 1000}, {"gamma": np.nan}])
def test_bad_scenes_are_named(change: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(change))):
        Scene(**change)
