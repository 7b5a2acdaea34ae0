"""N:M patterns, block views and masks."""

import pytest
import torch

from snn_core.errors import ArgumentError
from snn_core.sparsity import NMPattern, check_nm, from_blocks, nm_mask_by_magnitude, to_blocks

SHAPES = [(3, 16), (2, 16, 3), (5, 16, 3, 2)]


def make_weight(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("text", ["2:4", "1:16", " 8 : 16 ", "3:5", "4:4"])
def test_parse(text):
    pattern = NMPattern.parse(text)
    assert str(pattern) == text.replace(" ", "")
    assert NMPattern.parse(pattern) is pattern


@pytest.mark.parametrize(("text", "bits"), [("2:4", 2), ("1:2", 1), ("1:16", 4), ("3:5", 3), ("2:256", 8)])
def test_index_bits(text, bits):
    assert NMPattern.parse(text).index_bits == bits


@pytest.mark.parametrize(
    "text", ["4:2", "0:4", "2:0", "1:1", "2", "2:4:8", "a:b", "-1:4", "2.0:4", "", "1:512", "²:4", 24, None]
)
def test_patterns_that_make_no_sense(text):
    with pytest.raises(ArgumentError, match="N:M pattern"):
        NMPattern.parse(text)


def test_message_names_the_pattern():
    with pytest.raises(ArgumentError, match="5:4"):
        NMPattern.parse("5:4")


@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_run_along_the_reduction_dimension(shape):
    weight = make_weight(shape)
    blocks = to_blocks(weight, 4)
    assert blocks.data_ptr() == weight.data_ptr()
    kernel = (1,) * (len(shape) - 2)
    assert torch.equal(blocks[(1, *kernel, 2)] if kernel else blocks[1, 2], weight[(1, slice(8, 12), *kernel)])
    assert torch.equal(from_blocks(blocks.reshape(-1, 4), weight.shape), weight)
    assert from_blocks(blocks, weight.shape).is_contiguous()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("text", ["2:4", "1:4", "2:8", "1:16"])
def test_magnitude_mask_keeps_the_largest(shape, text):
    weight, pattern = make_weight(shape), NMPattern.parse(text)
    mask = nm_mask_by_magnitude(weight, pattern)
    kept = to_blocks(mask, pattern.m)
    assert (kept.sum(-1) == pattern.n).all()
    magnitude = to_blocks(weight.abs(), pattern.m)
    smallest_kept = magnitude.masked_fill(~kept, float("inf")).amin(-1)
    largest_dropped = magnitude.masked_fill(kept, -1).amax(-1)
    assert (smallest_kept > largest_dropped).all()
    assert check_nm(weight * mask, pattern) == 0
    assert check_nm(weight, pattern) == weight.numel() // pattern.m


def test_ties_keep_the_lower_index():
    mask = nm_mask_by_magnitude(torch.tensor([[1.0, -1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 5.0]]), "2:4")
    assert mask.int().tolist() == [[1, 1, 0, 0], [1, 0, 0, 1]]


def test_check_counts_blocks():
    weight = torch.zeros(2, 8)
    weight[0, :3] = 1
    weight[1, 4:] = 1
    assert check_nm(weight, "2:4") == 2
    assert check_nm(weight, "3:4") == 1


@pytest.mark.parametrize(
    "call", [lambda w: to_blocks(w, 4), lambda w: nm_mask_by_magnitude(w, "2:4"), lambda w: check_nm(w, "2:4")]
)
@pytest.mark.parametrize("shape", [(3, 6), (8,), (3, 2, 3, 3), (3, 0)])
def test_shapes_that_cannot_be_blocked(call, shape):
    with pytest.raises(ArgumentError, match="blocks of 4"):
        call(torch.zeros(shape))


def test_magnitudes_must_be_finite():
    with pytest.raises(ArgumentError, match="NaN"):
        nm_mask_by_magnitude(torch.full((1, 4), float("nan")), "2:4")
