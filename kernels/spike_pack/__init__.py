"""Spikes as bits: eight a byte along one dimension."""

from snn_core.kernels.spike_pack.ops import pack_spikes, unpack_spikes
from snn_core.kernels.spike_pack.packed import PackedSpikes, is_binary
from snn_core.kernels.spike_pack.windows import spike_im2col, spike_max_pool

__all__ = ["PackedSpikes", "is_binary", "pack_spikes", "spike_im2col", "spike_max_pool", "unpack_spikes"]
