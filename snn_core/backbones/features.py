"""What all backbones share: logits, feature maps, and how both are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from torch import Tensor, nn

from snn_core.backbones.encoder import FrameEncoder
from snn_core.backbones.options import one_of
from snn_core.errors import ArgumentError
from snn_core.neurons import IF, LIF, PLIF, SpikingNeuron, reset_net


@dataclass(frozen=True)
class FeatureInfo:
    """One feature map: its ``channels``, its ``stride`` (input pixels a position) and the ``name`` of its module."""

    channels: int
    stride: int
    name: str


class Backbone(nn.Module):
    """A network that gives logits, or the feature maps on the way to them, as timm's do.

    A class of its own sets ``feature_info`` and implements :meth:`forward_features` and :meth:`forward`; with
    ``features_only`` the latter returns what the former does.

    Attributes:
        spiking: whether the input is ``[T, B, C, H, W]``; ``[B, C, H, W]`` otherwise.
        in_channels, num_classes: of the input and of the logits.
        feature_info: one entry a feature map, input side first.
        features_only: there is no head, and a call gives the list of feature maps.
        head_names: modules behind the last feature map, which ``features_only`` drops.
        backbone_name, backbone_options: how :func:`snn_core.backbones.create` makes it again.
    """

    spiking = False
    in_channels: int
    num_classes: int
    feature_info: list[FeatureInfo]
    features_only = False
    head_names: Sequence[str] = ("readout",)
    backbone_name: str
    backbone_options: dict[str, Any]

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Feature maps ``[B, c, h, w]`` (spiking: ``[T, B, c, h, w]``), as ``feature_info`` says."""
        raise NotImplementedError

    def drop_head(self) -> None:
        """Leave the head away, for good: a call gives the feature maps from now on."""
        self.features_only = True
        for name in self.head_names:
            setattr(self, name, nn.Identity())


class SpikingOptions(TypedDict, total=False):
    """Options that every spiking backbone takes beside its own.

    Attributes:
        input_size: height and width of a frame; None (default): any.
        input_transform: of frames, ``"log1p"`` (of counts), ``"standardise"`` (pictures of 0 to 255) or ``"none"``; by
            default ``"log1p"`` of two channels (events), else ``"none"``.
        input_mean, input_std: for ``"standardise"``, one a channel, where 255 is 1; by default CIFAR-10's.
        neuron: ``"lif"`` (default), ``"plif"`` or ``"if"``.
        tau: time constant of the neurons, 2 by default.
        decay_input: whether the input is divided by ``tau``; False by default.
        v_threshold, v_reset: of the neurons; 1 and 0 by default, ``v_reset`` None resets softly.
        surrogate: name of a class in :mod:`snn_core.surrogate`, ATan by default.
        detach_reset: no gradient through the reset; True by default.
        backend: of the neurons' kernels.
        average_features: feature maps are averaged over time, ``[B, c, h, w]``; False by default.
    """

    input_size: Sequence[int] | None
    input_transform: str | None
    input_mean: Sequence[float] | None
    input_std: Sequence[float] | None
    neuron: str
    tau: float
    decay_input: bool
    v_threshold: float
    v_reset: float | None
    surrogate: Any
    detach_reset: bool
    backend: str
    average_features: bool


