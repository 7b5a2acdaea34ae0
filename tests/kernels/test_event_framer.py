"""EventFramer against event_frames on the whole recording."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from snn_core.datasets import make_events
from snn_core.errors import ArgumentError
from snn_core.kernels import EventFramer, RecordingExtent, event_frames
from snn_core.kernels.native import cpu_library

SENSOR = (4, 3, 2)
BACKENDS = ["numpy", pytest.param("cpp", marks=pytest.mark.skipif(not cpu_library().available, reason="not built"))]


def random_events(num: int, duration: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    t = np.sort(generator.integers(0, duration, num)) + 1000
    return make_events(t, generator.integers(0, 4, num), generator.integers(0, 3, num), generator.integers(0, 2, num))


def chunks_of(events: np.ndarray, seed: int) -> list[np.ndarray]:
    cuts = np.sort(np.random.default_rng(seed).integers(0, len(events) + 1, 12))
    return np.split(events, cuts)  # some are empty


RULES: list[dict[str, Any]] = [
    {**bins, "convention": convention}
    for bins in ({"n_time_bins": 5}, {"n_event_bins": 5}, {"time_window": 50})
    for convention in ("tonic", "spikingjelly")
] + [{"time_window": 50, "include_incomplete": True}]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: ", ".join(map(str, rule.values())))
def test_chunks_give_the_frames_of_the_whole(rule: dict[str, Any], backend: str) -> None:
    options: dict[str, Any] = {**rule, "backend": backend}
    several = 0
    for seed, (num, duration) in enumerate(((0, 9), (1, 9), (4, 1), (3, 500), (600, 50), (600, 3), (2000, 1000)) * 3):
        events = random_events(num, duration, seed)
        if num > 4 and seed % 2:
            events["t"][-seed % 5 :] = events["t"][0] + 50 * (duration // 50 + 1)  # a whole number of windows
        expected, expected_saturated = event_frames(events, SENSOR, **options)
        chunks = chunks_of(events, seed)
        extent = RecordingExtent.of(chunks)
        framer = EventFramer(SENSOR, **options, extent=None if "time_window" in rule and seed % 2 else extent)
        parts = [framer.push(chunk) for chunk in chunks]
        several += sum(len(part) > 0 for part in parts)
        parts.append(framer.finish())
        np.testing.assert_array_equal(np.concatenate(parts), expected)
        assert framer.saturated == expected_saturated
    assert several > 3  # frames came before the end


def test_saturation_is_counted_once_across_chunks() -> None:
    events = make_events(np.arange(1000), [0] * 1000, [0] * 1000, [1] * 1000)
    framer = EventFramer((1, 1, 2), time_window=400)
    frames = np.concatenate([framer.push(events[i : i + 7]) for i in range(0, 1000, 7)] + [framer.finish()])
    assert frames[:, 1, 0, 0].tolist() == [255, 255]
    assert framer.saturated == 2


def test_frames_of_a_merged_end_are_clipped() -> None:
    """SpikingJelly's last window takes the events at its very end, which come in a later chunk."""
    events = make_events([0] * 255 + [10] * 3, [0] * 258, [0] * 258, [0] * 258)
    framer = EventFramer((1, 1, 2), time_window=10, convention="spikingjelly")
    assert len(framer.push(events[:256])) == 0
    assert len(framer.push(events[256:])) == 0
    assert framer.finish()[:, 0, 0, 0].tolist() == [255]
    assert framer.saturated == event_frames(events, (1, 1, 2), time_window=10, convention="spikingjelly")[1] == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_refused_chunks_leave_the_framer_as_it_was(backend: str) -> None:
    events = random_events(300, 1000, 0)
    expected, _ = event_frames(events, SENSOR, time_window=50)
    framer = EventFramer(SENSOR, time_window=50, backend=backend)
    parts = [framer.push(events[:200])]
    for change, message in (
        ({"x": 4}, r"events\['x'\] must lie in 0..3, but event 205 has 4"),
        ({"t": 5}, r"must ascend for bins of time, but event 205 is at 5 us"),
    ):
        bad = events[200:].copy()
        for name, value in change.items():
            bad[name][5] = value
        with pytest.raises(ArgumentError, match=message):
            framer.push(bad)
    with pytest.raises(ArgumentError, match=r"must ascend .*, but event 200 is at"):
        framer.push(events[100:])
    far = events[-1:].copy()
    far["t"] += 10**12
    with pytest.raises(ArgumentError, match="frames later"):
        framer.push(far)
    parts += [framer.push(events[200:]), framer.finish()]
    np.testing.assert_array_equal(np.concatenate(parts), expected)
    for call in (framer.finish, lambda: framer.push(events)):
        with pytest.raises(ArgumentError, match="finish"):
            call()


def test_extent_must_be_given_and_true() -> None:
    events = random_events(30, 1000, 0)
    with pytest.raises(ArgumentError, match="n_time_bins needs extent"):
        EventFramer(SENSOR, n_time_bins=3)
    extent = RecordingExtent.of([events])
    assert extent == RecordingExtent(30, int(events["t"][0]), int(events["t"][-1]))
    for bins in ({"n_time_bins": 3}, {"n_event_bins": 3}):
        framer = EventFramer(SENSOR, **bins, extent=extent)
        framer.push(events[:-1])
        with pytest.raises(ArgumentError, match=r"extent is .*num_events=30.*num_events=29"):
            framer.finish()
    framer = EventFramer(SENSOR, n_time_bins=3, extent=extent)
    early = events[:1].copy()
    early["t"] -= 1
    with pytest.raises(ArgumentError, match="extent begins at"):
        framer.push(early)


def test_bad_events_are_refused_after_the_last_frame() -> None:
    events = random_events(31, 1000, 0)
    framer = EventFramer(SENSOR, n_event_bins=3, extent=RecordingExtent.of([events]))
    assert len(framer.push(events[:30])) == 2
    assert len(framer.push(events[30:])) == 1  # the 31st is dropped
    bad = events[:1].copy()
    bad["x"] = 77
    with pytest.raises(ArgumentError, match=r"event 31 has 77"):
        framer.push(bad)
    assert framer.finish().shape == (0, 2, 3, 4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_unsigned_times_beyond_two_to_63_wrap(backend: str) -> None:
    dtype = [("t", "<u8"), ("x", "<i2"), ("y", "<i2"), ("p", "i1")]
    events = np.array([(2**63 + 5, 0, 0, 0), (2**63 + 9, 1, 0, 1), (2**63 + 25, 2, 0, 1)], dtype)
    frames, _ = event_frames(events, (3, 1, 2), time_window=10, include_incomplete=True, backend=backend)
    assert frames.shape == (2, 2, 1, 3)
    assert frames[:, :, 0].tolist() == [[[1, 0, 0], [0, 1, 0]], [[0, 0, 0], [0, 0, 0]]]
    framer = EventFramer((3, 1, 2), time_window=10, include_incomplete=True, backend=backend)
    assert np.array_equal(np.concatenate([framer.push(events[:1]), framer.push(events[1:]), framer.finish()]), frames)
