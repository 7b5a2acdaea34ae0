"""Loading of the native libraries, and what this machine can run.

Loading happens once, at the first use of an operator; a library that is absent, was built from other sources or does
not load is remembered with its reason, which ``snn doctor`` and
:class:`snn_core.errors.BackendUnavailableError` repeat.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from snn_core.errors import ArgumentError, BackendUnavailableError
from snn_core.kernels.native.build import (
    CUDA_LIBRARY_PATH,
    LIBRARY_PATH,
    find_compiler,
    find_torch_include,
    instruction_sets,
    source_marker,
)

#: Environment variable that overrides ``backend="auto"`` everywhere.
BACKEND_VARIABLE = "SNN_BACKEND"
BACKENDS = ("reference", "cpp", "triton", "cuda")


@dataclass(frozen=True)
class NativeLibrary:
    """State of a backend: ``available``, else ``reason``; ``isa`` is the instruction set in use (CPU)."""

    available: bool
    reason: str
    isa: str = ""


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
    library, reason = _load(LIBRARY_PATH)
    if library is None:
        return NativeLibrary(False, reason)
    library.snn_core_active_isa.restype = ctypes.c_char_p
    return NativeLibrary(True, "", library.snn_core_active_isa().decode())


@functools.cache
def cuda_library() -> NativeLibrary:
    """Load the CUDA library if it is there and its kernels can run here. Never raises; the answer is kept."""
    if torch.version.cuda is None:
        return NativeLibrary(False, f"torch {torch.__version__} is built without CUDA")
    if not torch.cuda.is_available():
        return NativeLibrary(False, "torch finds no CUDA device")
    if not CUDA_LIBRARY_PATH.is_file():
        return NativeLibrary(False, "not built; with nvcc at hand, build it with python -m snn_core.kernels.native")
    library, reason = _load(CUDA_LIBRARY_PATH)
    if library is not None:
        reason = _why_kernels_cannot_run(library)
    return NativeLibrary(not reason, reason)


def _load(path: Path) -> tuple[ctypes.CDLL | None, str]:
    """The library with its operators registered, or None and the reason.

    Its sources are compared before: torch hands arguments to a kernel as a stack without checking them against the
    schema that it was compiled for, so one that was built before a schema changed would read the wrong ones.
    """
    try:
        if source_marker() not in path.read_bytes():
            return None, "built from other sources; rebuild with python -m snn_core.kernels.native"
        torch.ops.load_library(str(path))
        return ctypes.CDLL(str(path)), ""
    except (OSError, RuntimeError) as error:
        return None, f"does not load with torch {torch.__version__}: {error}"


def _why_kernels_cannot_run(library: ctypes.CDLL) -> str:
    """Empty where the kernels of the CUDA library run on the current device: its machine code, or that which the driver
    makes of its PTX, may fit neither GPU nor driver, which torch's own libraries do not tell."""
    probe = library.snn_core_cuda_probe
    probe.restype = ctypes.c_char_p
    try:
        error = probe(ctypes.c_int(torch.cuda.current_device()))
    except RuntimeError as failure:  # torch cannot initialise CUDA: after a fork, for example
        return f"torch cannot use the CUDA device: {failure}"
    return "" if error is None else f"its kernels do not run on this GPU and driver: {error.decode()}"


@functools.cache
def triton_backend() -> NativeLibrary:
    """Register the Triton kernels if triton is there and has a GPU or its interpreter to run on. Never raises."""
    if importlib.util.find_spec("triton") is None:
        return NativeLibrary(False, "triton is not installed")
    if not (torch.cuda.is_available() or triton_interprets()):
        return NativeLibrary(False, "torch finds no CUDA device, and triton's interpreter is off (TRITON_INTERPRET=1)")
    try:
        from snn_core.kernels.lif import triton as lif_triton
        from snn_core.kernels.nm_matmul import triton as nm_matmul_triton
        from snn_core.kernels.spike_pack import triton as spike_pack_triton
        from snn_core.kernels.topk_sampler import triton as topk_sampler_triton
    except Exception as error:  # a triton that does not fit this torch or Python fails in many ways
        return NativeLibrary(False, f"does not import: {type(error).__name__}: {error}")
    lif_triton.register()
    nm_matmul_triton.register()
    spike_pack_triton.register()
    topk_sampler_triton.register()
    return NativeLibrary(True, "")


