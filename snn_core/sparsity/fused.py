"""The parts of a fused network: layers with their norm folded in, on packed or dense input, and neurons behind them.

Inside a run of fused parts a value is folded over time and batch. Spikes are bits ``[N, H, W, ceil(C / 8)]`` (a Linear
has H = W = 1), everything else is dense, ``[N, C, H, W]`` or ``[N, K]``. Which of the two a part gets is known when it
is built.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snn_core.errors import ArgumentError
from snn_core.kernels import PackedSpikes, lif, nm_conv2d, nm_conv2d_lif, unpack_spikes
from snn_core.kernels.frame_conv.ops import LARGEST_WINDOW
from snn_core.kernels.native import resolve_backend
from snn_core.kernels.nm_compress import CompressedNM, NMPattern
from snn_core.kernels.nm_matmul.schema import output_size
from snn_core.kernels.spike_pack import is_binary

Pair = tuple[int, int]
Geometry = tuple[Pair, Pair, Pair, int]
LINEAR: Geometry = ((1, 1), (0, 0), (1, 1), 1)
NATIVE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.float8_e4m3fn)


@dataclass
class Call:
    """What the parts of a run must know of one call: ``lead`` are the dimensions that are folded, time first;
    ``table`` is what the first layer sees of counts (uint8)."""

    lead: tuple[int, ...]
    native: bool
    backend: str
    keep_state: bool
    table: Tensor | None = None


@dataclass(frozen=True)
class Neuron:
    """A neuron's constants, and where its state is kept."""

    module: nn.Module
    tau: float
    v_threshold: float
    v_reset: float | None
    decay_input: bool
    single_step: bool
    reciprocal_tau: Callable[[], Tensor | None]

    def steps(self, call: Call) -> int:
        """Time steps in a call."""
        return 1 if self.single_step else call.lead[0]

    def lead(self, call: Call) -> tuple[int, ...]:
        """Dimensions of the potential before those of a sample."""
        return call.lead if self.single_step else call.lead[1:]

    def options(self) -> dict[str, Any]:
        """Keyword arguments of :func:`lif`."""
        return {"tau": self.tau, "v_threshold": self.v_threshold, "v_reset": self.v_reset,
                "decay_input": self.decay_input}  # fmt: skip

    def load(self, call: Call, shape: tuple[int, ...]) -> Tensor | None:
        """The potential left from the last call, ``[S, *shape]`` float32; None before the first one."""
        if not call.keep_state:
            return None
        v: Any = self.module.v
        reset = 0.0 if self.v_reset is None else self.v_reset
        expected = (*self.lead(call), *shape)
        if not isinstance(v, Tensor):  # SpikingJelly's state is a number before the first step
            if v is None or v == reset:
                return None
            v = torch.full(expected, float(v), device=next(self.module.parameters()).device)
        if v.shape != expected:
            raise ArgumentError(
                f"x leads to neurons of shape {list(expected)}, but the potential v left from the last call has shape "
                f"{list(v.shape)}; call snn_core.reset_net() before input of another shape"
            )
        return v.reshape(-1, *shape).float()

    def store(self, call: Call, v: Tensor) -> None:
        """Keep ``v [S, *shape]`` for the next call."""
        if call.keep_state:
            self.module.v = v.reshape(*self.lead(call), *v.shape[1:])


