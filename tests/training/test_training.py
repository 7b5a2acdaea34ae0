"""Training loop, losses, augmentation and checkpoints."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from snn_core.backbones import create
from snn_core.datasets import FrameDataset
from snn_core.errors import CheckpointError, InterruptedRunError, NonFiniteError, StorageError
from snn_core.training import (
    TrainConfig,
    augment_batch,
    classification_loss,
    evaluate_accuracy,
    load_checkpoint,
    load_model,
    predict_logits,
    save_checkpoint,
    train_classifier,
)
from snn_core.training import loop as loop_module
from snn_core.training.checkpoint import write_tensors

OPTIONS: dict[str, Any] = {"channels": [8, 8], "input_size": [10, 10], "num_classes": 3}
CONFIG = TrainConfig(epochs=3, batch_size=8, learning_rate=5e-3)


@pytest.fixture(scope="module")
def blobs() -> FrameDataset:
    """Three classes, each with events in its own corner."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    frames = torch.randint(0, 2, (60, 2, 2, 10, 10), generator=generator)
    for index, label in enumerate(labels.tolist()):
        frames[index, :, :, 3 * label : 3 * label + 3, :4] += 4
    return FrameDataset(
        frames.to(torch.uint8), labels, [str(i) for i in range(60)], class_names=["a", "b", "c"], name="blobs",
        simulated=True, content_key="0" * 64,
    )  # fmt: skip


def network(seed: int = 0) -> nn.Module:
    return create("conv-snn", seed=seed, **OPTIONS)


