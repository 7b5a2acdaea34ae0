"""The ways in which one product can be computed here, and the choice among them."""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from snn_core.errors import ArgumentError, BackendUnavailableError
from snn_core.kernels.lif.checks import check_neuron
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
from snn_core.kernels.nm_matmul.dispatch import Candidate, choose, remembered
from snn_core.kernels.nm_matmul.operands import OUT_DTYPES, Pair, Weight
from snn_core.kernels.nm_matmul.plans import rate_class
from snn_core.kernels.nm_matmul.schema import CPU_PATHS, CUDA_PATHS, output_size
from snn_core.kernels.nm_matmul.torch_sparse import decompress, drop_dense, kept_dense, onednn_linear, takes_onednn
from snn_core.kernels.spike_pack.packed import PackedSpikes

#: Dense bytes from which on a weight is taken to come from memory, and those of all copies that are timed in turn: more
#: than caches hold.
COLD_BYTES, ROTATED_BYTES = 2 << 20, 64 << 20
#: "0" forbids to keep a dense copy of a compressed weight, where that is faster for dense activations.
KEEP_VARIABLE = "SNN_KEEP_DENSE"
#: Backends that only products with N:M weights have.
MORE_BACKENDS = ("dense", "torch")
#: Rows up to which reading a compressed weight once for all of them is worth a kernel of its own.
FEW_ROWS = 64
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


