"""Kill -9 at random moments while the frame cache is built: is the next run whole, and is ever a sample wrong?

    python benchmarks/cache_kills.py --rounds 50

Each round starts one process (every third time two at once, on the same folder) that builds the frames of 500 made-up
recordings of 4,000 random events, and kills it after a random part of the time that a build takes; every fourth time
soon after the finished file begins to be composed, which is short. What it left is noted. Then either the next round's
process goes on from there, or the next run is made at once: every sample, label and id it gives is compared with frames
that never were on disk, and nothing may lie in the folder but the one file.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import source_tree  # noqa: F401  makes snn_core importable
import torch
from common import add_json_option, write_result

from snn_core.datasets import FrameDataset, load_frames, make_events, open_frames
from snn_core.datasets.source import Recording

EVENTS, T, SIZE = 4_000, 16, 34
FORK = multiprocessing.get_context("fork")


class MadeUpSource:
    """Recordings of random events; ``reads`` counts how many were asked for."""

    name, simulated, class_names = "random (simulated)", True, tuple("0123456789")
    sensor_size = (SIZE, SIZE, 2)

    def __init__(self, num: int) -> None:
        self.num, self.reads = num, 0

    def recordings(self, split: str) -> list[Recording]:
        return [Recording(f"r{index}", index % 10, index) for index in range(self.num)]

    def content_hash(self, split: str) -> str:
        return f"{self.num:064d}"

    def read(self, recordings: Sequence[Recording]) -> Iterator[Any]:
        for recording in recordings:
            self.reads += 1
            random = np.random.default_rng(recording.key)
            t = np.sort(random.integers(0, 300_000, EVENTS))
            yield make_events(t, *(random.integers(0, size, EVENTS) for size in self.sensor_size))


def build(folder: str, num: int) -> None:
    open_frames(MadeUpSource(num), "all", T=T, cache_dir=folder, quiet=True)


def left_behind(folder: Path) -> str:
    """What a killed build left."""
    endings = Counter(path.suffix for path in folder.glob("*") if folder.is_dir())
    if endings[".h5"]:
        return "the finished file" + (" and its part file" if endings[".part"] else "")
    if endings[".tmp"]:
        return "a file half composed"
    return "samples" if any(path.stat().st_size > 200 for path in folder.glob("*.part")) else "nothing"


def next_run_is_right(folder: Path, expected: FrameDataset) -> tuple[int, int]:
    """Make the next run; samples that are wrong, and how many recordings it had to read again."""
    source = MadeUpSource(len(expected))
    data = open_frames(source, "all", T=T, cache_dir=folder, quiet=True)
    assert data.ids == expected.ids
    assert torch.equal(data.labels, expected.labels)
    wrong = sum(not torch.equal(data[index][0], expected[index][0]) for index in range(len(expected)))
    assert list(folder.iterdir()) == [data.path], sorted(folder.iterdir())
    return wrong, source.reads


def wait_for_composition(folder: Path, child: Any) -> None:
    while child.is_alive() and not any(path.suffix == ".tmp" for path in folder.glob(".*")):
        time.sleep(0.0002)


def kill_rounds(rounds: int, num: int, seed: int) -> dict[str, Any]:
    """Counts over all rounds; raises where anything but a sample is wrong."""
    random = np.random.default_rng(seed)
    expected = load_frames(MadeUpSource(num), "all", T=T, use_cache=False, quiet=True)
    left: Counter[str] = Counter()
    wrong, runs, reads, survivors = 0, 0, 0, 0
    with tempfile.TemporaryDirectory() as base:
        start = time.perf_counter()
        child = FORK.Process(target=build, args=(f"{base}/timing", num))
        child.start()
        child.join()
        seconds = time.perf_counter() - start
        folder = Path(base) / "0"
        for number in range(rounds):
            children = [FORK.Process(target=build, args=(str(folder), num)) for _ in range(2 if number % 3 == 2 else 1)]
            for child in children:
                child.start()
            if number % 4 == 1:
                wait_for_composition(folder, children[0])
                time.sleep(random.uniform(0, seconds / 20))
            else:
                time.sleep(random.uniform(0, 0.7 * seconds))
            children[0].kill()
            children[0].join()
            if len(children) == 1:
                left[left_behind(folder)] += 1
            else:
                children[1].join()
                assert children[1].exitcode == 0, "the process beside the killed one failed"
                survivors += 1
            if len(children) == 2 or random.random() < 0.5 or number == rounds - 1:
                found, read = next_run_is_right(folder, expected)
                wrong, reads, runs = wrong + found, reads + read, runs + 1
                folder = Path(base) / str(number + 1)
    return {
        "kills": rounds, "samples_of_a_set": num, "seconds_of_a_build": round(seconds, 2), "left_behind": dict(left),
        "processes_beside_a_killed_one_that_finished": survivors, "next_runs": runs,
        "share_of_recordings_the_next_runs_read_again": round(reads / (runs * num), 3), "wrong_samples": wrong,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50, help="kills")
    parser.add_argument("--samples", type=int, default=500, help="recordings of the set")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    add_json_option(parser, "cache_kills.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # no threads: processes are forked
    result = kill_rounds(arguments.rounds, arguments.samples, arguments.seed)
    print(result)
    write_result(arguments.json, {"seed": arguments.seed, "result": result})


if __name__ == "__main__":
    main()
