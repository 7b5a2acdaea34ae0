"""Operators on tensors; imports with torch and numpy alone."""

from snn_core.kernels.event_frames import (
    EventFramer,
    RecordingExtent,
    event_frames,
    event_frames_batch,
    normalise_frames,
)
from snn_core.kernels.frame_conv import frame_conv2d_lif
from snn_core.kernels.lif import lif
from snn_core.kernels.nm_compress import CompressedNM
from snn_core.kernels.nm_matmul import Explanation, nm_conv2d, nm_conv2d_lif, nm_matmul, nm_matmul_lif
from snn_core.kernels.spike_pack import PackedSpikes, pack_spikes, spike_im2col, spike_max_pool, unpack_spikes
from snn_core.kernels.topk_sampler import sample_topk

__all__ = [
    "CompressedNM",
    "EventFramer",
    "Explanation",
    "PackedSpikes",
    "RecordingExtent",
    "event_frames",
    "event_frames_batch",
    "frame_conv2d_lif",
    "lif",
    "nm_conv2d",
    "nm_conv2d_lif",
    "nm_matmul",
    "nm_matmul_lif",
    "normalise_frames",
    "pack_spikes",
    "sample_topk",
    "spike_im2col",
    "spike_max_pool",
    "unpack_spikes",
]
