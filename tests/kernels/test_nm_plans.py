"""What products remember about a weight: the short way gives the same results and the same errors as the long one."""

from __future__ import annotations

import copy
import itertools
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from snn_core.errors import ArgumentError, BackendUnavailableError
from snn_core.kernels import (
    CompressedNM,
    PackedSpikes,
    lif,
    nm_conv2d,
    nm_conv2d_lif,
    nm_matmul,
    nm_matmul_lif,
    pack_spikes,
)
from snn_core.kernels.native import cpu_library
from snn_core.kernels.nm_matmul import candidates, dispatch, ops
from snn_core.kernels.nm_matmul.operands import check_weight
from snn_core.kernels.nm_matmul.torch_sparse import conversions, takes_onednn
from snn_core.kernels.spike_pack import is_binary
from snn_core.sparsity import nm_mask_by_magnitude
from snn_core.sparsity.layers import CompressedLinear

pytestmark = pytest.mark.skipif(not cpu_library().available, reason="there is no native library")
OPS = torch.ops.snn_core


@pytest.fixture(autouse=True)
def _default_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Nothing is measured: the choice is the default, and equal in every run."""
    monkeypatch.setenv("SNN_DISPATCH", "off")
    monkeypatch.setenv("SNN_DISPATCH_FILE", str(tmp_path / "dispatch.json"))
    monkeypatch.delenv("SNN_BACKEND", raising=False)
    dispatch.forget()


def compressed(*shape: int, pattern: str = "2:4", seed: int = 0, dtype: torch.dtype = torch.float32) -> CompressedNM:
    """Multiples of 1/16, whose sums are exact."""
    weight = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 16).round().div(16).to(dtype)
    return CompressedNM.from_dense(weight * nm_mask_by_magnitude(weight.float(), pattern), pattern)


def spikes(*shape: int, rate: float = 0.2, seed: int = 1) -> Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < rate).float()


class Solver:
    """Counts how often the long way is taken."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls, self.solve = 0, ops.solve
        monkeypatch.setattr(ops, "solve", self)

    def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        return self.solve(*arguments)


@pytest.fixture
def solver(monkeypatch: pytest.MonkeyPatch) -> Solver:
    return Solver(monkeypatch)


def bias_of(kind: str, outputs: int) -> Tensor | None:
    if kind == "none":
        return None
    bias = torch.randn(outputs, generator=torch.Generator().manual_seed(5))
    return bias.bfloat16() if kind == "bfloat16" else torch.nn.Parameter(bias, requires_grad=kind == "gradient")


@pytest.mark.parametrize("bias_kind", ["none", "float32", "bfloat16", "gradient"])
@pytest.mark.parametrize("lead", [(), (1,), (3,), (2, 0), (2, 3, 4)])
@pytest.mark.parametrize("kind", ["packed", "bytes", "dense"])
def test_products_by_plan_equal_the_first(kind: str, lead: tuple[int, ...], bias_kind: str, solver: Solver) -> None:
    weight, bias = compressed(24, 40), bias_of(bias_kind, 24)
    s = spikes(*lead, 40)
    x: Any = {"packed": PackedSpikes.from_dense(s), "bytes": pack_spikes(s), "dense": s * 0.5}[kind]
    with torch.no_grad():
        first, again = (nm_matmul(x, weight, bias) for _ in range(2))
    planned = kind != "dense" or len(lead) == 1
    assert solver.calls == (1 if planned else 2)
    assert first.shape == again.shape == (*lead, 24)
    assert first.stride() == again.stride()
    assert torch.equal(first, again)
    assert not again.requires_grad


