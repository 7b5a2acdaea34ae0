"""Layers with a fixed N:M mask, for training: dense parameters, of which the kept ones are used and changed."""

from __future__ import annotations

from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snn_core.errors import ArgumentError
from snn_core.kernels.nm_compress import CompressedNM, NMPattern, check_nm, nm_mask_by_magnitude


class MaskedLayer(nn.Module):
    """What :class:`NMLinear` and :class:`NMConv2d` share: a pattern, a mask, the masked weight.

    Attributes:
        pattern: the N:M pattern.
        mask: bool buffer of the weight's shape, part of ``state_dict``.
    """

    pattern: NMPattern
    mask: Tensor

    def masked_weight(self) -> Tensor:
        """The weight, with +0 where the mask drops it; gradients reach the kept weights only."""
        weight: Tensor = self.weight  # type: ignore[assignment]
        if "weight" in self.__dict__:  # a pruner that is still searching shows its own masked weight
            return weight
        return torch.where(self.mask, weight, torch.zeros((), dtype=weight.dtype, device=weight.device))

    @torch.no_grad()
    def set_mask(self, mask: Tensor, pattern: NMPattern | str | None = None) -> None:
        """Another mask; weights outside it are set to zero.

        Args:
            mask: bool, of the weight's shape.
            pattern: of the mask; by default that of the layer.

        Raises:
            ArgumentError: another shape or dtype, or a mask that breaks the pattern.
        """
        pattern = self.pattern if pattern is None else NMPattern.parse(pattern)
        weight = self._parameters["weight"]
        assert weight is not None
        if mask.dtype != torch.bool or mask.shape != weight.shape:
            raise ArgumentError(f"mask: expected bool {list(weight.shape)}, got {mask.dtype} {list(mask.shape)}")
        violations = check_nm(mask, pattern)
        if violations:
            raise ArgumentError(f"mask breaks the {pattern} pattern: {violations} blocks keep too many")
        self.pattern = pattern
        self.mask = mask.detach().to(weight.device, copy=True)
        weight.masked_fill_(~self.mask, 0)

    def compressed_weight(self) -> CompressedNM:
        """The kept weights and their positions."""
        weight = self._parameters["weight"]
        assert weight is not None
        return CompressedNM.from_dense(weight, self.pattern, self.mask)

    def _take_over(self, layer: nn.Module, pattern: NMPattern | str, mask: Tensor | None) -> Self:
        """The parameters of ``layer`` (the same objects, so that optimisers keep them) and its mode."""
        weight = layer._parameters["weight"]
        assert weight is not None
        parsed = NMPattern.parse(pattern)
        mask = nm_mask_by_magnitude(weight, parsed) if mask is None else mask
        self._parameters["weight"], self._parameters["bias"] = weight, layer._parameters["bias"]
        self.pattern = parsed
        self.register_buffer("mask", torch.empty(0, dtype=torch.bool))
        self.set_mask(mask)
        return self.train(layer.training)


class NMLinear(MaskedLayer, nn.Linear):
    """``nn.Linear`` whose weight obeys an N:M pattern along ``in_features``: ``y = x (mask * weight)^T + bias``.

    The mask starts as that of the largest magnitudes and stays; :meth:`set_mask` changes it, and so does a pruner of
    ``snn_core.pruning`` that is attached to the layer. ``snn_core.sparsity.compress`` makes it smaller and faster for
    inference.

    Args:
        in_features, out_features, bias, device, dtype: as for ``nn.Linear``.
        pattern: N:M.

    Raises:
        ArgumentError: ``in_features`` is no multiple of M.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        pattern: NMPattern | str = "2:4",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Linear.__init__(self, in_features, out_features, bias, device, dtype)
        self._take_over(self, pattern, None)

    @classmethod
    def from_dense(cls, layer: nn.Linear, pattern: NMPattern | str = "2:4", mask: Tensor | None = None) -> NMLinear:
        """A masked layer on the parameters of ``layer``, whose dropped weights become zero.

        Args:
            layer: any ``nn.Linear``.
            pattern: N:M.
            mask: of the kept weights; by default the largest magnitudes of each block.

        Raises:
            ArgumentError: a weight that cannot be cut into blocks or is not finite, or a mask as :meth:`set_mask`.
        """
        masked = cls.__new__(cls)
        nn.Module.__init__(masked)
        masked.in_features, masked.out_features = layer.in_features, layer.out_features
        return masked._take_over(layer, pattern, mask)

    def forward(self, input: Tensor) -> Tensor:
        """``[..., in_features]`` -> ``[..., out_features]``."""
        return F.linear(input, self.masked_weight(), self.bias)

    def extra_repr(self) -> str:
        return f"{nn.Linear.extra_repr(self)}, pattern={self.pattern}"


_CONV_OPTIONS = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "transposed",
    "output_padding",
    "groups",
    "padding_mode",
    "_reversed_padding_repeated_twice",
)


class NMConv2d(MaskedLayer, nn.Conv2d):
    """``nn.Conv2d`` whose weight obeys an N:M pattern along the input channels (of a group) at each kernel position.

    Mask and pruning as in :class:`NMLinear`.

    Args:
        in_channels, out_channels, kernel_size, and options: as for ``nn.Conv2d``.
        pattern: N:M.

    Raises:
        ArgumentError: ``in_channels / groups`` is no multiple of M.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        pattern: NMPattern | str = "2:4",
        **options: Any,
    ) -> None:
        nn.Conv2d.__init__(self, in_channels, out_channels, kernel_size, **options)
        self._take_over(self, pattern, None)

    @classmethod
    def from_dense(cls, layer: nn.Conv2d, pattern: NMPattern | str = "2:4", mask: Tensor | None = None) -> NMConv2d:
        """As :meth:`NMLinear.from_dense`, of any ``nn.Conv2d``."""
        masked = cls.__new__(cls)
        nn.Module.__init__(masked)
        for name in _CONV_OPTIONS:
            setattr(masked, name, getattr(layer, name))
        return masked._take_over(layer, pattern, mask)

    def forward(self, input: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> ``[B, O, OH, OW]``."""
        return self._conv_forward(input, self.masked_weight(), self.bias)

    def extra_repr(self) -> str:
        return f"{nn.Conv2d.extra_repr(self)}, pattern={self.pattern}"
