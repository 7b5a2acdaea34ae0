"""Configuration of PACE: every value with the default that worked on N-MNIST (docs/notes/pace.md)."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from snn_core.distillation.decoder import Draw
from snn_core.distillation.formation import MAX_DIGITS, Formation
from snn_core.distillation.quantizer import MAX_LEVELS, Quantize
from snn_core.distillation.spatio_temporal import ALWAYS, SpatioTemporalMatching, TimeMatching
from snn_core.errors import ArgumentError
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
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
AnyConfig = TypeVar("AnyConfig", bound=BaseModel)


def options_of_other_backbones(config: AnyConfig) -> AnyConfig:
    """A validator: where ``backbone`` is not the default one, that one's options are no default either.

    It comes after the fields: what one before them returns is no JSON any more, and strict lists are no tuples then.
    """
    fields: Any = config
    if fields.backbone != "conv-snn" and "backbone_options" not in config.model_fields_set:
        fields.backbone_options = {}
    return config


class TeacherConfig(BaseModel):
    """The pool of frozen teachers: ``count`` networks (different seeds), each kept at every snapshot.

    ``snapshots``: fractions of the training at which a copy is kept. ``training``: keys of
    :class:`snn_core.training.TrainConfig` that replace its defaults. ``also``: further teachers, of other
    backbones for example; as many layers must be matched in each. Average pooling, because through max pooling most
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
    also: tuple[TeacherConfig, ...] = ()

    _other_backbones = model_validator(mode="after")(options_of_other_backbones)

    @model_validator(mode="after")
    def _snapshots_are_fractions(self) -> TeacherConfig:
        if not self.snapshots or not all(0 < part <= 1 for part in self.snapshots):
            raise ValueError(f"snapshots: got {self.snapshots}, need at least one fraction in (0, 1]")
        return self


