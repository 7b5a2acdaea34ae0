"""Spiking residual networks, whose shortcuts carry currents, spikes or membrane potentials."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Unpack

from torch import Tensor, nn

from snn_core.backbones.blocks import ConvBlock, ConvNorm, SpikingHead, scaled_channels
from snn_core.backbones.features import FeatureInfo, SpikingBackbone, SpikingOptions, through
from snn_core.backbones.norm import make_norm
from snn_core.backbones.options import one_of
from snn_core.backbones.registry import register
from snn_core.errors import ArgumentError
from snn_core.neurons import SpikingNeuron

#: Blocks and channels of every stage.
BLOCKS = {18: (2, 2, 2, 2), 19: (3, 3, 2), 34: (3, 4, 6, 3)}
CHANNELS = {18: (64, 128, 256, 512), 19: (128, 256, 512), 34: (64, 128, 256, 512)}
STEMS = ("cifar", "imagenet", "events")
CONNECTIONS = ("ADD", "AND", "IAND")


@dataclass(frozen=True)
class Parts:
    """Makes what blocks are made of.

    Attributes:
        norm: kind of the norms.
        make_neuron: makes a neuron.
        connect_f: of SEW blocks.
        zero_init_residual: the last norm of a block begins at 0.
    """

    norm: str
    make_neuron: Callable[[], SpikingNeuron]
    connect_f: str = "ADD"
    zero_init_residual: bool = False

    def conv_norm(
        self, size_in: int, size_out: int, kernel: int = 3, stride: int = 1, alpha: float = 1.0
    ) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
        """A convolution without bias and the norm behind it."""
        conv = nn.Conv2d(size_in, size_out, kernel, stride, kernel // 2, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        return conv, make_norm(self.norm, size_out, v_threshold=self.make_neuron().v_threshold, alpha=alpha)

    def conv_neuron(self, size_in: int, size_out: int, kernel: int = 3, stride: int = 1) -> ConvBlock:
        """Convolution, norm, neuron."""
        return ConvBlock(*self.conv_norm(size_in, size_out, kernel, stride), self.make_neuron())

    def last_of_block(self, block: ConvNorm) -> None:
        """``zero_init_residual``, as in the codes of SEW and MS-ResNet: the branch begins as if it were not there."""
        if self.zero_init_residual:
            nn.init.zeros_(block.norm.weight)
            if isinstance(block, ConvBlock) and self.connect_f == "AND":
                nn.init.constant_(block.norm.bias, block.neuron.v_threshold)


class StandardBlock(nn.Module):
    """Currents of branch and shortcut are added before the last neuron: He's block with neurons for ReLUs."""

    def __init__(self, size_in: int, size_out: int, stride: int, parts: Parts) -> None:
        super().__init__()
        half = 2**-0.5  # the sum of two norms feeds the neuron
        self.first = parts.conv_neuron(size_in, size_out, stride=stride)
        self.second = ConvNorm(*parts.conv_norm(size_out, size_out, alpha=half))
        parts.last_of_block(self.second)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or size_in != size_out:
            self.shortcut = ConvNorm(*parts.conv_norm(size_in, size_out, 1, stride, half))
        self.neuron = parts.make_neuron()

    def forward(self, x_seq: Tensor) -> Tensor:
        """Spikes -> spikes."""
        return self.neuron(self.second(self.first(x_seq)) + self.shortcut(x_seq))


class SEWBlock(nn.Module):
    """Spikes of branch and shortcut are connected behind the neurons; with ADD small integers come of it."""

    def __init__(self, size_in: int, size_out: int, stride: int, parts: Parts) -> None:
        super().__init__()
        self.connect_f = parts.connect_f
        self.first = parts.conv_neuron(size_in, size_out, stride=stride)
        self.second = parts.conv_neuron(size_out, size_out)
        parts.last_of_block(self.second)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or size_in != size_out:
            self.shortcut = parts.conv_neuron(size_in, size_out, 1, stride)

    def forward(self, x_seq: Tensor) -> Tensor:
        """Spikes (sums of spikes) -> the same."""
        branch, shortcut = self.second(self.first(x_seq)), self.shortcut(x_seq)
        if self.connect_f == "ADD":
            return shortcut + branch
        return shortcut * branch if self.connect_f == "AND" else shortcut * (1 - branch)

    def extra_repr(self) -> str:
        return f"connect_f={self.connect_f!r}"


