"""Backbones by name. A network remembers its name and options, so that a checkpoint can rebuild it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from torch import nn

from snn_core.backbones.options import check_types, hints_of, nearest
from snn_core.backbones.weights import load_weights
from snn_core.errors import ArgumentError
from snn_core.seeding import seeded


@dataclass(frozen=True)
class _Entry:
    factory: Callable[..., nn.Module]
    fixed: dict[str, Any]

    def options(self) -> Mapping[str, Any] | None:
        """Names of the options that may be given and their types; None: any, the factory looks itself."""
        hints = hints_of(self.factory)
        return None if hints is None else {name: hint for name, hint in hints.items() if name not in self.fixed}


_BACKBONES: dict[str, _Entry] = {}
Factory = TypeVar("Factory", bound=Callable[..., nn.Module])


def register(name: str, **fixed: Any) -> Callable[[Factory], Factory]:
    """Decorator: make a class or function creatable under ``name``, with the options ``fixed``, as often as needed.

    Its parameters are the options of the backbone; with ``**options: Unpack[SpikingOptions]`` those too.
    """

    def add(factory: Factory) -> Factory:
        _BACKBONES[name] = _Entry(factory, fixed)
        return factory

    return add


def list_backbones(pattern: str = "*") -> list[str]:
    """Names that :func:`create` knows, sorted; those that match ``pattern`` (shell wildcards)."""
    return sorted(name for name in _BACKBONES if fnmatchcase(name, pattern))


def is_spiking(name: str) -> bool:
    """Whether the backbone of this name takes frames ``[T, B, C, H, W]``; pictures ``[B, C, H, W]`` otherwise."""
    return bool(getattr(_BACKBONES[name].factory, "spiking", False))


def create(
    name: str,
    pretrained: str | os.PathLike[str] | None = None,
    *,
    in_channels: int | None = None,
    num_classes: int | None = None,
    features_only: bool = False,
    seed: int = 0,
    **options: Any,
) -> nn.Module:
    """Build a backbone, with freshly initialised parameters or those of a file.

    Args:
        name: one of :func:`list_backbones`.
        pretrained: a safetensors file of ours (a checkpoint, a compressed model, or a plain ``state_dict``) whose
            weights fit exactly; with ``features_only`` those of the head are left out. The file is not remembered.
        in_channels, num_classes: of the input and of the logits; by default what the backbone's class says.
        features_only: a call gives the list of feature maps (see ``feature_info``); the head is left away.
        seed: of the initialisation; torch's global generator is left as it was.
        **options: arguments of the backbone's class. They must be JSON-serialisable: a checkpoint keeps them.

    Returns:
        The network, with ``backbone_name`` and ``backbone_options`` set.

    Raises:
        ArgumentError: unknown name or option (with the nearest that there is), or a value that is not allowed.
        CheckpointError: ``pretrained`` is missing or damaged, or does not fit: the message lists what is missing,
            unexpected, or of another shape.
    """
    if name not in _BACKBONES:
        raise ArgumentError(f"backbone is {name!r}{nearest(name, _BACKBONES)}; allowed: {', '.join(list_backbones())}")
    entry = _BACKBONES[name]
    for key, value in (("in_channels", in_channels), ("num_classes", num_classes)):
        if value is not None:
            options[key] = value
    known = entry.options()
    unknown = sorted(set(options) - set(known)) if known is not None else sorted(set(options) & set(entry.fixed))
    if unknown:
        named = ", ".join(f"{option}{nearest(option, known or ())}" for option in unknown)
        raise ArgumentError(f"backbone {name!r} has no option {named}; allowed: {', '.join(known or ())}")
    check_types(options, known or {}, f"backbone {name!r}: ")
    try:
        with seeded(seed, "init", name):
            model = entry.factory(**options, **entry.fixed)
    except ArgumentError:
        raise
    except (TypeError, ValueError, RuntimeError, ArithmeticError, IndexError) as error:
        raise ArgumentError(f"backbone {name!r} cannot be built with {options}: {error}") from error
    model.backbone_name = name  # type: ignore[assignment]
    model.backbone_options = dict(options)  # type: ignore[assignment]
    if features_only:
        _leave_head_away(model, name)
    if pretrained is not None:
        load: Any = getattr(model, "load_pretrained", None)  # of a network that reads files of others, too
        load_weights(model, pretrained) if load is None else load(pretrained)
    return model


def _leave_head_away(model: Any, name: str) -> None:
    if not hasattr(model, "drop_head"):
        raise ArgumentError(f"backbone {name!r} has no features_only")
    model.drop_head()
    model.backbone_options["features_only"] = True
