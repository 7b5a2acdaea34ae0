"""Triton kernels compiled for sm_80 and sm_90 without a GPU, and what their machine code must and must not contain.

Launches are recorded from the launchers themselves (on small CPU tensors that are never touched), so that what is
compiled and the keys that are compared are those of real calls.
"""

from __future__ import annotations

import contextlib
import functools
import math
import operator
import os
import random
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton")
if triton.knobs.runtime.interpret:
    pytest.skip("compiles nothing in the interpreter", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource, make_backend  # noqa: E402
from triton.runtime.jit import create_function_from_signature  # noqa: E402

from snn_core.kernels.lif import triton as lif_module  # noqa: E402
from snn_core.kernels.native import triton_launch  # noqa: E402
from snn_core.kernels.spike_pack import triton as pack_module  # noqa: E402

OPTIONS = (2.0, 1.0, 0.0, True, False, 0, 2.0)
DIVIDE = (3.3, *OPTIONS[1:])
WIDTH = 2**16  # neurons: more than what takes the configuration for small inputs


@dataclass(frozen=True)
class Launch:
    kernel: Any
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    def specialization(self, cc: int = 90) -> tuple[Any, Any, Any]:
        backend = make_backend(GPUTarget("cuda", cc, 32))
        binder = create_function_from_signature(self.kernel.signature, self.kernel.params, backend)
        bound, specialization, _ = binder(*self.arguments, **self.options)
        return backend, bound, specialization

    def key(self) -> str:
        return str((self.kernel.__name__, self.specialization()[2], sorted(self.options.items())))

    def compile(self, cc: int) -> Any:
        backend, bound, specialization = self.specialization(cc)
        options, signature, constants, attributes = self.kernel._pack_args(
            backend, self.options, bound, specialization, self.options
        )
        source = ASTSource(self.kernel, signature, constants, attributes)
        return triton.compile(source, target=GPUTarget("cuda", cc, 32), options=options.__dict__)


@dataclass(frozen=True)
class Compiled:
    ptx: str
    sass: str
    stack: int
    registers: int

    def count(self, pattern: str) -> int:
        return len(re.findall(rf"\b{pattern}", self.sass))


def record(call: Callable[[], Any]) -> list[Launch]:
    """What ``call`` launches."""
    launches: list[Launch] = []

    def launch(kernel: Any, programs: int, arguments: Any, config: Any, **constants: Any) -> None:
        options = triton_launch.launch_options(config)
        launches.append(Launch(kernel, tuple(arguments), {**options, **constants, "debug": False}))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lif_module, "launch", launch)
        patch.setattr(pack_module, "launch", launch)
        call()
    return launches


def forward(x: Tensor, options: tuple[Any, ...] = OPTIONS, v0: Tensor | None = None, every: int = 0) -> Launch:
    return record(lambda: lif_module.lif_triton(x, v0, None, *options, every, False))[0]


def backward(x: Tensor, learned: bool = False, gradient: Tensor | None = None, surrogate: int = 0) -> Launch:
    q = torch.ones(()) if learned else None
    options = (*OPTIONS[:5], surrogate, OPTIONS[6])
    gradient = x if gradient is None else gradient
    call = functools.partial(lif_module.lif_triton_backward, gradient, None, None, x, None, q, None, *options, 0)
    return record(call)[-1]  # the first rebuilds checkpoints, where there are several chunks


def packed(x: Tensor, dim: int) -> Launch:
    return record(lambda: lif_module.lif_triton_packed(x, None, None, *OPTIONS, dim))[0]


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype)


