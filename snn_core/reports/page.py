"""HTML pages of runs: one file each, nothing from the network, no script that runs; for light, dark and print."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from functools import cache
from typing import Any

import snn_core
from snn_core.reports import comparison_figures, figures, templates
from snn_core.reports.run_folder import RunFolder
from snn_core.reports.svg import to_svg


def render_run(report: dict[str, Any], run: RunFolder) -> str:
    """The page of one run.

    Args:
        report: of :func:`snn_core.reports.run_report.report_run`.
        run: the folder that it is of; its weights and masks are drawn.

    Raises:
        ArgumentError: matplotlib is not installed.
    """
    energy = report["energy"]
    return _render(
        "run",
        title=f"{report['name']}: {_headline(report)}",
        data=report,
        run=report,
        headline=_headline(report),
        tiles=_tiles(report),
        run_facts=_run_facts(report),
        config=json.dumps(report["config"], indent=2, ensure_ascii=False),
        figures=_figures(report, run),
        pictured=len(figures.pictured_layers(run)),
        masked=len(run.masks),
        histogram_note=_histogram_note(report),
        energies=_energies(energy),
        largest_energy=max([value for _, value in _energies(energy)], default=0.0) or 1.0,
        latency_note=_latency_note(report["latency"]),
        byte_facts=_byte_facts(report),
    )


def render_comparison(comparison: dict[str, Any]) -> str:
    """The page of several runs, from :func:`snn_core.reports.comparison.compare_runs`."""
    accuracy, curves = comparison_figures.accuracies(comparison), comparison_figures.curves(comparison)
    names = dict.fromkeys(group["data"] for group in comparison["groups"])
    return _render(
        "comparison",
        title=f"{len(comparison['runs'])} runs compared",
        data=comparison,
        comparison=comparison,
        headline="; ".join(names),
        figure_accuracy=_embed(accuracy, "accuracy", "Test accuracy of every run, by group"),
        figure_curves=_embed(curves, "curves", "Loss and accuracy of every run while training"),
    )


def _render(template: str, *, data: dict[str, Any], **values: Any) -> str:
    from markupsafe import Markup

    # Inside a script element only "<" could end it.
    text = json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    return (
        _environment()
        .get_template(template)
        .render(
            values
            | {
                "style": Markup(templates.STYLE),
                "data": Markup(text),
                "version": snn_core.__version__,
                "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            }
        )
    )


@cache
def _environment() -> Any:
    from jinja2 import DictLoader, Environment, StrictUndefined

    texts = {
        "page": templates.PAGE,
        "macros": templates.MACROS,
        "run": templates.RUN,
        "comparison": templates.COMPARISON,
    }
    environment = Environment(
        loader=DictLoader(texts), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "count": count, "si": si, "percent": percent, "points": points, "significant": significant,
        "data_name": data_name,
        "shape": lambda shape: " x ".join(str(side) for side in shape) if shape else "-",
        "shares": lambda values: " ".join(f"{value:.2f}" for value in values),
    }  # fmt: skip
    return environment


# ---- numbers as text -----------------------------------------------------------------------------------------------


def count(value: float | None) -> str:
    """``12,345``; a dash for None, as in all of these."""
    return "-" if value is None else f"{value:,.0f}"


def si(value: float | None) -> str:
    """Three digits with k, M, G, T."""
    if value is None:
        return "-"
    power = 0 if abs(value) < 1000 else min(4, int(math.log10(abs(value)) // 3))
    scaled = value / 1000**power
    if abs(scaled) >= 999.5 and power < 4:
        power, scaled = power + 1, scaled / 1000
    digits = 0 if abs(scaled) >= 99.95 or (power == 0 and scaled == int(scaled)) else 1 if abs(scaled) >= 9.995 else 2
    return f"{scaled:.{digits}f}" + (f" {' kMGT'[power]}" if power else "")


def percent(value: float | None) -> str:
    """A fraction, in percent with one digit, or two below 1 %."""
    if value is None:
        return "-"
    return f"{100 * value:.{2 if 0 < value < 0.01 else 1}f} %"


def points(value: float | None, signed: bool = False) -> str:
    """A difference of fractions, in points."""
    return "-" if value is None else f"{100 * value:{'+' if signed else ''}.2f}"


def significant(value: float | None) -> str:
    """Four significant digits."""
    return "-" if value is None else f"{value:.4g}"


def data_name(name: str | None, simulated: bool | None) -> str:
    """The data set's name, which says that it is simulated."""
    text = str(name or "unknown data")
    return f"{text} (simulated)" if simulated and "simulated" not in text else text


