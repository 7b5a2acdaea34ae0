"""PEQ-N: integers forward, unbiased over draws, straight-through gradient inside the range, rounding on export."""

import pytest
import torch

from snn_core.distillation.quantizer import PEQN, probabilistic_quantize
from snn_core.errors import ArgumentError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_output_is_integer_within_range():
    canvas = torch.rand(7, 3, 2, 5, 5, generator=generator()) * 40 - 10
    out = probabilistic_quantize(canvas, 15, generator=generator(1))
    assert out.dtype == canvas.dtype
    assert torch.equal(out, out.round())
    assert out.min() >= 0
    assert out.max() <= 15
    inside = (canvas >= 0) & (canvas <= 15)
    assert ((out - canvas).abs()[inside] < 1).all()


def test_unbiased_inside_the_range_and_clamped_outside():
    canvas = torch.tensor([-3.0, -0.4, 0.0, 0.1, 0.5, 0.99, 1.0, 3.25, 14.7, 15.0, 15.4, 99.0])
    draws = 40_000
    out = probabilistic_quantize(canvas.expand(draws, -1), 15, generator=generator(2))
    expected = canvas.clamp(0, 15)
    fraction = expected - expected.floor()
    # five standard errors of a Bernoulli mean; entries without a fraction must be exact
    tolerance = 5 * (fraction * (1 - fraction) / draws).sqrt() + 1e-6
    assert ((out.mean(0) - expected).abs() <= tolerance).all()


def test_gradient_is_one_inside_and_zero_outside():
    canvas = torch.tensor([-0.5, -1e-6, 0.0, 0.3, 7.0, 15.0, 15.001, 20.0], requires_grad=True)
    weight = torch.arange(1.0, 9.0)
    (probabilistic_quantize(canvas, 15, generator=generator()) * weight).sum().backward()
    assert canvas.grad is not None
    assert torch.equal(canvas.grad, weight * torch.tensor([0.0, 0, 1, 1, 1, 1, 0, 0]))


def test_draws_come_from_the_generator_only():
    canvas = torch.full((1000,), 0.5)
    torch.manual_seed(1)
    first = probabilistic_quantize(canvas, 3, generator=generator(5))
    state = torch.get_rng_state()
    second = probabilistic_quantize(canvas, 3, generator=generator(5))
    assert torch.equal(first, second)
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first, probabilistic_quantize(canvas, 3, generator=generator(6)))


def test_module_learns_exports_and_projects():
    initial = torch.tensor([[0, 3, 30]], dtype=torch.uint8)
    quantizer = PEQN(initial, levels=15, generator=generator())
    assert [name for name, _ in quantizer.named_parameters()] == ["canvas"]
    assert quantizer.canvas.tolist() == [[0.0, 3.0, 15.0]]
    with torch.no_grad():
        quantizer.canvas.copy_(torch.tensor([[-2.0, 2.6, 22.0]]))
    assert quantizer.export().tolist() == [[0, 3, 15]]
    assert quantizer.export().dtype == torch.uint8
    quantizer.project_()
    assert quantizer.canvas[0].tolist() == pytest.approx([0.0, 2.6, 15.0])
    quantizer().sum().backward()
    assert quantizer.canvas.grad is not None
    assert quantizer.canvas.grad.tolist() == [[1.0, 1.0, 1.0]]


@pytest.mark.parametrize("levels", [0, -1, 256])
def test_levels_outside_uint8_are_refused(levels):
    with pytest.raises(ArgumentError, match="levels"):
        PEQN(torch.zeros(2), levels=levels, generator=generator())


def test_bad_canvases_are_refused():
    with pytest.raises(ArgumentError, match="NaN"):
        PEQN(torch.tensor([float("nan")]), generator=generator())
    with pytest.raises(ArgumentError, match="dtype"):
        probabilistic_quantize(torch.zeros(2, dtype=torch.int64), 3, generator=generator())
