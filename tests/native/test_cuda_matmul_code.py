"""The machine code of the matrix products: sparse tensor-core instructions, wide copies, no spills."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

import pytest

from tests.native.test_cuda_build import ARCHITECTURES, dump, needs_library

pytestmark = needs_library
#: Weights' type -> opcode of a product with 2:4 weights, and with dense ones.
PRODUCTS = {
    "MmaBFloat16": ("HMMA.SP.16832.F32.BF16", "HMMA.16816.F32.BF16"),
    "MmaFloat16": ("HMMA.SP.16832.F32", "HMMA.16816.F32"),
    "MmaInt8": ("IMMA.SP.16864.S8.U8", "IMMA.16832.S8.U8"),
}
#: (sparse weight, spikes, outputs and rows of a tile)
TILES = [
    (sparse, spikes, tile)
    for sparse in (True, False)
    for spikes in (True, False)
    for tile in ((64, 16), (64, 64), (128, 128))
]


@pytest.fixture(scope="module")
def opcodes() -> dict[tuple[str, str], Counter[str]]:
    """(mangled kernel, architecture) -> how often each opcode is there."""
    names = sorted(set(re.findall(r"Function (\S*nm_(?:gemm|rows_wide)_kernel\S*):", dump("-res-usage"))))
    found: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    key = ("", "")
    for architecture in ARCHITECTURES:
        for line in dump("-sass", "-arch", architecture, "-fun", ",".join(names)).splitlines():
            if match := re.search(r"Function : (\S+)", line):
                key = (match[1], architecture)
            elif match := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9_.]+)", line):
                found[key][match[1]] += 1
    return found


def products_of(opcodes: dict[tuple[str, str], Counter[str]], pattern: str, architecture: str) -> Counter[str]:
    (key,) = [key for key in opcodes if re.search(pattern, key[0]) and key[1] == architecture]
    return opcodes[key]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("type_name", PRODUCTS)
def test_tensor_core_products(opcodes: dict[tuple[str, str], Counter[str]], type_name: str, architecture: str) -> None:
    for sparse, spikes, (outputs, rows) in TILES:
        if type_name == "MmaInt8" and not spikes:
            continue
        pattern = rf"nm_gemm_kernel\w*{type_name}ELb{int(sparse)}ELb{int(spikes)}ELi{outputs}ELi{rows}E"
        found = products_of(opcodes, pattern, architecture)
        products = {code for code in found if re.match(r"[HIQ]G?MMA", code)}
        assert products == {PRODUCTS[type_name][0 if sparse else 1]}
        assert found["LDGSTS.E.BYPASS.128"] > 0, "weights come in copies of 16 bytes"
        # Registers of operands come by ldmatrix: for spikes of the weight alone, the rest is shifts and masks.
        assert found["LDSM.16.M88.4"] > 0
        assert found["STG.E.128"] > 0
        assert not {code for code in found if code.startswith(("LDL", "STL"))}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("rows", [1, 2, 4])
def test_few_rows_read_wide_and_select_with_one_instruction(
    opcodes: dict[tuple[str, str], Counter[str]], rows: int, architecture: str
) -> None:
    found = products_of(opcodes, rf"nm_rows_wide_kernelILi1ELi1ELi{rows}E", architecture)
    assert found["LDG.E.128"] == 2 + 2 * rows  # values of two outputs; 32 bytes of each row of x
    assert found["PRMT"] == 4 * 2 * rows  # one for each block of an output and row
    assert not {code for code in found if code.startswith(("LDL", "STL"))}


def test_hopper_products() -> None:
    """wgmma.sp in every type, in machine code of sm_90a alone."""
    names = set(re.findall(r"Function (\S*nm_warpgroup_kernel\S*):", dump("-res-usage")))
    assert len(names) == 6
    kernels = dump("-sass", "-fun", ",".join(sorted(names))).split("Function : ")[1:]
    assert len(kernels) == 6
    products = set()
    for kernel in kernels:
        assert not re.search(r"\b(LDL|STL)\b", kernel)
        assert "LDGSTS.E.BYPASS.128" in kernel
        found = set(re.findall(r"\b[HIQ]GMMA[\w.]*", kernel))
        assert len(found) == 1
        products |= found
    assert products == {
        "HGMMA.SP.64x128x32.F32.BF16", "HGMMA.SP.64x128x32.F32", "IGMMA.SP.64x128x64.S8.U8",
        "QGMMA.SP.64x128x64.F32.E4M3.E4M3",
    }  # fmt: skip
