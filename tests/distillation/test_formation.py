"""Multi-formation: there and back, and a product that tells how it is taken apart."""

import pytest
import torch

from snn_core.distillation import DistilledDataset, Formation, distill, make_product, write_product
from snn_core.errors import ArgumentError, DataError
from tests.distillation.conftest import make_bars, make_config


@pytest.mark.parametrize(("space", "time"), [(1, 1), (2, 1), (1, 2), (2, 3)])
def test_what_is_decoded_encodes_to_itself(space, time):
    stored = torch.randint(0, 9, (3, 6, 2, 4, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    formation = Formation(space, time)
    clips = formation.decode(stored)
    assert clips.dtype == torch.uint8
    assert clips.shape == (3 * space**2 * time, 6, 2, 4, 8)
    assert torch.equal(formation.encode(clips).to(torch.uint8), stored)


def test_quadrants_and_halves_of_time_are_clips_side_by_side():
    stored = torch.arange(2 * 4).reshape(1, 2, 1, 2, 2)
    quadrants = Formation(space=2).decode(stored)
    assert quadrants[:, 0, 0].flatten(1).tolist() == [[0] * 4, [1] * 4, [2] * 4, [3] * 4]
    halves = Formation(time=2).decode(stored)
    assert halves[:, :, 0, 0, 0].tolist() == [[0, 0], [4, 4]]


def test_gradient_of_a_cell_is_the_sum_over_its_copies():
    stored = torch.zeros(1, 2, 1, 2, 2, requires_grad=True)
    Formation(2, 2).decode(stored).sum().backward()
    assert torch.equal(stored.grad, torch.full_like(stored, 8.0))


def test_what_cannot_be_divided_is_refused():
    with pytest.raises(ArgumentError, match="T = 3 and 4 x 4 pixels cannot be divided by time=2"):
        Formation(1, 2).decode(torch.zeros(1, 3, 2, 4, 4))
    with pytest.raises(ArgumentError, match="multiple of 4"):
        Formation(2).encode(torch.zeros(3, 1, 2, 4, 4))
    with pytest.raises(ArgumentError, match="at least 1"):
        Formation(0)
    with pytest.raises(ArgumentError, match="whole numbers"):
        Formation.of({"formation_space": "2"})


def test_a_product_travels_with_its_formation(pool, tmp_path):
    bars, config = make_bars(per_class=4), make_config(formation_space=2, iterations=2)
    result = distill(bars, pool, config, quiet=True)
    assert result.frames.shape == (3, 3, 2, 10, 10)
    values = config.model_dump(mode="json")
    product = make_product(bars, result.frames, result.labels, method="pace", ipc=1, seed=0, config=values)
    write_product(tmp_path / "p.h5", product)
    decoded = DistilledDataset.load(tmp_path / "p.h5").decoded()
    assert decoded.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert torch.equal(decoded.frames, Formation(2).decode(result.frames))
    plain = make_product(bars, result.frames, result.labels, method="random", ipc=1, seed=0)
    assert plain.decoded() is plain
    with pytest.raises(DataError, match="class 0 has 3 samples, 4"):
        distill(make_bars(per_class=3), pool, config, quiet=True)
    with pytest.raises(ArgumentError, match="cannot be divided"):
        distill(bars, pool, make_config(formation_time=2), quiet=True)
