"""The ``frame_conv_lif`` operator: schema, fake kernel, dispatch and the public function.

The first layer of a network that sees event frames is small, but dense, with few input channels and large images, so
that in a network whose other layers are sparse it takes most of the time. Event frames are zero nearly everywhere: for
each value that is not, the operator adds the rows of the weight that it meets, and runs the neurons while the currents
are in the caches; only bits are written. CPU; elsewhere torch's convolution and :func:`lif` do it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from snn_core.errors import ArgumentError, BackendUnavailableError
from snn_core.kernels.frame_conv import reference
from snn_core.kernels.lif import lif
from snn_core.kernels.lif.checks import check_neuron
from snn_core.kernels.native import resolve_backend
from snn_core.kernels.native.library import LIBRARY, packed_size
from snn_core.kernels.nm_matmul.operands import Pair, check_pair
from snn_core.kernels.nm_matmul.schema import output_size
from snn_core.kernels.spike_pack.packed import PackedSpikes

#: Inputs of one output (C * kh * kw) up to which this is faster than torch's convolution even where nothing is zero.
LARGEST_WINDOW = 128


def _fake(
    x_seq: Tensor, table: Any, weight: Tensor, bias: Any, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], *rest: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    steps, samples, _, *size = x_seq.shape
    outputs = weight.shape[3]
    size = output_size(size, weight.shape[:2], stride, padding, dilation)
    bits = x_seq.new_empty([steps * samples, *size, packed_size(outputs)], dtype=torch.uint8)
    return bits, x_seq.new_empty([samples, *size, outputs], dtype=torch.float32)


LIBRARY.define(
    "frame_conv_lif(Tensor x_seq, Tensor? table, Tensor weight, Tensor? bias, int[] stride, int[] padding, "
    "int[] dilation, Tensor? v0, float tau, float v_threshold, float? v_reset, bool decay_input) -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.register_fake("snn_core::frame_conv_lif", _fake, lib=LIBRARY)


def frame_conv2d_lif(
    x_seq: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Pair = 1,
    padding: int | Pair = 0,
    dilation: int | Pair = 1,
    v0: Tensor | None = None,
    *,
    table: Tensor | None = None,
    tau: float = 2.0,
    v_threshold: float = 1.0,
    v_reset: float | None = 0.0,
    decay_input: bool = True,
    backend: str = "auto",
) -> tuple[PackedSpikes, Tensor]:
    """Convolution of frames and LIF behind it, for inference. Made for frames with few channels and many zeros.

    Args:
        x_seq: frames ``[T, S, C, H, W]``, any strides: float32, or uint8 counts.
        weight: ``[O, C, kh, kw]`` float32. An input of zero adds nothing, whatever its weight.
        bias: ``[O]`` float32.
        stride, padding, dilation: integers or pairs (height, width); zero padding.
        v0: initial membrane potential ``[S, O, OH, OW]`` float32; default ``v_reset`` or 0.
        table: float32 ``[256]``: what the network sees of a count (``log1p`` of it, say); uint8 ``x_seq`` only.
        tau, v_threshold, v_reset, decay_input: as in :func:`lif`.
        backend: ``auto``, ``cpp`` (CPU) or ``reference``.

    Returns:
        Spikes ``[T, S, O, OH, OW]``, packed, and the last potential ``[S, O, OH, OW]`` float32.

    Raises:
        ArgumentError: a shape, dtype or value that is not allowed.
        BackendUnavailableError: the backend asked for cannot run here.
    """
    _check(x_seq, weight, bias, table)
    stride, padding, dilation = (
        check_pair(stride, "stride", 1), check_pair(padding, "padding", 0), check_pair(dilation, "dilation", 1),
    )  # fmt: skip
    size = output_size(x_seq.shape[3:], weight.shape[2:], stride, padding, dilation)
    if min(size) < 1:
        raise ArgumentError(f"x_seq has frames {list(x_seq.shape[3:])}; the window of the weight is larger")
    shape = (x_seq.shape[1], weight.shape[0], *size)
    if v0 is not None and (v0.dtype != torch.float32 or tuple(v0.shape) != shape):
        raise ArgumentError(f"v0 is {v0.dtype} {list(v0.shape)}; it must be float32 {list(shape)}")
    chosen = resolve_backend(backend, x_seq.device, torch.float32, (torch.float32,))
    if chosen not in ("cpp", "reference") and backend not in ("auto",):
        raise BackendUnavailableError(f"backend {backend!r} has no frame_conv2d_lif; there are cpp and reference")
    neuron: dict[str, Any] = {
        "tau": tau, "v_threshold": v_threshold, "v_reset": v_reset, "decay_input": decay_input
    }  # fmt: skip
    check_neuron(**neuron)
    if chosen == "cpp":
        rows = weight.permute(2, 3, 1, 0).contiguous()
        v0 = None if v0 is None else v0.permute(0, 2, 3, 1).contiguous()
        bits, v_last = torch.ops.snn_core.frame_conv_lif(
            x_seq, table, rows, bias, stride, padding, dilation, v0, tau, v_threshold, v_reset, decay_input
        )
        bits = bits.unflatten(0, x_seq.shape[:2])
        return PackedSpikes(bits, weight.shape[0], channels_last=True), v_last.permute(0, 3, 1, 2)
    if chosen == "reference":
        spikes, v_last = reference.frame_conv2d_lif(
            x_seq, table, weight, bias, v0, stride, padding, dilation, **neuron
        )  # fmt: skip
    else:
        x = x_seq.float() if table is None else table[x_seq.long()]
        current = F.conv2d(x.flatten(0, 1), weight, bias, stride, padding, dilation)
        spikes, v_last = lif(current.unflatten(0, x_seq.shape[:2]), v0, **neuron)
    return PackedSpikes.from_dense(spikes, -3, check=False), v_last


def _check(x_seq: Any, weight: Any, bias: Any, table: Any) -> None:
    for name, tensor, dims in (("x_seq", x_seq, 5), ("weight", weight, 4), ("bias", bias, 1), ("table", table, 1)):
        if tensor is None and name in ("bias", "table"):
            continue
        if not isinstance(tensor, Tensor):
            raise ArgumentError(f"{name} is a {type(tensor).__name__}; it must be a torch.Tensor")
        allowed = (torch.float32, torch.uint8) if name == "x_seq" else (torch.float32,)
        if tensor.dtype not in allowed or tensor.ndim != dims or tensor.layout is not torch.strided:
            raise ArgumentError(
                f"{name} is {tensor.dtype} {list(tensor.shape)}; it must have {dims} dimensions of "
                f"{' or '.join(map(str, allowed))}"
            )
        if tensor.device != weight.device:
            raise ArgumentError(f"{name} is on {tensor.device}, the weight on {weight.device}")
    if x_seq.shape[2] != weight.shape[1]:
        raise ArgumentError(f"x_seq has shape {list(x_seq.shape)}; the weight takes {weight.shape[1]} channels")
    if x_seq.shape[0] < 1:
        raise ArgumentError("x_seq has no time step")
    if bias is not None and bias.shape[0] != weight.shape[0]:
        raise ArgumentError(f"bias has shape {list(bias.shape)}; it must be [{weight.shape[0]}]")
    if table is not None and (x_seq.dtype != torch.uint8 or table.shape[0] != 256):
        raise ArgumentError(f"table has shape {list(table.shape)} for x_seq of {x_seq.dtype}; [256] for uint8 counts")
