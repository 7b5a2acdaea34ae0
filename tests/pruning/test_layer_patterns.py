"""One pattern a layer: which layer gets which, training, resume, files; and the figures of an epoch."""

import copy

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from snn_core.errors import ArgumentError, CheckpointError
from snn_core.pruning import PruneConfig, SpikeNMPruner, create_pruner
from snn_core.seeding import seeded
from snn_core.sparsity import check_nm, load_compressed, nm_mask_by_magnitude, save_compressed

STEPS = 8
PATTERNS = {"2": "1:8", "4": "dense", "6": "1:16"}
CONFIG = PruneConfig(layer_patterns=PATTERNS, eid_interval=2, trace_decay=0.5, time_steps=2)


def make_model(seed=0):
    with seeded(seed):
        layers = [nn.Linear(12, 16)]
        for _ in range(4):
            layers += [nn.ReLU(), nn.Linear(16, 16)]
        return nn.Sequential(*layers, nn.ReLU(), nn.Linear(16, 3))


def train(model, optimizer, pruner, steps):
    for step in steps:
        optimizer.zero_grad()
        x = torch.rand(6, 12, generator=torch.Generator().manual_seed(step))
        nn.functional.cross_entropy(model(x), torch.arange(6) % 3).backward()
        optimizer.step()
        pruner.step()


