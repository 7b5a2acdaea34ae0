"""The measuring dispatcher: of several ways to compute the same, time each once per key and remember the fastest.

What is remembered lies in memory and in a JSON file in the user's cache folder, apart for every machine, torch and
build of the native libraries. Environment variables:

=====================  =================================================================================
``SNN_DISPATCH``       ``measure`` (default): time what is not remembered. ``heuristic``: take what is
                       remembered, else the default. ``off``: always the default; no file is read.
``SNN_DISPATCH_FILE``  the cache file; default ``dispatch.json`` in the cache folder (:func:`cache_root`)
=====================  =================================================================================

Candidates may round differently, so which one was the fastest shows in the last bits of a result. Where those must be
equal from machine to machine, use ``off``; ``torch.use_deterministic_algorithms(True)`` keeps the default, too.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import platform
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from snn_core.errors import ArgumentError, StorageError
from snn_core.files import atomic_path, cache_root

MODE_VARIABLE = "SNN_DISPATCH"
FILE_VARIABLE = "SNN_DISPATCH_FILE"
MODES = ("measure", "heuristic", "off")
FORMAT = 1

#: Seconds that all candidates of a key may take together, once each has been called three times.
BUDGET_SECONDS = 0.4
#: Rounds in which every candidate that is still in the race has a turn, at least and at most.
ROUNDS = (3, 15)
#: A turn of a quick candidate lasts so long: a call of microseconds is not timed by itself.
TURN_SECONDS = 5e-4
TURN_CALLS = 50
#: A candidate that takes so many times as long as the best is not called again, after ROUNDS[0] rounds and before.
CLOSE, HOPELESS = 1.3, 2.0
#: A call shorter than this is not given up after fewer turns: where another process had the processor for some
#: milliseconds, it looked ten times as slow as it is.
DISTURBED_SECONDS = 0.02
#: The default is kept unless another is faster by more than this share: noise must not decide.
MARGIN = 0.02
#: How a path says that it is not for these operands or this machine: no reason for a warning.
REFUSAL = "does not take"
#: Kept keys; shapes that depend on data could be any number. The oldest are forgotten.
MAX_KEYS = 4096
#: Machines, torch versions and builds whose entries are kept in the file.
MAX_ENVIRONMENTS = 8

Why = Literal["measured", "remembered", "only", "heuristic"]


@dataclass(frozen=True)
class Candidate:
    """One way to compute: its name, and a call that can be repeated and returns the result."""

    name: str
    run: Callable[[], Tensor | Sequence[Tensor]]


@dataclass(frozen=True)
class Choice:
    """What is taken and why; ``seconds`` a call of every candidate that was timed (now or when it was remembered)."""

    name: str
    why: Why
    seconds: Mapping[str, float] = field(default_factory=dict)


def choose(key: tuple[Any, ...], candidates: Sequence[Candidate], default: str) -> Choice:
    """The fastest candidate for this key, measured at the first call and remembered.

    Nothing is measured while torch compiles or traces, in a vmap, while a CUDA graph is captured, on tensors without
    data, with deterministic algorithms asked for, or where there is one candidate.

    Args:
        key: what the times depend on (operator, shape, dtypes, device, class of firing rate): strings, numbers, None,
            dtypes and devices. The number of threads and the machine are added here.
        candidates: at least one, of different names. They are called several times, without gradients.
        default: the name of the one that is taken where nothing can be measured.

    Raises:
        ArgumentError: ``default`` is not among the candidates, or SNN_DISPATCH is none of its values.
    """
    if all(candidate.name != default for candidate in candidates):
        raise ArgumentError(f"default is {default!r}; candidates: {', '.join(c.name for c in candidates) or 'none'}")
    if len(candidates) == 1:
        return Choice(default, "only")
    if torch.compiler.is_compiling():
        return Choice(default, "heuristic")
    mode = _mode()
    if mode == "off" or torch.are_deterministic_algorithms_enabled():
        return Choice(default, "heuristic")
    place = (*key, torch.get_num_threads(), *[candidate.name for candidate in candidates])
    found = _MEMORY.get(place)
    if found is not None:
        return found
    found = _from_file(place)
    if found is not None and any(candidate.name == found.name for candidate in candidates):
        _remember(place, found)
        return found
    if mode == "heuristic" or not _can_measure():
        return Choice(default, "heuristic")
    return _measured(place, candidates, default)


def is_final(why: str) -> bool:
    """Whether the same key leads to the same choice again, as long as settings stay and nothing is forgotten: not where
    only this call could not measure."""
    return why != "heuristic" or _mode() != MODES[0] or torch.are_deterministic_algorithms_enabled()


def remembered(key: tuple[Any, ...], names: tuple[str, ...]) -> Choice | None:
    """What :func:`choose` would answer from memory for candidates of these names; None where it has to look further."""
    if _mode() == "off" or torch.are_deterministic_algorithms_enabled():
        return None
    return _MEMORY.get((*key, torch.get_num_threads(), *names))


def dispatch_file() -> Path:
    """The cache file: SNN_DISPATCH_FILE, else ``dispatch.json`` in the cache folder."""
    configured = os.environ.get(FILE_VARIABLE)
    return Path(configured).expanduser() if configured else cache_root() / "dispatch.json"


def forget() -> None:
    """Forget what is in memory and what was read from files; the files stay."""
    global generation
    with _LOCK:
        generation += 1
        _MEMORY.clear()
        _FILES.clear()


def log_class(value: float, per_octave: int = 1) -> int:
    """The class of a size or rate on a logarithmic scale, for keys: equal within a factor of 2 (or a root of it)."""
    if not 0 < value < math.inf:
        return -(2**15)
    return math.floor(math.log2(value) * per_octave)


#: Grows whenever choices are forgotten, so that whoever keeps one knows.
generation = 0

_LOCK = threading.RLock()
if hasattr(os, "register_at_fork"):  # not on Windows; a child must not wait for a thread that it does not have
    os.register_at_fork(after_in_child=lambda: globals().update(_LOCK=threading.RLock()))
_MEMORY: dict[tuple[Any, ...], Choice] = {}
#: Entries of this environment, by cache file; empty for one that is not there or cannot be used.
_FILES: dict[Path, dict[str, Any]] = {}


def _mode() -> str:
    mode = os.environ.get(MODE_VARIABLE) or MODES[0]
    if mode not in MODES:
        raise ArgumentError(f"environment variable {MODE_VARIABLE} is {mode!r}; allowed: {', '.join(MODES)}")
    return mode


def _can_measure() -> bool:
    """Whether a call now computes, and nothing else depends on how often."""
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        return False
    if torch.jit.is_tracing() or torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    return _get_current_dispatch_mode() is None  # fake tensors, tracing, counting of operations


def _remember(place: tuple[Any, ...], choice: Choice) -> None:
    with _LOCK:
        while len(_MEMORY) >= MAX_KEYS:
            del _MEMORY[next(iter(_MEMORY))]
        _MEMORY[place] = Choice(choice.name, "remembered", choice.seconds)


def _measured(place: tuple[Any, ...], candidates: Sequence[Candidate], default: str) -> Choice:
    with _LOCK:  # two measurements at a time would disturb each other
        found = _MEMORY.get(place)
        if found is not None:
            return found
        with torch.no_grad():
            seconds = measure(candidates)
        if seconds is None:
            return Choice(default, "heuristic")
        best = min(seconds, key=lambda name: seconds[name])
        kept = default in seconds and seconds[default] <= seconds[best] * (1 + MARGIN)
        choice = Choice(default if kept else best, "measured", seconds)
        _remember(place, choice)
        _to_file(place, choice)
        return choice


def measure(candidates: Sequence[Candidate]) -> dict[str, float] | None:
    """Seconds a call, timed in turn; without those that raise (each warned of once).

    The shortest of several times counts: whatever else runs on the machine only adds to them.

    Returns:
        None where the results hold no data, so that there is nothing to time.

    Raises:
        Exception: that of the first candidate where all raise.
    """
    active: dict[str, _Timed] = {}
    errors: dict[str, Exception] = {}
    for candidate in candidates:
        try:
            timed = _Timed(candidate.run)
        except Exception as error:
            errors[candidate.name] = error
            continue
        if timed.device == "meta":
            return None
        active[candidate.name] = timed
    if not active:
        raise next(iter(errors.values()))
    for name, raised in errors.items():
        if REFUSAL not in str(raised):
            _warn_once(f"{name} is left out of the choice: {type(raised).__name__}: {raised}")
    measured = dict(active)
    quickest = min(timed.best() for timed in active.values())
    active = {name: timed for name, timed in active.items() if timed.may_win(2 * HOPELESS * quickest)}
    for timed in active.values():
        timed.times.clear()
    began = time.perf_counter()
    for number in range(ROUNDS[1]):
        if number >= ROUNDS[0] and time.perf_counter() - began > BUDGET_SECONDS:
            break
        for timed in active.values():
            timed.turn()
        limit = (HOPELESS if number + 1 < ROUNDS[0] else CLOSE) * min(timed.best() for timed in active.values())
        active = {name: timed for name, timed in active.items() if timed.may_win(limit)}
        if len(active) == 1:
            break
    return {name: timed.best() for name, timed in measured.items()}


class _Timed:
    """A candidate with its times. Making one calls it twice: the first call loads, compiles and fills caches."""

    def __init__(self, run: Callable[[], Any]) -> None:
        self.run, self.times = run, list[float]()
        result = run()
        first = result if isinstance(result, Tensor) else result[0]
        self.device = first.device.type
        self.calls = 1
        self.turn()
        self.calls = min(TURN_CALLS, int(TURN_SECONDS / max(self.times[0], 1e-9)) + 1)

    def turn(self) -> None:
        """Some calls in a row; what is kept is the time of one. On CUDA: from idle until the device has finished."""
        self._finish()
        began = time.perf_counter()
        for _ in range(self.calls):
            self.run()
        self._finish()
        self.times.append((time.perf_counter() - began) / self.calls)

    def _finish(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def best(self) -> float:
        return min(self.times)

    def may_win(self, limit: float) -> bool:
        """Whether it is quick enough, or may have been disturbed in all of its few turns."""
        return self.best() <= limit or (len(self.times) < ROUNDS[0] and self.best() < DISTURBED_SECONDS)


@functools.lru_cache(maxsize=256)
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=5)


@functools.cache
def environment() -> str:
    """What remembered times hold for: processor, GPU, torch, instruction set and sources of the native libraries."""
    from snn_core.kernels.native import cpu_library, triton_interprets
    from snn_core.kernels.native.build import source_hash

    facts = [_processor(), str(os.cpu_count()), torch.__version__, cpu_library().isa]
    facts += [source_hash(), *(path.read_text() for path in sorted(Path(__file__).parent.glob("*.py")))]
    facts += ["interpreted"] if triton_interprets() else []
    if torch.cuda.is_available():
        facts += [torch.cuda.get_device_name(), str(torch.version.cuda)]
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()[:16]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _text(place: tuple[Any, ...]) -> str:
    return " | ".join(str(part) for part in place)


def _from_file(place: tuple[Any, ...]) -> Choice | None:
    path = dispatch_file()
    with _LOCK:
        entries = _FILES.get(path)
        if entries is None:
            entries = _FILES[path] = _read(path).get(environment(), {})
    entry = entries.get(_text(place))
    return None if entry is None else Choice(entry["name"], "remembered", entry["seconds"])


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """Environments in the file; none, with one warning, where it is not what this module writes."""
    try:
        body = json.loads(path.read_text())
        if body["format"] != FORMAT:
            raise ValueError(f"format {body['format']!r}, not {FORMAT}")
        return {str(name): _checked(entries) for name, entries in body["environments"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        _warn_once(f"{path} is ignored and measured again: {type(error).__name__}: {error}")
        return {}


def _checked(entries: dict[str, Any]) -> dict[str, Any]:
    for text, entry in entries.items():
        seconds = entry["seconds"]
        if not isinstance(entry["name"], str) or entry["name"] not in seconds:
            raise ValueError(f"entry {text!r} names {entry['name']!r}")
        if not all(isinstance(value, float) and 0 <= value < float("inf") for value in seconds.values()):
            raise ValueError(f"entry {text!r} has times {seconds!r}")
    return entries


def _to_file(place: tuple[Any, ...], choice: Choice) -> None:
    """Add the entry to what is in the file now: another process that writes at the same moment may lose one, which is
    then measured again."""
    path = dispatch_file()
    environments = _read(path)
    entries = environments.pop(environment(), {})
    entries[_text(place)] = {"name": choice.name, "seconds": dict(choice.seconds)}
    while len(entries) > MAX_KEYS:
        del entries[next(iter(entries))]
    _FILES[path] = entries
    kept = list(environments.items())[-(MAX_ENVIRONMENTS - 1) :]
    body = {"format": FORMAT, "environments": {**dict(kept), environment(): entries}}
    try:
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(body, indent=1) + "\n")  # unsorted: the oldest come first
    except StorageError as error:
        _warn_once(f"the choice is kept in memory only: {error}")
