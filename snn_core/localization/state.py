"""A training that was interrupted: model, optimiser and history in one checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snn_core.errors import CheckpointError
from snn_core.localization.head import Localiser
from snn_core.training import load_checkpoint, save_checkpoint

PREFIX = "optimizer/"


def save_state(
    path: Path, model: Localiser, optimizer: torch.optim.Optimizer, key: str, history: list[dict[str, Any]]
) -> None:
    """Write the state atomically; ``key`` says of which training. StorageError: the disk refused."""
    tensors: dict[str, Tensor] = {
        f"{PREFIX}{index}/{name}": torch.as_tensor(value)
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }
    save_checkpoint(path, model, {"key": key, "history": history}, extra=tensors)


def restore_state(path: Path, model: Localiser, optimizer: torch.optim.Optimizer, key: str) -> list[dict[str, Any]]:
    """Load model and optimiser; the history.

    Raises:
        CheckpointError: the file is damaged, does not fit the model, or is of a training with another key.
    """
    metadata, tensors = load_checkpoint(path)
    if metadata.get("key") != key:
        raise CheckpointError(f"{path} is of a training with other settings or data; remove it, or name another file")
    load_checkpoint(path, model)
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, part = name.removeprefix(PREFIX).split("/")
        state.setdefault(int(index), {})[part] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    history: list[dict[str, Any]] = metadata["history"]
    return history
