"""Run configuration: defaults, then a TOML or YAML file, then flags; every key and type is checked."""

from __future__ import annotations

import difflib
import json
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from snn_core.distillation import DistillConfig, EvaluationConfig
from snn_core.errors import ConfigError
from snn_core.pruning import PruneConfig
from snn_core.training import TrainConfig

CONFIG_FILE = "config.json"


class DataConfig(BaseModel):
    """Which recordings, and how they become frames (see :func:`snn_core.datasets.load_frames`)."""

    model_config = ConfigDict(extra="forbid")

    source: str = "digits-dvs"
    #: Of a data set by name: where it lies (default $SNN_DATA), and which of its published splits.
    root: str | None = None
    split_name: str | None = None
    T: int = Field(3, ge=1)
    by: Literal["time", "count", "window"] = "time"
    time_window: int | None = Field(None, ge=1)
    limit: int | None = Field(None, ge=1)
    download: bool = False
    cache_dir: str | None = None
    #: With folds, the training split alone is used: fold number ``fold`` of it is the test set.
    folds: int | None = Field(None, ge=2)
    fold: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _fold_exists(self) -> DataConfig:
        if self.folds is not None and self.fold >= self.folds:
            raise ValueError(f"fold {self.fold} does not exist among {self.folds} folds, which are numbered from 0")
        return self


class ModelConfig(BaseModel):
    """A backbone and its options (see :func:`snn_core.backbones.create`)."""

    model_config = ConfigDict(extra="forbid")

    name: str = "conv-snn"
    options: dict[str, Any] = Field(default_factory=dict)


class PruneSection(PruneConfig):
    """:class:`snn_core.pruning.PruneConfig` and which method uses it."""

    method: str = "spikenm"


class DistillSection(DistillConfig):
    """:class:`snn_core.distillation.DistillConfig` and which method uses it."""

    method: str = "pace"


class RunConfig(BaseModel):
    """Everything a command can be told. Sections that a command does not use are ignored by it."""

    model_config = ConfigDict(extra="forbid")

    seed: int = Field(0, ge=0)
    data: DataConfig = Field(default_factory=DataConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    prune: PruneSection = Field(default_factory=PruneSection)
    distill: DistillSection = Field(default_factory=DistillSection)
    evaluate: EvaluationConfig = Field(default_factory=EvaluationConfig)

    def train_config(self) -> TrainConfig:
        """The training section, with the run's seed unless it names its own."""
        return (
            self.train if "seed" in self.train.model_fields_set else self.train.model_copy(update={"seed": self.seed})
        )

    def prune_config(self) -> PruneConfig:
        """The pruning section without the method, with the run's seed unless it names its own."""
        values = self.prune.model_dump(exclude={"method"})
        if "seed" not in self.prune.model_fields_set:
            values["seed"] = self.seed
        return PruneConfig(**values)

    def distill_config(self) -> DistillConfig:
        """The distillation section without the method."""
        return DistillConfig(**self.distill.model_dump(exclude={"method"}))


def read_config_file(path: Path) -> dict[str, Any]:
    """A TOML, YAML or JSON file as a dictionary. Raises ConfigError naming file and place."""
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigError(f"cannot read configuration {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"configuration {path} is not UTF-8 text: {error}") from error
    try:
        if path.suffix == ".toml":
            values: Any = tomllib.loads(text)
        elif path.suffix == ".json":
            values = json.loads(text)
        elif path.suffix in (".yaml", ".yml"):
            import yaml

            try:
                values = yaml.safe_load(text) or {}
            except yaml.YAMLError as error:
                raise ConfigError(f"{path} is not valid YAML: {error}") from error
        else:
            raise ConfigError(f"{path}: unknown kind of configuration; allowed: .toml, .yaml, .yml, .json")
    except (tomllib.TOMLDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path} is not valid {path.suffix[1:].upper()}: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a table of sections, not {type(values).__name__}")
    return values


def parse_assignment(text: str) -> tuple[list[str], Any]:
    """``section.key=value`` as a path and a value (TOML syntax; anything else is taken as a string)."""
    name, separator, value = text.partition("=")
    if not separator or not name.strip():
        raise ConfigError(f"--set {text!r}: expected section.key=value")
    try:
        parsed = tomllib.loads(f"value = {value.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    return name.strip().split("."), parsed


def build_config(
    file: Path | None = None,
    overrides: dict[str, Any] | None = None,
    assignments: list[str] | None = None,
    *,
    base: dict[str, Any] | None = None,
) -> RunConfig:
    """Merge a base, a file, flag values (dotted names; None means not given) and ``--set`` assignments, in that order.

    Raises:
        ConfigError: an unreadable file, an unknown key (with the nearest known one) or a wrong type.
    """
    values: dict[str, Any] = json.loads(json.dumps(base or {}))
    if file is not None:
        _merge(values, read_config_file(file))
    pairs = [(name.split("."), value) for name, value in (overrides or {}).items() if value is not None]
    pairs += [parse_assignment(text) for text in assignments or []]
    for path, value in pairs:
        place = values
        for part in path[:-1]:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise ConfigError(f"{'.'.join(path)}: {part} is not a section")
        place[path[-1]] = value
    try:
        # Strict, but as JSON: lists for tuples and integers for floats are fine, "3" and true for 3 are not.
        return RunConfig.model_validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        where = str(file) if file is not None else "configuration"
        raise ConfigError(f"{where}: " + "; ".join(_explain(item) for item in error.errors())) from error


def _merge(values: dict[str, Any], more: dict[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            _merge(values[key], value)
        else:
            values[key] = value


def _explain(item: Any) -> str:
    path = [str(part) for part in item["loc"]]
    if item["type"] != "extra_forbidden":
        given = "" if isinstance(item["input"], dict) else f" (got {item['input']!r})"
        return f"{'.'.join(path) or 'value'}: {item['msg']}{given}"
    known: list[str] = []
    section: Any = RunConfig
    for part in path[:-1]:
        section = section.model_fields[part].annotation if part in section.model_fields else None
        if section is None or not hasattr(section, "model_fields"):
            break
    if section is not None and hasattr(section, "model_fields"):
        known = list(section.model_fields)
    near = difflib.get_close_matches(path[-1], known, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
    return f"{'.'.join(path)}: unknown key; {hint}"