def start(config=CONFIG, seed=0, method="spikenm"):
    model = make_model(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return model, optimizer, create_pruner(method, model, config, optimizer=optimizer, total_steps=STEPS)


@pytest.mark.parametrize("method", ["spikenm", "sr-ste", "random"])
def test_every_layer_keeps_its_own_pattern(method, tmp_path):
    model, optimizer, pruner = start(method=method)
    expected = {"2": "1:8", "6": "1:16", "8": "2:4"}
    assert pruner.patterns == expected
    reports = {report.name: (report.pattern, report.reason) for report in pruner.report()}
    assert reports == {name: (pattern, "") for name, pattern in expected.items()} | {
        "0": (None, "first layer"), "4": (None, "dense by layer_patterns"), "10": (None, "last layer")
    }  # fmt: skip
    assert [report.kept for report in pruner.report()] == [192, 32, 256, 16, 128, 48]
    for step in range(STEPS):
        train(model, optimizer, pruner, [step])
        assert pruner.metrics()["kept"] == pytest.approx((32 + 16 + 128) / (3 * 256))
    masks = pruner.finalize()
    for name, pattern in expected.items():
        assert check_nm(model.get_submodule(name).weight, pattern) == 0
        assert float(masks[name].float().mean()) == pytest.approx(int(pattern[0]) / int(pattern[2:]))
    save_compressed(tmp_path / "model.safetensors", model, pruner.patterns, masks)
    loaded = load_compressed(tmp_path / "model.safetensors", make_model())
    x = torch.rand(5, 12)
    assert torch.equal(loaded.eval()(x), model.eval()(x))


def test_one_pattern_for_all_is_the_same_run_whether_said_once_or_by_layer():
    states = []
    for config in (
        CONFIG.model_copy(update={"layer_patterns": {}, "pattern": "1:8"}),
        CONFIG.model_copy(update={"layer_patterns": {"*": "1:8"}}),
    ):
        model, optimizer, pruner = start(config)
        train(model, optimizer, pruner, range(STEPS))
        states.append(model.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_first_match_wins_and_only_full_names_reach_the_first_and_last_layer():
    config = CONFIG.model_copy(update={"layer_patterns": {"4": "1:4", "*": "1:8", "2": "dense", "0": "1:4"}})
    assert SpikeNMPruner(make_model(), config=config).patterns == {"2": "1:8", "4": "1:4", "6": "1:8", "8": "1:8"}
    config = CONFIG.model_copy(update={"layer_patterns": {"0": "1:4", "10": "1:4", "8": "1:4"}})
    pruner = SpikeNMPruner(make_model(), config=config, exclude=["8"])
    assert pruner.patterns == {"0": "1:4", "2": "2:4", "4": "2:4", "6": "2:4", "10": "1:4"}


def test_a_pattern_of_a_layer_that_does_not_fit_leaves_it_dense_and_says_so():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    config = PruneConfig(layer_patterns={"1": "1:16"}, eid_weight=0)
    report = SpikeNMPruner(model, config=config).report()[1]
    assert (report.pattern, report.reason) == (None, "its reduction dimension 8 is not a multiple of 16")


@pytest.mark.parametrize("value", [{"a": "3:2"}, {"a": "sparse"}, {"a": 3}, "2:4"])
def test_bad_patterns_of_layers_are_refused(value):
    with pytest.raises(ValidationError, match="layer_patterns"):
        PruneConfig(layer_patterns=value)


def test_a_name_that_matches_nothing_is_refused():
    with pytest.raises(ArgumentError, match="layer_patterns: 'x' matches no layer; layers: 0, 2"):
        SpikeNMPruner(make_model(), config=CONFIG.model_copy(update={"layer_patterns": {"x": "1:4"}}))


@pytest.mark.parametrize("stop", [3, 7])
def test_resume_with_several_patterns_is_exact(stop):
    model, optimizer, pruner = start()
    train(model, optimizer, pruner, range(stop))
    state = {name: value.clone() for name, value in pruner.state_dict().items()}
    twin, twin_optimizer, twin_pruner = start(seed=5)
    twin.load_state_dict(model.state_dict())
    twin_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    twin_pruner.load_state_dict(state)
    for each in ((model, optimizer, pruner), (twin, twin_optimizer, twin_pruner)):
        train(*each, range(stop, STEPS))
    assert all(torch.equal(value, twin.state_dict()[name]) for name, value in model.state_dict().items())
    assert pruner.metrics() == twin_pruner.metrics()
    for (name, value), (other_name, other) in zip(
        pruner.state_dict().items(), twin_pruner.state_dict().items(), strict=True
    ):
        assert name == other_name
        assert torch.equal(value, other), name
    with pytest.raises(CheckpointError, match="patterns"):
        start(CONFIG.model_copy(update={"layer_patterns": {"4": "dense"}}))[2].load_state_dict(state)


def test_logits_and_keys_of_a_layer_do_not_depend_on_its_group():
    """A layer alone in its group has the anchor and the evaluation mask it would have among others."""
    masks = []
    for patterns in ({"2": "2:4"}, {"4": "1:8", "6": "1:8", "8": "1:8"}):
        config = CONFIG.model_copy(update={"layer_patterns": patterns})
        masks.append(SpikeNMPruner(make_model(), config=config).masks["2"])
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[0], nm_mask_by_magnitude(make_model()[2].weight, "2:4"))


# ---- statistics ------------------------------------------------------------------------------------------------------


def test_metrics_count_flips_since_the_last_call_and_the_entropy_of_draws():
    config = CONFIG.model_copy(update={"logit_learning_rate": 0.3, "layer_patterns": {}})
    model, optimizer, pruner = start(config)
    first = pruner.metrics()
    assert first["flips"] == 0.0
    assert first["eta"] == config.eta
    (group,) = pruner.groups
    p = torch.softmax(pruner._evaluation_key(group) / config.eta, dim=0)
    assert first["entropy"] == pytest.approx(float(-(p * p.log2()).sum(0).mean()), rel=1e-4)
    assert 0 < first["entropy"] < 2
    before = {name: mask.clone() for name, mask in pruner.masks.items()}
    train(model, optimizer, pruner, range(4))
    changed = sum(int((mask != before[name]).sum()) for name, mask in pruner.masks.items())
    assert changed > 0
    assert pruner.metrics()["flips"] == changed / (4 * 256)
    assert pruner.metrics()["flips"] == 0.0
    train(model, optimizer, pruner, range(4, STEPS))
    assert set(pruner.metrics()) == {"kept", "flips"}
