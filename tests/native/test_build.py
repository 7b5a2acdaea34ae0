"""The native library: every instruction set computes the same bits; a missing compiler is said, not hidden."""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from snn_core.kernels import native
from snn_core.kernels.native import build, compiled_instruction_sets, cpu_library, cuda_library

needs_native = pytest.mark.skipif(not cpu_library().available, reason=f"native library {cpu_library().reason}")

PROGRAM = """
import hashlib, itertools, torch
from snn_core.kernels import lif, pack_spikes, unpack_spikes
from snn_core.kernels.native import cpu_library
digest = hashlib.sha256()
generator = torch.Generator().manual_seed(0)
surrogates = ("atan", "sigmoid", "triangle", "rectangle", "fast_sigmoid")
for dtype, surrogate, v_reset, detach, learn in itertools.product(
    (torch.float32, torch.bfloat16, torch.float16), surrogates, (0.0, None), (True, False), (True, False)):
    x = (torch.randn(7, 1003, generator=generator) * 2).to(dtype).requires_grad_()
    q = torch.tensor(0.3, requires_grad=True) if learn else None
    s, v = lif(x, tau=3.0, reciprocal_tau=q, v_reset=v_reset, detach_reset=detach, surrogate=surrogate, backend="cpp")
    (s.sum() + v.square().sum()).backward()
    packed, _ = lif(x.detach(), tau=3.0, v_reset=v_reset, pack_spikes_dim=-1, backend="cpp")
    again = pack_spikes(unpack_spikes(packed, 1003, dtype=dtype, backend="cpp"), backend="cpp")
    for t in (s, v, x.grad, packed, again, *([q.grad] if learn else [])):
        digest.update(t.detach().float().numpy().tobytes())
print(cpu_library().isa, digest.hexdigest())
"""


@needs_native
def test_every_instruction_set_gives_the_same_bits() -> None:
    available = compiled_instruction_sets()
    best = available.index(cpu_library().isa)
    digests = {}
    for isa in available[: best + 1]:
        environment = {**os.environ, "SNN_CPU_ISA": isa}
        result = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
        )
        name, digest = result.stdout.split()
        assert name == isa
        assert len(digest) == hashlib.sha256().digest_size * 2
        digests[isa] = digest
    assert len(set(digests.values())) == 1, digests


def test_library_is_there_where_it_can_be_built() -> None:
    """All native tests are skipped without it, so its absence must not pass unseen."""
    if build.find_compiler() is None or build.find_torch_include() is None:
        pytest.skip("no C++ compiler or no torch headers here")
    assert cpu_library().available, cpu_library().reason


def test_compiler_may_have_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", f"{sys.executable} -m wrapper 'g++'")
    assert build.find_compiler() == [sys.executable, "-m", "wrapper", "g++"]


def test_no_compiler_is_a_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(build.BuildError, match=r"no C\+\+ compiler"):
        build.build(tmp_path / "x.so")
    assert not (tmp_path / "x.so").exists()


def test_a_failing_compiler_keeps_the_old_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\necho broken >&2\nexit 3\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    old = tmp_path / "library.so"
    old.write_bytes(b"old")
    with pytest.raises(build.BuildError, match="broken"):
        build.build(old)
    assert old.read_bytes() == b"old"
    assert {path.name for path in tmp_path.iterdir()} == {"g++", "library.so"}


def test_what_cannot_be_written_is_said_before_compiling(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text(f"#!/bin/sh\necho ran >> {tmp_path / 'log'}\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(build.BuildError, match="cannot be written to"):
        build.build(tmp_path / "file" / "library.so")
    assert not (tmp_path / "log").exists()
    with pytest.raises(build.BuildError, match="could not be written"):  # this compiler leaves no file
        build.build(tmp_path / "library.so")
    assert (tmp_path / "log").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"g++", "file", "log"}


def test_one_library_that_cannot_be_built_does_not_stop_the_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> Path:
        raise build.BuildError("no permission")

    monkeypatch.setattr(build, "build", fail)
    monkeypatch.setattr(build, "find_nvcc", lambda: "nvcc")
    monkeypatch.setattr(build, "build_cuda", lambda: Path("_cuda.so"))
    assert build.main() == 1
    printed = capsys.readouterr().out
    assert "no permission" in printed
    assert "built _cuda.so" in printed


def test_hash_is_of_names_and_contents_of_the_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build, "KERNELS", tmp_path)
    (tmp_path / "lif").mkdir()
    found = [build.source_hash()]
    for name, content in (("a.h", "1"), ("a.h", "2"), ("b.cuh", ""), ("c.cu", "3"), ("d.cpp", "4")):
        (tmp_path / "lif" / name).write_text(content)
        found.append(build.source_hash())
    (tmp_path / "lif/d.cpp").rename(tmp_path / "lif/e.cpp")
    found.append(build.source_hash())
    assert len(set(found)) == len(found)
    (tmp_path / "lif/ops.py").write_text("5")
    assert build.source_hash() == found[-1]


@needs_native
def test_library_says_its_sources() -> None:
    library = ctypes.CDLL(str(build.LIBRARY_PATH))
    library.snn_core_sources.restype = ctypes.c_char_p
    assert library.snn_core_sources() == build.source_marker()


def test_library_of_other_sources_is_not_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Before torch registers anything of it: an old library must not be read with new schemas."""
    loaded: list[str] = []
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    library = tmp_path / "library.so"
    library.write_bytes(b"code" + build.source_marker()[:-1] + b"_data")  # the end of the hash is another
    for load, path in ((cpu_library, "LIBRARY_PATH"), (cuda_library, "CUDA_LIBRARY_PATH")):
        monkeypatch.setattr(native, path, library)
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        found = load.__wrapped__()
        assert not found.available
        assert "built from other sources; rebuild with python -m snn_core.kernels.native" in found.reason
    assert not loaded
    library.write_bytes(b"code" + build.source_marker() + b"data")
    found = cpu_library.__wrapped__()
    assert loaded == [str(library)]
    assert "does not load" in found.reason  # it is no library


def test_a_library_that_torch_refuses_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(path: str) -> None:
        raise RuntimeError("registered twice")

    (tmp_path / "library.so").write_bytes(build.source_marker())
    monkeypatch.setattr(native, "LIBRARY_PATH", tmp_path / "library.so")
    monkeypatch.setattr(torch.ops, "load_library", refuse)
    assert "registered twice" in cpu_library.__wrapped__().reason
