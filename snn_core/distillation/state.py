"""The state of a distillation on disk: everything that makes a resumed run equal an uninterrupted one."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snn_core.errors import CheckpointError
from snn_core.training.checkpoint import check_format, read_json, read_tensors, write_tensors

FORMAT, VERSION = "snn_core.distillation_state", "1"
_EXTRA = "extra/"
_TENSORS = ("canvas", "exp_avg", "exp_avg_sq", "generator_state", "history")


@dataclass
class DistillState:
    """State after ``iteration`` completed iterations.

    ``canvas`` float32, U; ``exp_avg`` and ``exp_avg_sq``: Adam's moments of U; ``generator_state``: uint8, of the one
    generator that all draws come from; ``history`` float32 ``[iteration, len(history_names)]``; ``seconds`` of
    wall-clock so far. ``extra``: further tensors by name (learned frequencies and their optimiser's moments).
    """

    iteration: int
    canvas: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    generator_state: Tensor
    history: Tensor
    history_names: list[str]
    seconds: float
    extra: dict[str, Tensor] = field(default_factory=dict)


def save_state(path: str | os.PathLike[str], state: DistillState, identity: dict[str, Any]) -> None:
    """Write ``state`` to ``path`` (safetensors, JSON in the header), atomically.

    ``identity`` says which run it belongs to (configuration, data, teachers, seed): plain JSON, compared on load.

    Raises:
        StorageError: the disk refuses; an earlier state of that name is intact.
    """
    progress = {"iteration": state.iteration, "history_names": state.history_names, "seconds": state.seconds}
    header = {
        "format": FORMAT,
        "version": VERSION,
        "identity": json.dumps(identity, sort_keys=True),
        "progress": json.dumps(progress),
    }
    tensors = {name: getattr(state, name) for name in _TENSORS}
    write_tensors(path, tensors | {_EXTRA + name: value for name, value in state.extra.items()}, header)


def load_state(path: str | os.PathLike[str], identity: dict[str, Any]) -> DistillState:
    """Read a state back.

    Raises:
        CheckpointError: no such file, corrupt, another format version, or of a run with another ``identity`` (the
            message names what differs).
    """
    if not Path(path).is_file():
        raise CheckpointError(f"nothing to resume: {path} does not exist")
    tensors, header = read_tensors(path)
    check_format(path, header, FORMAT, VERSION)
    differing = differing_keys(read_json(path, header, "identity"), json.loads(json.dumps(identity)))
    if differing:
        raise CheckpointError(f"{path}: belongs to another run; these differ: {', '.join(differing)}")
    position = read_json(path, header, "progress")
    try:
        return DistillState(
            iteration=position["iteration"],
            history_names=position["history_names"],
            seconds=position["seconds"],
            canvas=tensors["canvas"],
            exp_avg=tensors["exp_avg"],
            exp_avg_sq=tensors["exp_avg_sq"],
            generator_state=tensors["generator_state"],
            history=tensors["history"],
            extra={name.removeprefix(_EXTRA): value for name, value in tensors.items() if name.startswith(_EXTRA)},
        )
    except KeyError as error:
        raise CheckpointError(f"{path}: an entry of the state is missing ({error})") from error


def differing_keys(stored: Any, wanted: Any, prefix: str = "") -> list[str]:
    """Dotted names of the entries in which two JSON values differ."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        return [
            name
            for key in sorted(stored.keys() | wanted.keys())
            for name in differing_keys(stored.get(key), wanted.get(key), f"{prefix}{key}.")
        ]
    return [] if stored == wanted else [prefix.rstrip(".")]


def adam_moments(optimizer: torch.optim.Adam, parameter: Tensor) -> tuple[Tensor, Tensor]:
    """Adam's first and second moment of ``parameter`` (zeros before the first step)."""
    state = optimizer.state.get(parameter)
    if not state:
        return torch.zeros_like(parameter), torch.zeros_like(parameter)
    return state["exp_avg"], state["exp_avg_sq"]


def restore_adam(optimizer: torch.optim.Adam, parameter: Tensor, state: DistillState) -> None:
    """Put the moments and the step count of ``state`` back into ``optimizer``."""
    if state.iteration:
        optimizer.state[parameter] = {
            "step": torch.tensor(float(state.iteration)),
            "exp_avg": state.exp_avg.to(parameter.device),
            "exp_avg_sq": state.exp_avg_sq.to(parameter.device),
        }
