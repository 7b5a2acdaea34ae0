"""The HDF5 product: round trip, use as a FrameDataset, and every way a file can be wrong."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from snn_core.datasets import FrameDataset
from snn_core.datasets.hdf5 import BLOCK_BYTES, MAGIC, write_hdf5
from snn_core.distillation.product import DistilledDataset, Provenance, record_measurement, write_product
from snn_core.errors import ArgumentError, CheckpointError, StorageError


def make_product(seed: int = 0) -> DistilledDataset:
    generator = torch.Generator().manual_seed(seed)
    provenance = Provenance(
        method="pace",
        source_name="made-up (simulated)",
        source_content_key="ab" * 32,
        source_description="train, by time",
        source_samples=120,
        simulated=True,
        class_names=["zero", "one", "two"],
        ipc=2,
        seed=7,
        config={"ipc": 2, "teachers": {"snapshots": [0.5, 1.0]}},
        teacher_hashes=["cd" * 32, "ef" * 32],
        package_version="0.0.1",
        seconds=1.5,
    )
    frames = torch.randint(0, 16, (6, 3, 2, 5, 4), dtype=torch.uint8, generator=generator)
    return DistilledDataset(frames, torch.tensor([0, 0, 1, 1, 2, 2]), provenance)


def change_product(path: Path, change: Callable[[h5py.File], object], *, seal: bool) -> None:
    """Edit a product; with ``seal`` the checksum before the HDF5 content is made to match again."""
    with h5py.File(path, "r+") as file:
        change(file)
    if seal:
        content = path.read_bytes()[BLOCK_BYTES:]
        block = MAGIC + hashlib.sha256(content).hexdigest().encode() + b"\n"
        path.write_bytes(block.ljust(BLOCK_BYTES, b"\0") + content)


def replace_frames(**options: object) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file["frames"]
        file.create_dataset("frames", **options)

    return change


HUGE = (6, 3, 2, 2**17, 2**17)


def test_round_trip_keeps_everything(tmp_path):
    product = make_product()
    write_product(tmp_path / "a" / "product.h5", product)
    loaded = DistilledDataset.load(tmp_path / "a" / "product.h5")
    assert torch.equal(loaded.frames, product.frames)
    assert torch.equal(loaded.labels, product.labels)
    assert loaded.provenance == product.provenance
    assert loaded.content_key == product.content_key
    assert loaded.num_bytes == 6 * 3 * 2 * 5 * 4
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["product.h5"]


def test_it_is_a_frame_dataset():
    product = make_product()
    assert isinstance(product, FrameDataset)
    assert (len(product), product.num_classes, product.T, product.sensor_size) == (6, 3, 3, (4, 5, 2))
    frames, label = product[3]
    assert frames.dtype == torch.uint8
    assert label == 1
    assert len(set(product.ids)) == 6
    assert "simulated" in repr(product)
    batch, _ = next(iter(torch.utils.data.DataLoader(product, batch_size=4)))
    assert batch.shape == (4, 3, 2, 5, 4)


def test_layout_on_disk_is_as_documented(tmp_path):
    write_product(tmp_path / "p.h5", make_product())
    with h5py.File(tmp_path / "p.h5") as file:
        assert file["frames"].dtype == np.uint8
        assert file["frames"].shape == (6, 3, 2, 5, 4)
        assert file["labels"][...].tolist() == [0, 0, 1, 1, 2, 2]
        for name in ("source_name", "source_content_key", "simulated", "config", "seed", "teacher_hashes", "checksum"):
            assert name in file.attrs
        assert file.attrs["seed"] == 7
        assert bool(file.attrs["simulated"]) is True


def test_same_product_same_bytes(tmp_path):
    for name in ("a.h5", "b.h5"):
        write_product(tmp_path / name, make_product())
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_measurements_are_added(tmp_path):
    path = tmp_path / "p.h5"
    write_product(path, make_product())
    record_measurement(path, "conv-snn", {"mean": 0.81})
    record_measurement(path, "wide", {"mean": 0.8})
    loaded = DistilledDataset.load(path)
    assert loaded.provenance.measured == {"conv-snn": {"mean": 0.81}, "wide": {"mean": 0.8}}
    assert torch.equal(loaded.frames, make_product().frames)


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        DistilledDataset.load(tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("not HDF5")
    with pytest.raises(CheckpointError, match="not a readable"):
        DistilledDataset.load(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(CheckpointError, match="not an HDF5 file with a checksum"):
        DistilledDataset.load(tmp_path / "other.h5")
    write_hdf5(tmp_path / "cache.h5", lambda file: file.create_dataset("x", data=1))
    with pytest.raises(CheckpointError, match="None version None"):
        DistilledDataset.load(tmp_path / "cache.h5")


def test_truncated_files_are_refused_at_any_length(tmp_path):
    path = tmp_path / "p.h5"
    write_product(path, make_product())
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, max(1, len(whole) // 37)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            DistilledDataset.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file["frames"].write_direct(np.zeros((6, 3, 2, 5, 4), np.uint8)), "checksum"),
        (lambda file: file["labels"].write_direct(np.array([0, 0, 1, 1, 2, 1])), "checksum"),
        (lambda file: file.attrs.modify("format_version", 99), "version 99"),
        (lambda file: file.attrs.__delitem__("source_name"), "source_name"),
        (lambda file: file.attrs.__delitem__("checksum"), "checksum"),
        (lambda file: file.attrs.modify("config", "{broken"), "not a readable"),
        (lambda file: file.attrs.modify("class_names", '["zero"]'), "product"),
        (lambda file: file.__delitem__("labels"), "not a readable"),
        (lambda file: file.attrs.modify("surprise", 1), "surprise"),
        (replace_frames(shape=HUGE, dtype="u1", compression="gzip", chunks=True), "holds only 0 bytes"),
        (replace_frames(shape=HUGE, dtype="u1"), "holds only 0 bytes"),
        (replace_frames(shape=(6, 3, 2, 5, 4), dtype="f4"), "float32"),
        (replace_frames(data=np.zeros((6, 3, 2, 5, 4), "u1"), shuffle=True, compression="gzip"), "do not use"),
    ],
)
def test_made_up_files_with_a_valid_checksum_are_refused(tmp_path, change, message):
    path = tmp_path / "p.h5"
    write_product(path, make_product())
    change_product(path, change, seal=True)
    with pytest.raises(CheckpointError, match=message):
        DistilledDataset.load(path)


@pytest.mark.parametrize("name", ["seed", "source_samples", "seconds"])
def test_an_edited_attribute_is_noticed(tmp_path, name):
    path = tmp_path / "p.h5"
    write_product(path, make_product())
    change_product(path, lambda file: file.attrs.modify(name, file.attrs[name] + 1), seal=False)
    with pytest.raises(CheckpointError, match="does not match"):
        DistilledDataset.load(path)


def test_nothing_is_parsed_before_the_checksum_fits(tmp_path, monkeypatch):
    path = tmp_path / "p.h5"
    write_product(path, make_product())
    content = bytearray(path.read_bytes())
    content[BLOCK_BYTES + 100] ^= 0xFF
    path.write_bytes(bytes(content))
    monkeypatch.setattr("h5py.File", None)
    with pytest.raises(CheckpointError, match="SHA-256 does not match"):
        DistilledDataset.load(path)


def test_strongly_compressed_frames_are_read(tmp_path):
    """All zeros: nothing compresses better, and it must stay below the bound on declared sizes."""
    product = make_product()
    empty = DistilledDataset(torch.zeros(6, 8, 2, 256, 256, dtype=torch.uint8), product.labels, product.provenance)
    write_product(tmp_path / "p.h5", empty)
    assert torch.equal(DistilledDataset.load(tmp_path / "p.h5").frames, empty.frames)


def test_running_out_of_memory_is_explained(tmp_path, monkeypatch):
    write_product(tmp_path / "p.h5", make_product())

    def exhausted(*args):
        raise MemoryError("Unable to allocate")

    monkeypatch.setattr("h5py.Dataset.__getitem__", exhausted)
    with pytest.raises(CheckpointError, match="Unable to allocate"):
        DistilledDataset.load(tmp_path / "p.h5")


def test_frames_that_do_not_fit_are_refused():
    product = make_product()
    with pytest.raises(ArgumentError, match="frames"):
        DistilledDataset(product.frames.float(), product.labels, product.provenance)


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "p.h5"
    write_product(path, make_product())
    before = path.read_bytes()

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(StorageError, match="intact"):
        write_product(path, make_product(1))
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["p.h5"]
