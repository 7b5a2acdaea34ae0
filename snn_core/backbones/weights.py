"""Weights of a backbone from a safetensors file, exactly fitting or refused with all that does not fit."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from snn_core.errors import CheckpointError

#: How many names of a kind an error lists.
LISTED = 12


def read_weights(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], str | None]:
    """``state_dict`` in a safetensors file, and the backbone that it names (None where it names none).

    Checkpoints and training states of :mod:`snn_core.training`, compressed models of :mod:`snn_core.sparsity` (made
    dense), and files that hold a ``state_dict`` as it is.

    Raises:
        CheckpointError: the file is missing, damaged, or no safetensors file.
    """
    # Both stand beside the backbones and rebuild models with them.
    from snn_core.sparsity.model_file import FORMAT, read_compressed
    from snn_core.training.checkpoint import MODEL_PREFIX, read_tensors

    tensors, header = read_tensors(path)
    if header.get("format") == FORMAT:
        content = read_compressed(path)
        return content.state_dict(), content.model_name
    if header.get("format", "").startswith("snn_core."):
        of_model = {k[len(MODEL_PREFIX) :]: value for k, value in tensors.items() if k.startswith(MODEL_PREFIX)}
        if not of_model:
            raise CheckpointError(f"{path}: a {header['format']} file holds no weights of a model")
        return of_model, header.get("backbone") or None
    return tensors, None


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load the weights of a file into ``model``, all of them or none.

    A model without head (``features_only``) does without the head's weights.

    Raises:
        CheckpointError: see :func:`read_weights`; or weights do not fit, and the message lists which are missing,
            unexpected, or of another shape.
    """
    state, named = read_weights(path)
    own = model.state_dict()
    if getattr(model, "features_only", False):
        heads = tuple(f"{name}." for name in getattr(model, "head_names", ()))
        state = {key: value for key, value in state.items() if key in own or not key.startswith(heads)}
    wanted: Any = getattr(model, "backbone_name", None) or type(model).__name__
    whose = f", which is of {named!r}," if named is not None and named != wanted else ""
    check_fit({key: value.shape for key, value in own.items()}, state, f"{path}{whose} does not fit {wanted!r}")
    if named is not None and named != wanted:
        warnings.warn(f"{path} is of {named!r}; its weights fit {wanted!r}, which computes otherwise", stacklevel=3)
    model.load_state_dict(state)


def check_fit(
    expected: Mapping[str, Sequence[int]], given: Mapping[str, Tensor], fault: str, skip: tuple[str, ...] = ()
) -> None:
    """Whether tensors have the names and shapes that a model wants.

    Args:
        expected: shapes by name.
        given: what a file or a state dict holds.
        fault: how the message begins.
        skip: beginnings of names that need not fit.

    Raises:
        CheckpointError: they do not; the message lists what is missing, unexpected, and of another shape.
    """
    said = []
    for kind, names in (
        ("missing", expected.keys() - given.keys()),
        ("unexpected", given.keys() - expected.keys()),
        ("of another shape", {k for k in expected.keys() & given.keys() if given[k].shape != tuple(expected[k])}),
    ):
        faulty = [name for name in [*expected, *given] if name in names and not name.startswith(skip)]
        faulty = list(dict.fromkeys(faulty))  # in the model's order
        if kind == "of another shape":
            faulty = [f"{name} is {list(given[name].shape)}, the model's {list(expected[name])}" for name in faulty]
        if faulty:
            said.append(f"{kind}: {_listed(faulty)}")
    if said:
        raise CheckpointError(f"{fault}: {'; '.join(said)}")


def _listed(names: list[str]) -> str:
    rest = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + rest
