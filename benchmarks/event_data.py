"""Simulated digits-dvs beside real N-MNIST: what their events are like, and how well a simple classifier does.

    OMP_NUM_THREADS=1 python benchmarks/event_data.py

One thread (numpy's too, hence the variable). Accuracies are those of an RBF-SVM (C = 10) on log(1 + count) of 3 frames
of equal time.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import numpy as np
import source_tree  # noqa: F401  makes snn_core importable
from common import add_json_option, write_result
from sklearn.svm import SVC

from snn_core.datasets import iterate_events, load_frames, stratified_folds

SENSOR_SIZE = (34, 34, 2)


def statistics(source: str) -> dict[str, Any]:
    """Figures of the events of all recordings of a source."""
    counts, on, active, duration, gaps = [], [], [], [], []
    rate = np.zeros(32)
    recordings = [events for events, _, _ in iterate_events(source, "all")]
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_json_option(parser, "event_data.json")
    arguments = parser.parse_args()
    sources = {"digits-dvs (simulated)": "digits-dvs", "N-MNIST (real, 850 recordings)": "nmnist"}
    with tempfile.TemporaryDirectory() as cache:
        result = {
            "event_statistics": {name: statistics(source) for name, source in sources.items()},
            "rbf_svm_accuracy": {name: accuracies(source, cache) for name, source in sources.items()},
        }
    write_result(arguments.json, result)


if __name__ == "__main__":
    main()
