"""Eligibility-inspired distillation (EID): credits from the real backward pass, and soft targets made of them.

The SpikeNM abstract says that temporally accumulated credits become block-wise soft targets for the mask
probabilities. The formulas are our reading: an eligibility trace of the presynaptic activity (as in e-prop, Bellec et
al. 2020) times the gradient at the postsynaptic current, summed over time and batch, standardised in each block.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from snn_core.errors import ArgumentError
from snn_core.pruning.masking import CopyableHook


def is_neuron(module: nn.Module) -> bool:
    """Whether a module is a spiking neuron, ours or SpikingJelly's: it has a threshold."""
    return hasattr(module, "v_threshold")


def following_neuron(model: nn.Module, layer: nn.Module) -> nn.Module | None:
    """The first spiking neuron after ``layer`` in the order of registration; else the last one before it, or None."""
    seen, before = False, None
    for module in model.modules():
        seen = seen or module is layer
        if is_neuron(module):
            if seen:
                return module
            before = module
    return before


def neuron_leak(neuron: nn.Module) -> float:
    """Factor by which a neuron's potential decays in one step: ``1 - 1/tau``, and 1 for one without a leak.

    Ours say it themselves (``leak``); SpikingJelly's LIFNode has ``tau``, its ParametricLIFNode ``w`` with
    ``1/tau = sigmoid(w)``, its IFNode neither.
    """
    leak = getattr(neuron, "leak", None)
    if isinstance(leak, float):
        return leak
    w = getattr(neuron, "w", None)
    if isinstance(w, Tensor):
        return 1.0 - float(w.detach().sigmoid().mean())
    tau = getattr(neuron, "tau", None)
    return 1.0 if tau is None else 1.0 - 1.0 / float(tau)


def trace(x_seq: Tensor, decay: float, start: Tensor | None = None) -> Tensor:
    """Eligibility trace ``e[t] = decay * e[t-1] + x[t]`` of ``x_seq [T, ...]``, with ``e[-1] = start`` or 0."""
    if x_seq.shape[0] == 1 and start is None:
        return x_seq
    result = torch.empty_like(x_seq)
    result[0] = x_seq[0] if start is None else torch.add(x_seq[0], start, alpha=decay)
    for t in range(1, x_seq.shape[0]):
        torch.add(x_seq[t], result[t - 1], alpha=decay, out=result[t])
    return result


def weighted_sum(x_seq: Tensor, factors: list[float]) -> Tensor:
    """``sum over t of factors[t] * x_seq[t]``, for any strides."""
    result = x_seq[0] * factors[0]
    for x, factor in zip(x_seq[1:], factors[1:], strict=True):
        result.add_(x, alpha=factor)
    return result


def weight_gradient(module: nn.Module, x: Tensor, grad_output: Tensor) -> Tensor:
    """Weight gradient of a Linear, Conv1d or Conv2d for inputs ``x [rows, ...]``, in the weight's shape."""
    if isinstance(module, nn.Linear):
        return grad_output.reshape(-1, module.out_features).t() @ x.reshape(-1, module.in_features)
    assert isinstance(module, (nn.Conv1d, nn.Conv2d))
    padding: Any = module.padding
    if isinstance(padding, str) or module.padding_mode != "zeros":
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x = F.pad(x, module._reversed_padding_repeated_twice, mode=mode)
        padding = (0,) * len(module.stride)
    weight = module._parameters["weight"]
    assert weight is not None
    like = torch.empty((), dtype=x.dtype, device=x.device).expand(weight.shape)  # its shape is all that is looked at
    options = (list(module.stride), list(padding), list(module.dilation), False, [0] * len(padding), module.groups)
    gradient: Tensor = torch.ops.aten.convolution_backward(grad_output, x, like, None, *options, [False, True, False])[
        1
    ]
    return gradient


