"""Sparse spiking neural networks: prune from scratch, distill event datasets, run sparse spiking kernels."""

__version__ = "0.1.0"
