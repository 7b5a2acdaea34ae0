"""Mask statistics against counts by hand and against a plain loop."""

import math
from collections import Counter

import pytest
import torch

from snn_core.errors import ArgumentError
from snn_core.sparsity import from_blocks, mask_statistics, nm_mask_by_magnitude, to_blocks
from snn_core.sparsity.mask_statistics import flips


def make_mask(pattern, shape, seed=0):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return nm_mask_by_magnitude(weight, pattern)


@pytest.mark.parametrize(
    ("pattern", "shape"),
    [("2:4", (8, 16)), ("1:16", (6, 32, 3, 3)), ("4:8", (5, 24, 3)), ("8:16", (4, 16, 1, 2)), ("3:100", (7, 200))],
)
def test_equals_a_plain_loop(pattern, shape):
    mask = make_mask(pattern, shape)
    n, m = (int(part) for part in pattern.split(":"))
    found = mask_statistics(mask, pattern)
    rows = [tuple(row.tolist()) for row in to_blocks(mask, m).reshape(-1, m)]
    counts = Counter(rows)
    entropy = -sum(count / len(rows) * math.log2(count / len(rows)) for count in counts.values())
    assert (found.pattern, found.blocks, found.kept) == (pattern, len(rows), len(rows) * n)
    assert found.pattern_entropy == pytest.approx(entropy)
    assert found.distinct_patterns == len(counts)
    assert found.max_entropy == pytest.approx(min(math.log2(math.comb(m, n)), math.log2(len(rows))))
    assert found.pattern_entropy <= found.max_entropy + 1e-12
    assert found.position_frequency == pytest.approx([sum(row[i] for row in rows) / len(rows) for i in range(m)])
    assert found.blocks_over_pattern == 0


def test_known_cases():
    all_alike = torch.tensor([[True, False, False, True] * 4] * 3)
    found = mask_statistics(all_alike, "2:4")
    assert (found.pattern_entropy, found.distinct_patterns) == (0.0, 1)
    assert math.copysign(1, found.pattern_entropy) == 1
    assert found.position_frequency == (1.0, 0.0, 0.0, 1.0)
    # All six patterns of 2:4 once each: the entropy is its maximum, and no position is preferred.
    six = torch.combinations(torch.arange(4), 2)
    blocks = torch.zeros(6, 4, dtype=torch.bool).scatter_(1, six, True)
    found = mask_statistics(from_blocks(blocks, (6, 4)), "2:4")
    assert found.pattern_entropy == pytest.approx(math.log2(6))
    assert found.max_entropy == pytest.approx(math.log2(6))
    assert found.position_frequency == pytest.approx([0.5] * 4)


def test_blocks_with_fewer_and_with_more_than_n():
    mask = torch.tensor([[True, True, True, False], [True, False, False, False], [False, False, True, True]])
    found = mask_statistics(mask, "2:4")
    assert (found.kept, found.blocks_over_pattern) == (6, 1)
    assert found.max_entropy == pytest.approx(math.log2(3))  # three blocks cannot show more


def test_positions_beyond_one_word_are_told_apart():
    mask = torch.zeros(4, 256, dtype=torch.bool)
    for row, position in enumerate((0, 70, 255, 255)):
        mask[row, position] = True
    found = mask_statistics(mask, "1:256")
    assert found.distinct_patterns == 3
    assert found.pattern_entropy == pytest.approx(1.5)


def test_flips():
    old, new = make_mask("2:4", (4, 8)), make_mask("2:4", (4, 8), seed=1)
    assert flips(old, old) == 0
    assert flips(old, new) == pytest.approx(float((old != new).float().mean()))
    assert 0 < flips(old, new) < 1
    assert flips(old, ~old) == 1


def test_what_is_no_mask_is_refused():
    with pytest.raises(ArgumentError, match="boolean"):
        mask_statistics(torch.ones(4, 8), "2:4")
    with pytest.raises(ArgumentError, match="multiple of 4"):
        mask_statistics(torch.ones(4, 6, dtype=torch.bool), "2:4")
    with pytest.raises(ArgumentError, match="one shape"):
        flips(torch.ones(4, dtype=torch.bool), torch.ones(5, dtype=torch.bool))
