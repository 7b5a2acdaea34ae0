"""moving-digits (simulated): a spiking network finds and names digits that cross a field of 64 x 64 pixels.

    OMP_NUM_THREADS=1 python benchmarks/localization.py

Trained on the training part, tested on the test part: neither a picture nor a path is in both. Average precision is
COCO's, of the boxes when the last step ends. Beside it stands what needs no network: the box of the last step's events
and the commonest class. ``--validate`` is for choosing settings: it trains on four of the five groups of training
pictures and tests on the fifth. A seed that is finished is kept in ``--work`` and not trained again; one that was
interrupted goes on from its last epoch.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from common import add_json_option, code_version, run_cells, write_result
from source_tree import ROOT
from torch import Tensor

from snn_core.backbones import create
from snn_core.backbones.encoder import FrameEncoder
from snn_core.backbones.features import Backbone
from snn_core.datasets import BoxDataset, load_boxes
from snn_core.files import atomic_path, sha256_json
from snn_core.localization import (
    Detections,
    Localiser,
    LocalizationConfig,
    average_precision,
    class_blind,
    detect_steps,
    evaluate_detections,
    targets_of,
    train_localiser,
)

NETWORK = {"channels": [24, 48, 96, 96], "strides": [2, 2, 2, 1], "pools": [1, 1, 1, 1]}
HEAD = {"channels": 64, "class_channels": 128, "class_depth": 1}
#: Squares of 40 pixels hold any digit, and cost 0.4 of the field; bfloat16 takes 0.6 of float32's time where the
#: processor has it.
TRAINING = {"learning_rate": 8e-3, "crop": 40, "full": 0.2, "precision": "bfloat16"}
DATA = "moving-digits"
WANTED = 0.8
#: Share of a field's events that the baseline's box leaves out on each side.
LEFT_OUT = 0.05
SHOWN, SHOWN_SCORE = 10, 0.3
Cell = dict[str, Any]


def parts(cell: Cell) -> tuple[BoxDataset, BoxDataset]:
    """What is trained on and what is tested on."""
    options = {"T": cell["T"], "pictures": cell["pictures"], "quiet": True}
    train = load_boxes(DATA, split="train", limit=cell["limit"], **options)
    if cell["validate"]:
        return train.fold(0)
    return train, load_boxes(DATA, split="test", limit=cell["test_limit"], **options)


def configuration(cell: Cell) -> LocalizationConfig:
    """How a seed is trained."""
    return LocalizationConfig(epochs=cell["epochs"], batch_size=cell["batch_size"], seed=cell["seed"], **TRAINING)


def network(cell: Cell) -> Localiser:
    """A backbone and a head, not trained."""
    backbone = create("conv-snn", seed=cell["seed"], features_only=True, **NETWORK)
    assert isinstance(backbone, Backbone)
    # Without its read-out the network takes frames of any size: squares of the field in training, all of it in tests.
    backbone.encoder = FrameEncoder(2, None, "log1p")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cell["seed"])
        return Localiser(backbone, 10, **HEAD)


def precision(found: list[Detections], data: BoxDataset, step: int = -1) -> dict[str, Any]:
    """Figures of what was found when ``step`` ends."""
    boxes, labels = targets_of(data.boxes[:, step], data.labels)
    scores = evaluate_detections(found, data, step=step)
    blind = average_precision(*_blind(found, boxes, labels), 1)
    return {
        "mAP@0.5": round(scores.mean(0.5), 4),
        "mAP@0.5:0.95": round(scores.mean(), 4),
        "AP@0.5 of each class": [round(value, 4) for value in scores.per_class(0.5)],
        "AP@0.5, classes ignored": round(blind.mean(0.5), 4),
        "AP@0.5:0.95, classes ignored": round(blind.mean(), 4),
    }


def _blind(found: list[Detections], boxes: list[Tensor], labels: list[Tensor]) -> tuple[Any, Any, Any]:
    same, zeros = class_blind(found, labels)
    return same, boxes, zeros


def work(folder: Path, drawn: int, cell: Cell) -> Cell:
    """Train with one seed; the model of the seed ``drawn`` also draws what it finds."""
    train, test = parts(cell)
    model = network(cell)
    started = time.process_time()
    state = folder / f"seed-{cell['seed']}.safetensors"
    history = train_localiser(model, train, configuration(cell), state_path=state, name=f"seed {cell['seed']}")
    cpu = time.process_time() - started
    steps = detect_steps(model, test, range(test.T))
    if cell["seed"] == drawn:
        draw(test, steps[-1], folder / "found.png")
    each = [precision(found, test, step) for step, found in enumerate(steps)]
    return each[-1] | {
        "mAP@0.5 when each step ends": [figures["mAP@0.5"] for figures in each],
        "parameters": sum(values.numel() for values in model.parameters()),
        "training_seconds": round(sum(record["seconds"] for record in history)),
        "training_cpu_seconds_of_the_last_call": round(cpu),
        "loss": {name: [round(record[name], 4) for record in history] for name in ("objectness", "classes", "boxes")},
    }


def events_box(data: BoxDataset, train: BoxDataset) -> list[Detections]:
    """One box a sample, of what is left of the last step's events without the outermost on each side; and the class
    that is commonest in training."""
    commonest = int(train.labels[train.labels >= 0].mode().values)
    counts = data.frames.frames[:, -1].float().sum(1)
    sides = []
    for along in (counts.sum(1), counts.sum(2)):  # columns, then rows
        share = along.cumsum(1) / along.sum(1, keepdim=True).clamp_min(1)
        sides.append(((share < LEFT_OUT).sum(1), (share < 1 - LEFT_OUT).sum(1) + 1))
    boxes = torch.stack([sides[0][0], sides[1][0], sides[0][1], sides[1][1]], 1).float()
    return [Detections(box[None], torch.ones(1), torch.tensor([commonest])) for box in boxes]


def middle_box(data: BoxDataset, train: BoxDataset) -> list[Detections]:
    """The same with a box of the median size of those in training, round the events' mean."""
    true = train.boxes[:, -1][train.labels >= 0]
    half = (true[:, 2:] - true[:, :2]).median(0).values / 2
    counts = data.frames.frames[:, -1].float().sum(1)
    total, at = counts.sum((1, 2)).clamp_min(1), torch.arange(counts.shape[-1]) + 0.5
    middle = torch.stack([counts.sum(1) @ at / total, counts.sum(2) @ at / total], 1)
    boxes = torch.cat([middle - half, middle + half], 1)
    return [
        Detections(box[None], one.scores, one.labels) for box, one in zip(boxes, events_box(data, train), strict=True)
    ]


