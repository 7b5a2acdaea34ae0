"""Dispatch and the public functions of the ``topk_sampler`` operators."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from snn_core.errors import ArgumentError, BackendUnavailableError
from snn_core.kernels.native import resolve_backend, triton_runs_on
from snn_core.kernels.topk_sampler import columns as _columns_operators  # noqa: F401  registers them
from snn_core.kernels.topk_sampler import reference
from snn_core.kernels.topk_sampler.reference import perturbed_key
from snn_core.kernels.topk_sampler.schema import COMPILED, TRITON, SampleOperators

NATIVE_DTYPES = (torch.float32,)
#: Largest M of compiled code; beyond it plain torch serves.
MAX_POSITIONS = 32


class TopKSample(NamedTuple):
    """``hard``: bool ``[..., M]``, exactly n true in a block. ``soft``: ``[..., M]``, relaxed, differentiable."""

    hard: Tensor
    soft: Tensor


def _operators(x: Tensor, backend: str) -> SampleOperators | None:
    """Compiled code or Triton for this tensor; None for plain torch."""
    if backend == "cuda":
        raise BackendUnavailableError("backend 'cuda': the top-k sampler has no CUDA C++; on a GPU 'triton' runs it")
    if backend in ("cpp", "triton") and x.shape[-1] > MAX_POSITIONS:
        raise BackendUnavailableError(f"backend {backend!r} takes M up to {MAX_POSITIONS}, got {x.shape[-1]}")
    chosen = resolve_backend(backend, x.device, x.dtype, NATIVE_DTYPES)
    if chosen == "cuda":  # where the other operators have CUDA C++
        chosen = "triton" if triton_runs_on(x.device) else "reference"
    if chosen == "reference" or x.shape[-1] > MAX_POSITIONS:
        return None
    return TRITON if chosen == "triton" else COMPILED


def _blocks(x: Tensor | None) -> Any:
    return None if x is None else x.reshape(-1, x.shape[-1])


def hard_topk(key: Tensor, n: int, *, backend: str = "auto") -> Tensor:
    """Mask of the ``n`` largest entries of each block, ties to the lower index.

    With ``key = logits + Gumbel noise`` this is an exact draw of n positions without replacement with probabilities
    ``softmax(logits)`` (Plackett-Luce law; Gumbel top-k, Kool et al. 2019).

    Args:
        key: ``[..., M]``, floating point, finite. Fastest position-major: ``x.t()`` of ``[M, blocks]``.
        n: how many to keep, 1 to M.
        backend: ``auto``, ``cpp`` (CPU), ``triton`` or ``reference`` (plain torch); the first two take float32.

    Returns:
        bool ``[..., M]`` with exactly ``n`` true entries in every block.

    Raises:
        ArgumentError: ``n`` is out of range, or ``key`` is not floating point or not finite.
    """
    _check(key, n)
    key = key.detach()
    operators = _operators(key, backend)
    if operators is not None:
        mask, wrong = operators.sample(_blocks(key), None, n, 1.0, 0.0, 0.0, 0, 0)
        if int(wrong) > 0:
            _refuse_key(key)
        return mask.view(torch.bool).view(key.shape)
    # Sums first: a twentieth of the time of isfinite over all entries, and they only ever err towards looking closer.
    if not bool(torch.isfinite(key.sum(dim=-1)).all()) and not bool(torch.isfinite(key).all()):
        _refuse_key(key)
    hard: Tensor = torch.ops.snn_core.topk_hard(key, n)
    # The density is asserted, not assumed: a union of relaxed argmaxes, for one, would silently keep fewer.
    assert bool((hard.sum(dim=-1, dtype=torch.int32) == n).all()), "topk_hard kept another number than n in some block"
    return hard


def _refuse_key(key: Tensor) -> None:
    bad = int((~torch.isfinite(key)).sum())
    assert bad > 0, "a draw kept another number than n in some block"
    raise ArgumentError(f"key: {bad} of {key.numel()} entries are not finite")


def relaxed_topk(key: Tensor, n: int, temperature: float, *, backend: str = "auto") -> Tensor:
    """Sum of ``n`` relaxed draws without replacement, for the gradient of :func:`hard_topk`.

    See :func:`snn_core.kernels.topk_sampler.reference.relaxed_topk` for the recursion. Only ``key`` is saved for the
    backward pass: O(M) memory a block.

    Args:
        key: ``[..., M]``, floating point.
        n: number of draws, 1 to M.
        temperature: tau > 0. At tau >= 1 successive draws nearly coincide; the masks never depend on it.
        backend: as in :func:`hard_topk`.

    Returns:
        ``[..., M]``, dtype of ``key``; each block sums to ``n``.

    Raises:
        ArgumentError: ``n`` or ``temperature`` out of range, ``key`` not floating point.
    """
    _check(key, n)
    _check_temperature(temperature)
    operators = _operators(key, backend)
    if operators is not None:
        soft = operators.soft(_blocks(key), None, n, 1.0, 0.0, 0.0, 0, 0, float(temperature))
    else:
        soft = torch.ops.snn_core.topk_relaxed(key, n, float(temperature))
    result: Tensor = soft.view(key.shape)
    return result


def relaxed_topk_backward(
    grad_soft: Tensor, key: Tensor, n: int, temperature: float, *, backend: str = "auto"
) -> Tensor:
    """Gradient of :func:`relaxed_topk` to ``key`` ``[..., M]``, for callers that have ``grad_soft`` without a graph."""
    _check(key, n)
    _check_temperature(temperature)
    _check_like(grad_soft, key, "grad_soft", "key")
    operators = _operators(key, backend)
    if operators is not None and grad_soft.dtype == key.dtype:
        gradient = operators.backward(
            _blocks(grad_soft), _blocks(key), None, n, 1.0, 0.0, 0.0, 0, 0, float(temperature)
        )
    else:
        gradient = torch.ops.snn_core.topk_relaxed_backward(grad_soft, key, n, float(temperature))
    result: Tensor = gradient.view(key.shape)
    return result


def topk_sample(
    logits: Tensor,
    n: int,
    *,
    seed: int,
    offset: int = 0,
    kappa: float = 1.0,
    anchor: Tensor | None = None,
    rho: float = 0.0,
    noise_scale: float = 1.0,
    backend: str = "auto",
) -> Tensor:
    """Draw ``n`` of M positions in every block: top n of ``kappa * logits + rho * anchor + noise_scale * gumbel``.

    The noise is a function of (seed, offset, block, position), made where it is used (Philox4x32-10, Salmon et al.
    2011): the mask is the same bits on every backend, for any layout and number of threads, and nothing is stored.

    Args:
        logits: ``[..., M]``, floating point; the key is float32 at least.
        n: positions to keep, 1 to M.
        seed, offset: 64 bits each: the stream, and the draw in it (a training step, say).
        kappa, anchor, rho, noise_scale: as in :func:`sample_topk`.
        backend: as in :func:`hard_topk`.

    Returns:
        bool ``[..., M]``, exactly ``n`` true in every block.

    Raises:
        ArgumentError: an argument out of range, or a key that is not finite.
    """
    options: dict[str, Any] = {"kappa": kappa, "anchor": anchor, "rho": rho, "noise_scale": noise_scale}
    mask, wrong = topk_draw(logits, n, seed=seed, offset=offset, backend=backend, **options)
    if int(wrong) == 0:
        return mask
    key = _seeded_key(
        logits.detach(), anchor, kappa, rho, noise_scale, _signed(seed, "seed"), _signed(offset, "offset")
    )
    return hard_topk(key, n, backend="reference")  # or the reason why there is no draw


def topk_draw(
    logits: Tensor,
    n: int,
    *,
    seed: int,
    offset: int = 0,
    kappa: float = 1.0,
    anchor: Tensor | None = None,
    rho: float = 0.0,
    noise_scale: float = 1.0,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """:func:`topk_sample` without waiting for the device: whether there was a draw is left to the caller to look at.

    Returns:
        The mask, and the number of blocks whose key is not finite (int64 ``[]``, on the device). Where it is not 0, the
        mask means nothing.

    Raises:
        ArgumentError: an argument out of range.
    """
    _check_sample(logits, n, anchor, noise_scale)
    operators = _operators(logits, backend) if anchor is None or anchor.dtype == logits.dtype else None
    seed, offset = _signed(seed, "seed"), _signed(offset, "offset")
    if operators is not None:
        mask, wrong = operators.sample(
            _blocks(logits.detach()), _blocks(anchor), n, float(kappa), float(rho), float(noise_scale), seed, offset
        )
        return mask.view(torch.bool).view(logits.shape), wrong
    key = _seeded_key(logits.detach(), anchor, kappa, rho, noise_scale, seed, offset)
    hard: Tensor = torch.ops.snn_core.topk_hard(key, n)
    fine = torch.isfinite(key).all(dim=-1) & (hard.sum(dim=-1, dtype=torch.int32) == n)
    return hard, (~fine).sum()


def topk_sample_backward(
    grad_mask: Tensor,
    logits: Tensor,
    n: int,
    *,
    temperature: float,
    seed: int,
    offset: int = 0,
    kappa: float = 1.0,
    anchor: Tensor | None = None,
    rho: float = 0.0,
    noise_scale: float = 1.0,
    backend: str = "auto",
) -> Tensor:
    """Straight-through gradient of :func:`topk_sample` to ``logits``: that of the relaxed draws at ``temperature``.

    Noise, key and draws are made again from the same arguments.

    Args:
        grad_mask: ``[..., M]``, gradient of the mask.
        logits, n, seed, offset, kappa, anchor, rho, noise_scale, backend: as they were for the draw.
        temperature: tau > 0.

    Returns:
        ``[..., M]``, dtype of ``logits`` (float32 for half types).
    """
    _check_sample(logits, n, anchor, noise_scale)
    _check_temperature(temperature)
    _check_like(grad_mask, logits, "grad_mask", "logits")
    same = all(t is None or t.dtype == logits.dtype for t in (grad_mask, anchor))
    operators = _operators(logits, backend) if same else None
    seed, offset = _signed(seed, "seed"), _signed(offset, "offset")
    if operators is not None:
        gradient = operators.backward(
            _blocks(grad_mask), _blocks(logits.detach()), _blocks(anchor), n, float(kappa), float(rho),
            float(noise_scale), seed, offset, float(temperature),
        )  # fmt: skip
        result: Tensor = gradient.view(logits.shape)
        return result
    key = _seeded_key(logits.detach(), anchor, kappa, rho, noise_scale, seed, offset)
    return relaxed_topk_backward(grad_mask.to(key.dtype), key, n, temperature, backend="reference") * kappa


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
    seed: int | None = None,
    offset: int = 0,
    backend: str = "auto",
) -> TopKSample:
    """Draw ``n`` of M positions in every block, with a differentiable companion.

    ``key = kappa * logits + rho * anchor + noise_scale * gumbel``; ``hard`` is the exact top n of the key, ``soft`` its
    relaxation. ``hard + soft - soft.detach()`` (:func:`straight_through`) is a mask with a gradient to the logits.

    Args:
        logits: ``[..., M]``, floating point. For float16 and bfloat16 noise, key and relaxation are float32, and
            ``soft`` is rounded to the logits' type.
        n: positions to keep, 1 to M.
        temperature: tau > 0 of the relaxation; the hard draw does not depend on it.
        generator: source of the noise, on the logits' device, with which it is stored until the backward pass. It or
            ``seed`` is needed unless ``noise_scale`` is 0.
        noise_scale: eta >= 0. 1 gives the Plackett-Luce law of ``kappa * logits + rho * anchor``, 0 a fixed choice.
        kappa: scale of the logits.
        anchor: ``[..., M]``, usually the weight's magnitude over its standard deviation; gets no gradient.
        rho: weight of the anchor.
        seed, offset: in place of ``generator``, noise as :func:`topk_sample` makes it, which is never stored.
        backend: as in :func:`hard_topk`.

    Raises:
        ArgumentError: an argument out of range, shapes that differ, a missing generator, or generator and seed both.
    """
    _check_sample(logits, n, anchor, noise_scale)
    _check_temperature(temperature)
    if seed is not None and generator is not None:
        raise ArgumentError("generator and seed are both given; the noise comes from one of them")
    dtype = _key_dtype(logits.dtype)
    anchor = None if anchor is None else anchor.detach().to(_key_dtype(anchor.dtype))
    if seed is not None:
        return _seeded_sample(logits, n, anchor, seed, offset, (kappa, rho, noise_scale), temperature, backend)
    noise = None
    if noise_scale > 0:
        if generator is None:
            raise ArgumentError("generator: needed for noise_scale > 0 (randomness is always explicit), or a seed")
        noise = gumbel_noise(logits.shape, generator, dtype)
    key = perturbed_key(logits.to(dtype), anchor, noise, kappa, rho, noise_scale)
    soft = relaxed_topk(key, n, temperature, backend=backend)
    return TopKSample(hard_topk(key, n, backend=backend), soft.to(logits.dtype))


def _seeded_sample(
    logits: Tensor, n: int, anchor: Tensor | None, seed: int, offset: int, scales: tuple[float, float, float],
    temperature: float, backend: str,
) -> TopKSample:  # fmt: skip
    kappa, rho, noise_scale = scales
    wide = logits.to(_key_dtype(logits.dtype))
    options: dict[str, Any] = {"seed": seed, "offset": offset, "kappa": kappa, "anchor": anchor, "rho": rho}
    hard = topk_sample(wide, n, noise_scale=noise_scale, backend=backend, **options)
    operators = _operators(wide, backend) if anchor is None or anchor.dtype == wide.dtype else None
    seed, offset = _signed(seed, "seed"), _signed(offset, "offset")
    if operators is not None:
        soft = operators.soft(
            _blocks(wide), _blocks(anchor), n, float(kappa), float(rho), float(noise_scale), seed, offset,
            float(temperature),
        )  # fmt: skip
    else:
        key = _seeded_key(wide, anchor, kappa, rho, noise_scale, seed, offset)
        soft = relaxed_topk(key, n, temperature, backend="reference")
    return TopKSample(hard, soft.view(logits.shape).to(logits.dtype))


def _seeded_key(
    logits: Tensor, anchor: Tensor | None, kappa: float, rho: float, noise_scale: float, seed: int, offset: int
) -> Tensor:
    wide = logits.to(_key_dtype(logits.dtype))
    return reference.seeded_key(wide, anchor, kappa, rho, noise_scale, seed, offset)


def straight_through(sample: TopKSample) -> Tensor:
    """The mask in the weights' arithmetic: the value of ``hard``, the gradient of ``soft``."""
    return sample.hard.to(sample.soft.dtype) + (sample.soft - sample.soft.detach())


