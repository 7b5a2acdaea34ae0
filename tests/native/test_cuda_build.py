"""The CUDA library: it is built where it can be, loads without CUDA, and its machine code is what it should be."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from snn_core.kernels.native import build

LIBRARY = build.CUDA_LIBRARY_PATH
needs_library = pytest.mark.skipif(not LIBRARY.is_file(), reason="no CUDA library: nvcc was not found when installing")
ARCHITECTURES = [f"sm_{name}" for name in build.CUDA_ARCHITECTURES]


def cuobjdump() -> str:
    """The tool of the CUDA toolkit, or the one that Triton carries."""
    tool = shutil.which("cuobjdump")
    if tool is None:
        triton = pytest.importorskip("triton", reason="no cuobjdump: neither CUDA toolkit nor triton")
        tool = str(Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump")
    return tool


def dump(*arguments: str) -> str:
    command = [cuobjdump(), *arguments, str(LIBRARY)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_library_is_there_where_it_can_be_built() -> None:
    """The other tests are skipped without it, so its absence must not pass unseen."""
    if build.find_nvcc() is None or build.find_torch_include() is None or os.environ.get("SNN_BUILD_CUDA") == "0":
        pytest.skip("no nvcc or no torch headers here, or SNN_BUILD_CUDA=0")
    assert LIBRARY.is_file(), "python -m snn_core.kernels.native builds it"


def test_no_nvcc_is_a_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NVCC", raising=False)
    monkeypatch.setattr(build, "find_nvcc", lambda: None)
    with pytest.raises(build.BuildError, match="no CUDA compiler"):
        build.build_cuda(tmp_path / "x.so")
    assert not (tmp_path / "x.so").exists()


def test_nvcc_is_looked_for_where_it_may_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nvcc = tmp_path / "bin/nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\n")
    nvcc.chmod(0o755)
    monkeypatch.delenv("NVCC", raising=False)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert build.find_nvcc() == str(nvcc)
    monkeypatch.setenv("NVCC", sys.executable)
    assert build.find_nvcc() == sys.executable
    monkeypatch.setenv("NVCC", str(tmp_path / "absent"))
    assert build.find_nvcc() is None
    with pytest.raises(build.BuildError, match=r"NVCC is .*absent"):
        build.build_cuda(tmp_path / "x.so")


def test_what_nvcc_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if build.find_torch_include() is None:
        pytest.skip("no torch headers here")
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path / "log"}\n'
        'while [ $# -gt 0 ]; do [ "$1" = -o ] && touch "$2"; shift; done\nexit 0\n'
    )
    nvcc.chmod(0o755)
    monkeypatch.setenv("NVCC", str(nvcc))
    monkeypatch.setenv("CXX", f"{sys.executable} --version")
    build.build_cuda(tmp_path / "x.so", architectures=("90a", "80"))
    commands = (tmp_path / "log").read_text().splitlines()
    sources = (*build.CUDA_KERNEL_SOURCES, *build.CUDA_HOPPER_SOURCES, *build.CUDA_HOST_SOURCES)
    assert len(commands) == len(sources) + 2  # marker, link
    assert sum(build.HOPPER_TARGET in command for command in commands) == len(build.CUDA_HOPPER_SOURCES)
    assert all(f"-ccbin {sys.executable} " in command for command in commands)
    target = "-gencode=arch=compute_80,code=[sm_90a,sm_80,compute_80]"
    assert sum(target in command for command in commands) == len(build.CUDA_KERNEL_SOURCES) + 1
    monkeypatch.delenv("CXX")
    build.build_cuda(tmp_path / "x.so")
    assert "-ccbin" not in (tmp_path / "log").read_text().splitlines()[-1]
    with pytest.raises(build.BuildError, match="architectures has 'native'"):
        build.build_cuda(tmp_path / "x.so", architectures=("native",))


@needs_library
def test_loads_without_cuda() -> None:
    """Every symbol it needs is in torch's CPU library, and nothing of the CUDA runtime is left to find."""
    program = (
        "import sys, torch; from snn_core.kernels.lif import schema; from snn_core.kernels.spike_pack import ops\n"
        "from snn_core.kernels.nm_matmul import schema\n"
        "torch.ops.load_library(sys.argv[1])\n"
        "names = ['lif', 'lif_backward', 'lif_packed', 'lif_inplace', 'spike_pack', 'spike_unpack', 'spike_im2col',\n"
        "         'spike_max_pool', 'nm_spikes', 'nm_spikes_lif', 'nm_dense', 'nm_decompress', 'nm_compress']\n"
        "print(all(torch._C._dispatch_has_kernel_for_dispatch_key(f'snn_core::{n}', 'CUDA') for n in names))"
    )
    command = [sys.executable, "-c", program, str(LIBRARY)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env={"LD_BIND_NOW": "1"})
    assert result.stdout.strip() == "True", result.stderr


