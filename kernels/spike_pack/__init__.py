"""Spikes as bits: eight a byte along one dimension."""

from snn_core.kernels.spike_pack.ops import pack_spikes, unpack_spikes

__all__ = ["pack_spikes", "unpack_spikes"]
