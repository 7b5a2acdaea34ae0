"""Files of pictures that simulated sets are made of: damaged and hostile ones."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from snn_core.datasets import open_source
from snn_core.datasets.pictures import load_mnist
from snn_core.errors import DataError


def write(path: Path, **changed: np.ndarray) -> None:
    pictures = np.random.default_rng(0).integers(0, 3, (20, 28, 28)).astype(np.uint8)
    labels = np.arange(20) % 10
    arrays = {"x_train": pictures, "y_train": labels, "x_test": pictures[:10], "y_test": labels[:10]}
    np.savez_compressed(path, **(arrays | changed))  # type: ignore[arg-type]


def test_damaged_files_are_named(tmp_path: Path) -> None:
    file = tmp_path / "mnist.npz"
    write(file)
    good, random = file.read_bytes(), np.random.default_rng(1)
    refused = 0
    for case in range(150):
        data = bytearray(good)
        for place in random.integers(0, len(good), 3):
            data[place] = random.integers(0, 256)
        file.write_bytes(data if case % 3 else data[: random.integers(0, len(good))])
        try:
            load_mnist(tmp_path)
        except DataError as error:
            refused += "mnist.npz" in str(error)
    assert refused > 120


@pytest.mark.parametrize("shape", [(10**12, 28, 28), (2**62, 28, 28), (-1, 28, 28)], ids=str)
def test_announced_sizes_are_not_believed(tmp_path: Path, shape: tuple[int, ...]) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})  # type: ignore[arg-type]
    with zipfile.ZipFile(tmp_path / "mnist.npz", "w") as archive:
        for name in ("x_train", "y_train", "x_test", "y_test"):
            archive.writestr(f"{name}.npy", header.getvalue())
    with pytest.raises(DataError, match=r"mnist\.npz"):
        load_mnist(tmp_path)


@pytest.mark.parametrize("labels", [np.arange(20) / 2, np.arange(20), -np.arange(20), np.zeros((20, 1), int)], ids=str)
def test_labels_are_digits(tmp_path: Path, labels: np.ndarray) -> None:
    write(tmp_path / "mnist.npz", y_train=labels)
    with pytest.raises(DataError, match="y_train"):
        load_mnist(tmp_path)


def test_a_part_of_mnist_is_called_one(tmp_path: Path) -> None:
    write(tmp_path / "mnist.npz")
    assert open_source("nmnist-sim", root=tmp_path).name == "nmnist-sim (simulated; part: 20 train, 10 test)"


def test_the_places_of_a_part_belong_to_its_content(tmp_path: Path) -> None:
    write(tmp_path / "mnist.npz")
    before = load_mnist(tmp_path).content_hash()
    write(tmp_path / "mnist.npz", idx_train=np.arange(20))
    assert load_mnist(tmp_path).content_hash() == before
    write(tmp_path / "mnist.npz", idx_train=np.arange(20) + 5)
    assert load_mnist(tmp_path).content_hash() != before
