"""Batch norms of spiking networks."""

from __future__ import annotations

from torch import nn

from snn_core.backbones.options import one_of

NORMS = ("tdbn", "bn")


def make_norm(kind: str, channels: int, *, v_threshold: float = 1.0, alpha: float = 1.0) -> nn.BatchNorm2d:
    """A batch norm of currents ``[T * B, C, H, W]``: its statistics are over time, batch and space.

    ``"tdbn"`` is threshold-dependent batch norm, ``weight * (alpha * v_threshold * x_hat) + bias``: currents of the
    size of the threshold that they are to reach. As in MS-ResNet's code ``alpha * v_threshold`` is the initial value of
    the one weight that a batch norm has, so that both kinds fold into the layer before them alike.

    Args:
        kind: ``"tdbn"`` or ``"bn"``, whose weight begins at 1.
        channels: C.
        v_threshold: of the neurons behind it.
        alpha: 1 where the norm alone feeds the neuron, ``1 / sqrt(2)`` where the sum of two does.

    Raises:
        ArgumentError: no such kind.

    Source: Zheng et al., Going Deeper With Directly-Trained Larger Spiking Neural Networks, AAAI 2021.
    """
    one_of("norm", kind, NORMS)
    norm = nn.BatchNorm2d(channels)
    if kind == "tdbn":
        nn.init.constant_(norm.weight, alpha * v_threshold)
    return norm
