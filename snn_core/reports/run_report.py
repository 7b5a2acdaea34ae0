"""A run as data: everything that the page of ``snn report`` shows, as JSON values."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from snn_core.reports.energy import AC_PICOJOULE, MAC_PICOJOULE
from snn_core.reports.run_folder import COMPRESSED_FILE, MODEL_FILE, RunFolder, number, records, section
from snn_core.sparsity import NMPattern, check_nm, compressed_nbytes, mask_statistics

FORMAT, VERSION = "snn_core.report", 1
ENERGY_SOURCE = (
    "M. Horowitz, Computing's energy problem (and what we can do about it), ISSCC 2014, pages 10-14, "
    "doi:10.1109/ISSCC.2014.6757323"
)
DATA_KEYS = ("name", "simulated", "train_samples", "test_samples", "T", "train_key", "test_key")
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def report_run(run: RunFolder, latency: dict[str, Any] | None = None) -> dict[str, Any]:
    """Everything about one run, from its folder; figures that are not known are None.

    Args:
        run: as :func:`snn_core.reports.run_folder.read_run` gives it.
        latency: of :func:`snn_core.reports.latency.measure_latency`, where it was measured.

    Returns:
        JSON values without NaN or infinities. ``layers`` has an entry for each Linear, Conv1d and Conv2d: bytes of its
        weight (16- and 32-bit values, dense and compressed), SynOps a sample over all time steps (``synops_dense``:
        caused by the same spikes without pruning), mask statistics, quantiles of the kept magnitudes.
    """
    layers = _layers(run)
    unknown = dict.fromkeys(DATA_KEYS) | {"name": section(run.config, "data").get("source")}
    prune = section(run.config, "prune")
    pruning = run.command == "prune"
    report = {
        "format": FORMAT,
        "report_version": VERSION,
        "folder": str(run.path),
        "name": run.name,
        "command": run.command,
        "finished": run.finished,
        "data": unknown | section(run.result, "data"),
        "method": (run.result.get("method") or prune.get("method") or "spikenm") if pruning else "dense",
        "pattern": (run.result.get("pattern") or prune.get("pattern") or "2:4") if pruning else None,
        "seed": run.result.get("seed", run.config.get("seed", 0)),
        "network": section(run.config, "model"),
        "date": run.result.get("date"),
        "device": run.result.get("device"),
        "version": run.result.get("version"),
        "machine": section(run.result, "machine"),
        "seconds": number(run.result.get("seconds")),
        "config": {key: run.config[key] for key in ("seed", "data", "model", "train", "prune") if _belongs(key, run)},
        "progress": _progress(run),
        "accuracy": number(run.result.get("accuracy")),
        "history": run.history,
        "layers": layers,
        "totals": _totals(run, layers),
        "energy": _energy(run, layers),
        "latency": latency,
        "files": run.files,
        "reloaded_logits_identical": run.result.get("reloaded_logits_identical"),
        "notes": [*run.notes, *_non_finite(layers)],
    }
    return plain(report)


def plain(value: Any) -> Any:
    """The same with None for NaN and infinities, which are no JSON."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def _belongs(key: str, run: RunFolder) -> bool:
    return key in run.config and (key != "prune" or run.command == "prune")


def _progress(run: RunFolder) -> dict[str, Any] | None:
    """Where an interrupted run stands."""
    if run.finished:
        return None
    train = section(run.config, "train")
    epochs, batch = number(train.get("epochs")), number(train.get("batch_size"))
    total = None
    if epochs and batch and run.samples:
        total = int(epochs) * math.ceil(run.samples / int(batch))
    return {"steps_done": run.steps_done, "total_steps": total, "epochs_done": len(run.history), "epochs": epochs}


