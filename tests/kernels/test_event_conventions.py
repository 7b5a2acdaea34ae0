"""event_frames in the conventions of SpikingJelly's integration of events, and tonic's windows of time."""

from __future__ import annotations

import functools
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tonic.transforms import ToFrame

from snn_core.datasets import make_events
from snn_core.kernels import event_frames
from snn_core.kernels.native import cpu_library

TONIC_DTYPE = np.dtype([("x", int), ("y", int), ("t", int), ("p", int)])
BACKENDS = ["numpy", pytest.param("cpp", marks=pytest.mark.skipif(not cpu_library().available, reason="not built"))]


def random_events(num: int, width: int, height: int, seed: int, duration: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    t = np.sort(generator.integers(0, duration, num)) + 500
    return make_events(
        t, generator.integers(0, width, num), generator.integers(0, height, num), generator.integers(0, 2, num)
    )


@functools.cache
def spikingjelly_events() -> Any:
    """SpikingJelly's functions on events. Their module imports torchvision, which has no CPU build, for others."""
    found = importlib.util.find_spec("spikingjelly")
    if found is None or found.submodule_search_locations is None:
        pytest.skip("SpikingJelly is not installed")
    path = Path(found.submodule_search_locations[0]) / "datasets/utils.py"
    if not path.is_file():
        pytest.skip("this SpikingJelly has no datasets/utils.py")
    specification = importlib.util.spec_from_file_location("spikingjelly.datasets.utils", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    absent = {name: types.ModuleType(name) for name in ("torchvision", "matplotlib") if not _importable(name)}
    for name, part in (("torchvision", "transforms"), ("matplotlib", "pyplot")):
        if name in absent:
            setattr(absent[name], part, None)
    with pytest.MonkeyPatch.context() as patch:
        for name, stand_in in absent.items():
            patch.setitem(sys.modules, name, stand_in)
        specification.loader.exec_module(module)
    return module


def _importable(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def columns(events: np.ndarray) -> dict[str, np.ndarray]:
    return {name: events[name].astype(np.int64) for name in "txyp"}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bins", [1, 2, 3, 7])
@pytest.mark.parametrize(("argument", "split_by"), [("n_time_bins", "time"), ("n_event_bins", "number")])
def test_spikingjelly_convention(argument: str, split_by: str, bins: int, backend: str) -> None:
    integrate = spikingjelly_events().integrate_events_by_fixed_frames_number
    for seed, (num, duration) in enumerate(((200, 3000), (53, 40), (1000, 300_000), (64, 64))):
        events = random_events(num, 7, 5, seed, duration)
        expected = integrate(columns(events), split_by, bins, 5, 7)
        frames, saturated = event_frames(
            events, (7, 5, 2), **{argument: bins}, convention="spikingjelly", backend=backend
        )
        np.testing.assert_array_equal(frames, expected)
        assert frames.sum() == num  # none is dropped
        assert saturated == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("window", [1, 7, 10, 50, 1000])
def test_time_window_equals_tonic_and_spikingjelly(window: int, backend: str) -> None:
    for seed, (num, duration) in enumerate(((40, 100), (300, 500), (9, 2))):
        events = random_events(num, 7, 5, seed, duration)
        for end in (events["t"][-1], events["t"][0] + 10 * window, events["t"][0] + 10 * window - 1):
            if end < events["t"][-1]:
                continue
            events["t"][-1] = end  # whole numbers of windows too
            wide = np.empty(num, TONIC_DTYPE)
            for name in "txyp":
                wide[name] = events[name]
            for include_incomplete in (False, True):
                expected = ToFrame((7, 5, 2), time_window=window, include_incomplete=include_incomplete)(wide)
                frames, _ = event_frames(
                    events, (7, 5, 2), time_window=window, include_incomplete=include_incomplete, backend=backend
                )
                np.testing.assert_array_equal(frames, expected)
            frames, _ = event_frames(events, (7, 5, 2), time_window=window, convention="spikingjelly", backend=backend)
            if events["t"][-1] > events["t"][0]:
                expected = spikingjelly_events().integrate_events_by_fixed_duration(columns(events), window, 5, 7)
                np.testing.assert_array_equal(frames, expected)
            assert frames.sum() == num
