"""Figures of nmnist-sim beside the real recordings of the same pictures; the part "figures" of simulation.py."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snn_core.datasets import data_root, open_source
from snn_core.datasets.nmnist_sim import SENSOR, NMNISTSimSource
from snn_core.datasets.source import Recording

Events = list[NDArray[np.void]]
BIN_US, BINS = 5000, 64
#: Training recordings that the sensor's parameters were fitted on: every 6th, in order of the file names.
FITTED = slice(None, None, 6)
HOT_PIXEL = (18, 30)  # of the real sensor; left out of the spatial figures


def pairs() -> dict[str, tuple[Events, list[Recording], NDArray[np.int64]]]:
    """Real events, the simulated recordings of the same pictures, and labels, of three groups."""
    real = open_source("nmnist")
    groups = {}
    train, test = real.recordings("train"), real.recordings("test")
    rest = [recording for index, recording in enumerate(train) if index % (FITTED.step or 1)]
    named = {"fitted on": train[FITTED], "other training recordings": rest, "test recordings": test}
    for name, recordings in named.items():
        keys = [(item.id.split("/")[0].lower(), int(item.id.split("/")[-1]) - 1) for item in recordings]
        simulated = [
            Recording(item.id, item.label, key) for item, key in zip(recordings, keys, strict=True)
        ]  # the same names as NMNISTSimSource gives them
        groups[name] = list(real.read(recordings)), simulated, np.array([item.label for item in recordings])
    return groups


def of_events(recordings: Events) -> dict[str, Any]:
    """Figures of a list of recordings."""
    counts = np.array([len(events) for events in recordings])
    rate = np.zeros(BINS)
    gaps = []
    for events in recordings:
        pixel = events["y"].astype(np.int64) * 34 + events["x"]
        order = np.lexsort((events["t"], pixel))
        gaps.append(np.diff(events["t"][order])[np.diff(pixel[order]) == 0])
        rate += np.histogram(events["t"], np.arange(BINS + 1) * BIN_US)[0]
    maps = count_maps(recordings)
    return {
        "events_mean": round(float(counts.mean()), 1),
        "events_standard_deviation": round(float(counts.std()), 1),
        "on_fraction": round(float(np.mean([events["p"].mean() for events in recordings])), 4),
        "active_pixels_mean": round(float((maps.sum(1) > 0).sum((1, 2)).mean()), 1),
        "gap_of_a_pixel_us_percentiles_5_25_50_75_90": np.percentile(np.concatenate(gaps), [5, 25, 50, 75, 90])
        .round()
        .tolist(),
        "events_per_5_ms": (rate / len(recordings)).round(1).tolist(),
    }


def count_maps(recordings: Events) -> NDArray[np.float64]:
    """[num, 2, 34, 34] events of each polarity and pixel, without the real sensor's hot pixel."""
    maps = np.zeros((len(recordings), 2, 34, 34))
    for index, events in enumerate(recordings):
        np.add.at(maps[index], (events["p"], events["y"], events["x"]), 1)
    maps[:, :, HOT_PIXEL[1], HOT_PIXEL[0]] = 0
    return maps


def correlation(first: NDArray[Any], second: NDArray[Any]) -> float:
    return float(np.corrcoef(np.ravel(first), np.ravel(second))[0, 1])


def agreement(real: Events, simulated: Events, labels: NDArray[np.int64]) -> dict[str, Any]:
    """How far real and simulated recordings of the same pictures go together."""
    counts = [np.array([len(events) for events in group]) for group in (real, simulated)]
    figures = [of_events(group) for group in (real, simulated)]
    maps = [count_maps(group) for group in (real, simulated)]
    totals = [group.sum(1) for group in maps]
    # What a real recording of another picture of the same digit has in common with it, as a floor.
    other = np.arange(len(labels))
    for label in np.unique(labels):
        other[labels == label] = np.roll(np.flatnonzero(labels == label), 1)
    return {
        "event_count_correlation": round(correlation(*counts), 4),
        "rate_over_time_correlation": round(correlation(*(item["events_per_5_ms"] for item in figures)), 4),
        "mean_map_correlation": round(correlation(totals[0].mean(0), totals[1].mean(0)), 4),
        "map_correlation_mean": round(float(np.mean([correlation(*pair) for pair in zip(*totals, strict=True)])), 4),
        "map_correlation_with_another_real_recording_of_the_digit": round(
            float(np.mean([correlation(a, b) for a, b in zip(totals[0], totals[0][other], strict=True)])), 4
        ),
        "map_correlation_mean_by_polarity": round(
            float(np.mean([correlation(*pair) for pair in zip(*maps, strict=True)])), 4
        ),
    }


def figures() -> dict[str, Any]:
    """Everything, for three groups of recordings; and how long simulating takes."""
    sim = NMNISTSimSource(data_root())
    groups: dict[str, Any] = {}
    for name, (real, recordings, labels) in pairs().items():
        simulated = list(sim.read(recordings))
        groups[name] = {
            "recordings": len(real),
            "agreement": agreement(real, simulated, labels),
            "real": of_events(real),
            "simulated": of_events(simulated),
        }
    digits = open_source("digits-dvs")
    return {
        "sensor": {name: getattr(SENSOR, name) for name in SENSOR.__dataclass_fields__},
        "groups": groups,
        "digits-dvs (simulated)": of_events(list(digits.read(digits.recordings("all")))),
        "speed": speed(sim),
    }


def speed(sim: NMNISTSimSource, count: int = 2000) -> dict[str, Any]:
    """Processor time and wall-clock of simulating, one thread; processor time does not depend on other work."""
    recordings = sim.recordings("train")[:count]
    started, used = time.perf_counter(), time.process_time()
    events = sum(len(item) for item in sim.read(recordings))
    seconds, processor = time.perf_counter() - started, time.process_time() - used
    return {
        "recordings": count,
        "events": events,
        "processor_seconds": round(processor, 2),
        "wall_seconds": round(seconds, 2),
        "processor_seconds_for_60000": round(processor * 60_000 / count, 1),
    }
