"""Events -> frames: see ops.py for the public functions and the conventions at bin edges."""

from snn_core.kernels.event_frames.framer import EventFramer, RecordingExtent
from snn_core.kernels.event_frames.normalise import normalise_frames
from snn_core.kernels.event_frames.ops import event_frames, event_frames_batch
from snn_core.kernels.event_frames.reference import event_frames_reference

__all__ = [
    "EventFramer",
    "RecordingExtent",
    "event_frames",
    "event_frames_batch",
    "event_frames_reference",
    "normalise_frames",
]
