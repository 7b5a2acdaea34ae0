"""Whole pruned models in one safetensors file: compressed N:M weights, everything else dense, checked on load.

Layout. Every tensor of the model's ``state_dict`` is stored under its own name, except compressed weights, which are
two tensors ``<name>:values`` and ``<name>:indices``, and ``<name>:scale`` where there is one (see
:class:`snn_core.sparsity.CompressedNM`). Version 2 says that a scale or 8-bit values are there. The header's metadata
holds ``format``, ``format_version``, ``content`` (JSON: how to rebuild the model, pattern and shape of each
compressed weight, the caller's metadata) and ``sha256`` over content and tensors. No pickle anywhere.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from snn_core.errors import ArgumentError, CheckpointError
from snn_core.files import atomic_path
from snn_core.kernels.nm_compress import CompressedNM, NMPattern
from snn_core.sparsity.convert import replace_layers
from snn_core.sparsity.layers import CompressedLayer, of_dense
from snn_core.sparsity.masked import MaskedLayer

FORMAT = "snn_core.compressed_model"
PLAIN, SCALED = "1", "2"


@dataclass
class CompressedFile:
    """Content of a compressed model file.

    Attributes:
        weights: compressed weights by parameter name (``"conv2.weight"``).
        tensors: all other parameters and buffers by name.
        model_name, model_options: what ``snn_core.backbones.create`` needs; name None when the file does not say.
        metadata: what the caller of :func:`save_compressed` wrote.
    """

    weights: dict[str, CompressedNM]
    tensors: dict[str, torch.Tensor]
    model_name: str | None = None
    model_options: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Dense ``state_dict`` of the model, bit for bit the one that was saved, in the dtypes that were stored."""
        return self.tensors | {name: weight.to_dense() for name, weight in self.weights.items()}


