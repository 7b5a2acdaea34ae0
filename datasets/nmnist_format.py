"""N-MNIST's .bin format: 40 bits an event (Orchard et al. 2015, https://www.garrickorchard.com/datasets/n-mnist).

Bytes of an event: x; y; polarity in bit 7 (1 = ON) with bits 22..16 of the time stamp; bits 15..8; bits 7..0.
Time stamps are in microseconds and do not start at 0. An event with ``y == 240`` is no event but marks a time stamp
overflow: 2**13 us are added to every event after it, as in the official reader and in tonic's, to which tests compare.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from snn_core.datasets.events import EVENT_DTYPE
from snn_core.errors import ArgumentError, DataError
from snn_core.files import atomic_path

EVENT_BYTES = 5
OVERFLOW_Y = 240
OVERFLOW_MICROSECONDS = 2**13
MAX_TIMESTAMP = 2**23 - 1
SENSOR_SIZE = (34, 34, 2)


def decode_nmnist(
    data: bytes, name: str, sensor_size: tuple[int, int, int] = SENSOR_SIZE, *, base_offset: int = 0
) -> NDArray[np.void]:
    """Events of one recording from the bytes of its .bin file.

    Args:
        data: the file's content.
        name: what the file is called in error messages.
        sensor_size: (W, H, 2) that coordinates are checked against.
        base_offset: added to byte offsets in error messages, where ``data`` is a part of a file.

    Returns:
        EVENT_DTYPE array [num_events] in file order; ``t`` in microseconds as stored (not shifted to 0).

    Raises:
        DataError: no bytes, nothing but overflow markers, a size that is no multiple of 5, or coordinates outside the
            sensor; names file and offset.
    """
    if len(data) == 0:
        raise DataError(f"{name}: empty file (0 bytes), expected at least one 5-byte event")
    if len(data) % EVENT_BYTES:
        whole = len(data) // EVENT_BYTES * EVENT_BYTES
        raise DataError(
            f"{name}: {len(data)} bytes is no multiple of {EVENT_BYTES}; an incomplete event starts at "
            f"offset {base_offset + whole} (file cut off, or not an N-MNIST .bin)"
        )
    raw = np.frombuffer(data, np.uint8).reshape(-1, EVENT_BYTES)
    x, y, high, middle, low = (np.ascontiguousarray(raw[:, column]) for column in range(EVENT_BYTES))
    overflow = y == OVERFLOW_Y
    if overflow.all():
        raise DataError(f"{name}: no events, only {len(raw)} markers of a time stamp overflow")
    outside = ((x >= sensor_size[0]) | (y >= sensor_size[1])) & ~overflow
    if outside.any():
        index = int(outside.argmax())
        raise DataError(
            f"{name}: event {index} at offset {base_offset + index * EVENT_BYTES} has x={x[index]}, y={y[index]}, "
            f"outside the {sensor_size[0]} x {sensor_size[1]} sensor"
        )
    events = np.empty(len(raw), EVENT_DTYPE)
    t = (high & 0x7F).astype(np.int64) << 16 | middle.astype(np.int64) << 8 | low
    if overflow.any():
        t += np.cumsum(overflow) * OVERFLOW_MICROSECONDS
    events["t"], events["x"], events["y"], events["p"] = t, x, y, high >> 7
    return events[~overflow] if overflow.any() else events


def encode_nmnist(events: NDArray[np.void]) -> bytes:
    """Bytes of a .bin file that :func:`decode_nmnist` reads back to ``events`` (EVENT_DTYPE, [num_events]).

    Raises:
        ArgumentError: a time stamp outside 23 bits, a coordinate outside 8 bits or on the overflow marker, or a
            polarity other than 0 and 1.
    """
    for field, low, high in (("t", 0, MAX_TIMESTAMP), ("x", 0, 255), ("y", 0, OVERFLOW_Y - 1), ("p", 0, 1)):
        wrong = (events[field] < low) | (events[field] > high)
        if wrong.any():
            index = int(wrong.argmax())
            raise ArgumentError(
                f"events[{field!r}] must lie in {low}..{high} for N-MNIST's format, but event {index} has "
                f"{events[field][index]}"
            )
    t = events["t"]
    columns = (events["x"], events["y"], events["p"].astype(np.int64) << 7 | t >> 16, t >> 8 & 0xFF, t & 0xFF)
    return np.stack([column.astype(np.uint8) for column in columns], axis=1).tobytes()


def read_nmnist(path: str | os.PathLike[str], sensor_size: tuple[int, int, int] = SENSOR_SIZE) -> NDArray[np.void]:
    """Read one N-MNIST .bin file; see :func:`decode_nmnist` for result and errors.

    Raises:
        DataError: the file cannot be read, or its content is wrong.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    return decode_nmnist(data, str(path), sensor_size)


def write_nmnist(path: str | os.PathLike[str], events: NDArray[np.void]) -> None:
    """Write ``events`` as an N-MNIST .bin file, atomically.

    Raises:
        ArgumentError: values that the format cannot hold.
        StorageError: the disk refuses; an earlier file of that name is intact.
    """
    data = encode_nmnist(events)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
