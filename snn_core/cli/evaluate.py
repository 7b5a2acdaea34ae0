"""``snn evaluate``: what a distilled set, a checkpoint or a compressed model is worth on real test data."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from snn_core.cli import common
from snn_core.cli.config import read_config_file
from snn_core.datasets import FrameDataset
from snn_core.distillation import (
    DistilledDataset,
    Evaluation,
    compare,
    create_method,
    evaluate_full,
    evaluate_product,
    record_measurement,
)
from snn_core.errors import ArgumentError, CheckpointError, InterruptedRunError, StorageError
from snn_core.files import write_json
from snn_core.sparsity import fuse, load_compressed, read_compressed
from snn_core.training import evaluate_accuracy, load_model
from snn_core.training.checkpoint import FORMAT as CHECKPOINT_FORMAT
from snn_core.training.checkpoint import read_tensors

FINISHED_FILE = "finished.json"


def evaluate(
    path: Annotated[Path, typer.Argument(help="product.h5, model.safetensors or compressed.safetensors.")],
    data: common.DataOption = None,
    config: common.ConfigOption = None,
    networks: Annotated[int | None, typer.Option(help="Fresh networks trained on a product.")] = None,
    compare_random: Annotated[
        bool, typer.Option("--compare-random", help="Also evaluate random selection at the same budget.")
    ] = False,
    compare_full: Annotated[
        bool, typer.Option("--compare-full", help="Also train on the full training set, for the fraction reached.")
    ] = False,
    time_steps: common.StepsOption = None,
    seed: common.SeedOption = None,
    assignments: common.SetOption = None,
    output: common.OutputOption = None,
    resume: common.ResumeOption = False,
    device: common.DeviceOption = "cpu",
    as_json: common.JsonOption = False,
) -> None:
    """Train fresh networks on a distilled product, or take a trained model as it is, and test on real data."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    overrides = {"data.source": data, "evaluate.networks": networks, "data.T": time_steps, "seed": seed}
    flags = {"--compare-random": compare_random, "--compare-full": compare_full}
    job = common.start_job(
        "evaluate", config=config, overrides=overrides, assignments=assignments, output=output, resume=resume,
        as_json=as_json, device=device, subject=[str(path), *(name for name, given in flags.items() if given)],
    )  # fmt: skip
    if path.suffix == ".safetensors":
        _evaluate_model(job, path)
    else:
        _evaluate_product(job, path, compare_random, compare_full)


def _evaluate_model(job: common.Job, path: Path) -> None:
    _, header = read_tensors(path)
    if header.get("format") == CHECKPOINT_FORMAT:
        model, metadata = load_model(path)
    else:
        model, metadata = _compressed_model(path), read_compressed(path).metadata
    job.config.data.T = _steps_of(job, metadata)
    _, test_set = common.load_data(job)
    started = time.perf_counter()
    accuracy = evaluate_accuracy(model.to(job.device), test_set)
    seconds = time.perf_counter() - started
    report: dict[str, Any] = {
        "model": str(path),
        "format": header.get("format"),
        "accuracy": accuracy,
        "test_samples": len(test_set),
        "T": test_set.T,
        "seconds": seconds,
        "file_bytes": path.stat().st_size,
    }
    rows = [
        ["model", f"{path} ({header.get('format')})"],
        ["test accuracy", f"{accuracy:.4f}"],
        ["samples, time steps", f"{len(test_set)}, {test_set.T}"],
        ["file", f"{path.stat().st_size:,} bytes"],
    ]
    job.finish(report, common.make_table("Model on real test data", ["", "value"], rows))


def _compressed_model(path: Path) -> nn.Module:
    """Compressed in memory, too, and fused where the model allows it; else the dense model."""
    try:
        return fuse(load_compressed(path, dense=False))
    except ArgumentError as error:  # a model of others, or of layers that have no compressed form
        common.note(f"snn: evaluated without fusing its layers: {error}")
        return load_compressed(path)


def _steps_of(job: common.Job, metadata: dict[str, Any]) -> int:
    """T that the model or product was made with, unless another one was asked for, which is then said."""
    asked = job.config.data.T if "T" in job.config.data.model_fields_set else None
    trained = metadata.get("data", {}).get("T")
    if asked is not None and trained is not None and asked != trained:
        common.note(f"snn: made with T = {trained}, tested with T = {asked}")
    return asked or trained or job.config.data.T


def _evaluate_product(job: common.Job, path: Path, compare_random: bool, compare_full: bool) -> None:
    product = DistilledDataset.load(path)
    job.config.data.T = _steps_of(job, {"data": {"T": product.T}})
    train_set, test_set = common.load_data(job)
    settings = job.config.evaluate
    options: dict[str, Any] = {"config": settings, "seed": job.config.seed, "quiet": job.quiet, "device": job.device}
    jobs: dict[str, Callable[[], Evaluation]] = {
        product.provenance.method: lambda: evaluate_product(product, test_set, path=path, **options)
    }
    if compare_random and product.provenance.method != "random":
        jobs["random"] = lambda: evaluate_product(_random(job, product, train_set), test_set, **options)
    if compare_full:
        training = job.config.train.model_dump(exclude_unset=True)
        jobs["full data"] = lambda: evaluate_full(train_set, test_set, training=training, **options)
    results = _run_each(job, jobs, product.content_key)
    report: dict[str, Any] = {
        "data": common.describe(train_set, test_set),
        "product": str(path),
        "results": {name: result.to_dict() for name, result in results.items()},
    }
    main_result = next(iter(results.values()))
    if "full data" in results:
        report["compared"] = compare(main_result, results["full data"])
    rows = [
        [name, str(result.samples), f"{result.mean:.4f} ± {result.std:.4f}", f"{result.train_seconds:.1f} s",
         f"{result.frame_bytes:,}"]
        for name, result in results.items()
    ]  # fmt: skip
    title = f"Fresh networks trained on each, tested on {len(test_set)} samples of {test_set.name}"
    job.finish(report, common.make_table(title, ["trained on", "samples", "accuracy", "training", "bytes"], rows))
    try:
        record_measurement(path, f"accuracy on {test_set.name}", {"mean": main_result.mean, "std": main_result.std})
    except StorageError as error:
        common.note(f"snn: the accuracy could not be noted in the product: {error}")


def _run_each(job: common.Job, jobs: dict[str, Callable[[], Evaluation]], product_key: str) -> dict[str, Evaluation]:
    """Evaluate one after the other; what is finished for this very product is kept on disk for ``--resume``."""
    file = job.output / FINISHED_FILE
    saved = read_config_file(file) if job.resume and file.is_file() else {}
    finished = saved["results"] if saved.get("product") == product_key else {}
    for name, evaluation in jobs.items():
        if name not in finished:
            try:
                finished[name] = evaluation().to_dict()
            except InterruptedRunError as error:
                done = ", ".join(finished) or "nothing"
                raise InterruptedRunError(f"evaluation interrupted in '{name}'; finished and kept: {done}") from error
            write_json(file, {"product": product_key, "results": finished})
    return {name: Evaluation(**finished[name]) for name in jobs}


def _random(job: common.Job, product: DistilledDataset, train_set: FrameDataset) -> DistilledDataset:
    settings = job.config.distill_config().model_copy(update={"ipc": product.provenance.ipc})
    return create_method("random")(train_set, settings, seed=job.config.seed)
