"""Weights from a file or a state dict into a model, with errors that say what does not fit."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from snn_core.backbones.weights import check_fit, read_weights
from snn_core.errors import ArgumentError, CheckpointError
from snn_core.kernels.nm_compress import CompressedNM, nm_mask_by_magnitude
from snn_core.sparsity import CompressedLayer

Source = str | os.PathLike[str] | Mapping[str, Tensor]


def read_tensors(source: Source) -> dict[str, Tensor]:
    """Tensors by name.

    Args:
        source: path of a safetensors file (a plain one, a checkpoint of ours, a compressed model), or a state dict.

    Raises:
        ArgumentError: neither of them.
        CheckpointError: the file is missing or damaged.
    """
    if isinstance(source, Mapping):
        if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in source.items()):
            raise ArgumentError("pretrained: a state dict must hold tensors by name")
        return dict(source)
    if not isinstance(source, (str, os.PathLike)):
        raise ArgumentError(f"pretrained is a {type(source).__name__}; allowed: a path, a state dict, True or None")
    return read_weights(source)[0]


def load_fitting(
    model: nn.Module, tensors: Mapping[str, Tensor], names: Mapping[str, str], skip: tuple[str, ...] = ()
) -> None:
    """Load all tensors, or none. A dense weight for a compressed layer is compressed: its largest values stay.

    Args:
        model: to load into.
        tensors: by name.
        names: what a tensor must be called -> its name in ``model.state_dict()``; all of these are wanted.
        skip: beginnings of names that need not fit; those of them that do are loaded.

    Raises:
        CheckpointError: missing or unexpected tensors, other shapes; the message lists them.
    """
    own, modules = model.state_dict(), dict(model.named_modules())
    expected = {name: tuple(own[inside].shape) for name, inside in names.items()}
    layers: dict[str, tuple[str, CompressedLayer]] = {}
    for name, inside in names.items():
        layer = modules.get(inside.rpartition(".")[0])
        dense = f"{name.rpartition('.')[0]}.weight"
        if isinstance(layer, CompressedLayer) and name.endswith(".values") and name not in tensors:
            layers[dense] = inside.removesuffix("values"), layer
            expected[dense] = layer.shape
            for part in ("values", "indices", "scale"):
                expected.pop(dense.removesuffix("weight") + part, None)
    check_fit(expected, tensors, f"pretrained: does not fit {type(model).__name__}", skip)
    state = {}
    for name, value in tensors.items():
        if tuple(value.shape) != expected.get(name):
            continue  # one of ``skip``
        if name in layers:
            prefix, layer = layers[name]
            parts = CompressedNM.from_dense(value, layer.pattern, nm_mask_by_magnitude(value, layer.pattern))
            state[f"{prefix}values"], state[f"{prefix}indices"] = parts.values.to(layer.values.dtype), parts.indices
        else:
            state[names[name]] = value
    try:
        model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"pretrained: the weights do not fit {type(model).__name__}: {error}") from error


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that train, by name: adapters and heads, to be kept without the frozen weights."""
    return {name: value.detach().cpu().clone() for name, value in model.named_parameters() if value.requires_grad}


def load_trained(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of :func:`trained_state`, into a model of the same adapters and heads.

    Raises:
        CheckpointError: as :func:`load_fitting`.
    """
    own = {name: value for name, value in model.named_parameters() if value.requires_grad}
    check_fit({name: value.shape for name, value in own.items()}, tensors, "weights do not fit the trained parameters")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(tensors[name])
