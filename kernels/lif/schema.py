"""The ``lif`` operators of torch.library: schemas, fake kernels, autograd and vmap rules.

Two families of one shape: ``snn_core::lif*`` is compiled code (C++ for CPU tensors, CUDA C++ for CUDA tensors),
``snn_core::lif_triton*`` is Triton. Every family has

=============  ========================================================================================
``lif``        forward; differentiable. Keeps ``v`` at chunk borders where asked to (``checkpoint_every``)
``_backward``  gradients; recomputes ``h`` from ``x_seq``; its own gradient is refused. That of ``v0`` is empty
               where there is no ``v0``
``_packed``    forward with eight spikes a byte; no gradient
``_inplace``   forward that overwrites ``x_seq`` with the spikes; no gradient
=============  ========================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from snn_core.kernels.native.library import LIBRARY, TAGS, dense_strides, empty_sequence_like, packed_size

INPUTS = "Tensor? v0, Tensor? reciprocal_tau"
OPTIONS = (
    "float tau, float v_threshold, float? v_reset, bool decay_input, bool detach_reset, int surrogate, float alpha"
)
#: Number of arguments in OPTIONS.
OPTION_COUNT = OPTIONS.count(",") + 1


@dataclass(frozen=True)
class LifOperators:
    """The overloads of one family."""

    forward: Callable[..., Any]
    backward: Callable[..., Any]
    packed: Callable[..., Any]
    inplace: Callable[..., Any]


def _forward_fake(x_seq: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    checkpoint_every, return_v_seq = arguments[-2:]
    v_seq = empty_sequence_like(x_seq) if return_v_seq else x_seq.new_empty(0)
    checkpoints = x_seq.new_empty(0, dtype=torch.float32)
    if checkpoint_every > 0:
        checkpoints = empty_sequence_like(x_seq, (x_seq.shape[0] - 1) // checkpoint_every, torch.float32)
    return empty_sequence_like(x_seq), torch.empty_like(x_seq[0], dtype=torch.float32), v_seq, checkpoints


def _backward_fake(
    grad_s: Any, grad_v_last: Any, grad_v_seq: Any, x_seq: Tensor, v0: Tensor | None, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    grad_v0 = x_seq.new_empty(0, dtype=torch.float32)
    if v0 is not None:
        grad_v0 = torch.empty_like(x_seq[0], dtype=torch.float32)
    return empty_sequence_like(x_seq), grad_v0, x_seq.new_empty((), dtype=torch.float32)


def _packed_fake(x_seq: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    dim, step = arguments[-1], torch.empty_like(x_seq[0])
    size = list(step.shape)
    size[dim - 1] = packed_size(size[dim - 1])
    strides = (math.prod(size), *dense_strides(size, step.stride()))
    packed = x_seq.new_empty_strided((x_seq.shape[0], *size), strides, dtype=torch.uint8)
    return packed, torch.empty_like(x_seq[0], dtype=torch.float32)


def _inplace_fake(x_seq: Tensor, *arguments: Any) -> Tensor:
    return torch.empty_like(x_seq[0], dtype=torch.float32)


def _refuse_double_backward(ctx: Any, *gradients: Any) -> Any:
    raise RuntimeError(
        "the surrogate gradient of lif is not differentiated again (double backward); use backend='reference' for it"
    )


def _to_front(tensor: Tensor | None, batch_dim: int | None, position: int, batch: int) -> Tensor | None:
    """The batch dimension of a vmapped argument at ``position``; an unbatched one is expanded there."""
    if tensor is None:
        return None
    if batch_dim is None:
        shape = list(tensor.shape)
        return tensor.unsqueeze(position).expand(*shape[:position], batch, *shape[position:])
    return tensor.movedim(batch_dim, position)


def _refuse_batched_tau(batch_dim: int | None) -> None:
    if batch_dim is not None:
        raise NotImplementedError(
            "vmap over a learned reciprocal_tau of lif is not supported: one call has one tau; loop over it instead"
        )


def define_family(suffix: str) -> LifOperators:
    """Define ``lif{suffix}``, its backward, packed and in-place forms; kernels are registered elsewhere."""
    name = f"lif{suffix}"
    LIBRARY.define(
        f"{name}(Tensor x_seq, {INPUTS}, {OPTIONS}, int checkpoint_every, bool return_v_seq)"
        " -> (Tensor, Tensor, Tensor, Tensor)",
        tags=TAGS,
    )
    LIBRARY.define(
        f"{name}_backward(Tensor? grad_s, Tensor? grad_v_last, Tensor? grad_v_seq, Tensor x_seq, {INPUTS}, "
        f"Tensor? checkpoints, {OPTIONS}, int checkpoint_every) -> (Tensor, Tensor, Tensor)",
        tags=TAGS,
    )
    LIBRARY.define(f"{name}_packed(Tensor x_seq, {INPUTS}, {OPTIONS}, int dim) -> (Tensor, Tensor)", tags=TAGS)
    LIBRARY.define(f"{name}_inplace(Tensor(a!) x_seq, {INPUTS}, {OPTIONS}) -> Tensor", tags=TAGS)
    for ending, fake in (
        ("", _forward_fake),
        ("_backward", _backward_fake),
        ("_packed", _packed_fake),
        ("_inplace", _inplace_fake),
    ):
        torch.library.register_fake(f"snn_core::{name}{ending}", fake, lib=LIBRARY)
    namespace = torch.ops.snn_core
    _count_versions(f"{name}_inplace", getattr(namespace, f"{name}_inplace").default)
    operators = LifOperators(
        *(getattr(namespace, f"{name}{ending}").default for ending in ("", "_backward", "_packed", "_inplace"))
    )
    _register_autograd(name, operators)
    _register_vmap(name, operators)
    return operators


def _count_versions(name: str, operator: Any) -> None:
    """Tell autograd that the first argument was overwritten, so that it notices where the old values were saved."""

    def overwritten(keyset: Any, x_seq: Tensor, *arguments: Any) -> Tensor:
        torch.autograd.graph.increment_version(x_seq)
        with torch._C._AutoDispatchBelowADInplaceOrView():
            return operator.redispatch(keyset & torch._C._after_ADInplaceOrView_keyset, x_seq, *arguments)

    LIBRARY.impl(name, overwritten, "ADInplaceOrView", with_keyset=True)


def _register_autograd(name: str, operators: LifOperators) -> None:
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x_seq, v0, reciprocal_tau, *options, checkpoint_every, return_v_seq = inputs
        ctx.save_for_backward(x_seq, v0, reciprocal_tau, output[3] if checkpoint_every > 0 else None)
        ctx.options, ctx.checkpoint_every, ctx.return_v_seq = options, checkpoint_every, return_v_seq
        ctx.mark_non_differentiable(output[3])
        ctx.set_materialize_grads(False)

    def backward(ctx: Any, grad_s: Any, grad_v_last: Any, grad_v_seq: Any, _: Any) -> tuple[Any, ...]:
        gradients = gradients_of(operators, ctx, grad_s, grad_v_last, grad_v_seq)
        return *gradients, *(None,) * (OPTION_COUNT + 2)

    torch.library.register_autograd(f"snn_core::{name}", backward, setup_context=setup_context, lib=LIBRARY)
    torch.library.register_autograd(f"snn_core::{name}_backward", _refuse_double_backward, lib=LIBRARY)


def gradients_of(
    operators: LifOperators, ctx: Any, grad_s: Tensor | None, grad_v_last: Tensor | None, grad_v_seq: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of ``x_seq``, ``v0`` and ``reciprocal_tau``, from what a forward left in ``ctx``."""
    x_seq, v0, reciprocal_tau, checkpoints = ctx.saved_tensors
    if not ctx.return_v_seq:
        grad_v_seq = None  # of the empty tensor that stands for it
    if grad_s is None and grad_v_last is None and grad_v_seq is None:
        return None, None, None
    grad_x, grad_v0, grad_reciprocal_tau = operators.backward(
        grad_s, grad_v_last, grad_v_seq, x_seq, v0, reciprocal_tau, checkpoints, *ctx.options, ctx.checkpoint_every
    )
    return grad_x, None if v0 is None else grad_v0, None if reciprocal_tau is None else grad_reciprocal_tau


