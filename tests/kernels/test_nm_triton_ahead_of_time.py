"""Triton kernels of N:M weights compiled for sm_80 and sm_90 without a GPU, and what their machine code must contain.

Launches are recorded from the launchers themselves, on tensors without data.
"""

from __future__ import annotations

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

from snn_core.kernels.nm_matmul import triton as module  # noqa: E402

HALF, FLOAT = torch.bfloat16, torch.float32


@dataclass(frozen=True)
class Launch:
    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    def specialization(self, cc: int = 90) -> tuple[Any, Any, Any]:
        backend = make_backend(GPUTarget("cuda", cc, 32))
        binder = create_function_from_signature(self.kernel.signature, self.kernel.params, backend)
        bound, specialization, _ = binder(*self.arguments, **self.options, debug=False)
        return backend, bound, specialization

    def key(self) -> str:
        return str((self.kernel.__name__, self.specialization()[2], sorted(self.options.items())))

    def compile(self, cc: int) -> Any:
        backend, bound, specialization = self.specialization(cc)
        given = {**self.options, "debug": False}
        options, signature, constants, attributes = self.kernel._pack_args(backend, given, bound, specialization, given)
        source = ASTSource(self.kernel, signature, constants, attributes)
        return triton.compile(source, target=GPUTarget("cuda", cc, 32), options=options.__dict__)


@dataclass(frozen=True)
class Compiled:
    sass: str
    stack: int
    shared: int

    def count(self, pattern: str) -> int:
        return len(re.findall(rf"\b{pattern}", self.sass))


def record(call: Callable[[], Any]) -> list[Launch]:
    """What ``call`` launches."""
    launches: list[Launch] = []

    def launch(kernel: Any, grid: Any, arguments: Any, options: dict[str, Any]) -> None:
        launches.append(Launch(kernel, tuple(grid), tuple(arguments), options))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "launch", launch)
        call()
    return launches


def compressed(rows: int, size: int, n: int, m: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    blocks = rows * size // m
    bits = (m - 1).bit_length()
    return torch.empty(blocks, n, dtype=dtype), torch.empty((blocks * n * bits + 7) // 8, dtype=torch.uint8)


def product(
    rows: int, x_dtype: torch.dtype = HALF, dtype: torch.dtype = HALF, pattern: tuple[int, int] = (2, 4),
    outputs: int = 2048, size: int = 2048,
) -> list[Launch]:  # fmt: skip
    values, indices = compressed(outputs, size, *pattern, dtype)
    scale = torch.empty(outputs) if dtype.itemsize == 1 else None
    x = torch.empty(rows, size, dtype=x_dtype)
    return record(
        lambda: module.nm_dense_triton(
            x, values, indices, *pattern, [outputs, size, 1, 1], scale, torch.empty(outputs), 0
        )
    )


def decompress(n: int, m: int, dtype: torch.dtype) -> Launch:
    values, indices = compressed(512, 960, n, m, dtype)
    return record(lambda: module.nm_decompress_triton(values, indices, n, m, 512, None, HALF))[0]


def compress(n: int, m: int) -> list[Launch]:
    return record(lambda: module.nm_compress_triton(torch.empty(512, 480, dtype=HALF), None, n, m))


CASES: dict[str, Callable[[], Launch]] = {
    "product_1": lambda: product(1)[0],
    "product_float16_32": lambda: product(32, torch.float16, torch.float16)[0],
    "product_64": lambda: product(64)[0],
    "product_4096": lambda: product(4096)[0],
    "product_int8": lambda: product(1, HALF, torch.int8)[0],
    "product_e4m3": lambda: product(1, HALF, torch.float8_e4m3fn)[0],
    "product_float32": lambda: product(1, FLOAT, FLOAT)[0],
    "product_2_6": lambda: product(1, pattern=(2, 6), size=1920)[0],
    "reduce": lambda: product(1)[1],
    "decompress": lambda: decompress(2, 4, HALF),
    "decompress_e4m3": lambda: decompress(2, 4, torch.float8_e4m3fn),
    "compress": lambda: compress(2, 4)[0],
    "pack": lambda: compress(2, 4)[1],
    "mask": lambda: record(lambda: module.nm_mask_triton(torch.empty(512, 480, dtype=HALF), 2, 4))[0],
}
#: Compilation takes a second each: on sm_80 only what differs there.
ON_80 = ("product_1", "product_4096", "product_e4m3")
TARGETS = [(name, cc) for name in CASES for cc in (80, 90) if cc == 90 or name in ON_80]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, int], Compiled]]:
    """Compiles a case once a session; nothing is taken from the user's cache or left there."""
    folder = tmp_path_factory.mktemp("triton")
    found: dict[tuple[str, int], Compiled] = {}

    def get(name: str, cc: int) -> Compiled:
        if (name, cc) not in found:
            found[name, cc] = disassemble(CASES[name]().compile(cc), folder)
        return found[name, cc]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(folder))
        yield get


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
    stack = re.search(r"STACK:(\d+)", dumps[1])
    assert stack is not None, dumps[1]
    assert re.search(r"\bEXIT\b", dumps[0]), dumps[0]  # nothing is asserted of an empty text
    return Compiled(dumps[0], int(stack[1]), kernel.metadata.shared)


