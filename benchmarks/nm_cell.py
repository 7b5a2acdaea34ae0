"""One cell of the N:M benchmark: check, then time, every contender on one product or convolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from lif_cell import why
from measure import ROTATION_BYTES, Clock, Stages, interleave, medians
from nm_contenders import Contender, Operands, contenders
from torch import Tensor

from snn_core.kernels.nm_compress import nm_mask_by_magnitude
from snn_core.kernels.nm_matmul import nm_conv2d, nm_matmul
from snn_core.kernels.spike_pack import PackedSpikes

#: Rows (images) at either end of the batch that are compared with a product in float64.
CHECKED_ROWS = 32
#: Rows up to which reading the weight decides: then weights rotate, so that they come from memory, not from a cache.
FEW_ROWS = 64
#: Weights that rotate on the CPU take so many bytes in bfloat16 together: more than the last-level cache.
CPU_ROTATION_BYTES = 64 << 20
MAX_ROTATION = 12


@dataclass
class Settings:
    """How a cell is measured: see the options of nm_matmul.py."""

    device: torch.device
    repeats: int
    seconds: float
    patience: float


Cell = dict[str, Any]


def make_operands(cell: Cell, device: torch.device, seed: int) -> Operands:
    """Random inputs: spikes of the cell's rate (dense normal activations without one) and a pruned normal weight.

    ``cell``: shape ``[M, K, N]``, or ``[B, C, H, W, O, kernel, stride, padding]``; rate; pattern; dtype.
    """
    generator = torch.Generator().manual_seed(seed)
    shape, dtype = cell["shape"], getattr(torch, cell["dtype"])
    convolution = (shape[6], shape[7], 1, 1) if len(shape) == 8 else None
    x_shape = shape[:4] if convolution else shape[:2]
    weight_shape = (shape[4], shape[1], shape[5], shape[5]) if convolution else (shape[2], shape[1])
    rate = cell.get("rate")
    if rate is None:
        x = torch.randn(x_shape, generator=generator).to(dtype).float()
    else:
        x = (torch.rand(x_shape, generator=generator) < rate).float()
    weight = (torch.randn(weight_shape, generator=generator) / weight_shape[1] ** 0.5).to(dtype).float()
    weight = weight * nm_mask_by_magnitude(weight, cell["pattern"])
    return Operands(x.to(device), weight.to(device), cell["pattern"], dtype, rate is not None, convolution)


def _rotation(cell: Cell, device: torch.device) -> int:
    """Number of sets of operands that are used in turn."""
    shape = cell["shape"]
    if device.type == "cpu" and (len(shape) == 8 or shape[0] > FEW_ROWS):
        return 1
    weight = 2 * shape[1] * (shape[4] * shape[5] ** 2 if len(shape) == 8 else shape[2])
    wanted = CPU_ROTATION_BYTES if device.type == "cpu" else ROTATION_BYTES
    return max(1, min(MAX_ROTATION, wanted // weight + 1))


class Task:
    """A contender on several sets of operands, used in turn."""

    def __init__(self, forms: list[Contender], device: torch.device) -> None:
        self.forms, self.clock, self.calls = forms, Clock(device), 0

    def once(self) -> Stages:
        """Seconds of one product."""
        run = self.forms[self.calls % len(self.forms)].run
        self.calls += 1
        self.clock.mark()
        run()
        self.clock.mark()
        return self.clock.stages()


def time_cell(cell: Cell, settings: Settings) -> dict[str, Any]:
    """Check and time everyone on one cell.

    Returns:
        For every contender the median in milliseconds and its relative error, or the reason why it has none; the best
        of each kind; how many times as long as ours they take; and what the dispatcher took.
    """
    device = settings.device
    report: dict[str, Any] = {}
    tasks: dict[str, Task] = {}
    with torch.no_grad():
        sets = [make_operands(cell, device, seed) for seed in range(_rotation(cell, device))]
        first, missing = contenders(sets[0], patience=settings.patience)
        report |= {name: {"skipped": reason} for name, reason in missing.items()}
        names = [contender.name for contender in first]
        everyone = [first, *[contenders(operands, names)[0] for operands in sets[1:]]]
        for contender in first:
            name = contender.name
            report[name] = {"kind": contender.kind}
            forms = [next((one for one in found if one.name == name), None) for found in everyone]
            try:
                report[name] |= _check(contender, sets[0])
            except Exception as error:  # whoever fails is told of there, and the others go on
                report[name] |= why(error)
            if not report[name].keys() & {"skipped", "failed"}:
                tasks[name] = Task([one for one in forms if one is not None], device)

        def failed(name: str, error: Exception) -> None:
            report[name] |= why(error)

        times = interleave(
            {name: task.once for name, task in tasks.items()}, settings.repeats, settings.seconds, failed=failed
        )
    for name, stages in times.items():
        report[name] |= {"ms": medians(stages)[0] * 1e3, "repeats": len(stages)}
    facts = {"sets": len(sets), "taken": _taken(sets[0])}
    return facts | {"contenders": report} | summarise(report)


def _check(contender: Contender, operands: Operands) -> dict[str, Any]:
    """Type of the result, and its relative error (2-norm) at both ends of the batch, against float64."""
    y = contender.run()
    entry: dict[str, Any] = {"dtype": str(y.dtype).removeprefix("torch.")}
    return entry if contender.name == "packing alone" else entry | {"relative_error": relative_error(y, operands)}


def relative_error(y: Tensor, operands: Operands) -> float:
    """Of the rows at both ends."""
    error = norm = 0.0
    rows = operands.x.shape[0]
    few = CHECKED_ROWS if operands.convolution is None else 1
    for part in (slice(0, min(few, rows)), slice(max(0, rows - few), rows)):
        x, weight = operands.x[part].double(), operands.weight.double()
        exact = (
            F.linear(x, weight) if operands.convolution is None else F.conv2d(x, weight, None, *operands.convolution)
        )
        error += float((y[part].double() - exact).square().sum())
        norm += float(exact.square().sum())
    return (error / norm) ** 0.5 if norm else float(error > 0)


def _taken(operands: Operands) -> str:
    """What the dispatcher says that it took."""
    from snn_core.kernels.nm_compress import CompressedNM

    compressed = CompressedNM.from_dense(operands.weight.to(operands.dtype), operands.pattern)
    call: Any = nm_matmul if operands.convolution is None else nm_conv2d
    more = () if operands.convolution is None else (None, *operands.convolution)
    x: Any = operands.x.to(operands.dtype)
    options: dict[str, Any] = {"explain": True}
    if operands.spikes:
        x = PackedSpikes.from_dense(operands.x, -1 if operands.convolution is None else -3)
        options["out_dtype"] = torch.float32
    with torch.no_grad():
        return str(call(x, compressed, *more, **options)[1])


def summarise(report: dict[str, Any]) -> dict[str, Any]:
    """Fastest of every kind, and how many times as long as ours it takes."""
    timed = {name: entry["ms"] for name, entry in report.items() if "ms" in entry}
    best: dict[str, str] = {}
    for name in timed:
        kind = report[name]["kind"]
        kinds = [kind, "dense bfloat16"] if kind == "dense" and "bfloat16" in name else [kind]
        for one in kinds:
            if one not in best or timed[name] < timed[best[one]]:
                best[one] = name
    ours = timed.get("snn_core")
    if ours is None:
        return {"best": best, "ratio": {}}
    ratio = {kind: timed[name] / ours for kind, name in best.items() if kind not in ("ours", "packing")}
    with_packing = timed.get("snn_core, with packing")
    if with_packing is not None and "dense bfloat16" in best:
        ratio["dense bfloat16, with packing"] = timed[best["dense bfloat16"]] / with_packing
    return {"best": best, "ratio": ratio}
