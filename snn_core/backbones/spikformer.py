"""Spikformer: self-attention of spikes, without softmax (Zhou et al., ICLR 2023)."""

from __future__ import annotations

from typing import Unpack

from torch import Tensor, nn

from snn_core.backbones.features import SpikingOptions
from snn_core.backbones.registry import register
from snn_core.backbones.transformer_parts import SpikingTransformer, initialise
from snn_core.errors import ArgumentError


def spiking_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """``(Q K^T) V * scale`` of every head, the patches last.

    Args:
        q, k, v: spikes ``[..., d, N]``: d channels of a head, N patches.
        scale: of the result.

    Returns:
        ``[..., d, N]``. Of the two orders of the products that which needs fewer multiplications is taken: sums of
        spikes are whole numbers, so in float32 both give the same bits (up to 2^24).
    """
    if q.shape[-1] > q.shape[-2]:
        return ((v @ k.mT) @ q) * scale
    return (v @ (k.mT @ q)) * scale


class SpikingSelfAttention(nn.Module):
    """SSA: query, key and value are spikes; their product, which needs no softmax, drives neurons, then a projection.

    ``[T, B, C, h, w]`` in, spikes of the same shape out. Projections are 1 x 1 convolutions, norm and neurons.

    Args:
        network: makes the layers. dim: channels C. num_heads: their number divides C.
        scale: of the product. qkv_bias: whether query, key and value have biases (before their batch norms).
    """

    def __init__(self, network: SpikingTransformer, dim: int, num_heads: int, scale: float, qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, scale
        self.query, self.key, self.value = (network.spiking_conv(dim, dim, bias=qkv_bias) for _ in range(3))
        self.attention_neuron = network.attention_neuron()
        self.projection = network.spiking_conv(dim, dim)

    def forward(self, x_seq: Tensor) -> Tensor:
        """Spikes of what the patches gather from each other."""
        parts = (self.query, self.key, self.value)
        q, k, v = (part(x_seq).flatten(3).unflatten(2, (self.num_heads, -1)) for part in parts)
        gathered = spiking_attention(q, k, v, self.scale).flatten(2, 3).unflatten(-1, x_seq.shape[-2:])
        return self.projection(self.attention_neuron(gathered))


class EncoderBlock(nn.Module):
    """``x + SSA(x)``, then ``x + MLP(x)``: sums of spikes, that is small whole numbers. ``[T, B, C, h, w]``."""

    def __init__(self, network: SpikingTransformer, dim: int, num_heads: int, scale: float, qkv_bias: bool) -> None:
        super().__init__()
        self.attention = SpikingSelfAttention(network, dim, num_heads, scale, qkv_bias)
        self.fc1 = network.spiking_conv(dim, network.hidden)
        self.fc2 = network.spiking_conv(network.hidden, dim)

    def forward(self, x_seq: Tensor) -> Tensor:
        """What came in and the spikes of attention and MLP added to it."""
        x_seq = x_seq + self.attention(x_seq)
        return x_seq + self.fc2(self.fc1(x_seq))


class PatchSplitting(nn.Module):
    """SPS: four spiking convolutions with pooling make patches; a fifth one adds what stands around them."""

    def __init__(self, network: SpikingTransformer, in_channels: int) -> None:
        super().__init__()
        widths = zip((in_channels, *network.widths), network.widths, network.pools, strict=False)
        self.stages = nn.ModuleList(
            network.spiking_conv(before, after, kernel=3, bias=False, pooled=pooled) for before, after, pooled in widths
        )
        self.position = network.spiking_conv(network.widths[-1], network.widths[-1], kernel=3, bias=False)

    def forward(self, x_seq: Tensor) -> list[Tensor]:
        """The map behind every stage; the last one with the position spikes added."""
        maps = []
        for stage in self.stages:
            x_seq = stage(x_seq)
            maps.append(x_seq)
        return [*maps[:-1], x_seq + self.position(x_seq)]


@register("spikformer")
class Spikformer(SpikingTransformer):
    """Spiking patch splitting, blocks of spiking self-attention and MLP, a linear read-out of the mean over patches.

    Input ``[T, B, in_channels, H, W]``, logits ``[B, num_classes]``. The defaults are Spikformer-4-384 for CIFAR; the
    published sizes have names of their own, ``spikformer_L_D``: L blocks of width D.

    Features: the last map of every stride, ``[T, B, c, h, w]``: stem ``"cifar"`` D/4, D/2 and D channels at strides 1,
    2, 4; stem ``"dvs"`` D/8, D/4, D/2 and D at 2, 4, 8, 16. The last one is the blocks' output, sums of spikes.

    Parameters: as the official code without the two LayerNorms a block (and, for event frames, the position embedding
    and a norm) which that registers and never calls. That is what the paper's Tables 2 and 3 give, in millions: 9.32
    (4-384), 5.76 (2-384), 4.15 (4-256), 16.81 (8-384), 23.37 (6-512), 29.68 (8-512), 36.01 (10-512), 66.34 (8-768);
    here 9.325, 5.765, 4.155, 16.816, 23.373, 29.689, 36.005, 66.339. 2.59 for event frames (2-256) counts the unused
    ones; without them it is 2.567. Linear layers are 1 x 1 convolutions here, of the same weights.

    :func:`snn_core.reports.measure_energy` counts the additions of ``Q K^T V`` among its ``products``.

    Args:
        in_channels: channels of a frame (2: OFF and ON events, 3: colours).
        num_classes: classes K.
        depth: blocks. embed_dim: width of a patch, a multiple of 8 and of ``num_heads``.
        num_heads: heads of the attention.
        mlp_ratio: hidden width of the MLPs, in ``embed_dim``.
        stem: ``"cifar"``: patches of 4 x 4; ``"dvs"``: of 16 x 16.
        scale: of the attention's product; 0.125 in the paper, 0.25 in its code for event frames.
        qkv_bias: biases of query, key and value, as the official code for CIFAR has them.
        norm_gain: initial scale of the batch norms.
        options: :class:`snn_core.backbones.features.SpikingOptions`; ``decay_input`` is True by default. Neurons behind
            the attention have half the threshold.

    Raises:
        ArgumentError: an option that is not allowed.

    Source: Zhou et al., Spikformer: When Spiking Neural Network Meets Transformer, ICLR 2023; github.com/ZK-Zhou/
    spikformer.
    """

    def __init__(
        self, in_channels: int = 2, num_classes: int = 10, depth: int = 4, embed_dim: int = 384, num_heads: int = 12,
        mlp_ratio: float = 4.0, stem: str = "cifar", scale: float = 0.125, qkv_bias: bool = True,
        norm_gain: float = 1.0, **options: Unpack[SpikingOptions],
    ) -> None:  # fmt: skip
        super().__init__(
            in_channels, num_classes, embed_dim=embed_dim, depth=depth, mlp_ratio=mlp_ratio, stem=stem,
            norm_gain=norm_gain, options=options,
        )  # fmt: skip
        if isinstance(num_heads, bool) or not isinstance(num_heads, int) or num_heads < 1 or embed_dim % num_heads:
            raise ArgumentError(f"num_heads is {num_heads!r}; it must divide embed_dim, {embed_dim}")
        self.stem = PatchSplitting(self, in_channels)
        self.blocks = nn.ModuleList(EncoderBlock(self, embed_dim, num_heads, scale, qkv_bias) for _ in range(depth))
        self.readout = nn.Linear(embed_dim, num_classes)
        initialise([layer for layer in self.blocks.modules() if isinstance(layer, nn.Conv2d)] + [self.readout])

    def logits_of(self, last: Tensor) -> Tensor:
        """Logits ``[T, B, K]`` of the mean over patches."""
        return self.readout(last.mean((-2, -1)))


for _depth, _dim, _heads in ((4, 384, 12), (2, 384, 12), (4, 256, 8)):  # CIFAR
    register(f"spikformer_{_depth}_{_dim}", depth=_depth, embed_dim=_dim, num_heads=_heads)(Spikformer)
for _depth, _dim in ((8, 384), (6, 512), (8, 512), (10, 512), (8, 768)):  # ImageNet
    _name = f"spikformer_{_depth}_{_dim}"
    register(_name, depth=_depth, embed_dim=_dim, num_heads=8, stem="dvs", qkv_bias=False)(Spikformer)
# CIFAR10-DVS and DVS128 Gesture.
register("spikformer_2_256", depth=2, embed_dim=256, num_heads=16, stem="dvs", qkv_bias=False, scale=0.25)(Spikformer)
