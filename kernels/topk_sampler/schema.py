"""The ``topk_sampler`` operators of torch.library that draw their own noise: schemas, fake kernels, autograd.

Two families of one shape: ``snn_core::topk_sample*`` is compiled code (CPU), ``snn_core::topk_sample_triton*`` is
Triton. Tensors are float32 ``[blocks, M]``; those made are position-major where ``logits`` is.

=============  =======================================================================================
``_sample``    mask (uint8) and the number of blocks with a key that is not finite
``_soft``      the relaxed draws; differentiable to ``logits``
``_backward``  their gradient to ``logits``: noise, key and draws are made again
=============  =======================================================================================

``topk_mask_weight``, ``topk_update_logits``, ``topk_update_credit`` and ``absolute_deviation`` work on a weight in its
own layout, with state ``[M, blocks]`` (see weights.py); they are compiled code alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from snn_core.kernels.native.library import LIBRARY, TAGS
from snn_core.kernels.topk_sampler.columns import fake_like

KEY = "Tensor logits, Tensor? anchor, int n, float kappa, float rho, float eta, int seed, int offset"
#: Arguments in KEY after ``logits``.
KEY_COUNT = KEY.count(",")


@dataclass(frozen=True)
class SampleOperators:
    """The overloads of one family."""

    sample: Callable[..., tuple[Tensor, Tensor]]
    soft: Callable[..., Tensor]
    backward: Callable[..., Tensor]


def _sample_fake(logits: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    return fake_like(logits, torch.uint8), logits.new_empty((), dtype=torch.int64)


def _soft_fake(logits: Tensor, *arguments: Any) -> Tensor:
    return fake_like(logits, torch.float32)


def _backward_fake(grad: Tensor, logits: Tensor, *arguments: Any) -> Tensor:
    return fake_like(logits, torch.float32)


def _refuse_double_backward(ctx: Any, *gradients: Any) -> Any:
    raise RuntimeError("relaxed draws are not differentiated twice (double backward); use backend='reference' for that")


def define_family(suffix: str) -> SampleOperators:
    """Define ``topk_sample{suffix}`` and its soft and backward forms; kernels are registered elsewhere."""
    name = f"topk_sample{suffix}"
    LIBRARY.define(f"{name}({KEY}) -> (Tensor, Tensor)", tags=TAGS)
    LIBRARY.define(f"{name}_soft({KEY}, float temperature) -> Tensor", tags=TAGS)
    LIBRARY.define(f"{name}_backward(Tensor grad, {KEY}, float temperature) -> Tensor", tags=TAGS)
    for ending, fake in (("", _sample_fake), ("_soft", _soft_fake), ("_backward", _backward_fake)):
        torch.library.register_fake(f"snn_core::{name}{ending}", fake, lib=LIBRARY)
    namespace = torch.ops.snn_core
    operators = SampleOperators(*(getattr(namespace, f"{name}{end}").default for end in ("", "_soft", "_backward")))

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], inputs[1])  # neither noise nor key: the backward makes them again
        ctx.rest = inputs[2:]

    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        logits, anchor = ctx.saved_tensors
        return operators.backward(grad, logits, anchor, *ctx.rest), *(None,) * (KEY_COUNT + 1)

    torch.library.register_autograd(f"snn_core::{name}_soft", backward, setup_context=setup_context, lib=LIBRARY)
    torch.library.register_autograd(f"snn_core::{name}_backward", _refuse_double_backward, lib=LIBRARY)
    return operators


COMPILED = define_family("")
TRITON = define_family("_triton")

LIBRARY.define(
    "topk_mask_weight(Tensor weight, Tensor? logits, int m, int n, float kappa, float rho, float eta, int seed, "
    "int offset, float beta) -> (Tensor, Tensor, Tensor)",
    tags=TAGS,
)
LIBRARY.define(
    "topk_update_logits(Tensor(a!) logits, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, Tensor(d!) grad, Tensor weight, "
    "Tensor? target, int n, float kappa, float rho, float eta, int seed, int offset, float temperature, float scale, "
    "float pull, bool pull_key, float learning_rate, float beta1, float beta2, float epsilon, int step, float decay) "
    "-> Tensor",
    tags=TAGS,
)
LIBRARY.define(
    "topk_update_credit(Tensor(a!) credit, Tensor(b!) targets, Tensor? fresh, Tensor? weight, float keep, "
    "float temperature) -> Tensor",
    tags=TAGS,
)
LIBRARY.define("absolute_deviation(Tensor x) -> Tensor", tags=TAGS)


@torch.library.register_fake("snn_core::topk_mask_weight", lib=LIBRARY)
def _mask_weight_fake(weight: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    masked = torch.empty_like(weight)
    return masked, torch.empty_like(weight, dtype=torch.uint8), weight.new_empty((), dtype=torch.int64)


@torch.library.register_fake("snn_core::topk_update_logits", lib=LIBRARY)
def _update_logits_fake(logits: Tensor, *arguments: Any) -> Tensor:
    return logits.new_empty((), dtype=torch.int64)


@torch.library.register_fake("snn_core::topk_update_credit", lib=LIBRARY)
def _update_credit_fake(credit: Tensor, *arguments: Any) -> Tensor:
    return credit.new_empty((2,), dtype=torch.int64)


@torch.library.register_fake("snn_core::absolute_deviation", lib=LIBRARY)
def _absolute_deviation_fake(x: Tensor) -> Tensor:
    return x.new_empty((), dtype=torch.float64)


update_credit_operator = torch.ops.snn_core.topk_update_credit.default
mask_weight_operator = torch.ops.snn_core.topk_mask_weight.default
update_logits_operator = torch.ops.snn_core.topk_update_logits.default
absolute_deviation_operator = torch.ops.snn_core.absolute_deviation.default
