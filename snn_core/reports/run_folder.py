"""What ``snn prune`` and ``snn train`` left in a run folder, read without trusting it.

A run that was interrupted, a file that is missing or damaged, values of another release: whatever can be shown is read,
and what cannot is said in ``notes``. Only a folder from which nothing can be reported is an error.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

import snn_core
from snn_core.errors import ArgumentError, CheckpointError, SnnCoreError
from snn_core.sparsity import NMPattern, read_compressed
from snn_core.training.checkpoint import FORMAT, MODEL_PREFIX, VERSION, check_format, read_json, read_tensors
from snn_core.training.loop import STATE_FILE

CONFIG_FILE, RESULT_FILE = "config.json", "result.json"
MODEL_FILE, COMPRESSED_FILE = "model.safetensors", "compressed.safetensors"
COMMANDS = ("prune", "train")
MASK_PREFIX = "mask/"


@dataclass
class RunFolder:
    """A run as its folder describes it.

    Attributes:
        path: the folder.
        command: ``"prune"`` or ``"train"``.
        finished: whether it came to its end; of an interrupted run only configuration and history are known.
        config: all settings of a finished run; those that were set of an interrupted one.
        result: ``result.json``, empty for an interrupted run.
        history: a record per epoch.
        steps_done, samples: position of an interrupted run (optimiser steps) and its training samples.
        weights: layer name -> dense weight (at least 2-D), float.
        masks: layer name -> boolean mask of the pruned layers.
        patterns: layer name -> N:M of the layers that have one.
        files: file name -> bytes.
        notes: what is missing or odd, in sentences.
    """

    path: Path
    command: str
    finished: bool = False
    config: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    steps_done: int | None = None
    samples: int | None = None
    weights: dict[str, Tensor] = field(default_factory=dict)
    masks: dict[str, Tensor] = field(default_factory=dict)
    patterns: dict[str, str] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def unstructured(self) -> bool:
        """Whether its masks have no N:M pattern, so that there is no compressed form."""
        return self.finished and self.command == "prune" and self.result.get("compressed_bytes", 0) is None

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.resolve().name


def read_run(folder: Path) -> RunFolder:
    """Read a run folder.

    Raises:
        ArgumentError: no folder, or that of a command that is not reported on.
        CheckpointError: nothing in it can be reported (the message names what is missing), or a JSON file or the state
            of an interrupted run is damaged.
    """
    if not folder.is_dir():
        raise ArgumentError(f"{folder}: no such folder; expected one that 'snn prune' or 'snn train' wrote")
    result = _read_json_file(folder / RESULT_FILE)
    config = _read_json_file(folder / CONFIG_FILE)
    command = (result or config or {}).get("command")
    if command is None:
        raise CheckpointError(f"{folder} is no run folder: it has neither {RESULT_FILE} nor {CONFIG_FILE} of a run")
    if command not in COMMANDS:
        missing = [name for name in (MODEL_FILE, COMPRESSED_FILE) if not (folder / name).is_file()]
        lacks = f"; it has no {' and no '.join(missing)} to report on" if missing else ""
        raise ArgumentError(
            f"{folder} holds a run of 'snn {command}'; reports are of 'snn prune' and 'snn train'{lacks}"
        )
    run = RunFolder(folder, str(command))
    run.files = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}
    if result is None:
        _read_interrupted(run, config or {})
    else:
        _read_finished(run, result)
    return run


def section(values: Any, *keys: str) -> dict[str, Any]:
    """The dictionary at ``keys``, empty where there is none."""
    for key in keys:
        values = values.get(key) if isinstance(values, dict) else None
    return values if isinstance(values, dict) else {}


def number(value: Any) -> float | int | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return value


def records(value: Any) -> list[dict[str, Any]]:
    """The dictionaries of a list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _read_json_file(path: Path) -> dict[str, Any] | None:
    """None where there is no such file."""
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold an object, not {type(value).__name__}")
    return value


