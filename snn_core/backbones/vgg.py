"""Spiking VGG: the plain deep networks, for event frames and pictures of any size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Unpack

from torch import Tensor, nn

from snn_core.backbones.blocks import ConvBlock, SpikingHead, scaled_channels
from snn_core.backbones.features import FeatureInfo, SpikingBackbone, SpikingOptions, through
from snn_core.backbones.norm import make_norm
from snn_core.backbones.options import one_of
from snn_core.backbones.registry import register
from snn_core.errors import ArgumentError

#: Convolutions of every stage, and channels of its outputs.
CONVS = {9: (2, 2, 3), 11: (1, 1, 2, 2, 2), 16: (2, 2, 3, 3, 3)}
CHANNELS = {9: (64, 128, 256), 11: (64, 128, 256, 512, 512), 16: (64, 128, 256, 512, 512)}


@register("spiking_vgg9", depth=9)
@register("spiking_vgg11", depth=11)
@register("spiking_vgg16", depth=16)
class SpikingVGG(SpikingBackbone):
    """Stages of 3 x 3 convolutions, batch norms and neurons, each followed by pooling; then :class:`SpikingHead`.

    Published: with ``in_channels=3, num_classes=1000, hidden=[4096, 4096], pool_to=7`` VGG-11 and VGG-16 have
    132,868,840 and 138,365,992 parameters, those of configurations A and D with batch norm (Simonyan and Zisserman,
    ICLR 2015) in torchvision (vgg11_bn, vgg16_bn) and SpikingJelly (spiking_vgg11_bn, spiking_vgg16_bn). The biases
    among them do nothing before a batch norm. VGG-9 with ``in_channels=3, hidden=[1024], pool_to=4`` has the 5,938,880
    weights of SNN_VGG9_BNTT, for pictures of 32 x 32 (code of Kim and Panda, Revisiting Batch Normalization for
    Training Low-Latency Deep Spiking Neural Networks From Scratch, 2021; its norms are one a time step, and it pools
    by averages).

    Args:
        depth: 9, 11 or 16.
        in_channels, num_classes: of the input and of the logits.
        width: multiplies the channels, as multiples of 8.
        channels: of every stage, instead of that.
        norm: see :func:`snn_core.backbones.norm.make_norm`.
        pool: ``"max"`` (keeps spikes binary) or ``"avg"``, 2 x 2.
        pools: how many stages, from the first one on, are followed by pooling; by default all.
        hidden, pool_to, dropout: of the head; by default a read-out of the spatial mean.
        options: see :class:`snn_core.backbones.SpikingOptions`.

    Feature maps: the spikes of every stage, after its pooling; strides 2, 4, 8 ...

    Raises:
        ArgumentError: an option that is not allowed.
    """

    head_names = ("head",)

    def __init__(
        self,
        depth: int,
        in_channels: int = 2,
        num_classes: int = 10,
        width: float = 1.0,
        channels: Sequence[int] | None = None,
        norm: str = "tdbn",
        pool: str = "max",
        pools: int | None = None,
        hidden: Sequence[int] = (),
        pool_to: int = 1,
        dropout: float = 0.0,
        **options: Unpack[SpikingOptions],
    ) -> None:
        convs = CONVS[depth]
        widths = scaled_channels("channels", channels, width, CHANNELS[depth])
        pools = len(convs) if pools is None else pools
        one_of("pool", pool, ("max", "avg"))
        if isinstance(pools, bool) or not isinstance(pools, int) or not 0 <= pools <= len(convs):
            raise ArgumentError(f"pools is {pools!r}; it must be a number of stages, 0 to {len(convs)}")
        super().__init__(in_channels, num_classes, options, smallest=2**pools)
        self.feature_info = []
        self.stages = nn.ModuleList()
        size_in, stride = in_channels, 1
        for index, (count, size) in enumerate(zip(convs, widths, strict=True)):
            blocks = []
            for position in range(count):
                conv = nn.Conv2d(size_in, size, 3, padding=1, bias=depth != 9)
                nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
                neuron = self.make_neuron()
                pooled = position == count - 1 and index < pools
                pooling = (nn.MaxPool2d(2) if pool == "max" else nn.AvgPool2d(2)) if pooled else None
                blocks.append(ConvBlock(conv, make_norm(norm, size, v_threshold=neuron.v_threshold), neuron, pooling))
                size_in = size
            stride *= 2 if index < pools else 1
            self.stages.append(nn.Sequential(*blocks))
            self.feature_info.append(FeatureInfo(size, stride, f"stages.{index}"))
        self.head = SpikingHead(
            size_in, num_classes, hidden=hidden, pool_to=pool_to, make_neuron=self.make_neuron, dropout=dropout
        )

    def feature_maps(self, x: Tensor, last_only: bool = False) -> list[Tensor]:
        """Spikes of every stage, or of the last one."""
        return through(self.stages, x, last_only)

    def logits_of(self, last: Tensor) -> Tensor:
        """The head's."""
        return self.head(last)

    @property
    def inference_chain(self) -> Callable[[], list[tuple[str, nn.Module]]]:
        """The layers between encoder and mean over time, for :func:`snn_core.sparsity.fuse`; of logits only."""
        if self.features_only:
            raise AttributeError("inference_chain")
        stages: list[tuple[str, nn.Module]] = [(f"stages.{index}", stage) for index, stage in enumerate(self.stages)]
        return lambda: [*stages, ("head", self.head)]
