"""Frozen linear layers on compressed weights: their gradient reaches the input, and nothing dense is kept for it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snn_core.errors import ArgumentError
from snn_core.kernels import nm_matmul
from snn_core.kernels.native import BACKENDS, native_backend, wanted_backend
from snn_core.kernels.nm_compress import CompressedNM, NMPattern
from snn_core.kernels.nm_matmul.candidates import MORE_BACKENDS
from snn_core.kernels.spike_pack import PackedSpikes
from snn_core.sparsity import CompressedLinear

_KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class FrozenLinear(CompressedLinear):
    """Linear layer with a constant N:M weight inside a network that trains: ``y = x W^T + bias``.

    As :class:`snn_core.sparsity.CompressedLinear`, but made for training what stands before it. There, the gradient to
    ``x`` is formed through a dense weight that autograd keeps from forward to backward, for every layer at once. Here,
    the forward product runs on the compressed weight, and backward expands it for the one product ``grad_y W`` and
    drops it again: the expanded weights of two layers are never in memory together.

    Args:
        weight: ``[out_features, in_features]``; its tensors become buffers.
        bias: ``[out_features]`` or None; it takes no gradient.
        backend: ``"compressed"``: the native product where there is one for the device and dtype, else an expanded
            weight for the call. Others: those of :func:`snn_core.kernels.nm_matmul`; ``"auto"`` measures, and may keep
            a dense copy of the weight where that is faster.
    """

    def __init__(self, weight: CompressedNM, bias: Tensor | None = None, *, backend: str = "compressed") -> None:
        if backend != "compressed":
            wanted_backend(backend, (*BACKENDS, *MORE_BACKENDS))
        super().__init__(weight, bias, backend=backend)

    def forward(self, x: Tensor | PackedSpikes) -> Tensor:
        """``[..., in_features]`` -> ``[..., out_features]`` in the dtype of ``x``."""
        if not isinstance(x, Tensor) or x.dtype == torch.uint8:
            return super().forward(x)
        if torch.is_grad_enabled() and x.requires_grad:
            result: Tensor = _Product.apply(x, self.values, self.indices, self)
            return result
        return self.product(x)

    def product(self, x: Tensor) -> Tensor:
        """The product without a gradient."""
        if torch.compiler.is_compiling():
            # The measuring dispatcher is no graph; expanding and multiplying is one.
            weight, bias = self.weight.to_dense(x.dtype), self.bias
            return F.linear(x, weight, None if bias is None else bias.to(x.dtype))
        return nm_matmul(x, self.weight, self.bias, backend=self._backend_for(x))

    def _backend_for(self, x: Tensor) -> str:
        if self.backend != "compressed":
            return self.backend
        native = native_backend(x.device)
        if native is None or x.dtype not in _KERNEL_DTYPES or torch.is_autocast_enabled(x.device.type):
            return "dense"
        return native


class _Product(torch.autograd.Function):
    """The product of a :class:`FrozenLinear`; only the compressed weight is kept for backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, indices: Tensor, layer: FrozenLinear) -> Tensor:
        # The tensors are given a second time so that autograd notices when they change before backward.
        ctx.save_for_backward(values, indices)
        ctx.shape, ctx.pattern, ctx.scale, ctx.dtype = layer.shape, layer.pattern, layer.scale, x.dtype
        return layer.product(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values, indices = ctx.saved_tensors
        weight = CompressedNM._of_checked_parts(values, indices, ctx.shape, ctx.pattern, ctx.scale)
        grad = grads[0]
        return (grad @ weight.to_dense(grad.dtype)).to(ctx.dtype), None, None, None


def freeze(module: nn.Module) -> nn.Module:
    """No parameter of ``module`` takes a gradient any more; returns ``module``."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module


def why_dense(layer: nn.Linear, pattern: NMPattern) -> str:
    """Why ``layer`` cannot be compressed to ``pattern``; empty where it can."""
    if type(layer).forward is not nn.Linear.forward:
        return f"{type(layer).__name__} has a forward of its own"
    if layer.in_features % pattern.m:
        return f"its {layer.in_features} inputs are no multiple of {pattern.m}"
    return ""


def check_layers(blocks: nn.Module, pattern: NMPattern) -> dict[str, nn.Linear]:
    """All linear layers of ``blocks`` by name; but those with fewer inputs than M, which hold no block.

    Raises:
        ArgumentError: there is none, or one cannot be compressed.
    """
    layers = {
        name: layer
        for name, layer in blocks.named_modules()
        if isinstance(layer, nn.Linear) and layer.in_features >= pattern.m
    }
    if not layers:
        raise ArgumentError(f"pattern: {type(blocks).__name__} holds no dense linear layer to compress to {pattern}")
    for name, layer in layers.items():
        reason = why_dense(layer, pattern)
        if reason:
            raise ArgumentError(f"pattern: layer blocks.{name} cannot be compressed to {pattern}: {reason}")
    return layers


def compress_layer(
    layer: nn.Linear, pattern: NMPattern, mask: Tensor, dtype: torch.dtype | None, backend: str
) -> FrozenLinear:
    """The compressed form of a linear layer; ``layer`` stays as it is.

    Args:
        layer: any ``nn.Linear``.
        pattern, mask: which weights stay.
        dtype: of the stored values; default that of the layer.
        backend: as in :class:`FrozenLinear`.
    """
    weight = CompressedNM.from_dense(layer.weight, pattern, mask)
    compressed = FrozenLinear(
        weight if dtype is None else weight.to(dtype=dtype),
        None if layer.bias is None else layer.bias.detach().clone(),
        backend=backend,
    )
    compressed.dense_dtype = layer.weight.dtype
    return compressed.train(layer.training)
