"""One run of pruning.py, in a worker process: data, network, training, figures."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Cell
from numpy.typing import NDArray
from pruning_statistics import overlap
from torch import nn

from snn_core.backbones import create
from snn_core.datasets import FrameDataset, load, stratified_folds, stratified_subset
from snn_core.errors import NonFiniteError
from snn_core.files import atomic_path, sha256_json
from snn_core.pruning import NMPruner, PruneConfig, create_pruner
from snn_core.reports import measure_energy
from snn_core.sparsity import check_nm, to_blocks
from snn_core.training import TrainConfig, predict_logits, train_classifier
from snn_core.training.loop import STATE_FILE

#: Samples on which firing rates and SynOps are measured.
ACTIVITY_SAMPLES = 500
Masks = dict[str, NDArray[np.bool_]]


def whole_split(settings: dict[str, Any], split: str) -> FrameDataset:
    """The training or test split of a study, or the stratified part of it that all its runs share."""
    return _load(json.dumps([settings[name] for name in ("data", "T", "data_options", f"{split}_limit")]), split)


@functools.lru_cache(maxsize=2)
def _load(what: str, split: str) -> FrameDataset:
    data, T, options, limit = json.loads(what)
    return load(data, split=split, T=T, limit=limit, quiet=True, **options)


def parts(settings: dict[str, Any], fold: int | str, seed: int, tuning: bool) -> tuple[FrameDataset, FrameDataset]:
    """Training and test samples of a run; ``seed`` draws the training samples where a run takes a part of them."""
    pool = whole_split(settings, "train")
    if isinstance(fold, int):
        # Other folds for tuning than for reporting.
        train, test = stratified_folds(pool.labels, settings["folds"], seed=int(tuning))[fold]
        pool, test_set = pool.subset(train), pool.subset(test)
    elif fold == "validation":
        test = stratified_subset(pool.labels, max(1, len(pool) // 5), seed=0)
        pool, test_set = pool.subset(np.setdiff1d(np.arange(len(pool)), test)), pool.subset(test)
    else:
        test_set = whole_split(settings, "test")
    if settings["train_size"] is not None and settings["train_size"] < len(pool):
        pool = pool.subset(stratified_subset(pool.labels, settings["train_size"], seed))
    return pool, test_set


def new_network(settings: dict[str, Any], data: FrameDataset, seed: int) -> nn.Module:
    """The study's network with the initial weights of that seed."""
    width, height, channels = data.sensor_size
    options = {"in_channels": channels, "num_classes": data.num_classes, "input_size": [height, width]}
    options |= settings["model"]
    return create(options.pop("name", "conv-snn"), seed=seed, **options)


def new_pruner(cell: Cell, model: nn.Module) -> NMPruner:
    """The cell's method attached to the network. ArgumentError: it does not do this pattern, or this network."""
    config = PruneConfig(**(cell["settings"]["prune"] | {"pattern": cell["pattern"], "seed": cell["seed"]}))
    return create_pruner(cell["method"].partition("/")[0], model, config)


def run(folder: Path, cell: Cell) -> Cell:
    """Train the network of a cell, and test it after its last epoch.

    Of the seed of a cell come order, augmentation, dropout and the pruner's draws; of ``init`` the initial weights and,
    where a run takes a part of the training samples, which.
    """
    settings = cell["settings"]
    train_set, test_set = parts(settings, cell["fold"], cell["init"], cell["tuning"])
    model = new_network(settings, train_set, cell["init"])
    hooks = [] if cell["method"] == "dense" else [new_pruner(cell, model)]
    first = {name: largest for pruner in hooks for name, largest in largest_weights(pruner).items()}
    config = TrainConfig(**(settings["train"] | {"seed": cell["seed"]}))
    state = folder / "states" / sha256_json(cell)[:24] if settings["keep_state"] else None
    resume = state is not None and (state / STATE_FILE).is_file()
    try:
        outcome = train_classifier(
            model, train_set, config, hooks=hooks, quiet=True, device=settings["device"], output=state, resume=resume
        )
    except NonFiniteError as error:
        return {"failed": str(error)}
    right = predict_logits(model, test_set, 500 if settings["device"] != "cpu" else 100).argmax(1) == test_set.labels
    result: dict[str, Any] = {
        "accuracy": float(right.double().mean()),
        "test_samples": len(test_set),
        "train_samples": len(train_set),
        "train_accuracy": outcome.history[-1]["train_accuracy"],
        "seconds": outcome.seconds,
    }
    result |= _activity(model, test_set)
    for pruner in hooks:
        result |= _sparsity(model, pruner)
        result["flips"] = [round(record["flips"], 5) for record in outcome.history if "flips" in record]
        masks = {name: mask.cpu().numpy() for name, mask in pruner.masks.items()}
        result["overlap_initial"] = overlap(masks, first)
        if cell["keep_masks"]:
            save_masks(mask_file(folder, cell), masks)
    if state is not None:
        shutil.rmtree(state, ignore_errors=True)
    return result