def _layers(run: RunFolder) -> list[dict[str, Any]]:
    """In the order in which the network calls them, as far as that is known."""
    recorded = {item["name"]: item for item in records(run.result.get("layers")) if isinstance(item.get("name"), str)}
    energies = {
        item["name"]: item
        for item in records(section(run.result, "energy").get("layers"))
        if isinstance(item.get("name"), str)
    }
    rates = section(run.result, "energy", "firing_rates")
    names = [*energies, *(name for name in recorded if name not in energies)]
    if not names:
        names = list(run.weights)
    return [_layer(name, recorded.get(name, {}), energies.get(name, {}), rates, run) for name in names]


def _layer(
    name: str, recorded: dict[str, Any], energy: dict[str, Any], rates: dict[str, Any], run: RunFolder
) -> dict[str, Any]:
    weight, mask, pattern = run.weights.get(name), run.masks.get(name), run.patterns.get(name)
    shape = list(weight.shape) if weight is not None else recorded.get("shape")
    size = math.prod(shape) if shape else number(recorded.get("weights"))
    pruned = recorded.get("state") == "pruned" or mask is not None
    kept = int(torch.count_nonzero(weight)) if weight is not None else number(recorded.get("kept"))
    over = number(recorded.get("blocks_over_pattern"))
    if weight is not None and pattern is not None and NMPattern.parse(pattern).divides(weight):
        over = check_nm(weight, pattern)
    synops, macs = number(energy.get("acs")), number(energy.get("macs"))
    dense_macs, binary = number(energy.get("dense_macs")), energy.get("binary_input")
    input_rate = number(energy.get("input_rate"))
    events = None if dense_macs is None or input_rate is None else dense_macs * input_rate
    neuron = energy.get("neuron")
    return {
        "name": name,
        "kind": energy.get("kind") or recorded.get("kind"),
        "shape": shape,
        "state": "pruned" if pruned else "dense",
        "reason": recorded.get("reason") or "",
        "pattern": pattern if pruned else None,
        "weights": size,
        "kept": kept,
        "kept_fraction": kept / size if kept is not None and size else None,
        "blocks_over_pattern": over if pruned else None,
        "mask": mask_statistics(mask, pattern).as_dict() if mask is not None and pattern is not None else None,
        "neuron": neuron,
        "firing_rate": number(rates.get(neuron)) if isinstance(neuron, str) else None,
        "input_rate": input_rate,
        "binary_input": binary,
        "synops": synops,
        "synops_dense": events if binary else (None if events is None else 0.0),
        "macs": macs,
        "macs_dense": dense_macs if binary is False else (None if dense_macs is None else 0.0),
        "dense_macs": dense_macs,
        "bytes": _bytes(shape, pattern if pruned else None),
        "magnitude": _magnitude(weight, mask),
    }


