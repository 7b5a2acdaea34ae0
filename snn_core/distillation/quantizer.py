"""PEQ-N: a probabilistic integer quantizer between a real-valued canvas and integer event-count frames.

PACE names the piece and its purpose (hard integer frames forward, a straight-through estimator backward). The concrete
rule below is this project's choice:

    q = clamp(floor(U) + Bernoulli(U - floor(U)), 0, N)        forward, integers
    dq/dU = 1 where 0 <= U <= N, else 0                        backward, straight through
    E[q] = clamp(U, 0, N)                                      unbiased inside the range
    export = clamp(round(U), 0, N)                             deterministic, uint8
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from snn_core.errors import ArgumentError

MAX_LEVELS = 255  # what a uint8 frame can hold
Quantize = Literal["probabilistic", "round", "none"]


class _ProbabilisticQuantize(torch.autograd.Function):
    """Stochastic rounding forward, straight-through gradient inside ``[0, levels]`` backward."""

    @staticmethod
    def forward(ctx: Any, canvas: Tensor, uniform: Tensor, levels: int) -> Tensor:
        ctx.save_for_backward((canvas >= 0) & (canvas <= levels))
        whole = canvas.floor()
        return (whole + (uniform < canvas - whole)).clamp_(0, levels)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None, None


def probabilistic_quantize(
    canvas: Tensor, levels: int, *, generator: torch.Generator, rows_of: tuple[int, int] | None = None
) -> Tensor:
    """Round every entry of ``canvas`` up with the probability of its fraction, else down; clamp to ``[0, levels]``.

    Args:
        canvas: floating tensor of any shape, event counts.
        levels: N, the largest count, 1 to 255.
        generator: source of the Bernoulli draws. They are made on the generator's device and moved to the canvas's,
            so that a CPU generator gives the same draws whatever device computes.
        rows_of: (first, all): ``canvas`` is the rows from ``first`` on of a larger one of ``all`` rows, and gets the
            draws that they would get there. None: it stands alone.

    Returns:
        Tensor of ``canvas``'s shape and dtype holding integers in ``[0, levels]``. Its gradient with respect to
        ``canvas`` is 1 inside ``[0, levels]`` (ends included) and 0 outside.

    Raises:
        ArgumentError: ``levels`` outside 1 to 255, or a canvas that is not floating point.
    """
    _check(canvas, levels)
    first, rows = rows_of or (0, len(canvas) if canvas.ndim else 0)
    shape = (rows, *canvas.shape[1:]) if canvas.ndim else ()
    uniform = torch.rand(shape, generator=generator, device=generator.device)
    if canvas.ndim:
        uniform = uniform[first : first + len(canvas)]
    uniform = uniform.to(canvas.device)
    result = _ProbabilisticQuantize.apply(canvas, uniform, levels)
    assert isinstance(result, Tensor)
    return result


class PEQN(nn.Module):
    """PEQ-N as a module: a learnable canvas ``U`` that comes out as hard integer event frames.

    Args:
        initial: where ``U`` starts, event counts, any shape (frames are usually ``[num, T, 2, H, W]``), any real dtype.
            Values outside ``[0, levels]`` are clamped.
        levels: N, the largest count, 1 to 255.
        generator: source of the Bernoulli draws; a seeded one makes the draws repeatable. It is not part of
            ``state_dict``: who needs exact resume saves ``generator.get_state()`` beside it.
        quantize: ``"probabilistic"``; ``"round"``: to the nearest integer without a draw, with the same gradient;
            ``"none"``: the canvas as it is (to compare with: rounding at the end only).

    Raises:
        ArgumentError: ``levels`` outside 1 to 255, an ``initial`` that is not finite, an unknown ``quantize``.

    Example::

        quantizer = PEQN(frames, levels=15, generator=torch.Generator().manual_seed(0))
        loss = criterion(network(quantizer()))      # integers forward, gradient on quantizer.canvas backward
        loss.backward(); optimizer.step(); quantizer.project_()
        uint8_frames = quantizer.export()
    """

    def __init__(
        self, initial: Tensor, levels: int = 15, *, generator: torch.Generator, quantize: Quantize = "probabilistic"
    ) -> None:
        super().__init__()
        if quantize not in ("probabilistic", "round", "none"):
            raise ArgumentError(f"quantize is {quantize!r}; allowed: probabilistic, round, none")
        self.quantize = quantize
        canvas = initial.detach().to(torch.float32)
        _check(canvas, levels)
        if not bool(torch.isfinite(canvas).all()):
            raise ArgumentError("initial: holds NaN or infinite values; event counts must be finite")
        self.levels = levels
        self.generator = generator
        self.canvas = nn.Parameter(canvas.clamp(0, levels).clone())

    def forward(self) -> Tensor:
        """Frames as ``quantize`` says, float32 of the canvas's shape; gradient as :func:`probabilistic_quantize`."""
        if self.quantize == "none":
            return self.canvas.clamp(0, self.levels)
        if self.quantize == "round":
            inside = (self.canvas >= 0) & (self.canvas <= self.levels)
            passed = self.canvas * inside
            return self.canvas.detach().round().clamp(0, self.levels) + (passed - passed.detach())
        return probabilistic_quantize(self.canvas, self.levels, generator=self.generator)

    @torch.no_grad()
    def project_(self) -> None:
        """Clamp the canvas to ``[0, levels]`` in place. Outside, its gradient would be 0 for good."""
        self.canvas.clamp_(0, self.levels)

    @torch.no_grad()
    def export(self) -> Tensor:
        """The final frames: the canvas rounded to the nearest integer, uint8, no randomness."""
        return self.canvas.round().clamp(0, self.levels).to(torch.uint8)

    def extra_repr(self) -> str:
        return f"{tuple(self.canvas.shape)}, levels={self.levels}, quantize={self.quantize}"


def _check(canvas: Tensor, levels: int) -> None:
    if not 1 <= levels <= MAX_LEVELS:
        raise ArgumentError(f"levels: got {levels}, allowed are 1 to {MAX_LEVELS} (frames are stored as uint8)")
    if not canvas.is_floating_point():
        raise ArgumentError(f"canvas: got dtype {canvas.dtype}, a floating point tensor is needed")
