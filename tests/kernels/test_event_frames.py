"""event_frames against its reference and tonic's ToFrame: bins, saturation, layouts, batches, bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tonic.transforms import ToFrame

from snn_core.datasets import EVENT_DTYPE, iterate_events, make_events
from snn_core.errors import ArgumentError
from snn_core.kernels.event_frames import (
    event_frames,
    event_frames_batch,
    event_frames_reference,
    normalise_frames,
)
from snn_core.kernels.event_frames.layout import bytes_of, fields_tensor
from snn_core.kernels.native import cpu_library

TONIC_DTYPE = np.dtype([("x", int), ("y", int), ("t", int), ("p", int)])
MODES = [pytest.param("n_time_bins", "time", id="time"), pytest.param("n_event_bins", "count", id="count")]
BACKENDS = ["numpy", pytest.param("cpp", marks=pytest.mark.skipif(not cpu_library().available, reason="not built"))]


def random_events(num: int, width: int, height: int, seed: int, duration: int = 300_000) -> np.ndarray:
    generator = np.random.default_rng(seed)
    t = np.sort(generator.integers(0, duration, num)) + generator.integers(0, 10_000)
    return make_events(
        t, generator.integers(0, width, num), generator.integers(0, height, num), generator.integers(0, 2, num)
    )


def tonic_frames(events: np.ndarray, sensor_size: tuple[int, int, int], **bins: Any) -> np.ndarray:
    copy = np.empty(len(events), TONIC_DTYPE)
    for name in "xytp":
        copy[name] = events[name]
    return ToFrame(sensor_size=sensor_size, **bins)(copy)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bins", [1, 2, 3, 7, 16])
@pytest.mark.parametrize("num", [1, 2, 3, 15, 16, 17, 1000])
@pytest.mark.parametrize(("argument", "by"), MODES)
def test_equals_reference_and_tonic(argument: str, by: str, num: int, bins: int, backend: str) -> None:
    width, height = 7, 5
    for seed, duration in enumerate((300_000, 40, 3)):  # the short ones have many events on the bin edges
        events = random_events(num, width, height, seed, duration)
        frames, saturated = event_frames(events, (width, height, 2), **{argument: bins}, backend=backend)
        assert frames.dtype == np.uint8
        assert frames.shape == (bins, 2, height, width)
        np.testing.assert_array_equal(frames, tonic_frames(events, (width, height, 2), **{argument: bins}))
        expected, expected_saturated = event_frames_reference(events, (width, height, 2), by=by, number=bins)
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
    np.testing.assert_array_equal(
        event_frames_reference(np.empty(0, EVENT_DTYPE), (7, 5, 2), by=by, number=3)[0], frames
    )


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
    expected, expected_saturated = event_frames_reference(events, (4, 1, 2), by=by, number=1)
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
        ({"t": -5}, r"must ascend for bins of time, but event 4 is at -5 us"),
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


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("convention", ["tonic", "spikingjelly"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32])
@pytest.mark.parametrize("by", ["time", "count", "window"])
def test_rules_equal_the_reference(by: str, dtype: Any, convention: str, backend: str) -> None:
    argument = {"time": "n_time_bins", "count": "n_event_bins", "window": "time_window"}[by]
    for seed, (num, number) in enumerate(((1, 3), (700, 1), (700, 5), (2, 5))):
        events = random_events(num, 2, 1, seed, 20)
        frames, saturated = event_frames(
            events, (2, 1, 2), **{argument: number}, convention=convention, dtype=dtype, backend=backend
        )
        expected, expected_saturated = event_frames_reference(
            events, (2, 1, 2), by=by, number=number, convention=convention, dtype=dtype
        )
        assert frames.dtype == dtype
        np.testing.assert_array_equal(frames, expected)
        assert saturated == expected_saturated


@pytest.mark.parametrize("backend", BACKENDS)
def test_int16_saturates_at_its_end(backend: str) -> None:
    num = 2**15 + 5
    events = make_events(np.arange(num), np.zeros(num), np.zeros(num), np.arange(num) == 9)
    for kept, saturated in ((2**15, 0), (2**15 + 1, 1), (num, 1)):
        frames, found = event_frames(events[:kept], (1, 1, 2), n_event_bins=1, dtype=np.int16, backend=backend)
        assert frames.reshape(-1).tolist() == [2**15 - 1, 1]
        assert found == saturated
    assert event_frames(events, (1, 1, 2), n_event_bins=1, dtype=np.int32, backend=backend)[0][0, 0, 0, 0] == num - 1


LAYOUTS = [
    [("t", "<i8"), ("x", "<i2"), ("y", "<i2"), ("p", "i1")],
    [("x", "<u2"), ("y", "<u2"), ("p", "<i2"), ("t", "<i8")],
    [("x", "<i8"), ("y", "<i8"), ("t", "<i8"), ("p", "<i8")],
    [("t", "<u4"), ("x", "u1"), ("y", "u1"), ("p", "?")],
    [("p", "<u8"), ("y", "<i4"), ("x", "i1"), ("t", "<u8")],
    [("t", ">u4"), ("x", ">u2"), ("y", "<u2"), ("p", "u1")],
    [("t", "<i8"), ("x", "<u2"), ("y", "u1"), ("p", "i1"), ("note", "O")],
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: "_".join(name + code for name, code in layout))
@pytest.mark.parametrize("backend", BACKENDS)
def test_any_layout_and_strides(layout: list[tuple[str, str]], backend: str) -> None:
    events = random_events(1000, 9, 4, 3, 5000)
    other = np.zeros(1000, np.dtype(layout))
    for name in "txyp":
        other[name] = events[name]
    read_only = other.copy()
    read_only.flags.writeable = False
    every_second = np.zeros(2000, other.dtype)[::2]
    every_second[:] = other
    backwards = other[::-1].copy()[::-1]
    for bins in ({"n_time_bins": 5}, {"n_event_bins": 5}, {"time_window": 700}):
        expected, _ = event_frames(events, (9, 4, 2), **bins, backend="numpy")
        for view in (other, read_only, every_second, backwards):
            np.testing.assert_array_equal(event_frames(view, (9, 4, 2), **bins, backend=backend)[0], expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_events_are_found_in_every_layout(backend: str) -> None:
    for layout in LAYOUTS[:3]:
        for name, value in (("x", 7), ("y", 30_000), ("p", 2), ("x", -1), ("t", 3)):
            if value < 0 and np.dtype(layout)[name].kind == "u":
                continue
            events = np.zeros(600, np.dtype(layout))
            events["t"] = np.arange(600) + 10
            events[name][590] = value
            with pytest.raises(ArgumentError, match=rf"events\['{name}'\] must .* event 590 "):
                event_frames(events, (7, 5, 2), n_time_bins=3, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_time_stamps_at_the_ends_of_64_bits(backend: str) -> None:
    first, last = np.iinfo(np.int64).min, np.iinfo(np.int64).max
    events = make_events([first, -1, 0, last], [0, 1, 2, 3], [0] * 4, [1] * 4)
    frames, _ = event_frames(events, (4, 1, 2), n_time_bins=2, backend=backend)
    assert frames[:, 1, 0].tolist() == [[1, 0, 0, 0], [0, 1, 1, 0]]  # the window is 2**63 - 1
    frames, _ = event_frames(events, (4, 1, 2), time_window=2**63 - 1, convention="spikingjelly", backend=backend)
    assert frames[:, 1, 0].tolist() == [[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]]
    with pytest.raises(ArgumentError, match=r"time_window=1 us cuts a recording of \d+ us into"):
        event_frames(events, (4, 1, 2), time_window=1, backend=backend)


@pytest.mark.parametrize("argument", ["n_time_bins", "n_event_bins"])
def test_batch_equals_one_by_one(argument: str) -> None:
    recordings = [random_events(num, 6, 3, seed, 1000) for seed, num in enumerate((0, 1, 5, 300, 2000, 17))]
    wide = np.zeros(len(recordings[3]), TONIC_DTYPE)
    for name in "txyp":
        wide[name] = recordings[3][name]
    recordings.append(wide)
    for backend in ("auto", "numpy"):
        for convention in ("tonic", "spikingjelly"):
            frames, saturated = event_frames_batch(
                recordings, (6, 3, 2), **{argument: 4}, convention=convention, backend=backend
            )
            for index, events in enumerate(recordings):
                alone = event_frames(events, (6, 3, 2), **{argument: 4}, convention=convention)
                np.testing.assert_array_equal(frames[index], alone[0])
                assert saturated[index] == alone[1]
    out = np.full((len(recordings), 4, 2, 3, 6), 9, np.uint8)
    expected, _ = event_frames_batch(recordings, (6, 3, 2), **{argument: 4})
    frames, _ = event_frames_batch(recordings, (6, 3, 2), **{argument: 4}, out=out)
    assert frames is out
    np.testing.assert_array_equal(frames, expected)
    recordings[4]["x"][77] = 6
    with pytest.raises(ArgumentError, match=r"recordings\[4\]: events\['x'\] must lie in 0..5, but event 77 has 6"):
        event_frames_batch(recordings, (6, 3, 2), **{argument: 4})
    assert event_frames_batch([], (6, 3, 2), **{argument: 4})[0].shape == (0, 4, 2, 3, 6)


@pytest.mark.parametrize("threads", [1, 2])
def test_long_recordings_in_pieces(threads: int) -> None:
    """Enough events for several pieces: frames across their borders, one frame alone, clipped cells in several."""
    events = random_events(400_003, 5, 3, 1, 10**6)
    torch.set_num_threads(threads)
    try:
        for bins in ({"n_time_bins": 1}, {"n_time_bins": 7}, {"n_event_bins": 300}, {"time_window": 900}):
            for dtype in (np.uint8, np.int32):
                for convention in ("tonic", "spikingjelly"):
                    options = {**bins, "dtype": dtype, "convention": convention}
                    expected, expected_saturated = event_frames(events, (5, 3, 2), **options, backend="numpy")
                    frames, saturated = event_frames(events, (5, 3, 2), **options)
                    np.testing.assert_array_equal(frames, expected)
                    assert saturated == expected_saturated
                    assert saturated == 0 or dtype is np.uint8
        events["t"][300_000] = 0
        with pytest.raises(ArgumentError, match=r"must ascend for bins of time, but event 300000 is at 0 us"):
            event_frames(events, (5, 3, 2), n_time_bins=4)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("kind", ["binary", "log1p", "max", "sum", "standard"])
@pytest.mark.parametrize(("over", "axes"), [("sample", (1, 2, 3, 4)), ("frame", (2, 3, 4)), ("channel", (3, 4))])
def test_normalise_frames(kind: str, over: str, axes: tuple[int, ...]) -> None:
    frames = torch.from_numpy(np.random.default_rng(0).poisson(2.0, (3, 4, 2, 5, 6)).astype(np.uint8))
    frames[1] = 0
    frames[2, 3, 1] = 0
    result = normalise_frames(frames, kind, over=over)
    counts = frames.numpy().astype(np.float64)
    with np.errstate(all="ignore"):
        expected = {
            "binary": np.minimum(counts, 1),
            "log1p": np.log1p(counts),
            "max": counts / counts.max(axes, keepdims=True),
            "sum": counts / counts.sum(axes, keepdims=True),
            "standard": (counts - counts.mean(axes, keepdims=True)) / counts.std(axes, keepdims=True),
        }[kind]
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result.numpy(), np.nan_to_num(expected), rtol=1e-5, atol=1e-6)


def test_operator_is_declared_right() -> None:
    if not cpu_library().available:
        pytest.skip("the native library is not built")
    events = random_events(600, 6, 3, 0, 50)
    frames = torch.zeros(1, 2, 2, 3, 6, dtype=torch.uint8)
    arguments = (frames, [bytes_of(events)], fields_tensor(events.dtype), 0, 0, 0, False)
    torch.library.opcheck(torch.ops.snn_core.event_frames.default, arguments)
    for change, message in (
        ({0: torch.zeros(1, 2, 2, 3, 6)}, "frames must be uint8"),
        ({0: frames[..., :5]}, "frames must be contiguous"),
        ({0: frames[:, :0]}, "dimension of size 0"),
        ({1: []}, "different numbers"),
        ({1: [torch.zeros(4, 3)]}, "events must be uint8"),
        ({2: torch.zeros(1, 7, dtype=torch.int64)}, "fields must be contiguous"),
        ({2: torch.tensor([[0, 9] * 4])}, "type that is none"),
        ({2: torch.tensor([[12, 6] * 4])}, "past the end"),
        ({3: 4}, "by must be"),
        ({3: 2}, "step must be"),
    ):
        changed = [change.get(position, value) for position, value in enumerate(arguments)]
        with pytest.raises(RuntimeError, match=message):
            torch.ops.snn_core.event_frames(*changed)
