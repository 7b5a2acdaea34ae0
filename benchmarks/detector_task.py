"""The task of benchmarks/detector.py: find spliced patches in textured digits with a small frozen ViT.

The ViT is first trained to tell the digits apart (dense, without splices), then frozen; so that adapters have something
to adapt. Training and test use different digits, and different textures.
"""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor

from snn_core.detectors import (
    Detector,
    FrozenViT,
    evaluate_detector,
    fit,
    fit_detector,
    footprint,
    spliced,
    with_texture,
)

Cell = dict[str, Any]
Data = tuple[Tensor, Tensor, Tensor]
SIDE, STRENGTH, TRAINING_DIGITS = 24, 0.25, 1400
MEAN, DEVIATION = 0.3, 0.4
#: Arms: pattern of the frozen weights, and whether there are adapters beside them (heads there always are).
ARMS = {
    "dense, adapters": (None, True),
    "2:4, adapters": ("2:4", True),
    "2:4, heads only": ("2:4", False),
}
ADAPTERS = [{"form": "mixture", "ranks": [4, 4, 4, 4], "kernels": [1, 3, 5], "hidden": 8}]


def digits(part: str) -> tuple[Tensor, Tensor]:
    """Pictures ``[N, 1, 24, 24]`` of 0 to 1 and labels of the digits that come with scikit-learn."""
    source = load_digits()
    pictures = torch.tensor(source.images, dtype=torch.float32)[:, None] / 16
    pictures = F.interpolate(pictures, size=SIDE, mode="bilinear", align_corners=False)
    chosen = slice(None, TRAINING_DIGITS) if part == "train" else slice(TRAINING_DIGITS, None)
    return pictures[chosen], torch.tensor(source.target)[chosen]


def normalised(pictures: Tensor) -> Tensor:
    """As the network is given them."""
    return (pictures - MEAN) / DEVIATION


def splices(part: str, seeds: range) -> Data:
    """Pictures, forged, masks: every digit once a seed."""
    pictures, _ = digits(part)
    drawn = [spliced(with_texture(pictures, seed, STRENGTH), seed) for seed in seeds]
    x, forged, mask = (torch.cat(values) for values in zip(*drawn, strict=True))
    return normalised(x), forged, mask


def network(seed: int, **options: Any) -> FrozenViT:
    """A ViT of 36 patches, 4 blocks and 64 channels."""
    small = {"patch_size": 4, "embed_dim": 64, "depth": 4, "num_heads": 4}
    return FrozenViT(
        "vit_tiny_patch16_224", in_channels=1, image_size=SIDE, model_options=small, seed=seed, **options
    )  # fmt: skip


def pretrained(seed: int, steps: int) -> tuple[dict[str, Tensor], float]:
    """Weights under timm's names, and the accuracy on the test digits."""
    vit = network(seed, pattern=None).requires_grad_(True)
    pictures, labels = digits("train")
    x = normalised(with_texture(pictures, seed, STRENGTH))
    fit(vit, lambda i: F.cross_entropy(vit(x[i]), labels[i]), len(x), steps=steps, seed=seed, name="digits")
    pictures, labels = digits("test")
    with torch.no_grad():
        guessed = vit(normalised(with_texture(pictures, seed + 1000, STRENGTH))).argmax(1)
    weights = {name.removeprefix("vit."): value for name, value in vit.state_dict().items()}
    return weights, (guessed == labels).double().mean().item()


def learn(cell: Cell) -> Cell:
    """All arms of one seed: the same weights, data, order and draw of adapters and heads, so that they are pairs."""
    seed = cell["seed"]
    result: Cell = {}
    started = time.process_time()
    weights, accuracy = pretrained(seed, cell["pretraining_steps"])
    seconds = {"pretraining": round(time.process_time() - started, 1)}
    train = splices("train", range(10_000 * seed + 1, 10_000 * seed + 5))
    test = splices("test", range(10_000 * seed + 5001, 10_000 * seed + 5004))
    for arm, (pattern, adapted) in ARMS.items():
        backbone = network(seed, pattern=pattern, pretrained=weights, adapters=ADAPTERS if adapted else ())
        detector = Detector(backbone, hidden=32, seed=seed)
        started = time.process_time()
        options = {"steps": cell["steps"], "batch_size": cell["batch_size"], "lr": cell["lr"], "seed": seed}
        loss = fit_detector(detector, train, name=arm, **options)
        found = evaluate_detector(detector, test)
        result[arm] = found | {
            "loss": loss,
            "trained_parameters": footprint(detector).trained,
        }
        seconds[arm] = round(time.process_time() - started, 1)
        print(f"seed {seed}, {arm}: AUC {found['auc']:.3f}, F1 {found['f1']:.3f}, {seconds[arm]} CPU s", flush=True)
    return {"digits_accuracy": accuracy, "arms": result, "chance": chance(test), "cpu_seconds": seconds}


def chance(data: Data) -> dict[str, float]:
    """Scores of answers that look at no picture: the commoner answer everywhere, and "forged" for every pixel."""
    _, forged, mask = data
    pictures, pixels = forged.double().mean().item(), mask.double().mean().item()
    return {
        "accuracy": max(pictures, 1 - pictures), "auc": 0.5, "f1": 2 * pixels / (1 + pixels), "iou": pixels
    }  # fmt: skip
