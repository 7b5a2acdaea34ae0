"""The ``topk_sampler`` operators: exact hard draws and relaxed draws for their gradient.

Blocks lie along the last dimension, but the work is done with positions outermost (``[M, blocks]``): with M of 4 to
16 a reduction over the last dimension cannot use vector registers (softmax over ``[13824, 4]``: 1.19 ms, over ``[4,
13824]``: 0.06 ms, one core). Callers that keep their tensors position-major (``x.t()`` of ``[M, blocks]``) save the
transposition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from snn_core.errors import ArgumentError
from snn_core.kernels.topk_sampler.reference import EPSILON, perturbed_key

_LIBRARY = torch.library.Library("snn_core", "FRAGMENT")
_LIBRARY.define("topk_hard(Tensor key, int n) -> Tensor")
_LIBRARY.define("topk_relaxed(Tensor key, int n, float temperature) -> Tensor")
_LIBRARY.define("topk_relaxed_backward(Tensor grad_soft, Tensor key, int n, float temperature) -> Tensor")


class TopKSample(NamedTuple):
    """``hard``: bool ``[..., M]``, exactly n true in a block. ``soft``: ``[..., M]``, relaxed, differentiable."""

    hard: Tensor
    soft: Tensor


def _hard_columns(key: Tensor, n: int) -> Tensor:
    """[M, blocks] -> bool: repeated maximum, n passes instead of a sort.

    The maximum is marked by ``sign(key - max) + 1``: float arithmetic all the way, because a comparison that writes
    bool and a masked fill that reads it take 4 and 15 times as long as an addition.
    """
    remaining = key.clone()
    taken = torch.zeros_like(key)
    for _ in range(n):
        best = (remaining - remaining.amax(dim=0)).sign_().add_(1)
        if bool((best.sum(dim=0) != 1).any()):  # a tie: keep the first
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


def _fake_like(key: Tensor, dtype: torch.dtype) -> Tensor:
    if key.ndim == 2 and key.stride(0) == 1:
        return key.new_empty((key.shape[1], key.shape[0]), dtype=dtype).t()
    return key.new_empty(key.shape, dtype=dtype)


_LIBRARY.impl("topk_hard", _topk_hard, "CompositeExplicitAutograd")
_LIBRARY.impl("topk_relaxed", _topk_relaxed, "CompositeExplicitAutograd")
_LIBRARY.impl("topk_relaxed_backward", _topk_relaxed_backward, "CompositeExplicitAutograd")


@torch.library.register_fake("snn_core::topk_hard", lib=_LIBRARY)
def _topk_hard_fake(key: Tensor, n: int) -> Tensor:
    return _fake_like(key, torch.bool)


@torch.library.register_fake("snn_core::topk_relaxed", lib=_LIBRARY)
def _topk_relaxed_fake(key: Tensor, n: int, temperature: float) -> Tensor:
    return _fake_like(key, key.dtype)


@torch.library.register_fake("snn_core::topk_relaxed_backward", lib=_LIBRARY)
def _topk_relaxed_backward_fake(grad_soft: Tensor, key: Tensor, n: int, temperature: float) -> Tensor:
    return _fake_like(key, key.dtype)


def _setup_context(ctx: Any, inputs: tuple[Tensor, int, float], output: Tensor) -> None:
    key, ctx.n, ctx.temperature = inputs
    ctx.save_for_backward(key)  # the draws are made again in the backward pass: nothing else is stored


def _backward(ctx: Any, grad_soft: Tensor) -> tuple[Tensor, None, None]:
    (key,) = ctx.saved_tensors
    return torch.ops.snn_core.topk_relaxed_backward(grad_soft, key, ctx.n, ctx.temperature), None, None


torch.library.register_autograd("snn_core::topk_relaxed", _backward, setup_context=_setup_context, lib=_LIBRARY)


def hard_topk(key: Tensor, n: int) -> Tensor:
    """Mask of the ``n`` largest entries of each block, ties to the lower index.

    With ``key = logits + Gumbel noise`` this is an exact draw of n positions without replacement with probabilities
    ``softmax(logits)`` (Plackett-Luce law; Gumbel top-k, Kool et al. 2019).

    Args:
        key: ``[..., M]``, floating point, finite.
        n: how many to keep, 1 to M.

    Returns:
        bool ``[..., M]`` with exactly ``n`` true entries in every block.

    Raises:
        ArgumentError: ``n`` is out of range, or ``key`` is not floating point or not finite.
    """
    _check(key, n)
    key = key.detach()
    # Sums first: a twentieth of the time of isfinite over all entries, and they only ever err towards looking closer.
    if not bool(torch.isfinite(key.sum(dim=-1)).all()) and not bool(torch.isfinite(key).all()):
        raise ArgumentError(f"key: {int((~torch.isfinite(key)).sum())} of {key.numel()} entries are not finite")
    hard: Tensor = torch.ops.snn_core.topk_hard(key, n)
    # The density is asserted, not assumed: a union of relaxed argmaxes, for one, would silently keep fewer.
    assert bool((hard.sum(dim=-1, dtype=torch.int32) == n).all()), "topk_hard kept another number than n in some block"
    return hard


def relaxed_topk(key: Tensor, n: int, temperature: float) -> Tensor:
    """Sum of ``n`` relaxed draws without replacement, for the gradient of :func:`hard_topk`.

    See :func:`snn_core.kernels.topk_sampler.reference.relaxed_topk` for the recursion. Only ``key`` is saved for the
    backward pass: O(M) memory a block.

    Args:
        key: ``[..., M]``, floating point.
        n: number of draws, 1 to M.
        temperature: tau > 0. At tau >= 1 successive draws nearly coincide; the masks never depend on it.

    Returns:
        ``[..., M]``, dtype of ``key``; each block sums to ``n``.

    Raises:
        ArgumentError: ``n`` or ``temperature`` out of range, ``key`` not floating point.
    """
    _check(key, n)
    _check_temperature(temperature)
    soft: Tensor = torch.ops.snn_core.topk_relaxed(key, n, float(temperature))
    return soft


def relaxed_topk_backward(grad_soft: Tensor, key: Tensor, n: int, temperature: float) -> Tensor:
    """Gradient of :func:`relaxed_topk` to ``key`` ``[..., M]``, for callers that have ``grad_soft`` without a graph."""
    _check(key, n)
    _check_temperature(temperature)
    if grad_soft.shape != key.shape:
        raise ArgumentError(f"grad_soft: expected shape {list(key.shape)} like key, got {list(grad_soft.shape)}")
    gradient: Tensor = torch.ops.snn_core.topk_relaxed_backward(grad_soft, key, n, float(temperature))
    return gradient


def gumbel_noise(shape: tuple[int, ...] | torch.Size, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Standard Gumbel noise of ``shape`` on the generator's device; for half types drawn in float32, then rounded."""
    uniform = torch.rand(shape, generator=generator, device=generator.device, dtype=_key_dtype(dtype))
    return uniform.clamp_(min=2.0**-25).log_().neg_().log_().neg_().to(dtype)