class Problem:
    """A product or, with ``convolution`` (stride, padding, dilation, groups), a convolution; arguments are checked.

    Attributes:
        x, weight, out_dtype, convolution: the arguments.
        device: of all tensors.
        lead_shape: dimensions of ``x`` before K, or before C, H, W.
        output_shape: ``[..., O]`` or ``[..., O, OH, OW]``.
        rows: of the matrix product.
        spiking: whether ``x`` is packed spikes.
    """

    def __init__(
        self,
        x: Tensor | PackedSpikes,
        weight: Weight,
        out_dtype: torch.dtype,
        convolution: tuple[Pair, Pair, Pair, int] | None = None,
    ) -> None:
        self.x, self.weight, self.out_dtype, self.convolution = x, weight, out_dtype, convolution
        self.device = weight.values.device
        self.spiking = isinstance(x, PackedSpikes)
        shape = tuple(x.shape)
        windows: list[int] = []
        if convolution is not None:
            windows = output_size(shape[-2:], weight.shape[2:], *convolution[:3])
        self.lead_shape = shape[: -1 if convolution is None else -3]
        self.output_shape = (*self.lead_shape, weight.shape[0], *windows)
        self.rows = math.prod(self.lead_shape) * math.prod(windows)

    def with_input(self, x: Any) -> Problem:
        """The same for other activations of the same shape and type."""
        other = object.__new__(Problem)
        other.__dict__.update(self.__dict__)
        other.x = x
        return other

    # Spikes -----------------------------------------------------------------------------------------------------------

    def takes_spikes(self) -> bool:
        """Whether ``nm_spikes`` can take these arguments."""
        groups = 1 if self.convolution is None else self.convolution[3]
        bytewise = groups == 1 or self.weight.shape[1] % 8 == 0
        native = self.weight.dtype != torch.float64 and self.out_dtype in OUT_DTYPES
        return self.spiking and bytewise and native

    def _spikes_arguments(self) -> tuple[Any, ...]:
        assert isinstance(self.x, PackedSpikes)
        bits = self.x.bits
        bits = bits.reshape(self.rows, 1, 1, bits.shape[-1]) if self.convolution is None else bits.flatten(0, -4)
        return bits, self.x.size, *self.weight.arguments, *(self.convolution or _LINEAR)

    def run_spikes(self, path: int) -> Tensor:
        """``nm_spikes`` by one of its paths."""
        assert isinstance(self.x, PackedSpikes)
        if self.device.type == "cpu" and self.x.bits.is_contiguous() and not torch.compiler.is_compiling():
            return self._run_product(path)
        y = torch.ops.snn_core.nm_spikes(*self._spikes_arguments(), self.out_dtype, path)
        if self.convolution is None:
            return y.view(self.output_shape)
        return y.permute(0, 3, 1, 2).unflatten(0, self.lead_shape)

    def _run_product(self, path: int) -> Tensor:
        """As plans do, so that what is measured is what is called."""
        assert isinstance(self.x, PackedSpikes)
        values, indices, n, m, shape, scale, bias = self.weight.arguments
        stride, padding, dilation, groups = self.convolution or _LINEAR
        form = [n, m, *shape, *stride, *padding, *dilation, groups]
        image = self.convolution is not None
        return torch.ops.snn_core.nm_product(
            self.x.bits, values, indices, scale, bias, form, image, self.out_dtype, path
        )

    def fuses(self, backend: str, packed: bool) -> bool:
        """Whether the native library takes product and LIF in one."""
        wanted = wanted_backend(backend, (*BACKENDS, *MORE_BACKENDS))
        groups = 1 if self.convolution is None else self.convolution[3]
        bytewise = groups == 1 or not packed or self.weight.shape[0] // groups % 8 == 0
        if not self.takes_spikes() or not bytewise or wanted not in ("auto", "cpp", "cuda"):
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
            form = rows.shape[-3:] if image else (1, 1, rows.shape[-1])
            v0 = rows.reshape(math.prod(self.lead_shape[1:]), *form).contiguous()
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

    def keeps_dense(self) -> bool:
        """Whether a dense copy of the compressed weight may be kept. Not for spikes: there we are faster without."""
        allowed = os.environ.get(KEEP_VARIABLE, "1") != "0"
        return allowed and not self.spiking and self.weight.pattern is not None and self.out_dtype in OUT_DTYPES

    def kept_forms(self) -> dict[str, str]:
        """The candidates that keep a dense copy of the weight, and its form."""
        if not self.keeps_dense():
            return {}
        assert isinstance(self.x, Tensor)
        onednn = self.takes_dense() and takes_onednn(self.x)
        return {"dense:kept": "dense", **({"dense:onednn": "onednn"} if onednn else {})}

    def run_onednn(self) -> Tensor:
        """oneDNN on dense activations and the dense weight in its own order, which is kept."""
        x, source, bias = self.x, self.weight.source, self.weight.bias
        assert isinstance(x, Tensor)
        assert isinstance(source, CompressedNM)
        return onednn_linear(x, kept_dense(source, x.dtype, "onednn"), None if bias is None else bias.to(x.dtype))

    def run_dense(self, kept: bool = False) -> Tensor:
        """torch on dense activations and the dense weight: made for this call, or kept."""
        dtype = self.out_dtype if isinstance(self.x, PackedSpikes) else self.x.dtype
        x = self.x.to_dense(dtype) if isinstance(self.x, PackedSpikes) else self.x
        source = self.weight.source
        weight = kept_dense(source, dtype) if kept and isinstance(source, CompressedNM) else decompress(source, dtype)
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

    def torch_products(self) -> dict[str, Callable[[], Tensor]]:
        """torch's own semi-structured products of dense activations, where they run."""
        if self.device.type != "cuda" or not self.takes_dense():
            return {}
        from snn_core.kernels.nm_matmul.torch_sparse import torch_candidates

        assert isinstance(self.x, Tensor)
        return dict(torch_candidates(self.x, self.weight.source, self.weight.bias))

    def run(self, name: str) -> Tensor:
        """By ``backend`` or ``backend:path``, one of :func:`_names`."""
        backend, _, path = name.partition(":")
        if backend in ("cpp", "cuda"):
            number = (CPU_PATHS if backend == "cpp" else CUDA_PATHS).get(path, 0)
            return self.run_spikes(number) if self.spiking else self.run_compressed(number)
        if backend == "triton":
            return self.run_compressed(0, "_triton")
        if backend == "torch":
            return self.torch_products()[path]()
        if path == "onednn":
            return self.run_onednn()
        return self.run_dense(path == "kept") if backend == "dense" else self.run_reference()


def _names(problem: Problem, wanted: str) -> tuple[str, ...]:
    """What can be taken, as ``backend`` or ``backend:path``; the first is the default where nothing may be measured."""
    native, found = native_backend(problem.device), []
    if native is not None and problem.takes_spikes():
        found.append(native)
        if native == "cpp":
            found += [f"cpp:{path}" for path in _cpu_spike_paths(problem)]
    if problem.takes_dense():
        found += _compressed_names(problem, native)
    # The reference is there for what nothing else takes; it is never faster than "dense".
    found += ["dense"] if wanted == "auto" else ["dense", "reference"]
    if wanted == "auto" and not torch.compiler.is_compiling():
        found += problem.kept_forms()
    if wanted != "auto":
        return tuple(name for name in found if name.split(":")[0] == wanted)
    return ("reference",) if torch.float64 in (problem.out_dtype, problem.weight.dtype) else tuple(found)


