"""Readers on files made byte by byte: every format, its traps, streaming, and what is refused."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path

import event_samples as make
import h5py
import numpy as np
import pytest
from fuzz_readers import fuzz
from scipy.io import savemat

from snn_core.datasets import EVENT_DTYPE, event_file_info, iterate_event_chunks, make_events, read_events
from snn_core.datasets.readers import arrays, event_file, library, reading
from snn_core.errors import ArgumentError, DataError

SAMPLES = make.make_samples()


def read(tmp_path: Path, data: bytes) -> np.ndarray:
    path = tmp_path / "file"
    path.write_bytes(data)
    return read_events(path)


@pytest.mark.parametrize("name", SAMPLES)
def test_every_format_by_content(tmp_path: Path, name: str) -> None:
    events = read(tmp_path, SAMPLES[name].data)
    assert events.dtype == EVENT_DTYPE
    np.testing.assert_array_equal(events, SAMPLES[name].events)


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("block", [48, 160])
def test_blocks_and_chunks_give_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, block: int
) -> None:
    """Blocks that end anywhere: between an event's words, inside an .es event."""
    monkeypatch.setattr(event_file, "BLOCK_BYTES", block)
    monkeypatch.setattr(arrays, "BLOCK_BYTES", block)
    path = tmp_path / "file"
    path.write_bytes(SAMPLES[name].data)
    chunks = list(iterate_event_chunks(path, 33))
    assert [len(chunk) for chunk in chunks] == [33] * 6 + [2]
    np.testing.assert_array_equal(np.concatenate(chunks), SAMPLES[name].events)
    assert event_file_info(path).num_events == 200


@pytest.mark.parametrize("name", SAMPLES)
def test_fuzz(tmp_path: Path, name: str) -> None:
    outcomes = fuzz(name, 150, tmp_path, seed=1, seconds=4)
    assert outcomes["refused"] > 0


@pytest.mark.parametrize("name", ["aedat2", "aedat2-davis", "aedat3", "aedat4", "dat", "evt2", "evt3", "es", "nmnist"])
def test_a_cut_off_file_is_refused_with_its_offset(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"file: .*offset \d+"):
        read(tmp_path, SAMPLES[name].data[:-1])


@pytest.mark.parametrize("compression", [1, 2, 3, 4])
def test_aedat4_compressions(tmp_path: Path, compression: int) -> None:
    pytest.importorskip("lz4" if compression < 3 else "zstandard", reason="pip install 'snn-core[aedat4]'")
    events = SAMPLES["aedat4"].events
    np.testing.assert_array_equal(read(tmp_path, make.aedat4(events, compression)), events)


@pytest.mark.parametrize("compression", [1, 3])
def test_aedat4_packet_that_unpacks_to_too_much(tmp_path: Path, compression: int) -> None:
    pytest.importorskip("lz4" if compression < 3 else "zstandard", reason="pip install 'snn-core[aedat4]'")
    if compression == 1:
        import lz4.frame

        bomb = lz4.frame.compress(bytes(1 << 28))
    else:
        import zstandard

        bomb = zstandard.ZstdCompressor().compress(bytes(1 << 28))
    with pytest.raises(
        DataError, match=r"offset \d+: a packet that unpacks to more than 67108864 bytes|cannot be unpacked"
    ):
        read(tmp_path, make.aedat4_header(compression) + make.aedat4_packet(bomb))


def test_aedat2_traps(tmp_path: Path) -> None:
    """External events are left out, times run over, and events may begin as a header line does."""
    events = make_events([4294967290, 4294967296 + 5], [3, 4], [127 - 0x23, 5], [1, 0])
    external = struct.pack(">II", 0x8000, 4294967295)
    data = make.aedat2(events)
    first = len(data) - 16
    found = read(tmp_path, data[: first + 8] + external + data[first + 8 :])
    np.testing.assert_array_equal(found, events)
    # Row 140 in the address makes its first byte 0x23, which is "#".
    davis = make.aedat2_davis(make_events([2, 9], [345, 0], [259 - 0x23 * 4, 0], [0, 1]))
    davis = davis.replace(b"#End Of ASCII Header\r\n", b"")
    assert davis[-16:-15] == b"#"
    assert read(tmp_path, davis).tolist() == [(2, 345, 259 - 140, 0), (9, 0, 0, 1)]


