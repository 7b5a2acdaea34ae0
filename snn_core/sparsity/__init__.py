"""N:M sparsity: patterns, masks, compressed weights and compressed model files."""

from snn_core.sparsity.compressed import CompressedNM, compressed_nbytes
from snn_core.sparsity.model_file import CompressedFile, load_compressed, read_compressed, save_compressed
from snn_core.sparsity.pattern import NMPattern, check_nm, from_blocks, nm_mask_by_magnitude, to_blocks

__all__ = [
    "CompressedFile",
    "CompressedNM",
    "NMPattern",
    "check_nm",
    "compressed_nbytes",
    "from_blocks",
    "load_compressed",
    "nm_mask_by_magnitude",
    "read_compressed",
    "save_compressed",
    "to_blocks",
]
