"""Which code a network was trained with: a hash of everything that decides what its training gives."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch

#: Modules and packages that a training passes through, from the samples to the checkpoint. Code that only tells of it
#: (progress, reports) is not among them, nor what is done with the network afterwards.
TRAINING_MODULES = (
    "snn_core.training",
    "snn_core.backbones",
    "snn_core.neurons",
    "snn_core.surrogate",
    "snn_core.seeding",
    "snn_core.datasets.augment",
    "snn_core.kernels.lif",
)
_ENDINGS = (".py", ".cpp", ".h", ".cu", ".cuh")


def sources_hash(paths: Sequence[Path]) -> str:
    """SHA-256 (hex) over the sources at these paths: files, and all source files below folders, with their names."""
    digest = hashlib.sha256()
    for path in paths:
        files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.suffix in _ENDINGS)
        for file in files:
            name = path.name if file == path else f"{path.name}/{file.relative_to(path).as_posix()}"
            content = file.read_bytes()
            digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


@functools.cache
def training_code_version() -> str:
    """Hash of the sources of :data:`TRAINING_MODULES` and torch's version; the same all through a process."""
    places = []
    for name in TRAINING_MODULES:
        found = importlib.util.find_spec(name)
        assert found is not None
        assert found.origin is not None
        place = Path(found.origin).resolve()
        places.append(place.parent if place.name == "__init__.py" else place)
    return hashlib.sha256(f"{torch.__version__} {sources_hash(places)}".encode()).hexdigest()
