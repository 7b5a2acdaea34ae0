"""motion-sim (simulated): can its classes be told apart without time, and with it?

    OMP_NUM_THREADS=1 python benchmarks/motion.py

The two classes of a pair are the same motions forwards and backwards. Read-outs of time-averaged frames (linear, and an
RBF-SVM) are fitted to each pair alone; the networks learn all 12 classes, from frames in order, from frames shuffled in
time (every recording by its own draw) and from frames averaged over time. Given are accuracy, shape accuracy (which
pair) and within-pair accuracy (the better of the true pair's two scores; chance is 0.5), the last for each pair.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch
from common import add_json_option, write_result
from numpy.typing import NDArray
from sklearn.svm import SVC

from snn_core.backbones import create
from snn_core.datasets import FrameDataset, info, load_frames
from snn_core.files import sha256_json
from snn_core.seeding import make_generator
from snn_core.training import TrainConfig, predict_logits, train_classifier

CLASS_NAMES = info("motion-sim").class_names
PAIRS = ("circle", "figure-eight", "wave across", "wave up and down", "roll", "shake")
RIDGE = (0.01, 0.1, 1.0)  # times the mean of the kernel's diagonal
Parts = dict[str, FrameDataset]


def ridge_accuracy(train: NDArray[np.float32], signs: NDArray[np.float64], test: NDArray[np.float32],
                   test_signs: NDArray[np.float64], weight: float) -> float:  # fmt: skip
    """Of a linear least-squares classifier of two classes, labelled -1 and 1."""
    mean = train.mean(0)
    train, test = train - mean, test - mean
    kernel = train @ train.T
    dual = np.linalg.solve(kernel + weight * kernel.diagonal().mean() * np.eye(len(kernel)), signs)
    return float((np.sign(test @ train.T @ dual) == test_signs).mean())


def read_outs(data: Parts) -> dict[str, Any]:
    """Accuracy within each pair of read-outs of frames averaged over time, and of the first frame alone."""
    views = {
        "counts averaged over time": lambda frames: frames.mean(1),
        "log(1 + counts averaged over time)": lambda frames: np.log1p(frames.mean(1)),
        "ON - OFF averaged over time": lambda frames: frames[:, :, 1].mean(1) - frames[:, :, 0].mean(1),
        "first frame": lambda frames: np.log1p(frames[:, 0]),
    }
    result: dict[str, Any] = {}
    for name, view in views.items():
        seen = {part: view(data[part].frames.numpy().astype(np.float32)) for part in data}
        seen = {part: values.reshape(len(values), -1) for part, values in seen.items()}
        rows: dict[str, list[float]] = {f"linear, ridge {weight}": [] for weight in RIDGE} | {"RBF-SVM": []}
        for pair in range(len(PAIRS)):
            chosen = {part: data[part].labels.numpy() // 2 == pair for part in data}
            x = {part: seen[part][chosen[part]] for part in data}
            y = {part: data[part].labels.numpy()[chosen[part]] % 2 * 2.0 - 1 for part in data}
            for weight in RIDGE:
                score = ridge_accuracy(x["train"], y["train"], x["test"], y["test"], weight)
                rows[f"linear, ridge {weight}"].append(score)
            rows["RBF-SVM"].append(float(SVC(C=10).fit(x["train"], y["train"]).score(x["test"], y["test"])))
        result[name] = {
            row: {"within_pair": round(float(np.mean(scores)), 4), "pairs": dict(zip(PAIRS, scores, strict=True))}
            for row, scores in rows.items()
        }
        print(name, {row: figures["within_pair"] for row, figures in result[name].items()}, flush=True)
    return result


def seen_as(data: FrameDataset, order: str, part: str) -> FrameDataset:
    """The recordings "in order", "shuffled" in time, or "averaged" over time (their sum, as one frame)."""
    frames = data.frames
    if order == "averaged":
        frames = frames.sum(1, keepdim=True).clamp_max(255).to(torch.uint8)
    elif order == "shuffled":
        generator = make_generator(0, "shuffle", part)
        frames = torch.stack([clip[torch.randperm(len(clip), generator=generator)] for clip in frames])
    return FrameDataset(
        frames, data.labels, data.ids, class_names=data.class_names, name=data.name, simulated=True,
        content_key=sha256_json([data.content_key, order]),
    )  # fmt: skip


def network(data: Parts, order: str, epochs: int, seed: int) -> dict[str, Any]:
    """conv-snn, trained on all classes; its last state, nothing is selected by the test."""
    train, test = (seen_as(data[part], order, part) for part in ("train", "test"))
    height, width = train.frames.shape[-2:]
    model = create("conv-snn", seed=seed, num_classes=len(CLASS_NAMES), input_size=[height, width])
    config = TrainConfig(epochs=epochs, batch_size=50, seed=seed)
    started = time.process_time()
    history = train_classifier(model, train, config, name=f"frames {order}").history
    logits, labels = predict_logits(model, test), test.labels
    predicted = logits.argmax(1)
    of_true_pair = logits.view(len(labels), -1, 2)[torch.arange(len(labels)), labels // 2]
    right = (of_true_pair.argmax(1) == labels % 2).float()
    result = {
        "accuracy": round((predicted == labels).float().mean().item(), 4),
        "shape": round((predicted // 2 == labels // 2).float().mean().item(), 4),
        "within_pair": round(right.mean().item(), 4),
        "pairs": {name: round(right[labels // 2 == pair].mean().item(), 4) for pair, name in enumerate(PAIRS)},
        "epochs": epochs,
        "train_accuracy": round(history[-1]["train_accuracy"], 4),
        "cpu_seconds": round(time.process_time() - started),
    }
    print(order, result, flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_json_option(parser, "motion_sim.json")
    parser.add_argument("--T", type=int, default=8, help="frames a recording")
    parser.add_argument("--limit", type=int, default=6000, help="training recordings, at most")
    parser.add_argument("--test-limit", type=int, default=1200, help="test recordings, at most")
    parser.add_argument("--epochs", type=int, default=12, help="of each network")
    parser.add_argument("--orders", nargs="*", default=["in order", "shuffled", "averaged"], help="networks trained")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    limits = {"train": arguments.limit, "test": arguments.test_limit}
    data = {part: load_frames("motion-sim", part, T=arguments.T, limit=limit) for part, limit in limits.items()}
    body = {
        "data": repr(data["train"]),
        "recordings": {part: len(data[part]) for part in data},
        "events_a_recording": {part: round(data[part].frames.sum().item() / len(data[part])) for part in data},
        "chance_within_pair_standard_error": round(0.5 / len(data["test"]) ** 0.5, 4),
        "classes": list(CLASS_NAMES),
        "read_outs": read_outs(data),
        "networks": {order: network(data, order, arguments.epochs, seed=0) for order in arguments.orders},
    }
    write_result(arguments.json, body)


if __name__ == "__main__":
    main()
