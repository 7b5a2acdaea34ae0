"""What the commands share: options, output folders, data, results on screen."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

import snn_core
from snn_core.backbones import create, list_backbones
from snn_core.backbones.registry import is_spiking
from snn_core.cli.config import CONFIG_FILE, RunConfig, build_config, read_config_file
from snn_core.datasets import FrameDataset, load_frames, open_source, stratified_folds
from snn_core.errors import ArgumentError, CheckpointError, ConfigError, StorageError
from snn_core.files import write_json
from snn_core.reports.machine import describe_machine
from snn_core.training.loop import STATE_FILE

RESULT_FILE = "result.json"

DataOption = Annotated[
    str | None,
    typer.Option("--data", help="A data set's name (digits-dvs, nmnist, ...), or a folder or zip in N-MNIST's layout."),
]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="TOML or YAML file with the run's configuration.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override any configuration key.")
]
BackboneOption = Annotated[
    str | None, typer.Option("--backbone", metavar="NAME", help="The network: conv-snn, spikformer, sdt, ...")
]
BackboneOptionsOption = Annotated[
    list[str] | None, typer.Option("--backbone-option", metavar="KEY=VALUE", help="Option of the backbone; repeatable.")
]
SeedOption = Annotated[int | None, typer.Option("--seed", min=0, help="Seed of everything random in the run.")]
OutputOption = Annotated[
    Path | None, typer.Option("--output", help="Folder for the results; default runs/<command>-<time>.")
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on with the interrupted run in --output.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
StepsOption = Annotated[int | None, typer.Option("--time-steps", "-T", min=1, help="Frames a recording.")]
DeviceOption = Annotated[str, typer.Option("--device", help="torch device, cpu or cuda.")]


@dataclass
class Job:
    """One invocation of a command: its configuration and where its results go."""

    command: str
    config: RunConfig
    output: Path
    resume: bool
    as_json: bool
    device: str
    #: What follows ``snn`` in the command that goes on with this run; empty where there is nothing to go on with.
    resume_arguments: str = ""

    @property
    def quiet(self) -> bool:
        """Whether progress bars are off."""
        return self.as_json

    def finish(self, result: dict[str, Any], table: Any) -> None:
        """Write ``result.json`` and show the result: JSON for machines, else ``table``."""
        settings = {"seed": self.config.seed, "config": self.config.model_dump(mode="json"), "device": self.device}
        start = {"command": self.command, "version": snn_core.__version__, "output": str(self.output)}
        where = {"date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "machine": describe_machine()}
        result = start | where | settings | result
        write_json(self.output / RESULT_FILE, result)
        show(result, table, self.as_json)


#: The job of this process, for the message after an interrupt.
current_job: Job | None = None


def show(result: dict[str, Any], table: Any, as_json: bool) -> None:
    """Print ``result`` as JSON, or ``table`` with rich."""
    if as_json:
        print(json.dumps(result, indent=2, sort_keys=True))
        return
    from rich.console import Console

    Console().print(table)


def start_job(
    command: str, *, config: Path | None, overrides: dict[str, Any], assignments: list[str] | None,
    output: Path | None, resume: bool, as_json: bool, device: str, subject: Sequence[str] = (), resumable: bool = True,
) -> Job:  # fmt: skip
    """Build the configuration and prepare the output folder.

    ``subject`` are the arguments beside the configuration (a path, say); a resumed run must give the same, and may
    not change the configuration.

    Raises:
        ConfigError: a bad configuration.
        CheckpointError: ``--resume`` on nothing, or on a run that was something else.
        ArgumentError: the output folder already holds a run, or the device does not exist.
    """
    base: dict[str, Any] = {}
    if resume:
        if output is None:
            raise CheckpointError("--resume needs --output, the folder of the interrupted run")
        if not (output / CONFIG_FILE).is_file():
            raise CheckpointError(f"nothing to resume: {output / CONFIG_FILE} does not exist")
        saved = read_config_file(output / CONFIG_FILE)
        if saved.get("command") != command:
            raise CheckpointError(f"{output} holds a run of 'snn {saved.get('command')}', not of 'snn {command}'")
        if saved.get("subject", []) != list(subject):
            given = " ".join(saved.get("subject", []))
            raise CheckpointError(f"{output} holds 'snn {command} {given}', not 'snn {command} {' '.join(subject)}'")
        base = saved["config"]
        device = saved.get("device", device)
    elif output is not None and _holds_work(output):
        raise ArgumentError(f"{output} already holds a run; use --resume, or another --output")
    _check_device(device)
    merged = build_config(config, overrides, assignments, base=base)
    if resume and merged != build_config(base=base):
        raise CheckpointError(f"--resume goes on with the configuration in {output}; it cannot be changed on the way")
    folder = output or _new_folder(command)
    # Only what was set is kept: a later default must not be mistaken for a choice.
    kept = merged.model_dump(mode="json", exclude_unset=True)
    write_json(folder / CONFIG_FILE, {"command": command, "subject": list(subject), "device": device, "config": kept})
    global current_job
    arguments = [command, *subject, "--resume", "--output", str(folder)]
    current_job = Job(
        command, merged, folder, resume, as_json, device, shlex.join(arguments) if resumable else ""
    )  # fmt: skip
    return current_job


def _holds_work(output: Path) -> bool:
    """Whether a folder holds more than the configuration of a run that failed before it began."""
    return output.is_dir() and any(path.name != CONFIG_FILE for path in output.iterdir())


def _new_folder(command: str) -> Path:
    """A folder of this invocation alone, even when two start in the same second."""
    stem = f"{command}-{time.strftime('%Y%m%d-%H%M%S')}"
    for number in itertools.count(1):
        folder = Path("runs") / (stem if number == 1 else f"{stem}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise StorageError(f"cannot make {folder}: {error}") from error
        return folder
    raise AssertionError("unreachable")


def _check_device(device: str) -> None:
    try:
        kind = torch.device(device)
    except RuntimeError as error:
        raise ArgumentError(f"--device {device}: {str(error).splitlines()[0]}") from error
    if kind.type == "cuda" and (not torch.cuda.is_available() or (kind.index or 0) >= torch.cuda.device_count()):
        raise ArgumentError(f"--device {device}: this torch sees {torch.cuda.device_count()} CUDA devices")
    if kind.type not in ("cpu", "cuda"):
        raise ArgumentError(f"--device {device}: allowed are cpu and cuda")


def has_state(job: Job) -> bool:
    """Whether a resumed job has a training state; a run interrupted before its first one starts from the beginning."""
    return job.resume and (job.output / STATE_FILE).is_file()


def load_data(job: Job) -> tuple[FrameDataset, FrameDataset]:
    """Training and test set of the run: the official splits, or a fold of the training split."""
    data = job.config.data
    seed = job.config.seed if data.source == "digits-dvs" else 0
    named = {} if data.split_name is None else {"split_name": data.split_name}
    source = open_source(data.source, seed=seed, download=data.download, root=data.root, **named)
    options: dict[str, Any] = {
        "T": data.T, "by": data.by, "time_window": data.time_window, "seed": seed,
        "cache_dir": data.cache_dir, "limit": data.limit, "quiet": job.quiet,
    }  # fmt: skip
    train_set = load_frames(source, "train", **options)
    if data.folds is None:
        return train_set, load_frames(source, "test", **options)
    train_part, test_part = stratified_folds(train_set.labels, data.folds, seed=0)[data.fold]
    return train_set.subset(train_part), train_set.subset(test_part)


def with_backbone_options(assignments: list[str] | None, options: list[str] | None) -> list[str]:
    """``--backbone-option key=value`` as assignments to the configuration, before those of ``--set``.

    Raises:
        ConfigError: no ``key=value``.
    """
    for option in options or []:
        if not re.fullmatch(r"[^=.]+=.*", option, re.DOTALL):
            raise ConfigError(f"--backbone-option {option!r}: expected key=value")
    return [f"model.options.{option}" for option in options or []] + (assignments or [])


def check_backbone(job: Job) -> None:
    """Refuse a backbone that cannot be trained on event frames before any data is read.

    Raises:
        ArgumentError: there is none of that name (the nearest are named), or it takes pictures.
    """
    name = job.config.model.name
    if name not in list_backbones():
        create(name)
    if not is_spiking(name):
        spiking = ", ".join(other for other in list_backbones() if is_spiking(other))
        raise ArgumentError(f"backbone {name!r} takes pictures, not event frames; those that do: {spiking}")


def model_options(job: Job, train_set: FrameDataset) -> dict[str, Any]:
    """Options of the backbone, with what follows from the data."""
    width, height, channels = train_set.sensor_size
    fixed = {"in_channels": channels, "num_classes": train_set.num_classes, "input_size": [height, width]}
    return fixed | job.config.model.options


def make_model(job: Job, train_set: FrameDataset) -> nn.Module:
    """The run's backbone, fresh. Raises ArgumentError for options that it does not have or allow, or without logits."""
    model = create(job.config.model.name, seed=job.config.seed, **model_options(job, train_set))
    if getattr(model, "features_only", False):
        raise ArgumentError("model.options.features_only: a network without logits cannot be trained as a classifier")
    return model


def describe(train_set: FrameDataset, test_set: FrameDataset) -> dict[str, Any]:
    """What a result says of its data."""
    return {
        "name": train_set.name,
        "simulated": train_set.simulated,
        "train_samples": len(train_set),
        "test_samples": len(test_set),
        "T": int(train_set.frames.shape[1]),
        "train_key": train_set.content_key,
        "test_key": test_set.content_key,
    }


def make_table(title: str, columns: list[str], rows: list[list[str]]) -> Any:
    """A rich table: the first column left, the others right aligned."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*row)
    return table


def note(text: str) -> None:
    """A line for the person at the terminal, on standard error."""
    print(text, file=sys.stderr)
