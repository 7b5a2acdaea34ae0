"""Event data: speed beside tonic's on the same real recordings, and simulated digits-dvs beside real N-MNIST.

    OMP_NUM_THREADS=1 python benchmarks/event_data.py --output benchmarks/results/event_data.json

One thread (numpy's too, hence the variable). Speeds are the best of ``--repeats`` passes over the 850 recordings of
nmnist_850.zip, results compared for equality first. Accuracies are those of an RBF-SVM (C = 10) on log(1 + count) of 3
frames of equal time.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import subprocess
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.svm import SVC
from tonic.io import read_mnist_file
from tonic.transforms import ToFrame

import snn_core
from snn_core.datasets import data_root, decode_nmnist, iterate_events, load_frames, stratified_folds
from snn_core.files import write_json
from snn_core.kernels.event_frames import event_frames

SENSOR_SIZE = (34, 34, 2)
TONIC_DTYPE = np.dtype([("x", int), ("y", int), ("t", int), ("p", int)])
BINS = ({"n_time_bins": 3}, {"n_time_bins": 16}, {"n_event_bins": 3})


def million_events_per_second(function: Callable[[Any], Any], items: Sequence[Any], events: int, repeats: int) -> float:
    """Best of ``repeats`` passes of ``function`` over ``items``, which hold so many events together."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        for item in items:
            function(item)
        seconds.append(time.perf_counter() - start)
    return round(events / min(seconds) / 1e6, 1)


def speeds(repeats: int) -> dict[str, dict[str, float]]:
    """Million events a second of reading and binning, ours and tonic's; raises where the results differ."""
    with zipfile.ZipFile(data_root() / "nmnist_850.zip") as archive:
        files = [archive.read(name) for name in archive.namelist() if name.endswith(".bin")]

    def read_ours(data: bytes) -> Any:
        return decode_nmnist(data, "recording")

    def read_tonic(data: bytes) -> Any:
        return read_mnist_file(io.BytesIO(data), TONIC_DTYPE, is_stream=True)

    ours, theirs = [read_ours(data) for data in files], [read_tonic(data) for data in files]
    for mine, tonic in zip(ours, theirs, strict=True):
        for name in "xytp":
            np.testing.assert_array_equal(mine[name], tonic[name])
    total = sum(len(events) for events in ours)
    result = {
        "read": {
            "snn_core": million_events_per_second(read_ours, files, total, repeats),
            "tonic": million_events_per_second(read_tonic, files, total, repeats),
        }
    }
    for bins in BINS:
        to_frame = ToFrame(sensor_size=SENSOR_SIZE, **bins)

        def bin_ours(events: Any, bins: dict[str, int] = bins) -> Any:
            return event_frames(events, SENSOR_SIZE, **bins)[0]  # type: ignore[arg-type]

        for mine, tonic in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(bin_ours(mine), to_frame(tonic))
        result["frames, " + ", ".join(f"{name}={value}" for name, value in bins.items())] = {
            "snn_core": million_events_per_second(bin_ours, ours, total, repeats),
            "tonic": million_events_per_second(to_frame, theirs, total, repeats),
        }
    return result


def statistics(source: str) -> dict[str, Any]:
    """Figures of the events of all recordings of a source."""
    counts, on, active, duration, gaps = [], [], [], [], []
    rate = np.zeros(32)
    start = time.perf_counter()
    recordings = [events for events, _, _ in iterate_events(source, "all")]
    seconds = time.perf_counter() - start
    for events in recordings:
        pixel = events["y"].astype(np.int64) * SENSOR_SIZE[0] + events["x"]
        order = np.lexsort((events["t"], pixel))
        gaps.append(np.diff(events["t"][order])[np.diff(pixel[order]) == 0])
        counts.append(len(events))
        on.append(events["p"].mean())
        active.append(len(np.unique(pixel)))
        duration.append(events["t"][-1] / 1000)
        rate += np.histogram(events["t"], np.arange(33) * 10_000)[0]
    return {
        "recordings": len(recordings),
        "seconds_to_read_or_simulate": round(seconds, 2),
        "events_mean": round(float(np.mean(counts))),
        "events_standard_deviation": round(float(np.std(counts))),
        "events_smallest_and_largest": [min(counts), max(counts)],
        "on_fraction": round(float(np.mean(on)), 3),
        "active_pixels_mean": round(float(np.mean(active))),
        "last_event_ms_mean": round(float(np.mean(duration)), 1),
        "gap_of_a_pixel_us_percentiles_5_25_50_75": np.percentile(np.concatenate(gaps), [5, 25, 50, 75])
        .round()
        .tolist(),
        "events_per_10_ms": (rate / len(recordings)).round().tolist(),
    }


def accuracies(source: str, cache: str) -> dict[str, float]:
    """RBF-SVM on log counts: test split, and 5-fold cross-validation on the training split (folds of seed 0)."""
    train, test = (load_frames(source, split, T=3, cache_dir=cache) for split in ("train", "test"))
    inputs, test_inputs = (np.log1p(data.frames.flatten(1).numpy().astype(np.float32)) for data in (train, test))
    labels = train.labels.numpy()
    folds = [
        SVC(C=10).fit(inputs[fit], labels[fit]).score(inputs[validation], labels[validation])
        for fit, validation in stratified_folds(labels, 5, seed=0)
    ]
    on_test = SVC(C=10).fit(inputs, labels).score(test_inputs, test.labels.numpy())
    return {"test": round(float(on_test), 4), "cross_validation": round(float(np.mean(folds)), 4)}


def cache_times(source: str) -> dict[str, float]:
    """Seconds of load_frames (train) with an empty cache and with a full one."""
    with tempfile.TemporaryDirectory() as cache:
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            load_frames(source, "train", cache_dir=cache)
            seconds.append(round(time.perf_counter() - start, 3))
    return {"build": seconds[0], "load": seconds[1]}


def environment() -> dict[str, Any]:
    """Machine, versions and commit that the result belongs to."""
    root = Path(__file__).resolve().parent.parent
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return {
        "cpu": next(
            (line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine()
        ),
        "cores": os.cpu_count(),
        "load_average_at_start": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "snn_core": snn_core.__version__,
        "commit": commit.stdout.strip(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON to write")
    parser.add_argument("--repeats", type=int, default=5, help="passes of which the fastest counts")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sources = {"digits-dvs (simulated)": "digits-dvs", "N-MNIST (real, 850 recordings)": "nmnist"}
    with tempfile.TemporaryDirectory() as cache:
        result = {
            "command": f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', '')} python benchmarks/event_data.py "
            f"--output {arguments.output} --repeats {arguments.repeats}",
            "environment": environment(),
            "million_events_per_second": speeds(arguments.repeats),
            "event_statistics": {name: statistics(source) for name, source in sources.items()},
            "rbf_svm_accuracy": {name: accuracies(source, cache) for name, source in sources.items()},
            "load_frames_seconds": {name: cache_times(source) for name, source in sources.items()},
        }
    write_json(arguments.output, result)
    print(f"written {arguments.output}")


if __name__ == "__main__":
    main()
