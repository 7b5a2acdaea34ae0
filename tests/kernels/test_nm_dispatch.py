"""The measuring dispatcher: what is measured when, what is remembered where, and what is never trusted."""

from __future__ import annotations

import json
import math
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from snn_core.errors import ArgumentError
from snn_core.kernels.nm_matmul import dispatch
from snn_core.kernels.nm_matmul.dispatch import Candidate, Choice, choose

KEY = ("nm_matmul", 16, torch.float32, None)


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(dispatch.FILE_VARIABLE, str(tmp_path / "folder" / "dispatch.json"))
    monkeypatch.delenv(dispatch.MODE_VARIABLE, raising=False)
    dispatch.forget()
    dispatch._warn_once.cache_clear()
    yield
    dispatch.forget()


class Clock:
    """Time that passes only in candidates: which one is the fastest does not depend on the machine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.calls = 0.0, list[str]()
        monkeypatch.setattr(dispatch.time, "perf_counter", lambda: self.now)

    def candidate(self, name: str, *seconds: float, result: Tensor | None = None) -> Candidate:
        """Takes ``seconds`` in turn, the last of them ever after."""
        left = list(seconds)

        def run() -> Tensor:
            self.calls.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]
            return torch.zeros(1) if result is None else result

        return Candidate(name, run)

    def two(self) -> list[Candidate]:
        return [self.candidate("slow", 0.02), self.candidate("quick", 0.011)]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_the_fastest_is_taken_and_remembered(clock: Clock) -> None:
    first = choose(KEY, clock.two(), "slow")
    assert (first.name, first.why) == ("quick", "measured")
    assert dict(first.seconds) == pytest.approx({"slow": 0.02, "quick": 0.011})
    made = len(clock.calls)
    assert choose(KEY, clock.two(), "slow") == Choice("quick", "remembered", first.seconds)
    assert len(clock.calls) == made
    assert choose((*KEY[:-1], "other"), clock.two(), "slow").why == "measured"


def test_what_is_remembered_is_known_without_candidates(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("slow", "quick")
    assert dispatch.remembered(KEY, names) is None
    found = choose(KEY, clock.two(), "slow")
    assert dispatch.remembered(KEY, names) == Choice("quick", "remembered", found.seconds)
    assert dispatch.remembered(KEY, names[::-1]) is None
    assert _deterministic(lambda: dispatch.remembered(KEY, names)) is None
    monkeypatch.setenv(dispatch.MODE_VARIABLE, "off")
    assert dispatch.remembered(KEY, names) is None


def test_a_child_process_does_not_wait_for_a_thread_of_its_parent() -> None:
    """A fork copies a lock that is held, but not the thread that holds it."""
    if not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    thread = threading.Thread(target=dispatch._LOCK.acquire)  # and ends without giving it back
    thread.start()
    thread.join()
    child = os.fork()
    if child == 0:
        os._exit(0 if dispatch._LOCK.acquire(timeout=5) else 1)
    _, status = os.waitpid(child, 0)
    dispatch._LOCK = threading.RLock()
    assert os.waitstatus_to_exitcode(status) == 0


def test_the_file_outlives_the_process(clock: Clock) -> None:
    choose(KEY, clock.two(), "slow")
    dispatch.forget()
    made = len(clock.calls)
    again = choose(KEY, clock.two(), "slow")
    assert (again.name, again.why) == ("quick", "remembered")
    assert dict(again.seconds) == pytest.approx({"slow": 0.02, "quick": 0.011})
    assert len(clock.calls) == made


def test_warm_up_is_not_counted_and_noise_is_not_believed(clock: Clock) -> None:
    """The first call compiles; of the others one was disturbed. Least of all moves a percent the choice."""
    lazy = clock.candidate("lazy", 50.0, 0.01, 0.01, 9.0, 0.01)
    assert choose(KEY, [clock.candidate("steady", 0.015), lazy], "steady").name == "lazy"
    close = [clock.candidate("default", 0.0101), clock.candidate("other", 0.01)]
    assert choose(("close",), close, "default").name == "default"
    assert choose(("close, and the other default",), close, "other").name == "other"


def test_a_short_call_is_not_judged_by_one_time(clock: Clock) -> None:
    """Another process had the processor during the first two of them."""
    disturbed = clock.candidate("disturbed", 0.001, 0.009, 0.009, 0.001)
    assert choose(KEY, [clock.candidate("steady", 0.002), disturbed], "steady").name == "disturbed"


def test_hopeless_candidates_are_called_little(clock: Clock) -> None:
    choose(KEY, [clock.candidate("quick", 0.01), clock.candidate("hopeless", 3.0)], "hopeless")
    assert clock.calls.count("hopeless") == 2
    assert clock.calls.count("quick") >= 3


def test_long_calls_stay_within_three_rounds(clock: Clock) -> None:
    choose(KEY, [clock.candidate("a", 1.0), clock.candidate("b", 1.1)], "a")
    assert clock.calls.count("a") == clock.calls.count("b") == 2 + dispatch.ROUNDS[0]


def test_quick_calls_are_timed_in_bursts(clock: Clock) -> None:
    choose(KEY, [clock.candidate("a", 1e-5), clock.candidate("b", 1.1e-5)], "a")
    assert clock.calls.count("a") > 200


def test_one_candidate_is_not_measured(clock: Clock) -> None:
    assert choose(KEY, [clock.candidate("alone", 1.0)], "alone") == Choice("alone", "only", {})
    assert not clock.calls
    assert not dispatch.dispatch_file().exists()


def test_the_default_must_be_there(clock: Clock) -> None:
    with pytest.raises(ArgumentError, match="default is 'missing'; candidates: slow, quick"):
        choose(KEY, clock.two(), "missing")
    with pytest.raises(ArgumentError, match="none"):
        choose(KEY, [], "missing")


def test_modes(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(dispatch.MODE_VARIABLE, "heuristic")
    assert choose(KEY, clock.two(), "slow") == Choice("slow", "heuristic", {})
    assert not clock.calls
    monkeypatch.setenv(dispatch.MODE_VARIABLE, "measure")
    choose(KEY, clock.two(), "slow")
    dispatch.forget()
    monkeypatch.setenv(dispatch.MODE_VARIABLE, "heuristic")
    assert choose(KEY, clock.two(), "slow").name == "quick"
    monkeypatch.setenv(dispatch.MODE_VARIABLE, "off")
    assert choose(KEY, clock.two(), "slow") == Choice("slow", "heuristic", {})
    monkeypatch.setenv(dispatch.MODE_VARIABLE, "fast")
    with pytest.raises(ArgumentError, match="SNN_DISPATCH is 'fast'; allowed: measure, heuristic, off"):
        choose(KEY, clock.two(), "slow")


def _in_vmap(call: Callable[[], Choice]) -> Choice:
    found: list[Choice] = []
    torch.vmap(lambda x: (found.append(call()), x)[1])(torch.zeros(2))
    return found[0]


def _in_fake_mode(call: Callable[[], Choice]) -> Choice:
    with FakeTensorMode():
        return call()


def _traced(call: Callable[[], Choice]) -> Choice:
    found: list[Choice] = []
    torch.jit.trace(lambda x: (found.append(call()), x + 1)[1], torch.zeros(2), check_trace=False)
    return found[0]


def _deterministic(call: Callable[[], Any]) -> Any:
    torch.use_deterministic_algorithms(True)
    try:
        return call()
    finally:
        torch.use_deterministic_algorithms(False)


def _capturing(call: Callable[[], Choice]) -> Choice:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        return call()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("inside", [_in_vmap, _in_fake_mode, _traced, _deterministic, _capturing])
def test_never_measured_while(inside: Callable[[Callable[[], Choice]], Choice], clock: Clock) -> None:
    dispatch.environment()  # of this machine, before CUDA is pretended
    assert inside(lambda: choose(KEY, clock.two(), "slow")) == Choice("slow", "heuristic", {})
    assert not clock.calls
    assert choose(KEY, clock.two(), "slow").why == "measured"


def test_tensors_without_data_are_not_timed(clock: Clock) -> None:
    meta = torch.empty(1, device="meta")
    candidates = [clock.candidate("a", 2.0, result=meta), clock.candidate("b", 1.0, result=meta)]
    assert choose(KEY, candidates, "a") == Choice("a", "heuristic", {})


def test_compiled_functions_take_the_default() -> None:
    """And are traced in one piece."""

    def function(x: Tensor) -> Tensor:
        candidates = [Candidate("double", lambda: x * 2), Candidate("triple", lambda: x * 3)]
        chosen = choose(("compiled",), candidates, "triple")
        return next(candidate for candidate in candidates if candidate.name == chosen.name).run()

    compiled = torch.compile(function, backend="eager", fullgraph=True)
    assert torch.equal(compiled(torch.ones(3)), torch.full((3,), 3.0))
    assert not dispatch._MEMORY


def test_gradients_are_not_recorded() -> None:
    x = torch.ones(3, requires_grad=True)
    recorded: list[bool] = []

    def run() -> Tensor:
        recorded.append((x * 2).requires_grad)
        return x

    choose(KEY, [Candidate("a", run), Candidate("b", run)], "a")
    assert recorded
    assert not any(recorded)
    assert torch.is_grad_enabled()


def test_one_that_raises_is_left_out_with_one_warning(clock: Clock) -> None:
    def boom() -> Tensor:
        raise RuntimeError("boom")

    def three(key: str) -> Choice:
        return choose((key,), [Candidate("broken", boom), *clock.two()], "broken")

    with pytest.warns(UserWarning, match="broken is left out of the choice: RuntimeError: boom"):
        found = three("one")
    assert found.name == "quick"
    assert set(found.seconds) == {"slow", "quick"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert three("two").name == "quick"

    def refuse() -> Tensor:
        raise RuntimeError("path 2 does not take this weight on this machine")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose(("three",), [Candidate("refusing", refuse), *clock.two()], "refusing").name == "quick"
    with pytest.raises(RuntimeError, match="boom"):
        choose(("all",), [Candidate("broken", boom), Candidate("broken too", boom)], "broken")


def test_other_candidates_threads_or_machines_are_measured_anew(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    choose(KEY, clock.two(), "slow")
    more = [*clock.two(), clock.candidate("quickest", 0.001)]
    assert (choose(KEY, more, "slow").name, choose(KEY, clock.two(), "slow").name) == ("quickest", "quick")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 77)
        assert choose(KEY, clock.two(), "slow").why == "measured"
    dispatch.forget()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "environment", lambda: "another machine")
        assert choose(KEY, clock.two(), "slow").why == "measured"
    dispatch.forget()
    assert choose(KEY, clock.two(), "slow").why == "remembered"  # both are in the file
    environments = json.loads(dispatch.dispatch_file().read_text())["environments"]
    assert set(environments) == {dispatch.environment(), "another machine"}


def test_the_environment_is_that_of_the_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    from snn_core.kernels.native import build

    before = dispatch.environment()
    dispatch.environment.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "source_hash", lambda: "another")
        assert dispatch.environment() != before
    dispatch.environment.cache_clear()
    assert dispatch.environment() == before


BROKEN = [
    "", "{", "[]", "3", "null", "[" * 100_000, '{"format": 2, "environments": {}}', '{"format": 1}',
    '{"format": 1, "environments": []}', '{"format": 1, "environments": {"here": {"key": 3}}}',
    '{"format": 1, "environments": {"here": {"key": {"name": "gone", "seconds": {"a": 1.0}}}}}',
    '{"format": 1, "environments": {"here": {"key": {"name": "a", "seconds": {"a": NaN}}}}}',
    '{"format": 1, "environments": {"here": {"key": {"name": ["a"], "seconds": {"a": 1.0}}}}}',
    "\N{NO-BREAK SPACE}\0",
]  # fmt: skip


@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
def test_a_corrupt_file_is_ignored_with_one_warning(text: str, clock: Clock) -> None:
    path = dispatch.dispatch_file()
    path.parent.mkdir()
    path.write_text(text)
    with pytest.warns(UserWarning, match="is ignored and measured again") as caught:
        assert choose(KEY, clock.two(), "slow").name == "quick"
    assert len(caught) == 1
    dispatch.forget()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose(KEY, clock.two(), "slow").why == "remembered"  # it was written anew


def test_every_byte_of_the_file_flipped(clock: Clock) -> None:
    """Never an error, and never a name that is no candidate."""
    choose(KEY, clock.two(), "slow")
    path = dispatch.dispatch_file()
    content = path.read_bytes()
    for index in range(len(content)):
        for bit in (1, 2, 8, 128):
            path.write_bytes(content[:index] + bytes([content[index] ^ bit]) + content[index + 1 :])
            dispatch.forget()
            dispatch._warn_once.cache_clear()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = dispatch._from_file((*KEY, torch.get_num_threads(), "slow", "quick"))
            assert found is None or (isinstance(found.name, str) and math.isfinite(sum(found.seconds.values())))
    entry = '{"name": "evil", "seconds": {"evil": 1.0}}'
    text = dispatch._text((*KEY, torch.get_num_threads(), "slow", "quick"))
    path.write_text(f'{{"format": 1, "environments": {{"{dispatch.environment()}": {{"{text}": {entry}}}}}}}')
    dispatch.forget()
    assert choose(KEY, clock.two(), "slow").name == "quick"


def test_a_disk_that_refuses_costs_a_warning(clock: Clock, tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="kept in memory only"):
        assert choose(KEY, clock.two(), "slow").name == "quick"
    assert choose(KEY, clock.two(), "slow").why == "remembered"


def test_what_others_wrote_meanwhile_stays(clock: Clock) -> None:
    choose(("mine",), clock.two(), "slow")
    path = dispatch.dispatch_file()
    body = json.loads(path.read_text())
    entry = {"name": "a", "seconds": {"a": 1.0}}
    body["environments"][dispatch.environment()]["theirs"] = entry
    path.write_text(json.dumps(body))
    choose(("mine too",), clock.two(), "slow")
    entries = json.loads(path.read_text())["environments"][dispatch.environment()]
    assert (len(entries), entries["theirs"]) == (3, entry)


def test_memory_and_file_are_bounded(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "MAX_KEYS", 3)
    monkeypatch.setattr(dispatch, "MAX_ENVIRONMENTS", 2)
    for number in range(5):
        choose((f"number {number}",), clock.two(), "slow")
    assert len(dispatch._MEMORY) == 3
    entries = json.loads(dispatch.dispatch_file().read_text())["environments"][dispatch.environment()]
    assert [text.split(" | ")[0] for text in entries] == ["number 2", "number 3", "number 4"]
    for name in ("a", "b", "c"):
        monkeypatch.setattr(dispatch, "environment", lambda name=name: name)
        dispatch.forget()
        choose(KEY, clock.two(), "slow")
    assert list(json.loads(dispatch.dispatch_file().read_text())["environments"]) == ["b", "c"]


def test_threads_measure_once(clock: Clock) -> None:
    gate = threading.Barrier(4)

    def work(_: int) -> Choice:
        gate.wait()
        return choose(KEY, clock.two(), "slow")

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(work, range(4)))
    assert sorted(choice.why for choice in found) == ["measured", "remembered", "remembered", "remembered"]
    assert {choice.name for choice in found} == {"quick"}


def test_default_file_is_in_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(dispatch.FILE_VARIABLE)
    monkeypatch.setenv("SNN_CACHE", str(tmp_path))
    assert dispatch.dispatch_file() == tmp_path / "dispatch.json"


def test_log_class() -> None:
    assert [dispatch.log_class(value) for value in (1, 1.9, 2, 3, 4, 0.5, 0.05)] == [0, 0, 1, 1, 2, -1, -5]
    assert len({dispatch.log_class(value, 2) for value in (1.0, 1.2, 1.5, 1.9, 2.0)}) == 3
    assert dispatch.log_class(0.0) == dispatch.log_class(math.nan) == dispatch.log_class(-1) < dispatch.log_class(1e-30)
