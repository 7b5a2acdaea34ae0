"""Layers that hold compressed N:M weights, for inference."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snn_core.errors import ArgumentError
from snn_core.kernels import nm_conv2d, nm_matmul
from snn_core.kernels.native import BACKENDS, native_backend, wanted_backend
from snn_core.kernels.nm_compress import CompressedNM
from snn_core.kernels.nm_matmul.candidates import MORE_BACKENDS
from snn_core.kernels.spike_pack import PackedSpikes
from snn_core.kernels.spike_pack.ops import NATIVE_DTYPES


class CompressedLayer(nn.Module):
    """What :class:`CompressedLinear` and :class:`CompressedConv2d` share: buffers of a compressed weight, and a bias.

    Attributes:
        values, indices, scale: buffers, as in :class:`CompressedNM`; ``scale`` may be None.
        bias: parameter ``[out]`` that takes no gradient, or None.
        shape, pattern: of the weight.
        backend: which one computes (see ``snn_core.kernels.nm_matmul``).
        dense_dtype: of the dense layer that this one stands for: packed spikes give outputs in it.
    """

    values: Tensor
    indices: Tensor
    scale: Tensor | None
    bias: Tensor | None

    def __init__(self, weight: CompressedNM, bias: Tensor | None = None, *, backend: str = "auto") -> None:
        super().__init__()
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ArgumentError(f"bias: expected shape [{weight.shape[0]}], got {list(bias.shape)}")
        self.shape, self.pattern, self.backend = tuple(weight.shape), weight.pattern, backend
        eight_bit = weight.scale is not None or weight.dtype.itemsize == 1
        self.dense_dtype = torch.float32 if eight_bit else weight.dtype
        self.register_buffer("values", weight.values)
        self.register_buffer("indices", weight.indices)
        self.register_buffer("scale", weight.scale)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach(), requires_grad=False))

    @property
    def weight(self) -> CompressedNM:
        """The compressed weight; its tensors are the layer's buffers.

        One object as long as these are the same: what products find out about a weight they keep with it.
        """
        if torch.compiler.is_compiling():
            return CompressedNM._of_checked_parts(self.values, self.indices, self.shape, self.pattern, self.scale)
        buffers: Any = self._buffers  # an attribute of a module is looked for in three places
        values, indices, scale = buffers["values"], buffers["indices"], buffers["scale"]
        kept: CompressedNM | None = self.__dict__.get("_weight")
        if kept is None or kept.values is not values or kept.indices is not indices or kept.scale is not scale:
            kept = CompressedNM._of_checked_parts(values, indices, self.shape, self.pattern, scale)
            self.__dict__["_weight"] = kept
        return kept

    @property
    def weight_nbytes(self) -> int:
        """Bytes of values, indices and scale."""
        return self.weight.nbytes

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # Casts are meant for values and bias; the scale is float32 by contract, and would lose accuracy unnoticed.
        scale = self.scale
        super()._apply(fn, recurse)
        if scale is not None and self.scale is not None and self.scale.dtype != torch.float32:
            self.scale = scale.to(self.scale.device)
        self.dense_dtype = fn(torch.empty((), dtype=self.dense_dtype, device=self.values.device)).dtype
        return self

    def _activations(
        self, x: Tensor | PackedSpikes, channels: int, dim: int
    ) -> tuple[Tensor | PackedSpikes, torch.dtype]:
        """What the kernel is given, and the dtype of its result.

        Dense spikes are packed where that can pay: on a CPU with native kernels, where the check whether all values
        are 0 or 1 is cheap. Other values, sums of spikes in residual networks for example, stay dense.
        """
        if isinstance(x, Tensor) and x.dtype == torch.uint8:
            x = PackedSpikes(x, channels, channels_last=dim == -3)
        if isinstance(x, PackedSpikes):
            return x, self.dense_dtype
        if self._packs(x):
            return PackedSpikes.try_from_dense(x, dim) or x, x.dtype
        return x, x.dtype

    def _packs(self, x: Tensor) -> bool:
        if x.requires_grad or torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type):
            return False
        native = x.device.type == "cpu" and x.dtype in NATIVE_DTYPES and native_backend(x.device) is not None
        return native and wanted_backend(self.backend, (*BACKENDS, *MORE_BACKENDS)) in ("auto", "cpp")

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        """Refuses parts that do not make a weight of this layer's shape and pattern, before anything is copied."""
        new = {name: state_dict.get(prefix + name, getattr(self, name)) for name in ("values", "indices", "scale")}
        try:
            CompressedNM(new["values"], new["indices"], self.shape, self.pattern, new["scale"])
            if new["values"].dtype != self.values.dtype:
                raise ArgumentError(f"values: are {new['values'].dtype}, the layer's {self.values.dtype}")
        except ArgumentError as error:
            error_msgs.append(f"{prefix.rstrip('.') or 'layer'}: {error}")
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _describe(self) -> str:
        scaled = "" if self.scale is None else ", scaled"
        return f"pattern={self.pattern}, dtype={self.values.dtype}{scaled}"


