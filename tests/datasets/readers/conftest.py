"""Real recordings of every format, and where the helpers of these tests lie."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest

from snn_core.datasets import data_root

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def event_formats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked event_formats.zip, single real recordings of many formats; skips where it is absent."""
    path = data_root() / "event_formats.zip"
    if not path.is_file():
        pytest.skip(f"real recordings of many formats are absent: no {path}; set SNN_DATA to the folder that holds it")
    folder = tmp_path_factory.mktemp("formats")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    return folder