@pytest.mark.parametrize(("name", "cc"), TARGETS)
def test_compiles_into_registers(name: str, cc: int, compiled: Callable[[str, int], Compiled]) -> None:
    code = compiled(name, cc)
    assert code.stack == 0
    assert code.count(r"(LDL|STL)\b") == 0, "local memory"
    assert code.shared <= 160 << 10, "more shared memory than sm_80 gives a program"


PRODUCTS = [(name, cc) for name, cc in TARGETS if name.startswith("product")]


@pytest.mark.parametrize(("name", "cc"), [(name, cc) for name, cc in PRODUCTS if "float32" not in name])
def test_products_are_those_of_tensor_cores(name: str, cc: int, compiled: Callable[[str, int], Compiled]) -> None:
    assert compiled(name, cc).count(r"(HMMA|HGMMA)") > 0


def test_float32_is_not_rounded_to_tf32(compiled: Callable[[str, int], Compiled]) -> None:
    code = compiled("product_float32", 90)
    assert code.count(r"(HMMA|HGMMA)") == 0
    assert code.count("FFMA") > 0


@pytest.mark.parametrize(("name", "cc"), [(n, cc) for n, cc in PRODUCTS if "float32" not in n and "2_6" not in n])
def test_weights_are_read_by_vectors(name: str, cc: int, compiled: Callable[[str, int], Compiled]) -> None:
    """Values and activations, 16 bytes a load, straight to shared memory or through registers."""
    code = compiled(name, cc)
    assert code.count(r"(LDG\.E\S*|LDGSTS\.E\S*)\.128") >= 2


@pytest.mark.parametrize(("name", "cc"), [("product_1", 80), ("product_1", 90)])
def test_every_block_is_put_together_in_one_thread(
    name: str, cc: int, compiled: Callable[[str, int], Compiled]
) -> None:
    """Two shifts of 64 bits for its two values. The compiler's choice of layouts once made that in four threads."""
    launch = CASES[name]()
    blocks = launch.options["BO"] * launch.options["NB"] // (32 * launch.options["num_warps"])
    assert compiled(name, cc).count(r"SHF\.L\.U64\.HI") == 2 * blocks


@pytest.mark.parametrize("name", ["decompress", "decompress_e4m3"])
def test_decompressed_weights_are_written_by_vectors(name: str, compiled: Callable[[str, int], Compiled]) -> None:
    assert compiled(name, 90).count(r"STG\.E\S*\.128") > 0


def test_few_rows_are_cut_into_enough_programs() -> None:
    dense, reduce = product(1)
    assert dense.grid == (32, 1, 8)
    assert reduce.grid == (8, 1)
    assert len(product(4096)) == 1


def test_no_number_of_rows_and_no_ordinary_size_compiles_again() -> None:
    def keys(launches: list[list[Launch]]) -> set[str]:
        return {one.key() for group in launches for one in group}

    assert len(keys([product(rows) for rows in (1, 2, 7, 16)])) == 2
    assert len(keys([product(4096), product(1000), product(300, outputs=8192, size=4096)])) == 1
    assert len(keys([[decompress(2, 4, HALF)], [decompress(2, 4, HALF)]])) == 1


def test_launchers_choose_by_rows() -> None:
    found = [product(rows)[0].options["BR"] for rows in (1, 16, 17, 33, 65)]
    assert found == [16, 16, 32, 64, 128]


def test_imports_without_a_driver() -> None:
    if torch.cuda.is_available():
        pytest.skip("a driver is here")
    module.register()
    module.register()
    for name in ("nm_dense", "nm_decompress", "nm_compress", "nm_mask"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"snn_core::{name}_triton", "CUDA")
    with pytest.raises(NotImplementedError, match="CPU"):
        torch.ops.snn_core.nm_mask_triton(torch.zeros(1, 4), 2, 4)
