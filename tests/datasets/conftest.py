"""Small hand-made data sets in N-MNIST's official layout; SpikingJelly's own readers; where the helpers lie."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from snn_core.datasets import make_events, write_nmnist

sys.path.insert(0, str(Path(__file__).parent / "readers"))


def some_events(seed: int, num: int = 60) -> np.ndarray:
    generator = np.random.default_rng(seed)
    t = np.sort(generator.integers(500, 300_000, num))
    return make_events(t, *(generator.integers(0, size, num) for size in (34, 34, 2)))


@pytest.fixture
def make_layout(tmp_path: Path) -> Callable[..., Path]:
    """Writes Train/ (3 recordings of each of 0, 1, 7) and Test/ (1 each) into a new folder and returns it."""

    def make(name: str = "official", *, splits: tuple[str, ...] = ("Train", "Test"), inside: str = "") -> Path:
        folder = tmp_path / name
        seed = 0
        for split in splits:
            for label in (0, 1, 7):
                for number in range(1, 4 if split == "Train" else 2):
                    write_nmnist(folder / inside / split / str(label) / f"{number:05d}.bin", some_events(seed))
                    seed += 1
        return folder

    return make


@pytest.fixture
def layout(make_layout: Callable[..., Path]) -> Path:
    return make_layout()


@pytest.fixture
def zipped() -> Callable[[Path], Path]:
    """Packs a folder into a zip beside it and returns the zip's path."""

    def pack(folder: Path) -> Path:
        path = folder.with_suffix(".zip")
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(folder.rglob("*.bin")):
                archive.write(file, file.relative_to(folder))
        return path

    return pack


@pytest.fixture(scope="module")
def spikingjelly() -> Iterator[Callable[[str], Any]]:
    """Modules of SpikingJelly's data sets. They import torchvision (no CPU build) for downloads, not needed here; and
    their package imports them all, some of which need more: so each is imported alone."""
    found = importlib.util.find_spec("spikingjelly")
    if found is None or found.submodule_search_locations is None:
        pytest.skip("SpikingJelly is not installed")
    with pytest.MonkeyPatch.context() as patch:
        package = types.ModuleType("spikingjelly.datasets")
        package.__path__ = [str(Path(found.submodule_search_locations[0]) / "datasets")]
        patch.setitem(sys.modules, "spikingjelly.datasets", package)
        if importlib.util.find_spec("torchvision") is None:
            names = ("torchvision", "torchvision.datasets", "torchvision.datasets.utils", "torchvision.transforms")
            for name in names:
                patch.setitem(sys.modules, name, types.ModuleType(name))
            sys.modules["torchvision"].transforms = None  # type: ignore[attr-defined]
            sys.modules["torchvision.datasets"].DatasetFolder = object  # type: ignore[attr-defined]
            for function in ("check_integrity", "download_url", "extract_archive", "verify_str_arg"):
                setattr(sys.modules["torchvision.datasets.utils"], function, None)
        try:
            importlib.import_module("spikingjelly.datasets.utils")
        except ImportError as error:
            pytest.skip(f"SpikingJelly's data sets cannot be imported: {error}")
        yield lambda name: importlib.import_module(f"spikingjelly.datasets.{name}")
        for name in [name for name in sys.modules if name.startswith("spikingjelly.datasets.")]:
            del sys.modules[name]
