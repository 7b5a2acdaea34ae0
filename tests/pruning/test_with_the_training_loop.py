"""Pruners as hooks of train_classifier: pattern, evaluation, resume from the file of an interrupted run."""

import pytest
import torch

from snn_core.backbones import create
from snn_core.datasets import FrameDataset
from snn_core.errors import InterruptedRunError
from snn_core.pruning import METHODS, PruneConfig, create_pruner
from snn_core.sparsity import check_nm
from snn_core.training import TrainConfig, train_classifier


def make_dataset():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(20) % 2
    frames = torch.randint(0, 3, (20, 2, 2, 8, 8), generator=generator)
    frames[labels == 1, :, 0] += 3
    return FrameDataset(
        frames=frames.to(torch.uint8), labels=labels, ids=[str(i) for i in range(20)], class_names=["a", "b"],
        name="made for this test", simulated=True, content_key="0" * 64,
    )  # fmt: skip


class StopAt:
    """A hook that breaks a run off, as an interrupt between two states on disk would."""

    def __init__(self, at):
        self.left = at

    def begin(self, model, optimizer, total_steps):
        pass

    def step(self):
        self.left -= 1
        if self.left == 0:
            raise InterruptedRunError("stopped by the test")

    def end(self):
        pass

    def metrics(self):
        return {}

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_equals_an_uninterrupted_one(method, tmp_path):
    data, config = make_dataset(), TrainConfig(epochs=4, batch_size=5, augment="none", learning_rate=5e-3)

    def run(output=None, resume=False, stop=10**9):
        model = create("conv-snn", input_size=(8, 8), channels=(8, 8, 8), num_classes=2)
        pruner = create_pruner(method, model, PruneConfig(eid_interval=2))
        result = train_classifier(
            model, data, config, hooks=[pruner, StopAt(stop)], output=output, resume=resume, quiet=True
        )
        return model, pruner, result

    model, pruner, result = run()
    with pytest.raises(InterruptedRunError):
        run(tmp_path, stop=10)
    resumed, resumed_pruner, resumed_result = run(tmp_path, resume=True)
    for name, value in model.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert result.history == resumed_result.history
    assert all(torch.equal(mask, resumed_pruner.masks[name]) for name, mask in pruner.masks.items())
    assert list(pruner.masks) == ["blocks.1.conv", "blocks.2.conv"]
    assert list(pruner.patterns) == ([] if method == "magnitude" else list(pruner.masks))
    assert all(check_nm(model.get_submodule(name).weight, "2:4") == 0 for name in pruner.patterns)
    if method == "spikenm":
        assert "eid" in result.history[0]
