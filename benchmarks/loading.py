"""Feeding a network with frames: FrameLoader beside torch's DataLoader, and what augmentation costs.

    python benchmarks/loading.py

- epoch: seconds of a shuffled epoch of N-MNIST's 750 training recordings (T = 16, batches of 50), from disk
  (``open_frames``), ready for a network: float32 [T, B, 2, H, W]. All deliver the same; it is checked.
- steps: milliseconds of a training step of ``conv-snn``, and how many of them it waited for its batch, on one and two
  threads: with all batches ready in memory, with FrameLoader from disk, and with torch's DataLoader from disk.
  34 x 34: N-MNIST. 128 x 128: recordings of random events, as many as a gesture's, since only their size matters here.
- augmentation: milliseconds of processor time of each policy for a batch on one thread, beside such a step's.

- events: microseconds of processor time for a recording of N-MNIST (4,100 events on average), beside tonic's transform
  of the same kind.

Contenders run in turn, ``--rounds`` times, for some steps each; the fastest turn counts, since whatever else the
machine does only slows one down. The first batch of a turn is not counted.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import source_tree  # noqa: F401  makes snn_core importable
import torch
from common import add_json_option, write_result
from tonic import transforms
from torch import Tensor
from torch.utils.data import DataLoader

from snn_core.backbones import create
from snn_core.datasets import DiskFrameDataset, FrameLoader, iterate_events, make_events, open_frames
from snn_core.datasets.augment import (
    POLICIES,
    Augmentation,
    CutMix,
    DropArea,
    DropEvents,
    DropTime,
    EventMix,
    Flip,
    Noise,
    PolarityFlip,
    SpatialJitter,
    TimeJitter,
    TimeReverse,
    one_hot,
    policy,
)
from snn_core.datasets.source import Recording
from snn_core.seeding import seeded
from snn_core.training import classification_loss

Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]


class RandomRecordings:
    """64 recordings of 100,000 events without meaning on 128 x 128 pixels."""

    name, simulated, sensor_size = "random events (simulated)", True, (128, 128, 2)
    class_names = tuple("0123456789")

    def recordings(self, split: str) -> list[Recording]:
        return [Recording(str(number), number % 10, number) for number in range(64)]

    def content_hash(self, split: str) -> str:
        return "random events of benchmarks/loading.py, version 1"

    def read(self, recordings: Sequence[Recording]) -> Iterator[Any]:
        for recording in recordings:
            random = np.random.default_rng(recording.key)
            t = np.sort(random.integers(0, 6_000_000, 100_000))
            yield make_events(t, *(random.integers(0, side, len(t)) for side in (128, 128, 2)))


def collate(samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """What FrameLoader delivers, from single samples."""
    return torch.stack([frames for frames, _ in samples], 1).float(), torch.tensor([label for _, label in samples])


def torch_loader(dataset: DiskFrameDataset, batch_size: int, workers: int) -> DataLoader[Any]:
    """A shuffled DataLoader whose workers stay from epoch to epoch, as it is used at its best."""
    return DataLoader(
        dataset, batch_size, shuffle=True, collate_fn=collate, num_workers=workers, persistent_workers=workers > 0,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip


def epochs(folder: str, rounds: int) -> dict[str, float]:
    """Seconds of an epoch, the fastest of all rounds."""
    dataset = open_frames("nmnist", "train", T=16, cache_dir=folder, quiet=True)
    contenders: dict[str, Batches] = {
        "FrameLoader, no thread": lambda: FrameLoader(dataset, 50, prefetch=0),
        "FrameLoader, 1 thread": lambda: FrameLoader(dataset, 50),
        "FrameLoader, 2 threads": lambda: FrameLoader(dataset, 50, threads=2, prefetch=4),
        "DataLoader, no worker": lambda: torch_loader(dataset, 50, 0),
        "DataLoader, 2 workers": lambda: torch_loader(dataset, 50, 2),
    }
    ready = {name: make() for name, make in contenders.items()}  # workers and threads are started by the first epoch

    def epoch(batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, float]:
        started, total = time.perf_counter(), 0.0
        for frames, _ in batches:
            total += float(frames[0, 0, 0, 0, 0])
        return time.perf_counter() - started, total

    torch.set_num_threads(1)
    sums = {name: sum(float(frames.sum()) for frames, _ in batches) for name, batches in ready.items()}
    assert len(set(sums.values())) == 1, sums
    times: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(3 * rounds):
        for name, batches in ready.items():
            times[name].append(epoch(batches)[0])
    return {name: round(min(values), 4) for name, values in times.items()}


def training_step(T: int, side: int, batch_size: int) -> Callable[[Tensor, Tensor], None]:
    """One step of training of the built-in network, as the training loop does it."""
    model = create("conv-snn", seed=0, input_size=(side, side)).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)

    def step(frames: Tensor, labels: Tensor) -> None:
        with seeded(0, "dropout"):
            loss = classification_loss(model.forward_steps(frames), labels)  # type: ignore[operator]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def steps(dataset: DiskFrameDataset, batch_size: int, count: int, rounds: int, threads: int) -> dict[str, Any]:
    """Milliseconds of a step, and how many of them were spent waiting for the batch, for every way of feeding."""
    T, side = dataset.T, dataset.sensor_size[0]
    step = training_step(T, side, batch_size)
    whole = len(dataset) // batch_size * batch_size
    memory = list(FrameLoader(dataset, batch_size, prefetch=0))[: whole // batch_size]

    def own(**options: Any) -> Iterator[tuple[Tensor, Tensor]]:
        return FrameLoader(dataset, batch_size, drop_last=True, **options).endless()

    def torches(workers: int) -> Iterator[tuple[Tensor, Tensor]]:
        loader = torch_loader(dataset, batch_size, workers)
        while True:
            yield from (batch for batch in loader if len(batch[1]) == batch_size)

    feeds: dict[str, Callable[[], Iterator[tuple[Tensor, Tensor]]]] = {
        "batches ready in memory": lambda: cycle(memory),
        "FrameLoader": own,
        "FrameLoader, no thread": lambda: own(prefetch=0),
        "FrameLoader, affine": lambda: own(augment="affine"),
        "FrameLoader, cifar10-dvs": lambda: own(augment="cifar10-dvs"),
        "FrameLoader, cifar10-dvs, no thread": lambda: own(augment="cifar10-dvs", prefetch=0),
        "DataLoader, no worker": lambda: torches(0),
        "DataLoader, 2 workers": lambda: torches(2),
    }
    torch.set_num_threads(threads)
    step(*memory[0])
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in feeds}
    for _ in range(rounds):
        for name, feed in feeds.items():
            turns[name].append(turn(feed(), step, count))
    torch.set_num_threads(1)
    fastest = {name: min(values) for name, values in turns.items()}
    return {
        name: {"step": round(1e3 * total, 2), "waiting": round(1e3 * waiting, 2)}
        for name, (total, waiting) in fastest.items()
    }


def turn(
    batches: Iterator[tuple[Tensor, Tensor]], step: Callable[[Tensor, Tensor], None], count: int
) -> tuple[float, float]:
    """Seconds of a step, and of waiting for its batch, over ``count`` steps after a first one."""
    step(*next(batches))
    waiting, started = 0.0, time.perf_counter()
    for _ in range(count):
        asked = time.perf_counter()
        batch = next(batches)
        waiting += time.perf_counter() - asked
        step(*batch)
    return (time.perf_counter() - started) / count, waiting / count


def processor_ms(run: Callable[[], object], repeats: int) -> float:
    """Processor time of the fastest of ``repeats`` calls, in milliseconds."""
    run()
    times = []
    for _ in range(repeats):
        started = time.process_time()
        run()
        times.append(time.process_time() - started)
    return 1e3 * min(times)


def augmentation(dataset: DiskFrameDataset, batch_size: int, repeats: int) -> dict[str, Any]:
    """Processor time of every policy, and of a training step, for the same batch."""
    torch.set_num_threads(1)
    size = dataset.sensor_size[:2]
    frames, labels = next(iter(FrameLoader(dataset, batch_size, dtype=None)))
    step, counts = training_step(dataset.T, size[0], batch_size), frames.float()
    whole = processor_ms(lambda: step(counts, labels), 3)
    generator, soft = torch.Generator().manual_seed(0), one_hot(labels, dataset.num_classes)
    result: dict[str, float] = {}
    for name in POLICIES:
        augment = policy(name)
        result[name] = processor_ms(lambda augment=augment: augment(frames, generator).float(), repeats)  # type: ignore[misc]
    for mix in (CutMix(1.0), EventMix(1.0)):
        result[type(mix).__name__] = processor_ms(
            lambda mix=mix: mix.apply(frames, soft, mix.draw(generator, batch_size, size)),  # type: ignore[misc]
            repeats,
        )
    shares = {name: {"ms": round(value, 2), "of a step": round(value / whole, 4)} for name, value in result.items()}
    return {"training step, ms": round(whole, 1)} | shares


def events_beside_tonic(repeats: int) -> dict[str, dict[str, float]]:
    """Microseconds a recording, ours and tonic's."""
    recordings = [events for events, _, _ in iterate_events("nmnist", "test")]
    size, generator = (34, 34, 2), torch.Generator().manual_seed(0)
    pairs: dict[str, tuple[Augmentation, Callable[[Any], Any]]] = {
        "Flip": (Flip(), transforms.RandomFlipLR(size)),
        "PolarityFlip": (PolarityFlip(), transforms.RandomFlipPolarity()),
        "TimeReverse": (TimeReverse(), transforms.RandomTimeReversal()),
        "DropEvents": (DropEvents((0.1, 0.9)), transforms.DropEvent((0.1, 0.9))),
        "DropTime": (DropTime((0.1, 0.9)), transforms.DropEventByTime((0.1, 0.9))),
        "DropArea": (DropArea((0.2, 0.2)), transforms.DropEventByArea(size, 0.2)),
        "TimeJitter": (TimeJitter(1000), transforms.TimeJitter(1000, sort_timestamps=True)),
        "SpatialJitter": (SpatialJitter(1), transforms.SpatialJitter(size, clip_outliers=True)),
        "Noise": (Noise(0.1), transforms.UniformNoise(size, 116)),
    }
    result = {}
    for name, (ours, theirs) in pairs.items():
        mine = processor_ms(lambda ours=ours: [ours(events, generator, size) for events in recordings], repeats)  # type: ignore[misc]
        other = processor_ms(lambda theirs=theirs: [theirs(events) for events in recordings], repeats)  # type: ignore[misc]
        result[name] = {
            "snn_core": round(1e3 * mine / len(recordings), 1),
            "tonic": round(1e3 * other / len(recordings), 1),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_json_option(parser, "loading_cpu.json")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender")
    parser.add_argument("--steps", type=int, default=20, help="steps a turn (a fifth of them on 128 x 128)")
    arguments = parser.parse_args()
    rounds, count = arguments.rounds, arguments.steps
    torch.set_num_threads(1)
    result: dict[str, Any] = {"load_average_at_start": round(os.getloadavg()[0], 1)}
    with tempfile.TemporaryDirectory() as folder:
        result["epoch, seconds"] = epochs(folder, rounds)
        print(result["epoch, seconds"], flush=True)
        result["events, microseconds a recording"] = events_beside_tonic(3 * rounds)
        print(result["events, microseconds a recording"], flush=True)
        cells = [
            ("nmnist, 34 x 34, T = 16, batch 25", open_frames("nmnist", "train", T=16, cache_dir=folder, quiet=True)),
            ("128 x 128, T = 8, batch 8", open_frames(RandomRecordings(), "train", T=8, cache_dir=folder, quiet=True)),
        ]
        for name, dataset in cells:
            batch_size, number = (25, count) if dataset.sensor_size[0] == 34 else (8, max(2, count // 5))
            result[f"{name}: augmentation"] = augmentation(dataset, batch_size, 5 * rounds)
            print(name, result[f"{name}: augmentation"], flush=True)
            for threads in (1, 2):
                key = f"{name}: steps on {threads} threads, ms"
                result[key] = steps(dataset, batch_size, number, rounds, threads)
                print(key, result[key], flush=True)
    result["load_average_at_end"] = round(os.getloadavg()[0], 1)
    write_result(arguments.json, result)


if __name__ == "__main__":
    main()
