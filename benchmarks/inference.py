"""Whole pruned networks: the dense forms of a 2:4 spiking network against the compressed and fused one, on the CPU.

Each network is trained to 2:4 (SpikeNM) on the built-in recordings and kept in --work, so that firing rates are those
of a trained network (TRAINING says for how long). Then, on test recordings and in one process in turn: the masked dense
network as it is, channels-last, in bfloat16, compiled (with and without bfloat16), and
``fuse(compress(model, dtype=bfloat16))``. Outputs are compared first. Weight bytes are those of the pruned layers, in
memory and on disk; peak memory is that of one call in a process of its own.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import add_json_option, write_result
from measure import Clock, Stages, interleave, medians, peak_bytes
from torch import Tensor, nn

from snn_core.backbones import create
from snn_core.datasets import FrameDataset, load_frames
from snn_core.pruning import PruneConfig, create_pruner
from snn_core.sparsity import CompressedLayer, compress, decompress, fuse, load_compressed, save_compressed
from snn_core.sparsity.fused import Synapses
from snn_core.training import TrainConfig, evaluate_accuracy, train_classifier

PATTERN = "2:4"
#: The second: widths of a VGG, one layer before each of five poolings, which bring frames of 34 x 34 to 1 x 1.
NETWORKS: dict[str, dict[str, Any]] = {
    "conv-snn": {"channels": [32, 64, 64]},
    "vgg": {"channels": [64, 128, 256, 512, 512], "stem_kernel": 3, "stem_stride": 1},
}
#: Epochs, and recordings for training (None: all). The second network is trained for its firing rates, not for its
#: accuracy: a minute or two instead of ten.
TRAINING: dict[str, tuple[int, int | None]] = {"conv-snn": (20, None), "vgg": (4, 240)}
#: Of the logits, how far the compressed network may be from the masked dense one, relative to their largest; few spikes
#: near the threshold fall on the other side when sums are formed in another order.
TOLERANCE = 2e-2
Forms = dict[str, Callable[[Tensor], Tensor]]


def pruned(name: str, train_set: FrameDataset, test_set: FrameDataset, work: Path, quick: bool) -> tuple[Path, float]:
    """The compressed file of the trained network, made where it is not there yet, and its accuracy."""
    work.mkdir(parents=True, exist_ok=True)
    path, note = work / f"{name}{'-quick' if quick else ''}.safetensors", work / f"{name}-{quick}.json"
    if not (path.is_file() and note.is_file()):
        model = create("conv-snn", **NETWORKS[name])
        pruner = create_pruner("spikenm", model, PruneConfig(pattern=PATTERN))
        epochs, recordings = (1, None) if quick else TRAINING[name]
        if recordings is not None:
            train_set = train_set.subset(range(recordings))
        train_classifier(model, train_set, TrainConfig(epochs=epochs), hooks=[pruner], name=name, quiet=quick)
        save_compressed(path, compress(model, pruner.patterns, pruner.masks, dtype=torch.bfloat16))
        note.write_text(json.dumps(evaluate_accuracy(model, test_set)))
    return path, json.loads(note.read_text())


def in_bfloat16(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The model under autocast: products in bfloat16, neurons in float32."""

    def run(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model(x)

    return run


def make_forms(path: Path, names: list[str] | None = None) -> tuple[Forms, nn.Module, nn.Module]:
    """Every form of the network by name; the compressed and the fused one."""
    small = load_compressed(path, dense=False).eval()
    dense = decompress(small).float().eval()
    fast = fuse(small)
    last = copy.deepcopy(dense).to(memory_format=torch.channels_last)
    cast = copy.deepcopy(last)
    forms: Forms = {
        "dense": dense, "dense channels-last": last, "dense bf16": in_bfloat16(dense),
        "dense bf16 channels-last": in_bfloat16(cast), "dense compiled": torch.compile(dense),
        "dense compiled channels-last": torch.compile(last), "dense compiled bf16": torch.compile(in_bfloat16(cast)),
        "compressed": small, "fused": fast,
    }  # fmt: skip
    return {name: form for name, form in forms.items() if names is None or name in names}, small, fast


def weight_bytes(path: Path, small: nn.Module, fast: nn.Module) -> dict[str, Any]:
    """Of the pruned layers: dense in 16 bit, compressed in memory and on disk; and the whole file."""
    layers = [module for module in small.modules() if isinstance(module, CompressedLayer)]
    dense = sum(2 * torch.Size(layer.shape).numel() for layer in layers)
    parts = [module for module in fast.modules() if isinstance(module, Synapses) and module.pattern is not None]
    memory = sum(
        tensor.nbytes for part in parts for tensor in (part.values, part.indices, part.scale) if tensor is not None
    )
    # Values and indices are stored byte for byte.
    disk = sum(layer.weight_nbytes for layer in layers)
    return {
        "layers": len(layers), "dense_16_bit": dense, "resident": memory, "on_disk": disk,
        "file_bytes": path.stat().st_size, "resident_ratio": memory / dense, "on_disk_ratio": disk / dense,
    }  # fmt: skip


def compare(forms: Forms, x: Tensor) -> float:
    """Largest difference of the fused network's logits from the masked dense network's, relative to their largest."""
    expected = forms["dense"](x)
    return float((forms["fused"](x) - expected).abs().max() / expected.abs().max())


def time_forms(forms: Forms, x: Tensor, repeats: int, seconds: float) -> tuple[dict[str, float], dict[str, str]]:
    """Median milliseconds of a call of each, in turn; and why those that have none failed."""
    clock = Clock(x.device)

    def timed(form: Callable[[Tensor], Tensor]) -> Callable[[], Stages]:
        def once() -> Stages:
            clock.mark()
            form(x)
            clock.mark()
            return clock.stages()

        return once

    failures: dict[str, str] = {}
    for name, form in list(forms.items()):
        try:
            form(x), form(x)
        except Exception as error:
            failures[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    runs = {name: timed(form) for name, form in forms.items() if name not in failures}
    times = interleave(runs, repeats, seconds)
    return {name: 1e3 * medians(stages)[0] for name, stages in times.items()}, failures


def peak_of(path: Path, form: str, x: Tensor, work: Path) -> int | None:
    """Peak memory of one call in a fresh process, beyond what the loaded network holds."""
    frames = work / "frames.pt"
    torch.save(x.contiguous(), frames)
    command = [sys.executable, __file__, "--peak", str(path), form, str(frames), str(torch.get_num_threads())]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def peak_here(path: str, form: str, frames: str, threads: str) -> None:
    """What :func:`peak_of` asks another process for."""
    torch.set_num_threads(int(threads))
    forms, _, _ = make_forms(Path(path), [form])
    x = torch.load(frames, weights_only=True)
    with torch.no_grad():
        forms[form](x[:, :1])
        print(json.dumps(peak_bytes(lambda: forms[form](x), torch.device("cpu"))))


def firing_rates(model: nn.Module, x: Tensor) -> list[float]:
    """Of every neuron layer."""
    rates: list[float] = []
    hooks = [
        module.register_forward_hook(lambda _, args, output: rates.append(round(float(output.mean()), 4)))
        for module in model.modules()
        if hasattr(module, "v_threshold")
    ]
    model(x)
    for hook in hooks:
        hook.remove()
    return rates


def cell(path: Path, frames: Tensor, batch: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Times and peaks at one batch size."""
    torch.compiler.reset()
    names = ["dense", "dense bf16 channels-last", "compressed", "fused"] if arguments.quick else None
    forms, small, _ = make_forms(path, names)
    x = frames[:batch].transpose(0, 1)
    rates = firing_rates(decompress(small).float(), x)
    difference = compare(forms, x)
    times, failures = time_forms(forms, x, arguments.repeats, arguments.seconds)
    best = min((name for name in times if name.startswith("dense")), key=times.__getitem__)
    peaks = {
        name: peak_of(path, name, x, arguments.work) for name in (["fused"] if arguments.quick else ["dense", "fused"])
    }
    return {
        "batch": batch, "T": x.shape[0], "difference": difference, "firing_rates": rates, "ms": times,
        "samples_per_second": {name: 1e3 * batch / value for name, value in times.items()}, "failed": failures,
        "best_dense": best, "speedup": times[best] / times["fused"], "peak_bytes": peaks,
    }  # fmt: skip


def main() -> int:
    """Measure and write the result. Returns 1 where the compressed network's outputs are not the dense network's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--time-steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=6.0, help="that one form is let take in all")
    parser.add_argument("--quick", action="store_true", help="little training, few forms: only that the script works")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-inference"), help="trained networks")
    parser.add_argument("--peak", nargs=4, help=argparse.SUPPRESS)
    add_json_option(parser, "inference_cpu.json")
    arguments = parser.parse_args()
    if arguments.peak:
        peak_here(*arguments.peak)
        return 0
    torch.set_num_threads(arguments.threads)
    limit = 60 if arguments.quick else None
    options: dict[str, Any] = {"T": arguments.time_steps, "limit": limit, "quiet": True}
    train_set, test_set = (load_frames("digits-dvs", split, **options) for split in ("train", "test"))
    report: list[dict[str, Any]] = []
    for name in arguments.networks:
        path, accuracy = pruned(name, train_set, test_set, arguments.work, arguments.quick)
        _, small, fast = make_forms(path, [])
        entry: dict[str, Any] = {"network": name, "options": NETWORKS[name], "pattern": PATTERN, "accuracy": accuracy}
        entry["bytes"] = weight_bytes(path, small, fast)
        entry["training"] = dict(zip(("epochs", "recordings"), TRAINING[name], strict=True))
        with torch.no_grad():
            entry["cells"] = [cell(path, test_set.frames, batch, arguments) for batch in arguments.batches]
        report.append(entry)
        for one in entry["cells"]:
            print(f"{name} batch {one['batch']}: {one['speedup']:.2f} times the best dense form ({one['best_dense']})")
            for form, value in sorted(one["ms"].items(), key=lambda item: item[1]):
                print(f"    {value:9.3f} ms  {form}")
    write_result(arguments.json, {
        "threads": arguments.threads, "repeats": arguments.repeats, "data": test_set.name, "networks": report,
    })  # fmt: skip
    wrong = [
        f"{entry['network']} batch {one['batch']}: logits differ by {one['difference']:.1e} of the largest"
        for entry in report
        for one in entry["cells"]
        if not one["difference"] <= TOLERANCE
    ]
    print(*wrong, sep="\n")
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