@pytest.mark.parametrize("lead", [(1,), (2, 3), (0, 2)])
@pytest.mark.parametrize("options", [(1, 0, 1, 1), ((2, 1), (1, 0), (1, 2), 1), (1, 1, 1, 2)])
@pytest.mark.parametrize("out_dtype", [None, torch.bfloat16])
def test_convolutions_by_plan_equal_the_first(
    lead: tuple[int, ...], options: Any, out_dtype: torch.dtype | None, solver: Solver
) -> None:
    weight, bias = compressed(16, 16 // options[3], 3, 3), bias_of("float32", 16)
    x = PackedSpikes.from_dense(spikes(*lead, 16, 6, 5), -3)
    with torch.no_grad():
        first, again = (nm_conv2d(x, weight, bias, *options, out_dtype=out_dtype) for _ in range(2))
    assert solver.calls == 1
    assert first.shape == again.shape
    assert again.movedim(-3, -1).is_contiguous()
    assert torch.equal(first, again)


def test_options_given_as_lists_have_no_plan_and_the_same_result() -> None:
    weight, x = compressed(8, 8, 3, 3), PackedSpikes.from_dense(spikes(2, 8, 5, 5), -3)
    stride: Any = [1, 1]
    results = [nm_conv2d(x, weight, None, one, 1) for one in (1, stride, (1, 1), stride)]
    assert all(torch.equal(result, results[0]) for result in results)


def test_a_plan_follows_changes_of_the_weight_and_of_the_bias() -> None:
    weight, bias = compressed(16, 32, dtype=torch.float32), torch.nn.Parameter(torch.ones(16), requires_grad=False)
    x = PackedSpikes.from_dense(spikes(4, 32))
    first = nm_matmul(x, weight, bias)
    nm_matmul(x, weight, bias)
    weight.values.mul_(2)
    bias.mul_(3)
    assert torch.equal(nm_matmul(x, weight, bias), 2 * (first - 1) + 3)
    bias.data = torch.full((16,), 5.0)
    assert torch.equal(nm_matmul(x, weight, bias), 2 * (first - 1) + 5)
    bias.data = bias.data.bfloat16()
    assert torch.equal(nm_matmul(x, weight, bias), 2 * (first - 1) + 5)
    other = torch.zeros(16)
    assert torch.equal(nm_matmul(x, weight, other), 2 * (first - 1))
    assert torch.equal(nm_matmul(x, weight), 2 * (first - 1))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("image", [True, False])
def test_fused_neurons_by_plan(image: bool, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    checks: list[Any] = []
    check_weight = ops.check_weight
    monkeypatch.setattr(ops, "check_weight", lambda *given, **more: (checks.append(1), check_weight(*given, **more))[1])
    weight, bias = compressed(*((16, 16, 3, 3) if image else (16, 16))), torch.ones(16)
    call: Any = nm_conv2d_lif if image else nm_matmul_lif
    trains = [spikes(4, 2, 16, *((5, 4) if image else ()), seed=seed) for seed in range(2)]
    inputs = [PackedSpikes.from_dense(s, -3 if image else -1) for s in trains]

    def dense(s: Any) -> Tensor:
        return s.to_dense() if packed else s

    def expected(x: PackedSpikes, v0: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return lif((nm_conv2d if image else nm_matmul)(x, weight, bias), v0)  # type: ignore[operator]

    for _ in range(2):
        for x in inputs:
            s, v = call(x, weight, bias, packed=packed)
            assert torch.equal(dense(s), expected(x)[0])
            assert torch.equal(v, expected(x)[1])
    asked = len(checks)
    bias.add_(1)
    weight.values.mul_(2)
    s, v = call(inputs[0], weight, bias, v0=v, packed=packed)
    assert len(checks) == asked
    previous = expected(inputs[0])
    assert dense(s).shape == previous[0].shape
    with pytest.raises(ArgumentError, match="v0"):
        call(inputs[0], weight, bias, v0=v[..., :1], packed=packed)
    with pytest.raises(ArgumentError, match="out_dtype"):
        call(inputs[0], weight, bias, packed=packed, out_dtype=torch.int8)
    with pytest.raises(ArgumentError, match="tau"):
        call(inputs[0], weight, bias, packed=packed, tau=0.5)
    monkeypatch.setenv("SNN_BACKEND", "abacus")
    with pytest.raises(ArgumentError, match="SNN_BACKEND"):
        call(inputs[0], weight, bias, packed=packed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("size", [0, 1, 15, 16, 64, 1000, 5000])
def test_spikes_are_told_from_other_values(dtype: torch.dtype, size: int) -> None:
    s = spikes(size, rate=0.5).to(dtype)
    s[::3] *= -1
    s = torch.where(s < 0, torch.zeros_like(s), s) * torch.tensor(1.0, dtype=dtype)
    if size:
        s[0] = -0.0
    assert is_binary(s)
    others = [-1.0, 2.0, 0.5, float("nan"), float("inf"), torch.finfo(dtype).tiny, 1 + torch.finfo(dtype).eps]
    for place in {0, size // 2, size - 1} if size else set():
        for other in others:
            wrong = s.clone()
            wrong[place] = other
            assert not is_binary(wrong)


def test_spikes_are_told_apart_whatever_the_strides() -> None:
    s = spikes(2, 3, 6, 5, rate=0.5)
    s[:, :, ::2] = 0.25
    assert not is_binary(s)
    assert is_binary(s[:, :, 1::2])
    assert is_binary(s[:, :, 1::2].expand(2, 3, 3, 5).transpose(1, 3))
    assert not is_binary(s.contiguous(memory_format=torch.channels_last))
    assert not is_binary(s.transpose(0, 2))
    assert is_binary(s[0, 0, 1, 1])


def test_what_does_not_fit_is_refused_after_what_did() -> None:
    weight, images = compressed(16, 32), compressed(16, 32, 1, 1)
    x, picture = PackedSpikes.from_dense(spikes(4, 32)), PackedSpikes.from_dense(spikes(4, 32, 2, 2), -3)
    for _ in range(2):
        nm_matmul(x, weight)
        nm_conv2d(picture, images)
    wrong: list[tuple[Any, Any, Any]] = [
        (nm_matmul, PackedSpikes.from_dense(spikes(4, 31)), weight),
        (nm_matmul, picture, weight),
        (nm_matmul, torch.zeros(4, 5, dtype=torch.uint8), weight),
        (nm_matmul, "spikes", weight),
        (nm_matmul, torch.zeros(4, 32, dtype=torch.int64), weight),
        (nm_conv2d, x, images),
        (nm_conv2d, pack_spikes(spikes(4, 32)), images),
    ]
    for call, operand, of in wrong:
        with pytest.raises(ArgumentError):
            call(operand, of)
    with pytest.raises(ArgumentError, match="out_dtype"):
        nm_matmul(x, weight, out_dtype=torch.int32)
    with pytest.raises(ArgumentError, match="bits: spikes beyond"):
        nm_matmul(torch.full((4, 4), 255, dtype=torch.uint8), compressed(8, 28))


def test_settings_are_obeyed_after_a_plan_was_made(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = compressed(16, 32), PackedSpikes.from_dense(spikes(4, 32))
    for _ in range(2):
        nm_matmul(x, weight)
    monkeypatch.setenv("SNN_BACKEND", "triton")
    with pytest.raises(BackendUnavailableError):
        nm_matmul(x, weight)
    monkeypatch.setenv("SNN_BACKEND", "abacus")
    with pytest.raises(ArgumentError, match="SNN_BACKEND"):
        nm_matmul(x, weight)
    monkeypatch.delenv("SNN_BACKEND")
    with pytest.raises(ArgumentError, match="backend"):
        nm_matmul(x, weight, backend="abacus")
    monkeypatch.setenv("SNN_DISPATCH", "perhaps")
    with pytest.raises(ArgumentError, match="SNN_DISPATCH"):
        nm_matmul(x, weight)


def test_what_is_forgotten_is_asked_for_again(monkeypatch: pytest.MonkeyPatch, solver: Solver) -> None:
    monkeypatch.setenv("SNN_DISPATCH", "measure")
    weight, x = compressed(16, 32), PackedSpikes.from_dense(spikes(4, 32))
    for _ in range(3):
        nm_matmul(x, weight)
    assert solver.calls == 1
    dispatch.forget()
    nm_matmul(x, weight)
    assert solver.calls == 2


def test_each_class_of_firing_rate_is_asked_for(solver: Solver) -> None:
    weight = compressed(16, 256)
    for rate, calls in ((0.05, 1), (0.4, 2), (0.05, 2), (0.4, 2), (0.0, 3), (0.0, 3)):
        nm_matmul(PackedSpikes.from_dense(spikes(512, 256, rate=rate)), weight)
        assert solver.calls == calls


def test_gradients_flow_after_a_plan_was_made() -> None:
    weight = compressed(16, 32)
    x, dense = PackedSpikes.from_dense(spikes(4, 32)), spikes(4, 32)
    bias = torch.nn.Parameter(torch.zeros(16))
    with torch.no_grad():
        for _ in range(2):
            nm_matmul(x, weight, bias)
            nm_matmul(dense, weight, bias)
    nm_matmul(x, weight, bias).sum().backward()
    assert torch.equal(bias.grad, torch.full((16,), 4.0))  # type: ignore[arg-type]
    nm_matmul(dense.requires_grad_(), weight, bias.detach()).sum().backward()
    assert torch.allclose(dense.grad, weight.to_dense().sum(0).expand(4, 32), atol=1e-5)  # type: ignore[arg-type]
    with torch.autocast("cpu", torch.bfloat16):
        assert nm_matmul(dense.detach(), weight, bias.detach()).dtype == torch.bfloat16


def test_plans_are_no_part_of_the_weight() -> None:
    weight, x = compressed(16, 32), PackedSpikes.from_dense(spikes(4, 32))
    before = pickle.dumps(weight)
    first = nm_matmul(x, weight)
    nm_matmul(x, weight)
    assert weight.plans
    for other in (copy.deepcopy(weight), copy.copy(weight), weight.to(dtype=torch.float32)):
        assert not other.plans
        assert torch.equal(nm_matmul(x, other), first)
    assert len(pickle.dumps(weight)) == len(before)


def test_a_layer_hands_on_one_weight_until_its_buffers_change() -> None:
    layer, x = CompressedLinear(compressed(16, 32), torch.ones(16)), PackedSpikes.from_dense(spikes(4, 32))
    assert layer.weight is layer.weight
    first = layer(x)
    assert torch.equal(layer(x), first)
    layer.values = layer.values * 2
    assert torch.equal(layer(x), 2 * (first - 1) + 1)
    layer.load_state_dict(CompressedLinear(compressed(16, 32), torch.zeros(16)).state_dict())
    assert torch.equal(layer(x), first - 1)
    twin = copy.deepcopy(layer)
    twin.values.zero_()
    assert torch.equal(twin(x), torch.zeros(4, 16))
    assert torch.equal(layer(x), first - 1)
    layer.to(torch.bfloat16)
    assert layer(x).dtype == torch.bfloat16
    assert layer.weight.values is layer.values


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", ["kept", "onednn"])
@pytest.mark.parametrize("lead", [(4,), (2, 3), (2, 0)])
def test_a_kept_dense_weight_follows_changes(
    lead: tuple[int, ...], form: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, solver: Solver
) -> None:
    if form == "onednn" and not takes_onednn(torch.zeros(1, dtype=dtype)):
        pytest.skip("oneDNN does not take this type here")
    choice = dispatch.Choice(f"dense:{form}", "remembered")
    monkeypatch.setattr(candidates, "remembered", lambda key, names: choice if choice.name in names else None)
    weight, bias, x = compressed(16, 32, dtype=dtype), torch.ones(16), spikes(*lead, 32).to(dtype)
    for calls, factor in ((1, 1), (2, 2), (3, 1.5)):
        expected = F.linear(x.float(), weight.to_dense(torch.float32), bias).to(dtype)
        for _ in range(2):
            assert torch.allclose(nm_matmul(x, weight, bias), expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5)
        assert solver.calls == calls
        weight.values.mul_(factor)
        if factor == 1:
            conversions(weight).drop("dense" if form == "kept" else form)  # given back: made again
    monkeypatch.setenv("SNN_KEEP_DENSE", "0")
    nm_matmul(x, weight, bias)
    assert nm_matmul(x, weight, bias, explain=True)[1].taken not in ("dense:kept", "dense:onednn")


def test_large_weights_of_few_rows_take_turns_while_they_are_timed() -> None:
    weight, x = compressed(1024, 1024, dtype=torch.bfloat16), spikes(4, 1024).bfloat16()

    def problem(rows: Tensor, of: CompressedNM) -> candidates.Problem:
        return candidates.Problem(rows, check_weight(of, None, 2), rows.dtype)

    problems = candidates._in_turn(problem(x, weight))
    assert len(problems) == 1 + candidates.ROTATED_BYTES // (2 << 20)
    addresses = {one.weight.values.data_ptr() for one in problems}
    assert len(addresses) == len(problems)
    turns = itertools.cycle(problems)
    run, other = (candidates._run_in_turn(name, lambda: turns) for name in ("cpp", "reference"))
    first = run()
    assert all(torch.equal(run(), first) for _ in problems)
    problems[2].weight.values.zero_()  # the next is the second: one round for all
    assert [bool(one().any()) for one in (run, other, run)] == [True, False, True]
    assert len(candidates._in_turn(problem(spikes(65, 1024).bfloat16(), weight))) == 1
    assert len(candidates._in_turn(problem(x[:, :512], compressed(1024, 512, dtype=torch.bfloat16)))) == 1


FORM = [2, 4, 16, 8, 3, 3, 1, 1, 1, 1, 1, 1, 1]


def test_opcheck_of_the_operator() -> None:
    weight, picture = compressed(16, 8, 3, 3), pack_spikes(spikes(2, 3, 5, 4, 8))
    parts = (weight.values, weight.indices, torch.ones(16), torch.ones(16))
    torch.library.opcheck(OPS.nm_product.default, (picture, *parts, FORM, True, torch.float32, 0))
    form = [2, 4, 16, 72, 1, 1, 1, 1, 0, 0, 1, 1, 1]
    torch.library.opcheck(OPS.nm_product.default, (pack_spikes(spikes(2, 72)), *parts, form, False, torch.bfloat16, 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: 3}, "indices"), ({3: 16}, "channels"), ({3: 1 << 62, 12: 4}, "channels"), ({4: 0}, "weight_shape"),
        ({2: -1}, "weight_shape"), ({6: 0}, "stride"), ({8: -1}, "padding"), ({10: 0}, "dilation"), ({12: 3}, "groups"),
        ({12: 0}, "groups"), ({4: 9}, "kernel|values"),
    ],
)  # fmt: skip
def test_a_form_that_does_not_fit_is_refused(change: dict[int, int], message: str) -> None:
    weight, picture = compressed(16, 8, 3, 3), pack_spikes(spikes(2, 5, 4, 8))
    form = [change.get(position, value) for position, value in enumerate(FORM)]
    with pytest.raises(RuntimeError, match=message):
        OPS.nm_product(picture, weight.values, weight.indices, None, None, form, True, torch.float32, 0)
    with pytest.raises(RuntimeError, match="13 integers"):
        OPS.nm_product(picture, weight.values, weight.indices, None, None, FORM[:-1], True, torch.float32, 0)
    with pytest.raises(RuntimeError, match="contiguous"):
        OPS.nm_product(picture[:, ::2], weight.values, weight.indices, None, None, FORM, True, torch.float32, 0)
    with pytest.raises(RuntimeError, match="path"):
        OPS.nm_product(picture, weight.values, weight.indices, None, None, FORM, True, torch.float32, 9)


@pytest.mark.parametrize("size", [0, 1, 31, 32, 33, 1000])
def test_spikes_are_counted(size: int) -> None:
    s = spikes(3, 8 * size, rate=0.3, seed=size)
    assert PackedSpikes.from_dense(s).count == int(s.sum())
    assert PackedSpikes(pack_spikes(s)[::2], 8 * size).count == int(s[::2].sum())
