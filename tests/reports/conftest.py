"""Run folders as ``snn prune`` writes them, of networks that were never trained; a strict look at a page."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import snn_core
from snn_core import LIF
from snn_core.backbones import create
from snn_core.files import write_json
from snn_core.pruning import create_pruner
from snn_core.reports import measure_energy
from snn_core.seeding import seeded
from snn_core.sparsity import save_compressed
from snn_core.training import save_checkpoint

T = 3


class Deep(nn.Module):
    """Many small layers, under names that a page must not take for markup."""

    def __init__(self, depth: int, names: tuple[str, ...] = ()) -> None:
        super().__init__()
        with seeded(0):
            for index in range(depth):
                name = names[index] if index < len(names) else f"stage{index // 10}_block{index % 10}_linear"
                self.add_module(name, nn.Linear(16, 16))
                self.add_module(f"neuron{index}", LIF())

    def forward(self, x_seq: torch.Tensor) -> torch.Tensor:
        for module in self.children():
            x_seq = 4 * x_seq if isinstance(module, LIF) else x_seq
            x_seq = module(x_seq)
        return x_seq.mean(0)


def write_run(
    folder: Path, model: nn.Module, x_seq: torch.Tensor, *, pattern: str = "2:4", seed: int = 0,
    accuracy: float = 0.5, history: list[dict[str, Any]] | None = None,
) -> Path:  # fmt: skip
    """The files of a finished run of ``snn prune`` with the masks of the magnitudes."""
    pruner = create_pruner("sr-ste", model, pattern=pattern)
    masks = pruner.finalize()
    data = {"name": "made up (simulated)", "simulated": True, "train_samples": 8, "test_samples": 4, "T": T,
            "train_key": "a", "test_key": "b"}  # fmt: skip
    save_checkpoint(
        folder / "model.safetensors", model, {"data": data}, extra={f"mask/{k}": v for k, v in masks.items()}
    )
    save_compressed(folder / "compressed.safetensors", model, pruner.patterns, masks)
    curves = history or [
        {"epoch": i + 1, "loss": 2 / (i + 1), "train_accuracy": 0.1 * i, "kept": 0.5} for i in range(4)
    ]
    result = {
        "command": "prune", "version": snn_core.__version__, "seed": seed, "device": "cpu", "data": data,
        "config": {"seed": seed, "model": {"name": "test", "options": {}}, "train": {"epochs": 4}, "data": {"T": T}},
        "method": "sr-ste", "pattern": pattern, "accuracy": accuracy, "seconds": 1.5, "history": curves,
        "layers": [
            {"name": item.name, "state": item.state, "reason": item.reason, "pattern": item.pattern}
            for item in pruner.report()
        ],
        "energy": measure_energy(model, [x_seq], patterns=pruner.patterns).as_dict(),
        "reloaded_logits_identical": True,
    }  # fmt: skip
    write_json(folder / "result.json", result)
    write_json(folder / "config.json", {"command": "prune", "config": {"seed": seed}})
    return folder


@pytest.fixture
def make_deep(tmp_path: Path) -> Callable[..., Path]:
    """A run folder of a network of our own making, which no backbone's name stands for."""

    def make(depth: int = 4, names: tuple[str, ...] = (), folder: str = "run", **options: Any) -> Path:
        x_seq = torch.rand(T, 4, 16, generator=torch.Generator().manual_seed(0))
        return write_run(tmp_path / folder, Deep(depth, names), x_seq, **options)

    return make


@pytest.fixture
def make_conv(tmp_path: Path) -> Callable[..., Path]:
    """A run folder of the small convolutional network."""

    def make(folder: str = "run", **options: Any) -> Path:
        model = create("conv-snn", input_size=(12, 12), channels=(4, 8, 8), seed=0).eval()
        frames = torch.randint(0, 3, (T, 4, 2, 12, 12), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
        return write_run(tmp_path / folder, model, frames, **options)

    return make


def change_result(folder: Path, **changes: Any) -> None:
    """Rewrite ``result.json`` with other values; None takes a key away."""
    path = folder / "result.json"
    result = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in result.items() if value is not None}))


VOID = {"meta", "br", "hr", "img", "input", "link"}
LOADING = {"src", "srcset", "href", "xlink:href", "action", "data", "poster", "background"}


class _Checker(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.problems: list[str] = []
        self.ids: Counter[str] = Counter()
        self.references: list[str] = []
        self.scripts: list[dict[str, str | None]] = []
        self.text: list[str] = []
        self.data = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._look_at(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._look_at(tag, attrs)
        if "svg" not in self.open and tag not in VOID:
            self.problems.append(f"<{tag}/> does not close itself in HTML")

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}> at {self.getpos()} closes nothing that is open")

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            self.data += data
        elif self.open[-1:] != ["style"]:
            self.text.append(data)

    def _look_at(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.problems.append("an img: pictures stand in svg")
        if tag == "script":
            self.scripts.append(dict(attrs))
        for name, value in attrs:
            if name == "id" and value is not None:
                self.ids[value] += 1
            if name.startswith("on"):
                self.problems.append(f"{tag} has {name}")
            if name in LOADING and value is not None and not value.startswith(("#", "data:image/png;base64,")):
                self.problems.append(f"{tag} loads {name}={value}")
            self.references += re.findall(r"url\(#([^)]*)\)", value or "")
            if name == "href" and (value or "").startswith("#"):
                self.references.append((value or "")[1:])


def check_page(page: str) -> tuple[dict[str, Any], str]:
    """Asserts that the page is well formed and alone; returns its embedded data and its visible text."""
    checker = _Checker()
    checker.feed(page)
    checker.close()
    assert page.startswith("<!DOCTYPE html>")
    assert len(page) < 1_500_000
    assert checker.problems == []
    assert checker.open == []
    assert [name for name, count in checker.ids.items() if count > 1] == []
    assert [name for name in checker.references if name not in checker.ids] == []
    assert checker.scripts == [{"type": "application/json", "id": "report-data"}]
    outside = page.split('id="report-data">')[0]
    assert "http" not in outside
    assert "@import" not in outside
    assert "@font-face" not in outside
    assert not re.search(r"\bnan\b", outside.replace("NaN or infinite", ""), re.IGNORECASE)
    return json.loads(checker.data), " ".join(" ".join(checker.text).split())