def test_aedat3_overflow_and_invalid_events(tmp_path: Path) -> None:
    events = make_events([5, 9], [1, 127], [2, 126], [1, 0])
    later = make.aedat3_packet(events, overflow=2)
    invalid = make.aedat3_packet(events, valid=0, bit=0)
    unmarked = make.aedat3_packet(events, valid=2, bit=0)
    found = read(tmp_path, make.AEDAT3_HEADER + later + invalid + unmarked)
    assert found["t"].tolist() == [(2 << 31) + 5, (2 << 31) + 9, 5, 9]
    assert found["x"].tolist() == [1, 127, 1, 127]


def test_aedat3_of_many_small_packets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_BLOCKS", 7)
    events = SAMPLES["aedat3"].events
    data = make.aedat3(events, packet=1) + make.aedat3_packet(events[:0])
    np.testing.assert_array_equal(read(tmp_path, data), events)


@pytest.mark.parametrize("version", [1, 2])
def test_dat_versions_and_time_that_runs_over(tmp_path: Path, version: int) -> None:
    events = make_events([4294967290, 4294967296 + 3], [300, 2], [100, 200], [1, 0])
    np.testing.assert_array_equal(read(tmp_path, make.dat(events, version)), events)


def test_evt3_time_runs_over(tmp_path: Path) -> None:
    events = make_events(
        [(1 << 24) - 3, (1 << 24) + 8, (1 << 25) - 5000, (1 << 25) + 1], [1, 2, 3, 4], [5, 6, 7, 8], [1, 0, 1, 0]
    )
    stream = make.evt3(events)
    quiet = np.array([0x8000 | high for high in range(1, 4096, 7)], "<u2").tobytes()
    at = stream.index(struct.pack("<H", 0x8000 | (events["t"][2] >> 12) & 0xFFF))
    found = read(tmp_path, stream[:at] + quiet + stream[at:])
    np.testing.assert_array_equal(found, events)


def test_evt2_time_runs_over(tmp_path: Path) -> None:
    events = make_events([(1 << 34) - 3, (1 << 34) + 8], [1, 2], [5, 6], [1, 0])
    np.testing.assert_array_equal(read(tmp_path, make.evt2(events)), events)


def test_prophesee_geometry_is_checked(tmp_path: Path) -> None:
    events = make_events([5], [64], [5], [1])
    with pytest.raises(DataError, match=r"at offset \d+: an event at x=64, y=5, outside the 64 x 48 sensor"):
        read(tmp_path, make.evt2(events, b"% evt 2.0\n% geometry 64x48\n% end\n"))
    with pytest.raises(DataError, match=r"EVT 2\.1; read are 2\.0 and 3\.0"):
        read(tmp_path, make.evt2(events, b"% evt 2.1\n% end\n"))


def test_es_resets_are_skipped_and_y_is_turned(tmp_path: Path) -> None:
    data = make.es(make_events([2, 300], [1, 2], [0, 47], [1, 0]))
    assert struct.unpack("<HH", data[21:25]) == (1, 47)
    found = read(tmp_path, data[:25] + b"\xfe" + data[25:] + b"\xff\xfe")
    assert found.tolist() == [(2, 1, 0, 1), (300, 2, 47, 0)]


@pytest.mark.parametrize("kind", [0, 2, 4, 9])
def test_es_of_other_events_is_refused(tmp_path: Path, kind: int) -> None:
    data = bytearray(SAMPLES["es"].data)
    data[15] = kind
    with pytest.raises(DataError, match=rf"offset 15: events of type {kind}"):
        read(tmp_path, bytes(data))


def saved(**columns: object) -> bytes:
    output = io.BytesIO()
    np.savez(output, **columns)  # type: ignore[arg-type]
    return output.getvalue()