def largest_weights(pruner: NMPruner) -> Masks:
    """The magnitude masks of the weights as they are: the largest N of every block, whatever the method would keep."""
    masks = {}
    for layer in pruner.layers:
        blocks = to_blocks(layer.weight.detach(), layer.pattern.m)
        mask = torch.zeros_like(layer.weight, dtype=torch.bool)
        to_blocks(mask, layer.pattern.m).scatter_(-1, blocks.abs().topk(layer.pattern.n).indices, True)
        masks[layer.name] = mask.cpu().numpy()
    return masks


def _activity(model: nn.Module, test_set: FrameDataset) -> dict[str, Any]:
    """Firing rates by neuron layer and SynOps a sample."""
    chosen = stratified_subset(test_set.labels, ACTIVITY_SAMPLES, seed=0)
    energy = measure_energy(model, test_set.subset(chosen))
    rates = energy.firing_rates
    return {"firing_rates": rates, "firing_rate": float(np.mean(list(rates.values()))), "synops": energy.synops}


def _sparsity(model: nn.Module, pruner: NMPruner) -> dict[str, Any]:
    """Kept weights of the pruned layers, and blocks with more than N of M."""
    names = list(pruner.masks)
    weights = {name: model.get_parameter(f"{name}.weight") for name in names}
    kept, total = (
        sum(count) for count in zip(*((int((w != 0).sum()), w.numel()) for w in weights.values()), strict=True)
    )
    patterns = {name: pattern for name, pattern in pruner.patterns.items() if name in weights}
    over = sum(check_nm(weights[name], pattern) for name, pattern in patterns.items())
    return {"kept": kept, "weights": total, "kept_fraction": kept / total, "blocks_over_pattern": over}


def mask_file(folder: Path, cell: Cell) -> Path:
    """Where the masks of a cell lie."""
    return folder / "masks" / f"{sha256_json(cell)[:24]}.npz"


def save_masks(path: Path, masks: Masks) -> None:
    """Masks as bits."""
    arrays: dict[str, Any] = {}
    for name, mask in masks.items():
        arrays |= {f"{name}/bits": np.packbits(mask), f"{name}/shape": np.array(mask.shape)}
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        np.savez_compressed(stream, **arrays)


def load_masks(path: Path) -> Masks:
    """What :func:`save_masks` wrote."""
    with np.load(path) as arrays:
        names = [name.removesuffix("/bits") for name in arrays.files if name.endswith("/bits")]
        return {
            name: np.unpackbits(arrays[f"{name}/bits"], count=int(np.prod(arrays[f"{name}/shape"])))
            .astype(bool)
            .reshape(arrays[f"{name}/shape"])
            for name in names
        }


def data_facts(settings: dict[str, Any]) -> dict[str, Any]:
    """What a study's data are: names, numbers, content keys. Loads them: caches are built in one process."""
    facts = {}
    for split in ("train", "test"):
        data = whole_split(settings, split)
        facts[split] = {"data": repr(data), "samples": len(data), "content_key": data.content_key}
    return facts


def free_data() -> None:
    """Forget what is loaded."""
    _load.cache_clear()


def one_thread() -> None:
    """For a run in this process."""
    torch.set_num_threads(1)
