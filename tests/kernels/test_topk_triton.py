"""Triton kernels of the top-k sampler: interpreted, against the reference, and compiled for sm_80 and sm_90."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.kernels.triton_cases import Cases

CASES = Cases(__name__)
case = CASES.add
OPTIONS = {"seed": 2**63 + 123456789, "offset": 7 + (5 << 33), "kappa": 1.3, "rho": 0.7, "noise_scale": 0.9}


def normal(blocks: int, m: int, seed: int, position_major: bool) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (m, blocks) if position_major else (blocks, m)
    value = torch.randn(shape, generator=generator)
    return value.t() if position_major else value


def equals_the_reference(n: int, m: int, blocks: int, position_major: bool) -> None:
    from snn_core.kernels.topk_sampler import sample_topk, topk_sample, topk_sample_backward

    logits, anchor, grad = (normal(blocks, m, seed, position_major) for seed in range(3))
    options = OPTIONS | {"anchor": anchor.abs()}
    hard = topk_sample(logits, n, backend="triton", **options)
    assert torch.equal(hard, topk_sample(logits, n, backend="reference", **options))
    assert hard.stride() == logits.stride()
    gradients, softs = [], []
    for backend in ("triton", "reference"):
        gradients.append(topk_sample_backward(grad, logits, n, temperature=0.7, backend=backend, **options))
        softs.append(sample_topk(logits, n, temperature=0.7, backend=backend, **options).soft)
    torch.testing.assert_close(*gradients, rtol=2e-3, atol=2e-4)
    torch.testing.assert_close(*softs, rtol=1e-4, atol=1e-5)


for _case in ((2, 4, 700, True), (2, 4, 37, False), (1, 8, 37, True), (3, 5, 37, False), (1, 1, 3, True)):
    case(equals_the_reference, *_case)


def autograd_and_schema() -> None:
    from snn_core.kernels.topk_sampler import relaxed_topk

    key = normal(9, 4, 0, True).requires_grad_()
    relaxed_topk(key, 2, 0.5, backend="triton")[:, 0].sum().backward()
    twin = key.detach().clone().requires_grad_()
    relaxed_topk(twin, 2, 0.5, backend="reference")[:, 0].sum().backward()
    torch.testing.assert_close(key.grad, twin.grad, rtol=1e-3, atol=1e-5)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    arguments = (key, None, 2, 1.0, 0.0, 0.5, 3, 4)
    namespace = torch.ops.snn_core
    torch.library.opcheck(namespace.topk_sample_triton.default, arguments, test_utils=tests)
    torch.library.opcheck(namespace.topk_sample_triton_soft.default, (*arguments, 0.7), test_utils=tests)
    torch.library.opcheck(
        namespace.topk_sample_triton_backward.default, (key.detach(), *arguments, 0.7), test_utils=tests
    )


def what_is_not_finite_is_counted_and_refused() -> None:
    from snn_core.errors import ArgumentError
    from snn_core.kernels.topk_sampler import topk_sample

    logits = normal(600, 4, 0, True).clone()
    logits[5, 1], logits[599, 3] = float("nan"), float("inf")
    assert int(torch.ops.snn_core.topk_sample_triton(logits, None, 2, 1.0, 0.0, 0.3, 0, 0)[1]) == 2
    with pytest.raises(ArgumentError, match="2 of 2400 entries are not finite"):
        topk_sample(logits, 2, seed=0, backend="triton")


def follows_the_plackett_luce_law() -> None:
    from tests.kernels.test_topk_sampler import chi_square_of_draws

    assert chi_square_of_draws(2, 4, "triton", draws=20_000) > 1e-3


def planted_failure() -> None:
    """Not a test: shows that a difference is seen and reported."""
    from snn_core.kernels.topk_sampler import topk_sample

    logits = normal(300, 4, 0, True)
    drawn = [topk_sample(logits, 2, seed=seed, backend="triton") for seed in (0, 1)]
    assert torch.equal(*drawn), "planted"


for _function in (
    autograd_and_schema, what_is_not_finite_is_counted_and_refused, follows_the_plackett_luce_law, planted_failure,
):  # fmt: skip
    case(_function)


@pytest.fixture(scope="module")
def reports() -> dict[str, str]:
    return CASES.reports()


@pytest.mark.parametrize("name", CASES.names)
def test_triton_equals_reference(name: str, reports: dict[str, str]) -> None:
    assert not reports[name], reports[name]


def test_the_harness_reports_a_difference(reports: dict[str, str]) -> None:
    assert "AssertionError: planted" in reports["planted_failure"]


# ---- ahead of time -------------------------------------------------------------------------------------------------


class Compiled:
    """Machine code and PTX of one launch."""

    def __init__(self, launch: tuple[Any, tuple[Any, ...], dict[str, Any]], cc: int, folder: Path) -> None:
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        kernel, _, options = launch
        backend, bound, specialization = specialize(launch, cc)
        chosen, signature, constants, attributes = kernel._pack_args(backend, options, bound, specialization, options)
        source = ASTSource(kernel, signature, constants, attributes)
        made = triton.compile(source, target=GPUTarget("cuda", cc, 32), options=chosen.__dict__)
        cubin = folder / "kernel.cubin"
        cubin.write_bytes(made.asm["cubin"])
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        sass, usage = (
            subprocess.run([str(tool), option, str(cubin)], capture_output=True, text=True, check=True).stdout
            for option in ("-sass", "-res-usage")
        )
        assert re.search(r"\bEXIT\b", sass), sass  # nothing is asserted of an empty text
        stack = re.search(r"STACK:(\d+)", usage)
        assert stack is not None, usage
        self.sass, self.ptx, self.stack = sass, made.asm["ptx"], int(stack[1])

    def count(self, pattern: str) -> int:
        return len(re.findall(rf"\b{pattern}", self.sass))


def specialize(launch: tuple[Any, tuple[Any, ...], dict[str, Any]], cc: int = 90) -> tuple[Any, Any, Any]:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend
    from triton.runtime.jit import create_function_from_signature

    kernel, arguments, options = launch
    backend = make_backend(GPUTarget("cuda", cc, 32))
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, _ = binder(*arguments, **options)
    return backend, bound, specialization


def record(name: str, m: int = 4, n: int = 2, blocks: int = 4096, **changes: Any) -> Any:
    """The launch of a call on position-major tensors without data."""
    from snn_core.kernels.native import triton_launch
    from snn_core.kernels.topk_sampler import triton as module

    launches = []

    def launch(kernel: Any, programs: int, arguments: Any, config: Any, **constants: Any) -> None:
        options = triton_launch.launch_options(config) | constants | {"debug": False}
        launches.append((kernel, tuple(arguments), options))

    options = {"kappa": 1.3, "rho": 0.7, "eta": 0.9, "seed": 3, "offset": 4} | changes
    key = torch.empty(m, blocks).t()
    values = (key, key, n, *options.values())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "launch", launch)
        if name == "sample":
            module.topk_sample_triton(*values)
        elif name == "soft":
            module.topk_sample_triton_soft(*values, 0.7)
        else:
            module.topk_sample_triton_backward(key, *values, 0.7)
    return launches[0]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Compiled]]:
    triton = pytest.importorskip("triton")
    if triton.knobs.runtime.interpret:
        pytest.skip("compiles nothing in the interpreter")
    folder = tmp_path_factory.mktemp("triton")
    found: dict[Any, Compiled] = {}

    def get(name: str, cc: int, **changes: Any) -> Compiled:
        key = (name, cc, *changes.items())
        if key not in found:
            kernel, arguments, options = record(name)
            found[key] = Compiled((kernel, arguments, options | changes), cc, folder)
        return found[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(folder))
        yield get


@pytest.mark.parametrize("cc", [80, 90])
@pytest.mark.parametrize("name", ["sample", "soft", "backward"])
def test_compiles_into_registers_and_vectors(name: str, cc: int, compiled: Callable[..., Compiled]) -> None:
    code = compiled(name, cc)
    assert code.stack == 0
    assert code.count(r"(LDL|STL)\b") == 0, "local memory"
    assert ".ftz" not in code.ptx, "denormals flushed"
    assert code.count(r"LDG\.E\S*\.128") >= (3 if name == "backward" else 2)
    assert code.count(r"STG\.E\S*\.128" if name != "sample" else r"STG\.E") >= 1


@pytest.mark.parametrize("cc", [80, 90])
def test_the_key_is_not_fused(cc: int, compiled: Callable[..., Compiled]) -> None:
    code = compiled("sample", cc)
    assert code.count("FMUL") > 0
    assert code.count("FFMA") == 0


def test_fusion_would_be_seen(compiled: Callable[..., Compiled]) -> None:
    assert compiled("sample", 90, enable_fp_fusion=True).count("FFMA") > 0


def test_no_size_no_n_and_no_step_compiles_again() -> None:
    triton = pytest.importorskip("triton")
    if triton.knobs.runtime.interpret:
        pytest.skip("compiles nothing in the interpreter")
    variants = [{}, {"blocks": 8192}, {"n": 1}, {"seed": 2**40 + 1}, {"offset": 1}, {"offset": 2**35}, {"eta": 0.1}]
    keys = {str(specialize(record("sample", **variant))[2]) for variant in variants}
    assert len(keys) == 1
    assert (
        len(keys | {str(specialize(record("sample", **other))[2]) for other in ({"blocks": 4097}, {"eta": 0.0})}) == 3
    )
