"""Matrix products and convolutions of spikes or dense activations with N:M sparse weights."""

from snn_core.kernels.nm_matmul.candidates import Explanation
from snn_core.kernels.nm_matmul.ops import nm_conv2d, nm_conv2d_lif, nm_matmul, nm_matmul_lif

__all__ = ["Explanation", "nm_conv2d", "nm_conv2d_lif", "nm_matmul", "nm_matmul_lif"]
