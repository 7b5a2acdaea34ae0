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
    """Lists recordings, hashes their content, and reads them one by one.

    Attributes:
        name: of the data set; contains "simulated" where the recordings are.
        simulated: whether they come from a simulated sensor.
        sensor_size: (W, H, polarities), polarities 2, or 1 where events have none.
        class_names: in the order of the labels.
    """

    name: str
    simulated: bool
    sensor_size: tuple[int, int, int]
    class_names: tuple[str, ...]

    def recordings(self, split: str) -> list[Recording]:
        """Recordings of "train", "test" or "all", in a fixed order. DataError when the split is not there."""

    def content_hash(self, split: str) -> str:
        """SHA-256 (hex) that changes whenever which recordings the split has, their labels or their events may change:
        frame caches are found by it, so it covers every option with which the source was opened."""

    def read(self, recordings: Sequence[Recording]) -> Iterator[NDArray[np.void]]:
        """Events (EVENT_DTYPE) of each recording, lazily, in the given order, and the same whichever are asked for
        together: an interrupted build asks for the rest."""


def check_split(split: str) -> str:
    """``split`` itself; ArgumentError when it is none of "train", "test", "all"."""
    if split not in SPLITS:
        raise ArgumentError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    return split