def test_numpy_columns_of_any_type(tmp_path: Path) -> None:
    expected = [(5, 1, 2, 1), (7, 3, 4, 0)]
    plain = {"t": np.array([5, 7], np.uint64), "x": np.array([1.0, 3.0]), "y": np.array([2, 4], np.uint8)}
    for p in (np.array([1, 0], bool), np.array([1, -1], np.int8), np.array([1.0, 0.0], np.float32)):
        assert read(tmp_path, saved(**plain, p=p)).tolist() == expected
    assert read(tmp_path, saved(ts=[5, 7], X=[1, 3], y_pos=[2, 4], polarity=[1, 0])).tolist() == expected
    table = np.array(expected, [("t", ">u4"), ("x", "<u2"), ("y", "<u2"), ("p", "?")])
    assert read(tmp_path, make.npy(table)).tolist() == expected
    assert read(tmp_path, saved(events=table)).tolist() == expected
    assert len(read(tmp_path, make.npy(table[:0]))) == 0


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"t": [0.5, 0.75]}, r"t must be a whole number .* \(in microseconds\), but event 0 has 0\.5"),
        ({"t": [np.nan, 1.0]}, "event 0 has nan"),
        ({"x": [1, 40000]}, r"x must be a whole number of 0\.\.32767, but event 1 has 40000"),
        ({"y": [-1, 0]}, "event 0 has -1"),
        ({"p": [1, 2]}, "p must be .* but event 1 has 2"),
        ({"p": ["on", "off"]}, "p must hold whole numbers"),
        ({"t": [1, 2, 3]}, "of equal length"),
    ],
    ids=["seconds", "nan", "x-large", "y-negative", "p-two", "text", "lengths"],
)
def test_numpy_columns_that_are_unclear(tmp_path: Path, columns: dict[str, list], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, saved(**{"t": [1, 2], "x": [0, 0], "y": [0, 0], "p": [0, 1]} | columns))


def test_numpy_array_without_names_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"order of its columns is anyone's guess"):
        read(tmp_path, make.npy(np.zeros((10, 4))))


def test_numpy_headers_that_lie(tmp_path: Path) -> None:
    data = SAMPLES["npy"].data
    for shape in (b"(999,), }", b"(2000000000000,), }", b"(True,), }"):
        lying = data.replace(b"(200,), }".ljust(len(shape)), shape)
        assert len(lying) == len(data)
        with pytest.raises(DataError, match=r"announces \d+ bytes but has 2792|damaged header"):
            read(tmp_path, lying)
    pickled = io.BytesIO()
    np.save(pickled, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="expected one dimension of numbers"):
        read(tmp_path, pickled.getvalue())


def test_npz_bomb(tmp_path: Path) -> None:
    output = io.BytesIO()
    zeros = np.zeros(2**22, np.int64)
    np.savez_compressed(output, t=zeros, x=zeros, y=zeros, p=zeros)
    with pytest.raises(DataError, match=r"more than the \d+ this file may unpack to"):
        read(tmp_path, output.getvalue())


@pytest.fixture
def hdf5(tmp_path: Path) -> Path:
    return tmp_path / "file"


def test_hdf5_layouts(hdf5: Path) -> None:
    expected = [(5, 1, 2, 1), (7, 3, 4, 0)]
    table = np.array(expected, EVENT_DTYPE)
    for place in ("", "events/", "CD/events/"):
        with h5py.File(hdf5, "w") as file:
            for name in "txyp":
                file[place + name] = table[name]
        assert read_events(hdf5).tolist() == expected
    for place in ("events", "CD/events"):
        with h5py.File(hdf5, "w", userblock_size=512) as file:
            file[place] = table
        assert read_events(hdf5).tolist() == expected
    with h5py.File(hdf5, "w") as file:
        for name in "txyp":
            file[name] = table[name][:0]
    assert len(read_events(hdf5)) == 0


def test_hdf5_that_points_into_other_files(hdf5: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(64))
    with h5py.File(hdf5, "w") as file:
        for name in "xyp":
            file[name] = np.zeros(8, np.int8)
        file.create_dataset("t", (8,), "<i8", external=[(os.fspath(secret), 0, 64)])
    with pytest.raises(DataError, match="the data of t lie in another file"):
        read_events(hdf5)
    with h5py.File(hdf5, "w") as file:
        file["events"] = h5py.ExternalLink(os.fspath(secret), "/")
    with pytest.raises(DataError, match="events is a link to another file"):
        read_events(hdf5)


