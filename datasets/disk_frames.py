"""Frames that stay on disk, for sets larger than memory: any sample at any time, from any number of workers."""

from __future__ import annotations

import operator
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from snn_core.datasets.frame_dataset import FrameDataset
from snn_core.datasets.hdf5 import BLOCK_BYTES
from snn_core.errors import ArgumentError, DataError


class DiskFrameDataset(Dataset[tuple[Tensor, int]]):
    """A verified cache file of frames, read sample by sample.

    Every sample is one compressed chunk of the HDF5 file. Where each lies is looked up once; a sample is then one read
    and one zlib call, without the HDF5 library, whose global lock and file handles do not go with worker processes.

    Made by :func:`snn_core.datasets.open_frames`. It has the attributes of :class:`FrameDataset` apart from ``frames``;
    :meth:`load` gives that. Workers of a DataLoader may be forked or spawned.
    """

    def __init__(
        self,
        path: Path,
        chunks: NDArray[np.int64],
        frame_shape: tuple[int, int, int, int],
        labels: NDArray[np.int64],
        ids: Sequence[str],
        *,
        class_names: Sequence[str],
        name: str,
        simulated: bool,
        content_key: str,
        saturated: int,
        description: str,
    ) -> None:
        self.path = path
        self.labels = torch.from_numpy(labels)
        self.ids = list(ids)
        self.class_names = list(class_names)
        self.name = name
        self.simulated = simulated
        self.content_key = content_key
        self.saturated = saturated
        self.description = description
        self._chunks = chunks  # int64 [num, 2]: offset in the file, bytes
        self._shape = frame_shape
        self._open()
        self._identity = self._identity_now()

    def _open(self) -> None:
        # One descriptor for the life of the set: a file that replaces this one under its name changes nothing here.
        self._descriptor = os.open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def _identity_now(self) -> tuple[int, int, int]:
        status = os.fstat(self._descriptor)
        return status.st_ino, status.st_size, status.st_mtime_ns

    def __del__(self) -> None:
        if (descriptor := self.__dict__.pop("_descriptor", None)) is not None:
            os.close(descriptor)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_descriptor"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()
        if self._identity_now() != self._identity:
            raise DataError(f"{self.path}: the file was replaced since it was opened and verified; open it again")

    @property
    def num_classes(self) -> int:
        """Number of classes, including those of which this set holds no sample."""
        return len(self.class_names)

    @property
    def sensor_size(self) -> tuple[int, int, int]:
        """(W, H, P), as tonic writes it."""
        return self._shape[3], self._shape[2], self._shape[1]

    @property
    def T(self) -> int:
        """Frames a recording."""
        return self._shape[0]

    def __len__(self) -> int:
        return len(self._chunks)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Frames uint8 [T, P, H, W] and label of one recording. IndexError outside the set.

        Raises:
            DataError: the file was damaged since it was opened.
        """
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of a set of {len(self)} samples")
        index %= len(self)
        frames = torch.empty(self._shape, dtype=torch.uint8)
        offset, size = self._chunks[index].tolist()
        self._read(index, offset, size, frames.numpy().reshape(-1))
        return frames, int(self.labels[index])

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        """The samples at those indices, which share their memory. A DataLoader asks for a whole batch this way."""
        frames, labels = self.batch(indices)
        return list(zip(frames.unbind(), labels.tolist(), strict=True))

    def batch(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """Frames uint8 [B, T, P, H, W] and labels int64 [B] of some recordings, in their order. Errors as for one, and
        ArgumentError for indices that are no integers."""
        chosen = np.asarray(indices).reshape(-1)
        if chosen.size and chosen.dtype.kind not in "iu":
            raise ArgumentError(f"indices must be integers, got {chosen.dtype}")
        outside = (chosen < -len(self)) | (chosen >= len(self))
        if outside.any():
            raise IndexError(f"index {chosen[outside][0]} of a set of {len(self)} samples")
        chosen = chosen.astype(np.int64) % max(1, len(self))
        frames = torch.empty(len(chosen), *self._shape, dtype=torch.uint8)
        rows = frames.numpy().reshape(len(chosen), int(np.prod(self._shape)))
        for row, index, (offset, size) in zip(rows, chosen.tolist(), self._chunks[chosen].tolist(), strict=True):
            self._read(index, offset, size, row)
        return frames, self.labels[torch.from_numpy(chosen)]

    def load(self) -> FrameDataset:
        """All of it in memory."""
        frames, labels = self.batch(range(len(self)))
        return FrameDataset(
            frames,
            labels,
            self.ids,
            class_names=self.class_names,
            name=self.name,
            simulated=self.simulated,
            content_key=self.content_key,
            saturated=self.saturated,
            description=self.description,
        )

    def _read(self, index: int, offset: int, size: int, target: NDArray[np.uint8]) -> None:
        """One sample into ``target`` uint8 [T * P * H * W]."""
        try:
            data = zlib.decompress(os.pread(self._descriptor, size, offset), bufsize=target.size)
        except (OSError, zlib.error) as error:
            raise DataError(f"{self.path}: sample {index}, {size} bytes at offset {offset}: {error}") from error
        if len(data) != target.size:
            raise DataError(
                f"{self.path}: sample {index} at offset {offset} holds {len(data)} bytes, not {target.size}"
            )
        target[:] = np.frombuffer(data, np.uint8)

    def __repr__(self) -> str:
        kind = "simulated" if self.simulated else "real recordings"
        width, height, _ = self.sensor_size
        return (
            f"DiskFrameDataset({self.name}; {self.description}; {len(self)} samples, T={self.T}, {width} x {height}, "
            f"{self.num_classes} classes, {kind}; {self.path})"
        )


def chunk_table(dataset: Any) -> NDArray[np.int64] | None:
    """Offset in the file and bytes of each sample of an h5py data set [num, ...], int64 [num, 2]; None unless each
    sample is a chunk of its own, compressed with zlib alone."""
    num, *shape = dataset.shape
    if dataset.chunks != (1, *shape) or dataset.compression != "gzip" or dataset.shuffle or dataset.fletcher32:
        return None
    table = np.full((num, 2), -1, np.int64)
    filtered = True

    def note(chunk: Any) -> None:
        nonlocal filtered
        filtered = filtered and not chunk.filter_mask
        table[chunk.chunk_offset[0]] = chunk.byte_offset, chunk.size

    # Not get_chunk_info: the HDF5 library walks from the first chunk to the one asked for (40 minutes for 60,000).
    dataset.id.chunk_iter(note)
    if not filtered or (table < 0).any():
        return None
    if num:
        table[:, 0] += _base(dataset, table)
    return table


def _base(dataset: Any, table: NDArray[np.int64]) -> int:
    """What offsets are counted from: versions of the HDF5 library differ on whether the user block counts."""
    with open(dataset.file.filename, "rb") as file:
        for base in (0, BLOCK_BYTES):
            file.seek(base + int(table[0, 0]))
            try:
                if zlib.decompress(file.read(int(table[0, 1]))) == dataset[0].tobytes():
                    return base
            except zlib.error:
                continue
    raise DataError(f"{dataset.file.filename}: the first sample is not where the HDF5 library says")
