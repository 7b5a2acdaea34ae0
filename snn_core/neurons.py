"""Neuron modules: LIF, IF and PLIF with SpikingJelly's argument names, on the ``lif`` operator."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from snn_core.errors import ArgumentError
from snn_core.kernels.lif import lif
from snn_core.kernels.native import BACKENDS
from snn_core.surrogate import ATan, as_surrogate

DEFAULT_SURROGATE = ATan()


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


class SpikingNeuron(nn.Module):
    """Common part of the neurons: state, step mode, reset.

    In step mode ``"m"`` the input is ``[T, ...]`` and the output ``[T, ...]``; in ``"s"`` one step ``[...]``. The
    membrane potential ``v`` (None before the first call) carries over from call to call until :meth:`reset`.
    With ``store_v_seq`` the potential after reset at every step is kept in ``v_seq [T, ...]``, inside the autograd
    graph.
    """

    def __init__(
        self,
        *,
        tau: float,
        decay_input: bool,
        v_threshold: float,
        v_reset: float | None,
        surrogate_function: Any,
        detach_reset: bool,
        step_mode: str,
        store_v_seq: bool,
        backend: str,
    ) -> None:
        super().__init__()
        if step_mode not in ("s", "m"):
            raise ArgumentError(f"step_mode is {step_mode!r}; allowed: 's', 'm'")
        if backend not in ("auto", *BACKENDS):
            raise ArgumentError(f"backend is {backend!r}; allowed: auto, {', '.join(BACKENDS)}")
        if not (_is_number(v_threshold) and 0 < v_threshold < math.inf):
            raise ArgumentError(f"v_threshold is {v_threshold!r}; it must be positive and finite")
        if v_reset is not None and not (_is_number(v_reset) and math.isfinite(v_reset)):
            raise ArgumentError(f"v_reset is {v_reset!r}; it must be finite, or None for soft reset")
        self.tau = tau
        self.decay_input = decay_input
        self.v_threshold = v_threshold
        self.v_reset = v_reset
        self.surrogate_function = as_surrogate(surrogate_function)
        self.detach_reset = detach_reset
        self.step_mode = step_mode
        self.store_v_seq = store_v_seq
        self.backend = backend
        self.v: Tensor | None = None
        self.v_seq: Tensor | None = None

    def reciprocal_tau(self) -> Tensor | None:
        """The learned ``1 / tau``, or None where ``tau`` is a constant."""
        return None

    @property
    def leak(self) -> float:
        """Factor by which the potential decays in one step, ``1 - 1/tau``."""
        learned = self.reciprocal_tau()
        return 1.0 - (1.0 / self.tau if learned is None else float(learned.detach()))

    def reset(self) -> None:
        """Forget the state, as before a new sample."""
        self.v = None
        self.v_seq = None

    def detach(self) -> None:
        """Cut the state from the autograd graph (truncated backpropagation through time)."""
        self.v = None if self.v is None else self.v.detach()
        self.v_seq = None if self.v_seq is None else self.v_seq.detach()

    def __getstate__(self) -> dict[str, Any]:
        """For copies: the state without the autograd graph, which cannot be copied."""
        state = self.__dict__.copy()
        for name in ("v", "v_seq"):
            if state[name] is not None:
                state[name] = state[name].detach()
        return state

    def forward(self, x: Tensor) -> Tensor:
        """Spikes (0 or 1) of the input current ``x``, same shape and dtype."""
        x_seq = x.unsqueeze(0) if self.step_mode == "s" else x
        if self.v is not None and self.v.shape != x_seq.shape[1:]:
            raise ArgumentError(
                f"x has steps of shape {tuple(x_seq.shape[1:])}, but the potential v left from the last call has shape "
                f"{tuple(self.v.shape)}; call reset() or snn_core.reset_net() before input of another shape"
            )
        output = lif(
            x_seq,
            self.v,
            tau=self.tau,
            reciprocal_tau=self.reciprocal_tau(),
            v_threshold=self.v_threshold,
            v_reset=self.v_reset,
            decay_input=self.decay_input,
            detach_reset=self.detach_reset,
            surrogate=self.surrogate_function.kernel_name,
            alpha=self.surrogate_function.alpha,
            backend=self.backend,
            return_v_seq=self.store_v_seq and self.step_mode == "m",
        )
        s_seq, self.v = output[0], output[1]
        if self.store_v_seq:
            self.v_seq = output[2] if len(output) == 3 else self._append(self.v)
        return s_seq.squeeze(0) if self.step_mode == "s" else s_seq

    def _append(self, v: Tensor) -> Tensor:
        step = v.unsqueeze(0)
        return step if self.v_seq is None else torch.cat([self.v_seq, step])

    def extra_repr(self) -> str:
        return (
            f"tau={self.tau}, decay_input={self.decay_input}, v_threshold={self.v_threshold}, v_reset={self.v_reset}, "
            f"surrogate_function={self.surrogate_function}, detach_reset={self.detach_reset}, "
            f"step_mode={self.step_mode!r}, backend={self.backend!r}"
        )


class LIF(SpikingNeuron):
    """Leaky integrate-and-fire neuron with a constant ``tau`` (see :func:`snn_core.kernels.lif`).

    Args:
        tau: membrane time constant in steps, > 1.
        decay_input: whether the input is divided by ``tau`` too.
        v_threshold: firing threshold, > 0.
        v_reset: potential after a spike; None: soft reset (subtract ``v_threshold``).
        surrogate_function: one of :mod:`snn_core.surrogate`, its name, or SpikingJelly's object of the same name.
        detach_reset: drop the gradient through the spike in the reset.
        step_mode: ``"m"`` for ``[T, ...]``, ``"s"`` for single steps.
        store_v_seq: keep the potentials of all steps in ``v_seq``.
        backend: as in :func:`snn_core.kernels.lif`.

    Raises:
        ArgumentError: a value that is not allowed.
    """

    def __init__(
        self,
        tau: float = 2.0,
        decay_input: bool = True,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: Any = DEFAULT_SURROGATE,
        detach_reset: bool = False,
        step_mode: str = "m",
        store_v_seq: bool = False,
        backend: str = "auto",
    ) -> None:
        if not (_is_number(tau) and 1 < tau < math.inf):
            raise ArgumentError(f"tau is {tau!r}; it must be greater than 1 and finite")
        super().__init__(
            tau=tau, decay_input=decay_input, v_threshold=v_threshold, v_reset=v_reset,
            surrogate_function=surrogate_function, detach_reset=detach_reset, step_mode=step_mode,
            store_v_seq=store_v_seq, backend=backend,
        )  # fmt: skip


class IF(SpikingNeuron):
    """Integrate-and-fire neuron: :class:`LIF` without leak, ``h[t] = v[t-1] + x[t]``."""

    def __init__(
        self,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: Any = DEFAULT_SURROGATE,
        detach_reset: bool = False,
        step_mode: str = "m",
        store_v_seq: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            tau=math.inf, decay_input=False, v_threshold=v_threshold, v_reset=v_reset,
            surrogate_function=surrogate_function, detach_reset=detach_reset, step_mode=step_mode,
            store_v_seq=store_v_seq, backend=backend,
        )  # fmt: skip


class PLIF(SpikingNeuron):
    """Parametric LIF (Fang et al. 2021): learns ``1 / tau = sigmoid(w)``, one value a layer.

    Args:
        init_tau: time constant at the start, > 1. The others as in :class:`LIF`.
    """

    def __init__(
        self,
        init_tau: float = 2.0,
        decay_input: bool = True,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: Any = DEFAULT_SURROGATE,
        detach_reset: bool = False,
        step_mode: str = "m",
        store_v_seq: bool = False,
        backend: str = "auto",
    ) -> None:
        if not (_is_number(init_tau) and 1 < init_tau < math.inf):
            raise ArgumentError(f"init_tau is {init_tau!r}; it must be greater than 1 and finite")
        super().__init__(
            tau=init_tau, decay_input=decay_input, v_threshold=v_threshold, v_reset=v_reset,
            surrogate_function=surrogate_function, detach_reset=detach_reset, step_mode=step_mode,
            store_v_seq=store_v_seq, backend=backend,
        )  # fmt: skip
        self.w = nn.Parameter(torch.tensor(-math.log(init_tau - 1.0)))

    def reciprocal_tau(self) -> Tensor:
        """``sigmoid(w)``, differentiable."""
        return self.w.sigmoid()


def reset_net(module: nn.Module) -> None:
    """Reset every neuron of a network that has state: ours, and any module with a ``reset()`` (SpikingJelly's)."""
    for part in module.modules():
        reset = getattr(part, "reset", None)
        if callable(reset) and (part is not module or hasattr(part, "v_threshold")):
            reset()