# ---- what stands on a run's page -------------------------------------------------------------------------------------


def _headline(report: dict[str, Any]) -> str:
    how = {"dense": "dense", "spikenm": "SpikeNM"}.get(report["method"], report["method"])
    pattern = f" {report['pattern']}" if report["pattern"] else ""
    return f"{how}{pattern} on {data_name(report['data']['name'], report['data']['simulated'])}, seed {report['seed']}"


def _tiles(report: dict[str, Any]) -> list[tuple[str, str]]:
    totals, data, energy = report["totals"], report["data"], report["energy"]
    tiles = []
    if report["accuracy"] is not None:
        tiles.append((f"{100 * report['accuracy']:.2f} %", f"test accuracy, {count(data.get('test_samples'))} samples"))
    if report["progress"]:
        done, total = report["progress"]["steps_done"], report["progress"]["total_steps"]
        tiles.append((f"{count(done)} of {count(total)}", "training steps done"))
    if totals["pruned_layers"]:
        label = f"weights kept in {totals['pruned_layers']} pruned of {totals['layers']} layers"
        tiles.append((percent(totals["pruned_kept_fraction"]), label))
    if totals["synops"] is not None:
        tiles.append((si(totals["synops"]), f"SynOps a sample; {si(totals['synops_dense'])} without pruning"))
    if energy:
        tiles.append((f"{energy['microjoule']:.3g} µJ", "energy a sample, estimated (45 nm)"))
    if totals["bytes_file_compressed"]:
        label = f"bytes compressed; dense file {si(totals['bytes_file_dense'])}"
        tiles.append((si(totals["bytes_file_compressed"]), label))
    for batch in (report["latency"] or {"batches": []})["batches"][:1]:
        found = min(batch["contenders"], key=lambda contender: contender["median_ms"])
        tiles.append((f"{found['median_ms']:.3g} ms", f"{found['name']}, batch {batch['batch_size']}, measured here"))
    return tiles


def _run_facts(report: dict[str, Any]) -> list[tuple[str, str]]:
    data, network, machine = report["data"], report["network"], report["machine"]
    simulated = {True: "simulated recordings", False: "real recordings"}.get(data.get("simulated"), "not recorded")
    train, processor = report["config"].get("train") or {}, machine.get("processor")
    options = ", ".join(f"{key} = {value}" for key, value in (network.get("options") or {}).items())
    versions = ", ".join(f"{name} {value}" for name, value in (machine.get("versions") or {}).items())
    rows = [
        ("data set", data.get("name")),
        ("real or simulated", simulated),
        ("samples, training / test", f"{count(data.get('train_samples'))} / {count(data.get('test_samples'))}"),
        ("time steps T", data.get("T")),
        ("method", report["method"]),
        ("pattern", _patterns(report)),
        ("seed", report["seed"]),
        ("network", f"{network.get('name') or 'unknown'}{f' ({options})' if options else ''}"),
        ("epochs", train.get("epochs")),
        ("training", None if report["seconds"] is None else f"{report['seconds']:,.1f} s on {report['device']}"),
        ("finished", report["date"]),
        ("versions", versions or (report["version"] and f"snn_core {report['version']}")),
        ("machine", processor and f"{processor}, {machine.get('cores')} cores, threads: {machine.get('threads')}"),
        ("folder", report["folder"]),
    ]
    return [(name, str(value)) for name, value in rows if value is not None]


