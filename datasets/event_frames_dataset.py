"""Frames made while training goes on: recordings are read, augmented as events, and binned when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from snn_core.datasets.augment import Augmentation, policy
from snn_core.datasets.augment.base import Events, as_bytes, sorted_by_time
from snn_core.datasets.binning import Binning
from snn_core.datasets.event_dataset import EventDataset
from snn_core.errors import ArgumentError, DataError
from snn_core.files import sha256_json


class EventFrameDataset(Dataset[tuple[Tensor, int]]):
    """The frames of a set of recordings, after an augmentation of their events.

    Without one these are the frames of :func:`snn_core.datasets.load_frames`. With one they differ whenever they are
    asked for, as its generator decides: give the set to a :class:`snn_core.datasets.FrameLoader`, which does so by
    epoch and batch. Augmenting events moves them by fractions of a bin and of a pixel, which frames cannot; it costs
    reading and binning in every epoch.

    Args:
        events: recordings, see :func:`snn_core.datasets.load_events`.
        T, by, time_window: how they become frames, as of :func:`snn_core.datasets.load_frames`. Bins of time are those
            of the recording before the augmentation: one that shifts times would do nothing otherwise.
        augment: an :class:`Augmentation`, the name of a policy, or None.

    Raises:
        ArgumentError: a bad ``T``, ``by``, ``time_window`` or policy.
    """

    def __init__(
        self,
        events: EventDataset,
        *,
        T: int = 3,
        by: str = "time",
        time_window: int | None = None,
        augment: Augmentation | str | None = None,
    ) -> None:
        self.events = events
        self.binning = Binning(T, by, time_window)
        self.augment = policy(augment) if isinstance(augment, str) else augment
        self.labels = events.labels
        source: dict[str, Any] = {"source": events.source.content_hash(events.split), "ids": events.ids}
        self.content_key = sha256_json(source | self.binning.key() | {"augment": repr(self.augment)})

    @property
    def num_classes(self) -> int:
        """Number of classes, including those of which this set holds no sample."""
        return len(self.events.class_names)

    @property
    def T(self) -> int:
        """Frames a recording."""
        return int(self.binning.T)

    @property
    def sensor_size(self) -> tuple[int, int, int]:
        """(W, H, polarities) of the frames."""
        width, height, polarities = self.events.sensor_size
        size = (width, height) if self.augment is None else self.augment.output_size((width, height))
        return *size, polarities

    def plain(self) -> EventFrameDataset:
        """The same recordings without augmentation, for a test."""
        return EventFrameDataset(self.events, T=self.T, by=self.binning.by, time_window=self.binning.time_window)

    def __len__(self) -> int:
        return len(self.events)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Frames uint8 [T, P, H, W], not augmented, and label of one recording. IndexError outside the set."""
        frames, labels = self.batch([index])
        return frames[0], int(labels[0])

    def batch(self, indices: Sequence[int], generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Frames uint8 [B, T, P, H, W] and labels int64 [B] of some recordings, augmented where there is a generator.

        Raises:
            IndexError: outside the set. DataError: a file that is missing or damaged, or events outside the sensor.
        """
        pairs = self.events.__getitems__(indices)
        recordings, labels = [sorted_by_time(events) for events, _ in pairs], [label for _, label in pairs]
        relabelled = torch.tensor(labels, dtype=torch.int64)
        try:
            if self.augment is None or generator is None:
                return torch.from_numpy(self.binning.frames(recordings, self.events.sensor_size)[0]), relabelled
            draw = self.augment.draw(generator, len(recordings), self.events.sensor_size[:2])
            moved = [self.augment.apply(events, draw.select(row)) for row, events in enumerate(recordings)]
        except ArgumentError as error:
            names = ", ".join(self.events.ids[index] for index in indices)
            raise DataError(f"{self.events.name}, one of the recordings {names}: {error}") from error
        return torch.from_numpy(self._frames(recordings, moved)), self.augment.relabel(relabelled, draw)

    def _frames(self, recordings: Sequence[Events], moved: Sequence[Events]) -> np.ndarray:
        if self.binning.by == "count":
            return self.binning.frames(moved, self.sensor_size)[0]
        # The ends of the recording decide on bins of time, its start on windows: an event there keeps them. That at the
        # start is taken off again; that at the end is counted nowhere, since bins of time are half open.
        ends = 2 if self.binning.by == "time" else 1
        framed = [_with_ends(after, before, ends) for after, before in zip(moved, recordings, strict=True)]
        frames, _ = self.binning.frames(framed, self.sensor_size)
        mark = frames[:, 0, 0, 0, 0]
        marked = np.array([len(before) > 0 for before in recordings]) & (mark > 0)
        for sample in np.flatnonzero(marked & (mark == 255)).tolist():  # which may be 255, or more that was clipped
            marked[sample] = self._in_corner(recordings[sample], moved[sample]) < 255
        mark -= marked.astype(np.uint8)
        return frames

    def _in_corner(self, before: Events, after: Events) -> int:
        """How many events the cell of the mark has without it."""
        start, last = int(before["t"][0]), int(before["t"][-1])
        length = (last - start) // self.T if self.binning.by == "time" else int(self.binning.time_window or 0)
        there = (after["x"] == 0) & (after["y"] == 0) & (after["t"] < start + length)
        if self.sensor_size[2] == 2:
            there &= after["p"] == 0
        return int(np.count_nonzero(there))

    def __repr__(self) -> str:
        return f"EventFrameDataset({self.events!r}, T={self.T}, {self.binning}, augment={self.augment!r})"


def _with_ends(events: Events, before: Events, count: int) -> Events:
    """``events`` behind an event in the corner, OFF, at the first time of ``before``; if 2, one at the last too."""
    if not len(before):
        return events
    ends = np.zeros(2, before.dtype)
    ends["t"] = before["t"][0], before["t"][-1]
    raw = as_bytes(ends)
    return np.concatenate([raw[:1], as_bytes(events), raw[1:count]]).view(before.dtype)
