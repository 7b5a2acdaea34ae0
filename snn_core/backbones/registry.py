"""Backbones by name. A network remembers its name and options, so that a checkpoint can rebuild it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from snn_core.errors import ArgumentError
from snn_core.seeding import seeded

_BACKBONES: dict[str, Callable[..., nn.Module]] = {}


def register(name: str) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Decorator: make a class or function creatable under ``name``."""

    def add(factory: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        _BACKBONES[name] = factory
        return factory

    return add


def list_backbones() -> list[str]:
    """Names that :func:`create` knows, sorted."""
    return sorted(_BACKBONES)


def create(name: str, *, seed: int = 0, **options: Any) -> nn.Module:
    """Build a backbone with freshly initialised parameters.

    Args:
        name: one of :func:`list_backbones`.
        seed: of the initialisation; torch's global generator is left as it was.
        **options: arguments of the backbone's class. They must be JSON-serialisable: a checkpoint keeps them.

    Returns:
        The network, with ``backbone_name`` and ``backbone_options`` set.

    Raises:
        ArgumentError: unknown name or option.
    """
    if name not in _BACKBONES:
        raise ArgumentError(f"backbone is {name!r}; allowed: {', '.join(list_backbones())}")
    factory = _BACKBONES[name]
    known = inspect.signature(factory).parameters
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ArgumentError(f"backbone {name!r} has no option {', '.join(unknown)}; allowed: {', '.join(known)}")
    try:
        with seeded(seed, "init", name):
            model = factory(**options)
    except ArgumentError:
        raise
    except (TypeError, ValueError, RuntimeError, ArithmeticError, IndexError) as error:
        raise ArgumentError(f"backbone {name!r} cannot be built with {options}: {error}") from error
    model.backbone_name = name  # type: ignore[assignment]
    model.backbone_options = dict(options)  # type: ignore[assignment]
    return model