def _bytes(shape: list[int] | None, pattern: str | None) -> dict[str, int | None]:
    """Of the weight: dense and compressed, with values of 16 and of 32 bits."""
    found: dict[str, int | None] = dict.fromkeys(("dense_32", "dense_16", "compressed_32", "compressed_16"))
    if not shape:
        return found
    for bits in (32, 16):
        found[f"dense_{bits}"] = math.prod(shape) * bits // 8
        if pattern is not None:
            found[f"compressed_{bits}"] = compressed_nbytes(tuple(shape), pattern, bits // 8)
    return found


def kept_magnitudes(weight: Tensor, mask: Tensor | None) -> Tensor:
    """Finite ``|w|`` of the kept weights, 1-D; without a mask of those that are not zero."""
    magnitude = weight.abs()[weight != 0 if mask is None else mask]
    return magnitude[torch.isfinite(magnitude)]


def _magnitude(weight: Tensor | None, mask: Tensor | None) -> dict[str, Any] | None:
    """Mean and quantiles of the kept magnitudes, and how many weights are not finite."""
    if weight is None:
        return None
    kept = kept_magnitudes(weight, mask)
    bad = int((~torch.isfinite(weight)).sum())
    if kept.numel() == 0:
        return {"count": 0, "mean": None, "quantiles": None, "non_finite": bad}
    ordered = kept.sort().values
    # torch.quantile refuses more than 16 million values; the nearest rank does for a table.
    ranks = [round(level * (len(ordered) - 1)) for level in QUANTILES]
    quantiles = {f"{level:g}": float(ordered[rank]) for level, rank in zip(QUANTILES, ranks, strict=True)}
    return {"count": len(ordered), "mean": float(kept.double().mean()), "quantiles": quantiles, "non_finite": bad}


def _non_finite(layers: list[dict[str, Any]]) -> list[str]:
    bad = {layer["name"]: layer["magnitude"]["non_finite"] for layer in layers if layer["magnitude"]}
    return [
        f"Layer {name} has {count} weights that are NaN or infinite; they are left out of its figures."
        for name, count in bad.items()
        if count
    ]


def _sum(layers: list[dict[str, Any]], key: str) -> float | int | None:
    values = [layer[key] for layer in layers]
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


def _totals(run: RunFolder, layers: list[dict[str, Any]]) -> dict[str, Any]:
    """Over all layers, and over the pruned ones; None where a part is not known."""
    pruned = [layer for layer in layers if layer["state"] == "pruned"]
    weights, kept = _sum(pruned, "weights"), _sum(pruned, "kept")
    everything, used = _sum(layers, "weights"), _sum(layers, "kept")
    return {
        "layers": len(layers),
        "pruned_layers": len(pruned),
        "weights": everything,
        "kept": used,
        "pruned_weights": weights,
        "pruned_kept": kept,
        "pruned_kept_fraction": kept / weights if weights and kept is not None else None,
        "blocks_over_pattern": _sum(pruned, "blocks_over_pattern"),
        "synops": _sum([*layers, *_products(run)], "synops"),
        "synops_dense": _sum([*layers, *_products(run)], "synops_dense"),
        "bytes_memory_dense": number(section(run.result, "energy").get("bytes_dense")),
        "bytes_memory_compressed": number(section(run.result, "energy").get("bytes_compressed")),
        "bytes_file_dense": run.files.get(MODEL_FILE),
        "bytes_file_compressed": run.files.get(COMPRESSED_FILE),
    }


def _products(run: RunFolder) -> list[dict[str, Any]]:
    """What attention adds to the sums over layers: it has no weights that pruning could take away."""
    found = []
    for item in records(section(run.result, "energy").get("products")):
        acs, macs, dense_macs = (number(item.get(key)) for key in ("acs", "macs", "dense_macs"))
        found.append({"synops": acs, "synops_dense": acs, "macs": macs, "macs_dense": macs, "dense_macs": dense_macs})
    return found


def _energy(run: RunFolder, layers: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Estimates in microjoule a sample: as trained, with the same spikes but no pruning, and without spikes."""
    parts = [*layers, *_products(run)]
    synops, macs = _sum(parts, "synops"), _sum(parts, "macs")
    events, dense_macs, all_macs = (_sum(parts, key) for key in ("synops_dense", "macs_dense", "dense_macs"))
    if None in (synops, macs, events, dense_macs, all_macs):
        return None
    assert synops is not None
    assert macs is not None
    assert events is not None
    assert dense_macs is not None
    assert all_macs is not None
    return {
        "estimate": "arithmetic alone, 32-bit floating point in 45 nm; no memory traffic, neurons or norms",
        "source": ENERGY_SOURCE,
        "picojoule_ac": AC_PICOJOULE,
        "picojoule_mac": MAC_PICOJOULE,
        "samples": section(run.result, "energy").get("samples"),
        "microjoule": (AC_PICOJOULE * synops + MAC_PICOJOULE * macs) * 1e-6,
        "microjoule_unpruned": (AC_PICOJOULE * events + MAC_PICOJOULE * dense_macs) * 1e-6,
        "microjoule_without_spikes": MAC_PICOJOULE * all_macs * 1e-6,
    }
