"""N:M patterns, masks, and weights stored as their kept values and positions."""

from snn_core.kernels.nm_compress.compressed import CompressedNM, compressed_nbytes
from snn_core.kernels.nm_compress.packing import pack_bits, packed_size, unpack_bits
from snn_core.kernels.nm_compress.pattern import NMPattern, check_nm, from_blocks, nm_mask_by_magnitude, to_blocks

__all__ = [
    "CompressedNM",
    "NMPattern",
    "check_nm",
    "compressed_nbytes",
    "from_blocks",
    "nm_mask_by_magnitude",
    "pack_bits",
    "packed_size",
    "to_blocks",
    "unpack_bits",
]