def _cpu_spike_paths(problem: Problem) -> list[str]:
    pattern = problem.weight.pattern
    paths = ["event"]
    if pattern is None or (pattern.m == 4 and pattern.n <= 2):
        paths.append("lookup")
    if pattern is not None and problem.rows <= FEW_ROWS:
        paths.append("few_rows")
    if pattern is not None and (pattern.density <= 1 / 4 or "lookup" not in paths):
        paths.append("kept")
    return paths


def _compressed_names(problem: Problem, native: str | None) -> list[str]:
    """Of ``nm_dense`` and torch's own products."""
    pattern, found = problem.weight.pattern, []
    assert pattern is not None
    if native is not None:
        found.append(native)
    if native == "cuda":
        found += ["cuda:few_rows"] if problem.rows <= FEW_ROWS else []
        found += ["cuda:mma_sp", "cuda:wgmma_sp"] if (pattern.n, pattern.m) == (2, 4) else []
    if triton_runs_on(problem.device):
        from snn_core.kernels.nm_matmul.triton import why_not

        found += [] if why_not(pattern.n, pattern.m) else ["triton"]
    return [*found, *(f"torch:{path}" for path in problem.torch_products())]


def solve(problem: Problem, backend: str) -> tuple[Tensor, Explanation]:
    """The product by the backend asked for, or by the fastest of all.

    Raises:
        ArgumentError: unknown backend.
        BackendUnavailableError: the named backend cannot run here or on these arguments.
    """
    wanted = wanted_backend(backend, (*BACKENDS, *MORE_BACKENDS))
    names = _names(problem, wanted)
    if not names:
        raise BackendUnavailableError(_why_not(wanted, problem))
    if len(names) == 1:
        return problem.run(names[0]), Explanation(names[0], "only")
    if torch.compiler.is_compiling():  # the key would hold symbols
        return problem.run(names[0]), Explanation(names[0], "heuristic")
    key = _key(problem, wanted)
    choice = remembered(key, names)  # without the calls that a measurement would take: this is paid every time
    if choice is None:
        problems = functools.cache(lambda: itertools.cycle(_in_turn(problem)))
        choice = choose(key, [Candidate(name, _run_in_turn(name, problems)) for name in names], names[0])
        if choice.why == "measured" and isinstance(problem.weight.source, CompressedNM):
            for name, form in problem.kept_forms().items():
                if name != choice.name:  # made for the measurement
                    drop_dense(problem.weight.source, form)
    return problem.run(choice.name), Explanation(choice.name, choice.why, choice.seconds)


def _in_turn(problem: Problem) -> list[Problem]:
    """The problem, and for few rows the same with copies of its weight, which take turns while candidates are timed.

    There the bytes of the weight decide. A large one comes from memory in a network, and would stay in the caches here.
    """
    weight = problem.weight
    source, (outputs, *inputs) = weight.source, weight.shape
    dense_bytes = 2 * outputs * math.prod(inputs)
    cold = isinstance(source, CompressedNM) and problem.device.type == "cpu" and problem.rows <= FEW_ROWS
    if not cold or dense_bytes < COLD_BYTES:
        return [problem]
    assert isinstance(source, CompressedNM)
    problems = [problem]
    for _ in range(ROTATED_BYTES // dense_bytes):
        other = replace(weight, source=source.clone())
        problems.append(Problem(problem.x, other, problem.out_dtype, problem.convolution))
    for one in problems:  # not while they are timed
        for form in one.kept_forms().values():
            kept_dense(one.weight.source, one.x.dtype, form)  # type: ignore[arg-type, union-attr]
    return problems


def _run_in_turn(name: str, problems: Callable[[], Iterator[Problem]]) -> Callable[[], Tensor]:
    """``problems`` are shared by all candidates: with a round of its own each would find the weight that the candidate
    before it has just brought into the caches."""
    return lambda: next(problems()).run(name)


def _key(problem: Problem, wanted: str) -> tuple[Any, ...]:
    """What a measurement holds for."""
    x, weight = problem.x, problem.weight
    if isinstance(x, PackedSpikes):
        rate = rate_class(x)
        form = "spikes" if rate is None else f"spikes 2^{rate}"
    else:
        form = str(x.dtype)
    size = tuple(x.shape[-2:]) if problem.convolution is not None else ()
    return (
        wanted, str(problem.device), form, problem.rows, size, weight.shape, str(weight.pattern), str(weight.dtype),
        str(problem.out_dtype), problem.convolution,
    )  # fmt: skip


def _why_not(wanted: str, problem: Problem) -> str:
    """Why a backend asked for by name takes no part."""
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