def _read_interrupted(run: RunFolder, config: dict[str, Any]) -> None:
    path = run.path / STATE_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{run.path} holds a run of 'snn {run.command}' that did not finish its first epoch: {RESULT_FILE} and "
            f"{STATE_FILE} are missing"
        )
    tensors, header = read_tensors(path)
    progress, identity = read_json(path, header, "progress"), read_json(path, header, "identity")
    run.config = section(config, "config")
    run.history = records(section(progress).get("history"))
    run.steps_done = section(progress).get("position")
    run.samples = section(identity).get("samples")
    # The training section is complete in the state, also where only some of it was set.
    run.config = run.config | {"train": section(identity, "config") or section(run.config, "train")}
    run.weights = _weights(tensors)
    run.notes.append(
        f"This run is not finished: there is no {RESULT_FILE}. Shown is what its last saved state says. "
        f"Go on with: snn {run.command} --resume --output {run.path}"
    )


def _read_finished(run: RunFolder, result: dict[str, Any]) -> None:
    run.finished, run.result = True, result
    run.config, run.history = section(result, "config"), records(result.get("history"))
    written = result.get("version")
    if written != snn_core.__version__:
        run.notes.append(f"Written by snn_core {written or 'of an unknown version'}, read by {snn_core.__version__}.")
    try:
        tensors, header = read_tensors(run.path / MODEL_FILE)
        check_format(run.path / MODEL_FILE, header, FORMAT, VERSION)
        run.weights = _weights(tensors)
        run.masks = {
            name.removeprefix(MASK_PREFIX): value.bool()
            for name, value in tensors.items()
            if name.startswith(MASK_PREFIX)
        }
    except SnnCoreError as error:
        run.notes.append(f"Weights and masks are not shown: {error}")
    run.patterns = _recorded_patterns(run)
    if run.command == "prune" and not run.unstructured:
        _read_compressed_file(run)
    _check_masks(run)


def _weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Layer name -> weight, of the model's tensors with that many dimensions."""
    names = {key: key.removeprefix(MODEL_PREFIX).removesuffix(".weight") for key in tensors}
    return {
        name: tensors[key].float()
        for key, name in names.items()
        if key.startswith(MODEL_PREFIX) and key.endswith(".weight") and tensors[key].ndim >= 2
    }


def _recorded_patterns(run: RunFolder) -> dict[str, str]:
    """Of each layer where the run recorded it (later releases), else the one pattern of the run."""
    default = run.result.get("pattern")
    patterns = {}
    for layer in records(run.result.get("layers")):
        text = layer.get("pattern", default)
        if layer.get("state") == "pruned" and isinstance(layer.get("name"), str) and isinstance(text, str):
            try:
                patterns[layer["name"]] = str(NMPattern.parse(text))
            except ArgumentError:
                continue  # an unstructured comparison
    return patterns


def _read_compressed_file(run: RunFolder) -> None:
    path = run.path / COMPRESSED_FILE
    if not path.is_file():
        run.notes.append(f"{COMPRESSED_FILE} is missing: the compressed model is neither counted nor timed.")
        return
    try:
        content = read_compressed(path)
    except SnnCoreError as error:
        run.notes.append(f"The compressed model cannot be read: {error}")
        return
    for key, weight in content.weights.items():
        name = key.removesuffix(".weight")
        run.patterns.setdefault(name, str(weight.pattern))
        if name not in run.weights:
            run.weights[name] = weight.to_dense().float()
            run.masks.setdefault(name, weight.mask())


def _check_masks(run: RunFolder) -> None:
    """Leave out what cannot be cut into blocks, and say it."""
    for name, mask in list(run.masks.items()):
        weight, pattern = run.weights.get(name), run.patterns.get(name)
        if weight is not None and weight.shape != mask.shape:
            run.notes.append(f"The mask of {name} has shape {list(mask.shape)}, its weight {list(weight.shape)}.")
            del run.masks[name]
        elif pattern is not None and not NMPattern.parse(pattern).divides(mask):
            run.notes.append(f"The mask of {name} of shape {list(mask.shape)} cannot be cut for {pattern}.")
            del run.patterns[name]
