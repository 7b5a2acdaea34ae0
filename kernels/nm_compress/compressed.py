"""Compressed N:M weights: the kept values and their positions, log2(M) bits each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from snn_core.errors import ArgumentError
from snn_core.kernels.nm_compress import ops, reference
from snn_core.kernels.nm_compress.packing import packed_size
from snn_core.kernels.nm_compress.pattern import NMPattern, from_blocks, to_blocks

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
#: Of a dense weight, so that no product of sizes overflows 64 bits.
MAX_ELEMENTS = 1 << 48
#: 8-bit values mean something with a scale only; the largest magnitude that each can hold.
QUANTIZED_LIMITS = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}


@dataclass(frozen=True, eq=False)
class CompressedNM:
    """A weight that obeys an N:M pattern, stored as N values and N positions for each block of M.

    Attributes:
        values: ``[blocks, N]``: float32, bfloat16, float16, float64, int8 or float8_e4m3fn. Blocks in the order of
            :func:`to_blocks`: output channel, kernel position, then block along the reduction dimension.
        indices: uint8, the positions in each block (ascending) as a stream of ``ceil(log2(M))``-bit numbers, low bit
            first.
        shape: shape of the dense weight, ``[out, in, *kernel]``.
        pattern: the N:M pattern.
        scale: float32 ``[out]`` or None: the weight is ``scale[o] * values``; :meth:`quantize` makes it.

    A block with fewer than N non-zeros is filled up with zeros at positions of its own.

    Raises:
        ArgumentError: parts that do not fit together: shapes, dtypes, devices, positions outside their block or out
            of order.
    """

    values: torch.Tensor
    indices: torch.Tensor
    shape: tuple[int, ...]
    pattern: NMPattern
    scale: torch.Tensor | None = None

    #: What the products with this weight found out about it: see ``nm_matmul/plans.py``. Not a part of the weight.
    plans: ClassVar[dict[Any, Any] | None] = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "plans"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        for name in ("values", "indices", "scale"):
            part = getattr(self, name)
            if part is not None:
                object.__setattr__(self, name, part.contiguous())  # as native code takes it
        pattern, blocks = self.pattern, self.num_blocks
        if self.values.shape != (blocks, pattern.n):
            raise ArgumentError(
                f"values: expected shape [{blocks}, {pattern.n}] for a {pattern} weight of shape {list(self.shape)}, "
                f"got {list(self.values.shape)}"
            )
        if self.values.dtype not in (*FLOAT_DTYPES, *QUANTIZED_LIMITS):
            allowed = ", ".join(str(dtype) for dtype in (*FLOAT_DTYPES, *QUANTIZED_LIMITS))
            raise ArgumentError(f"values: dtype {self.values.dtype}; allowed: {allowed}")
        self._check_scale()
        if self.indices.device != self.values.device:
            raise ArgumentError(f"indices: on {self.indices.device}, but values on {self.values.device}")
        positions = self.positions()
        if blocks and int(positions.max()) >= pattern.m:
            raise ArgumentError(f"indices: position {int(positions.max())} is outside a block of {pattern.m}")
        if (positions[:, 1:] <= positions[:, :-1]).any():
            raise ArgumentError("indices: the positions inside a block must ascend without repetition")

    def _check_scale(self) -> None:
        scale = self.scale
        if scale is None:
            return
        if scale.dtype != torch.float32 or scale.shape != self.shape[:1]:
            raise ArgumentError(f"scale: expected float32 [{self.shape[0]}], got {scale.dtype} {list(scale.shape)}")
        if scale.device != self.values.device:
            raise ArgumentError(f"scale: on {scale.device}, but values on {self.values.device}")

    @classmethod
    def _of_checked_parts(
        cls,
        values: torch.Tensor,
        indices: torch.Tensor,
        shape: tuple[int, ...],
        pattern: NMPattern,
        scale: torch.Tensor | None,
    ) -> CompressedNM:
        """Without the checks, which unpack every position: for parts of a weight that was checked before."""
        weight = object.__new__(cls)
        parts = {"values": values, "indices": indices, "shape": tuple(shape), "pattern": pattern, "scale": scale}
        for name, value in parts.items():
            object.__setattr__(weight, name, value)
        return weight

    def _replace(self, values: torch.Tensor, indices: torch.Tensor, scale: torch.Tensor | None) -> CompressedNM:
        return self._of_checked_parts(values, indices, self.shape, self.pattern, scale)

    @property
    def num_blocks(self) -> int:
        """Number of blocks; raises ArgumentError when ``shape`` cannot be cut into blocks of M."""
        if len(self.shape) < 2 or self.shape[1] <= 0 or self.shape[1] % self.pattern.m or min(self.shape) < 0:
            raise ArgumentError(
                f"shape {list(self.shape)} cannot be cut into blocks of {self.pattern.m} along dimension 1"
            )
        size = math.prod(self.shape)  # torch.Size.numel() wraps around
        if size > MAX_ELEMENTS:
            raise ArgumentError(f"shape {list(self.shape)} has more than {MAX_ELEMENTS} elements")
        return size // self.pattern.m

    @classmethod
    def from_dense(
        cls,
        weight: torch.Tensor,
        pattern: NMPattern | str = "2:4",
        mask: torch.Tensor | None = None,
        *,
        backend: str = "auto",
    ) -> CompressedNM:
        """Compress a dense weight.

        Args:
            weight: ``[out, in]``, ``[out, in, k]`` or ``[out, in, kh, kw]``, any floating dtype.
            pattern: N:M.
            mask: boolean of the same shape: the kept positions; weights outside it are dropped. Without it, all
                non-zero weights are kept, and negative zeros wherever a block has room.
            backend: ``auto``, ``cpp`` (CPU), ``cuda``, ``triton`` or ``reference``; all give the same bits.

        Raises:
            ArgumentError: the shape cannot be blocked, the mask has another shape or dtype, or a block holds more
                than N weights (the message says how many blocks do).
            BackendUnavailableError: the backend asked for cannot run here.
        """
        pattern = NMPattern.parse(pattern)
        weight = weight.detach()
        if weight.dtype not in FLOAT_DTYPES:
            raise ArgumentError(f"weight: dtype {weight.dtype}; allowed: {', '.join(map(str, FLOAT_DTYPES))}")
        if mask is not None and (mask.shape != weight.shape or mask.dtype != torch.bool):
            raise ArgumentError(
                f"mask: expected bool {list(weight.shape)} like the weight, got {mask.dtype} {list(mask.shape)}"
            )
        rows = weight.shape[0] if weight.ndim else 0
        matrices = [
            None if tensor is None else to_blocks(tensor, pattern.m).reshape(rows, -1 if rows else 0).contiguous()
            for tensor in (weight, mask)
        ]
        assert matrices[0] is not None
        values, indices, violations = ops.compress(matrices[0], matrices[1], pattern, backend)
        if violations.item():
            source = "weight" if mask is None else "mask"
            raise ArgumentError(
                f"{source} breaks the {pattern} pattern: {violations.item()} of {len(values)} blocks keep too many"
            )
        return cls._of_checked_parts(values, indices, tuple(weight.shape), pattern, None)

    def positions(self) -> torch.Tensor:
        """Positions of the values in their blocks: int64 ``[blocks, N]``, ascending in each row."""
        return reference.positions(self.indices, self.pattern, self.num_blocks)

    def mask(self) -> torch.Tensor:
        """Boolean mask of ``shape``: the stored positions, exactly N in each block."""
        blocks = torch.zeros(self.num_blocks, self.pattern.m, dtype=torch.bool, device=self.device)
        return from_blocks(blocks.scatter_(1, self.positions(), True), self.shape)

    def to_dense(self, dtype: torch.dtype | None = None, *, backend: str = "auto") -> torch.Tensor:
        """The dense weight of ``shape``: dropped entries are +0, kept ones bit for bit those that were compressed.

        Args:
            dtype: of the result; by default that of the values, or float32 where a scale or 8-bit values are there.
                The product with the scale is formed in float32.
            backend: as in :meth:`from_dense`.
        """
        if dtype is None:
            eight_bit = self.scale is not None or self.values.dtype in QUANTIZED_LIMITS
            dtype = torch.float32 if eight_bit else self.values.dtype
        matrix = ops.decompress(self.values, self.indices, self.pattern, self.shape[0], self.scale, dtype, backend)
        if len(self.shape) == 2:
            return matrix.view(self.shape)
        return from_blocks(matrix.view(-1, self.pattern.m), self.shape)

    def quantize(self, dtype: torch.dtype) -> CompressedNM:
        """The weight with 8-bit values and a scale for each output channel.

        ``scale[o]`` is the channel's largest magnitude over the largest that ``dtype`` holds (127, or 448), and the
        values are rounded to the nearest, ties to even. A channel of zeros has scale 1.

        Args:
            dtype: ``torch.int8`` or ``torch.float8_e4m3fn``.

        Raises:
            ArgumentError: another dtype, or weights that are not finite.
        """
        if dtype not in QUANTIZED_LIMITS:
            raise ArgumentError(f"dtype {dtype}; allowed: {', '.join(map(str, QUANTIZED_LIMITS))}; .to() casts")
        limit = QUANTIZED_LIMITS[dtype]
        rows = self.values.to(torch.float32).view(self.shape[0], self._values_per_output())
        if self.scale is not None:
            rows = rows * self.scale[:, None]
        if not torch.isfinite(rows).all():
            raise ArgumentError("values: NaN or infinite weights cannot be quantized")
        largest = rows.abs().amax(1) if rows.shape[1] else rows.new_zeros(rows.shape[0])
        # A subnormal scale would lose bits of the quotient, or be 0.
        scale = (largest / limit).clamp_min(torch.finfo(torch.float32).tiny)
        scale = torch.where(largest > 0, scale, torch.ones_like(scale))
        quotient = (rows / scale[:, None]).clamp(-limit, limit)
        values = (quotient.round() if dtype == torch.int8 else quotient).to(dtype).view(self.values.shape)
        return self._replace(values, self.indices, scale)

    def with_scale(self, scale: torch.Tensor | None) -> CompressedNM:
        """The same values with another scale, float32 ``[out]`` (what a folded batch norm needs).

        Raises:
            ArgumentError: another dtype, shape or device.
        """
        weight = self._replace(self.values, self.indices, None if scale is None else scale.contiguous())
        weight._check_scale()
        return weight

    def _values_per_output(self) -> int:
        return torch.Size(self.shape[1:]).numel() // self.pattern.m * self.pattern.n

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> CompressedNM:
        """The weight on another device, its values in another floating dtype; the scale stays float32.

        Raises:
            ArgumentError: a dtype that takes :meth:`quantize`, or no floating dtype.
        """
        if dtype is not None and dtype not in FLOAT_DTYPES and dtype != self.dtype:
            raise ArgumentError(f"dtype {dtype}; allowed: {', '.join(map(str, FLOAT_DTYPES))}; quantize() makes 8 bits")
        scale = None if self.scale is None else self.scale.to(device)
        return self._replace(self.values.to(device=device, dtype=dtype), self.indices.to(device), scale)

    def clone(self) -> CompressedNM:
        """The same weight in memory of its own."""
        return self._replace(
            self.values.clone(), self.indices.clone(), None if self.scale is None else self.scale.clone()
        )

    def cpu(self) -> CompressedNM:
        """The weight on the CPU."""
        return self.to("cpu")

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Tensors that describe the weight completely, for safetensors or a checkpoint.

        ``values``, ``indices``, ``scale`` where there is one, and ``layout``: int64 ``[N, M, *shape]``.
        """
        layout = torch.tensor([self.pattern.n, self.pattern.m, *self.shape], dtype=torch.int64)
        state = {"values": self.values, "indices": self.indices, "layout": layout}
        return state if self.scale is None else state | {"scale": self.scale}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, torch.Tensor]) -> CompressedNM:
        """Inverse of :meth:`state_dict`; everything is checked.

        Raises:
            ArgumentError: a tensor is missing or unknown, or they do not fit together.
        """
        names = {"values", "indices", "layout"}
        if not names <= state.keys() or state.keys() - names - {"scale"}:
            raise ArgumentError(f"state: expected {sorted(names)} and perhaps 'scale', got {sorted(state)}")
        layout = state["layout"]
        if layout.dtype != torch.int64 or layout.ndim != 1 or layout.numel() < 4:
            raise ArgumentError(
                f"state: layout must be int64 [N, M, out, in, ...], got {layout.dtype} {list(layout.shape)}"
            )
        n, m, *shape = layout.tolist()
        return cls(state["values"], state["indices"], tuple(shape), NMPattern(n, m), state.get("scale"))

    @property
    def nbytes(self) -> int:
        """Bytes of values, packed indices and scale."""
        return self.values.nbytes + self.indices.nbytes + (0 if self.scale is None else self.scale.nbytes)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the values."""
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        """Device of the weight."""
        return self.values.device

    def __repr__(self) -> str:
        dense = torch.Size(self.shape).numel() * self.values.element_size()
        return (
            f"CompressedNM({self.pattern}, shape={list(self.shape)}, dtype={self.dtype}, device='{self.device}', "
            f"{'' if self.scale is None else 'scaled, '}nbytes={self.nbytes} of {dense} dense)"
        )


def compressed_nbytes(shape: tuple[int, ...] | torch.Size, pattern: NMPattern | str, element_size: int) -> int:
    """Bytes a weight of ``shape`` takes compressed: values of ``element_size`` bytes plus packed indices."""
    pattern = NMPattern.parse(pattern)
    kept = torch.Size(shape).numel() // pattern.m * pattern.n
    return kept * element_size + packed_size(kept, pattern.index_bits)
