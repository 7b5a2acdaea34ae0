"""N-MNIST's 40-bit format: against tonic's reader, a hand-made overflow file, and bad files."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from tonic.io import read_mnist_file

from snn_core.datasets import EVENT_DTYPE, decode_nmnist, encode_nmnist, make_events, read_nmnist, write_nmnist
from snn_core.errors import ArgumentError, DataError, StorageError

TONIC_DTYPE = np.dtype([("x", int), ("y", int), ("t", int), ("p", int)])


def assert_equal_to_tonic(data: bytes) -> None:
    ours = decode_nmnist(data, "recording")
    theirs = read_mnist_file(io.BytesIO(data), TONIC_DTYPE, is_stream=True)
    assert len(ours) == len(theirs)
    for name in "xytp":
        np.testing.assert_array_equal(ours[name], theirs[name])


def test_real_recordings_equal_tonic(nmnist_zip: Path) -> None:
    with zipfile.ZipFile(nmnist_zip) as archive:
        names = [name for name in archive.namelist() if name.endswith(".bin")]
        assert len(names) == 850
        for name in names[::17]:
            assert_equal_to_tonic(archive.read(name))


def test_known_bytes() -> None:
    # x 5, y 6, ON, t = 0x123456; then x 33, y 33, OFF, t = 0x123457
    events = decode_nmnist(bytes([5, 6, 0x80 | 0x12, 0x34, 0x56, 33, 33, 0x12, 0x34, 0x57]), "hand-made")
    assert events.dtype == EVENT_DTYPE
    assert events.tolist() == [(0x123456, 5, 6, 1), (0x123457, 33, 33, 0)]


def test_overflow_markers_equal_tonic() -> None:
    plain = np.frombuffer(
        encode_nmnist(make_events([10, 20, 30, 5, 8191], [1] * 5, [2] * 5, [0, 1, 0, 1, 0])), np.uint8
    )
    marker = np.array([200, 240, 0, 0, 0], np.uint8)  # x of a marker means nothing and is not checked
    rows = plain.reshape(5, 5)
    data = np.concatenate([rows[:2], marker[None], rows[2:3], marker[None], marker[None], rows[3:]]).tobytes()
    assert decode_nmnist(data, "overflow")["t"].tolist() == [10, 20, 30 + 8192, 5 + 3 * 8192, 8191 + 3 * 8192]
    assert_equal_to_tonic(data)


def test_write_then_read_gives_the_same_events(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    events = make_events(
        np.sort(generator.integers(0, 2**23, 500)), *(generator.integers(0, size, 500) for size in (34, 34, 2))
    )
    path = tmp_path / "a.bin"
    write_nmnist(path, events)
    assert path.stat().st_size == 2500
    np.testing.assert_array_equal(read_nmnist(path), events)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"00001\.bin: empty file"),
        (bytes([200, 240, 0, 0, 0] * 2), r"00001\.bin: no events, only 2 markers"),
        (bytes(12), r"00001\.bin: 12 bytes is no multiple of 5; an incomplete event starts at offset 10"),
        (bytes(10) + bytes([34, 0, 0, 0, 9]), r"00001\.bin: event 2 at offset 10 has x=34, y=0, outside the 34 x 34"),
        (bytes(5) + bytes([0, 241, 0, 0, 9]), r"00001\.bin: event 1 at offset 5 has x=0, y=241"),
    ],
    ids=["empty", "no-events", "cut-off", "x-outside", "y-outside"],
)
def test_bad_files_name_file_and_offset(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "00001.bin"
    path.write_bytes(data)
    with pytest.raises(DataError, match=message):
        read_nmnist(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*nowhere\.bin"):
        read_nmnist(tmp_path / "nowhere.bin")


@pytest.mark.parametrize(("field", "value"), [("t", 2**23), ("t", -1), ("x", 256), ("y", 240), ("p", 2)])
def test_values_the_format_cannot_hold(field: str, value: int) -> None:
    events = make_events([1, 2], [3, 4], [5, 6], [0, 1])
    events[field][1] = value
    with pytest.raises(ArgumentError, match=rf"events\['{field}'\] must lie in .* event 1 has {value}"):
        encode_nmnist(events)


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.bin"
    write_nmnist(path, make_events([1], [2], [3], [0]))
    before = path.read_bytes()

    def disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", disk_full)
    with pytest.raises(StorageError, match=r"cannot write .*a\.bin: .*No space left"):
        write_nmnist(path, make_events([9, 9], [2, 2], [3, 3], [0, 1]))
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.bin"]


def test_make_events_wants_equal_lengths() -> None:
    with pytest.raises(ArgumentError, match="equal length"):
        make_events([1, 2], [1], [1], [1])
