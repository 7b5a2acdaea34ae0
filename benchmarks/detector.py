"""Detectors on a frozen ViT with 2:4 weights: how small, how exact, what training costs, and whether it learns.

    python benchmarks/detector.py                       # a quarter of an hour of one core; finished cells are kept
    python benchmarks/detector.py --parts learning      # run one part; the file holds all parts that are finished
    python benchmarks/detector.py --device cuda --json benchmarks/results/detector_cuda.json

Parts: ``size`` (a ViT-B/16 with LoRA experts: trained parameters, bytes in memory and in files against dense ones of 16
bits, output against the masked dense network), ``cost`` (a training step of adapters: time, bytes of weights, bytes
that autograd keeps, the peak of the process or device; frozen weights dense, 2:4, and 2:4 in the package's layer for
inference, whose gradient keeps a dense copy), ``learning`` (detector_task.py: spliced patches, several seeds, paired).
Settings of ``learning`` were chosen on seeds from 100 on.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import Cell, add_json_option, code_version, finished_cells, run_cells, summary, write_result
from detector_task import ARMS, learn
from safetensors.torch import save_file
from torch import Tensor, nn

from snn_core.detectors import Detector, FrozenLinear, FrozenViT, detection_loss, footprint
from snn_core.kernels.nm_compress import CompressedNM
from snn_core.seeding import make_generator
from snn_core.sparsity import CompressedLinear, decompress, save_compressed
from snn_core.sparsity.convert import replace_layers

BASE = "vit_base_patch16_224"
EXPERTS = [{"form": "mixture", "ranks": [8, 8, 8, 8], "kernels": []}]
BOTH_EXPERTS = [{"form": "mixture", "ranks": [8, 8, 8, 8], "kernels": [1, 3, 5], "hidden": 16}]
FORMS = ("dense", "2:4", "2:4, layer for inference")
PARTS = ["size", "cost", "learning"]
SCORES = ("accuracy", "auc", "f1", "iou")


def size(cell: Cell) -> Cell:
    """Counts and bytes of a ViT-B/16 detector, and how far its answer is from that of the masked dense network."""
    vit = FrozenViT(cell["model"], num_classes=0, adapters=cell["adapters"], seed=0).eval()
    counts = footprint(vit)
    x = torch.randn(2, 3, 224, 224, generator=make_generator(0, "pictures"))
    dense = decompress(vit)
    with torch.no_grad():
        got, want = vit(x), dense(x)
        exact = dense.double()(x.double())
    error = {
        "largest_difference": (got - want).abs().max().item(),
        "relative_norm": ((got - want).norm() / want.norm()).item(),
        "relative_norm_to_float64": ((got - exact).norm() / exact.norm()).item(),
        "dense_relative_norm_to_float64": ((want - exact).norm() / exact.norm()).item(),
    }
    frozen = FrozenViT(cell["model"], num_classes=0, seed=0).to(torch.bfloat16)
    half = footprint(frozen)
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder) / "compressed", Path(folder) / "dense"
        save_compressed(files[0], frozen)
        save_file({name: value.contiguous() for name, value in decompress(frozen).state_dict().items()}, files[1])
        file_bytes = [file.stat().st_size for file in files]
    return {
        "parameters": counts.parameters,
        "trained": counts.trained,
        "trained_share": counts.trained_share,
        "frozen_bytes_16_bit": half.frozen_nbytes,
        "dense_bytes_16_bit": half.dense_nbytes,
        "bytes_ratio": half.bytes_ratio,
        "file_bytes": file_bytes[0],
        "dense_file_bytes": file_bytes[1],
        "file_ratio": file_bytes[0] / file_bytes[1],
        "dense_layers": vit.dense_layers(),
        "output_error": error,
    }


def as_for_inference(vit: nn.Module) -> nn.Module:
    """The compressed layers exchanged for the package's own, which differentiates through a dense copy."""
    layers = {name: module for name, module in vit.named_modules() if isinstance(module, FrozenLinear)}

    def make(name: str, module: nn.Module) -> nn.Module:
        weight: CompressedNM = layers[name].weight
        return CompressedLinear(weight, layers[name].bias)

    return replace_layers(vit, layers, make, inplace=True)