def _register_vmap(name: str, operators: LifOperators) -> None:
    """Neurons are independent, so a batch dimension is one more dimension of neurons."""

    def forward(info: Any, in_dims: tuple[Any, ...], x_seq: Any, v0: Any, reciprocal_tau: Any, *rest: Any) -> Any:
        _refuse_batched_tau(in_dims[2])
        batched_x = _to_front(x_seq, in_dims[0], 1, info.batch_size)
        batched_v0 = _to_front(v0, in_dims[1], 0, info.batch_size)
        s_seq, v_last, v_seq, checkpoints = operators.forward(batched_x, batched_v0, reciprocal_tau, *rest)
        return_v_seq, checkpointed = rest[-1], rest[-2] > 0
        return (s_seq, v_last, v_seq, checkpoints), (1, 0, 1 if return_v_seq else None, 1 if checkpointed else None)

    def backward(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> Any:
        _refuse_batched_tau(in_dims[5])
        positions = (1, 0, 1, 1, 0, None, 1)  # of the batch dimension in the tensor arguments
        batched = list(arguments)
        for index, position in enumerate(positions):
            if position is not None:
                batched[index] = _to_front(arguments[index], in_dims[index], position, info.batch_size)
        if arguments[5] is not None:
            raise NotImplementedError("vmap over the gradient of a learned reciprocal_tau of lif is not supported")
        return operators.backward(*batched), (1, None if arguments[4] is None else 0, None)

    torch.library.register_vmap(f"snn_core::{name}", forward, lib=LIBRARY)
    torch.library.register_vmap(f"snn_core::{name}_backward", backward, lib=LIBRARY)


COMPILED = define_family("")
TRITON = define_family("_triton")
