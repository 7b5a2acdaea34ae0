"""Which layers a pruner takes, and settings that make no sense."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn.utils import parametrizations

from snn_core.errors import ArgumentError
from snn_core.pruning import METHODS, NMPruner, PruneConfig, SpikeNMPruner, create_pruner, schedule_at
from snn_core.sparsity import NMPattern


def make_model():
    return nn.Sequential(
        nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv1d(8, 6, 1), nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)
    )


NO_EID = PruneConfig(eid_weight=0)


def states(pruner):
    return {report.name: (report.state, report.reason) for report in pruner.report()}


def test_first_and_last_stay_dense_and_odd_layers_are_reported():
    pruner = SpikeNMPruner(make_model(), "2:4", config=NO_EID)
    assert states(pruner) == {
        "0": ("dense", "first layer"),
        "1": ("pruned", ""),
        "2": ("pruned", ""),
        "3": ("dense", "its reduction dimension 6 is not a multiple of 4"),
        "4": ("pruned", ""),
        "5": ("dense", "last layer"),
    }
    assert [report.kind for report in pruner.report()] == ["Conv2d", "Conv2d", "Conv1d", "Linear", "Linear", "Linear"]
    assert pruner.report()[1].kept == 8 * 8 * 9 // 2
    assert pruner.patterns == {"1": "2:4", "2": "2:4", "4": "2:4"}


def test_include_by_name_beats_first_and_last_but_not_exclude():
    pruner = SpikeNMPruner(make_model(), config=NO_EID, include=["0", "5", "1"], exclude=["1"])
    assert [layer.name for layer in pruner.layers] == ["0", "5"]
    assert states(pruner)["1"] == ("dense", "excluded")
    assert states(pruner)["4"] == ("dense", "not included")


def test_wildcards_do_not_reach_the_first_and_last_layer():
    """As in layer_patterns: who writes "*" means all layers that are pruned at all."""
    pruner = SpikeNMPruner(make_model(), config=NO_EID, include=["*", "5"])
    assert [layer.name for layer in pruner.layers] == ["1", "2", "4", "5"]
    assert states(pruner)["0"] == ("dense", "first layer")
    every = PruneConfig(eid_weight=0, keep_first_dense=False)
    assert states(SpikeNMPruner(make_model(), config=every, include=["*"]))["0"] == ("pruned", "")


def test_grouped_convolution_counts_channels_of_one_group():
    model = nn.Sequential(nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 8, 1, groups=8))
    config = PruneConfig(keep_first_dense=False, keep_last_dense=False, eid_weight=0)
    pruner = SpikeNMPruner(model, config=config)
    assert states(pruner) == {"0": ("pruned", ""), "1": ("dense", "its reduction dimension 1 is not a multiple of 4")}


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (lambda m: parametrizations.weight_norm(m[1]), "parametrization"),
        (lambda m: m[1].weight.requires_grad_(False), "gradient"),
        (lambda m: setattr(m[4], "weight", m[5].weight), "shares its weight"),
    ],
)
def test_layers_that_cannot_be_pruned_say_why(prepare, reason):
    model = nn.Sequential(*[nn.Linear(8, 8) for _ in range(7)])
    prepare(model)
    reasons = " ".join(report.reason for report in SpikeNMPruner(model, config=NO_EID).report())
    assert reason in reasons


def test_attention_that_bypasses_the_layer_stays_dense():
    model = nn.Sequential(nn.Linear(8, 8), nn.MultiheadAttention(8, 2), nn.Linear(8, 8), nn.Linear(8, 8))
    assert "MultiheadAttention" in states(SpikeNMPruner(model, config=NO_EID))["1.out_proj"][1]


def test_a_weight_used_without_its_layer_is_an_error():
    class Direct(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(8, 8)

        def forward(self, x):
            return nn.functional.linear(x, self.inner.weight)

    model = Direct()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    SpikeNMPruner(model, config=NO_EID, include=["inner"], optimizer=optimizer, total_steps=10)
    model(torch.ones(2, 8)).sum().backward()
    with pytest.raises(ArgumentError, match="'inner' got a gradient without ever being called"):
        optimizer.step()


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: SpikeNMPruner(make_model(), "5:4"), "5:4"),
        (lambda: SpikeNMPruner(make_model(), "a"), "N:M pattern"),
        (lambda: SpikeNMPruner("model", "2:4"), "model: expected a torch.nn.Module, got str"),
        (lambda: SpikeNMPruner(make_model(), config={"pattern": "2:4"}), "config must be a PruneConfig, got dict"),
        (lambda: SpikeNMPruner(nn.Sequential(nn.ReLU()), "2:4"), "no Linear, Conv1d or Conv2d"),
        (lambda: SpikeNMPruner(nn.Linear(8, 8), "2:4"), "no layer can be pruned.*first layer"),
        (lambda: SpikeNMPruner(make_model(), "1:16", config=NO_EID), "no layer can be pruned to 1:16.*multiple of 16"),
        (lambda: SpikeNMPruner(make_model(), include=["7*"]), "include: '7\\*' matches no layer"),
        (lambda: SpikeNMPruner(make_model(), exclude=["x"]), "exclude: 'x'"),
        (lambda: create_pruner("magic", make_model()), "method must be one of spikenm, sr-ste, .*random; got 'magic'"),
        (lambda: SpikeNMPruner(make_model(), config=NO_EID, total_steps=5), "together"),
        (lambda: SpikeNMPruner(make_model(), "2:4"), "EID: no spiking neuron follows layer '1'"),
        (lambda: SpikeNMPruner(make_model(), config=NO_EID).step(), "begin"),
    ],
)
def test_bad_arguments(call, word):
    with pytest.raises(ArgumentError, match=word):
        call()


def test_begin_checks_model_and_optimizer():
    model, other = make_model(), make_model()
    pruner = SpikeNMPruner(model, config=NO_EID)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ArgumentError, match="does not contain layer '1'"):
        pruner.begin(other, optimizer, 5)
    with pytest.raises(ArgumentError, match="optimizer: does not hold"):
        pruner.begin(model, torch.optim.SGD(other.parameters(), lr=0.1), 5)
    with pytest.raises(ArgumentError, match="total_steps"):
        pruner.begin(model, optimizer, 0)


@pytest.mark.parametrize("method", METHODS)
def test_factory_and_hook_protocol(method):
    from snn_core.training import TrainingHook

    pruner = create_pruner(method, make_model(), NO_EID, pattern="1:4")
    assert isinstance(pruner, NMPruner)
    assert isinstance(pruner, TrainingHook)
    assert pruner.pattern == NMPattern(1, 4)


@pytest.mark.parametrize(
    "values",
    [{"unknown": 1}, {"pattern": "5:4"}, {"freeze": 1.5}, {"rho": "big"}, {"temperature": 0}, {"eid_match": "weights"}],
)
def test_config_refuses_nonsense(values):
    with pytest.raises(ValidationError, match=next(iter(values))):
        PruneConfig(**values)


def test_schedule():
    config = PruneConfig(
        eta=0.4, temperature=1.0, temperature_final=0.25, kappa_final=3.0, mask_decay=0.5, eid_end=0.75
    )
    start, middle, end = (schedule_at(config, step, 80, 100) for step in (0, 40, 80))
    assert (start.progress, start.temperature, start.eta, start.kappa, start.beta) == (0, 1, 0.4, 1, 1)
    assert middle.temperature == pytest.approx(0.5)
    assert (middle.eta, middle.kappa, middle.eid) == (0.2, 2, True)
    assert middle.beta == pytest.approx(0.2)
    assert (end.temperature, end.eta, end.kappa, end.beta, end.eid) == (0.25, 0, 3, 0, False)
    assert [schedule_at(config, step, 80, 100).eid_due for step in range(6)] == [True, False, False, False, True, False]


@pytest.mark.parametrize("values", [{"seed": True}, {"freeze": "0.5"}, {"rho": float("inf")}, {"eid_interval": 2.0}])
def test_wrong_types_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        PruneConfig(**values)


def test_names_may_come_as_a_list() -> None:
    assert PruneConfig(include=["a", "b"], exclude=["c"]).include == ("a", "b")