def test_hdf5_that_needs_too_much_memory(hdf5: Path) -> None:
    with h5py.File(hdf5, "w") as file:
        for name in "txyp":  # one chunk of 8 GB, a few kilobytes when compressed
            file.create_dataset(name, (2**30 - 1,), "<i4", chunks=(2**30 - 1,), compression="gzip", fillvalue=0)
            file[name].id.write_direct_chunk((0,), b"x" * 100)
    with pytest.raises(DataError, match=r"offset 0: it cannot be read"):
        read_events(hdf5)


def test_a_library_that_hangs_is_ended(hdf5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hung, crashed = tmp_path / "hung.py", tmp_path / "crashed.py"
    hung.write_text("import time; time.sleep(60)")
    crashed.write_text("import os; os.abort()")
    hdf5.write_bytes(SAMPLES["hdf5"].data)
    monkeypatch.setattr(library, "_idle", {})
    monkeypatch.setattr(library, "SECONDS", 0.5)
    monkeypatch.setattr(library, "WORKER", hung)
    with pytest.raises(DataError, match="still reading"):
        read_events(hdf5)
    monkeypatch.setattr(library, "SECONDS", 30.0)
    monkeypatch.setattr(library, "WORKER", crashed)
    with pytest.raises(DataError, match="the library crashed on it"):
        read_events(hdf5)


def test_two_hdf5_files_at_once_and_one_left_half_read(tmp_path: Path) -> None:
    paths = []
    for index in (1, 2):
        path = tmp_path / f"file{index}"
        path.write_bytes(make.hdf5(make.some_events(140_000, 64, 48, seed=index)))
        paths.append(path)
    first, second = (iterate_event_chunks(path, 50_000) for path in paths)
    a, b = next(first), next(second)
    assert (a["x"] != b["x"]).any()
    del first
    rest = np.concatenate([b, *second])
    np.testing.assert_array_equal(rest, make.some_events(140_000, 64, 48, seed=2))
    np.testing.assert_array_equal(read_events(paths[0]), make.some_events(140_000, 64, 48, seed=1))


def test_mat_polarities(tmp_path: Path) -> None:
    """0 and 1, -1 and 1, and Orchard's 1 and 2."""
    for p in ([0, 1], [-1, 1], [1, 2]):
        output = io.BytesIO()
        savemat(output, {"TD": {"x": [1, 3], "y": [2, 4], "ts": [5, 6], "p": p}})
        assert read(tmp_path, output.getvalue()).tolist() == [(5, 0, 1, 0), (6, 2, 3, 1)]


def test_mat_without_events(tmp_path: Path) -> None:
    output = io.BytesIO()
    savemat(output, {"other": np.zeros(3)})
    with pytest.raises(DataError, match="neither an ATIS structure of x y p ts nor ST-MNIST's spiketrain, but other"):
        read(tmp_path, output.getvalue())
    output = io.BytesIO()
    savemat(output, {"TD": {"x": [0, 1], "y": [1, 1], "ts": [1, 2], "p": [0, 1]}})
    with pytest.raises(DataError, match=r"x must be a whole number of 1\.\.32767, but event 0 has 0"):
        read(tmp_path, output.getvalue())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "offset 0: the file is empty"),
        (b"hello world", r"no known event format: it begins with b'hello world'\. Read are N-MNIST"),
        (b"#!AER-DAT5.0\r\n", "'#!AER-DAT5.0' is not read"),
        (bytes(range(255, 0, -1)) * 5, "no known event format"),
    ],
    ids=["empty", "text", "aedat5", "bytes"],
)
def test_unknown_content(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, data)


def test_missing_files_and_bad_chunks(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*nowhere: no such file"):
        read_events(tmp_path / "nowhere")
    with pytest.raises(DataError, match="a folder, not a file"):
        read_events(tmp_path)
    with pytest.raises(ArgumentError, match="chunk must be"):
        iterate_event_chunks(tmp_path / "nowhere", 0)
