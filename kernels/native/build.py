"""Compile the native libraries on torch's stable ABI: ``_cpu.so``, and ``_cuda.so`` where nvcc is found.

Used by setup.py while the package is installed and by ``python -m snn_core.kernels.native`` afterwards (when a
compiler was added later). It imports neither torch nor the rest of the package: it only needs torch's headers, and for
CUDA no torch with CUDA.

CPU: some sources are compiled once per instruction set (see ``INSTRUCTION_SETS``); the library picks a body at run
time. CUDA: machine code for ``CUDA_ARCHITECTURES`` and PTX for newer GPUs, with its own copy of the CUDA runtime. Both
link nothing of Python, so one binary serves every Python version, and through the stable ABI every torch from 2.11.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path

KERNELS = Path(__file__).resolve().parent.parent
LIBRARY_NAME = "_cpu.so"
LIBRARY_PATH = Path(__file__).resolve().parent / LIBRARY_NAME
CUDA_LIBRARY_PATH = LIBRARY_PATH.with_name("_cuda.so")

SOURCE_SUFFIXES = (".h", ".cpp", ".cuh", ".cu")
#: Compiled into every library with the hash of the sources; see :func:`source_marker`.
MARKER_SOURCE = "native/source_hash.cpp"

#: Compiled once, for every machine of the architecture.
COMMON_SOURCES = (
    "native/cpu_features.cpp", "lif/lif.cpp", "lif/lif_backward.cpp", "spike_pack/spike_pack.cpp",
    "spike_pack/spike_windows.cpp", "frame_conv/frame_conv.cpp", "nm_matmul/nm_matmul.cpp", "nm_matmul/nm_engine.cpp",
    "nm_matmul/nm_compress.cpp", "nm_matmul/nm_dense.cpp", "nm_matmul/nm_paths.cpp", "nm_matmul/nm_layer.cpp",
    "nm_matmul/nm_windows.cpp", "event_frames/event_frames.cpp", "event_sensor/event_sensor.cpp",
    "topk_sampler/topk_sampler.cpp",
)  # fmt: skip
#: Compiled once per instruction set, with ``SNN_ISA`` naming the namespace; ``avx512_vbmi`` adds nothing to them.
PER_ISA_SOURCES = (
    "lif/lif_forward_rows.cpp", "lif/lif_backward_rows.cpp", "native/row_tools.cpp", "frame_conv/frame_rows.cpp",
    "frame_conv/window_rows.cpp", "spike_pack/spike_check_rows.cpp", "topk_sampler/topk_rows.cpp",
)  # fmt: skip
#: The same, for every instruction set.
NM_SOURCES = (
    "nm_matmul/nm_panel_rows.cpp", "nm_matmul/nm_event_rows.cpp", "nm_matmul/nm_layer_rows.cpp",
    "nm_matmul/nm_lookup_rows.cpp", "nm_matmul/nm_few_rows.cpp", "nm_matmul/nm_kept_rows.cpp",
    "nm_matmul/nm_dense_rows.cpp",
)  # fmt: skip
#: Namespace -> compiler flags. ``baseline`` exists everywhere; the others on x86-64 only.
INSTRUCTION_SETS = {
    "baseline": (),
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "avx512": (
        "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mf16c",
        "-mprefer-vector-width=512",
    ),
    "avx512_vbmi": (
        "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vbmi", "-mavx512vbmi2", "-mavx512vnni",
        "-mavx512bf16", "-mavx512vpopcntdq", "-mavx512bitalg", "-mgfni", "-mbmi", "-mbmi2", "-mpopcnt", "-mavx2",
        "-mfma", "-mf16c", "-mprefer-vector-width=512",
    ),
}  # fmt: skip
#: The instruction set for which ``PER_ISA_SOURCES`` are not compiled: those of ``avx512`` serve.
NM_ONLY = "avx512_vbmi"
#: ``-ffp-contract=off``: every instruction set must round alike, so fused operations are written out where wanted.
FLAGS = ("-std=c++20", "-O2", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno",
         "-fno-trapping-math", "-Wall", "-DTORCH_TARGET_VERSION=0x020b000000000000ULL")  # fmt: skip

#: CUDA sources with the macros of each compilation, the longest first. Device code does without torch's headers; what
#: includes them is host code alone, which nvcc hands to the C++ compiler.
CUDA_KERNEL_SOURCES = (
    ("lif/lif_kernels.cu", ("-DSNN_STORAGE=Float32", "-DSNN_TABLE=cuda_lif_float32")),
    ("lif/lif_kernels.cu", ("-DSNN_STORAGE=BFloat16", "-DSNN_TABLE=cuda_lif_bfloat16")),
    ("lif/lif_kernels.cu", ("-DSNN_STORAGE=Float16", "-DSNN_TABLE=cuda_lif_float16")),
    ("spike_pack/spike_pack_kernels.cu", ()),
    ("spike_pack/spike_windows_kernels.cu", ()),
    ("nm_matmul/nm_gemm_kernels.cu", ("-DSNN_MMA=MmaBFloat16", "-DSNN_TABLE=cuda_gemm_bfloat16")),
    ("nm_matmul/nm_gemm_kernels.cu", ("-DSNN_MMA=MmaFloat16", "-DSNN_TABLE=cuda_gemm_float16")),
    ("nm_matmul/nm_gemm_kernels.cu", ("-DSNN_MMA=MmaInt8", "-DSNN_TABLE=cuda_gemm_int8")),
    ("nm_matmul/nm_rows_kernels.cu", ()),
    ("nm_matmul/nm_convert_kernels.cu", ()),
)
#: Compiled for one architecture alone, whose instructions no other has; the launchers ask for it first.
CUDA_HOPPER_SOURCES = ("nm_matmul/nm_warpgroup_kernels.cu",)
HOPPER_TARGET = "-gencode=arch=compute_90a,code=sm_90a"
CUDA_HOST_SOURCES = ("lif/lif.cu", "spike_pack/spike_pack.cu", "spike_pack/spike_windows.cu", "nm_matmul/nm_matmul.cu")
#: Compute capabilities with machine code in ``_cuda.so``; it runs on every later one of the same major version.
CUDA_ARCHITECTURES = ("80", "90")
#: ``--fmad=false``: spikes must be equal on every backend, so no multiplication and addition may be fused.
CUDA_FLAGS = ("-std=c++20", "-O3", "--fmad=false", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall",
              "-Xfatbin=-compress-all", "-cudart=static", "-DTORCH_TARGET_VERSION=0x020b000000000000ULL")  # fmt: skip
#: Words of $CXX that start a compiler and are none themselves.
COMPILER_LAUNCHERS = ("ccache", "distcc", "sccache")
NO_NVCC = "no CUDA compiler found (looked for $NVCC, $CUDA_HOME/bin/nvcc, nvcc, /usr/local/cuda/bin/nvcc)"


class BuildError(RuntimeError):
    """The native library could not be built; the message says what is missing or what the compiler printed."""


def source_hash() -> str:
    """Hash of the names and contents of all native sources, in hexadecimal."""
    digest = hashlib.sha256()
    sources = [path for path in KERNELS.glob("*/*") if path.suffix in SOURCE_SUFFIXES]
    for path in sorted(sources):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(KERNELS).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def source_marker() -> bytes:
    """What a library that was built from the sources that lie here contains."""
    return f"snn_core-sources:{source_hash()}".encode()


def find_compiler() -> list[str] | None:
    """The C++ compiler as a command: ``$CXX`` (may have arguments), else g++, clang++ or c++; None without one."""
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        words = shlex.split(name or "")
        if words and (found := shutil.which(words[0])):
            return [found, *words[1:]]
    return None


def find_torch_include() -> Path | None:
    """The folder of torch's headers, or None.

    An isolated build has no torch on its path, but the environment that is being installed into may have it, and its
    headers are what counts: that environment's site-packages is looked at too.
    """
    candidates = []
    specification = importlib.util.find_spec("torch")
    if specification is not None and specification.origin:
        candidates.append(Path(specification.origin).parent)
    candidates.append(Path(sysconfig.get_path("purelib")) / "torch")
    for torch_folder in candidates:
        if (torch_folder / "include/torch/csrc/stable/library.h").is_file():
            return torch_folder / "include"
    return None


def find_nvcc() -> str | None:
    """The CUDA compiler: ``$NVCC`` where set (then no other), else nvcc of ``$CUDA_HOME``, the path or /usr/local/cuda;
    None without one."""
    if wanted := os.environ.get("NVCC"):
        return shutil.which(wanted)
    home = os.environ.get("CUDA_HOME")
    for name in (home and f"{home}/bin/nvcc", "nvcc", "/usr/local/cuda/bin/nvcc"):
        if name and (found := shutil.which(name)):
            return found
    return None


def _host_compiler() -> list[str]:
    """nvcc's options for the C++ compiler it calls: that of ``$CXX`` where one is set, else nvcc's own choice."""
    compiler = find_compiler() if os.environ.get("CXX") else None
    if compiler is None:
        return []
    return ["-ccbin", next((word for word in compiler if Path(word).name not in COMPILER_LAUNCHERS), compiler[0])]


def instruction_sets() -> dict[str, tuple[str, ...]]:
    """The instruction sets compiled on this architecture."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        return INSTRUCTION_SETS
    return {"baseline": ()}


