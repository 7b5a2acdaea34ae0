"""What a user does wrong, or in an unusual order: it works, or it is said."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

from snn_core.errors import ArgumentError, CheckpointError
from snn_core.pruning import METHODS, PruneConfig, create_pruner
from snn_core.sparsity import check_nm

CONFIG = PruneConfig(eid_weight=0.0)
STEPS = 10


def make_net(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).to(dtype)


def start(method="spikenm", config=CONFIG, dtype=torch.float32, pattern="1:4", **options):
    model = make_net(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    return model, optimizer, create_pruner(
        method, model, config, pattern=pattern, optimizer=optimizer, total_steps=STEPS, **options
    )  # fmt: skip


def make_x(step, dtype=torch.float32):
    return torch.randn(8, 8, generator=torch.Generator().manual_seed(step)).to(dtype)


def train(model, optimizer, pruner, steps, dtype=torch.float32, count=True):
    for step in steps:
        optimizer.zero_grad()
        loss = (model(make_x(step, dtype)) - 1).square().mean()
        loss.backward()
        if hasattr(pruner, "observe_loss"):
            pruner.observe_loss(loss.detach())
        optimizer.step()
        if count:
            pruner.step()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("method", METHODS)
def test_weights_of_every_type(method, dtype):
    """With the default settings, mask decay among them: the masked weight has the type of the weight."""
    model, optimizer, pruner = start(method, dtype=dtype)
    train(model, optimizer, pruner, range(STEPS), dtype)
    pruner.finalize()
    assert model[2].weight.dtype == dtype
    assert method == "magnitude" or check_nm(model[2].weight, "1:4") == 0


def test_weights_that_are_all_alike_are_searched_all_the_same():
    model = make_net()
    nn.init.constant_(model[2].weight, 0.1)
    config = CONFIG.model_copy(update={"eta": 1.0})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pruner = create_pruner("spikenm", model, config, pattern="1:4", optimizer=optimizer, total_steps=STEPS)
    model(make_x(0))
    kept = pruner.layers[0].drawn.view(-1, 4).float().mean(0)
    assert float(kept.min()) > 0.05


def test_a_model_may_move_before_its_first_step():
    """The second device is "meta": no other is on every machine."""
    model, _, pruner = start()
    model.to("meta")
    assert pruner.logits["2"].device.type == "meta"


def test_a_conversion_between_two_passes_of_a_step_is_seen():
    model, _, _ = start("sr-ste")
    model(make_x(0))
    model.double()
    assert model(make_x(0, torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("method", ["spikenm", "sr-ste"])
def test_weights_written_behind_autograd_are_seen(method):
    """``.data`` raises no version: averages of weights are swapped in so, for an evaluation and back."""
    model, _, pruner = start(method)
    other, _, other_pruner = start(method)
    layer, eye = model[2], torch.eye(16)
    weight = torch.randn(16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        other[2].weight.copy_(weight)
        model.eval()(make_x(0))
        layer.weight.data.copy_(weight)
        expected = weight * other_pruner.masks["2"]
        assert torch.equal(layer(eye), nn.functional.linear(eye, expected, layer.bias))
        model.train()(make_x(0))
        drawn = pruner.layers[0].drawn
        layer.weight.data.neg_()
        beta = pruner.schedule().beta
        expected = torch.where(drawn, -weight, -weight * beta if beta else torch.zeros(()))
        assert torch.equal(layer(eye), nn.functional.linear(eye, expected, layer.bias))  # still the step's mask


@pytest.mark.parametrize("method", ["spikenm", "sr-ste"])
def test_weights_written_behind_autograd_between_two_passes_of_a_step(method):
    """Accumulated gradients with a perturbation of the weights, say: the second pass computes with the new values."""
    model, optimizer, pruner = start(method)
    train(model, optimizer, pruner, range(1))
    layer, eye = model[2], torch.eye(16)
    first = layer(eye)
    again = layer(eye)  # one masked weight serves both
    assert torch.equal(first, again)
    (first + again).sum().backward()
    with torch.no_grad():
        layer.weight.data.neg_()
    drawn, beta = pruner.layers[0].drawn, pruner.schedule().beta
    expected = torch.where(drawn, layer.weight, layer.weight * beta).detach()
    assert torch.equal(layer(eye), nn.functional.linear(eye, expected, layer.bias))


def test_a_checkpoint_loaded_before_a_skipped_step_is_no_other_optimizer():
    model, optimizer, pruner = start()
    train(model, optimizer, pruner, range(2))
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    pruner.step()  # a gradient scaler left the optimiser's step out
    assert pruner.steps_done == 2
    with torch.no_grad():
        model[2].weight.add_(1)
    with pytest.raises(ArgumentError, match="'2' was changed"):
        pruner.step()


@pytest.mark.parametrize("count", [True, False])
def test_an_early_end_is_said(count):
    model, optimizer, pruner = start()
    train(model, optimizer, pruner, range(3), count=count)
    with pytest.warns(UserWarning, match=f"after {3 if count else 0} of total_steps = 10 steps.*step 8"):
        pruner.finalize()


def test_the_end_in_time_is_quiet():
    model, optimizer, pruner = start()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, optimizer, pruner, range(STEPS))
        masks = pruner.finalize()
    for name, mask in masks.items():
        assert torch.equal(model.get_parameter(f"{name}.weight") != 0, mask)


def test_the_setting_that_differs_is_named():
    state = start(config=CONFIG.model_copy(update={"eta": 0.25}))[2].state_dict()
    with pytest.raises(CheckpointError, match=r"config differ; config: eta in the state: 0\.25, here: 0\.15$"):
        start()[2].load_state_dict(state)


def test_the_factory_takes_what_the_class_takes():
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    assert start(grad_scaler=scaler, distributed=False)[2].grad_scaler is scaler


def test_an_average_begun_in_the_search_says_that_its_masks_are_old():
    model, optimizer, pruner = start()
    average = torch.optim.swa_utils.AveragedModel(model)
    train(model, optimizer, pruner, range(STEPS))
    pruner.finalize()
    average.update_parameters(model)
    with pytest.warns(UserWarning, match="copied while its masks were searched"):
        average(make_x(0))
    for same in (copy.deepcopy(start()[0]), pickle.loads(pickle.dumps(start()[0]))):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            same(make_x(0))
            copy.deepcopy(same)(make_x(0))


def test_a_copy_of_the_search_can_be_pruned_anew():
    copied = copy.deepcopy(start()[0])
    optimizer = torch.optim.SGD(copied.parameters(), lr=0.05)
    pruner = create_pruner("random", copied, pattern="1:4", optimizer=optimizer, total_steps=STEPS)
    train(copied, optimizer, pruner, range(STEPS))
    pruner.finalize()
    plain = make_net()
    plain.load_state_dict(copied.state_dict())
    assert torch.equal(copied(make_x(0)), plain(make_x(0)))


def test_a_second_pruner_at_a_layer_is_said():
    with pytest.warns(UserWarning, match="layer '2' is under another pruner"):
        create_pruner("random", start()[0], pattern="1:4")
    model, optimizer, pruner = start()
    train(model, optimizer, pruner, range(STEPS))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        create_pruner("random", model, pattern="1:4")  # the first one's masks are final


def test_a_layer_that_gets_its_input_by_keyword_is_named():
    config = PruneConfig(trace_decay=0.5, time_steps=2)
    model, _, _ = start(config=config)
    model(make_x(0))
    with pytest.raises(ArgumentError, match="layer '2' was called with its input by keyword"):
        model[2](input=torch.zeros(4, 16))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_a_pass_in_inference_mode_before_the_first_step_does_no_harm(method, training):
    results = []
    for tried in (False, True):
        model = make_net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        pruner = create_pruner(method, model, CONFIG, pattern="1:4")
        model.train(training)
        if tried:
            with torch.inference_mode():
                model(make_x(0))
        model.train()
        pruner.begin(model, optimizer, STEPS)
        train(model, optimizer, pruner, range(STEPS))
        pruner.finalize()
        results.append(model[2].weight.detach())
    assert torch.equal(*results)


def test_a_loss_with_its_graph_is_observed_quietly():
    model, _, pruner = start("maskpro")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pruner.observe_loss(loss := model(make_x(0)).square().mean())
    assert pruner._losses == [loss.item()]
