"""``snn prune``: train a spiking network that is N:M sparse from the start of its life to the end."""

from __future__ import annotations

import time
from typing import Annotated, Any

import torch
import typer

from snn_core.cli import common
from snn_core.pruning import METHODS, create_pruner
from snn_core.reports import measure_energy
from snn_core.sparsity import check_nm, load_compressed, save_compressed
from snn_core.training import evaluate_accuracy, predict_logits, save_checkpoint, train_classifier

DENSE_FILE, COMPRESSED_FILE = "model.safetensors", "compressed.safetensors"
METHOD_HELP = f"spikenm, or a comparison: {', '.join(METHODS[1:])} (magnitude has no blocks: nothing to compress)."


def prune(
    data: common.DataOption = None,
    config: common.ConfigOption = None,
    backbone: common.BackboneOption = None,
    backbone_options: common.BackboneOptionsOption = None,
    pattern: Annotated[str | None, typer.Option(help="N:M, at most N non-zeros in each block of M weights.")] = None,
    method: Annotated[str | None, typer.Option(help=METHOD_HELP)] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the training set.")] = None,
    time_steps: common.StepsOption = None,
    seed: common.SeedOption = None,
    assignments: common.SetOption = None,
    output: common.OutputOption = None,
    resume: common.ResumeOption = False,
    device: common.DeviceOption = "cpu",
    as_json: common.JsonOption = False,
) -> None:
    """Prune from scratch; writes a dense checkpoint with masks and a compressed model."""
    overrides = {
        "data.source": data, "model.name": backbone, "prune.pattern": pattern, "prune.method": method,
        "train.epochs": epochs, "data.T": time_steps, "seed": seed,
    }  # fmt: skip
    assignments = common.with_backbone_options(assignments, backbone_options)
    job = common.start_job(
        "prune", config=config, overrides=overrides, assignments=assignments, output=output, resume=resume,
        as_json=as_json, device=device,
    )  # fmt: skip
    common.check_backbone(job)
    train_set, test_set = common.load_data(job)
    model = common.make_model(job, train_set)
    pruner = create_pruner(job.config.prune.method, model, job.config.prune_config())
    result = train_classifier(
        model, train_set, job.config.train_config(), hooks=[pruner], output=job.output,
        resume=common.has_state(job), name="prune", quiet=job.quiet, device=device,
    )  # fmt: skip
    report: dict[str, Any] = {
        "data": common.describe(train_set, test_set),
        "method": job.config.prune.method,
        "pattern": str(pruner.pattern),
        "accuracy": evaluate_accuracy(model, test_set),
        "seconds": result.seconds,
        "layers": [_layer(model, item) for item in pruner.report()],
        "history": result.history,
    }
    model.to("cpu")
    masks = {name: mask.cpu() for name, mask in pruner.masks.items()}
    summary = {key: report[key] for key in ("data", "method", "pattern", "accuracy")}
    extra = {f"mask/{name}": mask for name, mask in masks.items()}
    save_checkpoint(job.output / DENSE_FILE, model, summary, extra=extra)
    report |= _compress(job, model, pruner.patterns, masks, summary, test_set)
    report["energy"] = measure_energy(model, test_set, patterns=pruner.patterns).as_dict()
    job.finish(report, _table(job, report))


def _layer(model: torch.nn.Module, item: Any) -> dict[str, Any]:
    weight = model.get_parameter(f"{item.name}.weight")
    return {
        "name": item.name,
        "kind": item.kind,
        "shape": list(weight.shape),
        "pattern": item.pattern,
        "state": item.state,
        "reason": item.reason,
        "weights": weight.numel(),
        "kept": int((weight != 0).sum()),
        "blocks_over_pattern": check_nm(weight, item.pattern) if item.pattern else 0,
    }


def _compress(
    job: common.Job, model: torch.nn.Module, patterns: dict[str, str], masks: dict[str, torch.Tensor],
    summary: dict[str, Any], test_set: Any,
) -> dict[str, Any]:  # fmt: skip
    """Write the compressed model, read it back, and compare every logit of the test set.

    Without patterns (unstructured masks) there is nothing to compress: only the dense file is written.
    """
    dense_bytes = (job.output / DENSE_FILE).stat().st_size
    if not patterns:
        return {"dense_bytes": dense_bytes, "compressed_bytes": None}
    path = job.output / COMPRESSED_FILE
    save_compressed(path, model, patterns, masks, summary)
    started = time.perf_counter()
    reloaded = load_compressed(path)
    seconds = time.perf_counter() - started
    identical = torch.equal(predict_logits(model, test_set), predict_logits(reloaded, test_set))
    return {
        "reloaded_logits_identical": identical,
        "reload_seconds": seconds,
        "dense_bytes": dense_bytes,
        "compressed_bytes": path.stat().st_size,
    }


def _energies(energy: dict[str, Any]) -> str:
    return f"{energy['energy_microjoule']:.2f} / {energy['dense_energy_microjoule']:.2f} uJ (45 nm estimate)"


def _table(job: common.Job, report: dict[str, Any]) -> Any:
    pruned = [layer for layer in report["layers"] if layer["state"] == "pruned"]
    weights, kept = sum(layer["weights"] for layer in pruned), sum(layer["kept"] for layer in pruned)
    masks = f"{len(pruned)}: {kept:,} of {weights:,} weights kept"
    files = [["compressed file", f"none: no N:M pattern (masks are in {job.output / DENSE_FILE})"]]
    if report["compressed_bytes"] is not None:
        masks += f", {sum(layer['blocks_over_pattern'] for layer in pruned)} blocks over the pattern"
        files = [
            ["compressed file", f"{report['compressed_bytes']:,} bytes ({job.output / COMPRESSED_FILE})"],
            ["reloaded logits", "bit-identical" if report["reloaded_logits_identical"] else "DIFFERENT"],
        ]
    rows = [
        ["data", report["data"]["name"]],
        ["method", f"{report['method']} {report['pattern']}"],
        ["test accuracy", f"{report['accuracy']:.4f}"],
        ["pruned layers", masks],
        ["SynOps a sample", f"{report['energy']['synops']:,.0f}"],
        ["energy a sample, pruned / dense network", _energies(report["energy"])],
        *[[f"dense: {layer['name']}", layer["reason"]] for layer in report["layers"] if layer["state"] == "dense"],
        *files,
        ["training", f"{report['seconds']:.1f} s"],
    ]
    return common.make_table("Pruned spiking network", ["", "value"], rows)