class CompressedLinear(CompressedLayer):
    """Linear layer with a compressed weight: ``y = scale * (x W^T) + bias``.

    Args:
        weight: ``[out_features, in_features]``.
        bias: ``[out_features]`` or None.
        backend: of :func:`snn_core.kernels.nm_matmul`.

    Raises:
        ArgumentError: a weight or bias of another shape.
    """

    def __init__(self, weight: CompressedNM, bias: Tensor | None = None, *, backend: str = "auto") -> None:
        if len(weight.shape) != 2:
            raise ArgumentError(f"weight: expected [out_features, in_features], got {list(weight.shape)}")
        super().__init__(weight, bias, backend=backend)

    @property
    def in_features(self) -> int:
        """Size of the input's last dimension."""
        return self.shape[1]

    @property
    def out_features(self) -> int:
        """Size of the output's last dimension."""
        return self.shape[0]

    def forward(self, x: Tensor | PackedSpikes) -> Tensor:
        """``[..., in_features]``, dense or packed spikes -> ``[..., out_features]``."""
        x, out_dtype = self._activations(x, self.in_features, -1)
        return nm_matmul(x, self.weight, self.bias, out_dtype=out_dtype, backend=self.backend)

    def to_dense(self, dtype: torch.dtype | None = None) -> nn.Linear:
        """An ``nn.Linear`` of the same function, in ``dense_dtype`` unless told otherwise."""
        weight = self.weight.to_dense(dtype or self.dense_dtype)
        layer = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        return _with_parameters(layer, weight, self.bias, self.training)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"{self._describe()}"
        )


