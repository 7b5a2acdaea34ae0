"""A network's first layer: real-valued frames, most of them zero, convolved, with LIF behind it."""

from snn_core.kernels.frame_conv.ops import frame_conv2d_lif

__all__ = ["frame_conv2d_lif"]
