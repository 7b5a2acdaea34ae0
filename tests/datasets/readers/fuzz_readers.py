"""Damage event files at random and read them: ``python fuzz_readers.py --cases 10000 [--format evt3]``.

Every case must end, in bounded time and memory, in events or in a DataError that names file and offset. The test suite
runs some hundred cases of each format (test_fuzz.py).
"""

from __future__ import annotations

import argparse
import random
import re
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from event_samples import make_samples

from snn_core.datasets import EVENT_DTYPE, read_events
from snn_core.errors import DataError

#: Longest a damaged file of a few kilobytes may take, and how much the memory of the process may grow over a format.
#: Generous, since machines stall; a hang takes for ever and a bomb gigabytes.
SECONDS, MEGABYTES = 60.0, 400
HEADER_BYTES = 200
EXTREMES = [bytes.fromhex(text) for text in ("ffffffff", "ffffff7f", "7fffffff", "00000080", "00" * 4, "ff" * 8)]


def damage(data: bytes, draw: random.Random) -> bytes:
    """One to three injuries."""
    for _ in range(draw.randint(1, 3)):
        data = draw.choice(INJURIES)(data, draw) or b"\0"
    return data


def _cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data))]


def _flip(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.randint(1, 8)):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _flip_header(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    changed[draw.randrange(min(len(changed), HEADER_BYTES))] = draw.randrange(256)
    return bytes(changed)


def _extreme(data: bytes, draw: random.Random) -> bytes:
    """A huge or negative number, most often in the header."""
    place = draw.randrange(min(len(data), HEADER_BYTES) if draw.random() < 0.7 else len(data))
    number = draw.choice(EXTREMES)
    return data[:place] + number + data[place + len(number) :]


def _number(data: bytes, draw: random.Random) -> bytes:
    """Another number in a header that is text."""
    found = list(re.finditer(rb"\d+", data[:2000]))
    if not found:
        return _flip_header(data, draw)
    match = draw.choice(found)
    number = draw.choice([b"0", b"-1", b"4294967296", b"99999999999999999999", b"1e9", b"7"])
    return data[: match.start()] + number + data[match.end() :]


def _insert(data: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(data))
    return data[:place] + draw.randbytes(draw.randint(1, 40)) + data[place:]


def _remove(data: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(data))
    return data[:place] + data[place + draw.randint(1, 40) :]


def _repeat(data: bytes, draw: random.Random) -> bytes:
    begin = draw.randrange(len(data))
    part = data[begin : begin + draw.randint(1, 500)]
    place = draw.randrange(len(data))
    return data[:place] + part * draw.randint(1, 5) + data[place:]


def _noise(data: bytes, draw: random.Random) -> bytes:
    """Nothing of the file left but its beginning."""
    kept = draw.randrange(min(len(data), HEADER_BYTES))
    return data[:kept] + draw.randbytes(draw.randint(0, 3000))


INJURIES = [_cut, _flip, _flip, _flip_header, _extreme, _extreme, _number, _insert, _remove, _repeat, _noise]


def fuzz(name: str, cases: int, folder: Path, *, seed: int = 0, seconds: float = float("inf")) -> Counter[str]:
    """Read ``cases`` damaged files of a format; how many were read, and how many refused.

    Raises:
        AssertionError: another exception than DataError, one that does not name file and offset, more events than
            the bytes can hold, too much time or memory.
    """
    sample = make_samples()[name].data
    outcomes: Counter[str] = Counter()
    path = folder / "damaged"  # no suffix: the format is told by content
    memory = _peak_megabytes()
    until = time.monotonic() + seconds
    for case in range(cases):
        if time.monotonic() > until:
            break
        data = damage(sample, random.Random(f"{name} {seed} {case}"))
        path.write_bytes(data)
        begin = time.monotonic()
        try:
            events = read_events(path)
        except DataError as error:
            message = str(error)
        except Exception as error:
            raise AssertionError(f"{name}, case {case}: {type(error).__name__}: {error}") from error
        else:
            assert events.dtype == EVENT_DTYPE, (name, case)
            assert len(events) <= 2**22 + 128 * len(data), (name, case, len(events))
            outcomes["read"] += 1
            continue
        finally:
            assert time.monotonic() - begin < SECONDS, (name, case)
        assert str(path) in message, (name, case, message)
        assert re.search(r"offset \d+|no events, only", message), (name, case, message)
        outcomes["refused"] += 1
    assert _peak_megabytes() - memory < MEGABYTES, (name, "memory", memory, _peak_megabytes())
    return outcomes


def _peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--format", choices=sorted(make_samples()), action="append")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="for each format")
    options = parser.parse_args()
    np.seterr(all="raise")
    with tempfile.TemporaryDirectory() as folder:
        for name in options.format or make_samples():
            begin = time.monotonic()
            found = fuzz(name, options.cases, Path(folder), seed=options.seed, seconds=options.seconds)
            took = time.monotonic() - begin
            print(f"{name}: {dict(found)} in {took:.1f} s, peak {_peak_megabytes():.0f} MB", flush=True)


if __name__ == "__main__":
    main()
