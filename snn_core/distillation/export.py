"""The product in other forms: event arrays as tonic's data sets give them, frame folders as SpikingJelly's."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from snn_core.datasets import FrameDataset
from snn_core.distillation.product import DistilledDataset
from snn_core.errors import ArgumentError
from snn_core.files import atomic_path

#: One event as tonic orders it: column, row, microseconds, polarity (1 = ON, 0 = OFF).
TONIC_DTYPE = np.dtype([("x", "<i2"), ("y", "<i2"), ("t", "<i8"), ("p", "<i1")])
PathLike = str | os.PathLike[str]


def frames_to_events(frames: torch.Tensor, time_window: int = 1000) -> NDArray[np.void]:
    """Events of one sample's frames: a count c becomes c events, spread evenly over the frame's time.

    Args:
        frames: uint8 ``[T, P, H, W]``, event counts; P is 2 (channel 0 OFF, channel 1 ON) or 1.
        time_window: microseconds a frame, at least 255, so that the events of a pixel differ in time.

    Returns:
        TONIC_DTYPE ``[sum of frames]``, in order of time. Frame t's events lie in ``[t, t + 1) * time_window``:
        counting them in such windows gives ``frames`` back.

    Raises:
        ArgumentError: frames of another type or shape, or a window below 255.
    """
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[1] not in (1, 2):
        raise ArgumentError(f"frames must be uint8 [T, 1 or 2, H, W], got {frames.dtype} {list(frames.shape)}")
    if isinstance(time_window, bool) or not isinstance(time_window, int) or time_window < 255:
        raise ArgumentError(f"time_window must be an integer of at least 255 microseconds, got {time_window!r}")
    counts = frames.cpu().numpy()
    t, p, y, x = (index.astype(np.int64) for index in np.nonzero(counts))
    many = counts[t, p, y, x].astype(np.int64)
    cell = np.repeat(np.arange(len(many)), many)
    number = np.arange(len(cell)) - np.repeat(np.cumsum(many) - many, many)  # of the event among those of its pixel
    events = np.empty(len(cell), TONIC_DTYPE)
    for name, value in (("x", x), ("y", y), ("p", p)):
        events[name] = value[cell]
    events["t"] = t[cell] * time_window + number * time_window // many[cell]
    return events[np.argsort(events["t"], kind="stable")]


def _clips(product: FrameDataset) -> FrameDataset:
    """What a network trains on: of a product with several clips in a sample, those clips."""
    return product.decoded() if isinstance(product, DistilledDataset) else product


class DistilledEvents(Dataset[tuple[NDArray[np.void], int]]):
    """A product (or any FrameDataset of event counts) as a data set of events, in tonic's manner.

    Items are ``(events, label)``, events as :func:`frames_to_events` makes them. ``sensor_size`` (W, H, P),
    ``classes``, ``targets``, ``dtype`` and ``ordering`` are named as in tonic's data sets, whose transforms take the
    events.

    Args:
        product: the frames. time_window: microseconds a frame. transform: of the events. target_transform: of the
        label.

    Raises:
        ArgumentError: as :func:`frames_to_events`.
    """

    dtype = TONIC_DTYPE
    ordering = TONIC_DTYPE.names

    def __init__(
        self,
        product: FrameDataset,
        *,
        time_window: int = 1000,
        transform: Callable[..., Any] | None = None,
        target_transform: Callable[..., Any] | None = None,
    ) -> None:
        product = _clips(product)
        self.product, self.time_window = product, time_window
        self.transform, self.target_transform = transform, target_transform
        self.sensor_size = product.sensor_size
        self.classes = list(product.class_names)
        self.targets = product.labels.tolist()
        frames_to_events(product.frames[0, :0], time_window)

    def __len__(self) -> int:
        return len(self.product)

    def __getitem__(self, index: int) -> tuple[NDArray[np.void], int]:
        """Events and label of one sample. IndexError outside the set."""
        frames, label = self.product[index]
        events = frames_to_events(frames, self.time_window)
        if self.transform is not None:
            events = self.transform(events)
        if self.target_transform is not None:
            label = self.target_transform(label)
        return events, label


def write_spikingjelly_frames(folder: PathLike, product: FrameDataset) -> Path:
    """Write ``folder/frames_number_<T>_split_by_time/train/<label>/<number>.npz``, as SpikingJelly keeps frames.

    Each file holds ``frames`` float32 ``[T, P, H, W]``. Labels are folders of equally many digits ("00", "01", ...), so
    that SpikingJelly, which sorts them as text, numbers them as the product does; ``classes.txt`` beside train/ has the
    names. :func:`snn_core.datasets.load_spikingjelly_frames` reads it back.

    Returns:
        The folder ``frames_number_...``.

    Raises:
        ArgumentError: that folder holds something already. StorageError: the disk refuses.
    """
    product = _clips(product)
    target = Path(folder).expanduser() / f"frames_number_{product.T}_split_by_time"
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ArgumentError(f"folder: {target} is there already and not empty")
    digits = len(str(max(1, product.num_classes - 1)))
    for number in range(len(product)):
        frames, label = product[number]
        path = target / "train" / f"{label:0{digits}d}" / f"{number:05d}.npz"
        with atomic_path(path) as temporary, open(temporary, "wb") as stream:
            np.savez_compressed(stream, frames=frames.numpy().astype(np.float32))
    with atomic_path(target / "classes.txt") as temporary:
        temporary.write_text("".join(f"{k:0{digits}d} {name}\n" for k, name in enumerate(product.class_names)))
    return target
