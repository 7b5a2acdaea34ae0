"""Surrogate derivatives of the spike, under SpikingJelly's names and with its defaults.

Each is a small immutable description; the arithmetic lives in the ``lif`` operator. ``u = h - v_threshold``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from snn_core.errors import ArgumentError
from snn_core.kernels.lif.reference import spike, surrogate_gradient


@dataclass(frozen=True)
class Surrogate:
    """Base: ``alpha`` is the width parameter, ``kernel_name`` the name the ``lif`` operator knows it by."""

    alpha: float = 1.0
    kernel_name: ClassVar[str] = ""

    def __call__(self, u: Tensor) -> Tensor:
        """1 where ``u >= 0``, else 0, with this derivative under autograd. Shape and dtype of ``u``."""
        return spike(u, self.kernel_name, self.alpha)

    def gradient(self, u: Tensor) -> Tensor:
        """The derivative at ``u``. Shape and dtype of ``u``."""
        return surrogate_gradient(u, self.kernel_name, self.alpha)


@dataclass(frozen=True)
class ATan(Surrogate):
    """``alpha/2 / (1 + (pi/2 * alpha * u)^2)`` (Fang et al. 2021)."""

    alpha: float = 2.0
    kernel_name: ClassVar[str] = "atan"


@dataclass(frozen=True)
class Sigmoid(Surrogate):
    """``alpha * s * (1 - s)``, ``s = sigmoid(alpha * u)``."""

    alpha: float = 4.0
    kernel_name: ClassVar[str] = "sigmoid"


@dataclass(frozen=True)
class PiecewiseQuadratic(Surrogate):
    """Triangle: ``alpha - alpha^2 |u|`` for ``|u| <= 1/alpha``, else 0 (Esser et al. 2016)."""

    alpha: float = 1.0
    kernel_name: ClassVar[str] = "triangle"


@dataclass(frozen=True)
class Rect(Surrogate):
    """Rectangle: ``alpha`` for ``|u| < 1/(2 alpha)``, else 0 (Wu et al. 2018)."""

    alpha: float = 1.0
    kernel_name: ClassVar[str] = "rectangle"


@dataclass(frozen=True)
class SuperSpike(Surrogate):
    """Fast sigmoid: ``alpha / (1 + |u|)^2`` (Zenke and Ganguli 2018)."""

    alpha: float = 1.0
    kernel_name: ClassVar[str] = "fast_sigmoid"


SURROGATES: dict[str, type[Surrogate]] = {
    cls.__name__: cls for cls in (ATan, Sigmoid, PiecewiseQuadratic, Rect, SuperSpike)
}


def as_surrogate(value: Any) -> Surrogate:
    """A :class:`Surrogate` from one of ours, a class name, or the SpikingJelly module of the same name.

    Raises:
        ArgumentError: nothing here has that name.
    """
    if isinstance(value, Surrogate):
        return value
    name = value if isinstance(value, str) else type(value).__name__
    if name in SURROGATES:
        return SURROGATES[name]() if isinstance(value, str) else SURROGATES[name](float(value.alpha))
    raise ArgumentError(f"surrogate_function is {value!r}; allowed: {', '.join(SURROGATES)}")
