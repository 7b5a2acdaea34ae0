"""One command for a GPU machine: build, check on the device, measure against peers, write JSON.

    python benchmarks/gpu_suite.py [--parts environment lif ...] [--json FILE]

Needs torch alone (numpy with it); SpikingJelly, triton and pytest are used where they are. Safe to run again; every
part is timed, and a part that fails or cannot run is reported and does not stop the others. ``--device cpu --quick`` is
a dry run of the logic on any machine. Inputs are random and rotate over buffers larger than the L2 cache; times are
medians.

There are no GPU kernels of ours yet: the neuron runs through its reference there, and these figures are the ground that
kernels will be measured against.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
ROTATION_BYTES = 256 << 20  # more than any L2


def use_source_tree() -> None:
    """Make ``snn_core`` importable from this checkout where it is not installed."""
    with contextlib.suppress(ImportError):
        # Looking for a submodule imports its parent, which fails in a bare checkout.
        if importlib.util.find_spec("snn_core.kernels"):
            return
    package = Path(tempfile.mkdtemp(prefix="snn_core_tree_")) / "snn_core"
    package.mkdir()
    for source in [*(ROOT / "snn_core").iterdir(), ROOT / "kernels", ROOT / "datasets"]:
        (package / source.name).symlink_to(source)
    sys.path.insert(0, str(package.parent))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(package.parent), os.environ.get("PYTHONPATH", "")])
    for name in [name for name in sys.modules if name.split(".")[0] == "snn_core"]:
        del sys.modules[name]


class Bench:
    """Timing on one device."""

    def __init__(self, device: torch.device, quick: bool) -> None:
        self.device, self.quick = device, quick
        self.repeats = 5 if quick else 50

    def median_ms(self, runs: list[Callable[[], Any]]) -> float:
        """Median time of one call, over calls that rotate through ``runs`` (one per input buffer)."""
        for run in runs[:3]:
            run()
        self.synchronize()
        times = []
        for run in itertools.islice(itertools.cycle(runs), self.repeats):
            if self.device.type == "cuda":
                start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                start.record()
                run()
                end.record()
                end.synchronize()
                times.append(start.elapsed_time(end))
            else:
                began = time.perf_counter()
                run()
                times.append((time.perf_counter() - began) * 1e3)
        return statistics.median(times)

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def inputs(self, shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
        """Random tensors, enough of them to exceed the cache (at most 8)."""
        size = torch.empty(shape, dtype=dtype, device="meta").nbytes
        count = 2 if self.quick else max(2, min(8, ROTATION_BYTES // size + 1))
        generator = torch.Generator(device=self.device).manual_seed(0)
        return [torch.randn(shape, generator=generator, device=self.device).to(dtype) for _ in range(count)]


def environment(bench: Bench) -> dict[str, Any]:
    """Device, versions, commit and measured copy bandwidth (bytes read plus written)."""
    elements = (1 << 20) if bench.quick else (1 << 28)
    sources = [torch.randn(elements, device=bench.device) for _ in range(2)]
    target = torch.empty_like(sources[0])
    milliseconds = bench.median_ms([lambda source=source: target.copy_(source) for source in sources])
    cuda = bench.device.type == "cuda"
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "capability": list(torch.cuda.get_device_capability()) if cuda else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": sys.version.split()[0],
        "triton": _version("triton"),
        "spikingjelly": _version("spikingjelly"),
        "commit": commit.stdout.strip() or "unknown",
        "copy_gigabytes_per_second": 2 * target.nbytes / milliseconds / 1e6,
    }


def _version(name: str) -> str | None:
    import importlib.metadata

    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return None


def build(bench: Bench) -> dict[str, Any]:
    """Build the native CPU library, which this machine's CPU baselines use."""
    result = subprocess.run(
        [sys.executable, "-m", "snn_core.kernels.native"], capture_output=True, text=True, check=False
    )
    return {"built": result.returncode == 0, "output": (result.stdout + result.stderr).strip()[-500:]}


def check(bench: Bench) -> dict[str, Any]:
    """Neuron on the device against the CPU: equal spikes, gradients to 1e-5 relative, all reset and decay options."""
    from snn_core.kernels import lif

    worst, cases = 0.0, 0
    for decay_input, detach_reset, v_reset in itertools.product((True, False), (True, False), (0.0, None, -0.3)):
        base = torch.randn(7, 5, 333, generator=torch.Generator().manual_seed(cases)) * 2
        results = []
        for device in ("cpu", bench.device):
            x = base.to(device).requires_grad_()
            spikes, _ = lif(x, decay_input=decay_input, detach_reset=detach_reset, v_reset=v_reset, backend="reference")
            (spikes * torch.cos(torch.arange(spikes.numel(), device=device).view_as(spikes))).sum().backward()
            results.append((spikes.detach().cpu(), x.grad.cpu()))
        if not torch.equal(results[0][0], results[1][0]):
            raise AssertionError(f"spikes differ for {decay_input=}, {detach_reset=}, {v_reset=}")
        worst = max(worst, ((results[0][1] - results[1][1]).norm() / results[0][1].norm()).item())
        cases += 1
    if worst > 1e-5:
        raise AssertionError(f"gradients differ by {worst:.2e} relative")
    return {"cases": cases, "worst_gradient_error": worst}


