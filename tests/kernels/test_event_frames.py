"""event_frames against its reference and tonic's ToFrame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tonic.transforms import ToFrame

from snn_core.datasets import EVENT_DTYPE, iterate_events, make_events
from snn_core.errors import ArgumentError
from snn_core.kernels.event_frames import event_frames, event_frames_reference

TONIC_DTYPE = np.dtype([("x", int), ("y", int), ("t", int), ("p", int)])
MODES = [pytest.param("n_time_bins", "time", id="time"), pytest.param("n_event_bins", "count", id="count")]


def random_events(num: int, width: int, height: int, seed: int, duration: int = 300_000) -> np.ndarray:
    generator = np.random.default_rng(seed)
    t = np.sort(generator.integers(0, duration, num)) + generator.integers(0, 10_000)
    return make_events(
        t, generator.integers(0, width, num), generator.integers(0, height, num), generator.integers(0, 2, num)
    )


def tonic_frames(events: np.ndarray, sensor_size: tuple[int, int, int], **bins: int) -> np.ndarray:
    copy = np.empty(len(events), TONIC_DTYPE)
    for name in "xytp":
        copy[name] = events[name]
    return ToFrame(sensor_size=sensor_size, **bins)(copy)


@pytest.mark.parametrize("bins", [1, 2, 3, 7, 16])
@pytest.mark.parametrize("num", [1, 2, 3, 15, 16, 17, 1000])
@pytest.mark.parametrize(("argument", "by"), MODES)
def test_equals_reference_and_tonic(argument: str, by: str, num: int, bins: int) -> None:
    width, height = 7, 5
    for seed, duration in enumerate((300_000, 40, 3)):  # the short ones have many events on the bin edges
        events = random_events(num, width, height, seed, duration)
        frames, saturated = event_frames(events, (width, height, 2), **{argument: bins})
        assert frames.dtype == np.uint8
        assert frames.shape == (bins, 2, height, width)
        np.testing.assert_array_equal(frames, tonic_frames(events, (width, height, 2), **{argument: bins}))
        expected, expected_saturated = event_frames_reference(events, (width, height, 2), bins=bins, by=by)
        np.testing.assert_array_equal(frames, expected)
        assert saturated == expected_saturated == 0


@pytest.mark.parametrize("argument", ["n_time_bins", "n_event_bins"])
def test_equal_time_stamps_equal_tonic(argument: str) -> None:
    events = random_events(50, 6, 6, 0)
    events["t"] = 777
    frames, _ = event_frames(events, (6, 6, 2), **{argument: 4})
    np.testing.assert_array_equal(frames, tonic_frames(events, (6, 6, 2), **{argument: 4}))
    assert frames.sum() == (0 if argument == "n_time_bins" else 48)


@pytest.mark.parametrize(("argument", "by"), MODES)
def test_zero_events_give_empty_frames(argument: str, by: str) -> None:
    frames, saturated = event_frames(np.empty(0, EVENT_DTYPE), (7, 5, 2), **{argument: 3})
    assert frames.shape == (3, 2, 5, 7)
    assert not frames.any()
    assert saturated == 0
    # tonic swaps width and height here; on a square sensor the two agree.
    square, _ = event_frames(np.empty(0, EVENT_DTYPE), (6, 6, 2), **{argument: 3})
    np.testing.assert_array_equal(square, ToFrame(sensor_size=(6, 6, 2), **{argument: 3})(np.empty(0, TONIC_DTYPE)))
    np.testing.assert_array_equal(event_frames_reference(np.empty(0, EVENT_DTYPE), (7, 5, 2), bins=3, by=by)[0], frames)


def test_channel_0_is_off_and_channel_1_is_on() -> None:
    events = make_events([0, 10, 20, 30], [1, 2, 3, 0], [0, 1, 2, 0], [0, 1, 1, 0])
    frames, _ = event_frames(events, (4, 3, 2), n_event_bins=1)
    assert frames[0, 0, 0, 1] == 1
    assert frames[0, 1, 1, 2] == 1
    assert frames[0, 1, 2, 3] == 1
    assert frames[0, 0].sum() == frames[0, 1].sum() == 2


def test_bin_edges_as_documented() -> None:
    t = [100, 109, 110, 119, 120, 129, 130, 131]  # window (131 - 100) // 3 = 10; 130 and 131 lie past the third bin
    events = make_events(t, range(8), [0] * 8, [1] * 8)
    frames, _ = event_frames(events, (8, 1, 2), n_time_bins=3)
    assert [np.flatnonzero(frame[1, 0]).tolist() for frame in frames] == [[0, 1], [2, 3], [4, 5]]
    frames, _ = event_frames(events, (8, 1, 2), n_event_bins=3)
    assert [np.flatnonzero(frame[1, 0]).tolist() for frame in frames] == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize(("argument", "by"), MODES)
def test_saturation_clips_at_255_and_is_counted(argument: str, by: str) -> None:
    counts = {(0, 0): 255, (1, 0): 256, (2, 1): 700}
    cells = [(x, p) for (x, p), count in counts.items() for _ in range(count)]
    np.random.default_rng(0).shuffle(cells)
    x, p = np.array(cells).T
    events = make_events(np.arange(len(x)), x, np.zeros(len(x)), p)
    events = np.concatenate([events, make_events([len(x)], [3], [0], [0])])  # the last event is dropped by time
    frames, saturated = event_frames(events, (4, 1, 2), **{argument: 1})
    assert saturated == 2
    assert frames[0, 0, 0, :3].tolist() == [255, 255, 0]
    assert frames[0, 1, 0, :3].tolist() == [0, 0, 255]
    expected, expected_saturated = event_frames_reference(events, (4, 1, 2), bins=1, by=by)
    np.testing.assert_array_equal(frames, expected)
    assert expected_saturated == 2


def test_boolean_polarity_and_other_field_order() -> None:
    events = random_events(200, 9, 4, 3)
    other = np.empty(200, np.dtype([("x", np.uint16), ("p", bool), ("y", np.int64), ("t", np.uint64), ("z", float)]))
    for name in "xytp":
        other[name] = events[name]
    for bins in ({"n_time_bins": 5}, {"n_event_bins": 5}):
        np.testing.assert_array_equal(
            event_frames(other, (9, 4, 2), **bins)[0], event_frames(events, (9, 4, 2), **bins)[0]
        )


@pytest.mark.parametrize("bins", [{"n_time_bins": 3}, {"n_time_bins": 16}, {"n_event_bins": 5}])
def test_real_recordings_equal_tonic(nmnist_zip: Path, bins: dict[str, int]) -> None:
    for events, _, _ in iterate_events(nmnist_zip, "test", limit=20):
        frames, saturated = event_frames(events, (34, 34, 2), **bins)
        np.testing.assert_array_equal(frames, tonic_frames(events, (34, 34, 2), **bins))
        assert saturated == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": 7}, r"events\['x'\] must lie in 0..6, but event 4 has 7"),
        ({"y": -1}, r"events\['y'\] must lie in 0..4, but event 4 has -1"),
        ({"p": 2}, r"events\['p'\] must lie in 0..1, but event 4 has 2"),
        ({"t": -5}, r"must ascend for n_time_bins, but event 4 is at -5 us"),
    ],
)
def test_bad_events_are_named(change: dict[str, int], message: str) -> None:
    events = random_events(10, 7, 5, 0)
    for name, value in change.items():
        events[name][4] = value
    with pytest.raises(ArgumentError, match=message):
        event_frames(events, (7, 5, 2), n_time_bins=3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one"),
        ({"n_time_bins": 3, "n_event_bins": 3}, "exactly one"),
        ({"n_time_bins": 0}, "n_time_bins must be an integer of at least 1, got 0"),
        ({"n_event_bins": 2.5}, "n_event_bins must be an integer"),
        ({"n_event_bins": True}, "n_event_bins must be an integer"),
        ({"n_time_bins": 3, "sensor_size": (34, 34, 1)}, "sensor_size must be"),
        ({"n_time_bins": 3, "events": np.zeros((5, 4))}, "structured array"),
        (
            {"n_time_bins": 3, "events": np.zeros(5, [("t", float), ("x", int), ("y", int), ("p", int)])},
            r"\['t'\] must",
        ),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    options = {"events": random_events(10, 7, 5, 0), "sensor_size": (7, 5, 2), **arguments}
    events, sensor_size = options.pop("events"), options.pop("sensor_size")
    with pytest.raises(ArgumentError, match=message):
        event_frames(events, sensor_size, **options)  # type: ignore[arg-type]
