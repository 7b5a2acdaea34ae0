"""Structured arrays of events as the bytes that the native kernel reads, without a copy where they lie in memory."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snn_core.errors import ArgumentError

FIELDS = ("t", "x", "y", "p")
#: Order as in enum IntegerType of event_counter.h; a boolean is a byte.
INTEGER_TYPES = ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8")


@functools.lru_cache(maxsize=256)
def fields_of(dtype: np.dtype[Any]) -> tuple[int, ...] | None:
    """Offset and number of the integer type of t, x, y and p, in this order; None where one has a foreign byte order.

    Raises:
        ArgumentError: a field is missing or holds no integers.
    """
    if dtype.names is None or dtype.fields is None or not set(FIELDS) <= set(dtype.names):
        raise ArgumentError(f"events must be a structured array with fields t, x, y, p, got {dtype.names or dtype}")
    numbers: list[int] = []
    for name in FIELDS:
        field, offset = dtype.fields[name][:2]
        if field.kind not in ("iub" if name == "p" else "iu"):
            raise ArgumentError(f"events[{name!r}] must hold integers, got {field}")
        numbers += [offset, INTEGER_TYPES.index("u1" if field.kind == "b" else f"{field.kind}{field.itemsize}")]
    native = all(dtype.fields[name][0].isnative for name in FIELDS)
    return tuple(numbers) if native else None


@functools.lru_cache(maxsize=256)
def fields_tensor(dtype: np.dtype[Any]) -> Tensor:
    """:func:`fields_of` as the operator takes it, int64 [1, 8]."""
    return torch.tensor([fields_of(dtype)])


def checked_events(events: Any, name: str = "events") -> NDArray[Any]:
    """``events`` as a one-dimensional structured array whose fields the kernel can read; copied only where their byte
    order is not the machine's.

    Raises:
        ArgumentError: another kind of array, or one without the four integer fields.
    """
    if not isinstance(events, np.ndarray) or events.ndim != 1:
        shape = list(events.shape) if isinstance(events, np.ndarray) else type(events).__name__
        raise ArgumentError(f"{name} must be a one-dimensional structured array with fields t, x, y, p, got {shape}")
    if fields_of(events.dtype) is None:
        return events.astype(events.dtype.newbyteorder("="))
    return events


def time_at(events: NDArray[Any], index: int) -> int:
    """``t`` of an event; unsigned ones beyond 2**63 wrap, as where events are counted."""
    return int(events["t"][index].astype(np.int64))


class _Bytes:
    """Memory of an array under another description; keeps the array alive."""

    def __init__(self, array: NDArray[Any]) -> None:
        # The memory is only read, but torch takes none that is marked so.
        self.__array_interface__ = {
            "version": 3,
            "typestr": "|u1",
            "shape": (len(array), array.dtype.itemsize),
            "strides": (array.strides[0], 1),
            "data": (array.ctypes.data, False),
        }
        self.array = array


def bytes_of(events: NDArray[Any]) -> Tensor:
    """uint8 [number of events, bytes of an event], a view; a copy only where the array runs backwards in memory."""
    flags = events.flags
    if flags.c_contiguous and flags.writeable and not events.dtype.hasobject:
        return torch.from_numpy(events.view(np.uint8).reshape(len(events), events.dtype.itemsize))
    if events.strides[0] < 0:  # torch has no negative strides
        return bytes_of(events.copy())
    return torch.from_numpy(np.asarray(_Bytes(events)))
