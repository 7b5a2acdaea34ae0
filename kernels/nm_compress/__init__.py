"""N:M patterns, masks, and weights stored as their kept values and positions."""

from snn_core.kernels.nm_compress.compressed import CompressedNM, compressed_nbytes
from snn_core.kernels.nm_compress.hardware import (
    from_hardware_metadata,
    from_semi_structured,
    hardware_metadata,
    to_semi_structured,
)
from snn_core.kernels.nm_compress.packing import pack_bits, packed_size, unpack_bits
from snn_core.kernels.nm_compress.pattern import NMPattern, check_nm, from_blocks, nm_mask_by_magnitude, to_blocks
from snn_core.kernels.nm_compress.transposable import transposable_mask

__all__ = [
    "CompressedNM",
    "NMPattern",
    "check_nm",
    "compressed_nbytes",
    "from_blocks",
    "from_hardware_metadata",
    "from_semi_structured",
    "hardware_metadata",
    "nm_mask_by_magnitude",
    "pack_bits",
    "packed_size",
    "to_blocks",
    "to_semi_structured",
    "transposable_mask",
    "unpack_bits",
]
