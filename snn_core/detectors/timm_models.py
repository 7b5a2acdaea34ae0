"""timm's vision transformers: imported where they are asked for, with errors that say what to install."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from snn_core.errors import ArgumentError, BackendUnavailableError, DataError

#: Models whose blocks the adapters know: plain vision transformers, and the image encoder of Segment Anything.
FAMILIES = ("vit_*", "samvit_*")
INSTALL = (
    'pip install "snn-core[detectors]"; without CUDA: pip install --no-deps timm torchvision==0.16.2, '
    "and pip install huggingface_hub pillow"
)


def import_timm() -> Any:
    """The module timm.

    Raises:
        BackendUnavailableError: it, or something that it imports, is missing or broken; the message says what to do.
    """
    try:
        with warnings.catch_warnings():
            # torchvision says at import that it cannot read JPEG files here; nothing here reads files through it.
            warnings.filterwarnings("ignore", message="Failed to load image Python extension")
            import timm
    except Exception as error:  # a torchvision of another torch fails with RuntimeError, OSError or AttributeError
        missing = getattr(error, "name", None) or "timm"
        raise BackendUnavailableError(
            f"vision transformers need timm, and {missing} cannot be imported: {error}. Install it: {INSTALL}"
        ) from error
    return timm


def list_models(pattern: str = "*") -> list[str]:
    """Names of timm's models that :class:`snn_core.detectors.FrozenViT` takes.

    Raises:
        BackendUnavailableError: as :func:`import_timm`.
    """
    timm = import_timm()
    return sorted(name for family in FAMILIES for name in timm.list_models(family) if fnmatchcase(name, pattern))


def create_model(name: str, *, download: bool = False, **options: Any) -> nn.Module:
    """A vision transformer of timm.

    Args:
        name: one of :func:`list_models`, perhaps with a tag of its weights behind a point.
        download: let timm fetch its weights.
        **options: arguments of timm's class; None is left out.

    Raises:
        ArgumentError: a name that the installed timm does not know (with the nearest), or options it does not take.
        BackendUnavailableError: as :func:`import_timm`.
        DataError: the weights could not be fetched.
    """
    timm = import_timm()
    known = list_models()
    base = str(name).partition(".")[0]
    if base not in known:
        near = difflib.get_close_matches(base, known, n=3, cutoff=0.4)
        reason = f"timm {timm.__version__} has no model {name!r}"
        if timm.is_model(base):
            reason = f"timm's {name!r} is none of {', '.join(FAMILIES)}"
        raise ArgumentError(f"model: {reason}; nearest: {', '.join(near) or 'none'}")
    given = {key: value for key, value in options.items() if value is not None}
    if download:
        return _download(timm, name, given)
    try:
        model: nn.Module = timm.create_model(name, pretrained=False, **given)
    except (TypeError, ValueError, RuntimeError, AssertionError, ArithmeticError, KeyError) as error:
        raise ArgumentError(f"model: timm cannot build {name!r} with {given}: {error}") from error
    return model


def _download(timm: Any, name: str, options: Mapping[str, Any]) -> nn.Module:
    try:
        model: nn.Module = timm.create_model(name, pretrained=True, **options)
    except Exception as error:  # of the network, of files, of the hub's client: each has exceptions of its own
        raise DataError(
            f"pretrained: timm could not fetch the weights of {name!r}: {type(error).__name__}: {error}. Without a "
            "network, give the path of a safetensors file"
        ) from error
    return model
