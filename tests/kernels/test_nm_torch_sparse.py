"""torch's own 2:4 products as candidates: what is offered when, and how long a converted weight is kept.

The products need a GPU; here a stand-in multiplies with the matrix that torch's CUTLASS conversion, which runs on the
CPU, gives back.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

from snn_core.kernels.nm_compress import CompressedNM, nm_mask_by_magnitude
from snn_core.kernels.nm_matmul import torch_sparse


def weight(rows: int = 64, columns: int = 128, pattern: str = "2:4", dtype: torch.dtype = torch.bfloat16) -> Tensor:
    dense = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)).to(dtype)
    return dense * nm_mask_by_magnitude(dense, pattern)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """CPU tensors are taken for those of an A100 with both libraries; what was converted, in turn."""
    converted: list[str] = []

    def convert(name: str, weight: CompressedNM, dtype: torch.dtype) -> Tensor:
        converted.append(name)
        return sparse_semi_structured_to_dense_cutlass(
            *sparse_semi_structured_from_dense_cutlass(weight.to_dense(dtype).contiguous())
        )

    monkeypatch.setattr(torch_sparse, "convert", convert)
    monkeypatch.setattr(torch_sparse, "why_not", lambda x, weight: "")
    monkeypatch.setattr(torch_sparse, "_library_runs", lambda name, device: True)
    torch_sparse._kept.clear()
    yield converted
    torch_sparse._kept.clear()


X = torch.randn(3, 5, 128, generator=torch.Generator().manual_seed(1)).bfloat16()


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "1:2"])
@pytest.mark.parametrize("scaled", [False, True])
def test_products_are_those_of_the_dense_weight(pattern: str, scaled: bool, gpu: list[str]) -> None:
    compressed = CompressedNM.from_dense(weight(pattern=pattern), pattern)
    if scaled:
        compressed = compressed.with_scale(torch.linspace(0.5, 2, 64))
    bias = torch.arange(64.0)
    candidates = torch_sparse.torch_candidates(X, compressed, bias)
    assert [name for name, _ in candidates] == ["cusparselt", "cutlass"]
    expected = F.linear(X, compressed.to_dense(torch.bfloat16), bias.bfloat16())
    for _, run in candidates:
        assert torch.equal(run(), expected)
        assert run().dtype == torch.bfloat16


def test_a_weight_is_converted_once(gpu: list[str]) -> None:
    compressed = CompressedNM.from_dense(weight())
    for _ in range(20):
        for _, run in torch_sparse.torch_candidates(X, compressed, None):
            run()
    assert gpu == ["cusparselt", "cutlass"]
    for _, run in torch_sparse.torch_candidates(X.half(), compressed, None):
        run()
    assert len(gpu) == 4


def test_what_is_not_used_is_not_kept(gpu: list[str]) -> None:
    compressed = CompressedNM.from_dense(weight())

    def take(chosen: str) -> None:
        dict(torch_sparse.torch_candidates(X, compressed, None))[chosen]()

    take("cutlass")
    for _ in range(torch_sparse.IDLE_OFFERS + 1):
        take("cusparselt")
    assert gpu == ["cutlass", "cusparselt"]
    assert {name for name, _ in torch_sparse._kept[compressed.values].tensors} == {"cusparselt"}
    take("cutlass")
    assert gpu == ["cutlass", "cusparselt", "cutlass"]


def test_conversions_die_with_the_weight(gpu: list[str]) -> None:
    compressed = CompressedNM.from_dense(weight())
    dict(torch_sparse.torch_candidates(X, compressed, None))["cutlass"]()
    assert len(torch_sparse._kept) == 1
    del compressed
    gc.collect()
    assert len(torch_sparse._kept) == 0


def test_a_weight_that_changes_is_converted_anew(gpu: list[str]) -> None:
    compressed = CompressedNM.from_dense(weight())
    before = dict(torch_sparse.torch_candidates(X, compressed, None))["cutlass"]()
    compressed.values.mul_(2)
    after = dict(torch_sparse.torch_candidates(X, compressed, None))["cutlass"]()
    assert torch.equal(after, 2 * before)
    scaled = compressed.with_scale(torch.full((64,), 0.5))
    assert torch.equal(dict(torch_sparse.torch_candidates(X, scaled, None))["cutlass"](), before)


def test_what_torch_does_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))

    class OnGpu:
        """As much of a CUDA tensor as is asked about."""

        device = torch.device("cuda:0")

        def __init__(self, dtype: torch.dtype) -> None:
            self.dtype = dtype

    def why(matrix: Tensor, pattern: str = "2:4", dtype: torch.dtype = torch.bfloat16) -> str:
        return torch_sparse.why_not(OnGpu(dtype), CompressedNM.from_dense(matrix, pattern))  # type: ignore[arg-type]

    assert why(weight()) == ""
    assert "not 2:4" in why(weight(pattern="2:8"), "2:8")
    assert "not 2:4" in why(weight(pattern="3:4"), "3:4")
    assert "float32" in why(weight(), dtype=torch.float32)
    assert "multiples" in why(weight(rows=48))
    assert "multiples" in why(weight(columns=96))
    assert "multiples" in why(weight().view(64, 32, 2, 2).contiguous() * 0)
    assert "GPU" in torch_sparse.why_not(X, CompressedNM.from_dense(weight()))
    assert torch_sparse.torch_candidates(X, CompressedNM.from_dense(weight()), None) == []
    assert torch_sparse.torch_candidates(X, weight(), None) == []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    assert "8.0" in why(weight())


def test_cutlass_in_torch_knows_ampere_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda:0")
    for capability, runs in (((8, 0), True), ((8, 9), True), ((9, 0), False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None, found=capability: found)
        assert torch_sparse._cutlass_runs(device) == runs


def test_torch_has_what_is_called() -> None:
    """The subclass refuses CPU tensors, which shows that it was reached."""
    compressed = CompressedNM.from_dense(weight())
    for name in torch_sparse.LIBRARIES:
        with pytest.raises(RuntimeError, match="Only CUDA tensors"):
            torch_sparse.convert(name, compressed, torch.bfloat16)