class SpikingBackbone(Backbone):
    """Common part of the spiking networks: encoder, neurons, time.

    A network sets ``feature_info`` and implements :meth:`feature_maps` and :meth:`logits_of`, and makes its neurons by
    :meth:`make_neuron`. Its modules stand in the order in which they are called, the read-out last: pruners and reports
    go by it.

    Args:
        in_channels: channels of a frame (2: OFF and ON events, 3: colours).
        num_classes: classes K.
        options: see :class:`SpikingOptions`.
        smallest: the least height and width of a frame.
    """

    spiking = True

    def __init__(self, in_channels: int, num_classes: int, options: SpikingOptions, smallest: int = 1) -> None:
        super().__init__()
        for name, value in (("in_channels", in_channels), ("num_classes", num_classes)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ArgumentError(f"{name} is {value!r}; it must be a positive integer")
        self.in_channels, self.num_classes = in_channels, num_classes
        transform = options.get("input_transform")
        self.encoder = FrameEncoder(
            in_channels,
            options.get("input_size"),
            ("log1p" if in_channels == 2 else "none") if transform is None else transform,
            options.get("input_mean"),
            options.get("input_std"),
            smallest,
        )
        self.average_features = bool(options.get("average_features", False))
        self.neuron_options = options
        self.make_neuron()  # bad options are refused before anything large is made

    def make_neuron(self) -> SpikingNeuron:
        """A neuron as the options say."""
        given = self.neuron_options
        kind = given.get("neuron", "lif")
        one_of("neuron", kind, ("lif", "plif", "if"))
        common: dict[str, Any] = {
            "v_threshold": given.get("v_threshold", 1.0), "v_reset": given.get("v_reset", 0.0),
            "surrogate_function": given.get("surrogate", "ATan"), "detach_reset": given.get("detach_reset", True),
            "backend": given.get("backend", "auto"),
        }  # fmt: skip
        if kind == "if":
            return IF(**common)
        leaky = common | {"decay_input": given.get("decay_input", False)}
        if kind == "lif":
            return LIF(tau=given.get("tau", 2.0), **leaky)
        return PLIF(init_tau=given.get("tau", 2.0), **leaky)

    def feature_maps(self, x: Tensor, last_only: bool = False) -> list[Tensor]:
        """Feature maps ``[T, B, c, h, w]`` of encoded frames; for logits the last one alone, to keep no others alive.

        See :func:`through`. The neurons are in whatever state they are.
        """
        raise NotImplementedError

    def logits_of(self, last: Tensor) -> Tensor:
        """Logits ``[T, B, K]`` of the last feature map ``[T, B, c, h, w]``."""
        raise NotImplementedError

    def _run(self, x_seq: Tensor, last_only: bool) -> list[Tensor]:
        x = self.encoder(x_seq, self.encoder.dtype)
        reset_net(self)
        return self.feature_maps(x, last_only)

    def forward_features(self, x_seq: Tensor) -> list[Tensor]:
        """Feature maps of frames ``x_seq [T, B, C, H, W]`` (uint8 counts or float), as ``feature_info`` says.

        Returns:
            ``[T, B, c, h, w]`` each, or ``[B, c, h, w]``, the mean over time, with ``average_features``.

        Raises:
            ArgumentError: another number of dimensions, channels, or another frame size.
        """
        maps = self._run(x_seq, False)
        return [features.mean(0) for features in maps] if self.average_features else maps

    def forward_steps(self, x_seq: Tensor) -> Tensor:
        """Logits of every time step ``[T, B, K]`` from frames ``x_seq [T, B, C, H, W]`` (uint8 counts or float).

        The state of the neurons is reset first: calls do not depend on each other.

        Raises:
            ArgumentError: another number of dimensions, channels, or another frame size; a network without head.
        """
        if self.features_only:
            raise ArgumentError("the network was made with features_only: it has no logits; call forward_features()")
        return self.logits_of(self._run(x_seq, True)[-1])

    def forward(self, x_seq: Tensor) -> Tensor | list[Tensor]:
        """Logits ``[B, K]``, the mean over time; with ``features_only`` the feature maps instead."""
        return self.forward_features(x_seq) if self.features_only else self.forward_steps(x_seq).mean(0)

    def spiking_layers(self) -> list[tuple[str, SpikingNeuron]]:
        """The neuron modules with their names, input side first."""
        return [(name, part) for name, part in self.named_modules() if isinstance(part, SpikingNeuron)]


def through(stages: Iterable[nn.Module], x: Tensor, last_only: bool) -> list[Tensor]:
    """What the stages give, one behind the other; with ``last_only`` that of the last one alone."""
    maps: list[Tensor] = []
    for stage in stages:
        x = stage(x)
        if last_only:
            maps.clear()
        maps.append(x)
    return maps