def _run(command: list[str]) -> None:
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"{command[0]} does not run: {error}") from error
    if result.returncode != 0:
        raise BuildError(f"{' '.join(command)}\nfailed with exit code {result.returncode}:\n{result.stderr[-4000:]}")


def build(output: Path = LIBRARY_PATH, *, extra_flags: tuple[str, ...] = ()) -> Path:
    """Compile and link the library to ``output`` (replaced in one step).

    Args:
        output: where the shared library goes.
        extra_flags: added to every compile and link command (sanitizers, for example).

    Raises:
        BuildError: no compiler, no torch headers, no permission to write, or the compiler failed.
    """
    compiler, include = find_compiler(), find_torch_include()
    if compiler is None:
        raise BuildError("no C++ compiler found (looked for $CXX, g++, clang++, c++)")
    if include is None:
        raise BuildError("torch's headers were not found: install torch >= 2.11 first")
    isas = instruction_sets()
    defines = [f"-DSNN_HAS_{isa.upper()}" for isa in isas]
    jobs: list[tuple[str, list[str]]] = [(source, []) for source in COMMON_SOURCES]
    jobs += [
        (source, [f"-DSNN_ISA={isa}", *flags])
        for source in PER_ISA_SOURCES + NM_SOURCES
        for isa, flags in isas.items()
        if isa != NM_ONLY or source in NM_SOURCES
    ]
    jobs.append((MARKER_SOURCE, [_hash_macro()]))
    link = [*compiler, "-shared", *extra_flags]
    return _compile_and_link(
        output, include, link,
        [([*compiler, *FLAGS, *defines, *flags, *extra_flags], source) for source, flags in jobs],
    )  # fmt: skip


