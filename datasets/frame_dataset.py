"""Frames in memory as a torch data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from snn_core.errors import ArgumentError
from snn_core.files import sha256_json


class FrameDataset(Dataset[tuple[Tensor, int]]):
    """Labelled frames of event recordings, all in memory.

    Args:
        frames: uint8 [num, T, P, H, W]; event counts, P is 2 (channel 0 OFF, channel 1 ON) or 1 (no polarity); or
            pictures, P is 3 (red, green, blue) or 1 (grey).
        labels: int64 [num], each in 0 .. len(class_names) - 1.
        ids: name of each recording, in the same order.
        class_names: one name a class.
        name: of the data set; contains "simulated" where the recordings are.
        simulated: whether the recordings come from a simulated sensor.
        content_key: SHA-256 (hex) of the source's content and of everything done to it.
        saturated: number of cells of the frames whose count was clipped to 255 (of the whole loaded set).
        description: shown in the repr, for example the split.
        static: every sample is one picture at all T time steps. Only one of the T is kept: ``frames`` then has stride 0
            along T, and so have the batches of a :class:`FrameLoader`; do not write to them in place.

    Raises:
        ArgumentError: shapes, dtypes, lengths or labels that do not fit together; ``static`` frames that differ.
    """

    def __init__(
        self,
        frames: Tensor,
        labels: Tensor,
        ids: Sequence[str],
        *,
        class_names: Sequence[str],
        name: str,
        simulated: bool,
        content_key: str,
        saturated: int = 0,
        description: str = "",
        static: bool = False,
    ) -> None:
        _check(frames, labels, ids, len(class_names))
        if static:
            if frames.shape[1] > 1 and frames.stride(1) != 0 and not torch.equal(frames, _repeated(frames)):
                raise ArgumentError("frames: static is True, but those of a sample differ from time step to time step")
            frames = _repeated(frames)
        self.static = static
        self.frames = frames
        self.labels = labels
        self.ids = list(ids)
        self.class_names = list(class_names)
        self.name = name
        self.simulated = simulated
        self.content_key = content_key
        self.saturated = saturated
        self.description = description

    @property
    def num_classes(self) -> int:
        """Number of classes, including those of which this set holds no sample."""
        return len(self.class_names)

    @property
    def sensor_size(self) -> tuple[int, int, int]:
        """(W, H, P), as tonic writes it."""
        return self.frames.shape[4], self.frames.shape[3], self.frames.shape[2]

    @property
    def T(self) -> int:
        """Frames a recording."""
        return self.frames.shape[1]

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Frames uint8 [T, P, H, W] (a view) and label of one recording. IndexError outside the set."""
        return self.frames[index], int(self.labels[index])

    def subset(self, indices: Sequence[int] | np.ndarray[Any, Any] | Tensor) -> FrameDataset:
        """The recordings at ``indices`` (int [k], in that order, repeats allowed) as a set with a key of its own.

        Raises:
            ArgumentError: not a one-dimensional list of integers, or an index outside 0 .. len - 1.
        """
        chosen = np.asarray(indices)
        if chosen.ndim != 1 or (chosen.size and chosen.dtype.kind not in "iu"):
            raise ArgumentError(
                f"indices must be a one-dimensional list of integers, got {chosen.dtype} {chosen.shape}"
            )
        outside = (chosen < 0) | (chosen >= len(self))
        if outside.any():
            raise ArgumentError(f"indices must lie in 0..{len(self) - 1}, got {chosen[outside][0]}")
        picked = torch.from_numpy(chosen.astype(np.int64))
        # Of pictures only the one frame that is there is copied.
        frames = self.frames[:, :1] if self.static else self.frames
        return FrameDataset(
            frames[picked].expand(-1, self.T, -1, -1, -1),
            self.labels[picked],
            [self.ids[index] for index in picked.tolist()],
            class_names=self.class_names,
            name=self.name,
            simulated=self.simulated,
            content_key=sha256_json({"subset_of": self.content_key, "indices": picked.tolist()}),
            saturated=self.saturated,
            description=f"{self.description}, subset" if self.description else "subset",
            static=self.static,
        )

    def __repr__(self) -> str:
        kind = "simulated" if self.simulated else "pictures" if self.static else "real recordings"
        width, height, _ = self.sensor_size
        clipped = f", {self.saturated} cells clipped at 255" if self.saturated else ""
        return (
            f"FrameDataset({self.name}; {self.description + '; ' if self.description else ''}{len(self)} samples, "
            f"T={self.T}, {width} x {height}, {self.num_classes} classes, {kind}{clipped})"
        )


def _repeated(frames: Tensor) -> Tensor:
    """Frame 0 of every sample at all time steps, with stride 0."""
    return frames[:, :1].expand(-1, frames.shape[1], -1, -1, -1)


def _check(frames: Tensor, labels: Tensor, ids: Sequence[str], num_classes: int) -> None:
    if frames.dtype != torch.uint8 or frames.ndim != 5 or frames.shape[2] not in (1, 2, 3):
        raise ArgumentError(f"frames must be uint8 [num, T, 1 to 3, H, W], got {frames.dtype} {list(frames.shape)}")
    if labels.dtype != torch.int64 or labels.ndim != 1:
        raise ArgumentError(f"labels must be int64 [num], got {labels.dtype} {list(labels.shape)}")
    if not len(frames) == len(labels) == len(ids):
        raise ArgumentError(
            f"frames, labels and ids must have equal length, got {len(frames)}, {len(labels)} and {len(ids)}"
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ArgumentError(f"labels must lie in 0..{num_classes - 1}, got {int(labels.min())}..{int(labels.max())}")
