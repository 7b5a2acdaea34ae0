"""``snn data``: the cache of frames: build, verify, list, clear; and which data sets there are by name."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from snn_core.cli import common, data_sets
from snn_core.errors import ArgumentError, DataError

app = typer.Typer(
    name="data",
    help="Data sets by name; frames on disk: build, verify, list and clear their cache.",
    no_args_is_help=True,
)

app.command()(data_sets.sets)

CacheOption = Annotated[
    Path | None,
    typer.Option("--cache-dir", help="Folder of the cache; default $SNN_CACHE, else snn_core in the user's cache."),
]
FilesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[FILE]...", help="Paths, or 8 or more digits of content keys, as 'snn data list' shows."),
]


@app.command()
def build(
    source: Annotated[str, typer.Argument(help="A data set's name, or a folder or zip in N-MNIST's layout.")],
    split: Annotated[list[str] | None, typer.Option(help="train, test or all; may be repeated [train, test].")] = None,
    time_steps: Annotated[int, typer.Option("--time-steps", "-T", min=1, help="Frames a recording.")] = 3,
    by: Annotated[str, typer.Option(help="time, count or window.")] = "time",
    time_window: Annotated[int | None, typer.Option(min=1, help="Microseconds a frame, for --by window.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="A stratified part of so many recordings.")] = None,
    root: Annotated[Path | None, typer.Option(help="Where a data set by name lies; default $SNN_DATA.")] = None,
    split_name: Annotated[str | None, typer.Option(help="Which of a data set's published splits.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Download what is not there, where tonic can.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of a simulated sensor, and of the draw of --limit.")] = 0,
    cache_dir: CacheOption = None,
    as_json: common.JsonOption = False,
) -> None:
    """Make frames and keep them on disk. What is there is verified and kept; an interrupted build is gone on with."""
    from snn_core.datasets import open_frames, open_source

    options = {} if split_name is None else {"split_name": split_name}
    opened = open_source(source, seed=seed, download=download, root=root, **options)
    rule: Any = by  # open_frames says what is allowed
    rows: list[dict[str, Any]] = []
    for part in split or ["train", "test"]:
        start = time.perf_counter()
        data = open_frames(
            opened, part, T=time_steps, by=rule, time_window=time_window, limit=limit, seed=seed, cache_dir=cache_dir,
            quiet=as_json,
        )  # fmt: skip
        size = data.path.stat().st_size
        facts = {"split": part, "samples": len(data), "bytes": size, "seconds": round(time.perf_counter() - start, 2)}
        rows.append(facts | {"path": str(data.path), "content_key": data.content_key, "saturated": data.saturated})
    table = common.make_table(
        f"{opened.name}, T={time_steps}", ["split", "samples", "MB", "seconds", "file"],
        [[row["split"], f"{row['samples']:,}", _mb(row["bytes"]), f"{row['seconds']:.2f}", Path(row["path"]).name]
         for row in rows],
    )  # fmt: skip
    common.show({"source": opened.name, "simulated": opened.simulated, "files": rows}, table, as_json)


@app.command(name="list")
def list_files(cache_dir: CacheOption = None, as_json: common.JsonOption = False) -> None:
    """What is in the cache, and how big it is."""
    from snn_core.datasets.cache_files import list_cache

    files = list_cache(cache_dir)
    total = sum(file.bytes for file in files)
    result = {"files": [file.as_dict() for file in files], "bytes": total}
    common.show(result, _table(f"{len(files)} files, {_mb(total)} MB", files), as_json)


@app.command()
def verify(files: FilesArgument = None, cache_dir: CacheOption = None, as_json: common.JsonOption = False) -> None:
    """Read every file of frames whole (or those named) and compare it with its checksums. Exit code 3 for damage."""
    from snn_core.datasets.cache_files import list_cache, select_files, verify_cache

    found = list_cache(cache_dir)
    if files:
        found = select_files(found, files)
    checked = [file for file in found if file.state in ("frames", "damaged")]
    wrong = verify_cache(checked, quiet=as_json)
    rows = [[file.path.name, wrong.get(file.path, "whole")] for file in checked]
    result = {"verified": len(checked), "damaged": {str(path): reason for path, reason in wrong.items()}}
    common.show(result, common.make_table(f"{len(checked)} files of frames", ["file", "found"], rows), as_json)
    if wrong:
        raise DataError(
            f"{len(wrong)} of {len(checked)} files are damaged: {', '.join(path.name for path in wrong)}; they are "
            "built again when they are asked for, and 'snn data clear' removes them"
        )


@app.command()
def clear(
    files: FilesArgument = None,
    name: Annotated[str | None, typer.Option(help="Frames of the data set of this name.")] = None,
    older_than: Annotated[float | None, typer.Option(min=0, metavar="DAYS", help="Built before so many days.")] = None,
    useless: Annotated[
        bool, typer.Option("--useless", help="Unfinished builds, damaged files, and those of other versions.")
    ] = False,
    everything: Annotated[bool, typer.Option("--all", help="All files of the cache.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    cache_dir: CacheOption = None,
    as_json: common.JsonOption = False,
) -> None:
    """Remove files of the cache: those named, and of these only what the options choose. What is being built stays."""
    from snn_core.datasets.cache_files import clear_cache, list_cache, select_files

    if not (files or name is not None or older_than is not None or useless or everything):
        raise ArgumentError("nothing is chosen: name files, or give --name, --older-than, --useless or --all")
    if everything and (files or name is not None or older_than is not None or useless):
        raise ArgumentError("--all goes with no other choice")
    found = list_cache(cache_dir)
    chosen = select_files(found, files) if files else found
    if name is not None:
        chosen = [file for file in chosen if file.summary.get("name") == name]
    if older_than is not None:
        chosen = [file for file in chosen if file.modified < time.time() - older_than * 86_400]
    if useless:
        chosen = [file for file in chosen if file.state != "frames"]
    removed, kept = (chosen, {}) if dry_run else clear_cache(chosen)
    total = sum(file.bytes for file in removed)
    title = f"{'would remove' if dry_run else 'removed'} {len(removed)} files, {_mb(total)} MB"
    result = {"dry_run": dry_run, "removed": [str(file.path) for file in removed], "bytes": total}
    common.show(result | {"kept": {str(path): why for path, why in kept.items()}}, _table(title, removed), as_json)
    for path, why in kept.items():
        common.note(f"kept {path.name}: {why}")


def _table(title: str, files: list[Any]) -> Any:
    rows = []
    for file in files:
        facts = file.summary
        limit = f"limit {facts['limit']}" if facts.get("limit") else ""
        what = [facts.get("name", ""), facts.get("split", ""), facts.get("binning", ""), limit]
        state = file.state if file.state != "frames" else ""
        shape = "x".join(str(number) for number in facts.get("shape", []))
        when = time.strftime("%Y-%m-%d", time.localtime(file.modified))
        rows.append([file.key[:12], ", ".join(part for part in [state, *what] if part), shape, _mb(file.bytes), when])
    return common.make_table(title, ["content key", "frames of", "shape", "MB", "built"], rows)


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f}"
