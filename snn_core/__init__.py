"""Sparse spiking neural networks: prune from scratch, distill event datasets, run sparse spiking kernels."""

from snn_core.neurons import IF, LIF, PLIF, SpikingNeuron, reset_net

__version__ = "0.1.0"

__all__ = ["IF", "LIF", "PLIF", "SpikingNeuron", "__version__", "reset_net"]
