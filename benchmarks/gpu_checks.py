"""What must hold on the device before any time is worth taking: every backend of ``lif`` against the CPU reference.

Each check returns what it covered and raises AssertionError where something differs. Used by gpu_suite.py.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from snn_core.kernels import lif
from snn_core.kernels.native import resolve_backend

#: Relative error of gradients in float32; of 16-bit ones, whose stored result is rounded to 8 or 11 bits.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
DTYPES = tuple(TOLERANCE)
LAYOUTS = ("contiguous", "channels last", "transposed", "misaligned", "expanded gradient")
SURROGATES = ("atan", "sigmoid", "triangle", "rectangle", "fast_sigmoid")


@dataclass
class Case:
    """One call of the operator."""

    steps: int = 16
    step_shape: tuple[int, ...] = (3, 8, 5, 7)
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"
    learned_tau: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def inputs(self, seed: int = 0) -> dict[str, Tensor]:
        """x_seq, v0, gradients and perhaps 1 / tau, on the CPU."""
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        tensors = {
            "x_seq": (draw(self.steps, *self.step_shape) * 2).to(self.dtype),
            "grad_s": draw(self.steps, *self.step_shape).to(self.dtype),
            "v0": draw(*self.step_shape) * 0.5,
            "grad_v_last": draw(*self.step_shape),
        }
        return tensors | ({"reciprocal_tau": torch.tensor(0.37)} if self.learned_tau else {})

    def laid_out(self, name: str, tensor: Tensor) -> Tensor:
        """``tensor`` with this case's strides."""
        if self.layout == "channels last" and tensor.ndim >= 4:
            # Images as a layer before the neurons makes them: time and batch are one dimension there.
            images = tensor.flatten(0, -4).contiguous(memory_format=torch.channels_last)
            return images.unflatten(0, tensor.shape[:-3])
        if self.layout == "transposed" and tensor.ndim >= 2:
            return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
        if self.layout == "misaligned" and tensor.ndim:
            return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)
        return tensor


