"""Iteration-level state: exact round trip, and refusal of what does not belong to the run."""

import pytest
import torch

from snn_core.distillation.state import DistillState, differing_keys, load_state, save_state
from snn_core.errors import CheckpointError


def make_state() -> DistillState:
    generator = torch.Generator().manual_seed(3)
    canvas = torch.rand(4, 2, 2, 3, 3, generator=generator)
    return DistillState(
        iteration=5,
        canvas=canvas,
        exp_avg=canvas * 1e-30,
        exp_avg_sq=canvas.square(),
        generator_state=generator.get_state(),
        history=torch.rand(5, 2),
        history_names=["loss", "cf"],
        seconds=1.25,
    )


def test_round_trip_is_exact(tmp_path):
    state, identity = make_state(), {"seed": 1, "config": {"betas": (0.5, 0.9)}}
    save_state(tmp_path / "s.safetensors", state, identity)
    loaded = load_state(tmp_path / "s.safetensors", identity)
    for name in ("canvas", "exp_avg", "exp_avg_sq", "generator_state", "history"):
        assert torch.equal(getattr(loaded, name), getattr(state, name)), name
    assert (loaded.iteration, loaded.history_names, loaded.seconds) == (5, ["loss", "cf"], 1.25)
    torch.Generator().set_state(loaded.generator_state)


def test_state_of_another_run_is_refused(tmp_path):
    save_state(tmp_path / "s", make_state(), {"seed": 1, "config": {"sigma": 3.0, "mu": 1.0}})
    with pytest.raises(CheckpointError, match=r"differ: config\.sigma, seed$"):
        load_state(tmp_path / "s", {"seed": 2, "config": {"sigma": 1.0, "mu": 1.0}})


def test_missing_corrupt_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="nothing to resume"):
        load_state(tmp_path / "none", {})
    save_state(tmp_path / "s", make_state(), {})
    whole = (tmp_path / "s").read_bytes()
    for content in (b"", whole[:100], whole[:-3], b"x" * 400):
        (tmp_path / "s").write_bytes(content)
        with pytest.raises(CheckpointError):
            load_state(tmp_path / "s", {})
    from safetensors.torch import save_file

    save_file({"canvas": torch.zeros(1)}, tmp_path / "s")
    with pytest.raises(CheckpointError, match="expected"):
        load_state(tmp_path / "s", {})


def test_differing_keys():
    assert differing_keys({"a": 1, "b": {"c": [1, 2]}}, {"a": 1, "b": {"c": [1, 3]}, "d": 0}) == ["b.c", "d"]
    assert differing_keys({"a": 1}, {"a": 1}) == []
