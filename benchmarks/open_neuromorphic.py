"""The task of the Open Neuromorphic library benchmark: Linear(512, 512) and LIF, batch 16, 500 steps.

    python benchmarks/open_neuromorphic.py [--device cuda]

After https://open-neuromorphic.org/blog/spiking-neural-network-framework-benchmarking/ (2023): input
torch.randn, forward, then backward of the sum of all spikes. Ours, SpikingJelly and the loops take SpikingJelly's
settings there (tau = 5, ATan), the other libraries solve their own equations with their own settings.
What is done otherwise here: everyone gets the same weights and one Linear over the whole sequence, the fastest form;
every backward belongs to a forward of its own instead of keeping one graph; contenders are timed in turn; and first
the spikes and the gradient of the weights are compared where the equation is the same, on 10 times the input, because
with these weights the task's own input makes almost nobody fire. The exit code is 1 where one differs or failed.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, Cell, code_version, run_cells, write_result
from lif_cell import HOST_REPEATS, Settings, why
from lif_contenders import Contender, contenders, version
from measure import Clock, Stages, interleave, limit_address_space, medians, peak_bytes
from torch import Tensor, nn

TAU = 5.0
LOUDER = 10.0
#: Relative; the sums of the matrix product take the spikes' gradients in one order for all.
GRADIENT_TOLERANCE = 1e-5
SAME_EQUATION = ("ours", "spikingjelly", "loop", "compiled")
Shape = tuple[int, int, int]


def materials(shape: Shape, device: torch.device) -> tuple[nn.Linear, Tensor]:
    """The layer and the input ``[T, B, N]``, the same for all."""
    torch.manual_seed(0)
    linear = nn.Linear(shape[2], shape[2]).to(device)
    return linear, torch.randn(shape).to(device)


def call(linear: nn.Linear, run: Callable[[Tensor], Tensor], x: Tensor, clock: Clock) -> tuple[Stages, Tensor]:
    """One forward and backward: seconds of both, and the spikes."""
    linear.zero_grad(set_to_none=True)
    clock.mark()
    s_seq = run(linear(x))
    clock.mark()
    s_seq.sum().backward()
    clock.mark()
    return clock.stages(), s_seq.detach()


def everyone(device: torch.device, shape: Shape, settings: Settings) -> tuple[list[Contender], dict[str, str]]:
    """Who takes part: those with a backward pass."""
    found, missing = contenders(device, torch.float32, shape[0], settings.unroll, settings.groups, TAU)
    return [contender for contender in found if not contender.forward_only], missing


def compare(linear: nn.Linear, x: Tensor, found: list[Contender], clock: Clock) -> dict[str, dict[str, Any]]:
    """Spikes and weight gradient of each against ours, on a louder input; a first call for the others."""
    verdicts: dict[str, dict[str, Any]] = {}
    reference: tuple[Tensor, Tensor] | None = None
    for contender in found:
        try:
            _, s_seq = call(linear, contender.run, LOUDER * x, clock)
        except Exception as error:  # told, and the others go on
            verdicts[contender.name] = {"kind": contender.kind} | why(error)
            continue
        assert linear.weight.grad is not None
        gradient = linear.weight.grad.clone()
        verdict: dict[str, Any] = {"kind": contender.kind, "firing_rate": s_seq.mean().item()}
        if contender.kind not in SAME_EQUATION:
            verdict["compared"] = "no: another equation"
        elif reference is None:
            reference = s_seq, gradient
        else:
            verdict["spikes_differ"] = int((s_seq != reference[0]).sum())
            verdict["gradient_relative_error"] = float((gradient - reference[1]).norm() / reference[1].norm())
        verdicts[contender.name] = verdict
    return verdicts


def time_task(shape: Shape, settings: Settings) -> dict[str, Any]:
    """Medians of forward, backward and both, of everyone and of the Linear alone."""
    device = settings.device
    torch._dynamo.reset()
    linear, x = materials(shape, device)
    found, missing = everyone(device, shape, settings)
    clock = Clock(device)
    report: dict[str, Any] = {name: {"skipped": reason} for name, reason in missing.items()}
    report |= compare(linear, x, found, clock)

    def once(run: Callable[[Tensor], Tensor], clock: Clock = clock) -> Stages:
        return call(linear, run, x, clock)[0]

    def failed(name: str, error: Exception) -> None:
        report[name] = report.get(name, {}) | why(error)

    runs = {one.name: functools.partial(once, one.run) for one in found if "failed" not in report[one.name]}
    runs["Linear alone"] = functools.partial(once, lambda current: current)
    warm = interleave(runs, 1, 0.0, failed=failed)
    times = interleave({name: runs[name] for name in warm}, settings.repeats, settings.seconds, failed=failed)
    for name, stages in times.items():
        forward, backward = medians(stages)
        both = medians([(sum(pair),) for pair in stages])[0]
        figures = {"forward_ms": forward * 1e3, "backward_ms": backward * 1e3, "both_ms": both * 1e3}
        report[name] = report.get(name, {}) | figures | {"repeats": len(stages)}
    if device.type == "cuda":  # what a caller waits for, launches included
        waiting = {name: functools.partial(runs[name], clock=Clock(device, host=True)) for name in times}
        for name, stages in interleave(waiting, HOST_REPEATS, settings.seconds / 4, failed=failed).items():
            report[name]["host_ms"] = dict(
                zip(("forward", "backward"), (1e3 * s for s in medians(stages)), strict=True)
            )
    return {"device": device.type, "contenders": report}


def differences(report: dict[str, Any], kinds: tuple[str, ...] = ("ours", "spikingjelly", "loop")) -> list[str]:
    """Who of ``kinds`` failed or has other spikes or another gradient than ours.

    A compiler may round otherwise, so compiled loops may differ in a few spikes, which their entry tells. So does torch
    on CUDA, which divides by a Python number through its reciprocal: the reference and the loop there.
    """
    problems = []
    for name, entry in report["contenders"].items():
        if entry.get("kind") not in kinds:
            continue
        if "failed" in entry:
            problems.append(f"{name} failed: {entry['failed']}")
        rounded = report.get("device") == "cuda" and name in ("snn_core reference", "plain loop", "SpikingJelly torch")
        error = entry.get("gradient_relative_error", 0)
        # "not <=": NaN is wrong, too
        if not rounded and (entry.get("spikes_differ") or not error <= GRADIENT_TOLERANCE):
            problems.append(f"{name}: {entry.get('spikes_differ')} spikes differ, gradient by {error:.1e}")
    return problems


def memory_task(shape: Shape, name: str, settings: Settings) -> dict[str, Any]:
    """Peak memory beyond input and weights of one forward and backward; see measure.peak_bytes for what counts."""
    linear, x = materials(shape, settings.device)
    found, _ = everyone(settings.device, shape, settings)
    contender = next(one for one in found if one.name == name)
    clock = Clock(settings.device)
    # A compiled form compiles for its shape; the others warm up on one step.
    few = x if contender.kind == "compiled" else x[:1]
    call(linear, contender.run, few, clock)
    linear.zero_grad(set_to_none=True)
    peak = peak_bytes(lambda: call(linear, contender.run, x, clock), settings.device)
    return {"peak_megabytes": None if peak is None else peak / 1e6}


def work(cell: Cell) -> Cell:
    """One measurement, in a process of its own."""
    torch.set_num_threads(cell["threads"])
    settings = Settings(torch.device(cell["device"]), cell["repeats"], cell["seconds"], 60.0, 16, cell["groups"])
    limit_address_space(settings.device)
    shape = (cell["T"], cell["B"], cell["N"])
    try:
        if "contender" in cell:
            settings.groups = [cell["kind"]]
            return memory_task(shape, cell["contender"], settings)
        return time_task(shape, settings)
    except Exception as error:  # told in the result; the other cells go on
        return dict(why(error))


def main() -> int:
    """Measure and write the result. Returns 1 when somebody failed whose equation is ours, or differs from ours."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=20.0, help="after so many, three calls are enough")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--neurons", type=int, default=512)
    groups = ["spikingjelly", "loop", "compiled", "other"]
    parser.add_argument("--groups", nargs="*", choices=groups, default=groups)
    parser.add_argument("--no-memory", action="store_true", help="times alone")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-open-neuromorphic"), help="finished cells")
    parser.add_argument("--json", type=Path, help="default benchmarks/results/open_neuromorphic_<device>.json")
    arguments = parser.parse_args()
    shape = (arguments.steps, arguments.batch, arguments.neurons)
    base: Cell = dict(zip("TBN", shape, strict=True)) | {
        key: getattr(arguments, key) for key in ("device", "threads", "repeats", "seconds", "groups")
    }
    base |= {"code": code_version()}
    device = torch.device(arguments.device)
    found, _ = everyone(device, shape, Settings(device, 1, 1.0, 1.0, 16, arguments.groups))
    memory = [] if arguments.no_memory else [{"contender": one.name, "kind": one.kind} for one in found]
    timed, *weighed = run_cells([base, *(base | one for one in memory)], work, arguments.work, 1, fresh=True)
    result = timed["result"]
    if "contenders" not in result:
        print(f"nothing was timed: {result}")
        return 1
    for cell in weighed:
        # Its times stand, though its memory may have failed.
        told = {
            f"memory_{key}" if key in ("skipped", "failed") else key: value for key, value in cell["result"].items()
        }
        result["contenders"][cell["contender"]] |= told
    for name, entry in sorted(result["contenders"].items(), key=lambda item: item[1].get("both_ms", 1e9)):
        print(f"{name:34} {entry.get('both_ms', float('nan')):9.2f} ms", entry)
    versions = {name: version(name) for name in ("spikingjelly", "snntorch", "norse", "sinabs")}
    path = arguments.json or RESULTS / f"open_neuromorphic_{arguments.device}.json"
    write_result(path, base | {"versions": versions} | result)
    problems = differences(result)
    print(*problems, sep="\n")
    return int(bool(problems))


if __name__ == "__main__":
    raise SystemExit(main())
