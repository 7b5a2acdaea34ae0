"""The sampler on weights in their own layout: mask and masked weight in one pass, the logits' Adam step in another.

State (logits, Adam's moments, targets) is float32 ``[M, blocks]``, blocks in the order of the weight's memory: output
channel, group of M input channels, kernel position (:func:`weight_columns`). Compiled code serves float32 weights on
the CPU; elsewhere the same in plain torch, with the draws by whatever backend the device has, and nothing there waits
for the device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from snn_core.errors import ArgumentError
from snn_core.kernels.native import native_backend, wanted_backend
from snn_core.kernels.topk_sampler.ops import MAX_POSITIONS, relaxed_topk, topk_draw, topk_sample_backward
from snn_core.kernels.topk_sampler.reference import seeded_key, soft_targets
from snn_core.kernels.topk_sampler.schema import (
    absolute_deviation_operator,
    mask_weight_operator,
    update_credit_operator,
    update_logits_operator,
)


@dataclass(frozen=True)
class KeyOptions:
    """``key = kappa * logits + rho * |w| + eta * gumbel(seed, offset)``, of which the ``n`` largest of a block stay.

    ``rho`` may be a tensor ``[]`` on the weight's device, where compiled code does not serve it.
    """

    n: int
    kappa: float = 1.0
    rho: float | Tensor = 1.0
    eta: float = 0.0
    seed: int = 0
    offset: int = 0


@dataclass(frozen=True)
class AdamOptions:
    """Adam's settings (Kingma and Ba 2015, as ``torch.optim.Adam`` computes it); ``step`` counts from 1."""

    learning_rate: float
    step: int
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8