def execute(case: Case, inputs: dict[str, Tensor], device: torch.device, backend: str) -> dict[str, Tensor]:
    """Spikes, state and all gradients of one call, on the CPU again."""
    tensors = {name: case.laid_out(name, tensor.to(device)) for name, tensor in inputs.items()}
    if case.layout == "expanded gradient":
        tensors["grad_s"] = tensors["grad_s"].flatten()[0].expand_as(tensors["grad_s"])
    leaves: dict[str, Any] = {
        name: tensors[name].requires_grad_() for name in ("x_seq", "v0", "reciprocal_tau") if name in tensors
    }
    s_seq, v_last = lif(**leaves, backend=backend, **case.options)
    torch.autograd.backward([s_seq, v_last], [tensors["grad_s"], tensors["grad_v_last"]])
    results = {"s_seq": s_seq.detach(), "v_last": v_last.detach()}
    results |= {f"grad_{name}": leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    return {name: tensor.cpu() for name, tensor in results.items()}


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """Norm of the difference over the norm; NaN counts as infinite."""
    difference = (got.double() - wanted.double()).norm() / wanted.double().norm().clamp(min=1e-30)
    return float(torch.nan_to_num(difference, nan=float("inf")))


def assert_same(case: Case, got: dict[str, Tensor], wanted: dict[str, Tensor], backend: str) -> float:
    """Equal spikes, close state and gradients. Returns the worst relative error."""
    if not torch.equal(got["s_seq"], wanted["s_seq"]):
        count = int((got["s_seq"] != wanted["s_seq"]).sum())
        raise AssertionError(f"{backend}: {count} of {wanted['s_seq'].numel()} spikes differ in {case}")
    worst = 0.0
    for name in wanted:
        if name == "s_seq":
            continue
        # a sum over everything, with cancellation
        tolerance = 1e-4 if name == "grad_reciprocal_tau" else TOLERANCE[case.dtype]
        error = relative_error(got[name], wanted[name])
        if error > tolerance:
            raise AssertionError(f"{backend}: {name} differs by {error:.2e} relative in {case}")
        worst = max(worst, error)
    return worst


def cases() -> Iterator[Case]:
    """All dtypes, layouts, lengths, resets, decays and surrogates, though not every one with every other."""
    for steps, dtype in itertools.product((1, 16, 40, 5), DTYPES):
        yield Case(steps, dtype=dtype)
    for layout, dtype in itertools.product(LAYOUTS, DTYPES):
        yield Case(20, dtype=dtype, layout=layout)
    for decay, detach, reset in itertools.product((True, False), (True, False), (0.0, None, -0.3)):
        yield Case(7, (333,), options={"decay_input": decay, "detach_reset": detach, "v_reset": reset, "tau": 3.7})
    for surrogate in SURROGATES:
        yield Case(9, (5, 64), options={"surrogate": surrogate, "alpha": 1.5})
    yield Case(12, (77,), options={"tau": float("inf"), "decay_input": False})
    for dtype, steps in itertools.product(DTYPES, (6, 50)):
        yield Case(steps, (4, 1001), dtype, learned_tau=True)
    yield Case(3, (1,))
    yield Case(4, (0, 5))


def available_backends(device: torch.device) -> list[tuple[torch.device, str]]:
    """Where and with what: the reference on the device, native code on the CPU, and the device's own kernels."""
    cpu = torch.device("cpu")
    wanted = [(device, "reference"), (cpu, "cpp")]
    wanted += [(device, "cuda"), (device, "triton")] if device.type == "cuda" else []
    return [(place, backend) for place, backend in wanted if why_not(place, backend) is None]


def why_not(device: torch.device, backend: str) -> str | None:
    """Why a backend cannot run; None where it can."""
    try:
        resolve_backend(backend, device, torch.float32, DTYPES)
        lif(torch.zeros(1, 1, device=device), backend=backend)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        return f"{type(error).__name__}: {error}"[:300]
    return None


def equal_results(device: torch.device, seconds: float) -> dict[str, Any]:
    """Every backend against the reference on the CPU, all cases; Triton, which compiles for each, until ``seconds``."""
    everything = [(case, case.inputs(seed)) for seed, case in enumerate(cases())]
    wanted = [execute(case, inputs, torch.device("cpu"), "reference") for case, inputs in everything]
    counts: dict[str, dict[str, Any]] = {}
    for place, backend in sorted(available_backends(device), key=lambda entry: entry[1] == "triton"):
        deadline = time.monotonic() + (seconds if backend == "triton" else float("inf"))
        done, worst = 0, 0.0
        for (case, inputs), right in zip(everything, wanted, strict=True):
            if time.monotonic() > deadline:
                break
            worst = max(worst, assert_same(case, execute(case, inputs, place, backend), right, backend))
            done += 1
        counts[backend] = {"cases": done, "left_out": len(everything) - done, "worst_relative_error": worst}
    return {"backends": counts, "left_out": sum(entry["left_out"] for entry in counts.values())}


def forward_variants(device: torch.device, seconds: float) -> dict[str, Any]:
    """Packed and in-place spikes are those of the ordinary call; packing and unpacking are inverse."""
    from snn_core.kernels import pack_spikes, unpack_spikes

    done = []
    for place, backend in available_backends(device):
        x = torch.randn(9, 3, 77, generator=torch.Generator().manual_seed(1)).to(place) * 2
        with torch.no_grad():
            wanted, v_wanted = lif(x, backend=backend)
            packed, v_packed = lif(x, backend=backend, pack_spikes_dim=2)
            inplace, v_inplace = lif(x.clone(), backend=backend, inplace=True)
        unpacked = unpack_spikes(packed, 77, 2, backend=backend)
        same = [torch.equal(unpacked, wanted), torch.equal(inplace, wanted), torch.equal(v_packed, v_wanted)]
        same += [torch.equal(v_inplace, v_wanted), torch.equal(pack_spikes(wanted, 2, backend=backend), packed)]
        if not all(same):
            raise AssertionError(f"{backend}: unpacked, in place, their states, packed afterwards: {same}")
        done.append(backend)
    return {"backends": done}


def deterministic(device: torch.device, seconds: float) -> dict[str, Any]:
    """Two runs give the same bits, also of the gradient that is summed over everything."""
    case = Case(24, (64, 4099), learned_tau=True)
    inputs = case.inputs()
    for place, backend in available_backends(device):
        first, second = (execute(case, inputs, place, backend) for _ in range(2))
        for name in first:
            if not torch.equal(first[name], second[name]):
                raise AssertionError(f"{backend}: {name} differs between two runs")
    return {"elements": case.steps * 64 * 4099}


def not_a_number(device: torch.device, seconds: float) -> dict[str, Any]:
    """NaN in x reaches the state and its gradient, and nothing beside its neuron."""
    for place, backend in available_backends(device):
        x = torch.zeros(5, 64, device=place)
        x[2, 7] = float("nan")
        x.requires_grad_()
        s_seq, v_last = lif(x, backend=backend)
        (s_seq.sum() + v_last.sum()).backward()
        assert x.grad is not None
        nan = torch.isnan(v_last)
        others = torch.arange(64, device=place) != 7
        if not nan[7] or nan[others].any() or torch.isnan(x.grad[:, others]).any() or s_seq[2:, 7].any():
            raise AssertionError(f"{backend}: NaN does not stay where it is")
    return {}


def kernels(device: torch.device) -> list[str]:
    """The device's own backends that run here."""
    return [backend for place, backend in available_backends(device) if backend != "reference" and place == device]


def large(device: torch.device, seconds: float) -> dict[str, Any]:
    """More than 2^31 elements: the last neurons are those of a small call on the CPU."""
    if device.type != "cuda":
        return {"skipped": "needs a GPU's memory"}
    neurons, tail = (1 << 30) + 4096, 4096
    need = 2 * neurons * 2 * 6
    if need > torch.cuda.mem_get_info()[0]:
        return {"skipped": f"needs {need} bytes"}
    x = torch.zeros(2, neurons, dtype=torch.bfloat16, device=device)
    x[:, -tail:] = torch.randn(2, tail, generator=torch.Generator().manual_seed(3)).to(device) * 2
    small = x[:, -tail:].cpu().requires_grad_()
    wanted, _ = lif(small, backend="reference")
    wanted.sum().backward()
    assert small.grad is not None
    for backend in kernels(device):
        leaf = x.detach().requires_grad_()
        s_seq, _ = lif(leaf, backend=backend)
        s_seq.sum().backward()
        assert leaf.grad is not None
        if not torch.equal(s_seq[:, -tail:].cpu(), wanted):
            raise AssertionError(f"{backend}: spikes beyond 2^31 elements differ")
        if relative_error(leaf.grad[:, -tail:].cpu(), small.grad) > TOLERANCE[torch.bfloat16]:
            raise AssertionError(f"{backend}: gradients beyond 2^31 elements differ")
        del leaf, s_seq
    return {"elements": x.numel(), "backends": kernels(device)}


def streams(device: torch.device, seconds: float) -> dict[str, Any]:
    """On other streams, two at a time, the results are those of the default stream."""
    if device.type != "cuda":
        return {"skipped": "streams are CUDA's"}
    for backend in kernels(device):
        inputs = [torch.randn(16, 1 << 16, device=device) for _ in range(2)]
        wanted = [_gradient(x, backend) for x in inputs]
        side = [torch.cuda.Stream() for _ in inputs]
        torch.cuda.synchronize()
        got = []
        for x, stream in zip(inputs, side, strict=True):
            with torch.cuda.stream(stream):
                torch.cuda._sleep(1_000_000)  # a kernel launched elsewhere would overtake
                got.append(_gradient(x.mul(1.0), backend))
        torch.cuda.synchronize()
        if not all(torch.equal(a, b) for pair in zip(got, wanted, strict=True) for a, b in zip(*pair, strict=True)):
            raise AssertionError(f"{backend}: other results on another stream")
    return {"backends": kernels(device)}


def _gradient(x: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    leaf = x.detach().requires_grad_()
    s_seq, v_last = lif(leaf, backend=backend)
    (gradient,) = torch.autograd.grad([s_seq, v_last], leaf, [x.cos(), torch.ones_like(v_last)])
    return s_seq.detach(), gradient


def graph_of(x: Tensor, backend: str) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, Tensor]]:
    """Forward and backward on the static input ``x``, captured after a warm-up on a side stream."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            _gradient(x, backend)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = _gradient(x, backend)
    return graph, outputs


def graphs(device: torch.device, seconds: float) -> dict[str, Any]:
    """A captured forward and backward, replayed on new input, gives what an ordinary call gives."""
    if device.type != "cuda":
        return {"skipped": "CUDA graphs are CUDA's"}
    for backend, steps in itertools.product(kernels(device), (8, 40)):
        x = torch.randn(steps, 5000, device=device)
        graph, outputs = graph_of(x, backend)
        for _ in range(2):
            x.copy_(torch.randn(x.shape, device=device) * 2)
            graph.replay()
            wanted = _gradient(x, backend)
            if not all(torch.equal(got, right) for got, right in zip(outputs, wanted, strict=True)):
                raise AssertionError(f"{backend}: a replayed graph gives other results")
    return {"backends": kernels(device)}


def compiled(device: torch.device, seconds: float) -> dict[str, Any]:
    """Under ``torch.compile`` one graph without breaks, and the same results."""
    names = kernels(device) or ["reference"]
    # On the CPU, a dry run, tracing says enough: there is no need to wait for a compiler.
    options: dict[str, Any] = {} if device.type == "cuda" else {"backend": "aot_eager"}
    compile_here = functools.partial(torch.compile, fullgraph=True, **options)
    for backend in names:
        torch._dynamo.reset()

        def function(x: Tensor, backend: str = backend) -> Tensor:
            return lif(x * 1.5, backend=backend)[0] * 2

        x = torch.randn(8, 4096, device=device)
        leaves = [x.clone().requires_grad_() for _ in range(2)]
        outputs = [function(leaves[0]), compile_here(function)(leaves[1])]
        for output in outputs:
            (output * x.cos()).sum().backward()
        assert leaves[0].grad is not None
        assert leaves[1].grad is not None
        if not torch.equal(*outputs) or relative_error(leaves[1].grad.cpu(), leaves[0].grad.cpu()) > 1e-5:
            raise AssertionError(f"{backend}: other results under torch.compile")
    return {"backends": names}


def no_recompiles(device: torch.device, seconds: float) -> dict[str, Any]:
    """Other lengths and sizes of the same class take the Triton kernels that are there."""
    if "triton" not in kernels(device):
        return {"skipped": str(why_not(device, "triton"))}
    from triton import knobs

    compilations: list[str] = []

    def count(**arguments: Any) -> bool:
        compilations.append(str(arguments.get("repr", ""))[:80])
        return False  # go on compiling

    # Few neurons take a configuration of their own.
    for steps, neurons in ((40, 1 << 16), (12, 1 << 16), (40, 1 << 14)):
        _gradient(torch.randn(steps, neurons, device=device), "triton")
    before = knobs.runtime.jit_cache_hook
    knobs.runtime.jit_cache_hook = count
    try:
        for steps, neurons in ((48, 1 << 17), (41, 3 << 16), (200, 1 << 14), (12, 1 << 17), (12, 5 << 15)):
            _gradient(torch.randn(steps, neurons, device=device), "triton")
    finally:
        knobs.runtime.jit_cache_hook = before
    if compilations:
        raise AssertionError(f"Triton compiled {len(compilations)} times more: {compilations[:4]}")
    return {"shapes": 5}


CHECKS: dict[str, Callable[[torch.device, float], dict[str, Any]]] = {
    check.__name__: check
    for check in (
        equal_results, forward_variants, deterministic, not_a_number, streams, graphs, compiled, no_recompiles, large,
    )
}  # fmt: skip
