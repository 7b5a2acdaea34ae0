"""What pruning.py and distillation.py share: studies by name and their changes, the loop over them, tables, plots."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self, TypeVar

from snn_core.errors import ArgumentError, DataError

Settings = dict[str, Any]
Row = dict[str, Any]


@dataclass(frozen=True)
class BaseStudy:
    """What a comparison is made on, and how that is changed from the command line.

    Attributes:
        name, about: in a word, and in a sentence.
        data: a data set by name; T: frames a sample; data_options: others of ``snn_core.datasets.load``.
        train_limit, test_limit: a stratified part of the splits, the same for all runs.
    """

    name: str
    about: str
    data: str
    T: int
    data_options: Settings = field(default_factory=dict)
    train_limit: int | None = None
    test_limit: int | None = None

    def changed(self, assignments: Iterable[str]) -> Self:
        """With ``KEY=VALUE`` or ``SECTION.KEY=VALUE`` set, VALUE as JSON or text. ArgumentError: no such key."""
        study: Any = self
        for assignment in assignments:
            key, _, text = assignment.partition("=")
            try:
                value = json.loads(text)
            except json.JSONDecodeError:
                value = text
            name, *path = key.split(".")
            if name not in asdict(study) or not text:
                raise ArgumentError(f"--set {assignment}: KEY=VALUE with one of {', '.join(asdict(study))}")
            if path:
                section = json.loads(json.dumps(getattr(study, name)))
                inner = section
                for part in path[:-1]:
                    inner = inner.setdefault(part, {})
                inner[path[-1]] = value
                value = section
            study = replace(study, **{name: tuple(value) if isinstance(value, list) else value})
        study.check()
        changed: Self = study
        return changed

    def check(self) -> None:
        """Refuse wrong settings before anything runs."""


AnyStudy = TypeVar("AnyStudy", bound=BaseStudy)


def find_study(name: str, studies: Mapping[str, AnyStudy], make: Callable[[Settings], AnyStudy]) -> AnyStudy:
    """A study by name, or from a JSON file, whose fields ``make`` takes.

    Raises:
        ArgumentError: neither, or keys or values that a study does not have.
    """
    if name in studies:
        return studies[name]
    path = Path(name)
    if not path.is_file():
        raise ArgumentError(f"study must be one of {', '.join(studies)} or a JSON file, got {name!r}")
    try:
        study = make(json.loads(path.read_text()))
        study.check()
    except (ValueError, TypeError, AttributeError) as error:
        raise ArgumentError(f"{path} is no study: {error}") from error
    return study


def add_grid_options(parser: argparse.ArgumentParser, work: Path, results: Path, what: str) -> None:
    """Options of every grid; ``what``: the word for its cells."""
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="change a study, e.g. train_limit=500"
    )
    parser.add_argument("--processes", type=int, default=2, help=f"{what} at once, one thread each; 0: in this process")
    parser.add_argument("--report", action="store_true", help="run nothing, report what is finished")
    parser.add_argument("--code", help=f"name of the code that kept {what} belong to; default: a hash of all sources")
    parser.add_argument("--work", type=Path, default=work, help=f"finished {what}")
    parser.add_argument("--results", type=Path, default=results, help="folder of JSON files and plots")
    parser.add_argument("--no-plots", action="store_true")
    parser.add_argument("--show", metavar="STUDY", help="print a study as JSON and end")


def make_all(studies: Iterable[AnyStudy], make: Callable[[AnyStudy], bool]) -> int:
    """Make the studies, one after the other. The exit code: 0; 1 where data are missing; 130 after an interrupt.

    ``make`` returns False when it was interrupted.
    """
    code = 0
    for study in studies:
        try:
            if not make(study):
                return 130
        except DataError as error:
            print(f"left out: {study.name}: {error}", file=sys.stderr)
            code = 1
    return code


def formatted(value: float | None, form: str) -> str:
    """For a table: formatted, or "-" where there is none."""
    return "-" if value is None else format(value, form)


def difference(row: Row | None, digits: int, *, bound: bool = True) -> str:
    """Of paired differences, in points: mean, standard error (pairs), and what it lies above with 95 % confidence."""
    if row is None:
        return "-"
    error = "" if row["standard_error"] is None else f" ± {100 * row['standard_error']:.{digits}f}"
    text = f"{100 * row['mean']:+.{digits}f}{error} ({row['count']})"
    return text if not bound or row["lower_95"] is None else f"{text} > {100 * row['lower_95']:+.{digits}f}"


def save_plots(folder: Path, name: str, body: Row, drawings: Mapping[str, Callable[[Row], Any]]) -> list[Path]:
    """Draw ``body`` in each way, as NAME_KIND.svg; a drawing without anything to show returns None. Their paths.

    Nothing without matplotlib, which it says.
    """
    try:
        import matplotlib
    except ImportError:
        print("no plots: matplotlib is not installed")
        return []
    matplotlib.use("Agg")
    # Text as text, and no date: the same result gives the same file.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "snn_core"})
    made = []
    for kind, draw in drawings.items():
        figure = draw(body)
        if figure is not None:
            path = folder / f"{name}_{kind}.svg"
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
            print(f"wrote {path}")
            made.append(path)
    return made
