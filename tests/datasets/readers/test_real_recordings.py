"""Every real recording in event_formats.zip: counts, times, coordinates and polarity against second readers.

Where a second reader cannot be a dependency of the tests (faery 0.7.1, aedat 2.3.0, event_stream 1.6.3), what it gave
stands here as a number: the sum of 7 t + 131 x + 1031 y + 17 p over all events, modulo 2**64.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import tonic.io
from scipy.io import loadmat

from snn_core.datasets import EVENT_DTYPE, event_file_info, iterate_event_chunks, read_events

#: file: format, events, times, x, y, ON events, and the sum above where a second reader gave it.
KNOWN = {
    "nmnist/sample_nmnist.bin": ("N-MNIST", 4325, (654, 311175), (0, 33), (0, 33), 2145, None),
    "ncars/sample_ncars.dat": ("Prophesee DAT, version 2", 2009, (0, 99952), (0, 77), (0, 41), 1350, 741359930),
    "es/dvs.es": ("Event Stream 2.0.0", 473225, (0, 999000), (0, 319), (0, 239), 270001, 1473339052789),
    "pokerdvs/trcl0.es": ("Event Stream 2.0.0", 2628, (0, 14727), (2, 29), (0, 30), 1927, 212030747),
    "evt2/evt2.raw": (
        "Prophesee EVT2", 521252, (913716224, 913812095), (0, 639), (0, 479), 185861, 3334326615559343,
    ),
    "evt3/evt3_sample.raw": ("Prophesee EVT3", 219596, (11718656, 11727457), (0, 1279), (0, 719), 115532, None),
    "aedat31_synthetic/aedat2_led.aedat": ("AEDAT-3.1", 18, (10, 2178812), (0, 127), (0, 127), 11, None),
    "aedat31_synthetic/aedat3_fluorescent.aedat": ("AEDAT-3.1", 5, (15, 1288), (15, 127), (17, 126), 4, None),
    "aedat2/DVS128-2017-03-21-short.aedat": (
        "AEDAT-2.0, DVS128", 130114, (113476330, 119657829), (0, 127), (0, 127), 74991, None,
    ),
    "mnistdvs_scale04/mnist_0_scale04_0001.aedat": (
        "AEDAT-2.0, DVS128", 15744, (0, 2210588), (1, 127), (0, 126), 7870, None,
    ),
    "atis_mat/example_data.mat": ("MATLAB 5, ATIS", 242040, (0, 2999577), (0, 303), (0, 239), 93516, None),
    "stmnist/sample_stmnist.mat": ("MATLAB 5, ST-MNIST", 2346, (196626, 895745), (2, 9), (3, 8), 1601, None),
}  # fmt: skip
FACTORS = {"t": 7, "x": 131, "y": 1031, "p": 17}
AEDAT4 = "aedat4/tonic_sample.aedat4"


def weighted_sum(events: np.ndarray) -> int:
    return sum(factor * int(events[name].astype(np.int64).sum()) for name, factor in FACTORS.items()) % 2**64


@pytest.mark.parametrize("name", KNOWN)
def test_counts_times_and_coordinates(event_formats: Path, name: str) -> None:
    form, num, t_range, x_range, y_range, num_on, known_sum = KNOWN[name]
    info = event_file_info(event_formats / name)
    assert info.format.startswith(form)
    assert (info.num_events, info.t_range, info.x_range, info.y_range) == (num, t_range, x_range, y_range)
    assert info.num_on == num_on
    assert info.num_backwards == 0
    events = read_events(event_formats / name)
    assert events.dtype == EVENT_DTYPE
    assert len(events) == num
    if known_sum is not None:
        assert weighted_sum(events) == known_sum


def test_aedat4_as_aedat_and_faery_read_it(event_formats: Path) -> None:
    pytest.importorskip("lz4", reason="AEDAT-4's packets are compressed: pip install 'snn-core[aedat4]'")
    events = read_events(event_formats / AEDAT4)
    info = event_file_info(event_formats / AEDAT4)
    assert info.sensor_size == (320, 240)
    assert len(events) == 111954
    assert events[0].tolist() == (1605537493718345, 154, 204, 0)
    assert weighted_sum(events) == 3845815229733432792


def test_every_file_of_the_archive_is_read(event_formats: Path) -> None:
    files = [path for path in sorted(event_formats.rglob("*")) if path.is_file() and path.suffix != ".aedat4"]
    assert len(files) == 51
    for path in files:
        assert event_file_info(path).num_events > 0


@pytest.mark.parametrize(
    ("name", "encoding"),
    [("ncars/sample_ncars.dat", "dat"), ("evt2/evt2.raw", "evt2"), ("evt3/evt3_sample.raw", "evt3")],
)
def test_prophesee_equals_expelliarmus(event_formats: Path, name: str, encoding: str) -> None:
    from expelliarmus import Wizard

    theirs = Wizard(encoding=encoding).read(event_formats / name)
    ours = read_events(event_formats / name)
    for field in "xyp":
        np.testing.assert_array_equal(ours[field], theirs[field])
    if encoding != "evt3":  # there its times are wrong, see below
        np.testing.assert_array_equal(ours["t"], theirs["t"])


def test_evt3_times_are_those_of_the_time_words(event_formats: Path) -> None:
    """Word by word, as the format's description says; expelliarmus ends at 11772513 us, where no time word points."""
    path = event_formats / "evt3/evt3_sample.raw"
    words = np.frombuffer(path.read_bytes()[166:], "<u2")
    high = low = -1
    times = []
    for word in words.tolist():
        kind, value = word >> 12, word & 0xFFF
        if kind == 8:
            low = low if value == high else 0
            high = value
        elif kind == 6:
            low = value
        elif kind == 2:
            times.append(high << 12 | low)
        elif kind in (4, 5):
            times += [high << 12 | low] * (value & (0xFFF if kind == 4 else 0xFF)).bit_count()
    np.testing.assert_array_equal(read_events(path)["t"], times)


