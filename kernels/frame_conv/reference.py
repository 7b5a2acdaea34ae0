"""Convolution of frames and LIF in plain torch: the oracle of the tests."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from snn_core.kernels.lif import reference as lif_reference


def frame_conv2d_lif(
    x_seq: Tensor, table: Tensor | None, weight: Tensor, bias: Tensor | None, v0: Tensor | None,
    stride: Any, padding: Any, dilation: Any, **neuron: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Spikes ``[T, S, O, OH, OW]`` and last potential ``[S, O, OH, OW]``; arguments as in ``ops.py``."""
    x = x_seq.float() if table is None else table[x_seq.long()]
    current = F.conv2d(x.flatten(0, 1), weight, bias, stride, padding, dilation).unflatten(0, x_seq.shape[:2])
    spikes, v_last, _ = lif_reference.lif(current, v0, **neuron)
    return spikes, v_last