class CreditCapture:
    """Captures the credit of one layer during ordinary backward passes.

    While ``due`` is set, each forward call of the layer keeps its input and puts a hook on its output; when the
    gradient ``delta [T, B, ...]`` of that output arrives, ``sum over t, batch of delta[t] * e[t]`` is added to the
    credit. Inputs may be ``[T, B, ...]`` or ``[T * B, ...]``: time is outermost in both. In step mode ``"s"`` each
    call is one time step, and the trace carries over the calls until a backward pass has reached the layer.

    Args:
        name, module: the layer.
        model: in which the neuron that follows is looked up, and ``time_steps`` or ``T``.
        decay: of the trace; None: the neuron's leak.
        time_steps: T; None: found out.
        dtype: of trace and product; None: that of the gradient.
        sums: approximate what the trace remembers by sums over time (under a pruner, and not in step mode "s").

    Attributes:
        due: whether to capture.
        stale: the optimiser was to step and did not: what is captured is forgotten if gradients are, at the next call.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        model: nn.Module,
        *,
        decay: float | None,
        time_steps: int | None,
        dtype: torch.dtype | None = None,
        sums: bool = False,
    ) -> None:
        self.name, self.module, self.model = name, module, model
        self.decay, self.time_steps, self.dtype, self.sums = decay, time_steps, dtype, sums
        self.neuron = following_neuron(model, module)
        if decay is None and self.neuron is None:
            raise ArgumentError(
                f"EID: no spiking neuron follows layer {name!r}, so the decay of its trace is unknown; "
                "set trace_decay, or eid_credit = gradient, or eid_weight = 0"
            )
        self.due = False
        self.stale = False
        self._backward_seen = False
        self._call_has_gradient = False
        self._credit: Tensor | None = None
        self._carried: Tensor | None = None
        order = list(model.modules())
        self._behind_all = self.neuron is not None and order.index(self.neuron) < order.index(module)
        self._neuron_shape: tuple[int, ...] = ()
        self.handles: list[RemovableHandle] = [
            module.register_forward_pre_hook(CopyableHook(self._before_layer)),
            module.register_forward_hook(CopyableHook(self._after_layer)),
        ]
        if self.neuron is not None:
            self.handles.append(self.neuron.register_forward_pre_hook(CopyableHook(self._before_neuron)))

    def take(self) -> Tensor | None:
        """Credit with its sign, in the weight's shape, of all backward passes since the last call; None without any."""
        credit, self._credit, self._carried = self._credit, None, None
        return credit

    def clear(self) -> None:
        """Forget what belongs to one optimiser step."""
        self._credit = self._carried = None
        self._backward_seen = False
        self.due = self.stale = False

    def _before_neuron(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor):  # due or not: it may come before the layer that makes it due
            self._neuron_shape = tuple(args[0].shape[:2])

    def _before_layer(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Under a pruner, whose hook comes first, the layer sees a masked weight made for this one call."""
        self._call_has_gradient = False
        if not (self.due and module.training and torch.is_grad_enabled()):
            return
        if self.stale:
            self._forget_if_gradients_are_cleared()
        shown = module.__dict__.get("weight")
        if isinstance(shown, Tensor) and shown.requires_grad:
            shown.register_hook(self._add_gradient)
            self._call_has_gradient = True

    def _after_layer(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not (self.due and module.training and isinstance(output, Tensor) and output.requires_grad):
            return
        if not args:
            raise ArgumentError(
                f"EID: layer {self.name!r} was called with its input by keyword; pass it by position, or set "
                "eid_credit = gradient"
            )
        x, lagged = args[0].detach(), self._call_has_gradient
        if getattr(self.neuron, "step_mode", "m") == "s" and self.time_steps is None:
            if self._backward_seen or (self._carried is not None and self._carried.shape != x.shape):
                self._carried, self._backward_seen = None, False
            before = self._carried
            self._carried = x if before is None else torch.add(x, before, alpha=self._trace_decay())
            if not lagged:
                before = self._carried
            if before is not None:
                factor = self._trace_decay() if lagged else 1.0
                output.register_hook(lambda grad: self._add(before, grad, factor))
            return
        output.register_hook(lambda grad: self._add_sequence(x, grad, lagged))

    def _forget_if_gradients_are_cleared(self) -> None:
        self.stale = False
        weight = self.module._parameters["weight"]
        assert weight is not None
        if weight.grad is None or not bool(weight.grad.any()):
            self._credit = None

    def _add_gradient(self, grad: Tensor) -> None:
        self._backward_seen = True
        self._accumulate(grad.detach().float().clone())

    def _accumulate(self, credit: Tensor) -> None:
        self._credit = credit if self._credit is None else self._credit.add_(credit)

    @torch.no_grad()
    def _add_sequence(self, x: Tensor, grad: Tensor, lagged: bool) -> None:
        """``sum delta[t] e[t]``; where the gradient ``sum delta[t] x[t]`` comes for free, only the rest of it.

        That is ``decay * sum delta[t] e[t - 1]``, a product of ``T - 1`` of T time steps.
        """
        timeless = self._is_timeless(x)
        x, grad = self._rows(x), self._rows(grad)
        steps, decay = 1 if timeless else self._steps(len(x)), self._trace_decay()
        x_seq, delta = x.unflatten(0, (steps, -1)), grad.unflatten(0, (steps, -1))
        dtype = self.dtype or grad.dtype
        if not lagged:
            self._add(trace(x_seq.to(dtype), decay), delta, 1.0)
        elif steps > 1 and decay > 0 and self.sums:
            # sum delta[t] e[t - 1], as if e were the same at all times: one product of sums instead of T - 1 products.
            factors = [sum(decay**k for k in range(steps - 1 - t)) for t in range(steps - 1)]
            e = weighted_sum(x_seq[:-1].to(dtype), factors)
            self._add(e, weighted_sum(delta[1:], [1.0] * (steps - 1)), decay / (steps - 1))
        elif steps > 1 and decay > 0:
            self._add(trace(x_seq[:-1].to(dtype), decay), delta[1:], decay)

    @torch.no_grad()
    def _add(self, e: Tensor, grad: Tensor, factor: float) -> None:
        """Add ``factor`` times the product of traces and gradients, rows of any number of leading dimensions."""
        self._backward_seen = True
        dtype = self.dtype or grad.dtype
        credit = weight_gradient(self.module, self._rows(e).to(dtype), self._rows(grad).to(dtype)).float()
        self._accumulate(credit if factor == 1 else credit.mul_(factor))

    def _rows(self, values: Tensor) -> Tensor:
        """``[..., features]`` or ``[..., C, *space]`` -> ``[rows, ...]``."""
        ndim = 1 if isinstance(self.module, nn.Linear) else len(self.module.stride) + 1  # type: ignore[arg-type]
        return values.reshape(-1, *values.shape[-ndim:])

    def _is_timeless(self, x: Tensor) -> bool:
        """Whether a layer behind all neurons got ``[B, ...]``, averages over time, whose trace is the input itself."""
        known = self._behind_all and self.time_steps is None and len(self._neuron_shape) == 2
        return known and x.shape[0] == self._neuron_shape[1] and tuple(x.shape[:2]) != self._neuron_shape

    def _trace_decay(self) -> float:
        if self.decay is not None:
            return self.decay
        assert self.neuron is not None
        return neuron_leak(self.neuron)

    def _steps(self, rows: int) -> int:
        steps = (
            self.time_steps
            or next(iter(self._neuron_shape), None)
            or getattr(self.model, "time_steps", getattr(self.model, "T", None))
        )
        if not isinstance(steps, int):
            raise ArgumentError(
                f"EID: the number of time steps at layer {self.name!r} is unknown (no neuron in step mode 'm' follows "
                "it); set time_steps, or eid_weight = 0"
            )
        if rows % steps:
            raise ArgumentError(
                f"EID: layer {self.name!r} got {rows} rows, which is no multiple of {steps} time steps; "
                "its input must be [T, B, ...] or [T * B, ...]"
            )
        return steps
