"""Events -> frames: see ops.py for the public function and the bin-edge convention."""

from snn_core.kernels.event_frames.ops import event_frames
from snn_core.kernels.event_frames.reference import event_frames_reference

__all__ = ["event_frames", "event_frames_reference"]
