"""The LIF equation as a plain torch loop and as several ``torch.compile``d forms of it.

All forms keep the state in float32, like snn_core's kernels. ``v`` enters every chunk with ``requires_grad``, also the
first, so that a form is compiled once; forms with one chunk need no such gradient and do without.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

TAU, ALPHA, V_THRESHOLD = 2.0, 2.0, 1.0
Loop = Callable[[Tensor], Tensor]


class AtanSpike(torch.autograd.Function):
    """Heaviside step with the ATan surrogate gradient."""

    @staticmethod
    def forward(ctx: Any, over: Tensor) -> Tensor:
        """1 where ``over >= 0``."""
        ctx.save_for_backward(over)
        return (over >= 0).to(over.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """alpha / 2 / (1 + (pi / 2 alpha over)^2)."""
        (over,) = ctx.saved_tensors
        return gradients[0] * (ALPHA / 2 / (1 + (math.pi / 2 * ALPHA * over) ** 2))


def _steps(x_steps: Sequence[Tensor], v: Tensor, tau: float) -> tuple[list[Tensor], Tensor]:
    spikes = []
    for x in x_steps:
        h = v + (x.float() - v) / tau
        s = AtanSpike.apply(h - V_THRESHOLD)
        v = (1 - s) * h
        spikes.append(s.to(x.dtype))
    return spikes, v


def _start(x_seq: Tensor, requires_grad: bool) -> Tensor:
    return torch.zeros_like(x_seq[0], dtype=torch.float32).requires_grad_(requires_grad and x_seq.requires_grad)


def plain_loop(tau: float = TAU) -> Loop:
    """Eager: one torch call an operation, autograd's graph."""
    return lambda x_seq: torch.stack(_steps(x_seq.unbind(0), _start(x_seq, False), tau)[0])


def compiled_forms(steps: int, unroll: int, tau: float = TAU) -> dict[str, Loop]:
    """Name -> loop, each to be called with one shape only.

    Args:
        steps: T.
        unroll: largest T that is compiled as a whole; chunks that divide T (20 or 16 steps) and single steps serve
            longer ones. Above 16, only the form whose compile time is bearable is unrolled.
    """
    forms: dict[str, Loop] = {"single step": _lists(1, tau)}
    if steps <= min(unroll, 16):
        forms |= {
            "whole, lists": _lists(steps, tau),
            "whole, stacked": _stacked(steps, tau),
            "whole, unbound": _unbound(tau),
        }
    elif steps <= unroll:
        forms["whole, lists"] = _lists(steps, tau)
    chunk = next((size for size in (20, 16) if steps % size == 0 and steps > size), None)
    if chunk:
        forms |= {f"chunks of {chunk}, lists": _lists(chunk, tau), f"chunks of {chunk}, stacked": _stacked(chunk, tau)}
    return forms


def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    # A form that cannot be compiled once for its shape raises, so that no figure is an eager one by accident.
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    return torch.compile(function, fullgraph=True, dynamic=False)


def _lists(chunk: int, tau: float) -> Loop:
    """The compiled part takes and gives lists of steps; splitting and stacking are outside."""

    def part(x_steps: Sequence[Tensor], v: Tensor) -> tuple[list[Tensor], Tensor]:
        return _steps(x_steps, v, tau)

    compiled = _compile(part)

    def run(x_seq: Tensor) -> Tensor:
        x_steps, spikes = x_seq.unbind(0), []
        v = _start(x_seq, requires_grad=chunk < len(x_steps))
        for first in range(0, len(x_steps), chunk):
            s, v = compiled(x_steps[first : first + chunk], v)
            spikes += s
        return torch.stack(spikes)

    return run


def _stacked(chunk: int, tau: float) -> Loop:
    """The compiled part takes a list of steps and gives one tensor a chunk."""

    def part(x_steps: Sequence[Tensor], v: Tensor) -> tuple[Tensor, Tensor]:
        spikes, v = _steps(x_steps, v, tau)
        return torch.stack(spikes), v

    compiled = _compile(part)

    def run(x_seq: Tensor) -> Tensor:
        x_steps, spikes = x_seq.unbind(0), []
        v = _start(x_seq, requires_grad=chunk < len(x_steps))
        for first in range(0, len(x_steps), chunk):
            s, v = compiled(x_steps[first : first + chunk], v)
            spikes.append(s)
        return torch.cat(spikes) if len(spikes) > 1 else spikes[0]

    return run


def _unbound(tau: float) -> Loop:
    """Everything inside the compiled function; like ours it leaves the last state, here without its gradient."""

    def whole(x_seq: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        spikes, v = _steps(x_seq.unbind(0), v, tau)
        return torch.stack(spikes), v.detach()

    compiled = _compile(whole)
    return lambda x_seq: compiled(x_seq, _start(x_seq, requires_grad=False))[0]
