"""Spike-driven Transformer: attention by masks and sums, shortcuts between membrane potentials (Yao et al., 2023)."""

from __future__ import annotations

from typing import Unpack

from torch import Tensor, nn

from snn_core.backbones.blocks import ConvNorm, fold_time
from snn_core.backbones.features import SpikingOptions
from snn_core.backbones.registry import register
from snn_core.backbones.transformer_parts import SpikingTransformer, conv_norm, initialise, stem_pool
from snn_core.neurons import SpikingNeuron


class Synapses(ConvNorm):
    """Neurons, then a convolution of their spikes with batch norm: potentials ``[T, B, C, h, w]`` in and out."""

    def __init__(self, neuron: SpikingNeuron, channels: int, out_channels: int, kernel: int = 1) -> None:
        layers = conv_norm(channels, out_channels, kernel=kernel, bias=kernel == 1)
        super().__init__(layers.conv, layers.norm)
        self.neuron = neuron

    def forward(self, x_seq: Tensor) -> Tensor:
        """What the spikes of ``x_seq`` add to the potentials behind them."""
        return super().forward(self.neuron(x_seq))


class SpikeDrivenSelfAttention(nn.Module):
    """SDSA: ``Q * SN(sum over patches of K * V)``: key and value decide, channel by channel, whether the query passes.

    Potentials ``[T, B, C, h, w]`` in, what is added to them out. There are no heads: nothing here depends on more than
    one channel (the official code splits them and joins them again).
    """

    def __init__(self, network: SpikingTransformer, dim: int) -> None:
        super().__init__()
        self.neuron = network.make_neuron()
        self.query, self.key, self.value = (network.spiking_conv(dim, dim, bias=False) for _ in range(3))
        self.attention_neuron = network.attention_neuron()
        self.projection = conv_norm(dim, dim)

    def forward(self, x_seq: Tensor) -> Tensor:
        """What the patches gather from each other."""
        spikes = self.neuron(x_seq)
        q, k, v = self.query(spikes), self.key(spikes), self.value(spikes)
        return self.projection(q * self.attention_neuron((k * v).sum((-2, -1), keepdim=True)))


class SpikeDrivenBlock(nn.Module):
    """``x + SDSA(x)``, then ``x + MLP(x)``, on membrane potentials ``[T, B, C, h, w]``."""

    def __init__(self, network: SpikingTransformer, dim: int) -> None:
        super().__init__()
        self.attention = SpikeDrivenSelfAttention(network, dim)
        self.fc1 = Synapses(network.make_neuron(), dim, network.hidden)
        self.fc2 = Synapses(network.make_neuron(), network.hidden, dim)

    def forward(self, x_seq: Tensor) -> Tensor:
        """Potentials, of which every layer sees the spikes alone."""
        x_seq = x_seq + self.attention(x_seq)
        return x_seq + self.fc2(self.fc1(x_seq))


class MembranePatchSplitting(nn.Module):
    """Spiking patch splitting whose last stage ends in potentials, with the shortcut between them."""

    def __init__(self, network: SpikingTransformer, in_channels: int) -> None:
        super().__init__()
        channels = list(zip((in_channels, *network.widths), network.widths, network.pools, strict=False))
        self.stages = nn.ModuleList(
            network.spiking_conv(before, after, kernel=3, bias=False, pooled=pooled)
            for before, after, pooled in channels[:-1]
        )
        before, after, pooled = channels[-1]
        self.last = conv_norm(before, after, kernel=3, bias=False)
        self.pool = stem_pool(pooled)
        self.position = Synapses(network.make_neuron(), after, after, 3)

    def forward(self, x_seq: Tensor) -> list[Tensor]:
        """The spikes behind every stage but the last, and that one's potentials."""
        maps = []
        for stage in self.stages:
            x_seq = stage(x_seq)
            maps.append(x_seq)
        potential = fold_time(self.pool, self.last(x_seq))
        return [*maps, potential + self.position(potential)]


@register("sdt")
class SpikeDrivenTransformer(SpikingTransformer):
    """Patch splitting, blocks of spike-driven self-attention and MLP, neurons, a linear read-out.

    Shortcuts join membrane potentials, so that every convolution but the first sees spikes, 0 or 1, and adds only.
    Input ``[T, B, in_channels, H, W]``, logits ``[B, num_classes]``. The defaults are those for CIFAR (2-512); the
    published sizes have names of their own, ``sdt_L_D``: L blocks of width D.

    Features: the last map of every stride, ``[T, B, c, h, w]``: stem ``"cifar"`` D/4, D/2 and D channels at strides 1,
    2, 4; stem ``"dvs"`` D/8, D/4, D/2 and D at 2, 4, 8, 16. The last one is the blocks' output, membrane potentials;
    the others are spikes.

    Parameters: as the official code without its ``talking_heads`` (8 x 8 weights a block), which that registers and
    never calls. The paper gives, in millions, 16.81 (8-384), 29.68 (8-512), 36.01 (10-512) and 66.34 (8-768); here
    16.816, 29.689, 36.005 and 66.339.

    Args:
        in_channels: channels of a frame (2: OFF and ON events, 3: colours).
        num_classes: classes K.
        depth: blocks. embed_dim: width of a patch, a multiple of 8.
        mlp_ratio: hidden width of the MLPs, in ``embed_dim``.
        stem: ``"cifar"``: patches of 4 x 4; ``"dvs"``: of 16 x 16.
        norm_gain: initial scale of the batch norms right before neurons; of those before a shortcut it is 1.
        options: :class:`snn_core.backbones.features.SpikingOptions`; ``decay_input`` is True by default. Neurons behind
            the attention have half the threshold.

    Raises:
        ArgumentError: an option that is not allowed.

    Source: Yao et al., Spike-driven Transformer, NeurIPS 2023; github.com/BICLab/Spike-Driven-Transformer.
    """

    head_names = ("readout_neuron", "readout")

    def __init__(
        self, in_channels: int = 2, num_classes: int = 10, depth: int = 2, embed_dim: int = 512,
        mlp_ratio: float = 4.0, stem: str = "cifar", norm_gain: float = 1.0, **options: Unpack[SpikingOptions],
    ) -> None:  # fmt: skip
        super().__init__(
            in_channels, num_classes, embed_dim=embed_dim, depth=depth, mlp_ratio=mlp_ratio, stem=stem,
            norm_gain=norm_gain, options=options,
        )  # fmt: skip
        self.stem = MembranePatchSplitting(self, in_channels)
        self.blocks = nn.ModuleList(SpikeDrivenBlock(self, embed_dim) for _ in range(depth))
        self.readout_neuron = self.make_neuron()
        self.readout = nn.Linear(embed_dim, num_classes)
        initialise([layer for layer in self.modules() if isinstance(layer, nn.Conv2d)])

    def logits_of(self, last: Tensor) -> Tensor:
        """Logits ``[T, B, K]`` of the spikes that the mean potential over patches gives."""
        return self.readout(self.readout_neuron(last.mean((-2, -1))))


for _depth, _dim in ((2, 256), (2, 512)):  # CIFAR
    register(f"sdt_{_depth}_{_dim}", depth=_depth, embed_dim=_dim)(SpikeDrivenTransformer)
for _depth, _dim in ((8, 384), (6, 512), (8, 512), (10, 512), (8, 768)):  # ImageNet
    register(f"sdt_{_depth}_{_dim}", depth=_depth, embed_dim=_dim, stem="dvs")(SpikeDrivenTransformer)
