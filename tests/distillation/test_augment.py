"""Shared shifts: exact movement, zeros entering, distinct choices."""

import pytest
import torch

from snn_core.distillation.augment import choose_shifts, shift_frames
from snn_core.errors import ArgumentError


def test_shift_moves_right_and_down_and_fills_with_zero():
    frames = torch.arange(1, 7).reshape(1, 2, 3).to(torch.uint8)
    assert shift_frames(frames, (1, 0)).tolist() == [[[0, 1, 2], [0, 4, 5]]]
    assert shift_frames(frames, (-2, 1)).tolist() == [[[0, 0, 0], [3, 0, 0]]]
    assert shift_frames(frames, (0, 0)) is frames


def test_gradient_flows_back_to_where_it_came_from():
    frames = torch.zeros(2, 1, 3, 3, requires_grad=True)
    shift_frames(frames, (1, -1))[..., 0, 1].sum().backward()
    assert frames.grad is not None
    assert frames.grad[0, 0].tolist() == [[0, 0, 0], [1, 0, 0], [0, 0, 0]]


def test_choice_is_distinct_seeded_and_starts_with_none():
    shifts = choose_shifts(9, 1, generator=torch.Generator().manual_seed(0))
    assert shifts[0] == (0, 0)
    assert len(set(shifts)) == 9
    assert choose_shifts(3, 2, generator=torch.Generator().manual_seed(4)) == choose_shifts(
        3, 2, generator=torch.Generator().manual_seed(4)
    )


@pytest.mark.parametrize(("count", "max_shift"), [(0, 1), (10, 1), (2, 0), (1, -1)])
def test_impossible_choices_are_refused(count, max_shift):
    with pytest.raises(ArgumentError, match="count"):
        choose_shifts(count, max_shift, generator=torch.Generator())


def test_a_shift_out_of_the_frame_is_refused():
    with pytest.raises(ArgumentError, match="shift"):
        shift_frames(torch.zeros(4, 4), (4, 0))
