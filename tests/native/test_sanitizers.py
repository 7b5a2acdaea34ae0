"""The native CPU code under AddressSanitizer and UndefinedBehaviorSanitizer, and a check that they would notice.

The library is built anew with the sanitizers into a temporary folder, and sanitizer_program.py runs every operator on
it in a process where the sanitizers' runtimes are preloaded (Python itself is not built with them). Compiling takes
most of the time, so the test suite builds the baseline instruction set alone, with the checks of undefined behaviour
that compile fast; ``make sanitize`` (SNN_SANITIZE=all) builds all instruction sets with all checks.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from snn_core.kernels.native import build, compiled_instruction_sets, cpu_library

PROGRAM = Path(__file__).with_name("sanitizer_program.py")
EVERYTHING = os.environ.get("SNN_SANITIZE") == "all"
INSTRUCTION_SETS = compiled_instruction_sets() if EVERYTHING else ("baseline",)
CHECKS = "undefined" if EVERYTHING else "bool,enum,integer-divide-by-zero,shift,signed-integer-overflow"
#: Address checks as calls in place of inline code: half the time to compile.
FLAGS = ("-O0", f"-fsanitize=address,float-cast-overflow,{CHECKS}", "-fno-sanitize-recover=all",
         "--param", "asan-instrumentation-with-call-threshold=0")  # fmt: skip

PLANTED = """
extern "C" float read_at(const float* data, long index) { return data[index]; }
extern "C" int add(int a, int b) { return a + b; }
"""
READ_PAST_A_TENSOR = """
import ctypes, sys, torch
x = torch.zeros(16)
ctypes.CDLL(sys.argv[1]).read_at(ctypes.c_void_p(x.data_ptr()), ctypes.c_long(16))
"""
OVERFLOW = """
import ctypes, sys
ctypes.CDLL(sys.argv[1]).add(2**31 - 1, 1)
"""


def runtimes() -> list[str]:
    """The libraries to preload: the sanitizers, and the C++ library whose exceptions they intercept."""
    compiler = build.find_compiler()
    if compiler is None or "clang" in Path(compiler[0]).resolve().name:
        pytest.skip("no g++ here, whose sanitizers these are")
    found = []
    for name in ("libasan.so", "libubsan.so", "libstdc++.so.6"):
        result = subprocess.run([*compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=False)
        path = result.stdout.strip()
        if not os.path.isabs(path) or not os.path.exists(path):
            pytest.skip(f"{compiler[0]} has no {name} beside it")
        found.append(path)
    return found


def run(command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | variables | {
        "LD_PRELOAD": " ".join(runtimes()),
        # Python and torch leak by design, and what they do is not the matter here.
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runtimes()
    if build.find_torch_include() is None:
        pytest.skip("no torch headers here")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "INSTRUCTION_SETS", {isa: build.INSTRUCTION_SETS[isa] for isa in INSTRUCTION_SETS})
        return build.build(tmp_path_factory.mktemp("sanitized") / "library.so", extra_flags=FLAGS)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_operators_are_clean(library: Path, isa: str) -> None:
    available = compiled_instruction_sets()
    if available.index(isa) > available.index(cpu_library().isa or available[-1]):
        pytest.skip(f"this machine has no {isa}")
    result = run([str(PROGRAM), str(library)], SNN_CPU_ISA=isa)
    assert result.returncode == 0, (result.stdout + result.stderr)[-8000:]
    assert result.stdout.startswith(f"finished {isa} ")
    assert all(int(count) > 0 for count in result.stdout.split()[2:])


def test_planted_errors_are_noticed(tmp_path: Path) -> None:
    """A read one element past a tensor of torch's, and a signed overflow: the check above can fail."""
    runtimes()
    source, planted = tmp_path / "planted.cpp", tmp_path / "planted.so"
    source.write_text(PLANTED)
    compiler = build.find_compiler()
    assert compiler is not None
    subprocess.run([*compiler, *FLAGS, "-fPIC", "-shared", str(source), "-o", str(planted)], check=True)
    for program, word in ((READ_PAST_A_TENSOR, "heap-buffer-overflow"), (OVERFLOW, "signed integer overflow")):
        result = run(["-c", program, str(planted)])
        assert result.returncode != 0
        assert word in result.stderr, result.stderr[-4000:]
