"""Settings of a pruning run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
)

from snn_core.sparsity import NMPattern

DENSE = "dense"  # in layer_patterns: this layer is not pruned


class PruneConfig(BaseModel):
    """How a network is pruned to N:M while it trains. Unknown keys and wrong types are refused.

    The defaults of the sampler, mask decay, EID and the freeze are our own choice (docs/notes/spikenm.md); none of them
    is known from the SpikeNM paper.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    pattern: str = Field(default="2:4", description="at most N non-zeros in each block of M weights, written N:M")
    layer_patterns: dict[str, str] = Field(
        default_factory=dict,
        description="layer names (shell wildcards) -> N:M or dense; the first that matches wins, all other layers have "
        "`pattern`; a first or last layer named in full, without wildcards, is pruned too",
    )
    include: tuple[str, ...] | None = Field(
        default=None,
        strict=False,
        description="names of layers to prune (shell wildcards); none: all; of the first and the last layer only a "
        "name in full, without wildcards, counts",
    )
    exclude: tuple[str, ...] = Field(
        default=(), strict=False, description="names of layers that stay dense (shell wildcards)"
    )
    keep_first_dense: bool = Field(default=True, description="leave the first layer dense unless it is named in full")
    keep_last_dense: bool = Field(default=True, description="leave the last layer dense unless it is named in full")
    freeze: float = Field(default=0.8, ge=0, le=1, description="fraction of the steps after which the masks are final")
    seed: int = Field(default=0, ge=0, description="of the mask draws")

    # SpikeNM: the key is kappa * logits + rho * |w| / std(|w|) + eta * Gumbel noise.
    rho: float = Field(default=1.0, ge=0, description="weight of the magnitude anchor in the key")
    kappa: float = Field(default=1.0, gt=0, description="scale of the logits at the start")
    kappa_final: float | None = Field(
        default=None, gt=0, description="scale of the logits at the freeze; none: as at the start"
    )
    eta: float = Field(
        default=0.15, ge=0, description="scale of the Gumbel noise at the start; falls linearly to 0 at the freeze"
    )
    draws: Literal["exact", "relaxed"] = Field(
        default="exact",
        description="what training computes with: exact draws of N of M, or (an ablation) the relaxed ones",
    )
    temperature: float = Field(default=1.0, gt=0, description="of the relaxed draws at the start")
    temperature_final: float = Field(
        default=0.3, gt=0, description="of the relaxed draws at the freeze; geometric in between"
    )
    logit_learning_rate: float = Field(default=0.02, ge=0, description="Adam's rate for the basis logits")
    sr_ste_decay: float = Field(default=2e-4, ge=0, description="pull of the dropped weights to 0 (Zhou et al. 2021)")
    mask_decay: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="spikenm: fraction of the steps over which dropped weights fade from 1 to 0; 0: off",
    )

    # Eligibility-inspired distillation (EID).
    eid_weight: float = Field(default=0.01, ge=0, description="weight of the EID loss; 0: off")
    eid_credit: Literal["exact", "bfloat16", "sums", "gradient"] = Field(
        default="exact",
        description="how the credit is computed: exact; its product in bfloat16; what the trace remembers from sums "
        "over time (about 1/T of the cost); the weight's gradient alone, free (a trace without memory)",
    )
    eid_interval: int = Field(default=4, ge=1, description="steps between refreshes of the credit")
    eid_end: float = Field(default=1.0, ge=0, le=1, description="fraction of the search phase after which EID stops")
    eid_use_weight: bool = Field(default=True, description="multiply the credit by |w|")
    eid_momentum: float = Field(default=0.9, ge=0, lt=1, description="of the running mean of the credit")
    eid_temperature: float = Field(default=1.0, gt=0, description="of the soft targets")
    eid_match: Literal["key", "logits"] = Field(
        default="key",
        description="distribution pulled to the targets: softmax of the noise-free key, or of the logits alone",
    )
    trace_decay: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="decay of the eligibility trace a step; none: the leak of the neuron that follows",
    )
    time_steps: int | None = Field(
        default=None,
        ge=1,
        description="T of the layers' inputs; none: as the neuron that follows sees it, or model.time_steps",
    )

    # SR-STE.
    sr_ste_freeze: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="as freeze, for the method sr-ste alone; 1: masks move to the end, as published",
    )

    # The comparisons: one block, in the order of docs/methods.md.
    asp_dense: float = Field(
        default=0.5, ge=0, le=1, description="asp: fraction of the steps that train dense, before masks are cut once"
    )
    decay_steps: float = Field(
        default=0.5, gt=0, le=1, description="mask-decay: fraction of the steps over which dropped weights fade to 0"
    )
    maskllm_learning_rate: float = Field(default=5e-4, ge=0, description="maskllm: Adam's rate for the category logits")
    maskllm_kappa: tuple[float, float] = Field(
        default=(100.0, 500.0), strict=False, description="maskllm: scale of the logits, at the start and at the freeze"
    )
    maskllm_temperature: tuple[float, float] = Field(
        default=(4.0, 0.05), strict=False, description="maskllm: of the Gumbel-softmax, at the start and at the freeze"
    )
    maskllm_prior: float = Field(
        default=3.0, ge=0, description="maskllm: strength of the prior, the magnitude mask of the initial weights"
    )
    maskllm_regularization: float = Field(
        default=1e-5, ge=0, description="maskllm: reward for large kept weights; falls linearly to 0 at the freeze"
    )
    maskpro_learning_rate: float = Field(default=10.0, ge=0, description="maskpro: step size of the logits")
    maskpro_initial: float = Field(
        default=5.0, ge=0, description="maskpro: first logits of the largest N initial weights of a block; the rest 0"
    )
    maskpro_momentum: float = Field(
        default=0.9, ge=0, lt=1, description="maskpro: of the moving average of the loss that is the baseline"
    )
    magnitude_scope: Literal["layer", "global"] = Field(
        default="layer", description="magnitude: keep N/M of every layer, or N/M of all pruned layers together"
    )
    magnitude_schedule: Literal["constant", "cubic"] = Field(
        default="constant", description="magnitude: final sparsity from the first step, or a cubic ramp up to it"
    )
    magnitude_ramp: tuple[float, float] = Field(
        default=(0.0, 0.5),
        strict=False,
        description="magnitude: where the cubic ramp starts and ends, fractions of steps",
    )
    magnitude_freeze: float = Field(
        default=1.0, ge=0, le=1, description="magnitude: as freeze; 1: masks move to the end, as in sr-ste"
    )

    def with_names(
        self, pattern: NMPattern | str | None, include: Sequence[str] | None, exclude: Sequence[str] | None
    ) -> PruneConfig:
        """These settings with what is not None replaced. Raises ArgumentError for a pattern that makes no sense."""
        changes: dict[str, Any] = {}
        if pattern is not None:
            changes["pattern"] = str(NMPattern.parse(pattern))
        if include is not None:
            changes["include"] = tuple(include)
        if exclude is not None:
            changes["exclude"] = tuple(exclude)
        return self.model_copy(update=changes)

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """States and results of before this setting existed are of the same run."""
        values: dict[str, Any] = handler(self)
        if self.draws == "exact":
            values.pop("draws", None)
        return values

    @field_validator("pattern")
    @classmethod
    def _parse_pattern(cls, value: str) -> str:
        return str(NMPattern.parse(value))

    @field_validator("layer_patterns")
    @classmethod
    def _parse_layer_patterns(cls, value: dict[str, str]) -> dict[str, str]:
        return {name: DENSE if text.strip() == DENSE else str(NMPattern.parse(text)) for name, text in value.items()}

    @field_validator("maskllm_kappa", "maskllm_temperature")
    @classmethod
    def _positive(cls, value: tuple[float, float]) -> tuple[float, float]:
        if min(value) <= 0:
            raise ValueError(f"both must be greater than 0, got {list(value)}")
        return value

    @field_validator("magnitude_ramp")
    @classmethod
    def _ordered_fractions(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] < value[1] <= 1:
            raise ValueError(f"must be two rising fractions between 0 and 1, got {list(value)}")
        return value
