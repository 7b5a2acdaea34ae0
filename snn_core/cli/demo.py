"""``snn demo``: both main jobs on the built-in simulated recordings, in a few minutes on two cores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from snn_core.backbones import create
from snn_core.cli import common
from snn_core.datasets import FrameDataset
from snn_core.distillation import (
    DistillConfig,
    EvaluationConfig,
    TeacherConfig,
    create_method,
    evaluate_product,
    train_teachers,
    write_product,
)
from snn_core.pruning import PruneConfig, create_pruner
from snn_core.sparsity import check_nm, load_compressed, save_compressed
from snn_core.training import TrainConfig, evaluate_accuracy, predict_logits, save_checkpoint, train_classifier

CHANNELS = [16, 32, 32]
TRAINING: dict[str, Any] = {"epochs": 20, "learning_rate": 6e-3}


def demo(
    seed: common.SeedOption = 0,
    limit: Annotated[int, typer.Option(min=100, help="Training recordings.")] = 600,
    output: common.OutputOption = None,
    as_json: common.JsonOption = False,
) -> None:
    """Prune to 2:4 and distil to one sample a class on simulated recordings; print what both are worth."""
    job = common.start_job(
        "demo", config=None, overrides={"seed": seed, "data.limit": limit}, assignments=None, output=output,
        resume=False, as_json=as_json, device="cpu", resumable=False,
    )  # fmt: skip
    train_set, test_set = common.load_data(job)
    common.note(f"data: {train_set}")
    report: dict[str, Any] = {"data": common.describe(train_set, test_set)}
    report["pruning"] = prune_part(job, train_set, test_set)
    report["distillation"] = distill_part(job, train_set, test_set)
    dense, pruned = report["pruning"]["dense"], report["pruning"]["spikenm"]
    pace, random = report["distillation"]["pace"], report["distillation"]["random"]

    def row(name: str, samples: int, entry: dict[str, Any], size: str) -> list[str]:
        return [name, str(samples), f"{entry['accuracy']:.3f}", f"{entry['seconds']:.1f} s", size]

    rows = [
        row("dense, all data", len(train_set), dense, f"model {dense['bytes']:,}"),
        row("SpikeNM 2:4 from scratch, all data", len(train_set), pruned, f"model {pruned['bytes']:,}"),
        row("dense, PACE 1 a class", pace["samples"], pace, f"data {pace['frame_bytes']:,}"),
        row("dense, random 1 a class", random["samples"], random, f"data {random['frame_bytes']:,}"),
    ]
    title = f"{train_set.name}: {len(test_set)} test recordings; all data: {train_set.frames.numel():,} bytes of frames"
    job.finish(report, common.make_table(title, ["network", "trained on", "accuracy", "training", "bytes"], rows))


def prune_part(job: common.Job, train_set: FrameDataset, test_set: FrameDataset) -> dict[str, Any]:
    """A dense network and one pruned to 2:4 from scratch, with the same seed and order of data."""
    results: dict[str, Any] = {}
    for method in ("dense", "spikenm"):
        model = _network(job, train_set)
        pruners = [create_pruner("spikenm", model, PruneConfig(seed=job.config.seed))] if method == "spikenm" else []
        training = TrainConfig(seed=job.config.seed, **TRAINING)
        result = train_classifier(model, train_set, training, hooks=pruners, name=method, quiet=job.quiet)
        path = job.output / f"{method}.safetensors"
        save_checkpoint(path, model)
        entry: dict[str, Any] = {"accuracy": evaluate_accuracy(model, test_set), "seconds": result.seconds}
        if pruners:
            path = job.output / "compressed.safetensors"
            save_compressed(path, model, pruners[0].patterns, pruners[0].masks)
            reloaded = load_compressed(path)
            entry["blocks_over_pattern"] = sum(
                check_nm(model.get_parameter(f"{name}.weight"), pattern)
                for name, pattern in pruners[0].patterns.items()
            )
            entry["reloaded_identical"] = torch.equal(
                predict_logits(model, test_set), predict_logits(reloaded, test_set)
            )
        results[method] = entry | {"bytes": path.stat().st_size, "file": str(path)}
    return results


def distill_part(job: common.Job, train_set: FrameDataset, test_set: FrameDataset) -> dict[str, Any]:
    """One sample a class, by PACE and at random, each worth what fresh networks learn from it."""
    teachers = TeacherConfig(count=2, training=TRAINING)
    settings = DistillConfig(ipc=1, teachers=teachers)
    pool = train_teachers(train_set, teachers, seed=job.config.seed, quiet=job.quiet)
    evaluation = EvaluationConfig()
    results: dict[str, Any] = {}
    for method in ("pace", "random"):
        product = create_method(method)(
            train_set, settings, teachers=pool, seed=job.config.seed, state_path=job.output / "state.safetensors",
            quiet=job.quiet,
        )  # fmt: skip
        path: Path = job.output / f"{method}.h5"
        write_product(path, product)
        result = evaluate_product(
            product, test_set, config=evaluation, seed=job.config.seed, path=path, quiet=job.quiet
        )
        results[method] = result.to_dict() | {
            "accuracy": result.mean,
            "seconds": result.train_seconds,
            "distillation_seconds": product.provenance.seconds,
        }
    return results


def _network(job: common.Job, train_set: FrameDataset) -> torch.nn.Module:
    options = common.model_options(job, train_set) | {"channels": CHANNELS}
    return create(job.config.model.name, seed=job.config.seed, **options)
