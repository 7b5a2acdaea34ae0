"""A small convolutional spiking network for event frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from snn_core.backbones.blocks import ConvBlock
from snn_core.backbones.features import FeatureInfo, SpikingBackbone, SpikingOptions, through
from snn_core.backbones.options import check_probability, one_of
from snn_core.backbones.registry import register
from snn_core.errors import ArgumentError


def _check_blocks(name: str, values: Sequence[int] | None, count: int | None) -> None:
    """ArgumentError unless a list of positive integers, ``count`` of them; None is fine where ``count`` is given."""
    if values is None and count is not None:
        return
    positive = not isinstance(values, str) and values and all(isinstance(value, int) and value > 0 for value in values)
    if not positive or (count is not None and len(values or ()) != count):
        wanted = "a list of positive integers, one a block" + (f": {count}" if count is not None else "")
        raise ArgumentError(f"{name} is {values!r}; it must be {wanted}")


@register("conv-snn")
class ConvSNN(SpikingBackbone):
    """Blocks of convolution, batch norm, spiking neuron and pooling, then a linear read-out of every step's spikes.

    Args:
        in_channels: channels of a frame (2: OFF and ON events, 3: colours).
        num_classes: classes K.
        input_size: height and width of a frame.
        channels: output channels of each block.
        stem_kernel, stem_stride: of the first convolution; the others are 3 x 3, stride 1.
        strides: of every block's convolution, instead of stem_stride and 1.
        pool: ``"max"`` (keeps spikes binary) or ``"avg"``; 2 x 2 after every block that is still at least 2 wide.
        pools: side of the window after every block, 1 for none, instead of that.
        neuron: ``"lif"``, ``"plif"`` or ``"if"``; tau, detach_reset: its arguments.
        norm_gain: initial scale of the batch norms; 2 makes up for the division of the input by tau = 2.
        dropout: before the read-out.
        input_transform: ``"log1p"`` of the counts, ``"standardise"`` for pictures, or ``"none"``.
        input_mean, input_std: for ``"standardise"``, one a channel, where 255 is 1; by default CIFAR-10's.
        backend: kernel backend of the neurons.
        average_features: feature maps are averaged over time.

    Feature maps: the spikes of every block, after its pooling.

    Raises:
        ArgumentError: an option that is not allowed.
    """

    def __init__(
        self,
        in_channels: int = 2,
        num_classes: int = 10,
        input_size: Sequence[int] = (34, 34),
        channels: Sequence[int] = (32, 64, 64),
        stem_kernel: int = 5,
        stem_stride: int = 2,
        pool: str = "max",
        neuron: str = "lif",
        tau: float = 2.0,
        detach_reset: bool = True,
        norm_gain: float = 2.0,
        dropout: float = 0.2,
        input_transform: str | None = "log1p",
        backend: str = "auto",
        strides: Sequence[int] | None = None,
        pools: Sequence[int] | None = None,
        input_mean: Sequence[float] | None = None,
        input_std: Sequence[float] | None = None,
        average_features: bool = False,
    ) -> None:
        one_of("pool", pool, ("max", "avg"))
        _check_blocks("channels", channels, None)
        _check_blocks("strides", strides, len(channels))
        _check_blocks("pools", pools, len(channels))
        check_probability("dropout", dropout)
        if stem_kernel < 1 or stem_kernel % 2 == 0:
            raise ArgumentError(f"stem_kernel is {stem_kernel!r}; it must be an odd positive integer")
        if stem_stride < 1:
            raise ArgumentError(f"stem_stride is {stem_stride!r}; it must be a positive integer")
        options: SpikingOptions = {
            "input_size": input_size, "input_transform": input_transform, "input_mean": input_mean,
            "input_std": input_std, "neuron": neuron, "tau": tau, "decay_input": True, "detach_reset": detach_reset,
            "backend": backend, "average_features": average_features,
        }  # fmt: skip
        super().__init__(in_channels, num_classes, options)
        self.input_size = size = tuple(input_size)
        self.feature_info = []
        blocks: list[ConvBlock] = []
        reach = 1
        for index, (width_in, width_out) in enumerate(zip((in_channels, *channels), channels, strict=False)):
            kernel, stride = (stem_kernel, stem_stride) if index == 0 else (3, 1)
            stride = stride if strides is None else strides[index]
            conv = nn.Conv2d(width_in, width_out, kernel, stride, kernel // 2, bias=False)
            size = tuple((side - 1) // stride + 1 for side in size)
            window = pools[index] if pools is not None else 2 if min(size) >= 2 else 1
            if window > min(size):
                raise ArgumentError(f"pools is {pools!r}; block {index} gives {size[0]} x {size[1]}")
            pooling: nn.Module = nn.Identity()
            if window > 1:
                pooling = nn.MaxPool2d(window) if pool == "max" else nn.AvgPool2d(window)
                size = tuple(side // window for side in size)
            norm = nn.BatchNorm2d(width_out)
            nn.init.constant_(norm.weight, norm_gain)
            blocks.append(ConvBlock(conv, norm, self.make_neuron(), pooling))
            reach *= stride * window
            self.feature_info.append(FeatureInfo(width_out, reach, f"blocks.{index}"))
        self.blocks = nn.ModuleList(blocks)
        self.dropout = nn.Dropout(dropout)
        self.readout = nn.Linear(channels[-1] * size[0] * size[1], num_classes)

    head_names = ("dropout", "readout")

    def feature_maps(self, x: Tensor, last_only: bool = False) -> list[Tensor]:
        """Spikes of every block, or of the last one."""
        return through(self.blocks, x, last_only)

    def logits_of(self, last: Tensor) -> Tensor:
        """A linear read-out of every step's spikes."""
        return self.readout(self.dropout(last.flatten(2)))

    @property
    def inference_chain(self) -> Callable[[], list[tuple[str, nn.Module]]]:
        """The layers between encoder and mean over time, for :func:`snn_core.sparsity.fuse`; of logits only."""
        if self.features_only:
            raise AttributeError("inference_chain")
        blocks: list[tuple[str, nn.Module]] = [(f"blocks.{index}", block) for index, block in enumerate(self.blocks)]
        return lambda: [*blocks, ("flatten", nn.Flatten()), ("dropout", self.dropout), ("readout", self.readout)]
