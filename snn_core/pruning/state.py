"""What a pruner writes into checkpoints beside its tensors: which run they are of, and masks that fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from snn_core.errors import CheckpointError
from snn_core.pruning.groups import PrunedLayer


def encode(value: Any) -> Tensor:
    """A JSON value as uint8: checkpoints hold tensors alone."""
    return torch.tensor(list(json.dumps(value, sort_keys=True).encode()), dtype=torch.uint8)


def decode(text: Tensor) -> Any:
    """Inverse of :func:`encode`."""
    return json.loads(bytes(text.flatten().tolist()))


def check_identity(saved: dict[str, Any], own: dict[str, Any]) -> int:
    """Compare two runs; returns the length of the saved one. An own ``total_steps`` of 0 is not known yet.

    Raises:
        CheckpointError: they differ; the message names the first difference.
    """
    if own["total_steps"] == 0:  # begin() is still to come, and compares then
        own = own | {"total_steps": saved["total_steps"]}
    different = [key for key, value in own.items() if saved.get(key) != value]
    if different:
        raise CheckpointError(
            f"pruning state is of another run: {', '.join(different)} differ; "
            f"{_difference(different[0], saved.get(different[0]), own[different[0]])}"
        )
    return int(saved["total_steps"])


def _difference(name: str, saved: Any, own: Any) -> str:
    """Both values; of two dictionaries those of the first entry that differs."""
    if isinstance(saved, dict) and isinstance(own, dict):
        missing = "nothing"
        inner = next(key for key in {**own, **saved} if saved.get(key, missing) != own.get(key, missing))
        name, saved, own = f"{name}: {inner}", saved.get(inner, missing), own.get(inner, missing)
    return f"{name} in the state: {saved}, here: {own}"


def saved_masks(state: dict[str, Tensor], prefix: str, layers: list[PrunedLayer]) -> dict[str, Tensor]:
    """The masks ``prefix/<layer>`` of a state. Raises KeyError or ValueError where one is missing or does not fit."""
    masks = {}
    for layer in layers:
        mask = state[f"{prefix}/{layer.name}"]
        if mask.dtype != torch.bool or mask.shape != layer.weight.shape:
            expected = f"bool {list(layer.weight.shape)}"
            raise ValueError(f"{prefix}/{layer.name} is {mask.dtype} {list(mask.shape)}, not {expected}")
        masks[layer.name] = mask
    return masks


@dataclass(frozen=True)
class SavedState:
    """What every method's state holds.

    Attributes:
        total_steps, steps_done: length of the run, and how much of it is done.
        masks: the final ones, by layer name; None in the search phase.
        reported: those that the next figures count flips from; None before :meth:`NMPruner.begin`.
    """

    total_steps: int
    steps_done: int
    masks: dict[str, Tensor] | None
    reported: dict[str, Tensor] | None


def read_state(
    state: dict[str, Tensor], identity: dict[str, Any], layers: list[PrunedLayer],
    load_method: Callable[[dict[str, Tensor]], None], *, frozen: bool,
) -> SavedState:  # fmt: skip
    """Check a state and take it apart; ``load_method`` takes what is the method's own, once all else is found good.

    Raises:
        CheckpointError: it is of another run, of a search while this pruner is ``frozen``, incomplete or damaged.
    """
    try:
        total_steps = check_identity(decode(state["identity"]), identity)
        steps_done, final = int(state["steps_done"]), bool(state["frozen"])
        if frozen and not final:
            raise CheckpointError("pruning state is of a search, but this pruner's masks are final: make a new one")
        masks = saved_masks(state, "mask", layers) if final else None
        has_reported = any(name.startswith("reported/") for name in state)
        reported = saved_masks(state, "reported", layers) if has_reported else None
        load_method(state)
    except (KeyError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"pruning state is incomplete or damaged: {error}") from error
    return SavedState(total_steps, steps_done, masks, reported)
