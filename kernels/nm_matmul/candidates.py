"""The ways in which one product can be computed here, and the choice among them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from snn_core.errors import ArgumentError, BackendUnavailableError
from snn_core.kernels.lif.ops import check_neuron
from snn_core.kernels.native import (
    BACKENDS,
    cpu_library,
    cuda_library,
    native_backend,
    triton_backend,
    triton_runs_on,
    wanted_backend,
)
from snn_core.kernels.nm_compress.compressed import CompressedNM
from snn_core.kernels.nm_matmul import reference
from snn_core.kernels.nm_matmul.dispatch import Candidate, choose, log_class
from snn_core.kernels.nm_matmul.operands import OUT_DTYPES, Pair, Weight
from snn_core.kernels.nm_matmul.schema import CPU_PATHS, CUDA_PATHS, output_size
from snn_core.kernels.spike_pack.packed import PackedSpikes

#: Backends that only products with N:M weights have.
MORE_BACKENDS = ("dense", "torch")
#: Rows up to which reading a compressed weight once for all of them is worth a kernel of its own.
FEW_ROWS = 64
#: Firing rates below are one class.
MIN_RATE = 1 / 1024
_LINEAR = ((1, 1), (0, 0), (1, 1), 1)


@dataclass(frozen=True)
class Explanation:
    """What was taken, why, and what had been measured.

    Attributes:
        taken: ``backend`` or ``backend:path``.
        why: ``measured`` now, ``remembered`` from an earlier measurement, ``only`` one possible, ``heuristic`` (no
            measurement allowed: while compiling or capturing, or by ``SNN_DISPATCH``), or a sentence.
        seconds: of each candidate, where measured.
    """

    taken: str
    why: str
    seconds: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        times = ", ".join(f"{name} {1e3 * s:.3g} ms" for name, s in sorted(self.seconds.items(), key=lambda i: i[1]))
        return f"{self.taken} ({self.why}{': ' + times if times else ''})"


@dataclass(frozen=True)
class Problem:
    """A product or, with ``convolution`` (stride, padding, dilation, groups), a convolution; arguments are checked."""

    x: Tensor | PackedSpikes
    weight: Weight
    out_dtype: torch.dtype
    convolution: tuple[Pair, Pair, Pair, int] | None = None

    @property
    def device(self) -> torch.device:
        """Of all tensors."""
        return self.weight.values.device

    @property
    def lead_shape(self) -> tuple[int, ...]:
        """Dimensions of ``x`` before K, or before C, H, W."""
        return tuple(self.x.shape[: -1 if self.convolution is None else -3])

    @property
    def output_shape(self) -> tuple[int, ...]:
        """``[..., O]`` or ``[..., O, OH, OW]``."""
        return (*self.lead_shape, self.weight.shape[0], *self._window_count())

    @property
    def rows(self) -> int:
        """Rows of the matrix product."""
        return math.prod(self.lead_shape) * math.prod(self._window_count())

    def _window_count(self) -> list[int]:
        if self.convolution is None:
            return []
        return output_size(self.x.shape[-2:], self.weight.shape[2:], *self.convolution[:3])

    # Spikes -----------------------------------------------------------------------------------------------------------

    def takes_spikes(self) -> bool:
        """Whether ``nm_spikes`` can take these arguments."""
        groups = 1 if self.convolution is None else self.convolution[3]
        bytewise = groups == 1 or self.weight.shape[1] % 8 == 0
        native = self.weight.dtype != torch.float64 and self.out_dtype in OUT_DTYPES
        return isinstance(self.x, PackedSpikes) and bytewise and native

    def _spikes_arguments(self) -> tuple[Any, ...]:
        assert isinstance(self.x, PackedSpikes)
        bits = self.x.bits
        bits = bits.reshape(-1, 1, 1, bits.shape[-1]) if self.convolution is None else bits.flatten(0, -4)
        return bits, self.x.size, *self.weight.arguments, *(self.convolution or _LINEAR)

    def run_spikes(self, path: int) -> Tensor:
        """``nm_spikes`` by one of its paths."""
        y = torch.ops.snn_core.nm_spikes(*self._spikes_arguments(), self.out_dtype, path)
        if self.convolution is None:
            return y.view(self.output_shape)
        return y.permute(0, 3, 1, 2).unflatten(0, self.lead_shape)

    def fuses(self, backend: str) -> bool:
        """Whether the native library takes product and LIF in one."""
        wanted = wanted_backend(backend, (*BACKENDS, *MORE_BACKENDS))
        if not self.takes_spikes() or wanted not in ("auto", "cpp", "cuda"):
            return False
        return native_backend(self.device) is not None

    def run_with_lif(
        self, v0: Tensor | None, neuron: dict[str, Any], packed: bool, out_dtype: torch.dtype
    ) -> tuple[PackedSpikes | Tensor, Tensor]:
        """``nm_spikes_lif``; ``neuron`` are arguments of ``lif``."""
        check_neuron(**neuron)
        if out_dtype not in OUT_DTYPES:
            raise ArgumentError(f"out_dtype is {out_dtype}; allowed: {', '.join(map(str, OUT_DTYPES))}")
        image, steps = self.convolution is not None, self.lead_shape[0]
        if v0 is not None:
            rows = v0.movedim(-3, -1) if image else v0
            v0 = rows.reshape(-1, *(rows.shape[-3:] if image else (1, 1, rows.shape[-1]))).contiguous()
        arguments = (steps, v0, neuron["tau"], neuron["v_threshold"], neuron["v_reset"], neuron["decay_input"], packed)
        s, v_last = torch.ops.snn_core.nm_spikes_lif(*self._spikes_arguments(), *arguments, out_dtype, 0)
        after_time = self.lead_shape[1:]
        if not image:
            v_last = v_last.view(self.output_shape[1:])
            if packed:
                return PackedSpikes(s.view(*self.lead_shape, s.shape[-1]), self.weight.shape[0]), v_last
            return s.view(self.output_shape), v_last
        v_last = v_last.permute(0, 3, 1, 2)
        v_last = v_last.unflatten(0, after_time) if after_time else v_last.squeeze(0)
        if packed:
            bits = s.unflatten(0, self.lead_shape)
            return PackedSpikes(bits, self.weight.shape[0], channels_last=True), v_last
        return s.permute(0, 3, 1, 2).unflatten(0, self.lead_shape), v_last

    # Dense ------------------------------------------------------------------------------------------------------------

    def run_dense(self) -> Tensor:
        """torch on dense activations and the dense weight."""
        dtype = self.out_dtype if isinstance(self.x, PackedSpikes) else self.x.dtype
        x = self.x.to_dense(dtype) if isinstance(self.x, PackedSpikes) else self.x
        weight = decompress(self.weight.source, dtype)
        bias = None if self.weight.bias is None else self.weight.bias.to(dtype)
        if self.convolution is None:
            return F.linear(x, weight, bias).to(self.out_dtype)
        y = F.conv2d(x.flatten(0, -4), weight, bias, *self.convolution)
        return y.unflatten(0, self.lead_shape).to(self.out_dtype)

    def run_reference(self) -> Tensor:
        """Plain torch in float32."""
        weight, bias = self.weight.source, self.weight.bias
        if self.convolution is None:
            return reference.nm_matmul(self.x, weight, bias, self.out_dtype)
        return reference.nm_conv2d(self.x, weight, bias, *self.convolution, self.out_dtype)

    def takes_dense(self) -> bool:
        """Whether ``nm_dense`` can take these arguments."""
        return (
            isinstance(self.x, Tensor)
            and self.convolution is None
            and self.weight.pattern is not None
            and self.x.dtype in OUT_DTYPES
            and self.out_dtype == self.x.dtype
        )

    def run_compressed(self, path: int, suffix: str = "") -> Tensor:
        """``nm_dense`` by one of its paths."""
        assert isinstance(self.x, Tensor)
        x = self.x.reshape(-1, self.x.shape[-1]).contiguous()
        operator = getattr(torch.ops.snn_core, f"nm_dense{suffix}")
        return operator(x, *self.weight.arguments, path).view(self.output_shape)


def decompress(weight: Tensor | CompressedNM, dtype: torch.dtype) -> Tensor:
    """The dense weight of its own shape in ``dtype``, by the native operator where it is there."""
    if isinstance(weight, Tensor):
        return weight.to(dtype)
    if dtype not in OUT_DTYPES or native_backend(weight.values.device) is None or weight.values.requires_grad:
        return weight.to_dense(dtype)
    pattern, shape = weight.pattern, weight.shape
    matrix = torch.ops.snn_core.nm_decompress(
        weight.values, weight.indices, pattern.n, pattern.m, shape[0], weight.scale, dtype
    )
    return matrix if len(shape) == 2 else matrix.view(shape[0], *shape[2:], shape[1]).permute(0, 3, 1, 2)


def _candidates(problem: Problem) -> dict[str, list[Candidate]]:
    """By backend; the first of the first that is there is the default where nothing may be measured."""
    found: dict[str, list[Candidate]] = {}

    def add(backend: str, path: str, run: Callable[[], Tensor]) -> None:
        found.setdefault(backend, []).append(Candidate(f"{backend}:{path}" if path else backend, run))

    native, pattern = native_backend(problem.device), problem.weight.pattern
    if native is not None and problem.takes_spikes():
        add(native, "", lambda: problem.run_spikes(0))
        if native == "cpp":
            for path in _cpu_spike_paths(problem):
                add(native, path, lambda path=path: problem.run_spikes(CPU_PATHS[path]))  # type: ignore[misc]
    if native is not None and problem.takes_dense():
        add(native, "", lambda: problem.run_compressed(0))
        if native == "cuda" and problem.rows <= FEW_ROWS:
            add(native, "few_rows", lambda: problem.run_compressed(CUDA_PATHS["few_rows"]))
        if native == "cuda" and pattern is not None and str(pattern) == "2:4":
            for path in ("mma_sp", "wgmma_sp"):
                add(native, path, lambda path=path: problem.run_compressed(CUDA_PATHS[path]))  # type: ignore[misc]
    if problem.takes_dense() and triton_runs_on(problem.device):
        from snn_core.kernels.nm_matmul.triton import why_not

        if pattern is not None and not why_not(pattern.n, pattern.m):
            add("triton", "", lambda: problem.run_compressed(0, "_triton"))
    x = problem.x
    if problem.device.type == "cuda" and problem.takes_dense() and isinstance(x, Tensor):
        from snn_core.kernels.nm_matmul.torch_sparse import torch_candidates

        for path, run in torch_candidates(x, problem.weight.source, problem.weight.bias):
            add("torch", path, run)
    add("dense", "", problem.run_dense)
    add("reference", "", problem.run_reference)
    return found


def _cpu_spike_paths(problem: Problem) -> list[str]:
    pattern = problem.weight.pattern
    paths = ["event"]
    if pattern is None or str(pattern) in ("2:4", "1:4"):
        paths.append("lookup")
    if pattern is not None and problem.rows <= FEW_ROWS:
        paths.append("few_rows")
    if pattern is not None and pattern.density <= 1 / 8:
        paths.append("kept")
    return paths


def solve(problem: Problem, backend: str) -> tuple[Tensor, Explanation]:
    """The product by the backend asked for, or by the fastest of all.

    Raises:
        ArgumentError: unknown backend.
        BackendUnavailableError: the named backend cannot run here or on these arguments.
    """
    wanted = wanted_backend(backend, (*BACKENDS, *MORE_BACKENDS))
    found = _candidates(problem)
    if wanted != "auto":
        if wanted not in found:
            raise BackendUnavailableError(_why_not(wanted, problem))
        candidates = found[wanted]
    else:
        # The reference is there for what nothing else takes; it is never faster than "dense".
        candidates = [one for name, group in found.items() if name != "reference" for one in group]
        if torch.float64 in (problem.out_dtype, problem.weight.dtype):
            candidates = found["reference"]
    if len(candidates) == 1:
        return _result(candidates[0]), Explanation(candidates[0].name, "only")
    if torch.compiler.is_compiling():  # the key would hold symbols
        return _result(candidates[0]), Explanation(candidates[0].name, "heuristic")
    choice = choose(_key(problem, wanted), candidates, candidates[0].name)
    taken = next(one for one in candidates if one.name == choice.name)
    return _result(taken), Explanation(choice.name, choice.why, choice.seconds)


def _result(candidate: Candidate) -> Tensor:
    y = candidate.run()
    assert isinstance(y, Tensor)
    return y


def _key(problem: Problem, wanted: str) -> tuple[Any, ...]:
    """What a measurement holds for."""
    x, weight = problem.x, problem.weight
    if isinstance(x, PackedSpikes):
        # Tensor cores do not care for the rate, and asking for it would wait for the device.
        asks = problem.device.type == "cpu" and not torch.compiler.is_compiling()
        form = f"spikes 2^{log_class(max(x.firing_rate, MIN_RATE))}" if asks else "spikes"
    else:
        form = str(x.dtype)
    size = tuple(x.shape[-2:]) if problem.convolution is not None else ()
    return (
        wanted, str(problem.device), form, problem.rows, size, weight.shape, str(weight.pattern), str(weight.dtype),
        str(problem.out_dtype), problem.convolution,
    )  # fmt: skip


def _why_not(wanted: str, problem: Problem) -> str:
    kind = "packed spikes" if isinstance(problem.x, PackedSpikes) else f"{problem.x.dtype} activations"
    pattern = problem.weight.pattern or "dense"
    form = "convolution" if problem.convolution is not None else "product"
    if wanted in ("cpp", "cuda"):
        home = "cpu" if wanted == "cpp" else "cuda"
        library = cpu_library() if wanted == "cpp" else cuda_library()
        if problem.device.type == home and not library.available:
            return f"backend {wanted!r} is not available: native library {library.reason}"
    if wanted == "triton" and not triton_backend().available:
        return f"backend 'triton' is not available: {triton_backend().reason}"
    return (
        f"backend {wanted!r} has no {form} of {kind} with {pattern} weights of {problem.weight.dtype} on "
        f"{problem.device} for {problem.out_dtype} results"
    )