class DistillConfig(BaseModel):
    """Everything that decides a distillation, apart from the data and the seed.

    Samples. ``ipc``: synthetic samples per class. ``T``: time steps; None takes those of the data. ``init``: real
    samples drawn at random, chosen by herding or k-centre on a teacher's features, or noise. ``formation_space``,
    ``formation_time``, ``formation_digits``, ``formation_gain``: clips stored in one sample
    (:class:`snn_core.distillation.Formation`). ``levels``: PEQ-N's largest count, or what a digit holds where that is
    less. ``quantize``: PEQ-N, rounding without a draw, or none until the end.

    Decoder. ``decoder``: how stored clips become frames: their cells repeated, or by a network learned on the real
    data, stored with the product (:class:`snn_core.distillation.ClipDecoder`); of methods that match features.
    ``decoder_width``: its channels; ``decoder_draw``: PEQ-N or rounding of its rates; ``decoder_iterations`` and
    ``decoder_rate``: of learning it; ``decoder_matching``: weight of ST-SM beside the likelihood of the counts.

    Steps. ``iterations`` (0: the samples stay what they start as); ``learning_rate``: in event counts a step, decaying
    by a cosine to ``final_learning_rate`` times itself; ``betas``: Adam's, each in [0, 1). ``gradient_floor``: 0 is
    plain Adam, under which a cell with little gradient goes as far as any other and fills empty frames with noise.
    Above 0 each sheet's gradient is scaled to a root mean square of 1 and the floor is Adam's epsilon: a cell with a
    gradient far below it hardly moves. ``draws``: roundings of the canvas a step. ``real_batch``: real samples per
    class and step, drawn with repetition.

    Augmentation, the same draw for real and synthetic. ``max_shift`` (pixels); ``num_shifts``: how many views; ``flip``
    (only where the mirror image keeps its label), ``polarity``, ``time_shift`` (share of the recording at
    most), ``drop`` (share of events at most): what a view may do beside its shift.

    Loss, see :class:`snn_core.distillation.SpatioTemporalMatching`. ``layers``: names or indices of the teachers'
    spiking layers to match, None means all. ``beta``: weight of the residual potential (SDR), where ``cf_beta``,
    ``dft_beta`` and ``dm_beta`` say nothing else for their terms. ``feature_pool``: feature maps are average-pooled by
    this kernel. ``frequencies``: drawn afresh, or from a distribution learned against the frames at
    ``frequency_rate``.

    Memory. ``cache_megabytes``: real features of so many (teacher, view) pairs as fit are kept in memory, of a
    process's own classes alone. ``micro_batch``: clips that pass a teacher at once; a step then keeps features only,
    and repeats the pass of each batch for its gradient. The result is that of one batch, but for rounding. None: one
    batch, nothing repeated.
    """

    model_config = ConfigDict(extra="forbid")

    ipc: int = Field(default=1, ge=1)
    T: int | None = Field(default=None, ge=1)
    init: Literal["real", "noise", "herding", "k-centre"] = "real"
    formation_space: int = Field(default=1, ge=1)
    formation_time: int = Field(default=1, ge=1)
    formation_digits: int = Field(default=1, ge=1, le=MAX_DIGITS)
    formation_gain: int = Field(default=1, ge=1)
    levels: int = Field(default=15, ge=1, le=MAX_LEVELS)
    quantize: Quantize = "probabilistic"
    decoder: Literal["repeat", "learned"] = "repeat"
    decoder_width: int = Field(default=16, ge=1)
    decoder_draw: Draw = "probabilistic"
    decoder_iterations: int = Field(default=600, ge=1)
    decoder_rate: Positive = 3e-3
    decoder_matching: Weight = 0.05
    iterations: int = Field(default=300, ge=0)
    learning_rate: float = Field(default=0.2, gt=0)
    final_learning_rate: float = Field(default=0.1, ge=0, le=1)
    betas: tuple[Fraction, Fraction] = (0.5, 0.9)
    gradient_floor: Weight = 0.0
    draws: int = Field(default=1, ge=1)
    real_batch: int = Field(default=24, ge=1)
    max_shift: int = Field(default=2, ge=0)
    num_shifts: int = Field(default=6, ge=1)
    flip: bool = False
    polarity: bool = False
    time_shift: Share = 0.0
    drop: Share = 0.0

    layers: tuple[str | int, ...] | None = None
    beta: Weight = 1.0
    feature_pool: int = Field(default=2, ge=1)
    sigma: Positive | Literal["auto"] = 3.0
    modulus: float = Field(default=0.65, gt=0, lt=1)
    num_frequencies: int = Field(default=128, ge=1)
    frequencies: Literal["random", "learned"] = "random"
    frequency_rate: Positive = 0.05
    alpha: float = Field(default=0.5, ge=0, le=1)
    mu: Weight = 1.0
    gamma: Weight = 1.0
    cf_weight: Weight = 1.0
    dm_weight: Weight = 0.0
    dm_step_weight: Weight = 0.0
    normalise: bool = True
    time_matching: TimeMatching = "mean"
    cf_beta: Weight | None = None
    dft_beta: Weight | None = None
    dm_beta: Weight | None = None
    cf_stage: tuple[Share, Share] = ALWAYS
    dft_stage: tuple[Share, Share] = ALWAYS
    dm_stage: tuple[Share, Share] = ALWAYS

    teachers: TeacherConfig = Field(default_factory=TeacherConfig)
    checkpoint_every: int = Field(default=50, ge=1)
    cache_megabytes: int = Field(default=2048, ge=0)
    micro_batch: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _something_is_matched(self) -> DistillConfig:
        if self.num_shifts > (2 * self.max_shift + 1) ** 2:
            raise ValueError(f"num_shifts: got {self.num_shifts}, max_shift={self.max_shift} has fewer shifts")
        if self.num_shifts == 1 and (self.flip or self.polarity or self.time_shift or self.drop):
            raise ValueError("flip, polarity, time_shift, drop: need num_shifts of at least 2, the first view is plain")
        try:
            self.loss()
            self.formation()
        except ArgumentError as error:
            raise ValueError(str(error)) from error
        return self

    def loss(self) -> SpatioTemporalMatching:
        """ST-SM with these settings. Raises ArgumentError where none of its terms would count."""
        # A term's own SDR weight that is the common one anyway would have the same features collected twice.
        own = {name: beta if beta != self.beta else None
               for name, beta in (("cf", self.cf_beta), ("dft", self.dft_beta), ("dm", self.dm_beta))}  # fmt: skip
        return SpatioTemporalMatching(
            sigma=self.sigma, modulus=self.modulus, num_frequencies=self.num_frequencies, alpha=self.alpha, mu=self.mu,
            gamma=self.gamma, cf_weight=self.cf_weight, dm_weight=self.dm_weight, dm_step_weight=self.dm_step_weight,
            normalise=self.normalise, time_matching=self.time_matching, cf_beta=own["cf"], dft_beta=own["dft"],
            dm_beta=own["dm"], cf_stage=self.cf_stage, dft_stage=self.dft_stage, dm_stage=self.dm_stage,
            learn_frequencies=self.frequencies == "learned",
        )  # fmt: skip

    def formation(self) -> Formation:
        """How clips lie in a synthetic sample."""
        return Formation(self.formation_space, self.formation_time, self.formation_digits, self.formation_gain)
