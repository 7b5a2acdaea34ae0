"""Settings of a training run."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class TrainConfig(BaseModel):
    """How a classifier is trained. Unknown keys and wrong types are refused.

    The defaults are those that README's figures for N-MNIST were measured with.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    epochs: int = Field(50, ge=1, description="passes over the training set")
    batch_size: int = Field(25, ge=1, description="samples a step")
    learning_rate: float = Field(6e-3, gt=0, description="peak learning rate")
    weight_decay: float = Field(1e-2, ge=0, description="decoupled weight decay on weights, not on norms and biases")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="sgd has momentum 0.9")
    warmup: float = Field(0.02, ge=0, le=1, description="fraction of the steps over which the rate rises from 0")
    hold: float = Field(0.6, ge=0, le=1, description="fraction of the steps at the peak rate; then cosine to 0")
    tet_weight: float = Field(
        0.5, ge=0, le=1, description="weight of the loss of every step (TET) against that of the time-averaged logits"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="of the cross-entropy")
    augment: Literal[
        "affine",
        "shift",
        "none",
        "nmnist",
        "dvs-gesture",
        "dvs-gesture-mirror",
        "cifar10-dvs",
        "event-drop",
        "shd",
        "crop-flip",
    ] = Field("affine", description="a policy of snn_core.datasets.augment, drawn per sample")
    mix: Literal["none", "cutmix", "eventmix"] = Field(
        "none", description="half of the batches have samples mixed with others, with labels in proportion"
    )
    precision: Literal["float32", "bfloat16"] = Field("float32", description="bfloat16: autocast mixed precision")
    seed: int = Field(0, ge=0, description="of initialisation, order, augmentation and dropout")
