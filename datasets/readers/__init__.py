"""Event files: one reader a format, all behind ``read_events``; and writers for what conversion needs."""

from snn_core.datasets.readers.reading import EventFileInfo, event_file_info, iterate_event_chunks, read_events
from snn_core.datasets.readers.writing import write_events

__all__ = ["EventFileInfo", "event_file_info", "iterate_event_chunks", "read_events", "write_events"]