def triton_interprets() -> bool:
    """Whether Triton kernels run in its interpreter, on CPU tensors too (for tests)."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


# For use inside compiled graphs: constants of the process, not something to trace into.
@torch.compiler.assume_constant_result
def _cpu_available() -> bool:
    _warn_if_missing()
    return cpu_library().available


@torch.compiler.assume_constant_result
def _cuda_available() -> bool:
    return cuda_library().available


@torch.compiler.assume_constant_result
def _triton_available() -> bool:
    return triton_backend().available


@torch.compiler.assume_constant_result
def _triton_takes_cpu() -> bool:
    return triton_interprets()


@functools.cache
def _warn_if_missing() -> None:
    """Say once a process that operators run slower than they could."""
    if not cpu_library().available:
        warnings.warn(f"snn_core runs on plain torch, slower: native CPU library {cpu_library().reason}", stacklevel=5)


def compiled_instruction_sets() -> tuple[str, ...]:
    """Instruction sets for which kernels are compiled on this architecture."""
    return tuple(instruction_sets())


def native_backend(device: torch.device) -> str | None:
    """``cpp`` or ``cuda`` where the native library for the device runs here, else None. For compiled graphs too."""
    if device.type == "cpu":
        return "cpp" if _cpu_available() else None
    return "cuda" if device.type == "cuda" and _cuda_available() else None


def triton_runs_on(device: torch.device) -> bool:
    """Whether Triton kernels take tensors of the device here. For compiled graphs too."""
    return (device.type == "cuda" or (device.type == "cpu" and _triton_takes_cpu())) and _triton_available()


#: Asked for in every call, so as they lie in the environment: os.environ encodes, decodes, and raises an exception
#: inside for what is not set, which takes 1 us each.
SETTINGS = (BACKEND_VARIABLE, "SNN_DISPATCH", "SNN_KEEP_DENSE")
_ENVIRONMENT: Any = getattr(os.environ, "_data", os.environ)
_NAMES = (
    tuple(getattr(os.environ, "encodekey", str)(name) for name in SETTINGS)
    if _ENVIRONMENT is not os.environ
    else SETTINGS
)
_FIRST, _SECOND, _THIRD = _NAMES


def wanted_backend(backend: str, known: tuple[str, ...] = BACKENDS) -> str:
    """``backend``, or what the environment variable SNN_BACKEND says where that is ``"auto"``.

    Raises:
        ArgumentError: not ``"auto"`` and not among ``known``.
    """
    if backend == "auto":
        if _ENVIRONMENT.get(_NAMES[0]) is None:
            return backend
        wanted = os.environ.get(BACKEND_VARIABLE) or backend
    else:
        wanted = backend
    if wanted not in ("auto", *known):
        source = f"environment variable {BACKEND_VARIABLE}" if backend == "auto" else "backend"
        raise ArgumentError(f"{source} is {wanted!r}; allowed: auto, {', '.join(known)}")
    return wanted


def settings() -> tuple[Any, ...]:
    """Of the environment variables ``SETTINGS``: equal as long as these are."""
    get = _ENVIRONMENT.get
    return get(_FIRST), get(_SECOND), get(_THIRD)  # no loop: this is a part of what a product costs


@functools.cache
def spike_counter() -> Callable[[int, int], int] | None:
    """The native count of set bits, of an address and a number of bytes; None without the CPU library."""
    if not cpu_library().available:
        return None
    count = ctypes.CDLL(str(LIBRARY_PATH)).snn_core_count_spikes
    count.restype, count.argtypes = ctypes.c_int64, (ctypes.c_void_p, ctypes.c_int64)
    return cast("Callable[[int, int], int]", count)


@functools.cache
def binary_check() -> Callable[[int, int, int], int] | None:
    """Whether elements are 0 or 1, of an address, a number of elements and a storage type (float32, bfloat16, float16);
    None without the CPU library."""
    if not cpu_library().available:
        return None
    check = ctypes.CDLL(str(LIBRARY_PATH)).snn_core_is_binary
    check.restype, check.argtypes = ctypes.c_int, (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int)
    return cast("Callable[[int, int, int], int]", check)


def resolve_backend(
    backend: str, device: torch.device, dtype: torch.dtype, native_dtypes: tuple[torch.dtype, ...]
) -> str:
    """The backend that an operator uses for a tensor of this device and dtype.

    ``"auto"`` (after the environment variable SNN_BACKEND) takes the first that is there: on the CPU ``cpp``, on a
    GPU ``cuda``, then ``triton``; else ``reference``. A backend that is asked for by name is never replaced by another.

    Raises:
        ArgumentError: unknown backend name.
        BackendUnavailableError: the named backend cannot run here or on this tensor.
    """
    wanted = wanted_backend(backend)
    if wanted == "reference":
        return wanted
    native = dtype in native_dtypes
    if wanted == "auto":
        if native and device.type == "cpu" and _cpu_available():
            return "cpp"
        if native and device.type == "cuda" and _cuda_available():
            return "cuda"
        if native and device.type == "cuda" and _triton_available():
            return "triton"
        return "reference"
    _require(wanted, device, dtype, native_dtypes)
    return wanted


def _require(wanted: str, device: torch.device, dtype: torch.dtype, native_dtypes: tuple[torch.dtype, ...]) -> None:
    """Raise BackendUnavailableError where a backend that was asked for by name cannot take this tensor."""
    home = "cpu" if wanted == "cpp" else "cuda"
    fits = device.type == home or (wanted == "triton" and device.type == "cpu" and _triton_takes_cpu())
    if not fits or dtype not in native_dtypes:
        allowed = ", ".join(str(item) for item in native_dtypes)
        raise BackendUnavailableError(
            f"backend {wanted!r} takes {home.upper()} tensors of {allowed}; got {dtype} on {device}"
        )
    if wanted == "cpp" and not _cpu_available():
        raise BackendUnavailableError(f"backend 'cpp' is not available: native library {cpu_library().reason}")
    if wanted == "cuda" and not _cuda_available():
        raise BackendUnavailableError(f"backend 'cuda' is not available: native library {cuda_library().reason}")
    if wanted == "triton" and not _triton_available():
        raise BackendUnavailableError(f"backend 'triton' is not available: {triton_backend().reason}")
