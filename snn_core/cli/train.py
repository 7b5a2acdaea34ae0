"""``snn train``: train a dense spiking network."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from snn_core.cli import common
from snn_core.reports import measure_energy
from snn_core.training import evaluate_accuracy, save_checkpoint, train_classifier

MODEL_FILE = "model.safetensors"


def train(
    data: common.DataOption = None,
    config: common.ConfigOption = None,
    backbone: common.BackboneOption = None,
    backbone_options: common.BackboneOptionsOption = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the training set.")] = None,
    time_steps: common.StepsOption = None,
    seed: common.SeedOption = None,
    assignments: common.SetOption = None,
    output: common.OutputOption = None,
    resume: common.ResumeOption = False,
    device: common.DeviceOption = "cpu",
    as_json: common.JsonOption = False,
) -> None:
    """Train a dense spiking classifier on event frames and test it."""
    overrides = {
        "data.source": data, "model.name": backbone, "train.epochs": epochs, "data.T": time_steps, "seed": seed,
    }  # fmt: skip
    assignments = common.with_backbone_options(assignments, backbone_options)
    job = common.start_job(
        "train", config=config, overrides=overrides, assignments=assignments, output=output, resume=resume,
        as_json=as_json, device=device,
    )  # fmt: skip
    common.check_backbone(job)
    train_set, test_set = common.load_data(job)
    model = common.make_model(job, train_set)
    result = train_classifier(
        model, train_set, job.config.train_config(), output=job.output, resume=common.has_state(job),
        quiet=job.quiet, device=device,
    )  # fmt: skip
    accuracy = evaluate_accuracy(model, test_set)
    report: dict[str, Any] = {
        "data": common.describe(train_set, test_set),
        "accuracy": accuracy,
        "seconds": result.seconds,
        "history": result.history,
    }
    save_checkpoint(job.output / MODEL_FILE, model, {key: report[key] for key in ("data", "accuracy")})
    report["dense_bytes"] = (job.output / MODEL_FILE).stat().st_size
    report["energy"] = measure_energy(model, test_set).as_dict()
    rows = [
        ["data", str(train_set.name)],
        ["samples, training / test", f"{len(train_set)} / {len(test_set)}"],
        ["test accuracy", f"{accuracy:.4f}"],
        ["training", f"{result.seconds:.1f} s"],
        ["model", str(job.output / MODEL_FILE)],
    ]
    job.finish(report, common.make_table("Dense spiking network", ["", "value"], rows))