CASES: dict[str, Callable[[], Launch]] = {
    "forward": lambda: forward(zeros(4, WIDTH)),
    "forward_divide": lambda: forward(zeros(4, WIDTH), DIVIDE),
    "forward_checkpoints": lambda: forward(zeros(35, WIDTH), v0=zeros(WIDTH), every=16),
    "forward_bfloat16": lambda: forward(zeros(16, WIDTH, dtype=torch.bfloat16)),
    "forward_batch_first": lambda: forward(zeros(64, 4, 1024).transpose(0, 1)),
    "forward_unaligned": lambda: forward(zeros(4, WIDTH + 1)),
    "forward_inplace": lambda: record(
        lambda: lif_module.lif_triton_inplace(zeros(4, WIDTH), None, None, *OPTIONS)
    )[0],
    "backward": lambda: backward(zeros(4, WIDTH)),
    "backward_chunks": lambda: backward(zeros(35, WIDTH)),
    "backward_chunks_float16": lambda: backward(zeros(16, WIDTH, dtype=torch.float16)),
    "backward_learned_tau": lambda: backward(zeros(16, WIDTH), learned=True, surrogate=1),
    "packed_last": lambda: packed(zeros(4, 256, 1024), 2),
    "packed_channels": lambda: packed(zeros(4, 8, 16, 4096), 2),
    "pack": lambda: record(lambda: pack_module.spike_pack_triton(zeros(64, 1024), 1))[0],
    "unpack": lambda: record(
        lambda: pack_module.spike_unpack_triton(zeros(64, 128, dtype=torch.uint8), 1024, 1, torch.float32)
    )[0],
}  # fmt: skip
#: These take seconds to compile: once is enough where the machine code differs in little.
ONLY_90 = (
    "backward_chunks_float16", "backward_learned_tau", "forward_batch_first", "forward_bfloat16", "forward_inplace",
    "forward_unaligned",
)  # fmt: skip
TARGETS = [(name, cc) for name in CASES for cc in (80, 90) if cc == 90 or name not in ONLY_90]


def disassemble(kernel: Any, folder: Path) -> Compiled:
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(kernel.asm["cubin"])
    dumps = [
        subprocess.run(
            [str(tools / "cuobjdump"), option, str(cubin)], capture_output=True, text=True, check=True
        ).stdout
        for option in ("-sass", "-res-usage")
    ]
    usage = re.search(r"REG:(\d+) STACK:(\d+)", dumps[1])
    assert usage is not None, dumps[1]
    # Nothing is asserted of an empty text.
    assert re.search(r"\bEXIT\b", dumps[0]), dumps[0]
    assert ".entry" in kernel.asm["ptx"]
    return Compiled(kernel.asm["ptx"], dumps[0], int(usage[2]), int(usage[1]))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Compiled]]:
    """Compiles a case once a session; nothing is taken from the user's cache or left there."""
    folder = tmp_path_factory.mktemp("triton")
    found: dict[Any, Compiled] = {}

    def get(name: str, cc: int, **options: Any) -> Compiled:
        key = (name, cc, *options.items())
        if key not in found:
            launch = CASES[name]()
            launch = Launch(launch.kernel, launch.arguments, {**launch.options, **options})
            found[key] = disassemble(launch.compile(cc), folder)
        return found[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(folder))
        yield get


@pytest.mark.parametrize(("name", "cc"), TARGETS)
def test_compiles_into_registers(name: str, cc: int, compiled: Callable[..., Compiled]) -> None:
    code = compiled(name, cc)
    assert code.stack == 0
    assert code.count(r"(LDL|STL)\b") == 0, "local memory"
    assert ".ftz" not in code.ptx, "denormals flushed"


@pytest.mark.parametrize(("name", "cc"), [target for target in TARGETS if target[0] != "forward_unaligned"])
def test_reads_and_writes_vectors(name: str, cc: int, compiled: Callable[..., Compiled]) -> None:
    code = compiled(name, cc)
    half = name in ("backward_chunks_float16", "backward_learned_tau")  # half a vector a thread: see triton.py
    width = r"\.64" if half else r"\.128"
    loads, stores = code.count(r"LDG\."), code.count(r"STG\.")
    assert min(loads, stores) > 0
    if name != "unpack":  # reads a byte a thread
        assert code.count(rf"LDG\.E\S*{width}") >= min(4, loads)
    if name not in ("pack", "packed_last", "packed_channels"):  # these write bytes
        assert code.count(rf"STG\.E\S*{width}") >= min(4, stores)


def test_what_is_not_aligned_is_read_by_elements(compiled: Callable[..., Compiled]) -> None:
    code = compiled("forward_unaligned", 90)
    assert code.count(r"LDG\.E\S*\.128") == 0
    assert code.count(r"LDG\.") > 0


