"""What is known of a data set without having it: classes, sensor, splits, licence, where it comes from."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from snn_core.datasets.source import EventSource
from snn_core.errors import ArgumentError

#: Passed on to every opener that has a parameter of that name; who has none does not depend on it.
GENERAL_OPTIONS = ("seed", "download")


class DatasetInfo(BaseModel):
    """A data set's own facts. None (or an empty text) where nothing could be confirmed.

    Attributes:
        name: what :func:`snn_core.datasets.load` calls it.
        title: what people call it; says "simulated" where the recordings are.
        class_names: in the order of the labels 0, 1, ...
        sensor_size: (W, H, polarities).
        splits: name of each published split -> recordings of "train" and "test" in the whole data set; the first is
            the default. ``{"official": {"train": 60000, "test": 10000}}``
        split_rules: name of each split -> in words, who uses it and how it is made.
        simulated: whether the recordings come from a simulated sensor.
        licence: as its authors give it, or what is known about it.
        citation: the paper to cite.
        home_page: address.
        how_to_get: where the files come from.
        where_to_put: the layout that is looked for, relative to the root.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    title: str
    class_names: tuple[str, ...]
    sensor_size: tuple[int, int, int]
    splits: dict[str, dict[str, int]]
    split_rules: dict[str, str] = {}
    simulated: bool = False
    licence: str | None = None
    citation: str = ""
    home_page: str = ""
    how_to_get: str = ""
    where_to_put: str = ""

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)


@dataclass(frozen=True)
class RegisteredDataset:
    """A data set that can be opened by name.

    Attributes:
        info: its facts.
        opener: ``opener(root, **options) -> EventSource``. ``root`` is a Path or None ($SNN_DATA, see
            :func:`snn_core.datasets.data_root`). Its keyword parameters are the options that users can give; ``seed``
            and ``download`` are passed on only where it has them, and everything else it does not have is refused.
            What an option changes must change the source's ``content_hash``, from which the frame cache has its key.
    """

    info: DatasetInfo
    opener: Callable[..., EventSource]

    def open(self, root: Path | None, **options: object) -> EventSource:
        """The source. ArgumentError: an option that this data set does not have."""
        accepted = [name for name in inspect.signature(self.opener).parameters if name != "root"]
        unknown = [name for name in options if name not in accepted and name not in GENERAL_OPTIONS]
        if unknown:
            own = [name for name in accepted if name not in GENERAL_OPTIONS]
            raise ArgumentError(
                f"{self.info.name} has no option {unknown[0]!r}; its options are {', '.join(own) or 'none'}"
            )
        return self.opener(root, **{name: value for name, value in options.items() if name in accepted})
