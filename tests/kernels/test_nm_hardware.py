"""Metadata order of sparse tensor cores against torch's CUTLASS conversion; torch's tensors in and out; 4 x 4 masks."""

import itertools

import pytest
import torch
from torch.sparse import SparseSemiStructuredTensorCUTLASS
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

from snn_core.errors import ArgumentError
from snn_core.kernels.nm_compress import (
    CompressedNM,
    NMPattern,
    check_nm,
    from_hardware_metadata,
    from_semi_structured,
    hardware_metadata,
    nm_mask_by_magnitude,
    to_semi_structured,
    transposable_mask,
)

#: dtype -> pattern, then rows and columns of the smallest matrix with a metadata order.
KINDS = {
    torch.float16: ("2:4", 32, 32),
    torch.bfloat16: ("2:4", 32, 32),
    torch.float32: ("1:2", 32, 16),
    torch.int8: ("2:4", 16, 64),
    torch.float8_e4m3fn: ("2:4", 16, 64),
}


def random_weight(dtype, shape, seed=0):
    """A weight with exactly N non-zeros in each block, and its dense form in the same dtype (int8 for e4m3)."""
    pattern = KINDS[dtype][0]
    dense = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + 0.01
    dense = torch.where(nm_mask_by_magnitude(dense, pattern), dense, 0.0)
    if dtype.itemsize > 1:
        return CompressedNM.from_dense(dense.to(dtype), pattern), dense.to(dtype)
    # Integers of 1 to 16 in magnitude: exact in e4m3 too, and no kept value becomes zero, which would move its place.
    dense = torch.where(dense != 0, (dense * 3).round() + dense.sign(), 0.0).clamp(-16, 16)
    weight = CompressedNM.from_dense(dense, pattern)
    return CompressedNM(weight.values.to(dtype), weight.indices, weight.shape, weight.pattern), dense.to(torch.int8)


@pytest.mark.parametrize("dtype", KINDS, ids=str)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 2), (2, 5)])
def test_the_order_is_that_of_torch(dtype, rows, columns):
    _, row_step, column_step = KINDS[dtype]
    weight, dense = random_weight(dtype, (rows * row_step, columns * column_step))
    values, metadata = hardware_metadata(weight)
    torch_values, torch_metadata = sparse_semi_structured_from_dense_cutlass(dense)
    assert torch.equal(metadata, torch_metadata)
    assert metadata.dtype == torch_metadata.dtype
    assert torch.equal(values.float(), torch_values.float())
    if dtype != torch.float32:  # torch's own way back goes through half precision, which quiets what it takes for NaNs
        assert torch.equal(sparse_semi_structured_to_dense_cutlass(values.to(dense.dtype), metadata), dense)
    back = from_hardware_metadata(values, metadata)
    assert torch.equal(back.to_dense().float(), dense.float())
    assert torch.equal(back.indices, weight.indices)


def test_sparse_blocks_and_zeros_come_back():
    generator = torch.Generator().manual_seed(1)
    dense = torch.randn(32, 64, generator=generator).bfloat16() * (torch.rand(32, 64, generator=generator) < 0.2)
    dense = torch.where(nm_mask_by_magnitude(dense, "2:4"), dense, torch.zeros_like(dense))
    dense[0], dense[1] = 0.0, -0.0
    dense[2, 0] = float("nan")
    weight = CompressedNM.from_dense(dense, "2:4", nm_mask_by_magnitude(dense.nan_to_num(), "2:4"))
    back = from_hardware_metadata(*hardware_metadata(weight))
    assert torch.equal(back.to_dense().view(torch.int16), weight.to_dense().view(torch.int16))
    # torch's encoder places the zeros of such blocks elsewhere; both ways mean the same matrix.
    torch_form = from_hardware_metadata(*sparse_semi_structured_from_dense_cutlass(weight.to_dense()))
    assert torch.equal(torch_form.to_dense().nan_to_num(7), weight.to_dense().nan_to_num(7))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int8], ids=str)
def test_torch_tensors_in_and_out(dtype):
    weight, dense = random_weight(dtype, (64, 128))
    exported = to_semi_structured(weight)
    assert isinstance(exported, SparseSemiStructuredTensorCUTLASS)
    assert exported.packed.data_ptr() == weight.values.data_ptr()
    assert exported.shape == dense.shape
    back = from_semi_structured(exported)
    assert torch.equal(back.to_dense(), weight.to_dense())
    values, metadata = sparse_semi_structured_from_dense_cutlass(dense)
    foreign = SparseSemiStructuredTensorCUTLASS(
        dense.shape, packed=values, meta=metadata, packed_t=None, meta_t=None, compressed_swizzled_bitmask=None
    )
    assert torch.equal(from_semi_structured(foreign).to_dense(), weight.to_dense())


