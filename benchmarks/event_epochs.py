"""An epoch of frames from disk, beside tonic's disk cache.

    python benchmarks/event_epochs.py

Samples: the 750 training recordings of nmnist_850.zip as frames of T = 16 by time; and 3,000, each recording four times
under names of its own, where starting worker processes counts less (N-MNIST itself has 60,000). Batches of 50 in a
shuffled order, each summed up. One torch thread in every process.

* ``tonic``: its DiskCachedDataset (default, lzf) in a DataLoader; ``open_frames``: ours, on disk, in the same.
* ``workers``: processes of the DataLoader, started anew for the epoch, as it does by default; ``kept workers``: they
  outlive epochs (persistent_workers), and the first epoch is not counted.
* ``FrameLoader``: ours, with as many threads as there are workers, giving the same uint8 batches.
* ``in memory``: load_frames and then the DataLoader, the time of loading included.

Epochs run in turn in one process and the fastest counts, since whatever else the machine does only slows one down; less
so in processor time, which is given too.
``cache``: seconds of building the file from the recordings, and of opening it, which verifies all of it.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import source_tree  # noqa: F401  makes snn_core importable
import torch
from common import add_json_option, write_result
from tonic import DiskCachedDataset
from tonic.transforms import ToFrame
from torch.utils.data import DataLoader, Dataset

from snn_core.datasets import FrameLoader, load_frames, open_frames, open_source
from snn_core.datasets.source import Recording

T, BATCH = 16, 50
TONIC_DTYPE = np.dtype([("x", int), ("y", int), ("t", int), ("p", int)])
#: Recordings, how often each, epochs measured.
SETS = ((1, 5), (4, 2))


class Repeated:
    """A source whose recordings come several times."""

    def __init__(self, source: Any, times: int, most: int | None) -> None:
        self.source, self.times, self.most = source, times, most
        self.name, self.simulated = f"{source.name}, {times} times", source.simulated
        self.sensor_size, self.class_names = source.sensor_size, source.class_names

    def recordings(self, split: str) -> list[Recording]:
        once = self.source.recordings(split)[: self.most]
        return [Recording(f"{one.id}/{time}", one.label, one.key) for time in range(self.times) for one in once]

    def content_hash(self, split: str) -> str:
        return f"{self.source.content_hash(split)} {self.times} {self.most}"

    def read(self, recordings: Sequence[Recording]) -> Iterator[Any]:
        return iter(self.source.read(recordings))


class TonicFrames(Dataset[tuple[Any, int]]):
    """What tonic's cache is filled from."""

    def __init__(self, source: Repeated) -> None:
        self.source, self.recordings = source, source.recordings("train")
        self.to_frame = ToFrame(sensor_size=source.sensor_size, n_time_bins=T)

    def __len__(self) -> int:
        return len(self.recordings)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        (events,) = self.source.read([self.recordings[index]])
        wide = np.empty(len(events), TONIC_DTYPE)
        for name in "xytp":
            wide[name] = events[name]
        return self.to_frame(wide), self.recordings[index].label


def total(batches: Any) -> int:
    """Sum of all counts of an epoch."""
    return sum(int(frames.sum()) for frames, _ in batches)


def data_loader(dataset: Any, workers: int, kept: bool = False) -> Any:
    generator = torch.Generator().manual_seed(0)
    return DataLoader(
        dataset, BATCH, shuffle=True, num_workers=workers, generator=generator, persistent_workers=kept
    )  # fmt: skip


def frame_loader(dataset: Any, threads: int) -> Any:
    options: dict[str, Any] = {"prefetch": 0} if threads == 0 else {"prefetch": 2 * threads, "threads": threads}
    return FrameLoader(dataset, BATCH, generator=0, time_first=False, dtype=None, **options)


def epochs(source: Repeated, repeats: int, folder: Path) -> dict[str, Any]:
    options: dict[str, Any] = {"T": T, "cache_dir": folder / "snn_core", "quiet": True}
    start = time.perf_counter()
    open_frames(source, "train", **options)
    built = time.perf_counter()
    ours = open_frames(source, "train", **options)
    opened = time.perf_counter()
    tonic = DiskCachedDataset(TonicFrames(source), cache_path=str(folder / "tonic"))
    for index in range(len(tonic)):
        tonic[index]
    filled = time.perf_counter()
    result: dict[str, Any] = {
        "samples": len(ours),
        "cache, seconds": {
            "build": round(built - start, 2), "open and verify": round(opened - built, 3),
            "megabytes": round(ours.path.stat().st_size / 1e6, 1), "tonic, filling": round(filled - opened, 2),
            "tonic, megabytes": round(sum(f.stat().st_size for f in (folder / "tonic").rglob("*.*")) / 1e6, 1),
        },
    }  # fmt: skip
    for workers in (0, 2):
        runs = contenders(ours, tonic, source, options, workers)
        result[f"{workers} workers, an epoch"] = measured(runs, repeats)
    return result


def contenders(
    ours: Any, tonic: Any, source: Any, options: dict[str, Any], workers: int
) -> dict[str, Callable[[], int]]:
    runs: dict[str, Callable[[], int]] = {
        "tonic": lambda: total(data_loader(tonic, workers)),
        "open_frames": lambda: total(data_loader(ours, workers)),
        "open_frames, FrameLoader": lambda: total(frame_loader(ours, workers)),
        "in memory": lambda: total(data_loader(load_frames(source, "train", **options), workers)),
    }
    if workers:
        for name, dataset in (("tonic, kept workers", tonic), ("open_frames, kept workers", ours)):
            loader = data_loader(dataset, workers, kept=True)
            runs[name] = lambda loader=loader: total(loader)  # type: ignore[misc]
    return runs


def measured(runs: dict[str, Callable[[], int]], repeats: int) -> dict[str, Any]:
    """The fastest epoch of each, in turn, and tonic's in terms of ours; all must count the same events."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    assert len({run() for run in runs.values()}) == 1
    for _ in range(repeats):
        for name, run in runs.items():
            start, before = time.perf_counter(), processor_seconds()
            run()
            seconds[name].append((time.perf_counter() - start, processor_seconds() - before))
    clock = {name: min(wall for wall, _ in values) for name, values in seconds.items()}
    # What workers used is known when they have ended.
    busy = {name: min(used for _, used in values) for name, values in seconds.items() if "kept" not in name}
    return {"seconds": with_ratios(clock), "processor seconds, all processes": with_ratios(busy)}


def with_ratios(seconds: dict[str, float]) -> dict[str, Any]:
    ratios = {}
    for name, value in seconds.items():
        if not name.startswith("tonic"):
            peer = "tonic" + (", kept workers" if "kept" in name else "")
            ratios[f"{peer} / {name}"] = round(seconds[peer] / value, 1)
    return {name: round(value, 4) for name, value in seconds.items()} | {"ratios": ratios}


def processor_seconds() -> float:
    """Of this process and of those it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, help="so many recordings alone, and one epoch, for tests")
    add_json_option(parser, "event_epochs_cpu.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    load = round(os.getloadavg()[0], 1)
    results = []
    for times, repeats in ((1, 1),) if arguments.samples else SETS:
        with tempfile.TemporaryDirectory() as folder:
            results.append(epochs(Repeated(open_source("nmnist"), times, arguments.samples), repeats, Path(folder)))
        print(results[-1], flush=True)
    write_result(arguments.json, {"load_average_at_start": load, "sets": results})


if __name__ == "__main__":
    main()
