"""Speed of event data beside tonic's: reading N-MNIST files, and events to frames.

    python benchmarks/event_speed.py --output benchmarks/results/event_speed_cpu.json

Recordings: the 850 of nmnist_850.zip, and one made of random numbers, 4 million events on 346 x 260 pixels, for a long
one (``random``). Results are compared for equality first. Contenders run in turn in one process, with the threads named
beside them; the fastest of ``--repeats`` passes counts, since whatever else the machine does only slows a pass down.
Passes of one thread are measured in processor time, which other processes take no part of; all else by the clock.
"""

from __future__ import annotations

import argparse
import io
import os
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import source_tree  # noqa: F401  makes snn_core importable
import torch
from common import RESULTS, command_line, machine
from tonic.io import read_mnist_file
from tonic.transforms import ToFrame

from snn_core.datasets import data_root, decode_nmnist, iterate_events, make_events
from snn_core.files import write_json
from snn_core.kernels import EventFramer, RecordingExtent, event_frames, event_frames_batch

SENSOR_SIZE = (34, 34, 2)
LARGE_SENSOR, LARGE_EVENTS = (346, 260, 2), 4_000_000
TONIC_DTYPE = np.dtype([("x", int), ("y", int), ("t", int), ("p", int)])
Rules = tuple[dict[str, int], ...]
RULES: Rules = ({"n_time_bins": 3}, {"n_time_bins": 16}, {"n_event_bins": 3}, {"time_window": 10_000})
CHUNK = 100_000

Contenders = dict[str, tuple[int, Callable[[], object]]]


def fastest(contenders: Contenders, repeats: int, *, processor_time: bool) -> dict[str, float]:
    """Seconds of the fastest of ``repeats`` passes of each contender (its threads, what to run), in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, (threads, run) in contenders.items():
            torch.set_num_threads(threads)
            clock = time.process_time if processor_time and threads == 1 else time.perf_counter
            start = clock()
            run()
            seconds[name].append(clock() - start)
    torch.set_num_threads(1)
    return {name: min(values) for name, values in seconds.items()}


def rates(contenders: Contenders, events: int, repeats: int) -> dict[str, float]:
    """Million events a second of each, and the ratio of the others to tonic."""
    speed = {
        name: events / seconds / 1e6 for name, seconds in fastest(contenders, repeats, processor_time=True).items()
    }
    ratios = {f"{name} / tonic": round(value / speed["tonic"], 1) for name, value in speed.items() if name != "tonic"}
    return {name: round(value, 1) for name, value in speed.items()} | ratios


def for_tonic(events: Any) -> Any:
    wide = np.empty(len(events), TONIC_DTYPE)
    for name in "xytp":
        wide[name] = events[name]
    return wide


def name_of(rule: dict[str, int]) -> str:
    return ", ".join(f"{name}={value}" for name, value in rule.items())


def read_speed(repeats: int) -> dict[str, Any]:
    """Decoding of the files' bytes."""
    with zipfile.ZipFile(data_root() / "nmnist_850.zip") as archive:
        files = [archive.read(name) for name in archive.namelist() if name.endswith(".bin")]

    def ours(data: bytes) -> Any:
        return decode_nmnist(data, "recording")

    def tonic(data: bytes) -> Any:
        return read_mnist_file(io.BytesIO(data), TONIC_DTYPE, is_stream=True)

    for data in files:
        mine, theirs = ours(data), tonic(data)
        for name in "xytp":
            np.testing.assert_array_equal(mine[name], theirs[name])
    total = sum(len(ours(data)) for data in files)
    contenders: Contenders = {
        "snn_core": (1, lambda: [ours(data) for data in files]),
        "tonic": (1, lambda: [tonic(data) for data in files]),
    }
    return rates(contenders, total, repeats)


def frame_speeds(repeats: int) -> dict[str, Any]:
    """The recordings of N-MNIST, one call each and in one call."""
    recordings = [events for events, _, _ in iterate_events("nmnist", "all")]
    wide = [for_tonic(events) for events in recordings]
    return {name_of(rule): short_recordings(rule, recordings, wide, repeats) for rule in RULES}


