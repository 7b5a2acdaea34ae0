"""Where data sets lie."""

from __future__ import annotations

import os
from pathlib import Path


def data_root() -> Path:
    """Where data sets lie: the environment variable SNN_DATA, else ../shared/data beside the repository."""
    configured = os.environ.get("SNN_DATA")
    if configured:
        return Path(configured).expanduser()
    checkout = Path(__file__).resolve().parent.parent
    beside = checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()
    return beside.parent / "shared" / "data"