def draw(data: BoxDataset, found: list[Detections], path: Path) -> None:
    """The last step's events of the first samples; true boxes white, found ones yellow with class and score."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, SHOWN // 2, figsize=(2.4 * SHOWN / 2, 5.0))
    for index, axis in enumerate(axes.flat):
        frames, boxes, labels = data[index]
        picture = torch.stack([frames[-1, 1], torch.zeros_like(frames[-1, 0]), frames[-1, 0]], -1).float()
        axis.imshow((picture / 4).clamp_max(1).numpy(), extent=(0, 64, 64, 0), interpolation="nearest")
        for (x0, y0, x1, y1), label in zip(boxes[-1].tolist(), labels.tolist(), strict=True):
            axis.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], "w", linewidth=1)
            axis.text(x0, y0 - 1, str(label), color="w", fontsize=8)
        one = found[index]
        for (x0, y0, x1, y1), label, score in zip(*(part.tolist() for part in (one.boxes, one.labels, one.scores)),
                                                  strict=True):  # fmt: skip
            if score >= SHOWN_SCORE:
                axis.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], "y--", linewidth=1)
                axis.text(x1, y1 + 5, f"{label}: {score:.2f}", color="y", fontsize=8, ha="right")
        axis.axis("off")
    figure.tight_layout(pad=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=80, format="png")
    pyplot.close(figure)


def summary(results: list[Cell], name: str) -> dict[str, float]:
    """Mean, least and largest over the seeds."""
    values = [result[name] for result in results]
    return {"mean": round(statistics.fmean(values), 4), "least": min(values), "largest": max(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_json_option(parser, "localization.json")
    parser.add_argument("--T", type=int, default=4, help="frames a recording")
    parser.add_argument("--pictures", default="digits", choices=["digits", "mnist"], help="what moves")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of initial weights and order")
    parser.add_argument("--limit", type=int, help="training recordings, at most")
    parser.add_argument("--test-limit", type=int, help="test recordings, at most")
    parser.add_argument("--validate", action="store_true", help="test on a fifth of the training pictures instead")
    parser.add_argument("--processes", type=int, default=2, help="seeds at once; 0: one after the other, in this one")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "localization", help="finished seeds")
    parser.add_argument("--picture", type=Path, help="where the drawing of some test samples goes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names = ("T", "pictures", "epochs", "batch_size", "limit", "test_limit", "validate")
    setting = {name: getattr(arguments, name) for name in names}
    config = configuration(setting | {"seed": 0}).model_dump(exclude={"epochs", "batch_size", "seed"})
    how = {"network": NETWORK, "head": HEAD, "config": config}
    train, test = parts(setting)  # builds the frames once, before several processes want them
    print(f"{train}\n{test}", flush=True)
    key = sha256_json([code_version(), setting, how, train.frames.content_key, test.frames.content_key])[:12]
    folder = arguments.work / key
    cells = [setting | {"seed": seed} for seed in arguments.seeds]
    done = run_cells(
        cells,
        functools.partial(work, folder, arguments.seeds[0]),
        folder,
        arguments.processes,
        describe=lambda c: f"seed {c['seed']}",
    )
    results = [cell["result"] for cell in done]
    body = {
        "data": {"train": repr(train), "test": repr(test)},
        "setting": setting | how,
        "wanted_mAP@0.5": WANTED,
        "reached": min(result["mAP@0.5"] for result in results) >= WANTED,
        "summary": {
            name: summary(results, name)
            for name in ("mAP@0.5", "mAP@0.5:0.95", "AP@0.5, classes ignored", "AP@0.5:0.95, classes ignored")
        },
        "seeds": {str(cell["seed"]): cell["result"] for cell in done},
        "baselines": {
            "box of the events, commonest class": precision(events_box(test, train), test),
            "median box round the events' mean, commonest class": precision(middle_box(test, train), test),
        },
    }
    for name, figures in body["summary"].items():  # type: ignore[attr-defined]
        print(f"{name}: {figures}")
    for name, figures in body["baselines"].items():  # type: ignore[attr-defined]
        print(f"{name}: mAP@0.5 {figures['mAP@0.5']}, classes ignored {figures['AP@0.5, classes ignored']}")
    if arguments.picture is not None and (folder / "found.png").is_file():
        with atomic_path(arguments.picture) as temporary:
            temporary.write_bytes((folder / "found.png").read_bytes())
    write_result(arguments.json, body)


if __name__ == "__main__":
    main()
