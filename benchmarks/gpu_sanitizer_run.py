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
    if device.type == "cuda":
        torch.cuda.synchronize()
    return 0 if backends else 1


if __name__ == "__main__":
    raise SystemExit(main())
