"""Write README's tables from the result files, so that no figure there is typed by hand.

python benchmarks/readme.py          rewrite README.md
python benchmarks/readme.py --check  exit with 1 when README.md does not say what the results say
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
README = RESULTS.parent.parent / "README.md"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _source(result: dict[str, Any], name: str) -> str:
    machine = result["machine"]
    where = f"{machine['processor']}, {machine['cores']} cores, torch {machine['torch']}, {machine['date']}"
    return f"\n\n`{result['command']}` → [{name}](benchmarks/results/{name}) ({where})"


def _percent(entry: dict[str, float], sign: bool = False) -> str:
    return f"{100 * entry['mean']:{'+' if sign else ''}.1f} ± {100 * entry['std']:.1f}"


def pruning(result: dict[str, Any]) -> str:
    """Accuracy of every method and pattern."""
    rows = [
        [
            row["method"],
            row["pattern"],
            _percent(row["cross_validation"]),
            _percent(row["minus_dense"], sign=True) if "minus_dense" in row else "",
            _percent(row["test"]),
            str(row["blocks_over_pattern"]) if row["method"] != "dense" else "",
        ]
        for row in result["rows"]
    ]
    header = [
        "method",
        "pattern",
        "5-fold accuracy %",
        "minus dense, paired",
        "100 test recordings %",
        "blocks over N:M",
    ]
    return _table(header, rows)


def distillation(result: dict[str, Any]) -> str:
    """Accuracy, time and bytes of every method and IPC beside the full set, per protocol."""
    rows = []
    for row in result["rows"]:
        full = row["method"] == "full"
        rows.append(
            [
                "all data" if full else row["method"],
                "" if full else str(row["ipc"]),
                "100 test recordings" if row["protocol"] == "test" else "5-fold on the 750",
                _percent(row["accuracy"]),
                "" if full else f"{100 * row['fraction_of_full']:.1f}",
                f"{100 * row['minus_random']:+.1f}" if "minus_random" in row else "",
                f"{row['train_seconds']:.1f}",
                f"{row['frame_bytes']:,}",
            ]
        )
    header = ["trained on", "per class", "tested on", "accuracy %", "% of full", "minus random"]
    return _table([*header, "training s", "bytes of frames"], rows)


def lif(result: dict[str, Any]) -> str:
    """Times of forward plus backward."""
    rows = [
        [
            str(cell["T"]),
            f"{cell['N']:,}",
            cell["dtype"],
            f"{cell['ours_forward_ms'] + cell['ours_backward_ms']:.2f}",
            f"{cell['theirs_forward_ms'] + cell['theirs_backward_ms']:.2f}",
            f"{cell['ratio']:.1f}",
            "yes" if cell["spikes_equal"] else "no",
        ]
        for cell in result["cells"]
    ]
    return _table(["T", "neurons", "dtype", "snn_core ms", "SpikingJelly ms", "ratio", "equal spikes"], rows)


#: Block name in README -> result file and how it is shown.
BLOCKS: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "pruning": ("pruning_nmnist.json", pruning),
    "distillation": ("distillation_nmnist.json", distillation),
    "lif": ("lif_cpu.json", lif),
}


def render(text: str) -> str:
    """README's text with every block rewritten. A block without a result file says that it was not measured."""
    for block, (name, show) in BLOCKS.items():
        path = RESULTS / name
        body = "Not yet measured."
        if path.is_file():
            result = json.loads(path.read_text())
            body = show(result) + _source(result, name)
        pattern = rf"(<!-- results: {block} -->\n).*?(\n<!-- end -->)"
        text, count = re.subn(pattern, lambda match, body=body: match[1] + body + match[2], text, flags=re.DOTALL)
        if count != 1:
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
