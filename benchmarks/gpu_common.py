"""What the parts of gpu_suite.py share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from lif_cell import Settings

Report = dict[str, Any]


@dataclass
class Suite:
    """Where a part runs, until when, and where it tells how far it is."""

    device: torch.device
    quick: bool = False
    ends: float = math.inf  # on the clock of time.time()
    commit: str = ""
    earlier: Report = field(default_factory=dict)
    tell: Callable[[Report], None] = lambda report: None

    @property
    def cuda(self) -> bool:
        """On a GPU, rather than a dry run."""
        return self.device.type == "cuda"

    def left(self) -> float:
        """Seconds until the end."""
        return self.ends - time.time()

    def settings(self, repeats: int, groups: list[str]) -> Settings:
        """For the LIF cells."""
        return Settings(self.device, repeats=2 if self.quick else repeats, seconds=1.5, patience=5.0, unroll=16,
                        groups=groups)  # fmt: skip


def usable(suite: Suite) -> bool:
    """Whether this process can still use the device: after an error in a kernel it cannot."""
    try:
        torch.zeros(1, device=suite.device).item()
    except RuntimeError:
        return False
    return True


def release() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
