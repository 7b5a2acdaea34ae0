"""The simulator beside reality: events of nmnist-sim and real N-MNIST, and networks trained on one and tested on both.

    python benchmarks/simulation.py path        # benchmarks/results/simulation_path.json
    python benchmarks/simulation.py figures     # benchmarks/results/simulation_figures.json
    python benchmarks/simulation.py transfer    # benchmarks/results/simulation_transfer.json

Needs mnist.npz and N-MNIST (whole, or nmnist_850.zip) in $SNN_DATA. Real test recordings are of MNIST *test*
pictures, so the training part of nmnist-sim has none of them: that is counted. It does have those of the real training
recordings.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import common
import simulation_figures
import simulation_path
import torch

from snn_core.backbones import create
from snn_core.datasets import FrameDataset, data_root, load_frames
from snn_core.datasets.nmnist_sim import NMNISTSimSource
from snn_core.training import TrainConfig, evaluate_accuracy, train_classifier


def pictures_shared(sim: NMNISTSimSource, real_ids: list[str]) -> int:
    """How many of the real recordings' pictures are also, pixel by pixel, in the training part of nmnist-sim."""
    known = {picture.tobytes() for picture in sim.mnist.pictures["train"]}
    split = {"Train": "train", "Test": "test"}
    pictures = [sim.mnist.pictures[split[name.split("/")[0]]][int(name.split("/")[-1]) - 1] for name in real_ids]
    return sum(picture.tobytes() in known for picture in pictures)


def trained(
    train: FrameDataset, epochs: int, batch_size: int, seed: int, augment: str, folder: Path
) -> tuple[Any, float]:
    """conv-snn with its default channels, trained; and the seconds that took (longer where other work ran)."""
    model = create("conv-snn", seed=seed)
    config = TrainConfig(epochs=epochs, batch_size=batch_size, seed=seed, augment=augment)  # type: ignore[arg-type]
    output = folder / f"{train.content_key[:12]}-{epochs}-{batch_size}-{seed}-{augment}"
    resume = output.is_dir() and any(output.iterdir())
    result = train_classifier(model, train, config, output=output, resume=resume, quiet=True)
    return model, result.seconds


def transfer(arguments: argparse.Namespace) -> dict[str, Any]:
    """Accuracies of networks trained on simulated and on real recordings, tested on both."""
    sim = NMNISTSimSource(data_root())
    sim_train, sim_test = (
        load_frames(sim, split, T=3, cache_dir=arguments.cache, limit=limit)
        for split, limit in (("train", arguments.limit), ("test", None))
    )
    real_train, real_test = (
        load_frames("nmnist", split, T=3, cache_dir=arguments.cache) for split in ("train", "test")
    )
    tests = {"real test": real_test, "simulated test": sim_test, "real train": real_train}
    rows = []
    for seed in range(arguments.seeds):
        for name, data, epochs, batch in (
            ("simulated", sim_train, arguments.epochs, 100),
            ("real", real_train, 50, 25),
        ):
            model, seconds = trained(data, epochs, batch, seed, "affine", arguments.work)
            wanted = {key: test for key, test in tests.items() if not (name == "real" and key == "real train")}
            accuracy = {key: round(evaluate_accuracy(model, test), 4) for key, test in wanted.items()}
            rows.append(
                {"trained_on": name, "samples": len(data), "epochs": epochs, "batch_size": batch, "seed": seed,
                 "accuracy": accuracy, "seconds": round(seconds)}
            )  # fmt: skip
            print(rows[-1], flush=True)
    return {
        "network": "conv-snn (default), T=3 frames of equal time, affine augmentation",
        "real_test_recordings": len(real_test),
        "their_pictures_in_the_simulated_training_part": pictures_shared(sim, real_test.ids),
        "runs": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["path", "figures", "transfer"])
    parser.add_argument("--epochs", type=int, default=6, help="over the simulated training part")
    parser.add_argument("--limit", type=int, help="of simulated training recordings, for a quick look")
    parser.add_argument("--seeds", type=int, default=1, help="networks of each kind")
    parser.add_argument("--cache", type=Path, help="folder of the frame cache")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "simulation", help="checkpoints")
    parser.add_argument("--json", type=Path, help="result file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    parts = {"path": simulation_path.measure, "figures": simulation_figures.figures}
    body = parts[arguments.part]() if arguments.part in parts else transfer(arguments)
    common.write_result(arguments.json or common.RESULTS / f"simulation_{arguments.part}.json", body)


if __name__ == "__main__":
    main()