def _patterns(report: dict[str, Any]) -> str:
    """The run's pattern, and those of its layers where they differ."""
    if report["pattern"] is None:
        return "none: dense"
    found = dict.fromkeys(layer["pattern"] for layer in report["layers"] if layer["state"] == "pruned")
    if not found or list(found) == [report["pattern"]]:
        return str(report["pattern"])
    if list(found) == [None]:
        return f"as many weights as {report['pattern']} keeps, unstructured"
    return f"{report['pattern']}; by layer: {', '.join(str(pattern) for pattern in found)}"


def _figures(report: dict[str, Any], run: RunFolder) -> dict[str, Any]:
    names = [layer["name"] for layer in report["layers"]]
    masks = [
        (name, _embed(figures.mask_picture(run, name), f"mask-{index}", f"Mask and weights of layer {name}"))
        for index, name in enumerate(figures.pictured_layers(run))
    ]
    curves = figures.training_curves(report["history"], report["accuracy"])
    return {
        "curves": _embed(curves, "curves", "Training curves: figures of each epoch"),
        "layers": _embed(figures.layer_bars(report["layers"]), "layers", "Operations and firing rates of each layer"),
        "masks": masks,
        "weights": _embed(figures.weight_histograms(run, names), "weights", "Histograms of the kept magnitudes"),
    }


def _embed(figure: Any | None, name: str, label: str) -> Any:
    from markupsafe import Markup

    return "" if figure is None else Markup(to_svg(figure, name, label))


def _histogram_note(report: dict[str, Any]) -> str:
    with_weights = sum(layer["magnitude"] is not None for layer in report["layers"])
    shown = min(with_weights, figures.MAX_HISTOGRAMS)
    return f"{shown} of {with_weights} layers." if shown < with_weights else ""


def _energies(energy: dict[str, Any] | None) -> Sequence[tuple[str, float]]:
    if energy is None:
        return []
    return [
        ("as trained: spikes and pruning", energy["microjoule"]),
        ("the same spikes, no pruning", energy["microjoule_unpruned"]),
        ("no spikes, no pruning: a MAC for every connection and step", energy["microjoule_without_spikes"]),
    ]


def _latency_note(latency: dict[str, Any] | None) -> str:
    if latency is None:
        return ""
    machine, agreement = latency["machine"], latency["agreement"]
    worst = min((entry["same_class"] for entry in agreement.values()), default=1.0)
    largest = [entry["largest_difference"] for entry in agreement.values()]
    known = [value for value in largest if value is not None]
    load = latency["load_before"]
    busy = "" if load is None or load < 0.5 else f" (busy: {load:.1f} processes ran in the minute before)"
    difference = f"logits differ by at most {max(known):.2g}" if known else "logits are not finite"
    return (
        f"{machine['processor']}, {machine['cores']} cores, threads: {machine['threads']}{busy}, torch "
        f"{machine['versions']['torch']}; medians of calls in turn, T = {latency['T']}, inputs: {latency['frames']}; "
        f"float32; times as fast: the first row's time over this one's. Against the first row, {difference}, and "
        f"{100 * worst:.1f} % of the samples get the same class."
    )


def _byte_facts(report: dict[str, Any]) -> list[tuple[str, str]]:
    totals = report["totals"]
    rows = [
        ("in memory, dense / pruned layers compressed",
         f"{count(totals['bytes_memory_dense'])} / {count(totals['bytes_memory_compressed'])}"),
        *((f"file {name}", count(size)) for name, size in report["files"].items() if name.endswith(".safetensors")),
    ]  # fmt: skip
    if report["reloaded_logits_identical"] is not None:
        same = "bit-identical" if report["reloaded_logits_identical"] else "DIFFERENT"
        rows.append(("logits of the reloaded compressed model, on the test set", same))
    return rows
