"""A small run of every GPU kernel of ours, for ``compute-sanitizer`` to watch: odd sizes, strides, every option.

compute-sanitizer --tool memcheck --error-exitcode 99 python benchmarks/gpu_sanitizer_run.py

PYTORCH_NO_CUDA_MEMORY_CACHING=1 gives every tensor an allocation of its own, so that a step over its end is seen.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("PYTORCH_NO_CUDA_MEMORY_CACHING", "1")

import source_tree  # noqa: F401  makes snn_core importable
import torch
from gpu_checks import Case, execute, kernels

from snn_core.kernels import lif, pack_spikes, unpack_spikes
from snn_core.kernels.nm_compress import nm_mask_by_magnitude
from snn_core.kernels.nm_matmul import schema  # noqa: F401  (defines the operators)


def products(device: torch.device) -> int:
    """Every kernel of ``nm_matmul`` in CUDA C++, on shapes that fill no tile. Returns how many products were made."""
    operators, count = torch.ops.snn_core, 0
    paths = (0, 1, 2, 3) if torch.cuda.get_device_capability(device) == (9, 0) else (0, 1, 2)
    for rows, outputs, k in ((1, 5, 64), (9, 67, 272), (70, 131, 100)):
        weight = torch.randn(outputs, k, device=device)
        values, indices, _ = operators.nm_compress(weight, nm_mask_by_magnitude(weight, "2:4"), 2, 4)
        bits = torch.randint(256, (rows, 1, 1, (k + 7) // 8), device=device).to(torch.uint8)
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.float8_e4m3fn):
            arguments = (values.to(dtype), indices, 2, 4, [outputs, k, 1, 1], None, None)
            for path in paths:
                operators.nm_spikes(bits, k, *arguments, [1, 1], [0, 0], [1, 1], 1, torch.bfloat16, path)
                operators.nm_dense(torch.randn(rows, k, device=device).bfloat16(), *arguments, path)
                count += 2
        operators.nm_decompress(values, indices, 2, 4, outputs, None, torch.bfloat16)
        images = torch.randint(256, (2, 5, 6, 2), device=device).to(torch.uint8)
        operators.spike_im2col(images, 13, [3, 2], [2, 1], [1, 0], [1, 2])
        operators.spike_max_pool(images, [2, 2], [2, 2], [0, 1])
    return count


def main() -> int:
    """Run everything once. Returns 1 where no kernel of ours can run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--backends", nargs="+", help="default: all that run here")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    backends = arguments.backends or kernels(device)
    print(f"backends: {backends}", flush=True)
    cases = [
        Case(1, (1,)),
        Case(5, (3, 77)),
        Case(16, (4099,), torch.bfloat16),
        Case(17, (2, 8, 3, 5), layout="channels last"),
        Case(40, (1023,), torch.float16, layout="misaligned"),
        Case(33, (7, 129), learned_tau=True),
        Case(20, (3, 64), layout="expanded gradient", options={"v_reset": None, "detach_reset": True}),
    ]
    for backend in backends:
        for case in cases:
            execute(case, case.inputs(), device, backend)
        with torch.no_grad():
            x = torch.randn(5, 3, 77).to(device)
            packed, _ = lif(x, backend=backend, pack_spikes_dim=2)
            lif(x, backend=backend, inplace=True)
            unpack_spikes(pack_spikes(x, 2, backend=backend), 77, 2, backend=backend)
        print(f"{backend}: {len(cases)} cases, packed {tuple(packed.shape)}", flush=True)
        if backend == "cuda":
            print(f"nm_matmul: {products(device)} products", flush=True)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return 0 if backends else 1


if __name__ == "__main__":
    raise SystemExit(main())
