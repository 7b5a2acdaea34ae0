"""SpikeNM's top-k sampler: exact draws of N of M positions and their relaxation."""

from snn_core.kernels.topk_sampler.ops import (
    TopKSample,
    gumbel_noise,
    hard_topk,
    relaxed_topk,
    relaxed_topk_backward,
    sample_topk,
    straight_through,
    topk_draw,
    topk_sample,
    topk_sample_backward,
)
from snn_core.kernels.topk_sampler.weights import (
    AdamOptions,
    KeyOptions,
    absolute_deviation,
    columns_to_weight,
    mask_weight,
    relaxed_mask,
    update_credit_,
    update_logits_,
    weight_columns,
)

__all__ = [
    "AdamOptions",
    "KeyOptions",
    "TopKSample",
    "absolute_deviation",
    "columns_to_weight",
    "gumbel_noise",
    "hard_topk",
    "mask_weight",
    "relaxed_mask",
    "relaxed_topk",
    "relaxed_topk_backward",
    "sample_topk",
    "straight_through",
    "topk_draw",
    "topk_sample",
    "topk_sample_backward",
    "update_credit_",
    "update_logits_",
    "weight_columns",
]