def short_recordings(rule: dict[str, Any], recordings: list[Any], wide: list[Any], repeats: int) -> dict[str, float]:
    to_frame = ToFrame(sensor_size=SENSOR_SIZE, **rule)
    for events, copy in zip(recordings, wide, strict=True):
        np.testing.assert_array_equal(event_frames(events, SENSOR_SIZE, **rule)[0], to_frame(copy))

    def one_call_each(backend: str) -> None:
        for events in recordings:
            event_frames(events, SENSOR_SIZE, **rule, backend=backend)

    def one_call() -> object:
        return event_frames_batch(recordings, SENSOR_SIZE, **rule)

    contenders: Contenders = {
        "one call each, 1 thread": (1, lambda: one_call_each("cpp")),
        "numpy, 1 thread": (1, lambda: one_call_each("numpy")),
        "tonic": (1, lambda: [to_frame(events) for events in wide]),
    }
    if "time_window" not in rule:
        contenders |= {"one call, 1 thread": (1, one_call), "one call, 2 threads": (2, one_call)}
    return rates(contenders, sum(len(events) for events in recordings), repeats)


def long_recording_speeds(repeats: int) -> dict[str, Any]:
    """One long recording of random events: whole, on one and two threads, and in chunks."""
    random = np.random.default_rng(0)
    width, height, _ = LARGE_SENSOR
    events = make_events(
        np.sort(random.integers(0, 10_000_000, LARGE_EVENTS)), random.integers(0, width, LARGE_EVENTS),
        random.integers(0, height, LARGE_EVENTS), random.integers(0, 2, LARGE_EVENTS),
    )  # fmt: skip
    copy = for_tonic(events)
    rules: Rules = ({"n_time_bins": 16}, {"n_event_bins": 1}, {"time_window": 100_000})
    return {name_of(rule): long_recording(rule, events, copy, repeats) for rule in rules}


def long_recording(rule: dict[str, Any], events: Any, copy: Any, repeats: int) -> dict[str, float]:
    to_frame = ToFrame(sensor_size=LARGE_SENSOR, **rule)
    extent = RecordingExtent.of([events])

    def whole() -> Any:
        return event_frames(events, LARGE_SENSOR, **rule)[0]

    def in_chunks() -> list[Any]:
        framer = EventFramer(LARGE_SENSOR, **rule, extent=extent)
        parts = [framer.push(events[start : start + CHUNK]) for start in range(0, LARGE_EVENTS, CHUNK)]
        return [*parts, framer.finish()]

    # tonic counts in int16 without a limit; these recordings stay below the 255 of uint8.
    expected = to_frame(copy)
    np.testing.assert_array_equal(whole(), expected)
    np.testing.assert_array_equal(np.concatenate(in_chunks()), expected)
    contenders: Contenders = {
        "1 thread": (1, whole),
        "2 threads": (2, whole),
        "EventFramer, 1 thread": (1, in_chunks),
        "tonic": (1, lambda: to_frame(copy)),
    }
    return rates(contenders, LARGE_EVENTS, repeats)


PARTS: dict[str, Callable[[int], dict[str, Any]]] = {
    "read, million events a second": read_speed,
    "frames of N-MNIST, million events a second": frame_speeds,
    "frames of a long random recording, million events a second": long_recording_speeds,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS / "event_speed_cpu.json", help="JSON to write")
    parser.add_argument("--repeats", type=int, default=7, help="passes of which the fastest counts")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "command": command_line(),
        "machine": machine() | {"numpy": np.__version__, "load_average_at_start": round(os.getloadavg()[0], 1)},
    }
    for name, part in PARTS.items():
        result[name] = part(arguments.repeats)
        print(name, result[name], flush=True)
    write_json(arguments.output, result)
    print(f"written {arguments.output}")


if __name__ == "__main__":
    main()
