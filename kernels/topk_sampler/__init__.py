"""SpikeNM's top-k sampler: exact draws of N of M positions and their relaxation."""

from snn_core.kernels.topk_sampler.ops import (
    TopKSample,
    gumbel_noise,
    hard_topk,
    relaxed_topk,
    relaxed_topk_backward,
    sample_topk,
    straight_through,
)

__all__ = [
    "TopKSample",
    "gumbel_noise",
    "hard_topk",
    "relaxed_topk",
    "relaxed_topk_backward",
    "sample_topk",
    "straight_through",
]
