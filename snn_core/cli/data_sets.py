"""``snn data sets``: which data sets there are by name, and what is known of one."""

from __future__ import annotations

from typing import Annotated

import typer

from snn_core.cli import common


def sets(
    name: Annotated[str | None, typer.Argument(help="One of them: classes, splits, licence, where to get it.")] = None,
    as_json: common.JsonOption = False,
) -> None:
    """Data sets by name; with a name, what is known of that one."""
    from snn_core import datasets

    if name is not None:
        facts = datasets.info(name)
        result = facts.model_dump(mode="json")
        common.show(result, "\n".join(f"{key}: {_text(value)}" for key, value in result.items()), as_json)
        return
    known = [datasets.info(each) for each in datasets.list_datasets()]
    rows = []
    for facts in known:
        counts = " + ".join(f"{count:,}" for count in next(iter(facts.splits.values())).values())
        width, height, _ = facts.sensor_size
        rows.append([facts.name, counts, str(facts.num_classes), f"{width} x {height}"])
    columns = ["name", "train + test", "classes", "sensor"]
    result = {"datasets": [facts.model_dump(mode="json") for facts in known]}
    common.show(result, common.make_table(f"{len(rows)} data sets", columns, rows), as_json)


def _text(value: object) -> str:
    """A fact on one line."""
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_text(part)}" for key, part in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else "not confirmed" if value is None else str(value)
