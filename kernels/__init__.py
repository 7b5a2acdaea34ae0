"""Operators on tensors; imports with torch and numpy alone."""

from snn_core.kernels.event_frames import event_frames
from snn_core.kernels.lif import lif
from snn_core.kernels.spike_pack import pack_spikes, unpack_spikes
from snn_core.kernels.topk_sampler import sample_topk

__all__ = ["event_frames", "lif", "pack_spikes", "sample_topk", "unpack_spikes"]