@pytest.mark.parametrize(
    "name", ["aedat2/DVS128-2017-03-21-short.aedat", "mnistdvs_scale04/mnist_0_scale04_0007.aedat"]
)
def test_aedat2_equals_tonics_addresses_as_jaer_reads_them(event_formats: Path, name: str) -> None:
    path = str(event_formats / name)
    version, start, _ = tonic.io.read_aedat_header_from_file(path)
    raw = tonic.io.get_aer_events_from_file(path, version, start)
    address = raw["address"].astype(np.int64)
    events = read_events(path)
    np.testing.assert_array_equal(events["t"], raw["timeStamp"])
    np.testing.assert_array_equal(events["x"], 127 - (address >> 1 & 0x7F))
    np.testing.assert_array_equal(events["y"], 127 - (address >> 8 & 0x7F))
    np.testing.assert_array_equal(events["p"], 1 - (address & 1))


@pytest.mark.parametrize("name", ["aedat2_led.aedat", "aedat3_fluorescent.aedat"])
def test_aedat3_equals_tonic(event_formats: Path, name: str) -> None:
    path = str(event_formats / "aedat31_synthetic" / name)
    version, start, _ = tonic.io.read_aedat_header_from_file(path)
    raw = tonic.io.get_aer_events_from_file(path, version, start)
    events = read_events(path)
    np.testing.assert_array_equal(events["t"], raw["timeStamp"])
    np.testing.assert_array_equal(events["x"], raw["address"] >> 17)
    np.testing.assert_array_equal(events["y"], raw["address"] >> 2 & 0x7FFF)
    np.testing.assert_array_equal(events["p"], raw["address"] >> 1 & 1)


def test_nmnist_equals_tonic(event_formats: Path) -> None:
    dtype = np.dtype([("x", int), ("y", int), ("t", int), ("p", int)])
    for path in sorted(event_formats.glob("nmnist/**/*.bin")):
        theirs = tonic.io.read_mnist_file(str(path), dtype)
        ours = read_events(path)
        for field in "txyp":
            np.testing.assert_array_equal(ours[field], theirs[field])


def test_atis_coordinates_count_from_zero(event_formats: Path) -> None:
    path = event_formats / "atis_mat/example_data.mat"
    table = loadmat(path)["TD"][0, 0]
    assert (table["x"].min(), table["y"].min()) == (1, 1)
    events = read_events(path)
    np.testing.assert_array_equal(events["x"], table["x"].ravel().astype(int) - 1)
    np.testing.assert_array_equal(events["y"], table["y"].ravel().astype(int) - 1)
    np.testing.assert_array_equal(events["t"], table["ts"].ravel())
    np.testing.assert_array_equal(events["p"], table["p"].ravel())


def test_stmnist_equals_its_table(event_formats: Path) -> None:
    path = event_formats / "stmnist/sample_stmnist.mat"
    table = loadmat(path)["spiketrain"]
    expected = [
        (round(table[100, column] * 1e6), int(row % 10), int(row // 10), int(table[row, column] > 0))
        for column in range(table.shape[1])
        for row in np.flatnonzero(table[:100, column])
    ]
    assert read_events(path).tolist() == expected


def test_nmnist_850_is_told_by_content(nmnist_zip: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(nmnist_zip) as archive:
        names = [name for name in archive.namelist() if name.endswith(".bin")]
        for name in names[::50]:
            path = tmp_path / "recording"
            path.write_bytes(archive.read(name))
            assert event_file_info(path).format.startswith("N-MNIST")


@pytest.mark.parametrize("name", ["es/dvs.es", "evt3/evt3_sample.raw", "mnistdvs_scale04/mnist_0_scale04_0001.aedat"])
def test_chunks_are_the_whole(event_formats: Path, name: str) -> None:
    whole = read_events(event_formats / name)
    chunks = list(iterate_event_chunks(event_formats / name, 7777))
    assert {len(chunk) for chunk in chunks[:-1]} == {7777}
    np.testing.assert_array_equal(np.concatenate(chunks), whole)