class CompressedConv2d(CompressedLayer):
    """2-D convolution with a compressed weight.

    Args:
        weight: ``[out_channels, in_channels / groups, kh, kw]``.
        bias: ``[out_channels]`` or None.
        stride, padding, dilation, groups, padding_mode: as for ``nn.Conv2d``.
        backend: of :func:`snn_core.kernels.nm_conv2d`.

    Raises:
        ArgumentError: a weight or bias of another shape, or options that ``nn.Conv2d`` does not take.
    """

    def __init__(
        self,
        weight: CompressedNM,
        bias: Tensor | None = None,
        *,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
        backend: str = "auto",
    ) -> None:
        if len(weight.shape) != 4:
            raise ArgumentError(f"weight: expected [out, in / groups, kh, kw], got {list(weight.shape)}")
        super().__init__(weight, bias, backend=backend)
        self.kernel_size = (self.shape[2], self.shape[3])
        try:  # nn.Conv2d knows what is allowed, and works out "same" and the other padding modes
            mode: Any = padding_mode
            like = nn.Conv2d(
                self.shape[1] * groups, self.shape[0], self.kernel_size, stride, padding, dilation, groups,
                padding_mode=mode, device="meta",
            )  # fmt: skip
        except (ValueError, RuntimeError, ZeroDivisionError, TypeError) as error:
            raise ArgumentError(f"convolution of weight {list(self.shape)}: {error}") from error
        self.in_channels, self.out_channels, self.groups = like.in_channels, like.out_channels, like.groups
        self.stride: Any = like.stride
        self.padding: Any = like.padding
        self.dilation: Any = like.dilation
        self.padding_mode = like.padding_mode
        left, right, top, bottom = like._reversed_padding_repeated_twice
        #: What F.pad adds before the convolution (left, right, top, bottom), and what the convolution itself adds.
        self._added, self._implicit = (left, right, top, bottom), (0, 0)
        if padding_mode == "zeros" and left == right and top == bottom:
            self._added, self._implicit = (0, 0, 0, 0), (top, left)

    def forward(self, x: Tensor | PackedSpikes) -> Tensor:
        """``[..., C, H, W]``, or packed channels-last spikes -> ``[..., O, OH, OW]``."""
        x, out_dtype = self._activations(x, self.in_channels, -3)
        leading = x.shape[:-3]
        if any(self._added):
            # Packed bits are not padded: wrapped and mirrored borders are rare enough to go through the dense form.
            x = x.to_dense(self.dense_dtype) if isinstance(x, PackedSpikes) else x
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x = F.pad(x.reshape(-1, *x.shape[-3:]), self._added, mode=mode)
            x = x.reshape(*leading, *x.shape[-3:])
        if not leading:
            x = x.with_leading(1) if isinstance(x, PackedSpikes) else x.unsqueeze(0)
        y: Tensor = nm_conv2d(
            x, self.weight, self.bias, self.stride, self._implicit, self.dilation, self.groups,
            out_dtype=out_dtype, backend=self.backend,
        )  # fmt: skip
        return y if leading else y.squeeze(0)

    def to_dense(self, dtype: torch.dtype | None = None) -> nn.Conv2d:
        """An ``nn.Conv2d`` of the same function, in ``dense_dtype`` unless told otherwise."""
        weight = self.weight.to_dense(dtype or self.dense_dtype)
        layer = nn.Conv2d(
            self.in_channels, self.out_channels, self.kernel_size, self.stride, self.padding, self.dilation,
            self.groups, self.bias is not None, self.padding_mode, device="meta",
        )  # fmt: skip
        return _with_parameters(layer, weight, self.bias, self.training)

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        options = {"padding": (0, 0), "dilation": (1, 1), "groups": 1, "padding_mode": "zeros"}
        for name, usual in options.items():
            if getattr(self, name) != usual:
                text += f", {name}={getattr(self, name)!r}"
        return f"{text}, bias={self.bias is not None}, {self._describe()}"


def _with_parameters(layer: Any, weight: Tensor, bias: Tensor | None, training: bool) -> Any:
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().to(weight.dtype, copy=True), requires_grad=False)
    return layer.train(training)


def of_dense(layer: nn.Module, weight: CompressedNM, *, backend: str = "auto") -> CompressedLinear | CompressedConv2d:
    """The compressed form of an ``nn.Linear`` or ``nn.Conv2d`` with ``weight`` in place of its own."""
    offset = layer._parameters["bias"]
    bias = None if offset is None else offset.detach().clone()
    if isinstance(layer, nn.Linear):
        compressed: CompressedLinear | CompressedConv2d = CompressedLinear(weight, bias, backend=backend)
    else:
        assert isinstance(layer, nn.Conv2d)
        options: dict[str, Any] = {
            name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups", "padding_mode")
        }
        compressed = CompressedConv2d(weight, bias, **options, backend=backend)
    weight_parameter = layer._parameters["weight"]
    assert weight_parameter is not None
    compressed.dense_dtype = weight_parameter.dtype
    return compressed.train(layer.training)