@pytest.mark.parametrize("cc", [80, 90])
@pytest.mark.parametrize("name", ["forward", "forward_checkpoints", "packed_last"])
def test_multiplications_and_additions_are_not_fused(name: str, cc: int, compiled: Callable[..., Compiled]) -> None:
    code = compiled(name, cc)
    assert code.count("FFMA") == 0
    assert code.count("FMUL") > 0


def test_fusion_would_be_seen(compiled: Callable[..., Compiled]) -> None:
    assert compiled("forward", 90, enable_fp_fusion=True).count("FFMA") > 0


@pytest.mark.parametrize("cc", [80, 90])
def test_division_by_tau_is_rounded_to_nearest(cc: int, compiled: Callable[..., Compiled]) -> None:
    ptx = compiled("forward_divide", cc).ptx
    assert "div.rn.f32" in ptx
    assert not re.search(r"div\.full|div\.approx|\bfma\.", ptx)


def test_enough_warps_fit_a_multiprocessor(compiled: Callable[..., Compiled]) -> None:
    """16 warps a multiprocessor in the backward over whole chunks, as CHUNK_CONFIGS says."""
    assert compiled("backward_chunks", 90).registers <= 128


def test_no_shape_and_no_number_of_steps_compiles_again() -> None:
    def keys(launches: list[Launch]) -> set[str]:
        return {launch.key() for launch in launches}

    shapes = [(8, 2**17), (16, 2**16 + 16), (48, 2**18), (17, 3 * 2**16)]
    assert len(keys([forward(zeros(*shape)) for shape in shapes])) == 1
    assert len(keys([backward(zeros(T, WIDTH)) for T in (17, 32, 48, 500)])) == 1
    batches = [(64, 8, 1024), (128, 16, 2048), (96, 48, 4096), (1000, 20, 64)]
    assert len(keys([forward(zeros(*shape).transpose(0, 1)) for shape in batches])) == 1
    images = [(4, 8, 16, 64, 64), (4, 16, 64, 16, 64), (4, 3, 1024, 16, 8)]
    gradients = [backward(zeros(*s), gradient=zeros(*s[:2], *s[3:], s[2]).movedim(-1, 2)) for s in images]
    assert len(keys(gradients)) == 1
    assert len(keys([packed(zeros(4, 64, size), 2) for size in (1024, 2048, 4096)])) == 1


def test_another_class_compiles_its_own() -> None:
    launches = [
        forward(zeros(8, WIDTH)), forward(zeros(8, WIDTH + 1)), forward(zeros(8, WIDTH).bfloat16()),
        forward(zeros(4, WIDTH)), forward(zeros(64, 8, 1024).transpose(0, 1)), forward(zeros(8, WIDTH), DIVIDE),
    ]  # fmt: skip
    assert len({launch.key() for launch in launches}) == len(launches)


STRIDED: dict[str, Callable[[], Tensor]] = {
    "contiguous": lambda: zeros(3, 16, 5),
    "transposed": lambda: zeros(3, 5, 16).transpose(1, 2),
    "channels_last": lambda: zeros(2, 16, 3, 3).contiguous(memory_format=torch.channels_last),
    "sliced": lambda: zeros(4, 2, 16)[:, :, ::2],
    "expanded": lambda: zeros(1, 16).expand(4, 16),
}


@pytest.mark.parametrize("name", list(STRIDED))
def test_packed_and_unpacked_spikes_lie_as_their_fakes_say(name: str) -> None:
    """Which is how the other backends lay them; only launches are recorded, so the values are anything."""

    def made(operator: Callable[..., Tensor], *arguments: Any) -> Tensor:
        results: list[Tensor] = []
        record(lambda: results.append(operator(*arguments)))
        return results[0]

    s = STRIDED[name]()
    meta = torch.empty_strided(s.shape, s.stride(), device="meta")
    for dim in range(s.ndim):
        size = s.shape[dim]
        packed = made(pack_module.spike_pack_triton, s, dim)
        unpacked = made(pack_module.spike_unpack_triton, packed, size, dim, torch.float32)
        packed_meta = torch.ops.snn_core.spike_pack_triton(meta, dim)
        unpacked_meta = torch.ops.snn_core.spike_unpack_triton(packed_meta, size, dim, torch.float32)
        assert (packed.shape, packed.stride()) == (packed_meta.shape, packed_meta.stride())
        assert (unpacked.shape, unpacked.stride()) == (unpacked_meta.shape, unpacked_meta.stride())