def save_compressed(
    path: str | os.PathLike[str],
    model: nn.Module,
    patterns: Mapping[str, NMPattern | str] | None = None,
    masks: Mapping[str, torch.Tensor] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> CompressedFile:
    """Write a pruned model to one file, atomically.

    Args:
        path: file to write, exactly this name.
        model: the pruned model, on any device; or one that :func:`compress` made. When it has ``backbone_name`` and
            ``backbone_options``, the file can rebuild it; otherwise :func:`load_compressed` needs a model of the same
            structure.
        patterns: layer name -> N:M pattern of its ``weight``, for the layers to compress; compressed layers, and
            :class:`NMLinear` and :class:`NMConv2d`, need not be named.
        masks: layer name -> boolean mask of the kept weights. A layer without a mask keeps its non-zero weights.
        metadata: JSON-serialisable values to store beside (accuracy, config, source commit ...).

    Returns:
        What was written, with the compressed weights in memory.

    Raises:
        ArgumentError: a name that is no layer with a weight, a weight or mask that breaks its pattern, metadata that
            is no JSON, or model state that is no tensor.
        StorageError: the disk refuses; an earlier file is intact.
    """
    state = _tensor_state(model)
    weights = _take_compressed(model, state)
    patterns, masks = dict(patterns or {}), dict(masks or {})
    for name, module in model.named_modules():
        if isinstance(module, MaskedLayer):
            patterns.setdefault(name, module.pattern)
            masks.setdefault(name, module.mask)
            del state[_key(name, "mask")]
    for name in [*patterns, *masks]:
        if _key(name, "weight") not in state:
            raise ArgumentError(f"patterns/masks: the model has no layer {name!r} with a weight")
        if name not in patterns:
            raise ArgumentError(f"masks: layer {name!r} has a mask but no pattern")
    for name, pattern in patterns.items():
        mask = masks[name].cpu() if name in masks else None
        try:
            weights[_key(name, "weight")] = CompressedNM.from_dense(state[_key(name, "weight")], pattern, mask)
        except ArgumentError as error:
            raise ArgumentError(f"layer {name!r}: {error}") from error
    content = CompressedFile(
        weights=weights,
        tensors={name: value for name, value in state.items() if name not in weights},
        model_name=getattr(model, "backbone_name", None),
        model_options=dict(getattr(model, "backbone_options", {})),
        metadata=dict(metadata or {}),
    )
    _write(Path(path), content)
    return content


def read_compressed(path: str | os.PathLike[str]) -> CompressedFile:
    """Read and check a compressed model file without building the model.

    Raises:
        CheckpointError: the file is missing, no compressed model, of another version, truncated, altered (the checksum
            differs), or its content does not fit together; the message says which.
    """
    path = Path(path)
    header, tensors = _read_tensors(path)
    if header.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a compressed model (format {header.get('format')!r}, expected {FORMAT!r})")
    if header.get("format_version") not in (PLAIN, SCALED):
        raise CheckpointError(
            f"{path}: format version {header.get('format_version')!r}; this snn_core reads {PLAIN!r} and {SCALED!r}"
        )
    text = header.get("content", "")
    if header.get("sha256") != _checksum(text, tensors):
        raise CheckpointError(f"{path}: the checksum does not match the content; the file is damaged")
    try:
        content = json.loads(text)
        weights = _read_weights(content["compressed"], tensors)
        model = content["model"] or {}
        return CompressedFile(weights, tensors, model.get("name"), model.get("options", {}), content["metadata"])
    except (ArgumentError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{path}: the content is not what the format promises: {error}") from error


def load_compressed(path: str | os.PathLike[str], model: nn.Module | None = None, *, dense: bool = True) -> nn.Module:
    """The pruned model from a compressed file, in evaluation mode.

    Args:
        path: file written by :func:`save_compressed`.
        model: a model of the same structure to fill, dense or with compressed layers; needed when the file does not
            name a backbone.
        dense: True: weights become dense, and the logits are bit for bit those of the saved model. False: the Linear
            and Conv2d layers that are compressed in the file become :class:`CompressedLinear` and
            :class:`CompressedConv2d`; ``model`` is changed in place.

    Raises:
        CheckpointError: as :func:`read_compressed`, or the content does not fit the model (missing or unknown tensor,
            other shape or dtype; values stored in 16 or 8 bits fit a float32 model).
    """
    content = read_compressed(path)
    if model is None:
        if content.model_name is None:
            raise CheckpointError(f"{path}: the file does not name a backbone; pass model= with the same structure")
        model = _create(Path(path), content)
    if not dense:
        model = _with_compressed_layers(Path(path), model, content)
    state = _state_for(model, content)
    expected = _tensor_state(model)
    missing, unknown = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or unknown:
        raise CheckpointError(
            f"{path}: does not fit the model: missing {missing or 'none'}, unknown {unknown or 'none'}"
        )
    for name, value in state.items():
        want = expected[name]
        if value.shape != want.shape or value.dtype != want.dtype:
            raise CheckpointError(
                f"{path}: {name} is {value.dtype} {list(value.shape)}, the model has {want.dtype} {list(want.shape)}"
            )
    try:
        model.load_state_dict(state)
    except RuntimeError as error:  # a compressed layer of another pattern
        raise CheckpointError(f"{path}: does not fit the model: {error}") from error
    return model.eval()


def _with_compressed_layers(path: Path, model: nn.Module, content: CompressedFile) -> nn.Module:
    """The model with the layers of the file's compressed weights exchanged, where there is a compressed form."""
    weights = {}
    for key, weight in content.weights.items():
        name = key.rpartition(".")[0]
        try:
            module = model.get_submodule(name)
        except AttributeError as error:
            raise CheckpointError(f"{path}: does not fit the model: no layer {name!r}") from error
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            if module.weight.shape != weight.shape:
                raise CheckpointError(
                    f"{path}: {key} has shape {list(weight.shape)}, the model's {list(module.weight.shape)}"
                )
            weights[name] = weight
    return replace_layers(model, weights, lambda name, module: of_dense(module, weights[name]), inplace=True)


def _state_for(model: nn.Module, content: CompressedFile) -> dict[str, torch.Tensor]:
    """The file's content under the names and in the forms that ``model`` wants."""
    state, modules, expected = dict(content.tensors), dict(model.named_modules()), model.state_dict()
    for key, weight in content.weights.items():
        name = key.rpartition(".")[0]
        module = modules.get(name)
        if isinstance(module, CompressedLayer):
            state |= {_key(name, part): value for part, value in weight.state_dict().items() if part != "layout"}
            continue
        want = expected.get(key)
        # Values were stored narrower than the model's: to_dense widens exactly (but for the product with a scale).
        narrow = weight.scale is not None or (weight.dtype.itemsize == 2 and want is not None and want.itemsize == 4)
        state[key] = weight.to_dense(want.dtype if want is not None and narrow else None)
        if isinstance(module, MaskedLayer):
            state[_key(name, "mask")] = weight.mask()
    return state


def _take_compressed(model: nn.Module, state: dict[str, torch.Tensor]) -> dict[str, CompressedNM]:
    """Moves the weights of compressed layers out of ``state``."""
    weights = {}
    for name, module in model.named_modules():
        if isinstance(module, CompressedLayer):
            weights[_key(name, "weight")] = module.weight.cpu()
            for part in ("values", "indices", "scale"):
                state.pop(_key(name, part), None)
    return weights


def _key(layer: str, part: str) -> str:
    return f"{layer}.{part}" if layer else part


def _create(path: Path, content: CompressedFile) -> nn.Module:
    from snn_core.backbones import create

    assert content.model_name is not None
    try:
        return create(content.model_name, **content.model_options)
    except (ArgumentError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot rebuild backbone {content.model_name!r}: {error}") from error


def _tensor_state(model: nn.Module) -> dict[str, torch.Tensor]:
    state = model.state_dict()
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise ArgumentError(f"model state {name!r} is a {type(value).__name__}; only tensors can be stored")
    return {name: value.detach().cpu() for name, value in state.items()}


def _write(path: Path, content: CompressedFile) -> None:
    # A fresh contiguous copy of each tensor: safetensors refuses tensors that share memory.
    tensors = {name: value.clone(memory_format=torch.contiguous_format) for name, value in content.tensors.items()}
    for name, weight in content.weights.items():
        tensors[f"{name}:values"] = weight.values.cpu()
        tensors[f"{name}:indices"] = weight.indices.cpu()
        if weight.scale is not None:
            tensors[f"{name}:scale"] = weight.scale.cpu()
    model = None
    if content.model_name is not None:
        model = {"name": content.model_name, "options": content.model_options}
    described = {
        "compressed": {
            name: {"pattern": str(weight.pattern), "shape": list(weight.shape)}
            | ({} if weight.scale is None else {"scaled": True})
            for name, weight in content.weights.items()
        },
        "model": model,
        "metadata": content.metadata,
    }
    try:
        text = json.dumps(described, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"metadata: cannot be written as JSON: {error}") from error
    scaled = any(weight.scale is not None or weight.dtype.itemsize == 1 for weight in content.weights.values())
    header = {
        "format": FORMAT,
        "format_version": SCALED if scaled else PLAIN,
        "content": text,
        "sha256": _checksum(text, tensors),
    }
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(tensors, metadata=header))


def _read_tensors(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with safe_open(str(path), framework="pt", device="cpu") as source:
            names = list(source.keys())
            return source.metadata() or {}, {name: source.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path}: truncated, damaged, or no safetensors file: {error}") from error


def _read_weights(described: dict[str, Any], tensors: dict[str, torch.Tensor]) -> dict[str, CompressedNM]:
    """Takes the ``:values`` and ``:indices`` tensors out of ``tensors`` and checks each pair."""
    weights = {}
    for name, entry in described.items():
        values, indices = tensors.pop(f"{name}:values"), tensors.pop(f"{name}:indices")
        scale = tensors.pop(f"{name}:scale") if entry.get("scaled") else None
        try:
            pattern = NMPattern.parse(entry["pattern"])
            weights[name] = CompressedNM(values, indices, tuple(entry["shape"]), pattern, scale)
        except ArgumentError as error:
            raise ArgumentError(f"{name}: {error}") from error
    return weights


def _checksum(text: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over the content text and every tensor's name, dtype, shape and bytes, in the order of names."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"\n{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
