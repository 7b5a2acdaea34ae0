"""What an earlier call found out about a compressed weight, so that the next one goes straight to the operator.

Checking arguments, looking for what can run and asking the dispatcher take some 25 us of Python where all of it lies in
the caches, and ten times as long where a network's data have displaced it: more than the product of a few spikes. A
:class:`Plan` hangs on its weight and holds the choices of the dispatcher by shape, type, class of firing rate and
everything else on which they depend. Whatever it does not know goes the long way, which checks and then adds to it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from snn_core.kernels.native import settings
from snn_core.kernels.nm_compress.compressed import CompressedNM
from snn_core.kernels.nm_matmul import dispatch
from snn_core.kernels.nm_matmul.operands import Pair, Weight
from snn_core.kernels.nm_matmul.schema import CPU_PATHS
from snn_core.kernels.nm_matmul.torch_sparse import (
    ONEDNN_PLAIN,
    Conversions,
    conversions,
    counted_parts,
    onednn_product,
)
from snn_core.kernels.spike_pack.packed import PackedSpikes

#: Firing rates below are one class.
MIN_RATE = 1 / 1024
#: Bytes of spikes from which on the firing rate is asked for.
COUNTED_BYTES = 8192
#: Choices that a plan keeps; shapes that depend on data could be any number.
MAX_CHOICES = 64

# Found once: every step through a module takes time in each call.
_threads, _grad_enabled, _autocasts = torch.get_num_threads, torch.is_grad_enabled, torch.is_autocast_enabled
_deterministic = torch.are_deterministic_algorithms_enabled
_linear = F.linear
_product = torch.ops.snn_core.nm_product.default
_dense = torch.ops.snn_core.nm_dense.default


class Plan:
    """Products of one compressed weight, or convolutions with one set of options, on the CPU.

    Attributes:
        bias: the tensor for which the arguments were checked.
        choices: names as in :mod:`.candidates`, by :func:`_key`.
        counted: the parts of the weight that count their changes.
    """

    __slots__ = (
        "bias", "channels", "choices", "conversions", "counted", "form", "image", "indices", "scale", "shape", "values",
    )  # fmt: skip

    def __init__(self, weight: CompressedNM, operand: Weight, options: tuple[Pair, Pair, Pair, int] | None) -> None:
        stride, padding, dilation, groups = options or ((1, 1), (0, 0), (1, 1), 1)
        pattern = weight.pattern
        self.bias, self.choices = operand.bias, dict[Any, str]()
        self.values, self.indices, self.scale = weight.values, weight.indices, weight.scale
        self.counted = counted_parts(self.values, self.indices, self.scale)
        self.shape = list(operand.shape)
        self.image = options is not None
        self.channels = operand.shape[1] * groups
        self.form = [pattern.n, pattern.m, *operand.shape, *stride, *padding, *dilation, groups]
        self.conversions: Conversions | None = None

    def run_spikes(self, x: PackedSpikes, out_dtype: torch.dtype, backend: str) -> Tensor | None:
        """The result, or None where the long way must be taken."""
        bits = x.bits
        # A tensor subclass (a fake tensor, for one) and other strides go the long way.
        if type(bits) is not Tensor or not bits.is_cpu or not bits.is_contiguous():
            return None
        if x.size != self.channels or x.channels_last is not self.image:
            return None
        name = self.choices.get(_key(bits.shape, rate_class(x), out_dtype, backend))
        path = _SPIKE_PATHS.get(name)
        if path is None:
            return None
        bias = self.bias if self.bias is None else self._bias(torch.float32)
        return _product(
            bits, self.values, self.indices, self.scale, bias, self.form, self.image, out_dtype, path
        )  # fmt: skip

    def run_dense(self, x: Tensor, dtype: torch.dtype, backend: str) -> Tensor | None:
        """The same for dense activations; ``dtype`` is theirs and that of the result."""
        if self.image or not x.is_cpu or _autocasts("cpu"):
            return None
        name = self.choices.get(_key(x.shape, dtype, dtype, backend))
        form = _KEPT_FORMS.get(name)
        if form is not None:
            conversions = self.conversions
            kept = None if conversions is None else conversions.current(form, self.counted, self.scale, dtype)
            if kept is None:
                return None
            bias = self.bias if self.bias is None else self._bias(dtype)
            if form == "onednn":
                return onednn_product(x, kept, bias, *ONEDNN_PLAIN)
            return _linear(x, kept, bias)
        if name != "cpp" or x.ndim != 2 or not x.is_contiguous():
            return None
        n, m = self.form[:2]
        bias = self._bias(torch.float32)
        return _dense(x, self.values, self.indices, n, m, self.shape, self.scale, bias, 0)

    def _bias(self, dtype: torch.dtype) -> Tensor | None:
        # Asked for each time: a module that is converted gives its parameters other data.
        bias = self.bias
        if bias is None or (bias.dtype is dtype and bias.is_contiguous()):
            return bias
        return bias.detach().to(dtype).contiguous()


def rate_class(x: PackedSpikes) -> int | None:
    """The firing rate to a factor of 2, on a CPU; None for few spikes, where counting takes longer than the product.

    Tensor cores do not care for the rate, and asking for it would wait for the device.
    """
    bits = x.bits
    if not bits.is_cpu or bits.numel() < COUNTED_BYTES:
        return None
    return dispatch.log_class(max(x.count / (bits.numel() // bits.shape[-1] * x.size), MIN_RATE))


def _key(shape: torch.Size, kind: Any, out_dtype: torch.dtype, backend: str) -> tuple[Any, ...]:
    """All that a choice for one weight depends on."""
    return (
        shape, kind, out_dtype, backend, dispatch.generation, _threads(), _deterministic(), settings(),
    )  # fmt: skip


_KEPT_FORMS: dict[str | None, str] = {"dense:kept": "dense", "dense:onednn": "onednn"}
_SPIKE_PATHS: dict[str | None, int] = {"cpp": 0, **{f"cpp:{name}": number for name, number in CPU_PATHS.items()}}


def run(x: Any, weight: Any, bias: Any, options: Any, out_dtype: torch.dtype | None, backend: str) -> Tensor | None:
    """The product where an earlier call made a plan for such arguments, else None. In one function what others would
    share: where a product has displaced it from the caches, every call in between costs a microsecond.

    Args:
        options: None, or stride, padding, dilation and groups as the caller gave them.
    """
    plans = weight.plans if type(weight) is CompressedNM else None
    if plans is None:
        return None
    try:
        plan: Plan | None = plans.get(options)
    except TypeError:  # lists
        return None
    if plan is None or plan.bias is not bias:
        return None
    graded = _grad_enabled()
    if graded and (plan.values.requires_grad or (bias is not None and bias.requires_grad)):
        return None
    if type(x) is PackedSpikes:
        return plan.run_spikes(x, out_dtype or torch.float32, backend)
    if type(x) is not Tensor or (graded and x.requires_grad):
        return None
    dtype = x.dtype
    if dtype is torch.uint8:
        if x.ndim < (4 if plan.image else 1) or x.shape[-1] != (plan.channels + 7) // 8:
            return None
        return plan.run_spikes(PackedSpikes(x, plan.channels, plan.image), out_dtype or torch.float32, backend)
    if out_dtype is not None and out_dtype is not dtype:
        return None
    return plan.run_dense(x, dtype, backend)


def remember(
    x: Tensor | PackedSpikes,
    operand: Weight,
    given: Any,
    options: tuple[Pair, Pair, Pair, int] | None,
    out_dtype: torch.dtype,
    backend: str,
    explanation: Any,
) -> None:
    """Keep what was taken for such arguments; ``given`` are the options as the caller gave them."""
    weight, name = operand.source, explanation.taken
    if torch.compiler.is_compiling() or not dispatch.is_final(explanation.why):
        return
    if type(weight) is not CompressedNM or not weight.values.is_cpu or type(weight.values) is not Tensor:
        return
    try:
        plans = weight.__dict__.setdefault("plans", {})
        plan = plans.get(given)
    except TypeError:
        return
    if plan is None or plan.bias is not operand.bias:
        if len(plans) >= MAX_CHOICES:
            plans.clear()
        plan = plans[given] = Plan(weight, operand, options)
    if name in _KEPT_FORMS:
        plan.conversions = conversions(weight)
    if len(plan.choices) >= MAX_CHOICES:
        plan.choices.clear()
    shape = x.bits.shape if isinstance(x, PackedSpikes) else x.shape
    kind = rate_class(x) if isinstance(x, PackedSpikes) else x.dtype
    plan.choices[_key(shape, kind, out_dtype, backend)] = name


def fused(x: Any, weight: Any, bias: Any, options: Any, packed: bool, backend: str) -> Any:
    """The ``Problem`` for ``x``, where an earlier one of such arguments was checked and took the fused operator."""
    if type(weight) is not CompressedNM or weight.plans is None or type(x) is not PackedSpikes:
        return None
    if type(x.bits) is not Tensor or not x.bits.is_cpu:
        return None
    try:
        problem = weight.plans.get(_fused_key(x, options, packed, backend))
    except TypeError:
        return None
    return problem.with_input(x) if problem is not None and problem.weight.bias is bias else None


def remember_fused(problem: Any, given: Any, packed: bool, backend: str) -> None:
    """Keep that the fused operator takes such a problem."""
    weight, x = problem.weight.source, problem.x
    if torch.compiler.is_compiling() or type(weight) is not CompressedNM or not weight.values.is_cpu:
        return
    plans = weight.__dict__.setdefault("plans", {})
    try:
        key = _fused_key(x, given, packed, backend)
        if len(plans) >= MAX_CHOICES and key not in plans:
            plans.clear()
        plans[key] = problem.with_input(None)  # the spikes may go
    except TypeError:
        return


def _fused_key(x: PackedSpikes, options: Any, packed: bool, backend: str) -> tuple[Any, ...]:
    return ("lif", options, x.bits.shape, x.size, x.channels_last, packed, backend, *settings())