def test_walk_visits_every_element_once() -> None:
    """Offsets that the kernels' arguments stand for, against the tensors' own, for random layouts."""
    generator, walked = random.Random(0), 0

    def view(size: tuple[int, ...]) -> Tensor:
        order = generator.sample(range(len(size)), len(size))
        base = torch.empty([size[d] * generator.choice((1, 1, 2)) for d in order])
        base = base.permute([order.index(d) for d in range(len(size))])
        base = base[tuple(slice(0, extent) for extent in size)]
        return base[:1].expand(size) if size and generator.random() < 0.2 else base

    for _ in range(300):
        size = tuple(generator.choice((1, 2, 3, 4)) for _ in range(generator.randint(0, 5)))
        views = [view(size), view(size)]
        dense = torch.empty_like(views[0])
        strides = [v.stride() for v in (dense, *views)]
        walk = triton_launch.plan_walk(size, dense.stride(), tuple(strides))
        if walk is not None:
            walked += 1
            expected = [tuple(sum(map(operator.mul, p, s)) for s in strides) for p in _indices(size)]
            assert list(zip(*(_offsets(walk, k) for k in range(3)), strict=True)) == sorted(expected)
    assert walked > 100


def _indices(size: tuple[int, ...]) -> list[tuple[int, ...]]:
    return (
        [tuple(p) for p in torch.cartesian_prod(*map(torch.arange, size)).view(-1, len(size)).tolist()]
        if size
        else [()]
    )


def _offsets(walk: Any, operand: int) -> list[int]:
    """``block_offsets`` in Python."""
    strides, dims = walk.strides[operand], walk.constants["DIMS"]
    if all(stride is None for stride in strides):
        return list(range(walk.count))
    inner = [size for size in walk.sizes if size is not None]
    sizes = [walk.count // math.prod(inner), *inner]
    steps = [1 if stride is None else stride for stride in strides[4 - dims :]]
    return [sum(i * s for i, s in zip(p, steps, strict=True)) for p in _indices(tuple(sizes))]


def test_configurations_are_timed_once_and_never_while_capturing(monkeypatch: pytest.MonkeyPatch) -> None:
    configs = (triton_launch.Config(4), triton_launch.Config(8))
    ran: list[triton_launch.Config] = []
    capturing = True
    monkeypatch.setattr(triton_launch, "_choices", {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(triton_launch, "_milliseconds", lambda run: run() or -len(ran))  # the last one is the fastest
    monkeypatch.delenv(triton_launch.AUTOTUNE_VARIABLE, raising=False)

    def choose(device: str = "cuda:0", tunable: bool = True) -> triton_launch.Config:
        return triton_launch.choose_config("key", configs, ran.append, tunable=tunable, device=torch.device(device))

    assert choose() is configs[0]
    capturing = False
    assert choose("cpu") is configs[0]
    assert choose(tunable=False) is configs[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(triton_launch.AUTOTUNE_VARIABLE, "0")
        assert choose() is configs[0]
    assert not ran
    assert choose() is configs[1]
    assert choose() is configs[1]
    assert ran == list(configs)


def test_imports_without_a_driver() -> None:
    """Nothing asks for a GPU before the first launch: the modules are imported, and registered, here."""
    if torch.cuda.is_available():
        pytest.skip("a driver is here")
    lif_module.register()
    pack_module.register()
    lif_module.register()
    assert torch._C._dispatch_has_kernel_for_dispatch_key("snn_core::lif_triton", "CUDA")
    assert torch._C._dispatch_has_kernel_for_dispatch_key("snn_core::spike_unpack_triton", "CUDA")
    with pytest.raises(NotImplementedError, match="CPU"):
        torch.ops.snn_core.lif_triton_inplace(zeros(3, 4), None, None, *OPTIONS)
    assert os.environ.get("TRITON_INTERPRET", "0") == "0"
