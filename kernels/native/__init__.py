"""Loading of the native libraries, and what this machine can run.

Loading happens once, at the first use of an operator; a library that is absent or does not load is remembered with its
reason, which ``snn doctor`` and :class:`snn_core.errors.BackendUnavailableError` repeat.
"""

from __future__ import annotations

import ctypes
import functools
import os
import warnings
from dataclasses import dataclass

import torch

from snn_core.errors import ArgumentError, BackendUnavailableError
from snn_core.kernels.native.build import LIBRARY_PATH, find_compiler, find_torch_include, instruction_sets

#: Environment variable that overrides ``backend="auto"`` everywhere.
BACKEND_VARIABLE = "SNN_BACKEND"
BACKENDS = ("reference", "cpp")


@dataclass(frozen=True)
class NativeLibrary:
    """State of the CPU library: ``available``, else ``reason``; ``isa`` is the instruction set in use."""

    available: bool
    reason: str
    isa: str


@functools.cache
def cpu_library() -> NativeLibrary:
    """Load the CPU library if it is there. Never raises; the answer is the same for the life of the process."""
    if not LIBRARY_PATH.is_file():
        missing = []
        if find_compiler() is None:
            missing.append("a C++ compiler (g++ or clang++)")
        if find_torch_include() is None:
            missing.append("torch's headers")
        hint = f"missing here: {', '.join(missing)}; then run" if missing else "build it with"
        return NativeLibrary(False, f"not built; {hint} python -m snn_core.kernels.native", "")
    try:
        torch.ops.load_library(str(LIBRARY_PATH))
        library = ctypes.CDLL(str(LIBRARY_PATH))
    except OSError as error:
        return NativeLibrary(False, f"does not load with torch {torch.__version__}: {error}", "")
    library.snn_core_active_isa.restype = ctypes.c_char_p
    return NativeLibrary(True, "", library.snn_core_active_isa().decode())


@torch.compiler.assume_constant_result
def _cpu_available() -> bool:
    """For use inside compiled graphs: a constant of the process, not something to trace into."""
    _warn_if_missing()
    return cpu_library().available


@functools.cache
def _warn_if_missing() -> None:
    """Say once a process that operators run slower than they could."""
    if not cpu_library().available:
        warnings.warn(f"snn_core runs on plain torch, slower: native CPU library {cpu_library().reason}", stacklevel=5)


def compiled_instruction_sets() -> tuple[str, ...]:
    """Instruction sets for which kernels are compiled on this architecture."""
    return tuple(instruction_sets())


def resolve_backend(
    backend: str, device: torch.device, dtype: torch.dtype, native_dtypes: tuple[torch.dtype, ...]
) -> str:
    """The backend that an operator uses for a tensor of this device and dtype.

    ``"auto"`` (after the environment variable SNN_BACKEND) takes the fastest one that is there. A backend that is
    asked for by name is never replaced by another.

    Raises:
        ArgumentError: unknown backend name.
        BackendUnavailableError: the named backend cannot run here or on this tensor.
    """
    wanted = (os.environ.get(BACKEND_VARIABLE) or "auto") if backend == "auto" else backend
    if wanted not in ("auto", *BACKENDS):
        source = f"environment variable {BACKEND_VARIABLE}" if backend == "auto" else "backend"
        raise ArgumentError(f"{source} is {wanted!r}; allowed: auto, {', '.join(BACKENDS)}")
    fits = device.type == "cpu" and dtype in native_dtypes
    if wanted == "auto":
        return "cpp" if fits and _cpu_available() else "reference"
    if wanted == "cpp":
        if not fits:
            allowed = ", ".join(str(item) for item in native_dtypes)
            raise BackendUnavailableError(f"backend 'cpp' takes CPU tensors of {allowed}; got {dtype} on {device}")
        if not _cpu_available():
            raise BackendUnavailableError(f"backend 'cpp' is not available: native library {cpu_library().reason}")
    return wanted
