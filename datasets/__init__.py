"""Event sources -> frames on disk -> torch data sets. Knows nothing of models.

Data sets by name: ``load("nmnist", root, "train", T=10)``; which there are: ``list_datasets()``, ``info(name)``.
"""

from snn_core.datasets.box_dataset import BoxDataset, load_boxes
from snn_core.datasets.by_name import load, load_events
from snn_core.datasets.cache_files import CacheFile, clear_cache, list_cache, verify_cache
from snn_core.datasets.dataset_info import DatasetInfo, RegisteredDataset
from snn_core.datasets.disk_frames import DiskFrameDataset
from snn_core.datasets.event_dataset import EventDataset
from snn_core.datasets.event_frames_dataset import EventFrameDataset
from snn_core.datasets.event_sensor import EventSensor, SensorParameters
from snn_core.datasets.events import EVENT_DTYPE, make_events
from snn_core.datasets.frame_dataset import FrameDataset
from snn_core.datasets.frames import iterate_events, load_frames, open_frames
from snn_core.datasets.loader import FrameLoader
from snn_core.datasets.locate import open_source
from snn_core.datasets.nmnist import NMNISTSource
from snn_core.datasets.nmnist_format import decode_nmnist, encode_nmnist, read_nmnist, write_nmnist
from snn_core.datasets.readers import (
    EventFileInfo,
    event_file_info,
    iterate_event_chunks,
    read_events,
    write_events,
)
from snn_core.datasets.registry import info, list_datasets, open_dataset, register
from snn_core.datasets.roots import data_root
from snn_core.datasets.simulate import Scene, simulate_images, simulate_video
from snn_core.datasets.spikingjelly_frames import load_spikingjelly_frames
from snn_core.datasets.splits import stratified_folds, stratified_subset
from snn_core.files import cache_root

__all__ = [
    "EVENT_DTYPE",
    "BoxDataset",
    "CacheFile",
    "DatasetInfo",
    "DiskFrameDataset",
    "EventDataset",
    "EventFileInfo",
    "EventFrameDataset",
    "EventSensor",
    "FrameDataset",
    "FrameLoader",
    "NMNISTSource",
    "RegisteredDataset",
    "Scene",
    "SensorParameters",
    "cache_root",
    "clear_cache",
    "data_root",
    "decode_nmnist",
    "encode_nmnist",
    "event_file_info",
    "info",
    "iterate_event_chunks",
    "iterate_events",
    "list_cache",
    "list_datasets",
    "load",
    "load_boxes",
    "load_events",
    "load_frames",
    "load_spikingjelly_frames",
    "make_events",
    "open_dataset",
    "open_frames",
    "open_source",
    "read_events",
    "read_nmnist",
    "register",
    "simulate_images",
    "simulate_video",
    "stratified_folds",
    "stratified_subset",
    "verify_cache",
    "write_events",
    "write_nmnist",
]
