"""What every spiking backbone must do; the list of them is in ``cases.py``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from snn_core.backbones import SpikingBackbone, create, list_backbones, resnet, vgg
from snn_core.backbones.registry import is_spiking
from snn_core.distillation.densify import collect_features
from snn_core.errors import ArgumentError
from snn_core.neurons import SpikingNeuron
from snn_core.pruning import create_pruner
from snn_core.reports import measure_energy
from snn_core.sparsity import CompressedLayer, compress, fuse
from snn_core.training import classification_loss
from tests.backbones.cases import BATCH, CASES, CLASSES, SIDE, STEPS, Case

#: The deeper ones are of the same blocks.
SHALLOW = pytest.mark.parametrize("case", [case for case in CASES if not case.name.endswith("34")], ids=str)
PARAMETRISED = pytest.mark.parametrize("case", CASES, ids=str)


def made(case: Case, seed: int = 0, **options: Any) -> SpikingBackbone:
    """With running statistics of its norms that fit its input."""
    model = create(case.name, seed=seed, **(case.everything | options))
    assert isinstance(model, SpikingBackbone)
    with torch.no_grad():
        model.train()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # the average over all batches: here of one
        model(case.frames(1, batch=4))
    return model.eval()


@pytest.fixture(scope="module")
def trained() -> dict[str, SpikingBackbone]:
    """Every case once, in evaluation mode, for tests that only look."""
    return {str(case): made(case) for case in CASES}


def test_all_names_are_tested() -> None:
    """All but the transformers' published sizes, which are options of the others."""
    spiking = {name for name in list_backbones() if is_spiking(name) and not re.search(r"_\d+_\d+$", name)}
    assert {case.name for case in CASES} == spiking


@PARAMETRISED
def test_logits_and_features(case: Case, trained: dict[str, SpikingBackbone]) -> None:
    model, x = trained[str(case)], case.frames()
    steps = model.forward_steps(x)
    assert steps.shape == (STEPS, BATCH, CLASSES)
    assert torch.equal(model(x), steps.mean(0))
    assert steps.std() > 0
    features = model.forward_features(x)
    assert [(info.channels, info.stride) for info in model.feature_info] == list(case.features)
    for info, features_of_one in zip(model.feature_info, features, strict=True):
        side = -(-SIDE // info.stride)
        assert features_of_one.shape == (STEPS, BATCH, info.channels, side, side)
        assert features_of_one.any(), f"{info.name} gives zeros alone"
        assert isinstance(model.get_submodule(info.name), nn.Module)
    model.average_features = True
    try:
        averaged = model.forward_features(x)
    finally:
        model.average_features = False
    assert all(torch.equal(a, b.mean(0)) for a, b in zip(averaged, features, strict=True))


@SHALLOW
def test_every_parameter_gets_a_gradient(case: Case) -> None:
    model = create(case.name, **case.everything)
    loss = classification_loss(model.forward_steps(case.frames(batch=4)), torch.arange(4) % CLASSES)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all()), name
    if not case.everything.get("zero_init_residual"):
        assert all(p.grad.any() for name, p in model.named_parameters() if name.endswith("conv.weight"))


@pytest.mark.parametrize("case", [case for case in CASES if not (case.label or case.name.endswith("34"))], ids=str)
def test_compiled(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """One graph, the same logits and gradients. Of two stages of one block or convolution: tracing takes seconds."""
    for module, blocks in ((resnet, "BLOCKS"), (vgg, "CONVS")):
        monkeypatch.setattr(module, blocks, dict.fromkeys(getattr(module, blocks), (1, 1)))
        monkeypatch.setattr(module, "CHANNELS", dict.fromkeys(module.CHANNELS, (8, 16)))
    options = case.everything
    if case.name.startswith(("spiking", "sew", "ms")):
        options = {key: value for key, value in options.items() if key not in ("channels", "pools")}
    model = create(case.name, **options)
    x, found = case.frames(), []
    torch._dynamo.reset()
    for call in (model, torch.compile(model, backend="eager", fullgraph=True)):
        torch.manual_seed(0)  # of dropout
        model.zero_grad()
        logits = call(x)
        classification_loss(logits[None], torch.arange(BATCH) % CLASSES).backward()
        found.append([logits, *(parameter.grad.clone() for parameter in model.parameters())])
    assert all(map(torch.equal, *found))
    assert any(gradient.any() for gradient in found[0][1:])


@SHALLOW
def test_state_is_loaded_bit_for_bit(case: Case, trained: dict[str, SpikingBackbone], tmp_path: Path) -> None:
    model, x = trained[str(case)], case.frames()
    path = tmp_path / "weights.safetensors"
    save_file(model.state_dict(), path)
    other = create(case.name, seed=9, **case.everything).eval()
    assert not torch.equal(other(x), model(x))
    other.load_state_dict(model.state_dict())
    from_file = create(case.name, path, seed=9, **case.everything).eval()
    assert torch.equal(other(x), model(x))
    assert torch.equal(from_file(x), model(x))
    features = create(case.name, path, features_only=True, **case.everything).eval()
    assert all(torch.equal(a, b) for a, b in zip(features(x), model.forward_features(x), strict=True))


@SHALLOW
def test_pruned_compressed_and_fused(case: Case) -> None:
    """A training step with a pruner, then the compressed network, then the fused one, with the logits of the dense."""
    model = made(case)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    pruner = create_pruner("spikenm", model, pattern="2:4", optimizer=optimizer, total_steps=2)
    dense = [report.name for report in pruner.report() if report.state == "dense"]
    layers = [name for name, part in model.named_modules() if isinstance(part, (nn.Conv2d, nn.Linear))]
    assert set(dense) == {layers[0], layers[-1]}, "all but the first and the last layer are pruned"
    for seed in range(2):
        optimizer.zero_grad()
        steps = model.forward_steps(case.frames(seed))
        classification_loss(steps, torch.arange(BATCH) % CLASSES).backward()
        optimizer.step()
        pruner.step()
    pruner.finalize()
    model.eval()
    compressed = compress(model)
    assert sum(isinstance(part, CompressedLayer) for part in compressed.modules()) == len(layers) - 2
    x = case.frames(5)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(compressed(x), expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(fuse(compressed)(x), expected, atol=1e-4, rtol=1e-4)


@SHALLOW
def test_reported_and_densified(case: Case, trained: dict[str, SpikingBackbone]) -> None:
    model, x = trained[str(case)], case.frames()
    report = measure_energy(model, [x])
    neurons = {name for name, part in model.named_modules() if isinstance(part, SpikingNeuron)}
    assert set(report.firing_rates) == neurons
    assert [name for name, _ in model.spiking_layers()] == [n for n in report.firing_rates if n in neurons]
    assert all(rate > 0 for name, rate in report.firing_rates.items() if "hidden" not in name)
    assert report.layers[-1].neuron is None
    assert len(collect_features(model, x)) == len(neurons)


@PARAMETRISED
@pytest.mark.parametrize("shape", [(2, 2, SIDE, SIDE), (2, 2, 7, SIDE, SIDE), (0, 2, 2, SIDE, SIDE)])
def test_frames_of_another_kind(case: Case, shape: tuple[int, ...], trained: dict[str, SpikingBackbone]) -> None:
    with pytest.raises(ArgumentError, match=r"expected \[T, B, "):
        trained[str(case)](torch.zeros(shape))
