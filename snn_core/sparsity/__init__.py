"""N:M sparsity: patterns, masks, compressed weights and compressed model files."""

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
from snn_core.sparsity.model_file import CompressedFile, load_compressed, read_compressed, save_compressed

__all__ = [
    "CompressedFile",
    "CompressedNM",
    "NMPattern",
    "check_nm",
    "compressed_nbytes",
    "from_blocks",
    "from_semi_structured",
    "hardware_metadata",
    "load_compressed",
    "nm_mask_by_magnitude",
    "read_compressed",
    "save_compressed",
    "to_blocks",
    "to_semi_structured",
    "transposable_mask",
]
