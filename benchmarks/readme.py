"""Write README's tables from the result files, so that no figure there is typed by hand.

python benchmarks/readme.py          rewrite README.md
python benchmarks/readme.py --check  exit with 1 when README.md does not say what the results say
"""

from __future__ import annotations

import argparse
import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import readme_detector
import readme_distillation
import readme_events
import readme_pruning
from readme_events import table as _table

RESULTS = Path(__file__).resolve().parent / "results"
README = RESULTS.parent.parent / "README.md"


def _source(result: dict[str, Any], name: str) -> str:
    if "machine" not in result:  # the GPU suite's
        where = result["environment"]
        about = f"{where['device']}, torch {where['torch']}, triton {where['versions']['triton']}, {where['commit']}"
        return f"\n\n`python benchmarks/gpu_suite.py` → [{name}](benchmarks/results/{name}) ({about})"
    machine = result["machine"]
    where = f"{machine['processor']}, {machine['cores']} cores, torch {machine['torch']}, {machine['date']}"
    return f"\n\n`{result['command']}` → [{name}](benchmarks/results/{name}) ({where})"


def lif(result: dict[str, Any]) -> str:
    """Times of forward plus backward beside the limit and everyone else, and peak memory."""
    threads = f"{result['threads']} thread{'s' if result['threads'] > 1 else ''}"
    tables = [_lif_cells(result["cells"]) + f"\n\nForward plus backward, {threads}. {_LIF_LEGEND}"]
    if "note" in result:
        tables.append(result["note"])
    if result["memory"]:
        tables.append(_lif_memory(result["memory"]))
    return "\n\n".join(tables)


_LIF_LEGEND = (
    "of limit: time that the fewest bytes (5 sequences) take at the bandwidth of a copy of that size, over ours; "
    "x: times as long as ours. Spikes of SpikingJelly and the loops are equal unless a number of differing ones is "
    "given; the other libraries solve equations of their own. In n slices: the whole does not fit into memory."
)
#: Of these the fastest is shown; how their names begin.
_KINDS = {"spikingjelly": "SpikingJelly", "compiled": "compiled loop", "loop": "plain loop"}
_OTHERS = ("snnTorch Leaky", "norse LIF", "sinabs LIF")


def _lif_cells(cells: list[dict[str, Any]]) -> str:
    rows = []
    for cell in cells:
        row = [str(cell["T"]), f"{cell['N']:,}", cell["dtype"]]
        if cell.get("ours") is None:
            rows.append([*row, cell.get("skipped") or cell.get("failed") or "no backend of ours ran"])
            continue
        ours = cell["contenders"][cell["ours"]]
        row += [cell["ours"].removeprefix("snn_core "), f"{ours['both_ms']:.2f}", f"{ours['of_limit']['both']:.2f}"]
        rows.append(row + [_times(cell, name) for name in (*_KINDS, *_OTHERS)])
    peers = ["SpikingJelly x", "best compiled loop x", "plain loop x", "snnTorch x", "norse x", "sinabs x"]
    header = ["T", "neurons", "dtype", "backend", "snn_core ms", "of limit", *peers]
    return _table(header, [row + [""] * (len(header) - len(row)) for row in rows])


def _times(cell: dict[str, Any], who: str) -> str:
    """How many times as long as ours a contender, or the best of a kind, takes, with what a reader must know of it."""
    entry = cell["contenders"].get(cell["best"].get(who, who), {})
    if "both_ms" not in entry or cell["ours"] is None:
        beginning = _KINDS.get(who, who)
        return _reason([one for name, one in cell["contenders"].items() if name.startswith(beginning)])
    text = f"{entry['both_ms'] / cell['contenders'][cell['ours']]['both_ms']:.1f}"
    if "slices" in entry:
        text += f" (in {entry['slices']} slices)"
    return text + (f" ({entry['spikes_differ']} spikes differ)" if entry.get("spikes_differ") else "")


#: What the reason of one that was left out holds -> how the tables say it.
_REASONS = {
    r"bytes needed|bytes are available|emory|allocate|bad_alloc": "memory",
    r"s a call, .* allowed": "too slow",
    r"spikes differ": "spikes differ",
    r"No module|ImportError|NotFound": "not installed",
}


def _reason(entries: list[dict[str, Any]]) -> str:
    """Why there is no figure: of several forms, what the first one says."""
    for entry in entries:
        if "failed" in entry:
            return "failed"
        if "skipped" in entry:
            return next((word for text, word in _REASONS.items() if re.search(text, entry["skipped"])), "skipped")
    return "-"


def _lif_memory(cells: list[dict[str, Any]]) -> str:
    rows = [
        [cell["contender"], str(cell["T"]), f"{cell['N']:,}", cell["dtype"], f"{cell['bytes_per_element_step']:.1f}"]
        for cell in cells
        if "bytes_per_element_step" in cell
    ]
    text = "Peak memory of one forward and backward beyond the input and the gradient of the spikes:"
    return f"{text}\n\n" + _table(["", "T", "neurons", "dtype", "bytes an element and step"], rows)