@needs_library
def test_a_gpu_that_cannot_run_its_kernels_is_left_to_triton() -> None:
    """Where there is no driver, the library's own runtime says so, whatever torch believes."""
    if torch.cuda.is_available():
        pytest.skip("kernels run here")
    program = (
        "import torch; from snn_core.kernels.native import cuda_library, resolve_backend\n"
        "torch.version.cuda, torch.cuda.is_available, torch.cuda.current_device = '13.0', lambda: True, lambda: 0\n"
        "print(resolve_backend('auto', torch.device('cuda'), torch.float32, (torch.float32,)))\n"
        "print(cuda_library().reason)"
    )
    environment = {**os.environ, "SNN_BACKEND": "", "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    backend, reason = result.stdout.splitlines()
    assert backend == ("reference" if importlib.util.find_spec("triton") is None else "triton")
    assert re.match("its kernels do not run on this GPU and driver: .*driver", reason)


@needs_library
def test_machine_code_for_every_architecture_and_ptx_for_later_ones() -> None:
    assert set(re.findall(r"\.(sm_\d+)\.cubin", dump("-lelf"))) == set(ARCHITECTURES)
    assert ".ptx" in dump("-lptx")


@needs_library
def test_no_local_memory() -> None:
    """A spill, or an array indexed at run time, would go through memory at every step."""
    resources = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", dump("-res-usage"))
    kernels = {name for name, *_ in resources if "kernel" in name}
    assert len(kernels) >= 50
    spilled = [item for item in resources if item[2:] != ("0", "0")]
    assert not spilled


@pytest.fixture(scope="module")
def opcodes() -> dict[tuple[str, str], set[str]]:
    """(kernel with its template arguments, architecture) -> opcodes, of the kernels with wide accesses."""
    names = sorted({name for name in re.findall(r"Function (\S+):", dump("-res-usage")) if _wide(name)})
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    key = ("", "")
    for architecture in ARCHITECTURES:
        for line in dump("-sass", "-arch", architecture, "-fun", ",".join(names)).splitlines():
            if match := re.search(r"Function : (\S+)", line):
                key = (_readable(match[1]), architecture)
            elif match := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9_.]+)", line):
                found[key].add(match[1])
    return found


def _wide(name: str) -> bool:
    """Mangled names: of the backward the ATan surrogate stands for all."""
    return bool(
        re.search(
            r"lif_forward_kernel\w*ELi[48]E|lif_backward_kernel\w*ELi4ELi0E|(pack|unpack|packed)_kernel\w*ELb1E", name
        )
    )


def _readable(name: str) -> str:
    kernel = re.search(r"\d+((?:lif|spike)_\w+?_kernel)", name)
    storage = re.search(r"\d+(B?Float(?:16|32))E", name)
    assert kernel is not None
    assert storage is not None
    arguments = re.findall(r"L[ib](\d+)E", name)
    return " ".join((kernel[1], storage[1], *arguments))


#: 16 bytes a thread, but for the backward of 16-bit storage: 4 neurons are 8 bytes there.
ACCESSES = [
    ("lif_forward_kernel Float32 4", "LDG.E.128", "STG.E.128"),
    ("lif_forward_kernel BFloat16 8", "LDG.E.128", "STG.E.128"),
    ("lif_forward_kernel Float16 8", "LDG.E.128", "STG.E.128"),
    ("lif_backward_kernel Float32 4 0 16", "LDG.E.128", "STG.E.128"),
    ("lif_backward_kernel Float32 4 0 4", "LDG.E.128", "STG.E.128"),
    ("lif_backward_kernel BFloat16 4 0 16", "LDG.E.64", "STG.E.64"),
    ("lif_backward_kernel Float16 4 0 4", "LDG.E.64", "STG.E.64"),
    ("lif_packed_kernel Float32 1", "LDG.E.128", "STG.E.U8"),
    ("lif_packed_kernel BFloat16 1", "LDG.E.128", "STG.E.U8"),
    ("spike_pack_kernel Float32 1", "LDG.E.128", "STG.E.U8"),
    ("spike_unpack_kernel BFloat16 1", "LDG.E.U8", "STG.E.128"),
]


@needs_library
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("kernel", "load", "store"), ACCESSES)
def test_wide_accesses(
    opcodes: dict[tuple[str, str], set[str]], kernel: str, load: str, store: str, architecture: str
) -> None:
    found = opcodes[kernel, architecture]
    assert {load, store} <= found
    assert not {code for code in found if code.startswith(("LDL", "STL"))}
    generic = {code for code in found if re.match(r"(LD|ST)(\.|$)", code)}
    assert not generic, "the compiler lost that these pointers are to global memory"
