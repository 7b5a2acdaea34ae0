"""The machine and the versions that figures were measured with."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

import snn_core
from snn_core.kernels.native import cpu_library


def describe_machine() -> dict[str, Any]:
    """Processor, cores, torch's threads, system, GPU and versions, as JSON values. No host name, no user."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "native_isa": cpu_library().isa or None,
        "versions": {
            "snn_core": snn_core.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