class MSBlock(nn.Module):
    """Neurons before the convolutions; the shortcut passes currents on, past all neurons."""

    def __init__(self, size_in: int, size_out: int, stride: int, parts: Parts) -> None:
        super().__init__()
        self.neuron = parts.make_neuron()
        self.first = parts.conv_neuron(size_in, size_out, stride=stride)
        self.second = ConvNorm(*parts.conv_norm(size_out, size_out))
        parts.last_of_block(self.second)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or size_in != size_out:
            self.shortcut = ConvNorm(*parts.conv_norm(size_in, size_out, 1, stride))

    def forward(self, x_seq: Tensor) -> Tensor:
        """Currents -> currents."""
        return self.second(self.first(self.neuron(x_seq))) + self.shortcut(x_seq)


RESIDUALS: dict[str, Callable[..., nn.Module]] = {"standard": StandardBlock, "sew": SEWBlock, "ms": MSBlock}


@register("spiking_resnet18", depth=18, residual="standard", connect_f="ADD")
@register("spiking_resnet19", depth=19, residual="standard", connect_f="ADD")
@register("spiking_resnet34", depth=34, residual="standard", connect_f="ADD")
@register("sew_resnet18", depth=18, residual="sew")
@register("sew_resnet19", depth=19, residual="sew")
@register("sew_resnet34", depth=34, residual="sew")
@register("ms_resnet18", depth=18, residual="ms", connect_f="ADD")
@register("ms_resnet19", depth=19, residual="ms", connect_f="ADD")
@register("ms_resnet34", depth=34, residual="ms", connect_f="ADD")
class SpikingResNet(SpikingBackbone):
    """Spiking ResNet-18, -19 and -34 with one of three residual connections.

    Published, with ``in_channels=3`` and the default stems:

    - ResNet-18 and -34 with 1000 classes have 11,689,512 and 21,797,672 parameters, those of SpikingJelly's
      spiking_resnet18 and -34 and sew_resnet18 and -34 (Fang et al., Deep Residual Learning in Spiking Neural Networks,
      NeurIPS 2021) and of torchvision's ResNets.
    - MS-ResNet-18 and -34 have 11,693,736 and 21,801,896, those of the authors' code (Hu et al., Advancing Spiking
      Neural Networks Toward Deep Residual Learning, TNNLS 2024) and of SpikingJelly's ms_resnet18 and -34: their first
      stage has the stride that elsewhere the stem's pooling has, and therefore a convolution in its shortcut.
    - ResNet-19 (Zheng et al., Going Deeper With Directly-Trained Larger Spiking Neural Networks, AAAI 2021) with 10
      classes has 12,630,858, those of the code of Deng et al. (Temporal Efficient Training, ICLR 2022), the stem's 64
      channels as there. Its SEW and MS forms are this project's.

    Args:
        depth: 18, 19 or 34.
        residual: ``"standard"``, ``"sew"`` or ``"ms"``.
        in_channels, num_classes: of the input and of the logits.
        connect_f: of SEW: ``"ADD"``, ``"AND"`` or ``"IAND"`` (shortcut and not branch).
        stem: ``"cifar"`` (3 x 3), ``"events"`` (5 x 5, stride 2) or ``"imagenet"`` (7 x 7, stride 2, and 3 x 3 max
            pooling, stride 2); by default ``"cifar"`` for ResNet-19, ``"imagenet"`` for the others.
        width: multiplies the channels, as multiples of 8.
        channels: of every stage, instead of that.
        stem_channels: of the stem's convolution; by default 64, scaled as the first stage is.
        norm: see :func:`snn_core.backbones.norm.make_norm`.
        hidden: sizes of the layers of neurons before the read-out; by default one of 256 for ResNet-19, none for the
            others.
        dropout: in the head.
        zero_init_residual: the norms at the end of the branches begin at 0 (with AND so that their neurons always
            fire: without it hardly a spike comes through eight blocks).
        options: see :class:`snn_core.backbones.SpikingOptions`.

    Feature maps: what every stage gives: spikes, of SEW with ADD their sums, of MS-ResNet currents.

    Raises:
        ArgumentError: an option that is not allowed.
    """

    head_names: Sequence[str] = ("head",)

    def __init__(
        self,
        depth: int,
        residual: str,
        in_channels: int = 2,
        num_classes: int = 10,
        connect_f: str = "ADD",
        stem: str | None = None,
        width: float = 1.0,
        channels: Sequence[int] | None = None,
        stem_channels: int | None = None,
        norm: str = "tdbn",
        hidden: Sequence[int] | None = None,
        dropout: float = 0.0,
        zero_init_residual: bool = False,
        **options: Unpack[SpikingOptions],
    ) -> None:
        widths = scaled_channels("channels", channels, width, CHANNELS[depth])
        if stem_channels is None:
            stem_channels = widths[0] if depth != 19 else max(1, widths[0] // 2)
        if stem is None:
            stem = "cifar" if depth == 19 else "imagenet"
        for name, value, allowed in (("connect_f", connect_f, CONNECTIONS), ("stem", stem, STEMS)):
            one_of(name, value, allowed)
        if isinstance(stem_channels, bool) or not isinstance(stem_channels, int) or stem_channels < 1:
            raise ArgumentError(f"stem_channels is {stem_channels!r}; it must be a positive integer")
        super().__init__(in_channels, num_classes, options)
        parts = Parts(norm, self.make_neuron, connect_f, zero_init_residual)
        self.stem, stride = _stem(stem, in_channels, stem_channels, parts, spikes=residual != "ms")
        self.stage_names: list[str] = []
        self.feature_info = []
        size_in = stem_channels
        for index, (count, size) in enumerate(zip(BLOCKS[depth], widths, strict=True)):
            first = 2 if index or (residual == "ms" and stem == "imagenet") else 1
            blocks = []
            for position in range(count):
                blocks.append(RESIDUALS[residual](size_in, size, 1 if position else first, parts))
                size_in = size
            stride *= first
            name = f"layer{index + 1}"
            self.add_module(name, nn.Sequential(*blocks))
            self.stage_names.append(name)
            self.feature_info.append(FeatureInfo(size, stride, name))
        if residual == "ms":
            self.neuron: nn.Module = self.make_neuron()
            self.head_names = ("neuron", "head")  # what its stages give are currents
        else:
            self.neuron = nn.Identity()
        hidden = ((256,) if depth == 19 else ()) if hidden is None else hidden
        self.head = SpikingHead(size_in, num_classes, hidden=hidden, make_neuron=self.make_neuron, dropout=dropout)

    def feature_maps(self, x: Tensor, last_only: bool = False) -> list[Tensor]:
        """What every stage gives, or the last one."""
        return through((getattr(self, name) for name in self.stage_names), self.stem(x), last_only)

    def logits_of(self, last: Tensor) -> Tensor:
        """The head's."""
        return self.head(self.neuron(last))


def _stem(kind: str, in_channels: int, channels: int, parts: Parts, spikes: bool) -> tuple[nn.Module, int]:
    """The layers before the first stage, and their stride. MS-ResNet's gives currents, and is not pooled."""
    kernel, stride = {"cifar": (3, 1), "events": (5, 2), "imagenet": (7, 2)}[kind]
    conv_norm = parts.conv_norm(in_channels, channels, kernel, stride)
    if not spikes:
        return ConvNorm(*conv_norm), stride
    pool = nn.MaxPool2d(3, 2, 1) if kind == "imagenet" else None
    return ConvBlock(*conv_norm, parts.make_neuron(), pool), stride * (2 if pool else 1)
