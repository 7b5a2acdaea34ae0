"""Event sources -> frames on disk -> torch data sets. Knows nothing of models.

Real recordings: N-MNIST, from a folder or zip. Built in: ``digits-dvs``, *simulated* recordings of handwritten digits.
"""

from snn_core.datasets.disk_frames import DiskFrameDataset
from snn_core.datasets.events import EVENT_DTYPE, make_events
from snn_core.datasets.frame_dataset import FrameDataset
from snn_core.datasets.frames import iterate_events, load_frames, open_frames
from snn_core.datasets.locate import cache_root, data_root, open_source
from snn_core.datasets.nmnist import NMNISTSource
from snn_core.datasets.nmnist_format import decode_nmnist, encode_nmnist, read_nmnist, write_nmnist
from snn_core.datasets.readers import (
    EventFileInfo,
    event_file_info,
    iterate_event_chunks,
    read_events,
    write_events,
)
from snn_core.datasets.splits import stratified_folds, stratified_subset

__all__ = [
    "EVENT_DTYPE",
    "DiskFrameDataset",
    "EventFileInfo",
    "FrameDataset",
    "NMNISTSource",
    "cache_root",
    "data_root",
    "decode_nmnist",
    "encode_nmnist",
    "event_file_info",
    "iterate_event_chunks",
    "iterate_events",
    "load_frames",
    "make_events",
    "open_frames",
    "open_source",
    "read_events",
    "read_nmnist",
    "stratified_folds",
    "stratified_subset",
    "write_events",
    "write_nmnist",
]
