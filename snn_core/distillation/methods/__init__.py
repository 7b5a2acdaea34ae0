"""Everything that turns a real training set into a small one, behind one interface: ``create_method(name)``.

PACE and its comparisons give the same kind of product, so that they are evaluated alike. A name may have a part after a
slash: an ablation ("pace/no-dft") or another form ("dm/time-mean").
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

from snn_core.distillation.methods import (
    characteristic_matching,
    coreset,
    distribution_matching,
    forgetting,
    gradient_matching,
    pace,
)
from snn_core.distillation.methods.base import CondensationMethod, make_product
from snn_core.distillation.methods.characteristic_matching import CharacteristicMatching
from snn_core.distillation.methods.distribution_matching import DistributionMatching
from snn_core.errors import ArgumentError

__all__ = [
    "CharacteristicMatching",
    "CondensationMethod",
    "DistributionMatching",
    "create_method",
    "list_methods",
    "make_product",
]

_METHODS: dict[str, Callable[[], CondensationMethod]] = {
    **pace.METHODS,
    **coreset.METHODS,
    **forgetting.METHODS,
    **distribution_matching.METHODS,
    **characteristic_matching.METHODS,
    **gradient_matching.METHODS,
}


def list_methods() -> list[str]:
    """Names that :func:`create_method` knows, sorted."""
    return sorted(_METHODS)


def create_method(name: str) -> CondensationMethod:
    """The method of that name. Raises ArgumentError for an unknown one, listing those there are."""
    if name not in _METHODS:
        near = difflib.get_close_matches(str(name).lower().replace("_", "-"), list_methods(), n=1, cutoff=0.5)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        raise ArgumentError(f"method: {name!r} is unknown; there are {', '.join(list_methods())}{meant}")
    return _METHODS[name]()
