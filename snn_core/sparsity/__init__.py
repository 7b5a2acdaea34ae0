"""N:M sparsity: patterns, masks, compressed weights, masked and compressed layers, compressed model files."""

from snn_core.kernels.nm_compress import (
    CompressedNM,
    NMPattern,
    check_nm,
    compressed_nbytes,
    from_blocks,
    from_semi_structured,
    hardware_metadata,
    nm_mask_by_magnitude,
    to_blocks,
    to_semi_structured,
    transposable_mask,
)
from snn_core.sparsity.convert import LayerPlan, compress, decompress, make_nm, plan_compression
from snn_core.sparsity.inference import KeptLayer, fuse, kept_layers
from snn_core.sparsity.layers import CompressedConv2d, CompressedLayer, CompressedLinear
from snn_core.sparsity.mask_statistics import MaskStatistics, mask_statistics
from snn_core.sparsity.masked import MaskedLayer, NMConv2d, NMLinear
from snn_core.sparsity.model_file import CompressedFile, load_compressed, read_compressed, save_compressed

__all__ = [
    "CompressedConv2d",
    "CompressedFile",
    "CompressedLayer",
    "CompressedLinear",
    "CompressedNM",
    "KeptLayer",
    "LayerPlan",
    "MaskStatistics",
    "MaskedLayer",
    "NMConv2d",
    "NMLinear",
    "NMPattern",
    "check_nm",
    "compress",
    "compressed_nbytes",
    "decompress",
    "from_blocks",
    "from_semi_structured",
    "fuse",
    "hardware_metadata",
    "kept_layers",
    "load_compressed",
    "make_nm",
    "mask_statistics",
    "nm_mask_by_magnitude",
    "plan_compression",
    "read_compressed",
    "save_compressed",
    "to_blocks",
    "to_semi_structured",
    "transposable_mask",
]
