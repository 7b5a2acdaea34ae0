"""Checkpoints: one safetensors file with its description in the header. Nothing is ever unpickled.

Header keys: ``format``, ``version``, ``sha256`` (of header and tensors), ``backbone`` and ``options`` (how to rebuild
the network), ``metadata`` (JSON).
Tensors: ``model/<state_dict key>`` and, under other prefixes, whatever belongs to the run.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from snn_core.errors import CheckpointError
from snn_core.files import atomic_path

FORMAT, VERSION = "snn_core.checkpoint", "1"
MODEL_PREFIX = "model/"


def write_tensors(path: str | os.PathLike[str], tensors: dict[str, Tensor], header: dict[str, str]) -> None:
    """Write a safetensors file atomically. Raises StorageError when the disk refuses."""
    stored = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    data = safetensors.torch.save(stored, header | {"sha256": _checksum(stored, header)})
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of a safetensors file.

    Raises:
        CheckpointError: it is missing, not a safetensors file, or differs from the checksum in its header.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with safetensors.safe_open(path, framework="pt") as source:
            header = source.metadata() or {}
            tensors = {key: source.get_tensor(key) for key in source.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file: {error}") from error
    expected = header.get("sha256")
    # Compressed models keep a checksum of another make, which their own reader verifies.
    ours = header.get("format", "").startswith("snn_core.") and "content" not in header
    if ours and expected != _checksum(tensors, {key: value for key, value in header.items() if key != "sha256"}):
        raise CheckpointError(f"{path}: the checksum does not match the content; the file is damaged")
    return tensors, header


def _checksum(tensors: dict[str, Tensor], header: dict[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for key in sorted(tensors):
        value = tensors[key]
        digest.update(f"{key} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_format(path: str | os.PathLike[str], header: dict[str, str], name: str, version: str) -> None:
    """Raise CheckpointError unless the header names this format and version."""
    if header.get("format") != name:
        raise CheckpointError(f"{path}: format is {header.get('format')!r}, expected {name!r}")
    if header.get("version") != version:
        raise CheckpointError(
            f"{path}: {name} version {header.get('version')!r}; this release reads version {version!r}"
        )


def read_json(path: str | os.PathLike[str], header: dict[str, str], key: str) -> Any:
    """A JSON value from the header. Raises CheckpointError naming the key."""
    try:
        return json.loads(header[key])
    except (KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: header key {key!r} is missing or not JSON") from error


def model_header(model: nn.Module) -> dict[str, str]:
    """Header entries from which :func:`load_model` rebuilds the network; empty names for a foreign model."""
    return {
        "backbone": str(getattr(model, "backbone_name", "")),
        "options": json.dumps(getattr(model, "backbone_options", {})),
    }


def save_checkpoint(
    path: str | os.PathLike[str],
    model: nn.Module,
    metadata: dict[str, Any] | None = None,
    *,
    extra: dict[str, Tensor] | None = None,
) -> None:
    """Write the model's state, and ``extra`` tensors under their own names, atomically.

    Raises:
        StorageError: the disk refused; an older file of that name is intact.
    """
    tensors = {MODEL_PREFIX + key: value for key, value in model.state_dict().items()} | (extra or {})
    header = {"format": FORMAT, "version": VERSION, "metadata": json.dumps(metadata or {})} | model_header(model)
    write_tensors(path, tensors, header)


def load_checkpoint(
    path: str | os.PathLike[str], model: nn.Module | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a checkpoint; with ``model`` its state is loaded into it.

    Returns:
        The metadata, and the tensors that are not the model's.

    Raises:
        CheckpointError: missing, corrupt, of another version, or its tensors do not fit the model (all are named).
    """
    tensors, header = read_tensors(path)
    check_format(path, header, FORMAT, VERSION)
    if model is not None:
        load_model_state(path, model, tensors)
    others = {key: value for key, value in tensors.items() if not key.startswith(MODEL_PREFIX)}
    return read_json(path, header, "metadata"), others


def load_model_state(path: str | os.PathLike[str], model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Load the tensors under ``model/`` into ``model``. Raises CheckpointError naming every mismatch."""
    state = {key[len(MODEL_PREFIX) :]: value for key, value in tensors.items() if key.startswith(MODEL_PREFIX)}
    own = model.state_dict()
    problems = [f"{key} is missing" for key in own if key not in state]
    problems += [f"{key} is unknown" for key in state if key not in own]
    problems += [
        f"{key} has shape {tuple(state[key].shape)}, the model's {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if problems:
        raise CheckpointError(f"{path} does not fit the model: {'; '.join(problems)}")
    model.load_state_dict(state)


def load_model(path: str | os.PathLike[str]) -> tuple[nn.Module, dict[str, Any]]:
    """Rebuild the network that a checkpoint describes, with its state, in evaluation mode; and the metadata.

    Raises:
        CheckpointError: missing, corrupt, of another version, or of a network that is not one of ours.
    """
    from snn_core.backbones import create

    tensors, header = read_tensors(path)
    check_format(path, header, FORMAT, VERSION)
    if not header.get("backbone"):
        raise CheckpointError(f"{path} does not name a backbone; load it with load_checkpoint(path, model)")
    try:
        model = create(header["backbone"], **read_json(path, header, "options"))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: cannot rebuild backbone {header['backbone']!r}: {error}") from error
    load_model_state(path, model, tensors)
    return model.eval(), read_json(path, header, "metadata")
