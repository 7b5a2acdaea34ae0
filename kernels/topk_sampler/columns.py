"""The ``topk_sampler`` operators in plain torch, for every device and floating-point type, of a key that is given.

Blocks lie along the last dimension, but the work is done with positions outermost (``[M, blocks]``): with M of 4 to
16 a reduction over the last dimension cannot use vector registers (softmax over ``[13824, 4]``: 1.19 ms, over ``[4,
13824]``: 0.06 ms, one core). Callers that keep their tensors position-major (``x.t()`` of ``[M, blocks]``) save the
transposition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from snn_core.kernels.native.library import LIBRARY as _LIBRARY
from snn_core.kernels.topk_sampler.reference import EPSILON

_LIBRARY.define("topk_hard(Tensor key, int n) -> Tensor")
_LIBRARY.define("topk_relaxed(Tensor key, int n, float temperature) -> Tensor")
_LIBRARY.define("topk_relaxed_backward(Tensor grad_soft, Tensor key, int n, float temperature) -> Tensor")


def _hard_columns(key: Tensor, n: int) -> Tensor:
    """[M, blocks] -> bool: repeated maximum, n passes instead of a sort.

    The maximum is marked by ``sign(key - max) + 1``: float arithmetic all the way, because a comparison that writes
    bool and a masked fill that reads it take 4 and 15 times as long as an addition.
    """
    remaining = key.clone()
    taken = torch.zeros_like(key)
    for _ in range(n):
        best = (remaining - remaining.amax(dim=0)).sign_().add_(1)
        on_cpu = best.device.type == "cpu"  # elsewhere looking would wait for the device
        if not on_cpu or bool((best.sum(dim=0) != 1).any()):  # a tie: keep the first
            best.mul_(best.cumsum(dim=0) == 1)
        taken += best
        remaining.add_(best, alpha=-torch.finfo(key.dtype).max)
    return taken == 1


def _relaxed_columns(key: Tensor, n: int, temperature: float) -> Tensor:
    a = key / temperature
    soft = torch.zeros_like(a)
    for j in range(n):
        p = torch.softmax(a, dim=0)
        soft += p
        if j < n - 1:
            a.add_(p.neg_().add_(1).clamp_(min=EPSILON).log_(), alpha=1 / temperature)
    return soft


def _relaxed_backward_columns(grad_soft: Tensor, key: Tensor, n: int, temperature: float) -> Tensor:
    a = key / temperature
    draws = []
    for j in range(n):
        p = torch.softmax(a, dim=0)
        draws.append(p)
        if j < n - 1:
            a.add_((1 - p).clamp_(min=EPSILON).log_(), alpha=1 / temperature)
    grad_a: Tensor | None = None
    for p in reversed(draws):
        grad_p = grad_soft
        if grad_a is not None:
            # d log(max(1 - p, eps)): dividing by infinity gives the 0 below the floor.
            rest = torch.nn.functional.threshold(1 - p, EPSILON, torch.inf)
            grad_p = grad_soft.sub(torch.div(grad_a, rest, out=rest), alpha=1 / temperature)
        weighted = grad_p * p
        # d softmax: p * (g - sum g p); 'weighted' is p * g already.
        weighted.sub_(p * weighted.sum(dim=0))
        grad_a = weighted if grad_a is None else grad_a.add_(weighted)
    assert grad_a is not None
    return grad_a.div_(temperature)


def _chunks(columns: Tensor) -> Iterator[slice]:
    """Slices of blocks that bound the workspace of n draws, so that memory stays O(M) a block."""
    m, blocks = columns.shape
    step = max(1, (1 << 15 if columns.device.type == "cpu" else 1 << 26) // m)
    for start in range(0, blocks, step):
        yield slice(start, min(start + step, blocks))


def _in_chunks(work: Callable[..., Tensor], columns: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """``work`` on matching chunks of ``[M, blocks]`` tensors, joined into a new contiguous one."""
    parts = list(_chunks(columns[0]))
    if len(parts) == 1:
        return work(*columns)
    result = torch.empty_like(columns[0], dtype=dtype, memory_format=torch.contiguous_format)
    for part in parts:
        result[:, part] = work(*(value[:, part] for value in columns))
    return result


def _columns(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1]).t()


def _from_columns(columns: Tensor, like: Tensor) -> Tensor:
    """[M, blocks] -> the shape of ``like``, position-major where ``like`` is."""
    if like.ndim == 2 and like.stride(0) == 1:
        return columns.contiguous().t()
    return columns.t().contiguous().view(like.shape)


def _topk_hard(key: Tensor, n: int) -> Tensor:
    return _from_columns(_in_chunks(lambda k: _hard_columns(k, n), [_columns(key)], torch.bool), key)


def _topk_relaxed(key: Tensor, n: int, temperature: float) -> Tensor:
    result = _in_chunks(lambda k: _relaxed_columns(k, n, temperature), [_columns(key)], key.dtype)
    return _from_columns(result, key)


def _topk_relaxed_backward(grad_soft: Tensor, key: Tensor, n: int, temperature: float) -> Tensor:
    columns = [_columns(grad_soft), _columns(key)]
    result = _in_chunks(lambda g, k: _relaxed_backward_columns(g, k, n, temperature), columns, key.dtype)
    return _from_columns(result, key)


def fake_like(key: Tensor, dtype: torch.dtype) -> Tensor:
    if key.ndim == 2 and key.stride(0) == 1:
        return key.new_empty((key.shape[1], key.shape[0]), dtype=dtype).t()
    return key.new_empty(key.shape, dtype=dtype)


_LIBRARY.impl("topk_hard", _topk_hard, "CompositeExplicitAutograd")
_LIBRARY.impl("topk_relaxed", _topk_relaxed, "CompositeExplicitAutograd")
_LIBRARY.impl("topk_relaxed_backward", _topk_relaxed_backward, "CompositeExplicitAutograd")


@torch.library.register_fake("snn_core::topk_hard", lib=_LIBRARY)
def _topk_hard_fake(key: Tensor, n: int) -> Tensor:
    return fake_like(key, torch.bool)


@torch.library.register_fake("snn_core::topk_relaxed", lib=_LIBRARY)
def _topk_relaxed_fake(key: Tensor, n: int, temperature: float) -> Tensor:
    return fake_like(key, key.dtype)


@torch.library.register_fake("snn_core::topk_relaxed_backward", lib=_LIBRARY)
def _topk_relaxed_backward_fake(grad_soft: Tensor, key: Tensor, n: int, temperature: float) -> Tensor:
    return fake_like(key, key.dtype)


def _setup_context(ctx: Any, inputs: tuple[Tensor, int, float], output: Tensor) -> None:
    key, ctx.n, ctx.temperature = inputs
    ctx.save_for_backward(key)  # the draws are made again in the backward pass: nothing else is stored


def _backward(ctx: Any, grad_soft: Tensor) -> tuple[Tensor, None, None]:
    (key,) = ctx.saved_tensors
    return torch.ops.snn_core.topk_relaxed_backward(grad_soft, key, ctx.n, ctx.temperature), None, None


torch.library.register_autograd("snn_core::topk_relaxed", _backward, setup_context=_setup_context, lib=_LIBRARY)