def build_cuda(
    output: Path = CUDA_LIBRARY_PATH,
    *,
    architectures: tuple[str, ...] = CUDA_ARCHITECTURES,
    extra_flags: tuple[str, ...] = (),
) -> Path:
    """Compile and link the CUDA library to ``output`` (replaced in one step).

    Args:
        output: where the shared library goes.
        architectures: compute capabilities without the point ("90", "90a") to make machine code for.
        extra_flags: added to every nvcc command (``-lineinfo``, for example).

    Raises:
        BuildError: no nvcc, no torch headers, no permission to write, or the compiler failed.
    """
    nvcc, include = find_nvcc(), find_torch_include()
    if nvcc is None:
        wanted = os.environ.get("NVCC")
        raise BuildError(f"NVCC is {wanted!r}, which is no program" if wanted else NO_NVCC)
    if include is None:
        raise BuildError("torch's headers were not found: install torch >= 2.11 first")
    # All from one PTX, of the oldest, so that the front end runs once: the kernels need nothing newer.
    virtual = f"compute_{min(_number_of(name) for name in architectures)}"
    codes = ",".join([*(f"sm_{name}" for name in architectures), virtual])
    target = f"-gencode=arch={virtual},code=[{codes}]"
    command = [nvcc, *_host_compiler()]
    host_command = [*command, "-x", "c++", *CUDA_FLAGS, *extra_flags]
    return _compile_and_link(
        output, include, [*command, "-shared", "-cudart=static", target, *extra_flags],
        [([*command, *CUDA_FLAGS, target, *extra_flags, *macros], source) for source, macros in CUDA_KERNEL_SOURCES]
        + [([*command, *CUDA_FLAGS, HOPPER_TARGET, *extra_flags], source) for source in CUDA_HOPPER_SOURCES]
        + [(host_command, source) for source in CUDA_HOST_SOURCES] + [([*host_command, _hash_macro()], MARKER_SOURCE)],
    )  # fmt: skip


