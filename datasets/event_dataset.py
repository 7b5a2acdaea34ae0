"""The recordings of a source as a map-style torch data set of raw events, read when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from snn_core.datasets.source import EventSource, Recording
from snn_core.datasets.splits import stratified_subset

LabelledEvents = tuple[NDArray[np.void], int]


class EventDataset(Dataset[LabelledEvents]):
    """Events and label of each recording; nothing is held in memory.

    Args:
        source: from :func:`snn_core.datasets.open_source`.
        split: "train", "test" or "all".
        limit, seed: at most so many recordings, a stratified subset drawn by the seed, the same as ``load_frames``'.

    Recordings differ in length: a DataLoader needs a ``collate_fn``, for example ``list``.

    Raises:
        ArgumentError, DataError: as ``source.recordings``; files are checked when they are read.
    """

    def __init__(self, source: EventSource, split: str, *, limit: int | None = None, seed: int = 0) -> None:
        recordings = source.recordings(split)
        if limit is not None:
            labels = np.array([recording.label for recording in recordings])
            recordings = [recordings[index] for index in stratified_subset(labels, limit, seed)]
        self.source = source
        self.recordings: list[Recording] = recordings
        self.split = split

    @property
    def labels(self) -> Tensor:
        """int64 [num], known without reading a recording."""
        return torch.tensor([recording.label for recording in self.recordings], dtype=torch.int64)

    @property
    def ids(self) -> list[str]:
        """Name of each recording."""
        return [recording.id for recording in self.recordings]

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the labels."""
        return tuple(self.source.class_names)

    @property
    def sensor_size(self) -> tuple[int, int, int]:
        """(W, H, polarities)."""
        return self.source.sensor_size

    @property
    def name(self) -> str:
        """Of the source; says "simulated" where the recordings are."""
        return self.source.name

    @property
    def simulated(self) -> bool:
        """Whether the recordings come from a simulated sensor."""
        return self.source.simulated

    def __len__(self) -> int:
        return len(self.recordings)

    def __getitem__(self, index: int) -> LabelledEvents:
        """Events (EVENT_DTYPE [num_events], times as recorded) and label. IndexError outside, DataError: damaged."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[LabelledEvents]:
        """Several at once, as torch's DataLoader asks for them: an archive is opened once a batch."""
        chosen = [self.recordings[index] for index in indices]
        return [(events, recording.label) for events, recording in zip(self.source.read(chosen), chosen, strict=True)]

    def __iter__(self) -> Iterator[LabelledEvents]:
        """All in order, in one go through the source: faster than one by one where recordings share a file."""
        for events, recording in zip(self.source.read(self.recordings), self.recordings, strict=True):
            yield events, recording.label

    def __repr__(self) -> str:
        kind = "simulated" if self.simulated else "real recordings"
        width, height, _ = self.sensor_size
        return (
            f"EventDataset({self.name}; {self.split}; {len(self)} recordings, {width} x {height}, "
            f"{len(self.class_names)} classes, {kind})"
        )
