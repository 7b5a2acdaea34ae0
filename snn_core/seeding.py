"""Seeds without side effects: generators for our own draws, a fork of the global state for library layers."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch


def derive_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed that depends on ``seed`` and on every name: independent streams from one user-visible seed."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def make_generator(seed: int, *names: str | int, device: str | torch.device = "cpu") -> torch.Generator:
    """A torch generator for the stream ``names`` under ``seed``."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, *names))


@contextlib.contextmanager
def seeded(seed: int, *names: str | int) -> Iterator[None]:
    """Seed torch's global generators inside the block and restore them afterwards.

    For library layers that draw from the global state (parameter initialisation, ``nn.Dropout``).
    """
    # Only where CUDA is in use already: a run on the CPU must not start it on every device.
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive_seed(seed, *names))
        yield