def _hash_macro() -> str:
    return f"-DSNN_SOURCE_HASH={source_hash()}"


def _number_of(architecture: str) -> int:
    """90 of "90" and of "90a"."""
    digits = re.match(r"\d+", architecture)
    if digits is None:
        raise BuildError(f"architectures has {architecture!r}; it must be a compute capability as '90' or '90a'")
    return int(digits[0])


def build_emulated(output: Path, *, extra_flags: tuple[str, ...] = ()) -> Path:
    """Compile the CUDA sources with the C++ compiler, for the tests: kernels then run on CPU tensors, thread by thread,
    as operators of the namespace ``snn_core_emulated``.

    Raises:
        BuildError: no compiler, no torch headers, or the compiler failed.
    """
    compiler, include = find_compiler(), find_torch_include()
    if compiler is None or include is None:
        raise BuildError("no C++ compiler or no torch headers found")
    flags = [*FLAGS, "-fno-strict-aliasing", "-DSNN_EMULATED", "-x", "c++", *extra_flags]
    return _compile_and_link(
        output, include, [*compiler, "-shared", *extra_flags],
        [([*compiler, *flags, *macros], source) for source, macros in CUDA_KERNEL_SOURCES]
        + [([*compiler, *flags], source) for source in (*CUDA_HOPPER_SOURCES, *CUDA_HOST_SOURCES)],
    )  # fmt: skip


def _compile_and_link(output: Path, include: Path, link: list[str], jobs: list[tuple[list[str], str]]) -> Path:
    """Run the compile commands side by side, each on its source, and link the objects to ``output``."""
    try:
        # Made before anything is compiled: where it cannot be, compiling would be in vain.
        output.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{output.stem}.", suffix=".so", dir=output.parent)
        os.close(descriptor)
    except OSError as error:
        raise BuildError(f"{output.parent} cannot be written to: {error}") from error
    beside = Path(name)
    try:
        with tempfile.TemporaryDirectory() as folder:
            linked = _link(Path(folder), include, link, jobs)
            shutil.copy(linked, beside)  # with its permissions
        os.replace(beside, output)
    except OSError as error:
        raise BuildError(f"{output} could not be written: {error}") from error
    finally:
        beside.unlink(missing_ok=True)
    return output


def _link(folder: Path, include: Path, link: list[str], jobs: list[tuple[list[str], str]]) -> Path:
    """Compile and link in ``folder``."""
    objects = [str(folder / f"{index}.o") for index in range(len(jobs))]
    commands = [
        [*command, f"-I{include}", f"-I{KERNELS}", "-c", str(KERNELS / source), "-o", target]
        for (command, source), target in zip(jobs, objects, strict=True)
    ]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_run, commands))
    linked = folder / "library.so"
    # torch is named as needed, so that its symbols are found whatever scope it was loaded in; at run time the copy that
    # is already loaded serves.
    _run([*link, *objects, f"-L{include.parent / 'lib'}", "-ltorch_cpu", "-lc10", "-o", str(linked)])
    return linked


def main() -> int:
    """Build in place what can be built and say where it is. Returns the exit code."""
    failed = 0
    try:
        print(f"built {build()}", flush=True)
    except BuildError as error:
        failed = 1
        print(f"snn-core: the native CPU library was not built: {error}")
    try:
        if find_nvcc() is None and not os.environ.get("NVCC"):
            print(f"snn-core: the CUDA library was not built: {NO_NVCC}")
        else:
            print(f"built {build_cuda()}")
    except BuildError as error:
        failed = 1
        print(f"snn-core: the CUDA library was not built: {error}")
    return failed
