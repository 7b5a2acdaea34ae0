"""Frames of recordings with the boxes of what they show, for localisation: ``load_boxes``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from snn_core.datasets.frame_dataset import FrameDataset
from snn_core.datasets.frames import load_frames
from snn_core.datasets.registry import open_dataset
from snn_core.datasets.source import Recording
from snn_core.errors import ArgumentError

PathLike = str | os.PathLike[str]


@runtime_checkable
class BoxSource(Protocol):
    """What an event source offers besides where it knows boxes; see ``moving_digits.py``."""

    def boxes(self, recordings: Sequence[Recording], times_us: Sequence[int]) -> NDArray[np.float32]:
        """float32 [num, times, objects, 4]: x0, y0, x1, y1 in pixels, pixel 0 covers 0 .. 1."""

    def box_labels(self, recordings: Sequence[Recording]) -> NDArray[np.int64]:
        """int64 [num, objects]; -1 where there are fewer objects."""

    def step_ends_us(self, T: int) -> list[int]:
        """When each of T steps of equal duration ends."""

    def groups(self, recordings: Sequence[Recording]) -> NDArray[np.int64]:
        """int64 [num]: recordings of different groups have nothing in common."""


class BoxDataset(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Frames of recordings with boxes and classes of the objects in them.

    Args:
        frames: the recordings' frames.
        boxes: float32 [num, T, objects, 4], x0, y0, x1, y1 in pixels (pixel 0 covers 0 .. 1) when each step ends.
        labels: int64 [num, objects], classes; -1 where a recording has fewer objects.
        groups: int64 [num]; samples of different groups have no picture in common.

    Raises:
        ArgumentError: shapes or types that do not fit together.
    """

    def __init__(self, frames: FrameDataset, boxes: Tensor, labels: Tensor, groups: Tensor) -> None:
        number, objects = len(frames), labels.shape[-1]
        if labels.dtype != torch.int64 or labels.shape != (number, objects):
            raise ArgumentError(f"labels must be int64 [{number}, objects], got {labels.dtype} {list(labels.shape)}")
        if boxes.dtype != torch.float32 or boxes.shape != (number, frames.T, objects, 4):
            expected = f"float32 [{number}, {frames.T}, {objects}, 4]"
            raise ArgumentError(f"boxes must be {expected}, got {boxes.dtype} {list(boxes.shape)}")
        if groups.dtype != torch.int64 or groups.shape != (number,):
            raise ArgumentError(f"groups must be int64 [{number}], got {groups.dtype} {list(groups.shape)}")
        if labels.numel() and not -1 <= int(labels.min()) <= int(labels.max()) < frames.num_classes:
            raise ArgumentError(f"labels must lie in -1..{frames.num_classes - 1}")
        self.frames, self.boxes, self.labels, self.groups = frames, boxes, labels, groups

    @property
    def class_names(self) -> list[str]:
        """In the order of the labels."""
        return self.frames.class_names

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.frames.num_classes

    @property
    def T(self) -> int:
        """Frames a recording."""
        return self.frames.T

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Frames uint8 [T, P, H, W], boxes float32 [T, n, 4] and labels int64 [n] of the n objects of one recording."""
        there = self.labels[index] >= 0
        return self.frames[index][0], self.boxes[index][:, there], self.labels[index][there]

    def subset(self, indices: Sequence[int] | NDArray[Any] | Tensor) -> BoxDataset:
        """The recordings at ``indices``, in that order. ArgumentError: as of :meth:`FrameDataset.subset`."""
        frames = self.frames.subset(indices)
        chosen = torch.as_tensor(np.asarray(indices).astype(np.int64))
        return BoxDataset(frames, self.boxes[chosen], self.labels[chosen], self.groups[chosen])

    def fold(self, group: int) -> tuple[BoxDataset, BoxDataset]:
        """(All other groups, this group), for validation. ArgumentError: there is no such group."""
        inside = self.groups == group
        if not inside.any():
            raise ArgumentError(f"group must be one of {sorted(set(self.groups.tolist()))}, got {group!r}")
        return self.subset(torch.nonzero(~inside)[:, 0]), self.subset(torch.nonzero(inside)[:, 0])

    def __repr__(self) -> str:
        return f"BoxDataset({int((self.labels >= 0).sum())} objects in {self.frames!r})"


def load_boxes(
    name: str,
    root: PathLike | None = None,
    split: str = "train",
    *,
    T: int,
    seed: int = 0,
    limit: int | None = None,
    cache_dir: PathLike | None = None,
    use_cache: bool = True,
    quiet: bool = False,
    **options: Any,
) -> BoxDataset:
    """A data set with boxes, as frames of ``T`` steps of equal duration in memory, through the frame cache.

    ``load_boxes("moving-digits", split="train", T=8)``. Arguments as of :func:`snn_core.datasets.load`. Boxes are those
    at the ends of T equal parts of the recording, with which the bins of its events agree but for the microseconds
    before the first and after the last of them.

    Raises:
        ArgumentError: a data set without boxes, or as of :func:`snn_core.datasets.load`.
        DataError: as there.
    """
    source = open_dataset(name, root, seed=seed, **options)
    if not isinstance(source, BoxSource):
        raise ArgumentError(f"name: {name} has no boxes; moving-digits has")
    frames = load_frames(
        source, split, T=T, seed=seed, limit=limit, cache_dir=cache_dir, use_cache=use_cache, quiet=quiet
    )
    by_id = {recording.id: recording for recording in source.recordings(split)}
    chosen = [by_id[id] for id in frames.ids]
    return BoxDataset(
        frames,
        torch.from_numpy(source.boxes(chosen, source.step_ends_us(T))),
        torch.from_numpy(source.box_labels(chosen)),
        torch.from_numpy(source.groups(chosen)),
    )
