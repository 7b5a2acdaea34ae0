"""Operators on tensors; imports with torch and numpy alone."""

from snn_core.kernels.lif import lif

__all__ = ["lif"]
