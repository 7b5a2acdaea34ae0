"""What the launchers of the Triton kernels of LIF decide and refuse; nothing is compiled or run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton")
if triton.knobs.runtime.interpret:
    pytest.skip("the interpreter has one configuration", allow_module_level=True)

from snn_core.kernels.lif import triton as lif_module  # noqa: E402
from snn_core.kernels.native import triton_launch  # noqa: E402

OPTIONS = (2.0, 1.0, 0.0, True, False, 0, 2.0)
WIDTH = 2**16  # neurons: more than what takes the configuration for small inputs


def zeros(*shape: int) -> Tensor:
    return torch.empty(shape)


def record(call: Callable[[], Any]) -> list[dict[str, Any]]:
    """The constants of the kernels that ``call`` launches."""
    launches: list[dict[str, Any]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lif_module, "launch", lambda *_, **constants: launches.append(constants))
        call()
    return launches


def test_checkpoints_that_are_not_aligned_are_read_by_elements() -> None:
    def alignment(checkpoints: Tensor) -> int:
        x = zeros(35, WIDTH)
        call = functools.partial(lif_module.lif_triton_backward, x, None, None, x, None, None, checkpoints)
        (constants,) = record(lambda: call(*OPTIONS, 16))
        return constants["ALIGN"]

    assert alignment(zeros(2, WIDTH)) == 4
    assert alignment(zeros(2 * WIDTH + 1)[1:].view(2, WIDTH)) == 1


def test_rebuilding_checkpoints_fixes_no_configuration_of_the_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, bool]] = []

    def choose(key: Any, configs: Any, run: Any, *, tunable: bool, device: torch.device) -> triton_launch.Config:
        asked.append((key[0], tunable))
        return configs[0]

    monkeypatch.setattr(lif_module, "choose_config", choose)
    x = zeros(35, WIDTH)
    record(lambda: lif_module.lif_triton_backward(x, None, None, x, None, None, None, *OPTIONS, 0))
    record(lambda: lif_module.lif_triton(x, None, None, *OPTIONS, 0, False))
    assert asked == [("forward", False), ("backward", True), ("forward", True)]


def test_refusals() -> None:
    """Those of the compiled operators: a wrong shape would be a wrong address."""
    x = zeros(40, 8)
    state, kept = zeros(8), zeros(2, 8)
    good: dict[str, Any] = {
        "grad_s": x, "grad_v_last": state, "grad_v_seq": x, "x_seq": x, "v0": state,
        "reciprocal_tau": zeros(), "checkpoints": kept,
    }  # fmt: skip
    assert len(record(lambda: lif_module.lif_triton_backward(*good.values(), *OPTIONS, 16))) == 1
    for name, wrong, message in (
        ("grad_s", x.half(), "grad_s has another"),
        ("grad_s", x[:39], "grad_s has another"),
        ("grad_v_last", zeros(7), "grad_v_last has another"),
        ("grad_v_last", state.half(), "grad_v_last has another"),
        ("grad_v_seq", x.to("meta"), "grad_v_seq has another"),
        ("x_seq", x.double(), "x_seq must be float32"),
        ("x_seq", x[:0], "at least 1"),
        ("v0", zeros(8, 1), "v0 has another"),
        ("reciprocal_tau", zeros(2), "reciprocal_tau must be one"),
        ("checkpoints", zeros(3, 8), "checkpoints has another"),
        ("checkpoints", kept.double(), "checkpoints has another"),
    ):
        arguments = {**good, name: wrong}
        with pytest.raises(RuntimeError, match=message):
            record(functools.partial(lif_module.lif_triton_backward, *arguments.values(), *OPTIONS, 16))
    for call in (
        functools.partial(lif_module.lif_triton, x, zeros(7), None, *OPTIONS, 0, False),
        functools.partial(lif_module.lif_triton_inplace, x, zeros(7), None, *OPTIONS),
        functools.partial(lif_module.lif_triton_packed, x, zeros(7), None, *OPTIONS, 1),
    ):
        with pytest.raises(RuntimeError, match="v0 has another"):
            record(call)
    with pytest.raises(RuntimeError, match="dimension after the first"):
        record(functools.partial(lif_module.lif_triton_packed, x, None, None, *OPTIONS, 0))


def test_bits_that_lie_far_apart_make_the_walk_wide() -> None:
    """The offset of the last bit of a byte is no offset of the walk, and may be beyond 32 bits when that is not."""
    for size, stride in (((4, 3), (6, 1)), ((12,), (1,))):
        for bit, wide in ((2**20, False), (2**29, True)):
            walk = triton_launch.plan_walk(size, stride, (stride,), triton_launch.last_bit(None, bit))
            assert walk is not None
            assert walk.constants["WIDE"] == wide
