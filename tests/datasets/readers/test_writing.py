"""What write_events writes, read_events gives back; what a format cannot hold is refused."""

from __future__ import annotations

from pathlib import Path

import event_samples as make
import numpy as np
import pytest

from snn_core.datasets import EVENT_DTYPE, event_file_info, make_events, read_events, write_events
from snn_core.errors import ArgumentError

SUFFIXES = [".npz", ".h5", ".hdf5", ".bin", ".raw", ".dat"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_round_trip(tmp_path: Path, suffix: str) -> None:
    events = make.some_events(3000, 200, 180, step=500)
    write_events(tmp_path / f"a{suffix}", events)
    np.testing.assert_array_equal(read_events(tmp_path / f"a{suffix}"), events)


@pytest.mark.parametrize("suffix", [".npz", ".h5", ".raw", ".dat"])
def test_unsorted_and_empty(tmp_path: Path, suffix: str) -> None:
    events = make.some_events(300, 200, 180)[::-1].copy()
    write_events(tmp_path / f"a{suffix}", events)
    np.testing.assert_array_equal(read_events(tmp_path / f"a{suffix}"), events)
    assert event_file_info(tmp_path / f"a{suffix}").num_backwards > 250
    write_events(tmp_path / f"b{suffix}", events[:0])
    assert len(read_events(tmp_path / f"b{suffix}")) == 0


def test_another_layout_and_a_named_format(tmp_path: Path) -> None:
    events = make_events([5, 6], [1, 2], [3, 4], [1, 0])
    other = events.astype([("p", "?"), ("x", "<u2"), ("y", "<u2"), ("t", "<u4")])
    for name in "txyp":
        other[name] = events[name]
    write_events(tmp_path / "a.anything", other, "evt2")
    assert event_file_info(tmp_path / "a.anything").format == "Prophesee EVT2"
    np.testing.assert_array_equal(read_events(tmp_path / "a.anything"), events)


def test_hdf5_is_read_by_h5py(tmp_path: Path) -> None:
    import h5py

    events = make.some_events(100, 64, 48)
    write_events(tmp_path / "a.h5", events)
    with h5py.File(tmp_path / "a.h5") as file:
        for name in "txyp":
            np.testing.assert_array_equal(file["events"][name], events[name])


@pytest.mark.parametrize(
    ("suffix", "field", "value"),
    [
        (".npz", "x", -1), (".h5", "t", -5), (".bin", "t", 2**23), (".bin", "y", 240), (".raw", "t", 2**34),
        (".raw", "x", 2048), (".dat", "t", 2**32), (".dat", "y", 2**14), (".dat", "p", 2), (".raw", "p", -1),
    ],
)  # fmt: skip
def test_what_a_format_cannot_hold(tmp_path: Path, suffix: str, field: str, value: int) -> None:
    events = make_events([1, 2], [3, 4], [5, 6], [0, 1])
    events[field][1] = value
    with pytest.raises(ArgumentError, match=rf"events\['{field}'\] must lie in .* event 1 has {value}"):
        write_events(tmp_path / f"a{suffix}", events)
    assert list(tmp_path.iterdir()) == []


def test_unknown_formats_and_fields(tmp_path: Path) -> None:
    events = np.zeros(2, EVENT_DTYPE)
    with pytest.raises(ArgumentError, match=r"format must be one of .*got format=None and .*a\.xyz"):
        write_events(tmp_path / "a.xyz", events)
    with pytest.raises(ArgumentError, match="integer fields t x y p"):
        write_events(tmp_path / "a.npz", events.astype([("t", "f8"), ("x", "i2"), ("y", "i2"), ("p", "i1")]))
