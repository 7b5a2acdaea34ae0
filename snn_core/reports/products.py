"""Products of two activations, and of weights that no layer holds: what attention adds to a network's operations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_ATEN = torch.ops.aten
#: Where the factors stand among an operator's arguments.
_FACTORS = {_ATEN.mm.default: 0, _ATEN.bmm.default: 0, _ATEN.addmm.default: 1, _ATEN.baddbmm.default: 1}
_ATTENTION = "aten::_scaled_dot_product"


@dataclass
class ProductTally:
    """Sums over the products of one module.

    Attributes:
        dense: multiplications of all entries.
        active: those whose two factors are both not zero.
        acs: the latter, of products in which one factor is 0 or 1 everywhere: accumulations.
        macs: all multiplications of the other products.
    """

    dense: float = 0.0
    active: float = 0.0
    acs: float = 0.0
    macs: float = 0.0


@dataclass
class _State:
    modules: list[str] = field(default_factory=list)
    layers: int = 0
    tallies: dict[str, ProductTally] = field(default_factory=dict)


class ProductCounter(TorchDispatchMode):
    """While it is on: counts matrix products, and fused attention, that run outside of layers.

    The caller says where the network is: :meth:`enter` and :meth:`leave` around a module, with ``layer`` around one
    whose product is counted elsewhere.

    Attributes:
        tallies: name of the innermost module -> sums, in order of first product.
    """

    def __init__(self) -> None:
        super().__init__()
        self._state = _State()

    @property
    def tallies(self) -> dict[str, ProductTally]:
        return self._state.tallies

    def enter(self, name: str, layer: bool = False) -> None:
        """A module is called."""
        self._state.modules.append(name)
        self._state.layers += layer

    def leave(self, layer: bool = False) -> None:
        """It has answered."""
        self._state.modules.pop()
        self._state.layers -= layer

    def restart(self) -> None:
        """No module is being called."""
        self._state.modules.clear()
        self._state.layers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self._state.layers:
            if func in _FACTORS:
                a, b = args[_FACTORS[func] : _FACTORS[func] + 2]
                self._product(a, b)
            elif func._schema.name.startswith(_ATTENTION):
                q, k, v = args[:3]
                # Probabilities are no spikes; of q and k it is not asked.
                self._dense(float(q.numel() * k.shape[-2]))
                self._dense(float(q.numel() // q.shape[-1] * v.shape[-2] * v.shape[-1]))
        return func(*args, **(kwargs or {}))

    def _tally(self) -> ProductTally:
        name = self._state.modules[-1] if self._state.modules else ""
        return self._state.tallies.setdefault(name, ProductTally())

    def _dense(self, count: float) -> None:
        tally = self._tally()
        tally.dense += count
        tally.active += count
        tally.macs += count

    def _product(self, a: Tensor, b: Tensor) -> None:
        """``a [..., n, k]``, ``b [..., k, m]``."""
        count = float(a.numel() * b.shape[-1])
        if not (_binary(a) or _binary(b)):
            self._dense(count)
            return
        columns, rows = (a != 0).sum(-2, dtype=torch.float64), (b != 0).sum(-1, dtype=torch.float64)
        active = float((columns * rows).sum())
        tally = self._tally()
        tally.dense += count
        tally.active += active
        tally.acs += active


def _binary(x: Tensor) -> bool:
    return bool(((x == 0) | (x == 1)).all())
