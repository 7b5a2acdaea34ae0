"""What distillation.py does in its worker processes: teachers, products, fresh networks, what it costs."""

from __future__ import annotations

import functools
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Cell
from torch import Tensor

from snn_core.datasets import FrameDataset, load, stratified_folds
from snn_core.distillation import (
    CondensationMethod,
    DistillConfig,
    DistilledDataset,
    EvaluationConfig,
    TeacherConfig,
    TeacherPool,
    create_method,
    evaluate_full,
    evaluate_product,
    train_teachers,
    write_product,
)
from snn_core.errors import CheckpointError, NonFiniteError
from snn_core.files import sha256_json
from snn_core.seeding import derive_seed

#: Selections that have no other draw than their teacher.
OWN_TEACHER = ("herding", "k-centre")


@functools.lru_cache(maxsize=2)
def _load(what: str, split: str) -> FrameDataset:
    data, T, options, limit = json.loads(what)
    return load(data, split=split, T=T, limit=limit, quiet=True, **options)


def whole_split(settings: dict[str, Any], split: str) -> FrameDataset:
    """The training or test split of a study, or the stratified part of it that is used."""
    loaded = _load(json.dumps([settings[name] for name in ("data", "T", "data_options", f"{split}_limit")]), split)
    return first_classes(loaded, settings["class_limit"]) if settings["class_limit"] else loaded


def first_classes(data: FrameDataset, count: int) -> FrameDataset:
    """The samples of the first ``count`` classes, as a set that has no others."""
    kept = data.subset(torch.nonzero(data.labels < count).flatten())
    return FrameDataset(
        kept.frames, kept.labels, kept.ids, class_names=data.class_names[:count], name=data.name,
        simulated=data.simulated, content_key=sha256_json([kept.content_key, "classes", count]),
        saturated=data.saturated, description=f"{data.description}, first {count} classes",
    )  # fmt: skip


def free_data() -> None:
    """Forget what is loaded."""
    _load.cache_clear()


def data_facts(settings: dict[str, Any], tuning: bool) -> dict[str, Any]:
    """What a study's data are. Loads them: caches are built in one process. Tuning does not touch the test split."""
    facts = {}
    for split in ("train",) if tuning else ("train", "test"):
        data = whole_split(settings, split)
        facts[split] = {"data": repr(data), "samples": len(data), "content_key": data.content_key}
    return facts


def parts(cell: Cell) -> tuple[FrameDataset, FrameDataset]:
    """Training and test samples: the splits, or a fold of the training split.

    Where a study reports folds, those for tuning are cut inside the first ``held_folds`` of them, which are not
    reported: nothing is ever chosen on a sample, or trained for a choice on one, that a reported fold tests on.
    """
    train_set = whole_split(cell["data"], "train")
    if cell["fold"] == "test":
        return train_set, whole_split(cell["data"], "test")
    count, held = cell["data"]["folds"], cell["data"]["held_folds"]
    folds = stratified_folds(train_set.labels, count, seed=0)
    if cell["tuning"]:
        if held:
            train_set = train_set.subset(np.sort(np.concatenate([test_part for _, test_part in folds[:held]])))
        folds = stratified_folds(train_set.labels, count, seed=1)
    train_part, test_part = folds[cell["fold"]]
    return train_set.subset(train_part), train_set.subset(test_part)


