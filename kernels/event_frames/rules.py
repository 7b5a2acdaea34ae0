"""How a recording is cut into frames, in the conventions of tonic and SpikingJelly."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from snn_core.errors import ArgumentError
from snn_core.kernels.event_frames.layout import time_at
from snn_core.kernels.event_frames.schema import EQUAL_COUNT, EQUAL_TIME, TIME_FROM

Number = int | None
BY_NAME = {"n_time_bins": EQUAL_TIME, "n_event_bins": EQUAL_COUNT, "time_window": TIME_FROM}
CONVENTIONS = ("tonic", "spikingjelly")
DTYPES = (np.dtype(np.uint8), np.dtype(np.int16), np.dtype(np.int32))
#: Frames that one recording may be cut into by a time window: damaged time stamps would ask for any number.
MAX_WINDOWS = 2**20


class Cut(NamedTuple):
    """The operator's ``by``, ``start``, ``step`` and ``rest``, see schema.py."""

    by: int
    start: int
    step: int
    rest: bool


@dataclass(frozen=True)
class Rule:
    """``name``: the argument that was given, ``number`` its value."""

    name: str
    number: int
    convention: str
    include_incomplete: bool

    @property
    def by(self) -> int:
        """As of the operator, for a whole recording."""
        return BY_NAME[self.name]

    @property
    def rest(self) -> bool:
        """Whether the last frame takes all events behind it."""
        return self.convention == "spikingjelly"

    def window_count(self, span: int) -> int:
        """Frames of a recording whose last event comes ``span`` microseconds after the first, for ``time_window``."""
        incomplete = (self.rest or self.include_incomplete) and span % self.number
        return max(1, span // self.number + (1 if incomplete else 0))

    def cut(self, events: NDArray[Any]) -> tuple[int, Cut]:
        """Number of frames of a recording, and its cut.

        Raises:
            ArgumentError: more than MAX_WINDOWS frames.
        """
        if self.name != "time_window":
            return self.number, Cut(self.by, 0, 0, self.rest)
        if len(events) == 0:
            return 1, Cut(self.by, 0, self.number, self.rest)
        start, last = time_at(events, 0), time_at(events, -1)
        # Time stamps that go backwards are found where events are counted.
        count = self.window_count(max(0, last - start))
        if count > MAX_WINDOWS:
            raise ArgumentError(
                f"time_window={self.number} us cuts a recording of {last - start} us into {count} frames; at most "
                f"{MAX_WINDOWS} are made at once (EventFramer makes any number)"
            )
        return count, Cut(self.by, start, self.number, self.rest)


def rule_of(
    n_time_bins: int | None,
    n_event_bins: int | None,
    time_window: int | None,
    convention: str,
    include_incomplete: bool,
) -> Rule:
    """The rule that the arguments of a public function describe.

    Raises:
        ArgumentError: not exactly one of the three numbers, one below 1, an unknown convention.
    """
    try:
        return _remembered_rule(n_time_bins, n_event_bins, time_window, convention, include_incomplete)
    except TypeError:  # an argument that cannot be hashed
        return _rule_of(n_time_bins, n_event_bins, time_window, convention, include_incomplete)


def _rule_of(
    n_time_bins: int | None,
    n_event_bins: int | None,
    time_window: int | None,
    convention: str,
    include_incomplete: bool,
) -> Rule:
    given = [
        (name, number)
        for name, number in (
            ("n_time_bins", n_time_bins),
            ("n_event_bins", n_event_bins),
            ("time_window", time_window),
        )
        if number is not None
    ]
    if len(given) != 1:
        raise ArgumentError(
            "give exactly one of n_time_bins, n_event_bins and time_window, got "
            f"n_time_bins={n_time_bins}, n_event_bins={n_event_bins}, time_window={time_window}"
        )
    name, number = given[0]
    if isinstance(number, bool) or not isinstance(number, (int, np.integer)) or not 1 <= number < 2**63:
        raise ArgumentError(f"{name} must be an integer of at least 1, got {number!r}")
    if convention not in CONVENTIONS:
        raise ArgumentError(f"convention must be one of {', '.join(CONVENTIONS)}, got {convention!r}")
    if include_incomplete and (name != "time_window" or convention != "tonic"):
        raise ArgumentError("include_incomplete is for time_window in tonic's convention alone")
    return Rule(name, int(number), convention, bool(include_incomplete))


# Recordings are short and many: a call costs as much as the counting of some thousand events. ``typed``: True is no 1.
_remembered_rule = functools.lru_cache(maxsize=256, typed=True)(_rule_of)


def checked_sensor_size(sensor_size: tuple[int, int, int]) -> tuple[int, int]:
    """Width and height.

    Raises:
        ArgumentError: not (width, height, 2) with both at least 1.
    """
    if len(sensor_size) != 3 or sensor_size[0] < 1 or sensor_size[1] < 1 or sensor_size[2] != 2:
        raise ArgumentError(f"sensor_size must be (width, height, 2), got {sensor_size!r}")
    return int(sensor_size[0]), int(sensor_size[1])


def empty_frames(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Frames of zeros.

    Raises:
        ArgumentError: a dtype that is not allowed, or more than fits in memory.
    """
    if dtype is not np.uint8 and np.dtype(dtype) not in DTYPES:
        raise ArgumentError(f"dtype must be one of {', '.join(map(str, DTYPES))}, got {np.dtype(dtype)}")
    try:
        return np.zeros(shape, dtype)
    except (MemoryError, ValueError) as error:
        raise ArgumentError(f"frames of shape {list(shape)} do not fit in memory: {error}") from error
