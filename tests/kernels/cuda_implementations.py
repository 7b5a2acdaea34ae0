"""CUDA kernels as tests run them: compiled by the C++ compiler for CPU tensors, and on a GPU where there is one."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from snn_core.kernels.native import build, cuda_library

DEVICES = ["emulated", "cuda"] if torch.cuda.is_available() else ["emulated"]


@dataclass(frozen=True)
class Implementation:
    """The operators of one namespace, on copies of CPU tensors."""

    namespace: Any
    device: str

    @property
    def emulated(self) -> bool:
        return self.device == "cpu"

    def __call__(self, name: str, *arguments: Any) -> tuple[Tensor, ...]:
        """An operator on copies of the arguments with their strides; the results come back to the CPU."""
        moved = [self.place(a) if isinstance(a, Tensor) else a for a in arguments]
        result = getattr(self.namespace, name)(*moved)
        return tuple(t.cpu() for t in (result if isinstance(result, tuple) else (result,)))

    def place(self, tensor: Tensor) -> Tensor:
        storage = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
        return storage.to(self.device, copy=True).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


@functools.cache
def load_emulated() -> None:
    """Build and load the emulation, once for all tests of a process: its operators can be defined only once."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    torch.ops.load_library(str(build.build_emulated(Path(folder) / "emulated.so", extra_flags=("-O1",))))


def implementation(name: str) -> Implementation:
    """Of ``DEVICES``; skips where the CUDA library does not run."""
    if name == "emulated":
        load_emulated()
        return Implementation(torch.ops.snn_core_emulated, "cpu")
    if not cuda_library().available:
        pytest.skip(f"CUDA library: {cuda_library().reason}")
    return Implementation(torch.ops.snn_core, "cuda")
