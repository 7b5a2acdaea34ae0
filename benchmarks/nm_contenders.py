"""Who takes part in the N:M benchmark: our operators, dense products of torch, and torch's sparse ones."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from snn_core.errors import BackendUnavailableError
from snn_core.kernels.nm_compress import CompressedNM
from snn_core.kernels.nm_matmul import nm_conv2d, nm_matmul
from snn_core.kernels.nm_matmul.schema import CPU_PATHS, CUDA_PATHS
from snn_core.kernels.spike_pack import PackedSpikes, pack_spikes

Run = Callable[[], Tensor]


@dataclass
class Contender:
    """One way to compute the product, and the call that returns it.

    ``kind``: ``ours`` is what a user gets, ``path`` a way of ours asked for by name, ``packing`` of the spikes, apart
    and included; ``dense`` products with the dense weight, ``sparse`` torch's own sparse ones.
    """

    name: str
    kind: str
    run: Run


@dataclass
class Operands:
    """Inputs of one product: ``x`` float32 of 0 and 1, or activations; ``weight`` float32 that obeys the pattern and
    holds numbers that the 16-bit type of the cell holds exactly, so that all contenders multiply with the same ones."""

    x: Tensor
    weight: Tensor
    pattern: str
    dtype: torch.dtype
    spikes: bool
    convolution: tuple[Any, ...] | None  # stride, padding, dilation, groups


def contenders(
    operands: Operands, names: Sequence[str] | None = None, patience: float = float("inf")
) -> tuple[list[Contender], dict[str, str]]:
    """Everyone for these operands (or those of ``names``), ours first, and why others are missing.

    Forms of the weight are made here. Without ``names``, each is called once: that shows who cannot take these operands
    and who takes more than ``patience`` seconds.
    """
    found: list[Contender] = []
    missing: dict[str, str] = {}
    cpu = operands.x.device.type == "cpu"
    groups: list[Callable[[Operands], list[tuple[str, str, Callable[[], Run]]]]]
    groups = [_ours, _dense_conv if operands.convolution is not None else _dense]
    if operands.convolution is None:
        groups.append(_sparse_on_cpu if cpu else _sparse_on_cuda)
    for group in groups:
        for name, kind, make in group(operands):
            if names is not None and name not in names:
                continue
            try:
                run = make()
                began = time.perf_counter()
                if names is None:
                    run()
                seconds = time.perf_counter() - began
            except (RuntimeError, NotImplementedError, AttributeError, BackendUnavailableError) as error:
                missing[name] = f"{type(error).__name__}: {error}".split("\n")[0][:300]
                continue
            if kind != "ours" and seconds > patience:
                missing[name] = f"{seconds:.1f} s a call, {patience:.1f} allowed"
                continue
            found.append(Contender(name, kind, run))
    return found, missing


Making = tuple[str, str, Callable[[], Run]]


def _ours(operands: Operands) -> list[Making]:
    compressed = CompressedNM.from_dense(operands.weight.to(operands.dtype), operands.pattern)
    if not operands.spikes:
        return _ours_dense_activations(operands, compressed)
    x, size = operands.x, operands.x.shape[1]
    dim = -1 if operands.convolution is None else -3
    if dim == -3:  # as they lie in a network for which all of this is fast
        x = x.contiguous(memory_format=torch.channels_last)
    bits = PackedSpikes.from_dense(x, dim).bits
    # A new object each time: its firing rate is counted in every call, as it is in a network.
    packed = functools.partial(PackedSpikes, bits, size, dim == -3)
    call: Any = nm_matmul if operands.convolution is None else nm_conv2d
    more = () if operands.convolution is None else (None, *operands.convolution)
    dense_weight = operands.weight.to(operands.dtype)

    def product(spikes: PackedSpikes, weight: Any) -> Tensor:
        return call(spikes, weight, *more, out_dtype=torch.float32)

    def with_packing() -> Tensor:
        return product(PackedSpikes.from_dense(x, dim, check=False), compressed)

    quantized = compressed.quantize(torch.int8)
    makings: list[Making] = [
        ("snn_core", "ours", lambda: lambda: product(packed(), compressed)),
        ("snn_core, with packing", "packing", lambda: with_packing),
        ("packing alone", "packing", lambda: lambda: pack_spikes(x, dim)),
        ("snn_core, dense weight", "path", lambda: lambda: product(packed(), dense_weight)),
        ("snn_core, int8 weight", "path", lambda: lambda: product(packed(), quantized)),
    ]
    paths = CPU_PATHS if x.device.type == "cpu" else CUDA_PATHS
    for name, path in paths.items():
        makings.append((f"path {name}", "path", functools.partial(_path, operands, compressed, bits, path)))
    return makings


def _path(operands: Operands, weight: CompressedNM, bits: Tensor, path: int) -> Run:
    shape = [*weight.shape, 1, 1][:4]
    pattern = weight.pattern
    image = bits if operands.convolution is not None else bits[:, None, None]
    pairs = operands.convolution or (1, 0, 1, 1)
    conv = [[one, one] if isinstance(one, int) else list(one) for one in pairs[:3]]
    arguments = (
        image, operands.x.shape[1], weight.values, weight.indices, pattern.n, pattern.m, shape, None, None, *conv,
        pairs[3], torch.float32, path,
    )  # fmt: skip

    def run() -> Tensor:
        y = torch.ops.snn_core.nm_spikes(*arguments)
        return y.flatten(0, 2) if operands.convolution is None else y.permute(0, 3, 1, 2)

    return run


def _ours_dense_activations(operands: Operands, compressed: CompressedNM) -> list[Making]:
    x = operands.x.to(operands.dtype)
    makings: list[Making] = [("snn_core", "ours", lambda: lambda: nm_matmul(x, compressed))]
    backends = ("cpp",) if x.device.type == "cpu" else ("cuda", "triton")
    for backend in backends:
        makings.append(
            (f"snn_core {backend}", "path", lambda b=backend: lambda: nm_matmul(x, compressed, backend=b))  # type: ignore[misc]
        )
    return makings


def _dense(operands: Operands) -> list[Making]:
    makings: list[Making] = []
    dtypes = (torch.float32, torch.bfloat16) if operands.x.device.type == "cpu" else (torch.bfloat16, torch.float16)
    for dtype in dtypes:
        name = str(dtype).removeprefix("torch.")
        x, weight = operands.x.to(dtype), operands.weight.to(dtype)
        makings.append((f"F.linear {name}", "dense", lambda x=x, w=weight: lambda: F.linear(x, w)))  # type: ignore[misc]
        if x.device.type == "cpu":
            makings.append((f"oneDNN {name}", "dense", functools.partial(_onednn_linear, x, weight)))
    if operands.x.device.type == "cuda":
        makings.append(("cuBLAS float8", "dense", functools.partial(_float8, operands)))
    return makings


def _onednn_linear(x: Tensor, weight: Tensor) -> Run:
    """oneDNN with the weight in its own blocked order, as torch.compile's frozen graphs call it. (F.linear in float32
    on the CPU is MKL's.)"""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, x.shape[0])
    return lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")