def tests(bench: Bench) -> dict[str, Any]:
    """The kernel tests, where pytest is installed."""
    if not importlib.util.find_spec("pytest"):
        return {"skipped": "pytest is not installed"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--noconftest",
        "tests/kernels/test_lif.py",
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    return {"passed": result.returncode == 0, "output": result.stdout.strip()[-500:]}


def lif(bench: Bench) -> dict[str, Any]:
    """Neuron forward plus backward: eager, compiled, SpikingJelly's device kernels; beside the limit set by bytes."""
    import snn_core

    bandwidth = environment(bench)["copy_gigabytes_per_second"] * 1e6  # bytes per millisecond
    layers: dict[str, Any] = {"reference": snn_core.LIF(backend="reference")}
    if importlib.util.find_spec("spikingjelly"):
        from spikingjelly.activation_based import neuron
        from spikingjelly.activation_based.surrogate import ATan

        layers["spikingjelly"] = neuron.LIFNode(step_mode="m", surrogate_function=ATan())
    cells = []
    shapes = [(4, 4096)] if bench.quick else [(4, 1 << 22), (16, 1 << 20), (64, 1 << 18)]
    for (steps, neurons), dtype in itertools.product(shapes, (torch.float32, torch.bfloat16)):
        x = bench.inputs((steps, neurons), dtype)
        gradient = bench.inputs((steps, neurons), dtype)[0]
        # read x, write s; read gradient and x, write the gradient of x
        limit = 5 * x[0].nbytes / bandwidth
        cell: dict[str, Any] = {"T": steps, "N": neurons, "dtype": str(dtype), "limit_ms": limit}
        for name, layer in layers.items():
            try:
                cell[f"{name}_ms"] = bench.median_ms([_step(layer, source, gradient) for source in x])
            except Exception as error:
                cell[f"{name}_error"] = f"{type(error).__name__}: {error}"[:300]
        cells.append(cell)
    return {"cells": cells}


def _step(layer: Any, source: Tensor, gradient: Tensor) -> Callable[[], None]:
    def run() -> None:
        layer.reset()
        leaf = source.detach().requires_grad_()
        layer(leaf).backward(gradient)

    return run


def training_step(bench: Bench) -> dict[str, Any]:
    """One optimiser step of the ConvSNN on random frames of N-MNIST's size."""
    from snn_core.backbones import create

    batch = 8 if bench.quick else 256
    model = create("conv-snn").to(bench.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    frames = [source.abs() for source in bench.inputs((3, batch, 2, 34, 34), torch.float32)]
    labels = torch.arange(batch, device=bench.device) % 10

    def step(x: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()

    return {"batch": batch, "T": 3, "step_ms": bench.median_ms([lambda x=x: step(x) for x in frames])}


def sanitizer(bench: Bench) -> dict[str, Any]:
    """Memory checker on our own device code: there is none yet."""
    return {"skipped": "no GPU kernels of ours yet"}


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    part.__name__: part for part in (environment, build, check, tests, sanitizer, lif, training_step)
}


def main() -> int:
    """Run the parts. Returns 1 when one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the script itself")
    parser.add_argument("--json", type=Path, help="result file; default benchmarks/results/gpu_<device>.json")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here; --device cpu --quick is a dry run")
        return 1
    use_source_tree()
    bench = Bench(torch.device(arguments.device), arguments.quick)
    device = "cpu" if arguments.device == "cpu" else torch.cuda.get_device_name().lower().replace(" ", "_")
    path = arguments.json or ROOT / "benchmarks/results" / f"gpu_{device}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {}
    for name in arguments.parts:
        began = time.perf_counter()
        try:
            report[name] = PARTS[name](bench)
        except Exception:
            report[name] = {"failed": traceback.format_exc()[-2000:]}
        report[name]["part_seconds"] = round(time.perf_counter() - began, 2)
        print(name, json.dumps(report[name], indent=1), flush=True)
        # After every part: a time limit must not take what was measured before it.
        beside = path.with_suffix(".tmp")
        beside.write_text(json.dumps(report, indent=2, sort_keys=True) + "\n")
        beside.replace(path)
    print(f"wrote {path}")
    return int(any("failed" in part for part in report.values()))


if __name__ == "__main__":
    raise SystemExit(main())