def _key_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 for half types: in float16 the smallest uniform number that noise is made of would be 0."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def sample_topk(
    logits: Tensor,
    n: int,
    *,
    temperature: float,
    generator: torch.Generator | None = None,
    noise_scale: float = 1.0,
    kappa: float = 1.0,
    anchor: Tensor | None = None,
    rho: float = 0.0,
) -> TopKSample:
    """Draw ``n`` of M positions in every block, with a differentiable companion.

    ``key = kappa * logits + rho * anchor + noise_scale * gumbel``; ``hard`` is the exact top n of the key, ``soft`` its
    relaxation. ``hard + soft - soft.detach()`` (:func:`straight_through`) is a mask with a gradient to the logits.

    Args:
        logits: ``[..., M]``, floating point. For float16 and bfloat16 noise, key and relaxation are float32, and
            ``soft`` is rounded to the logits' type.
        n: positions to keep, 1 to M.
        temperature: tau > 0 of the relaxation; the hard draw does not depend on it.
        generator: source of the noise, on the logits' device; needed unless ``noise_scale`` is 0.
        noise_scale: eta >= 0. 1 gives the Plackett-Luce law of ``kappa * logits + rho * anchor``, 0 a fixed choice.
        kappa: scale of the logits.
        anchor: ``[..., M]``, usually the weight's magnitude over its standard deviation; gets no gradient.
        rho: weight of the anchor.

    Raises:
        ArgumentError: an argument out of range, shapes that differ, or a missing generator.
    """
    _check(logits, n)
    _check_temperature(temperature)
    if anchor is not None and anchor.shape != logits.shape:
        raise ArgumentError(f"anchor: expected shape {list(logits.shape)} like logits, got {list(anchor.shape)}")
    if not noise_scale >= 0:
        raise ArgumentError(f"noise_scale must be 0 or more, got {noise_scale}")
    dtype = _key_dtype(logits.dtype)
    noise = None
    if noise_scale > 0:
        if generator is None:
            raise ArgumentError("generator: needed for noise_scale > 0 (randomness is always explicit)")
        noise = gumbel_noise(logits.shape, generator, dtype)
    anchor = None if anchor is None else anchor.detach().to(_key_dtype(anchor.dtype))
    key = perturbed_key(logits.to(dtype), anchor, noise, kappa, rho, noise_scale)
    return TopKSample(hard_topk(key, n), relaxed_topk(key, n, temperature).to(logits.dtype))


def straight_through(sample: TopKSample) -> Tensor:
    """The mask in the weights' arithmetic: the value of ``hard``, the gradient of ``soft``."""
    return sample.hard.to(sample.soft.dtype) + (sample.soft - sample.soft.detach())


def _check(key: Tensor, n: int) -> None:
    if key.ndim < 1 or not key.is_floating_point():
        raise ArgumentError(f"key/logits: expected a floating-point tensor [..., M], got {key.dtype} {list(key.shape)}")
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= key.shape[-1]:
        raise ArgumentError(f"n must be an integer from 1 to M = {key.shape[-1]}, got {n!r}")


def _check_temperature(temperature: float) -> None:
    if not 0 < temperature < float("inf"):
        raise ArgumentError(f"temperature must be positive and finite, got {temperature}")
