"""Configuration of PACE: every value with the default that worked on N-MNIST (docs/notes/pace.md)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from snn_core.distillation.quantizer import MAX_LEVELS
from snn_core.training import TrainConfig


def _check_training(values: dict[str, Any]) -> dict[str, Any]:
    """Refuse what TrainConfig refuses, naming every wrong key; the values stay a dictionary of what was set."""
    try:
        TrainConfig.model_validate(values)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        raise ValueError("; ".join(problems)) from error
    return values


TrainingOverrides = Annotated[dict[str, Any], AfterValidator(_check_training)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


def options_of_other_backbones(values: Any) -> Any:
    """A configuration whose ``backbone`` is not the default one, without that one's options (before validation)."""
    if isinstance(values, dict) and values.get("backbone", "conv-snn") != "conv-snn":
        return {"backbone_options": {}} | values
    return values


class TeacherConfig(BaseModel):
    """The pool of frozen teachers: ``count`` networks (different seeds), each kept at every snapshot.

    ``snapshots``: fractions of the training at which a copy is kept. ``training``: keys of
    :class:`snn_core.training.TrainConfig` that replace its defaults. Average pooling, because through max pooling most
    of the synthetic frame gets no gradient.
    """

    model_config = ConfigDict(extra="forbid")

    backbone: str = "conv-snn"
    backbone_options: dict[str, Any] = Field(
        default_factory=lambda: {"channels": [16, 32, 32], "pool": "avg", "norm_gain": 1.0}
    )
    count: int = Field(default=3, ge=1)
    snapshots: tuple[float, ...] = (0.5, 1.0)
    training: TrainingOverrides = Field(default_factory=lambda: {"epochs": 30})

    _other_backbones = model_validator(mode="before")(options_of_other_backbones)

    @model_validator(mode="after")
    def _snapshots_are_fractions(self) -> TeacherConfig:
        if not self.snapshots or not all(0 < part <= 1 for part in self.snapshots):
            raise ValueError(f"snapshots: got {self.snapshots}, need at least one fraction in (0, 1]")
        return self


class DistillConfig(BaseModel):
    """Everything that decides a distillation, apart from the data and the seed.

    ``ipc``: synthetic samples per class. ``T``: time steps; None takes those of the data. ``layers``: names or indices
    of the teachers' spiking layers to match, None means all. ``beta``: weight of the residual potential (SDR).
    ``feature_pool``: feature maps are average-pooled by this kernel. ``levels``: PEQ-N's largest count. ``betas``:
    Adam's, each in [0, 1). ``draws``: roundings of the canvas a step. ``real_batch``: real samples per class and step,
    drawn with repetition. ``max_shift`` (pixels) and ``num_shifts``: the set of shared shifts. ``learning_rate``: in
    event counts a step, decaying by a cosine to ``final_learning_rate`` times itself. ``cache_megabytes``: the real
    features of all (teacher, shift) pairs are kept in memory when they fit.
    """

    model_config = ConfigDict(extra="forbid")

    ipc: int = Field(default=1, ge=1)
    T: int | None = Field(default=None, ge=1)
    init: Literal["real", "noise"] = "real"
    levels: int = Field(default=15, ge=1, le=MAX_LEVELS)
    iterations: int = Field(default=300, ge=1)
    learning_rate: float = Field(default=0.2, gt=0)
    final_learning_rate: float = Field(default=0.1, ge=0, le=1)
    betas: tuple[Fraction, Fraction] = (0.5, 0.9)
    draws: int = Field(default=1, ge=1)
    real_batch: int = Field(default=24, ge=1)
    max_shift: int = Field(default=2, ge=0)
    num_shifts: int = Field(default=6, ge=1)

    layers: tuple[str | int, ...] | None = None
    beta: float = Field(default=1.0, ge=0)
    feature_pool: int = Field(default=2, ge=1)
    sigma: float = Field(default=3.0, gt=0)
    num_frequencies: int = Field(default=128, ge=1)
    alpha: float = Field(default=0.5, ge=0, le=1)
    mu: float = Field(default=1.0, ge=0)
    gamma: float = Field(default=1.0, ge=0)
    cf_weight: float = Field(default=1.0, ge=0)
    normalise: bool = True

    teachers: TeacherConfig = Field(default_factory=TeacherConfig)
    checkpoint_every: int = Field(default=50, ge=1)
    cache_megabytes: int = Field(default=2048, ge=0)

    @model_validator(mode="after")
    def _something_is_matched(self) -> DistillConfig:
        if self.mu == self.cf_weight == 0:
            raise ValueError("mu and cf_weight are both 0: nothing would be matched")
        if self.num_shifts > (2 * self.max_shift + 1) ** 2:
            raise ValueError(f"num_shifts: got {self.num_shifts}, max_shift={self.max_shift} has fewer shifts")
        return self