def cost(cell: Cell) -> Cell:
    """Time and memory of one training step of adapters and heads."""
    device = torch.device(cell["device"])
    pattern = None if cell["form"] == "dense" else "2:4"
    vit: Any = FrozenViT(
        cell["model"], num_classes=0, pattern=pattern, adapters=cell["adapters"], image_size=cell["image_size"]
    )
    if cell["form"] == FORMS[2]:
        vit = as_for_inference(vit)
    detector = Detector(vit).to(device).train()
    weights = sum(value.nbytes for value in [*detector.parameters(), *detector.buffers()])
    optimizer = torch.optim.AdamW(detector.trained_parameters(), lr=1e-4)
    x = torch.randn(cell["batch"], 3, cell["image_size"], cell["image_size"], device=device)
    forged, mask = torch.ones(len(x), device=device), torch.ones_like(x[:, :1])
    own = {value.untyped_storage().data_ptr() for value in [*detector.parameters(), *detector.buffers()]}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def step() -> None:
        loss = detection_loss(detector(x), forged, mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        step()
    times, cpu_times = [], []
    for _ in range(cell["repeats"]):
        started, cpu = time.perf_counter(), time.process_time()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
        cpu_times.append(time.process_time() - cpu)
    on_gpu = device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "seconds": statistics.median(times),
        "cpu_seconds": statistics.median(cpu_times),  # says more than the clock on a machine that others use
        "load": os.getloadavg()[0],
        "threads": torch.get_num_threads(),
        "weight_bytes": weights,
        "kept_for_backward_bytes": sum(kept.values()),
        "peak_bytes": peak,
        "peak_is_of": "device" if on_gpu else "process, the dense weights before compression included",
        "optimizer_bytes": sum(v.nbytes for state in optimizer.state.values() for v in state.values()),
    }


def paired(results: list[Cell]) -> dict[str, Any]:
    """Means over seeds, and differences of the same seed to the dense frozen network, in points."""
    arms = {
        arm: {score: summary([100 * result["arms"][arm][score] for result in results]) for score in SCORES}
        for arm in ARMS
    }
    dense = next(iter(ARMS))
    differences = {
        arm: {
            score: summary([100 * (r["arms"][arm][score] - r["arms"][dense][score]) for r in results])
            for score in SCORES
        }
        for arm in list(ARMS)[1:]
    }
    chance = {score: statistics.fmean([100 * result["chance"][score] for result in results]) for score in SCORES}
    return {"points": arms, "less_dense_points": differences, "chance_points": chance}


def describe(cell: Cell) -> str:
    return " ".join(str(cell[key]) for key in ("part", "form", "seed") if key in cell)


def cells_of(arguments: argparse.Namespace) -> dict[str, list[Cell]]:
    """What every part runs."""
    code = {"code": code_version()}  # a finished cell is of the code it was made with
    forms = (("LoRA experts", EXPERTS), ("LoRA and convolutional experts", BOTH_EXPERTS))
    sizes = [
        {"part": "size", "model": arguments.model, "form": name, "adapters": adapters, **code}
        for name, adapters in forms
    ]
    step = {"batch": arguments.batch, "repeats": arguments.repeats, "image_size": 224, "device": arguments.device}
    costs = [
        {"part": "cost", "model": arguments.model, "form": form, "adapters": EXPERTS, **step, **code} for form in FORMS
    ]
    task = {name: getattr(arguments, name) for name in ("steps", "batch_size", "pretraining_steps", "lr")}
    return {
        "size": sizes,
        "cost": costs,
        "learning": [{"part": "learning", "seed": seed, **task, **code} for seed in range(arguments.seeds)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_json_option(parser, "detector.json")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--seeds", type=int, default=4, help="of the learning task")
    parser.add_argument("--steps", type=int, default=400, help="of adapters, in the learning task")
    parser.add_argument("--batch-size", type=int, default=32, help="pictures of such a step")
    parser.add_argument("--pretraining-steps", type=int, default=300, help="of the digits before")
    parser.add_argument("--lr", type=float, default=1e-2, help="of adapters and heads, the highest")
    parser.add_argument("--model", default=BASE, help="of the parts size and cost")
    parser.add_argument("--batch", type=int, default=2, help="pictures a training step, in the part cost")
    parser.add_argument("--repeats", type=int, default=3, help="steps that are timed")
    parser.add_argument("--work", type=Path, default=Path("runs/detector"), help="finished cells, not run again")
    parser.add_argument("--device", default="cpu", help="of the part cost")
    parser.add_argument("--processes", type=int, default=2, help="of the learning task")
    parser.add_argument("--note", default="", help="kept in the result: of the machine, say, and who else used it")
    arguments = parser.parse_args()
    folder, cells = arguments.work, cells_of(arguments)
    if "size" in arguments.parts:
        run_cells(cells["size"], size, folder, 0, describe=describe)
    if "cost" in arguments.parts:
        # A process for each: the peak is that of the process.
        run_cells(cells["cost"], cost, folder, 1, fresh=True, describe=describe)
    if "learning" in arguments.parts:
        run_cells(cells["learning"], learn, folder, arguments.processes, describe=describe)
    finished = {part: finished_cells(folder, wanted) for part, wanted in cells.items()}
    body: dict[str, Any] = {part: done for part, done in finished.items() if len(done) == len(cells[part])}
    for part in cells.keys() - body.keys():
        print(f"{part}: {len(finished[part])} of {len(cells[part])} cells are finished; not in the result")
    if "learning" in body:
        results = [cell["result"] for cell in body["learning"]]
        body["learning"] = {"cells": body["learning"], "summary": paired(results)}
        print(body["learning"]["summary"])
    write_result(arguments.json, {"model": arguments.model, "note": arguments.note, **body})


if __name__ == "__main__":
    main()