class Synapses(nn.Module):
    """A Conv2d or Linear with its batch norm folded in: ``scale[o] * sum + bias[o]``.

    A compressed weight keeps its values; the norm goes into the scale. A dense one is scaled, in float32, and lies
    as ``[O, kh, kw, C / groups]``.
    """

    values: nn.Parameter
    indices: Tensor | None
    scale: Tensor | None
    bias: Tensor | None

    def __init__(
        self, weight: Tensor | CompressedNM, bias: Tensor | None, geometry: Geometry, norm: nn.Module | None
    ) -> None:
        super().__init__()
        self.linear = len(weight.shape) == 2
        self.shape4 = [*weight.shape, 1, 1] if self.linear else list(weight.shape)
        self.geometry = geometry
        self.stride, self.padding, self.dilation = (list(pair) for pair in geometry[:3])
        self.groups = geometry[3]
        self.channels = self.shape4[1] * self.groups
        self.pattern: NMPattern | None = None
        gain, shift = _folded_norm(norm)
        offset = None if bias is None else bias.detach().float()
        if gain is not None:
            offset = shift if offset is None else shift + gain * offset  # type: ignore[operator]
        if isinstance(weight, CompressedNM):
            self.pattern = weight.pattern
            scale = weight.scale if gain is None else gain if weight.scale is None else gain * weight.scale
            values, indices = weight.values.detach(), weight.indices
        else:
            dense = weight.detach().float()
            if gain is not None:
                dense = dense * gain.view(-1, *[1] * (dense.ndim - 1))
            values, indices, scale = dense if self.linear else dense.permute(0, 2, 3, 1), None, None
        # A parameter, so that whoever asks for the device of next(network.parameters()) is answered.
        self.values = nn.Parameter(values.contiguous(), requires_grad=False)
        self.register_buffer("indices", indices, persistent=False)
        self.register_buffer("scale", None if scale is None else scale.contiguous(), persistent=False)
        self.register_buffer("bias", None if offset is None else offset.contiguous(), persistent=False)
        self.fits_native = self.values.dtype in NATIVE_DTYPES and (self.groups == 1 or self.shape4[1] % 8 == 0)
        self._weight: CompressedNM | Tensor | None = None
        self._frame_rows: Tensor | None = None

    def _apply(self, fn: Any, recurse: bool = True) -> Synapses:
        if fn(torch.empty(0, device=self.values.device)).dtype != torch.float32:
            raise ArgumentError("a fused network keeps its dtypes; convert the model, then call fuse()")
        self._weight, self._frame_rows = None, None
        return super()._apply(fn, recurse)

    @property
    def weight(self) -> CompressedNM | Tensor:
        """``[O, C / groups, kh, kw]`` as the public functions take it; made once."""
        if self._weight is None:
            shape = tuple(self.shape4)
            if self.pattern is None:
                self._weight = self.values.view(shape[0], *shape[2:], shape[1]).permute(0, 3, 1, 2)
            else:
                assert self.indices is not None
                self._weight = CompressedNM(self.values, self.indices, shape, self.pattern, self.scale)
        return self._weight

    @property
    def takes_frames(self) -> bool:
        """Whether ``frame_conv_lif`` computes it on dense input: few inputs for each output."""
        inputs = self.shape4[1] * self.shape4[2] * self.shape4[3]
        return not self.linear and self.pattern is None and self.groups == 1 and inputs <= LARGEST_WINDOW

    def frame_rows(self) -> Tensor:
        """The weight ``[kh, kw, C, O]``; made once."""
        if self._frame_rows is None:
            self._frame_rows = self.values.permute(1, 2, 3, 0).contiguous()
        return self._frame_rows

    def output_size(self, size: Sequence[int]) -> list[int]:
        """Height and width of the output for an input of ``size``."""
        return output_size(size, self.shape4[2:], self.stride, self.padding, self.dilation)

    def reorder_flat(self, channels: int) -> None:
        """For a dense Linear behind packed images: its columns from the order (C, H, W) to (H, W, C)."""
        columns = self.values.view(self.values.shape[0], channels, -1)
        ordered = columns.transpose(1, 2).reshape(self.values.shape).contiguous()
        self.values = nn.Parameter(ordered, requires_grad=False)

    def operands(self) -> tuple[Any, ...]:
        """The operators' WEIGHT and CONV arguments."""
        n, m = (0, 0) if self.pattern is None else (self.pattern.n, self.pattern.m)
        return (self.values, self.indices, n, m, self.shape4, self.scale, self.bias,
                self.stride, self.padding, self.dilation, self.groups)  # fmt: skip

    def on_spikes(self, bits: Tensor, call: Call) -> Tensor:
        """Currents ``[N, O, OH, OW]`` (channels-last in memory), float32."""
        if call.native and self.fits_native:
            operator = torch.ops.snn_core.nm_spikes.default
            return operator(bits, self.channels, *self.operands(), torch.float32, 0).permute(0, 3, 1, 2)
        x = PackedSpikes(bits, self.channels, channels_last=True)
        return nm_conv2d(x, self.weight, self.bias, *self.geometry, out_dtype=torch.float32, backend=call.backend)

    def on_dense(self, x: Tensor, call: Call) -> Tensor:
        """Currents of dense input, in float32: ``[N, O, OH, OW]`` or ``[N, O]``."""
        x = x.float()
        if self.linear and self.pattern is None:
            return F.linear(x, self.values, self.bias)
        images = x.view(*x.shape, 1, 1) if self.linear else x
        if self.pattern is None:
            y = F.conv2d(images, self.weight, self.bias, *self.geometry)  # type: ignore[arg-type]
        else:
            y = nm_conv2d(images, self.weight, self.bias, *self.geometry, backend=call.backend)
        return y.flatten(1) if self.linear else y

    def extra_repr(self) -> str:
        kind = "Linear" if self.linear else "Conv2d"
        shape = self.shape4[:2] if self.linear else self.shape4
        return f"{kind} {shape}, {self.pattern or 'dense'}, {self.values.dtype}"