def weight_columns(weight: Tensor, m: int) -> Tensor:
    """``[O, C, *kernel]`` -> ``[M, O * C / M * kernel]``, blocks of M along C; a view where the layout allows."""
    if weight.ndim < 2 or weight.shape[1] == 0 or weight.shape[1] % m:
        raise ArgumentError(f"weight of shape {list(weight.shape)} has no blocks of {m} along dimension 1")
    return weight.unflatten(1, (weight.shape[1] // m, m)).movedim(2, 0).reshape(m, -1)


def columns_to_weight(columns: Tensor, like: Tensor) -> Tensor:
    """The inverse of :func:`weight_columns`, in the shape and memory layout of ``like``."""
    m = columns.shape[0]
    blocks = columns.reshape(m, like.shape[0], like.shape[1] // m, *like.shape[2:]).movedim(0, 2)
    result = torch.empty_like(like, dtype=columns.dtype, requires_grad=False)
    result.unflatten(1, (like.shape[1] // m, m)).copy_(blocks)
    return result


def runs_natively(weight: Tensor, m: int) -> bool:
    """Whether compiled code serves a weight: float32 on the CPU, library at hand, backend not asked to be another."""
    return 2 <= weight.ndim <= 4 and _is_dense(weight) and _is_compiled(weight, m)


def _is_compiled(values: Tensor, m: int) -> bool:
    return (
        values.dtype == torch.float32
        and values.device.type == "cpu"
        and m <= MAX_POSITIONS
        and wanted_backend("auto") in ("auto", "cpp")
        and native_backend(values.device) == "cpp"
    )


def _is_dense(weight: Tensor) -> bool:
    return weight.is_contiguous() or (weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last))


def absolute_deviation(weight: Tensor) -> float | Tensor:
    """Standard deviation of ``|weight|`` over all elements (n - 1 in the denominator), summed in float64.

    A number where compiled code serves the weight, else a float64 tensor ``[]`` on its device.
    """
    if runs_natively(weight.detach(), 1):
        return float(absolute_deviation_operator(weight.detach()))
    return weight.detach().double().abs().std()


def _anchor(columns: Tensor, rho: float | Tensor) -> tuple[Tensor, float]:
    """``|w|`` and its factor in the key; a factor on the device is multiplied in, which rounds as the kernels do."""
    magnitude = columns.abs()
    return (magnitude.mul_(rho), 1.0) if isinstance(rho, Tensor) else (magnitude, rho)


def mask_weight(
    weight: Tensor, logits: Tensor | None, m: int, options: KeyOptions, beta: float = 0.0
) -> tuple[Tensor, Tensor, int | Tensor]:
    """Draw a mask for a weight, and the masked weight.

    Args:
        weight: ``[O, C, *kernel]``, floating point, C a multiple of ``m``.
        logits: float32 ``[M, blocks]``, or None for the magnitude alone.
        m: size of a block.
        options: of the key.
        beta: what dropped weights are multiplied by.

    Returns:
        ``weight * (mask + beta * (1 - mask))``, the boolean mask (exactly n of M true), both in the weight's shape and
        layout, and the number of blocks with a key that is not finite (the mask is meaningless if it is not 0): from
        compiled code a number, else a tensor on the device, for which nobody has waited.
    """
    weight = weight.detach()
    if runs_natively(weight, m):
        masked, mask, wrong = mask_weight_operator(
            weight, logits, m, options.n, options.kappa, options.rho, options.eta, options.seed, options.offset, beta
        )
        return masked, mask.view(torch.bool), int(wrong)
    magnitude, rho = _anchor(weight_columns(weight, m).float(), options.rho)
    state = torch.zeros_like(magnitude) if logits is None else logits
    hard, wrong = topk_draw(
        state.t(), options.n, seed=options.seed, offset=options.offset, kappa=options.kappa,
        anchor=magnitude.t(), rho=rho, noise_scale=options.eta,
    )  # fmt: skip
    mask = columns_to_weight(hard.t(), weight)
    return (weight * mask if beta == 0 else torch.where(mask, weight, weight * beta)), mask, wrong


def relaxed_mask(weight: Tensor, logits: Tensor, m: int, options: KeyOptions, temperature: float) -> Tensor:
    """The sum of the relaxed draws with the key that :func:`mask_weight` takes the top n of.

    Args:
        weight, logits, m, options: as for :func:`mask_weight`.
        temperature: of the relaxed draws.

    Returns:
        float32 in the weight's shape and layout, >= 0, n in every block; NaN where the key is not finite.
    """
    magnitude, rho = _anchor(weight_columns(weight.detach(), m).float(), options.rho)
    key = seeded_key(logits.t(), magnitude.t(), options.kappa, rho, options.eta, options.seed, options.offset)
    return columns_to_weight(relaxed_topk(key, options.n, temperature).t(), weight)


def update_logits_(
    state: tuple[Tensor, Tensor, Tensor],
    grad: Tensor,
    weight: Tensor,
    options: KeyOptions,
    adam: AdamOptions,
    *,
    temperature: float,
    scale: float = 1.0,
    target: Tensor | None = None,
    pull: float = 0.0,
    pull_key: bool = True,
    decay: float = 0.0,
    mask: Tensor | None = None,
) -> int | Tensor:
    """One Adam step of the logits, in place, from the gradient of the masked weight.

    The masked weight has a straight-through gradient, so ``dL/dmask = weight * grad``. The gradient of the logits is
    ``scale`` times that of the relaxed draws (their key's gradient) plus ``pull * (p - target)``. Noise, key and draws
    are made again, and nothing is stored. Blocks whose gradient is not finite stay as they are.

    Args:
        state: logits and Adam's ``exp_avg`` and ``exp_avg_sq``, float32 ``[M, blocks]``; changed in place.
        grad: gradient of ``weight``; with ``decay`` it becomes ``grad + decay * (1 - mask) * weight`` (SR-STE).
        weight: as the mask was drawn with.
        options: as the mask was drawn with.
        adam: settings of the step.
        temperature: of the relaxed draws.
        scale: factor of their gradient; kappa is the caller's to include.
        target: probabilities ``[M, blocks]`` that p is pulled to, or None.
        pull: factor of ``p - target``.
        pull_key: p is the softmax of the noise-free key; else of the logits.
        decay: see ``grad``.
        mask: as drawn, if the caller has it; compiled code does without.

    Returns:
        The number of blocks whose gradient is not finite, as :func:`mask_weight` returns it.
    """
    logits, exp_avg, exp_avg_sq = state
    weight = weight.detach()
    m = logits.shape[0]
    if runs_natively(weight, m) and grad.dtype == torch.float32 and _is_dense(grad):
        return int(
            update_logits_operator(
                logits, exp_avg, exp_avg_sq, grad, weight, target, options.n, options.kappa, options.rho, options.eta,
                options.seed, options.offset, temperature, scale, pull, pull_key, adam.learning_rate, adam.beta1,
                adam.beta2, adam.epsilon, adam.step, decay,
            )
        )  # fmt: skip
    columns = weight_columns(weight, m).float()
    anchor, rho = _anchor(columns, options.rho)
    scaled = logits * options.kappa  # its gradient is the key's, which is wanted here
    gradient = topk_sample_backward(
        (columns * weight_columns(grad, m).float()).t(), scaled.t(), options.n, temperature=temperature,
        seed=options.seed, offset=options.offset, anchor=anchor.t(), rho=rho, noise_scale=options.eta,
    ).t() * scale  # fmt: skip
    if target is not None:
        pulled = scaled.add_(anchor, alpha=rho) if pull_key else logits
        gradient.add_(torch.softmax(pulled, dim=0) - target, alpha=pull)
    if decay != 0:
        mask = mask_weight(weight, logits, m, options)[1] if mask is None else mask
        grad.add_(weight.masked_fill(mask, 0), alpha=decay)
    fine = torch.isfinite(gradient.sum(dim=0))
    _adam_(state, torch.where(fine, gradient, 0.0), adam, fine)
    return (~fine).sum()


def update_credit_(
    credit: Tensor,
    targets: Tensor,
    fresh: Tensor | None,
    weight: Tensor | None = None,
    *,
    keep: float,
    temperature: float,
) -> Tensor:
    """Running mean of absolute credits, in place, and the soft targets made of it.

    ``credit = keep * credit + (1 - keep) * |fresh * weight|``, ``targets = softmax(standardised credit / temperature)``
    in each block, standardised to mean 0 and deviation 1 (n - 1 in the denominator; all 0 where a block is constant).

    Args:
        credit, targets: float32 ``[M, blocks]`` of a layer, M at least 2; targets are overwritten.
        fresh: with its sign, float32, in the weight's shape; None: the targets alone.
        weight: factor of ``fresh``, or None.
        keep: in [0, 1].
        temperature: of the targets.

    Returns:
        int64 ``[2]`` on the device: blocks whose fresh credit is not finite, which keep what they have, and blocks
        whose credit is not 0.
    """
    if fresh is not None and weight is not None and weight.dtype != torch.float32:
        fresh, weight = fresh * weight.detach(), None
    if _is_compiled(credit, credit.shape[0]):  # a matter of the state alone: one that is loaded gives the same targets
        dense = [t if t is None or _is_dense(t) else t.contiguous() for t in (fresh, weight)]
        values = [t if t is None else t.detach() for t in dense]
        return update_credit_operator(credit, targets, *values, keep, temperature)
    wrong = torch.zeros((), dtype=torch.int64, device=credit.device)
    if fresh is not None:
        seen = weight_columns(fresh if weight is None else fresh * weight.detach(), credit.shape[0]).abs()
        fine = torch.isfinite(seen.sum(dim=0))
        credit.copy_(torch.where(fine, credit * keep + seen * (1 - keep), credit))
        wrong = (~fine).sum()
    targets.copy_(soft_targets(credit, temperature))
    return torch.stack([wrong, (credit != 0).any(dim=0).sum()])


def _adam_(state: tuple[Tensor, Tensor, Tensor], gradient: Tensor, adam: AdamOptions, fine: Tensor) -> None:
    logits, exp_avg, exp_avg_sq = state
    mean = torch.lerp(exp_avg, gradient, 1 - adam.beta1)
    square = (exp_avg_sq * adam.beta2).addcmul_(gradient, gradient, value=1 - adam.beta2)
    root = square.sqrt() / math.sqrt(1 - adam.beta2**adam.step) + adam.epsilon
    moved = logits.addcdiv(mean, root, value=-adam.learning_rate / (1 - adam.beta1**adam.step))
    for old, new in zip(state, (moved, mean, square), strict=True):
        old.copy_(torch.where(fine, new, old))
