"""Leaky integrate-and-fire dynamics: LIF, IF and PLIF in one operator."""

from snn_core.kernels.lif.ops import lif

__all__ = ["lif"]
