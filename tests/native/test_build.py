"""The native library: every instruction set computes the same bits; a missing compiler is said, not hidden."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from snn_core.kernels.native import build, compiled_instruction_sets, cpu_library

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
