"""What a source of recordings offers, whatever it is stored in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from snn_core.errors import ArgumentError

SPLITS = ("train", "test", "all")


@dataclass(frozen=True)
class Recording:
    """One recording: ``id`` unique in its source, ``label`` 0 .. num_classes - 1, ``key`` the source's own handle."""

    id: str
    label: int
    key: Any


class EventSource(Protocol):
    """Lists recordings, hashes their content, and reads them one by one."""

    name: str
    simulated: bool
    sensor_size: tuple[int, int, int]
    class_names: tuple[str, ...]

    def recordings(self, split: str) -> list[Recording]:
        """Recordings of "train", "test" or "all", in a fixed order. DataError when the split is not there."""

    def content_hash(self, split: str) -> str:
        """SHA-256 (hex) that changes whenever the events of that split may change."""

    def read(self, recordings: Sequence[Recording]) -> Iterator[NDArray[np.void]]:
        """Events (EVENT_DTYPE) of each recording, lazily, in the given order, and the same whichever are asked for
        together: an interrupted build asks for the rest."""


def check_split(split: str) -> str:
    """``split`` itself; ArgumentError when it is none of "train", "test", "all"."""
    if split not in SPLITS:
        raise ArgumentError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    return split