def open_neuromorphic(result: dict[str, Any]) -> str:
    """Forward, backward and memory of everyone, fastest first."""
    timed = {name: entry for name, entry in result["contenders"].items() if "both_ms" in entry}
    rows = []
    for name, entry in sorted(timed.items(), key=lambda item: item[1]["both_ms"]):
        peak = entry.get("peak_megabytes")
        equal = {None: entry.get("compared", ""), 0: "equal"}.get(entry.get("spikes_differ"), "differ")
        rows.append(
            [name, *(f"{entry[key]:.1f}" for key in ("forward_ms", "backward_ms", "both_ms")),
             "" if peak is None else f"{peak:.0f}", "ours" if entry.get("kind") == "ours" and equal == "" else equal]
        )  # fmt: skip
    return _table(["", "forward ms", "backward ms", "both ms", "peak MB", "spikes"], rows)


def gpu(result: dict[str, Any]) -> str:
    """LIF cells of the GPU suite: both of our backends, the limit, and the others."""
    rows = []
    for cell in [*result.get("lif", {}).get("cells", []), *result.get("grid", {}).get("cells", [])]:
        row = [str(cell["T"]), f"{cell['N']:,}", cell["dtype"]]
        if "contenders" not in cell:
            rows.append([*row, cell.get("skipped") or cell.get("failed", ""), "", "", "", "", "", ""])
            continue
        for backend in ("cuda", "triton"):
            entry = cell["contenders"].get(f"snn_core {backend}", {})
            timed = "both_ms" in entry
            row += [
                f"{entry['both_ms']:.3f}" if timed else _reason([entry]),
                f"{entry['of_limit']['both']:.2f}" if timed else "-",
            ]
        rows.append(row + [_times(cell, kind) for kind in _KINDS])
    header = ["T", "neurons", "dtype", "CUDA ms", "of limit", "Triton ms", "of limit"]
    text = _table([*header, "SpikingJelly x", "compiled x", "plain loop x"], rows)
    text += "\n\nForward plus backward; the device's time, without Python's launches (with them: host_ms in the JSON)."
    weighed = result.get("memory", {}).get("cells", [])
    return text + ("\n\n" + _lif_memory(weighed) if weighed else "")


def accelerate(result: dict[str, Any]) -> str:
    """A training step of SpikingJelly's networks before and after accelerate(), and the neurons' share of it."""
    rows = [
        [
            cell["network"],
            str(cell["T"]),
            str(cell["batch"]),
            f"{cell['side']} x {cell['side']}",
            f"{cell['before_ms']:.0f}",
            f"{cell['after_ms']:.0f}",
            f"{cell['speedup']:.2f}",
            f"{100 * cell['before_neurons_share']:.0f} → {100 * cell['after_neurons_share']:.0f}",
            f"{cell['neurons_speedup']:.1f}",
            "equal" if cell["logits_equal"] else "differ",
        ]
        for cell in result["cells"]
    ]
    header = ["network", "T", "batch", "image", "step before ms", "after ms", "times as fast"]
    return _table([*header, "neurons % of the step", "neurons, times as fast", "logits"], rows)


_NM_PARTS = {
    "linear": "Products `[M, K] x [K, N]` of spikes with a 2:4 weight",
    "conv": "Convolutions `B x C x H x W` of spikes with a 2:4 weight",
    "patterns": "Other patterns",
    "few": "Few rows: spikes, weights from memory",
    "dense": "Few rows: dense bfloat16 activations, weights from memory",
}
_NM_LEGEND = (
    "Milliseconds of `nm_matmul` or `nm_conv2d` on packed spikes with bfloat16 values, result in float32; in brackets, "
    "how many times as long oneDNN's dense bfloat16 product takes (the faster of torch's call and one with a weight in "
    "oneDNN's own order), and the same with the packing of float32 spikes included. For dense activations: how many "
    "times as long the fastest dense product takes, of any type."
)


def nm_matmul(result: dict[str, Any]) -> str:
    """Times of ours beside oneDNN's bfloat16 or the best dense product: a row a shape, a column a firing rate."""
    tables = []
    for part, title in _NM_PARTS.items():
        cells = [cell for cell in result["cells"] if cell["part"] == part]
        if not cells:
            continue
        rates = sorted({cell["rate"] for cell in cells} - {None})
        rows: dict[str, list[str]] = {}
        for cell in cells:
            row = rows.setdefault(_nm_shape(cell), ["-"] * max(1, len(rates)))
            row[rates.index(cell["rate"]) if rates else 0] = _nm_figure(cell)
        header = ["shape", *[f"{100 * rate:g} % fire" for rate in rates]] if rates else ["shape", "ms"]
        tables.append(f"{title}:\n\n" + _table(header, [[shape, *row] for shape, row in rows.items()]))
    threads = f"{result['threads']} thread{'s' if result['threads'] > 1 else ''}"
    smallest = ", ".join(f"{name} {ratio:.2f}" for name, ratio in result["goals"]["smallest_ratio"].items())
    return "\n\n".join([*tables, f"{_NM_LEGEND} {threads}. Smallest ratios: {smallest}."])


