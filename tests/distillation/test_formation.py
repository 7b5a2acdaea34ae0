"""Multi-formation: there and back, and a product that tells how it is taken apart."""

import pytest
import torch

from snn_core.distillation import DistilledDataset, Formation, create_method, distill, make_product, write_product
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


def test_digits_hold_whole_clips_to_the_base_that_fits():
    assert [Formation(digits=n).base for n in range(1, 9)] == [256, 16, 6, 4, 3, 2, 2, 2]
    clips = torch.tensor([1, 0, 3, 2]).to(torch.uint8).reshape(4, 1, 1, 1, 1)
    formation = Formation(digits=4, gain=2)
    stored = formation.pack(clips)
    assert stored.flatten().tolist() == [1 + 0 * 4 + 3 * 16 + 2 * 64]
    assert torch.equal(formation.unpack(stored), clips)
    assert formation.decode(stored).flatten().tolist() == [2, 0, 6, 4]
    whole = torch.arange(256).to(torch.uint8).reshape(256, 1, 1, 1, 1)
    for digits in range(2, 9):
        own = Formation(digits=digits)
        numbers = whole[: own.base**digits]
        assert torch.equal(own.pack(own.unpack(numbers)), numbers)
    quarters = torch.randint(0, 2, (16, 2, 2, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    stored = Formation(space=2, digits=8).pack(quarters)
    assert stored.shape == (2, 2, 2, 4, 4)
    assert torch.equal(Formation(space=2, digits=8).decode(stored), Formation(space=2).decode(quarters))


def test_small_counts_keep_the_number_of_events():
    generator = torch.Generator().manual_seed(0)
    seldom = torch.rand(16, 4, 2, 8, 8, generator=generator) < 0.1
    clips = torch.rand(16, 4, 2, 8, 8, generator=generator) * 6 * seldom  # no two cells alike
    formation = Formation(space=2, digits=4, gain=3)
    decoded = formation.decode(formation.pack(formation.encode(clips).round()))
    assert decoded.max() <= 9
    one_cell = 3 * 4  # the gain, in 2 x 2 pixels
    assert (decoded.flatten(1).sum(1) - clips.flatten(1).sum(1)).abs().max() <= one_cell
    plainly_rounded = (torch.nn.functional.avg_pool2d(clips.flatten(0, 1), 2) / 3).round()
    assert plainly_rounded.sum() * 12 < 0.5 * clips.sum()
    assert formation.encode(torch.zeros_like(clips)).abs().max() == 0


def test_what_cannot_be_divided_is_refused():
    with pytest.raises(ArgumentError, match="T = 3 and 4 x 4 pixels cannot be divided by time=2"):
        Formation(1, 2).decode(torch.zeros(1, 3, 2, 4, 4))
    with pytest.raises(ArgumentError, match="multiple of 4"):
        Formation(2).encode(torch.zeros(3, 1, 2, 4, 4))
    with pytest.raises(ArgumentError, match="at least 1"):
        Formation(0)
    with pytest.raises(ArgumentError, match="digits at most 8"):
        Formation(digits=9)
    with pytest.raises(ArgumentError, match="gain: 100 times the largest count of 4 digits"):
        Formation(digits=4, gain=100)
    with pytest.raises(ArgumentError, match="multiple of 2"):
        Formation(digits=2).pack(torch.zeros(3, 1, 1, 2, 2))
    with pytest.raises(ArgumentError, match="counts to 4, 4 digits hold 3"):
        Formation(digits=4).pack(torch.full((4, 1, 1, 2, 2), 4))
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


@pytest.mark.parametrize("name", ["pace", "random", "herding", "dm/time-mean"])
def test_every_method_fills_digits(pool, tmp_path, name):
    bars = make_bars(per_class=8)
    config = make_config(formation_space=2, formation_digits=2, formation_gain=2, iterations=2, quantize="round")
    product = create_method(name)(bars, config, teachers=pool, quiet=True)
    write_product(tmp_path / "p.h5", product)
    loaded = DistilledDataset.load(tmp_path / "p.h5")
    assert loaded.frames.shape == (3, *bars.frames.shape[1:])
    assert loaded.formation == Formation(2, 1, 2, 2)
    clips = loaded.decoded()
    assert clips.labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert torch.equal(clips.frames % 2, torch.zeros_like(clips.frames))
    assert 0 < clips.frames.max() <= 30
