"""``snn doctor``: what this machine can run, what is used, and why."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
from typing import Any

import torch

import snn_core
from snn_core.cli import common
from snn_core.kernels.lif.checks import NATIVE_DTYPES
from snn_core.kernels.native import (
    BACKEND_VARIABLE,
    NativeLibrary,
    compiled_instruction_sets,
    cpu_library,
    cuda_library,
    resolve_backend,
    triton_backend,
)
from snn_core.kernels.native.build import find_compiler, find_nvcc

#: Packages that matter, and what each is for.
PACKAGES = {
    "torch": "tensors, autograd",
    "triton": "GPU kernels where the CUDA library is absent",
    "spikingjelly": "peer in tests and benchmarks; optional",
    "tonic": "dataset downloads, second opinion on readers",
    "h5py": "frame cache, distilled products",
    "safetensors": "checkpoints",
    "numpy": "event arrays",
    "scikit-learn": "digits of digits-dvs",
}


def doctor(as_json: common.JsonOption = False) -> None:
    """Print what is there, what is used and why."""
    report = inspect_machine()
    rows: list[list[str]] = [
        ["snn-core", report["snn_core"]],
        ["python", report["python"]],
        ["processor", f"{report['processor']}, {report['threads']} threads for torch"],
        *[[f"package {name}", value or "not installed"] for name, value in report["packages"].items()],
        ["C++ compiler", report["compiler"] or "not found"],
        ["CUDA compiler", report["cuda_compiler"] or "not found"],
        ["CUDA device", report["cuda_device"] or "none"],
        ["native CPU library", report["native_cpu"]["text"]],
        ["native CUDA library", report["native_cuda"]["text"]],
        ["Triton kernels", report["triton"]["text"]],
        *[[f"lif on {key}", value] for key, value in report["lif"].items()],
        [f"${BACKEND_VARIABLE}", report["backend_variable"] or "not set"],
        ["data folder", report["data_folder"]],
        ["cache folder", report["cache_folder"]],
    ]
    from rich.table import Table

    table = Table(title="What this machine can use", title_justify="left", show_header=False)
    for row in rows:
        table.add_row(*row)
    common.show(report, table, as_json)


def inspect_machine() -> dict[str, Any]:
    """The facts behind ``snn doctor``, as plain JSON values."""
    from snn_core.datasets import cache_root, data_root

    library = cpu_library()
    text = library.reason
    if library.available:
        text = f"loaded, using {library.isa} (compiled: {', '.join(compiled_instruction_sets())})"
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    data = data_root()
    return {
        "snn_core": snn_core.__version__,
        "python": platform.python_version(),
        "processor": f"{platform.machine()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "packages": {name: _version(name) for name in PACKAGES},
        "compiler": shlex.join(find_compiler() or []),
        "cuda_compiler": find_nvcc(),
        "cuda_device": cuda,
        "native_cpu": {"available": library.available, "isa": library.isa, "text": text},
        "native_cuda": _state(cuda_library()),
        "triton": _state(triton_backend()),
        "lif": {
            f"{device} {str(dtype).removeprefix('torch.')}": _lif_backend(device, dtype)
            for device in (["cpu", "cuda"] if cuda else ["cpu"])
            for dtype in (*NATIVE_DTYPES, torch.float64)
        },
        "backend_variable": os.environ.get(BACKEND_VARIABLE),
        "data_folder": f"{data}{'' if data.is_dir() else ' (does not exist)'}",
        "cache_folder": str(cache_root()),
    }


def _state(library: NativeLibrary) -> dict[str, Any]:
    return {"available": library.available, "text": "loaded" if library.available else library.reason}


def _lif_backend(device: str, dtype: torch.dtype) -> str:
    try:
        return resolve_backend("auto", torch.device(device), dtype, NATIVE_DTYPES)
    except (RuntimeError, ValueError) as error:
        return f"unavailable: {error}"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