def same_state(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


class CountingHook:
    """Counts its calls; its state travels with the run's."""

    def __init__(self) -> None:
        self.steps = torch.zeros((), dtype=torch.int64)
        self.calls: list[str] = []

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer, total_steps: int) -> None:
        self.calls.append(f"begin {total_steps}")

    def step(self) -> None:
        self.steps += 1

    def end(self) -> None:
        self.calls.append("end")

    def metrics(self) -> dict[str, float]:
        return {"steps": float(self.steps)}

    def state_dict(self) -> dict[str, Tensor]:
        return {"steps": self.steps.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.steps = state["steps"]


class InterruptingHook(CountingHook):
    """Sends this process a Ctrl-C in the middle of a step."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def step(self) -> None:
        super().step()
        if int(self.steps) == self.at:
            os.kill(os.getpid(), signal.SIGINT)


def test_learns_and_leaves_the_global_generator_alone(blobs: FrameDataset) -> None:
    model, state = network(), torch.get_rng_state()
    result = train_classifier(model, blobs, CONFIG.model_copy(update={"epochs": 8}), val_set=blobs)
    assert torch.equal(torch.get_rng_state(), state)
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert result.history[-1]["val_accuracy"] == evaluate_accuracy(model, blobs) > 0.9
    assert not model.training


def test_same_seed_same_result_other_seed_another(blobs: FrameDataset) -> None:
    models = [network() for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        train_classifier(model, blobs, CONFIG.model_copy(update={"seed": seed}))
    assert same_state(models[0], models[1])
    assert not same_state(models[0], models[2])


@pytest.mark.parametrize("at", [3, 8, 10])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_interrupted_and_resumed_equals_uninterrupted(
    blobs: FrameDataset, tmp_path: Path, at: int, optimizer: str
) -> None:
    config = CONFIG.model_copy(update={"optimizer": optimizer})
    whole, whole_hook = network(), CountingHook()
    expected = train_classifier(whole, blobs, config, hooks=[whole_hook])
    with pytest.raises(InterruptedRunError, match="resume"):
        train_classifier(network(), blobs, config, hooks=[InterruptingHook(at)], output=tmp_path)
    resumed, hook = network(seed=5), InterruptingHook(-1)
    result = train_classifier(resumed, blobs, config, hooks=[hook], output=tmp_path, resume=True)
    assert same_state(resumed, whole)
    assert result.history == expected.history
    assert int(hook.steps) == int(whole_hook.steps) == 24
    assert hook.calls == ["begin 24", "end"]


def test_interrupt_in_the_last_step_is_not_swallowed(blobs: FrameDataset, tmp_path: Path) -> None:
    whole, cut = network(), network()
    train_classifier(whole, blobs, CONFIG)
    with pytest.raises(KeyboardInterrupt):
        train_classifier(cut, blobs, CONFIG, hooks=[InterruptingHook(24)], output=tmp_path)
    resumed = network(seed=5)
    train_classifier(resumed, blobs, CONFIG, hooks=[InterruptingHook(-1)], output=tmp_path, resume=True)
    assert same_state(resumed, whole)


def test_interrupt_handler_is_taken_back(blobs: FrameDataset) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(InterruptedRunError, match="nothing saved"):
        train_classifier(network(), blobs, CONFIG, hooks=[InterruptingHook(2)])
    assert signal.getsignal(signal.SIGINT) is before


def test_resume_refuses_nothing_and_another_run(blobs: FrameDataset, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing to resume"):
        train_classifier(network(), blobs, CONFIG, output=tmp_path, resume=True)
    train_classifier(network(), blobs, CONFIG, output=tmp_path)
    with pytest.raises(CheckpointError, match="config differ"):
        train_classifier(network(), blobs, CONFIG.model_copy(update={"epochs": 4}), output=tmp_path, resume=True)
    other = create("conv-snn", **OPTIONS, neuron="if")
    with pytest.raises(CheckpointError, match="model differ"):
        train_classifier(other, blobs, CONFIG, output=tmp_path, resume=True)
    with pytest.raises(CheckpointError, match="hooks differ"):
        train_classifier(network(), blobs, CONFIG, hooks=[CountingHook()], output=tmp_path, resume=True)
    save_checkpoint(tmp_path / "m.safetensors", network())
    wider = create("conv-snn", **{**OPTIONS, "channels": [8, 16]})
    with pytest.raises(CheckpointError, match=r"blocks\.1\.conv\.weight has shape"):
        load_checkpoint(tmp_path / "m.safetensors", wider)


def test_non_finite_loss_stops_and_says_where(blobs: FrameDataset, tmp_path: Path) -> None:
    model = network()
    with torch.no_grad():
        model.readout.bias[0] = float("nan")
    with pytest.raises(NonFiniteError, match="epoch 1, step 1"):
        train_classifier(model, blobs, CONFIG, output=tmp_path)
    assert not (tmp_path / loop_module.STATE_FILE).exists()


def test_non_finite_parameters_are_not_saved_over_the_last_good_state(blobs: FrameDataset, tmp_path: Path) -> None:
    class Breaking(CountingHook):
        def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer, total_steps: int) -> None:
            self.model = model

        def step(self) -> None:
            super().step()
            if int(self.steps) == 24:
                self.model.readout.weight.data[0, 0] = float("inf")

    with pytest.raises(NonFiniteError, match=r"readout\.weight.*last good state"):
        train_classifier(network(), blobs, CONFIG, hooks=[Breaking()], output=tmp_path)
    with safetensors.safe_open(tmp_path / loop_module.STATE_FILE, framework="pt") as source:
        assert json.loads(source.metadata()["progress"])["position"] == 16


def test_bfloat16_autocast_trains(blobs: FrameDataset) -> None:
    model = network()
    config = CONFIG.model_copy(update={"precision": "bfloat16", "epochs": 8})
    train_classifier(model, blobs, config)
    assert evaluate_accuracy(model, blobs) > 0.9
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_loss_is_the_mix_of_mean_and_steps() -> None:
    logits, labels = torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3
    mean = functional.cross_entropy(logits.mean(0), labels)
    steps = torch.stack([functional.cross_entropy(step, labels) for step in logits]).mean()
    for weight in (0.0, 0.3, 1.0):
        expected = (1 - weight) * mean + weight * steps
        torch.testing.assert_close(classification_loss(logits, labels, tet_weight=weight), expected)


def test_learning_rate_rises_holds_and_falls() -> None:
    config = TrainConfig(warmup=0.1, hold=0.6)
    factors = [loop_module.learning_rate_factor(p, config) for p in (0.0, 0.05, 0.1, 0.59, 0.8, 1.0)]
    assert factors == pytest.approx([0, 0.5, 1, 1, 0.5, 0])


@pytest.mark.parametrize("kind", ["affine", "shift"])
def test_augmentation_is_one_draw_per_sample_over_time(kind: str) -> None:
    frames = torch.rand(1, 4, 2, 12, 12, generator=torch.Generator().manual_seed(0)).repeat(3, 1, 1, 1, 1)
    moved = augment_batch(frames, kind, torch.Generator().manual_seed(1))
    assert moved.shape == frames.shape
    assert torch.equal(moved[0], moved[2])
    assert not torch.equal(moved, frames)
    assert torch.equal(moved, augment_batch(frames, kind, torch.Generator().manual_seed(1)))


def test_shift_moves_whole_pixels() -> None:
    frames = torch.zeros(1, 50, 1, 9, 9)
    frames[..., 4, 4] = 1
    moved = augment_batch(frames, "shift", torch.Generator().manual_seed(0))
    places = {tuple(place) for place in moved[0, :, 0].nonzero()[:, 1:].tolist()}
    assert moved.sum() == 50
    assert len(places) > 10
    assert all(2 <= y <= 6 and 2 <= x <= 6 for y, x in places)


def test_checkpoint_rebuilds_the_network(tmp_path: Path, blobs: FrameDataset) -> None:
    model = network(seed=3).eval()
    save_checkpoint(tmp_path / "m.safetensors", model, {"accuracy": 0.5}, extra={"mask/a": torch.ones(2)})
    loaded, metadata = load_model(tmp_path / "m.safetensors")
    assert metadata == {"accuracy": 0.5}
    assert torch.equal(predict_logits(loaded, blobs), predict_logits(model, blobs))
    _, extra = load_checkpoint(tmp_path / "m.safetensors", network())
    assert list(extra) == ["mask/a"]


def test_bad_checkpoints_are_named(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with pytest.raises(CheckpointError, match="no such file"):
        load_model(path)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="not a readable"):
        load_model(path)
    for header, word in (
        ({"format": "other"}, "format"),
        ({"format": "snn_core.checkpoint", "version": "99"}, "version '99'"),
        ({"format": "snn_core.checkpoint", "version": "1"}, "backbone"),
        ({"format": "snn_core.checkpoint", "version": "1", "backbone": "nonsense", "options": "{}"}, "nonsense"),
        ({"format": "snn_core.checkpoint", "version": "1", "backbone": "conv-snn", "options": "{"}, "options"),
    ):
        write_tensors(path, {"x": torch.zeros(1)}, header)
        with pytest.raises(CheckpointError, match=word):
            load_model(path)
    save_checkpoint(path, network())
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="not a readable"):
        load_model(path)
    for place in range(len(data) // 3, len(data), len(data) // 37):
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        with pytest.raises(CheckpointError, match=r"damaged|readable"):
            load_model(path)
    path.write_bytes(data.replace(b'"F32"', b'"I32"'))
    with pytest.raises(CheckpointError, match=r"damaged|readable"):
        load_model(path)


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.safetensors"
    save_checkpoint(path, network(seed=1), {"which": "old"})

    def refuse(self: Path, data: bytes) -> int:
        with open(self, "wb") as target:
            target.write(data[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(StorageError, match="No space left"):
        save_checkpoint(path, network(seed=2), {"which": "new"})
    monkeypatch.undo()
    assert load_model(path)[1] == {"which": "old"}
    assert [file.name for file in tmp_path.iterdir()] == ["m.safetensors"]


def test_state_header_is_plain_json(blobs: FrameDataset, tmp_path: Path) -> None:
    train_classifier(network(), blobs, CONFIG, output=tmp_path)
    with safetensors.safe_open(tmp_path / loop_module.STATE_FILE, framework="pt") as source:
        header = source.metadata()
    assert json.loads(header["identity"])["data"] == blobs.content_key
    assert json.loads(header["progress"])["position"] == 24
