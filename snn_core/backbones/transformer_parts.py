"""What the spiking transformers share: named stems, the arguments' checks, and how maps become features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from snn_core.backbones.blocks import ConvBlock, ConvNorm
from snn_core.backbones.features import FeatureInfo, SpikingBackbone, SpikingOptions
from snn_core.backbones.options import one_of
from snn_core.errors import ArgumentError
from snn_core.neurons import SpikingNeuron

#: Pooling after each of the four stem convolutions: 4 x 4 patches of 32 x 32 pictures, and 16 x 16 patches of event
#: frames of 128 x 128 (pictures of 224 x 224 alike).
STEMS: dict[str, tuple[bool, ...]] = {"cifar": (False, False, True, True), "dvs": (True, True, True, True)}
#: The stem's widths are the embedding's width divided by these.
STEM_DIVISORS = (8, 4, 2, 1)


class SpikingTransformer(SpikingBackbone):
    """A stem that makes patches, blocks on the patches, and a read-out of their mean.

    A network sets ``stem`` (whose call gives one map a stage), ``blocks`` and ``readout``. Its features are the last
    map of every stride, the last of all behind the blocks.

    Args:
        in_channels, num_classes: as in :class:`SpikingBackbone`.
        embed_dim: width of a patch; depth: blocks.
        mlp_ratio: width of the hidden layer of a block's MLP, in ``embed_dim``.
        stem: ``"cifar"`` (patches of 4 x 4) or ``"dvs"`` (16 x 16).
        norm_gain: initial scale of the batch norms before neurons.
        options: as in :class:`SpikingBackbone`.

    Raises:
        ArgumentError: a value that is not allowed.
    """

    stem: nn.Module
    blocks: nn.ModuleList

    def __init__(
        self, in_channels: int, num_classes: int, *, embed_dim: int, depth: int, mlp_ratio: float, stem: str,
        norm_gain: float, options: SpikingOptions,
    ) -> None:  # fmt: skip
        one_of("stem", stem, STEMS)
        for name, value in (("embed_dim", embed_dim), ("depth", depth)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ArgumentError(f"{name} is {value!r}; it must be a positive integer")
        if embed_dim % STEM_DIVISORS[0]:
            raise ArgumentError(f"embed_dim is {embed_dim}; it must be a multiple of {STEM_DIVISORS[0]}")
        if not isinstance(mlp_ratio, int | float) or int(embed_dim * mlp_ratio) < 1:
            raise ArgumentError(f"mlp_ratio is {mlp_ratio!r}; it must be a positive number")
        pools = STEMS[stem]
        strides = [2 ** sum(pools[: index + 1]) for index in range(len(pools))]
        # The neurons of both papers are SpikingJelly's default: the input is divided by tau.
        neurons: Any = {"decay_input": True} | dict(options)
        super().__init__(in_channels, num_classes, neurons, smallest=strides[-1])
        self.pools, self.hidden, self.norm_gain = pools, int(embed_dim * mlp_ratio), norm_gain
        self.widths = [embed_dim // divisor for divisor in STEM_DIVISORS]
        self._kept = [index for index, stride in enumerate(strides) if stride not in strides[index + 1 :]]
        names = [f"stem.stages.{index}" for index in range(len(pools) - 1)] + [f"blocks.{depth - 1}"]
        self.feature_info = [FeatureInfo(self.widths[index], strides[index], names[index]) for index in self._kept]

    def spiking_conv(
        self, channels: int, out_channels: int, *, kernel: int = 1, bias: bool = True, pooled: bool = False
    ) -> ConvBlock:
        """Convolution, batch norm, neurons and, where ``pooled``, 3 x 3 max-pooling of stride 2."""
        conv = nn.Conv2d(channels, out_channels, kernel, padding=kernel // 2, bias=bias)
        norm = nn.BatchNorm2d(out_channels)
        nn.init.constant_(norm.weight, self.norm_gain)
        return ConvBlock(conv, norm, self.make_neuron(), stem_pool(pooled))

    def attention_neuron(self) -> SpikingNeuron:
        """Neurons behind the attention: in both papers their threshold is half of the others'."""
        neuron = self.make_neuron()
        neuron.v_threshold *= 0.5
        return neuron

    def feature_maps(self, x: Tensor, last_only: bool = False) -> list[Tensor]:
        """The last map of every stride, ``[T, B, c, h, w]``, or the last one alone."""
        maps: list[Tensor] = self.stem(x)
        maps = maps[-1:] if last_only else [maps[index] for index in self._kept]
        for block in self.blocks:
            maps[-1] = block(maps[-1])
        return maps


def conv_norm(channels: int, out_channels: int, *, kernel: int = 1, bias: bool = True) -> ConvNorm:
    """Convolution and batch norm."""
    conv = nn.Conv2d(channels, out_channels, kernel, padding=kernel // 2, bias=bias)
    return ConvNorm(conv, nn.BatchNorm2d(out_channels))


def stem_pool(pooled: bool) -> nn.Module:
    """3 x 3 max-pooling of stride 2, or nothing."""
    return nn.MaxPool2d(3, 2, 1) if pooled else nn.Identity()


def initialise(layers: Sequence[nn.Module]) -> None:
    """Weights from a normal distribution (deviation 0.02, cut at +-2), biases 0, as in both official codes."""
    for layer in layers:
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        nn.init.trunc_normal_(layer.weight, std=0.02)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