def _float8(operands: Operands) -> Run:
    x, weight = (t.to(torch.float8_e4m3fn) for t in (operands.x, operands.weight))
    one = torch.ones((), device=x.device)
    return lambda: torch._scaled_mm(x, weight.t(), one, one, out_dtype=torch.bfloat16)


def _dense_conv(operands: Operands) -> list[Making]:
    assert operands.convolution is not None
    cpu = operands.x.device.type == "cpu"
    makings: list[Making] = []
    for dtype in (torch.float32, torch.bfloat16) if cpu else (torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        for suffix, layout in (("", torch.contiguous_format), (", channels-last", torch.channels_last)):
            x = operands.x.to(dtype).contiguous(memory_format=layout)
            weight = operands.weight.to(dtype).contiguous(memory_format=layout)
            run = functools.partial(F.conv2d, x, weight, None, *operands.convolution)
            makings.append((f"F.conv2d {name}{suffix}", "dense", lambda run=run: run))  # type: ignore[misc]
            if cpu and suffix:
                makings.append((f"oneDNN {name}", "dense", functools.partial(_onednn_conv, x, weight, operands)))
    return makings


def _onednn_conv(x: Tensor, weight: Tensor, operands: Operands) -> Run:
    assert operands.convolution is not None
    stride, padding, dilation, groups = operands.convolution
    pairs = [[padding] * 2, [stride] * 2, [dilation] * 2]
    packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *pairs, groups, list(x.shape))
    return lambda: torch.ops.mkldnn._convolution_pointwise(x, packed, None, *pairs, groups, "none", [], "")


def _sparse_on_cpu(operands: Operands) -> list[Making]:
    def csr_weight() -> Run:
        weight, x = operands.weight.to_sparse_csr(), operands.x
        return lambda: (weight @ x.t()).t()

    def csr_spikes() -> Run:
        x, weight = operands.x.to_sparse_csr(), operands.weight.t().contiguous()
        return lambda: x @ weight

    makings: list[Making] = [("torch CSR weight", "sparse", csr_weight)]
    return [*makings, ("torch CSR spikes", "sparse", csr_spikes)] if operands.spikes else makings


def _sparse_on_cuda(operands: Operands) -> list[Making]:
    from snn_core.kernels.nm_matmul.torch_sparse import LIBRARIES, convert

    compressed = CompressedNM.from_dense(operands.weight.to(operands.dtype), operands.pattern)
    x = operands.x.to(operands.dtype)

    def make(name: str) -> Run:
        matrix = convert(name, compressed, operands.dtype)
        return lambda: F.linear(x, matrix)

    return [(f"torch {name}", "sparse", functools.partial(make, name)) for name in LIBRARIES]
