"""Fixtures shared by all tests: few threads, a cache of the session's own, real and simulated recordings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from snn_core.datasets import FrameDataset, data_root, load_frames


@pytest.fixture(scope="session", autouse=True)
def few_threads() -> None:
    """One torch thread: tests of this size gain nothing from more, and lose much on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The frame cache of this session; no test reads or writes the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SNN_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def digits_small(session_cache: Path) -> FrameDataset:
    """100 simulated training recordings of digits-dvs, ten a class, T = 3."""
    return load_frames("digits-dvs", "train", T=3, limit=100, quiet=True)


@pytest.fixture(scope="session")
def digits_small_test(session_cache: Path) -> FrameDataset:
    """50 simulated test recordings of digits-dvs, five a class, T = 3."""
    return load_frames("digits-dvs", "test", T=3, limit=50, quiet=True)


@pytest.fixture(scope="session")
def nmnist_zip() -> Path:
    """nmnist_850.zip, real N-MNIST recordings; skips where it is absent."""
    path = data_root() / "nmnist_850.zip"
    if not path.is_file():
        pytest.skip(f"real N-MNIST recordings are absent: no {path}; set SNN_DATA to the folder that holds the file")
    return path
