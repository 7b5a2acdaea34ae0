"""accelerate() on whole networks of SpikingJelly's zoo: logits, gradients, both step modes; the benchmark's script."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from snn_core.interop.spikingjelly import accelerate

functional = pytest.importorskip("spikingjelly.activation_based.functional", reason="SpikingJelly is not installed")
from spikingjelly.activation_based import layer, neuron  # noqa: E402

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def networks() -> Any:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import spikingjelly_zoo
    finally:
        sys.path.remove(str(BENCHMARKS))
    return spikingjelly_zoo.NETWORKS


@pytest.mark.parametrize("name", ["sew_resnet18", "spiking_vgg11"])
@pytest.mark.parametrize("kind", [neuron.LIFNode, neuron.ParametricLIFNode])
def test_networks_keep_outputs_and_gradients(networks: Any, name: str, kind: type[nn.Module]) -> None:
    """A training step in step mode ``m`` with two calls, then inference in step mode ``s``."""
    torch.manual_seed(0)
    slow = networks[name](spiking_neuron=kind)
    for module in slow.modules():
        if isinstance(module, layer.BatchNorm2d):
            nn.init.constant_(module.weight, 2.0)  # so that deep layers fire at these sizes
    fast = copy.deepcopy(slow)
    accelerate(fast, strict=True)
    x = torch.rand(2, 2, 3, 32, 32)
    logits = [model(x) + model(x) for model in (slow, fast)]
    assert torch.equal(*logits)
    assert logits[0].std() > 1e-3
    for output in logits:
        output.square().sum().backward()
    for mine, theirs in zip(fast.parameters(), slow.parameters(), strict=True):
        assert (mine.grad - theirs.grad).norm() <= 1e-5 * theirs.grad.norm()
    for model in (slow, fast):
        functional.reset_net(model)
        functional.set_step_mode(model, "s")
        model.eval()
    with torch.no_grad():
        for step in x:
            assert torch.equal(fast(step), slow(step))


def test_the_benchmark_runs(tmp_path: Path) -> None:
    command = [sys.executable, BENCHMARKS / "accelerate.py", "--quick", "--threads", "1", "--json", tmp_path / "a.json"]
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    cells = json.loads((tmp_path / "a.json").read_text())["cells"]
    assert [cell["network"] for cell in cells] == ["sew_resnet18", "spiking_vgg11"]
    assert [cell["neurons"] for cell in cells] == [20, 8]
    assert all(cell["logits_equal"] and cell["gradient_relative_error"] <= 1e-5 for cell in cells)