def test_convolutions_come_back_in_their_shape():
    weight, dense = random_weight(torch.bfloat16, (32, 64, 3, 3))
    exported = to_semi_structured(weight)
    assert exported.shape == (32, 576)
    assert torch.equal(exported.to_dense(), dense.permute(0, 2, 3, 1).reshape(32, -1))
    assert torch.equal(from_semi_structured(exported, dense.shape).to_dense(), dense)


def _half(shape=(32, 32), pattern="2:4"):
    return CompressedNM.from_dense(torch.zeros(shape, dtype=torch.float16), pattern)


def _transposed_only():
    values, metadata = hardware_metadata(_half())
    return SparseSemiStructuredTensorCUTLASS(
        torch.Size((32, 32)), packed=None, meta=None, packed_t=values, meta_t=metadata, compressed_swizzled_bitmask=None
    )


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: hardware_metadata(_half(pattern="1:4")), "take 2:4, got 1:4"),
        (lambda: hardware_metadata(_half().to(dtype=torch.float32)), "take 1:2"),
        (lambda: hardware_metadata(_half().to(dtype=torch.float64)), "not torch.float64"),
        (lambda: hardware_metadata(_half((33, 32))), "33 x 32"),
        (lambda: hardware_metadata(_half((32, 16))), "32 x 16"),
        (lambda: hardware_metadata(_half((0, 32))), "0 x 32"),
        (lambda: to_semi_structured(_half().with_scale(torch.ones(32))), "no scale"),
        (lambda: to_semi_structured(_half((32, 64)).quantize(torch.float8_e4m3fn).with_scale(None)), "float8"),
        (lambda: from_semi_structured(torch.zeros(2, 2)), "got Tensor"),
        (lambda: from_semi_structured(_transposed_only()), "transposed"),
        (lambda: from_hardware_metadata(torch.zeros(32, 16).half(), torch.zeros(32, 2).short()), "ascend"),
        (lambda: from_hardware_metadata(torch.zeros(32, 16).half(), torch.zeros(32, 3).short()), r"\[32, 3\]"),
        (lambda: from_hardware_metadata(torch.zeros(32, 16).half(), torch.zeros(32, 2).int()), "int32"),
        (lambda: from_hardware_metadata(torch.zeros(32, 16).half(), torch.zeros(64).short()), "1-D"),
        (lambda: from_hardware_metadata(torch.zeros(32, 8), torch.full((32, 2), 5).short()), "no position"),
        (lambda: from_hardware_metadata(*hardware_metadata(_half()), shape=(16, 64)), "32 rows"),
    ],
)
def test_bad_input(call, word):
    with pytest.raises(ArgumentError, match=word):
        call()


def _best_tile(tile, n):
    """Largest kept magnitude by trying everything, in plain Python."""
    rows = [set(kept) for kept in itertools.combinations(range(4), n)]
    return max(
        sum(abs(tile[i][j]) for i, kept in enumerate(choice) for j in kept)
        for choice in itertools.product(rows, repeat=4)
        if all(sum(j in kept for kept in choice) == n for j in range(4))
    )


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_transposable_masks_are_the_best(n):
    weight = torch.randn(8, 12, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    mask = transposable_mask(weight, NMPattern(n, 4))
    for i, j in itertools.product(range(2), range(3)):
        tile, kept = weight[4 * i : 4 * i + 4, 4 * j : 4 * j + 4], mask[4 * i : 4 * i + 4, 4 * j : 4 * j + 4]
        assert kept.sum(0).tolist() == kept.sum(1).tolist() == [n] * 4
        assert float((tile.abs() * kept).sum()) == pytest.approx(_best_tile(tile.tolist(), n), rel=1e-12)


def test_transposable_masks_of_convolutions_obey_both_ways():
    weight = torch.randn(8, 16, 3, 2, generator=torch.Generator().manual_seed(0))
    mask = transposable_mask(weight)
    assert check_nm(mask, "2:4") == check_nm(mask.transpose(0, 1), "2:4") == 0
    assert int(mask.sum()) * 2 == weight.numel()
    assert torch.equal(transposable_mask(weight[:, :, :1, 1:]), mask[:, :, :1, 1:])
    assert transposable_mask(torch.zeros(0, 8)).shape == (0, 8)


@pytest.mark.parametrize(
    ("weight", "pattern", "word"),
    [
        (torch.zeros(4, 8), "2:8", "N:4"),
        (torch.zeros(6, 8), "2:4", "multiple of 4"),
        (torch.zeros(4, 6), "2:4", "blocks of 4"),
        (torch.full((4, 4), float("nan")), "2:4", "NaN"),
    ],
)
def test_transposable_masks_refuse(weight, pattern, word):
    with pytest.raises(ArgumentError, match=word):
        transposable_mask(weight, pattern)