def _signed(value: int, name: str) -> int:
    """64 bits as the signed number that operators take."""
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**64:
        raise ArgumentError(f"{name} must be an integer of 64 bits, got {value!r}")
    return value - 2**64 if value >= 2**63 else value


def _check(key: Tensor, n: int) -> None:
    if key.ndim < 1 or not key.is_floating_point():
        raise ArgumentError(f"key/logits: expected a floating-point tensor [..., M], got {key.dtype} {list(key.shape)}")
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= key.shape[-1]:
        raise ArgumentError(f"n must be an integer from 1 to M = {key.shape[-1]}, got {n!r}")


def _check_like(tensor: Tensor, like: Tensor, name: str, of: str) -> None:
    if tensor.shape != like.shape:
        raise ArgumentError(f"{name}: expected shape {list(like.shape)} like {of}, got {list(tensor.shape)}")


def _check_sample(logits: Tensor, n: int, anchor: Tensor | None, noise_scale: float) -> None:
    _check(logits, n)
    if anchor is not None:
        _check_like(anchor, logits, "anchor", "logits")
    if not 0 <= noise_scale < float("inf"):
        raise ArgumentError(f"noise_scale must be 0 or more, got {noise_scale}")


def _check_temperature(temperature: float) -> None:
    if not 0 < temperature < float("inf"):
        raise ArgumentError(f"temperature must be positive and finite, got {temperature}")
