"""Values of options, refused with their name, what came, and what is allowed."""

from __future__ import annotations

import difflib
import inspect
import math
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, Union, Unpack, get_args, get_origin, get_type_hints

from snn_core.errors import ArgumentError


def nearest(name: str, allowed: Iterable[str]) -> str:
    """``" (did you mean ...?)"`` with the most similar names, empty where none is similar; for error messages."""
    folded, wanted = {_folded(option): option for option in allowed}, _folded(name)
    close = difflib.get_close_matches(wanted, folded, n=3, cutoff=0.6)
    longer = [option for option in folded if len(wanted) > 2 and wanted in option]  # vgg11 of spiking_vgg11
    names = [folded[found] for found in dict.fromkeys([*close, *longer])][:3]
    return f" (did you mean {' or '.join(names)}?)" if names else ""


def _folded(name: Any) -> str:
    return str(name).lower().replace("-", "_")


def one_of(name: str, value: Any, allowed: Collection[str]) -> None:
    """ArgumentError unless ``value`` is one of the names ``allowed``; with the nearest."""
    if not isinstance(value, str) or value not in allowed:
        raise ArgumentError(f"{name} is {value!r}{nearest(value, allowed)}; allowed: {', '.join(allowed)}")


def check_probability(name: str, value: float) -> None:
    """ArgumentError unless ``value`` is at least 0 and below 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ArgumentError(f"{name} is {value!r}; it must be a number of at least 0 and below 1")


@cache
def hints_of(function: Callable[..., Any]) -> Mapping[str, Any] | None:
    """Names of the arguments -> their types; None where any may be given.

    ``**options: Unpack[SomeTypedDict]`` names them; a plain ``**options`` does not.
    """
    called: Any = getattr(function, "__init__") if isinstance(function, type) else function  # noqa: B009
    hints, found = get_type_hints(called, include_extras=True), {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is not parameter.VAR_KEYWORD:
            found[name] = hints.get(name, Any)
        elif get_origin(hints.get(name)) is Unpack:
            found |= get_type_hints(get_args(hints[name])[0])
        else:
            return None
    return found


def check_types(values: Mapping[str, Any], hints: Mapping[str, Any], whose: str = "") -> None:
    """Refuse values that are not of their arguments' types.

    Of names (``str``, or None) any value passes: which there are, and which is the nearest, is said where they are
    looked up.

    Args:
        values: name -> value.
        hints: see :func:`hints_of`.
        whose: how the message begins.

    Raises:
        ArgumentError: a value of another type, a number that is NaN or infinite.
    """
    for name, value in values.items():
        hint = hints.get(name, Any)
        if not _fits(value, hint):
            raise ArgumentError(f"{whose}{name} is {value!r}; it must be {_in_words(hint)}")


def _kinds(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _fits(value: Any, hint: Any) -> bool:
    kinds = _kinds(hint)
    if str in kinds and set(kinds) <= {str, type(None)}:
        return True
    return any(_fits_one(value, kind) for kind in kinds)


def _fits_one(value: Any, kind: Any) -> bool:
    origin = get_origin(kind) or kind
    if origin in (int, float):
        number = isinstance(value, int if origin is int else int | float)
        return number and not isinstance(value, bool) and math.isfinite(value)
    if origin is Sequence:
        entry = (get_args(kind) or (Any,))[0]
        return isinstance(value, Sequence) and not isinstance(value, str) and all(_fits(item, entry) for item in value)
    if origin in (bool, str, Mapping, type(None)):
        return isinstance(value, origin)
    return True


def _in_words(hint: Any) -> str:
    kinds = [_WORDS.get(get_origin(kind) or kind, str(kind)) for kind in _kinds(hint)]
    for index, kind in enumerate(_kinds(hint)):
        if get_origin(kind) is Sequence:
            entries = [_WORDS.get(get_origin(entry) or entry, "").split(" ")[-1] for entry in _kinds(get_args(kind)[0])]
            kinds[index] = "a list of " + " or ".join(f"{entry}s" for entry in entries) if all(entries) else "a list"
    return " or ".join(kinds)


_WORDS = {
    int: "an integer", float: "a finite number", str: "a name", bool: "True or False", Mapping: "a dict",
    type(None): "None",
}  # fmt: skip
