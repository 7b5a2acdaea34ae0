"""Small hand-made data sets in N-MNIST's official layout."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from snn_core.datasets import make_events, write_nmnist


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
