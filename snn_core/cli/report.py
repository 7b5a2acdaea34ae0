"""``snn report``: a page on a pruned or dense run, or on several beside each other."""

from __future__ import annotations

import json
import webbrowser
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import Tensor

from snn_core.cli import common
from snn_core.cli.config import build_config
from snn_core.datasets import load_frames, open_source
from snn_core.errors import SnnCoreError
from snn_core.files import atomic_path
from snn_core.reports.comparison import compare_runs
from snn_core.reports.latency import BATCH_SIZES, run_latency
from snn_core.reports.page import render_comparison, render_run
from snn_core.reports.run_folder import RunFolder, read_run
from snn_core.reports.run_report import report_run

#: Roughly, for each form of the network and each batch size.
LATENCY_SECONDS = 0.5
PAGE_FILE, COMPARISON_FILE = "report.html", "comparison.html"


def report(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN_FOLDER...", help="Of snn prune or snn train.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Page to write; default report.html in the run folder.")
    ] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Show the page in a browser.")] = False,
    latency: Annotated[
        bool, typer.Option("--latency/--no-latency", help="Time the dense and the compressed network here, now.")
    ] = True,
    as_json: common.JsonOption = False,
) -> None:
    """Make one self-contained HTML page from a run folder; from several, a comparison.

    With --json the same is printed as data, and a page is written only where --output says so. Latency is measured for
    a single run, on frames of its test set where the data are at hand.
    """
    runs = [read_run(folder) for folder in folders]
    single = len(runs) == 1
    reports = [_report(run, timed=latency and single) for run in runs]
    data = reports[0] if single else compare_runs(reports)
    target = output
    if target is None and not as_json:
        target = folders[0] / PAGE_FILE if single else folders[0].resolve().parent / COMPARISON_FILE
    if target is not None:
        text = render_run(reports[0], runs[0]) if single else render_comparison(data)
        with atomic_path(target) as temporary:
            temporary.write_text(text, encoding="utf-8")
        common.note(f"snn: page written to {target} ({len(text.encode()):,} bytes)")
    if as_json:
        print(json.dumps(data, indent=2, sort_keys=True, allow_nan=False))
    if open_page and target is not None and not webbrowser.open(target.resolve().as_uri()):
        common.note("snn: no browser could be started")


def _report(run: RunFolder, timed: bool) -> dict[str, Any]:
    latency, why_not = None, ""
    if timed and run.command == "prune" and run.finished:
        latency, why_not = run_latency(run, _test_frames(run), seconds=LATENCY_SECONDS)
    if why_not:
        run.notes.append(why_not)
    return report_run(run, latency)


def _test_frames(run: RunFolder) -> Tensor | None:
    """A few recordings of the test set ``[T, B, C, H, W]``; None where the data are not at hand."""
    try:
        data = build_config(base={"data": run.config.get("data", {})}).data
        seed = run.config.get("seed", 0) if data.source == "digits-dvs" else 0
        named: dict[str, Any] = {} if data.split_name is None else {"split_name": data.split_name}
        source = open_source(data.source, seed=seed, root=data.root, **named)
        count = min(max(BATCH_SIZES), data.limit or max(BATCH_SIZES))
        frames = load_frames(
            source, "test", T=data.T, by=data.by, time_window=data.time_window, seed=seed, limit=count, quiet=True,
            cache_dir=data.cache_dir,
        ).frames  # fmt: skip
    except SnnCoreError:
        return None
    return frames.transpose(0, 1)
