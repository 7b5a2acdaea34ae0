"""``cifar10`` and ``mnist``: pictures, not recordings. Every time step of a sample shows the same picture.

Such sets are what the literature on spiking networks trains on beside event data ("direct encoding": the first
convolution makes a current of the picture, the same at every step).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snn_core.datasets.dataset_info import DatasetInfo
from snn_core.datasets.folder_source import name_of_part
from snn_core.datasets.pictures import (
    CIFAR10_CLASSES,
    CIFAR10_FILES,
    CIFAR10_FOLDER,
    HOW_TO_GET_CIFAR10,
    HOW_TO_GET_MNIST,
    MNIST_FILE,
    LabelledPictures,
    load_cifar10,
    load_mnist,
)
from snn_core.datasets.roots import data_root
from snn_core.datasets.source import Recording, check_split
from snn_core.errors import ArgumentError
from snn_core.files import sha256_json

#: Raised whenever other frames would come of the same files: part of every content key.
VERSION = 1
SPLITS = ("train", "test")


class PictureSource:
    """Labelled pictures as a source: lists them, hashes them, and gives them as they are or at half the size.

    It stands where an event source does, but has no events: :meth:`read` refuses.

    Args:
        info: facts of the data set; the sensor size is that of its pictures.
        pictures: all of them.
        size: pixels a side: that of the pictures, or half of it (means of 2 x 2 pixels, halves rounded up).

    Raises:
        ArgumentError: another size.
    """

    simulated = False

    def __init__(self, info: DatasetInfo, pictures: LabelledPictures, size: int) -> None:
        full, _, channels = info.sensor_size
        if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size not in (full, full // 2):
            raise ArgumentError(f"size must be {full} or {full // 2} for {info.name}, got {size!r}")
        self.size = int(size)
        self.halved = self.size != full
        self.class_names = info.class_names
        self.sensor_size = (self.size, self.size, channels)
        self._pictures = pictures
        counts = {split: len(pictures.labels[split]) for split in SPLITS}
        form = f"{size} x {size}" if self.halved else ""
        self.name = name_of_part(info, counts, next(iter(info.splits.values())), form)

    def recordings(self, split: str) -> list[Recording]:
        """One for each picture of "train", "test" or "all" (train, then test), in the data set's order."""
        check_split(split)
        found = []
        for part in SPLITS if split == "all" else (split,):
            places = zip(self._pictures.index[part].tolist(), self._pictures.labels[part].tolist(), strict=True)
            found += [Recording(f"{part}/{index:05d}", label, (part, row)) for row, (index, label) in enumerate(places)]
        return found

    def content_hash(self, split: str) -> str:
        """SHA-256 of all pictures and labels, and of the size."""
        check_split(split)
        return sha256_json(["pictures", VERSION, self._pictures.content_hash(), self.size])

    def pictures(self, recordings: Sequence[Recording]) -> Tensor:
        """uint8 ``[num, C, H, W]`` of the given ones, in that order."""
        chosen = np.empty((len(recordings), *next(iter(self._pictures.pictures.values())).shape[1:]), np.uint8)
        for part in SPLITS:
            rows = [(place, recording.key[1]) for place, recording in enumerate(recordings) if recording.key[0] == part]
            if rows:
                places, sources = np.array(rows).T
                chosen[places] = self._pictures.pictures[part][sources]
        if chosen.ndim == 3:
            chosen = chosen[..., None]
        if self.halved:
            chosen = mean_of_four(chosen)
        return torch.from_numpy(np.ascontiguousarray(chosen.transpose(0, 3, 1, 2)))

    def read(self, recordings: Sequence[Recording]) -> Iterator[NDArray[np.void]]:
        """Raises ArgumentError: pictures have no events."""
        raise ArgumentError(
            f"{self.name} holds pictures, which have no events: load them as frames with load() or load_frames(); "
            "recordings of a simulated sensor are nmnist-sim and cifar10-dvs-sim"
        )

    def __repr__(self) -> str:
        return f"PictureSource({self.name}, {self.size} x {self.size})"


def mean_of_four(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pictures ``[num, H, W, C]`` of even sides at half the size: means of 2 x 2 pixels, rounded, halves up."""
    wide = pictures.astype(np.uint16)
    total = wide[:, 0::2, 0::2] + wide[:, 0::2, 1::2] + wide[:, 1::2, 0::2] + wide[:, 1::2, 1::2]
    return ((total + 2) >> 2).astype(np.uint8)


def open_cifar10(root: Path | None = None, *, size: int = 32) -> PictureSource:
    """See :class:`PictureSource` and :func:`snn_core.datasets.pictures.load_cifar10`."""
    return PictureSource(CIFAR10, load_cifar10(data_root() if root is None else root), size)


def open_mnist(root: Path | None = None, *, size: int = 28) -> PictureSource:
    """See :class:`PictureSource` and :func:`snn_core.datasets.pictures.load_mnist`."""
    return PictureSource(MNIST, load_mnist(data_root() if root is None else root), size)


CIFAR10 = DatasetInfo(
    name="cifar10",
    title="CIFAR-10 (pictures)",
    class_names=CIFAR10_CLASSES,
    sensor_size=(32, 32, 3),
    splits={"official": {"train": 50_000, "test": 10_000}},
    split_rules={"official": "its training and test batches"},
    licence=None,
    citation=(
        "A. Krizhevsky: Learning Multiple Layers of Features from Tiny Images. Technical report, University of Toronto "
        "(2009)."
    ),
    home_page="https://www.cs.toronto.edu/~kriz/cifar.html",
    how_to_get=HOW_TO_GET_CIFAR10,
    where_to_put=f"{CIFAR10_FOLDER}/ or {' or '.join(CIFAR10_FILES)} (the last is a part: 500 / 100 a class)",
)
MNIST = DatasetInfo(
    name="mnist",
    title="MNIST (pictures)",
    class_names=tuple(str(digit) for digit in range(10)),
    sensor_size=(28, 28, 1),
    splits={"official": {"train": 60_000, "test": 10_000}},
    split_rules={"official": "its training and test files"},
    licence=None,
    citation=(
        "Y. LeCun, L. Bottou, Y. Bengio, P. Haffner: Gradient-Based Learning Applied to Document Recognition. "
        "Proceedings of the IEEE 86, 2278-2324 (1998). doi:10.1109/5.726791"
    ),
    how_to_get=HOW_TO_GET_MNIST,
    where_to_put=MNIST_FILE,
)