class SpikingLayer(nn.Module):
    """Synapses and the neurons behind them: spikes or dense input -> bits."""

    def __init__(self, synapses: Synapses, neuron: Neuron) -> None:
        super().__init__()
        self.synapses, self.neuron_module, self.neuron = synapses, neuron.module, neuron
        self.channels = synapses.shape4[0]

    def begin(self, x: Tensor, call: Call) -> Tensor:
        """Dense input, not folded, or counts for ``call.table`` -> bits."""
        synapses = self.synapses
        learned = self.neuron.reciprocal_tau()
        if synapses.takes_frames and call.native and x.device.type == "cpu" and learned is None:
            return self._begin_frames(x, call)
        if call.table is not None:
            x = call.table[x.long()]
        x = x.reshape(-1, *x.shape[len(call.lead) :])
        if synapses.pattern is not None and is_binary(x):
            images = PackedSpikes.from_dense(x, -1 if synapses.linear else -3, check=False).bits
            return self.run(images[:, None, None, :] if synapses.linear else images, call)
        current = synapses.on_dense(x, call)
        return self._fire(current[:, :, None, None] if synapses.linear else current, learned, call)

    def _begin_frames(self, x: Tensor, call: Call) -> Tensor:
        synapses, neuron = self.synapses, self.neuron
        if call.table is None:
            x = x.float()
        x = x if len(call.lead) == 2 and not neuron.single_step else x.reshape(neuron.steps(call), -1, *x.shape[-3:])
        v0 = self._load(x.shape[3:], call)
        bits, v = torch.ops.snn_core.frame_conv_lif.default(
            x, call.table, synapses.frame_rows(), synapses.bias, synapses.stride, synapses.padding, synapses.dilation,
            None if v0 is None else v0.permute(0, 2, 3, 1).contiguous(), neuron.tau, neuron.v_threshold,
            neuron.v_reset, neuron.decay_input,
        )  # fmt: skip
        if call.keep_state:
            self._store(v.permute(0, 3, 1, 2), call)
        return bits

    def run(self, x: Tensor, call: Call) -> Tensor:
        """Bits -> bits."""
        synapses, neuron = self.synapses, self.neuron
        learned = neuron.reciprocal_tau()
        if learned is not None:
            return self._fire(synapses.on_spikes(x, call), learned, call)
        steps = neuron.steps(call)
        if call.native and synapses.fits_native:
            v0 = self._load(x.shape[1:3], call)
            v0 = None if v0 is None else v0.permute(0, 2, 3, 1).contiguous()
            bits, v = torch.ops.snn_core.nm_spikes_lif.default(
                x, synapses.channels, *synapses.operands(), steps, v0, neuron.tau, neuron.v_threshold, neuron.v_reset,
                neuron.decay_input, True, torch.float32, 0,
            )  # fmt: skip
            if call.keep_state:
                self._store(v.permute(0, 3, 1, 2), call)
            return bits
        spikes, v = nm_conv2d_lif(
            PackedSpikes(x.unflatten(0, (steps, -1)), synapses.channels, channels_last=True), synapses.weight,
            synapses.bias, *synapses.geometry, self._load(x.shape[1:3], call), **neuron.options(), backend=call.backend,
        )  # fmt: skip
        self._store(v, call)
        assert isinstance(spikes, PackedSpikes)
        return spikes.bits.flatten(0, 1)

    def _fire(self, current: Tensor, reciprocal_tau: Tensor | None, call: Call) -> Tensor:
        """Neurons on dense currents ``[N, O, OH, OW]``."""
        neuron = self.neuron
        current = current.contiguous(memory_format=torch.channels_last)
        backend = call.backend if call.backend in ("reference", "cpp", "cuda", "triton") else "auto"
        bits, v = lif(
            current.unflatten(0, (neuron.steps(call), -1)), self._load(current.shape[2:], call, outputs=True),
            reciprocal_tau=reciprocal_tau, **neuron.options(), pack_spikes_dim=2, backend=backend,
        )  # fmt: skip
        self._store(v, call)
        return bits.flatten(0, 1).permute(0, 2, 3, 1).contiguous()

    def _load(self, size: Sequence[int], call: Call, outputs: bool = False) -> Tensor | None:
        """The potential ``[S, O, OH, OW]`` for an input (or ``outputs``) of this height and width."""
        if not call.keep_state:
            return None
        if not outputs:
            size = self.synapses.output_size(size)
        shape = (self.channels,) if self.synapses.linear else (self.channels, *size)
        v = self.neuron.load(call, shape)
        return v if v is None or v.ndim == 4 else v[:, :, None, None]

    def _store(self, v: Tensor, call: Call) -> None:
        self.neuron.store(call, v.flatten(1) if self.synapses.linear else v)


