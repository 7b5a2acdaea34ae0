"""Progress bars on a terminal, silence elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TypeVar

Item = TypeVar("Item")


def progress(items: Iterable[Item], *, description: str, total: int | None = None, quiet: bool = False) -> Any:
    """Iterate over ``items`` with a bar on standard error when that is a terminal and ``quiet`` is false.

    The returned object also has ``set_postfix(**values)`` to show figures beside the bar.
    """
    from tqdm import tqdm

    disable = quiet or not sys.stderr.isatty()
    return tqdm(items, desc=description, total=total, disable=disable, leave=False, dynamic_ncols=True)