def _nm_shape(cell: dict[str, Any]) -> str:
    shape = cell["shape"]
    if len(shape) == 8:
        batch, channels, height, width, outputs, kernel, stride, _ = shape
        by = f", stride {stride}" if stride > 1 else ""
        return f"{batch} x {channels} x {height} x {width}, {kernel} x {kernel} to {outputs}{by}"
    return " x ".join(map(str, shape)) + (f", {cell['pattern']}" if cell["part"] == "patterns" else "")


def _nm_figure(cell: dict[str, Any]) -> str:
    entry = cell.get("contenders", {}).get("snn_core", {})
    if "ms" not in entry:
        return _reason([cell if "contenders" not in cell else entry])
    ratio = cell["ratio"]
    shown = ("dense bfloat16", "dense bfloat16, with packing") if cell["rate"] is not None else ("dense",)
    figures = ", ".join(f"{ratio[kind]:.2f}" for kind in shown if kind in ratio)
    return f"{entry['ms']:.3g} ({figures})"


def inference(result: dict[str, Any]) -> str:
    """Whole networks: times of the fused compressed network and of the best dense form, a row a network and batch."""
    header = ["network", "samples a call", "fused ms", "best dense ms", "which", "times as fast", "eager dense ms"]
    header += ["peak MB", "dense peak MB"]
    rows = []
    for entry in result["networks"]:
        for cell in entry["cells"]:
            ms, peak, best = cell["ms"], cell["peak_bytes"], cell["best_dense"]
            peaks = [f"{peak[form] / 1e6:.1f}" if peak.get(form) is not None else "-" for form in ("fused", "dense")]
            times = [f"{ms['fused']:.2f}", f"{ms[best]:.2f}", best, f"{cell['speedup']:.2f}", f"{ms['dense']:.2f}"]
            rows.append([entry["network"], str(cell["batch"]), *times, *peaks])
    notes = []
    for entry in result["networks"]:
        size, rates = entry["bytes"], [rate for cell in entry["cells"] for rate in cell["firing_rates"]]
        notes.append(
            f"{entry['network']}: pruned weights {size['resident_ratio']:.2f} of their 16-bit bytes in memory, "
            f"{size['on_disk_ratio']:.2f} in the file; {100 * min(rates):.0f} to {100 * max(rates):.0f} % fire"
        )
    threads = f"{result['threads']} thread{'s' if result['threads'] > 1 else ''}"
    return _table(header, rows) + "\n\n" + "; ".join(notes) + f". Medians, {threads}, {result['data']}."


#: Block name in README -> result file and how it is shown.
BLOCKS: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "pruning": ("pruning_nmnist.json", readme_pruning.recordings),
    "distillation": ("distillation_nmnist.json", readme_distillation.distillation),
    "distillation-sim": ("distillation_nmnist_sim.json", readme_distillation.distillation),
    "distillation-motion": ("distillation_motion_sim.json", readme_distillation.distillation),
    "lif": ("lif_cpu.json", lif),
    "open-neuromorphic": ("open_neuromorphic_cpu.json", open_neuromorphic),
    "accelerate": ("accelerate_cpu.json", accelerate),
    "pruning-pictures": ("pruning_cifar10_small.json", readme_pruning.pictures),
    "pruning-motion": ("pruning_motion_sim.json", readme_pruning.pictures),
    "nm-matmul": ("nm_matmul_cpu.json", nm_matmul),
    "nm-conv": ("nm_conv_cpu.json", nm_matmul),
    "inference": ("inference_cpu.json", inference),
    "event-speed": ("event_speed_cpu.json", readme_events.event_speed),
    "event-epochs": ("event_epochs_cpu.json", readme_events.event_epochs),
    "simulated": ("simulation_figures.json", readme_events.simulated),
    "transfer": ("simulation_transfer.json", readme_events.transfer),
    "motion": ("motion_sim.json", readme_events.motion),
    "localization": ("localization.json", readme_events.localization),
    "detector": ("detector.json", readme_detector.detector),
    "gpu": ("gpu_nvidia_h200.json", gpu),
}


def _filled(body: str, block: re.Match[str]) -> str:
    return block[1] + body + block[2]


def render(text: str) -> str:
    """README's text with every block rewritten. Without a result file it says that nothing was measured."""
    for block, (name, show) in BLOCKS.items():
        path = RESULTS / name
        body = "Not yet measured."
        if path.is_file():
            result = json.loads(path.read_text())
            body = show(result) + _source(result, name)
        pattern = rf"(<!-- results: {block} -->\n).*?(\n<!-- end -->)"
        text, count = re.subn(pattern, functools.partial(_filled, body), text, flags=re.DOTALL)
        if count > 1 or (count == 0 and path.is_file()):
            raise SystemExit(f"README.md must hold the block '<!-- results: {block} -->' once, found {count}")
    return text


def main() -> int:
    """Rewrite or check README. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    text = README.read_text()
    wanted = render(text)
    if arguments.check:
        if text != wanted:
            print("README.md differs from benchmarks/results; run: python benchmarks/readme.py")
        return int(text != wanted)
    README.write_text(wanted)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