class Pool(nn.Module):
    """Max-pooling of bits."""

    def __init__(self, pool: nn.MaxPool2d, channels: int) -> None:
        super().__init__()
        self.channels = channels
        stride = pool.kernel_size if pool.stride is None else pool.stride
        self.kernel, self.stride, self.padding = (list(pair(x)) for x in (pool.kernel_size, stride, pool.padding))

    def run(self, bits: Tensor, call: Call) -> Tensor:
        if call.native:
            return torch.ops.snn_core.spike_max_pool.default(bits, self.kernel, self.stride, self.padding)
        spikes = unpack_spikes(bits, self.channels, -1, dtype=torch.float32).permute(0, 3, 1, 2)
        pooled = F.max_pool2d(spikes, self.kernel, self.stride, self.padding)
        return PackedSpikes.from_dense(pooled, -3, check=False).bits

    def extra_repr(self) -> str:
        return f"kernel={self.kernel}, stride={self.stride}, padding={self.padding}"


class Flat(nn.Module):
    """Packed images as the input of a Linear: bits ``[N, H, W, C / 8] -> [N, 1, 1, H * W * C / 8]``.

    ``as_it_lies``: the Linear takes its inputs in the order (H, W, C). Otherwise (a compressed weight, whose blocks
    follow the order (C, H, W); a number of channels that is no multiple of 8) the bits are put in order.
    """

    def __init__(self, channels: int, as_it_lies: bool) -> None:
        super().__init__()
        self.channels, self.as_it_lies = channels, as_it_lies

    def run(self, bits: Tensor, call: Call) -> Tensor:
        if self.as_it_lies or bits.shape[1:3] == (1, 1):
            return bits.reshape(bits.shape[0], 1, 1, -1)
        spikes = unpack_spikes(bits, self.channels, -1, dtype=torch.float32)
        ordered = spikes.permute(0, 3, 1, 2).flatten(1)
        return PackedSpikes.from_dense(ordered, check=False).bits[:, None, None, :]


class ReadOut(nn.Module):
    """Synapses without neurons behind them: bits -> dense."""

    def __init__(self, synapses: Synapses) -> None:
        super().__init__()
        self.synapses = synapses

    def run(self, bits: Tensor, call: Call) -> Tensor:
        y = self.synapses.on_spikes(bits, call)
        return y.flatten(1) if self.synapses.linear else y


class Unpack(nn.Module):
    """Bits -> dense spikes ``[N, C, H, W]``, or ``[N, K]``, for whoever does not take bits."""

    def __init__(self, channels: int, linear: bool) -> None:
        super().__init__()
        self.channels, self.linear = channels, linear

    def run(self, bits: Tensor, call: Call) -> Tensor:
        spikes = unpack_spikes(bits, self.channels, -1, dtype=torch.float32)
        return spikes.flatten(1) if self.linear else spikes.permute(0, 3, 1, 2)


def pair(value: Any) -> Pair:
    """An integer or a pair of them as a pair."""
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def native_for(backend: str, device: torch.device) -> bool:
    """Whether the native operators are called directly; the public functions choose otherwise."""
    if backend not in ("auto", "cpp", "cuda"):
        return False
    return resolve_backend(backend, device, torch.float32, (torch.float32,)) in ("cpp", "cuda")


def _folded_norm(norm: Any) -> tuple[Tensor | None, Tensor | None]:
    """Gain and shift of a batch norm in evaluation mode, float32, computed in float64."""
    if norm is None:
        return None, None
    gain = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        gain = gain * norm.weight.detach().double()
    shift = -norm.running_mean.double() * gain
    if norm.bias is not None:
        shift = shift + norm.bias.detach().double()
    return gain.float(), shift.float()