def pair_measures(pairs: bool) -> dict[str, Any]:
    """Where classes 2 i and 2 i + 1 are a pair: how often the pair is right, and which of the true pair it is."""

    def shape(logits: Tensor, labels: Tensor) -> float:
        return (logits.argmax(1) // 2 == labels // 2).double().mean().item()

    def within_pair(logits: Tensor, labels: Tensor) -> float:
        own = logits.view(len(labels), -1, 2)[torch.arange(len(labels)), labels // 2]
        return (own.argmax(1) == labels % 2).double().mean().item()

    return {"shape": shape, "within_pair": within_pair} if pairs else {}


def product_file(folder: Path, cell: Cell) -> Path:
    """Where the product of a cell lies."""
    return folder / "products" / f"{sha256_json(cell)[:24]}.h5"


def run(folder: Path, cell: Cell) -> Cell:
    """Do what the cell's ``kind`` says. A loss that is not finite is its result, and does not end the others."""
    kinds = {"teachers": teachers, "product": product, "evaluate": evaluate, "full": full, "cost": cost}
    try:
        return kinds[cell["kind"]](folder, cell)
    except NonFiniteError as error:
        return {"failed": str(error)}


def teachers(folder: Path, cell: Cell) -> Cell:
    """Train the teachers of a fold into the cache, before several cells would each do it."""
    config = TeacherConfig.model_validate(cell["teachers"])
    return {"seconds": train_teachers(parts(cell)[0], config, seed=0, quiet=True, device=cell["device"]).seconds}


def pool_of(
    cell: Cell, train_set: FrameDataset, config: DistillConfig, method: CondensationMethod, **options: Any
) -> TeacherPool | None:
    """The teachers of a product; None where it needs none.

    A selection that has no other draw gets a network of its own for every seed, trained to the end, so that its sets
    differ, and costs what that took. Else the pool is the same for every seed: distilled sets differ by their own
    draws, as from one user's teachers.
    """
    if cell["method"] in OWN_TEACHER:
        alone = config.teachers.model_copy(update={"count": 1, "snapshots": (1.0,), "also": ()})
        return train_teachers(train_set, alone, seed=derive_seed(cell["seed"], "selection"), **options)
    if method.needs_teachers or config.init in ("herding", "k-centre"):
        return train_teachers(train_set, config.teachers, seed=0, **options)
    return None


def product(folder: Path, cell: Cell) -> Cell:
    """Make one product; an interrupted one goes on where its state was kept."""
    train_set, _ = parts(cell)
    config, method = DistillConfig.model_validate(cell["settings"]), create_method(cell["method"])
    options: dict[str, Any] = {"quiet": True, "device": cell["device"]}
    pool = pool_of(cell, train_set, config, method, **options)
    path = product_file(folder, cell)
    state = path.with_suffix(".state")
    made = method(
        train_set, config, teachers=pool, seed=cell["seed"], state_path=state, resume=state.is_file(), **options
    )
    write_product(path, made)
    state.unlink(missing_ok=True)
    return {
        "distillation_seconds": made.provenance.seconds,
        "teacher_seconds": made.provenance.teacher_seconds,
        "file_bytes": path.stat().st_size,
    }


def evaluate(folder: Path, cell: Cell) -> Cell:
    """Train fresh networks on a product, test them at their last step."""
    made = cell["product"]
    path = product_file(folder, made)
    if not path.is_file():
        return {"failed": "there is no product"}
    train_set, test_set = parts(made)
    config = EvaluationConfig.model_validate(cell["evaluation"])
    loaded = DistilledDataset.load(path)
    if loaded.provenance.source_content_key != train_set.content_key:
        raise CheckpointError(f"{path}: made from other data than the study's")
    result = evaluate_product(
        loaded, test_set, config=config, seed=made["seed"], path=path, quiet=True, device=made["device"],
        measures=pair_measures(cell["pairs"]), curve_points=cell["curve_points"],
    )  # fmt: skip
    return result.to_dict()


def full(folder: Path, cell: Cell) -> Cell:
    """The full-data reference: one network."""
    train_set, test_set = parts(cell)
    config = EvaluationConfig.model_validate(cell["evaluation"] | {"networks": 1})
    result = evaluate_full(
        train_set, test_set, config=config, training=cell["training"], seed=cell["seed"], quiet=True,
        device=cell["device"], measures=pair_measures(cell["pairs"]), curve_points=cell["curve_points"],
    )  # fmt: skip
    return result.to_dict()


def cost(folder: Path, cell: Cell) -> Cell:
    """Wall-clock and peak memory of teachers and distillation, nothing from a cache; in a process of its own."""
    torch.set_num_threads(cell["threads"])
    train_set = whole_split(cell["data"], "train")
    config, method = DistillConfig.model_validate(cell["settings"]), create_method(cell["method"])
    before = _peak_bytes(cell["device"])
    started = time.perf_counter()
    pool = train_teachers(train_set, config.teachers, seed=0, use_cache=False, quiet=True, device=cell["device"])
    trained, after_teachers = time.perf_counter(), _peak_bytes(cell["device"])
    made = method(train_set, config, teachers=pool, seed=cell["seed"], quiet=True, device=cell["device"])
    done = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "product.h5"
        write_product(path, made)
        file_bytes = path.stat().st_size
    return {
        "teacher_seconds": trained - started,
        "distillation_seconds": done - trained,
        "iterations": config.iterations,
        "peak_bytes_with_data": before,
        "peak_bytes_of_teachers": after_teachers,
        "peak_bytes": _peak_bytes(cell["device"]),
        "frame_bytes": made.num_bytes,
        "file_bytes": file_bytes,
        "train_frame_bytes": train_set.frames.numel(),
    }


def _peak_bytes(device: str) -> int:
    """Most memory so far: of this process, or on the device."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
