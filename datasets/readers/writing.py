"""Events -> files: .npz, HDF5, N-MNIST's .bin, Prophesee EVT2 and DAT."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snn_core.datasets.hdf5 import write_hdf5
from snn_core.datasets.nmnist_format import encode_nmnist
from snn_core.errors import ArgumentError
from snn_core.files import atomic_path

FIELDS = ("t", "x", "y", "p")
SUFFIXES = {".npz": "npz", ".h5": "hdf5", ".hdf5": "hdf5", ".bin": "nmnist", ".raw": "evt2", ".dat": "dat"}
CHUNK_EVENTS = 1 << 16

Events = NDArray[Any]


def write_events(path: str | os.PathLike[str], events: Events, format: str | None = None) -> None:
    """Write events so that :func:`snn_core.datasets.read_events` gives them back, atomically.

    Args:
        path: the file to write.
        events: structured array with integer fields ``t x y p`` as :func:`read_events` gives it, in any order that
            the format can hold.
        format: "npz" (compressed arrays t x y p), "hdf5" (data sets t x y p in ``events``, compressed), "nmnist"
            (t below 2**23 us, x below 256, y below 240), "evt2" (t below 2**34 us, x and y below 2048) or "dat" (t
            below 2**32 us, x and y below 16384). By default by the path's suffix: .npz, .h5 or .hdf5, .bin, .raw, .dat.

    Raises:
        ArgumentError: an unknown format, other fields, or values that the format cannot hold.
        StorageError: the disk refuses; an earlier file of that name is intact.
    """
    suffix = Path(path).suffix.lower()
    chosen = format if format is not None else SUFFIXES.get(suffix)
    if chosen not in set(SUFFIXES.values()):
        raise ArgumentError(
            f"format must be one of {', '.join(sorted(set(SUFFIXES.values())))} (or follow from the suffix, one of "
            f"{', '.join(SUFFIXES)}), got format={format!r} and {os.fspath(path)!r}"
        )
    names = events.dtype.names or ()
    if (
        events.ndim != 1
        or not set(FIELDS) <= set(names)
        or any(events.dtype[name].kind not in "iub" for name in FIELDS)
    ):
        raise ArgumentError(f"events must be a one-dimensional array with integer fields t x y p, got {events.dtype}")
    if chosen == "hdf5":
        _check(events, "HDF5", t=1 << 62, x=1 << 15, y=1 << 15)
        write_hdf5(path, lambda file: _fill(file, events))
        return
    encode: dict[str, Callable[[Events], bytes]] = {"nmnist": encode_nmnist, "evt2": _encode_evt2, "dat": _encode_dat}
    data = encode[chosen](events) if chosen != "npz" else b""
    with atomic_path(path) as temporary:
        if chosen == "npz":
            _check(events, ".npz", t=1 << 62, x=1 << 15, y=1 << 15)
            with open(temporary, "wb") as output:
                np.savez_compressed(output, t=events["t"], x=events["x"], y=events["y"], p=events["p"])
        else:
            temporary.write_bytes(data)


def _check(events: Events, format: str, **limits: int) -> None:
    for name, limit in {**limits, "p": 2}.items():
        wrong = (events[name] < 0) | (events[name] >= limit)
        if wrong.any():
            index = int(wrong.argmax())
            raise ArgumentError(
                f"events[{name!r}] must lie in 0..{limit - 1} for {format}, but event {index} has {events[name][index]}"
            )


def _fill(file: Any, events: Events) -> None:
    group = file.create_group("events")
    for name in FIELDS:
        chunks = (max(min(CHUNK_EVENTS, len(events)), 1),)
        group.create_dataset(name, data=np.ascontiguousarray(events[name]), chunks=chunks, maxshape=(None,),
                             compression="gzip", compression_opts=1, shuffle=True)  # fmt: skip


def _columns(events: Events) -> list[NDArray[np.int64]]:
    return [events[name].astype(np.int64) for name in FIELDS]


def _encode_evt2(events: Events) -> bytes:
    _check(events, "EVT2", t=1 << 34, x=1 << 11, y=1 << 11)
    t, x, y, p = _columns(events)
    high = t >> 6
    renew = np.diff(high, prepend=-1) != 0
    place = np.arange(len(t)) + np.cumsum(renew)
    words = np.empty(len(t) + int(renew.sum()), np.int64)
    words[place] = p << 28 | (t & 0x3F) << 22 | x << 11 | y
    words[place[renew] - 1] = 8 << 28 | high[renew]
    size = (int(x.max(initial=0)) + 1, int(y.max(initial=0)) + 1)
    return f"% evt 2.0\n% geometry {size[0]}x{size[1]}\n% end\n".encode() + words.astype("<u4").tobytes()


def _encode_dat(events: Events) -> bytes:
    _check(events, "DAT", t=1 << 32, x=1 << 14, y=1 << 14)
    t, x, y, p = _columns(events)
    size = (int(x.max(initial=0)) + 1, int(y.max(initial=0)) + 1)
    header = f"% Data file containing CD events.\n% Version 2\n% Width {size[0]}\n% Height {size[1]}\n"
    body = np.stack([t, p << 28 | y << 14 | x], axis=1).astype("<u4")
    return header.encode() + b"\x0c\x08" + body.tobytes()
