"""The pool: snapshots, cache by content, resumption, hashes."""

import os
import signal
import warnings

import pytest
import torch

from snn_core.distillation import TeacherConfig, TeacherPool, model_hash, train_teachers
from snn_core.distillation.teachers import SnapshotHook
from snn_core.distillation.training_code import sources_hash, training_code_version
from snn_core.errors import ArgumentError, ConfigError, InterruptedRunError
from tests.distillation.conftest import make_bars


def tiny(**values: object) -> TeacherConfig:
    small = {
        "backbone_options": {"channels": [4]},
        "count": 2,
        "snapshots": [0.5, 1.0],
        "training": {"epochs": 4, "batch_size": 6, "augment": "none"},
    }
    return TeacherConfig.model_validate({**small, **values})


def test_pool_holds_frozen_snapshots_of_every_seed(bars, tmp_path):
    pool = train_teachers(bars, tiny(), cache_dir=tmp_path, quiet=True)
    assert [teacher.name for teacher in pool] == ["0/0.5", "0/1", "1/0.5", "1/1"]
    assert len(set(pool.hashes)) == 4
    for teacher in pool:
        assert not teacher.model.training
        assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
        assert teacher.hash == model_hash(teacher.model)
    assert pool.seconds > 0


def test_second_run_takes_all_from_the_cache(bars, tmp_path, monkeypatch):
    first = train_teachers(bars, tiny(), cache_dir=tmp_path, quiet=True)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".safetensors"] * 4
    monkeypatch.setattr("snn_core.distillation.teachers.train_classifier", None)
    again = train_teachers(bars, tiny(), cache_dir=tmp_path, quiet=True)
    assert again.hashes == first.hashes
    assert again.seconds == first.seconds


def test_cache_key_depends_on_data_seed_and_settings(bars, tmp_path):
    train_teachers(bars, tiny(count=1), cache_dir=tmp_path, quiet=True)
    for change in (
        {"dataset": make_bars(seed=1)},
        {"seed": 1},
        {"config": tiny(count=1, training={"epochs": 4, "batch_size": 6, "augment": "shift"})},
    ):
        before = len(list(tmp_path.iterdir()))
        arguments = {"dataset": bars, "config": tiny(count=1), **change}
        train_teachers(**arguments, cache_dir=tmp_path, quiet=True)
        assert len(list(tmp_path.iterdir())) == before + 2


def test_cache_key_knows_the_code_that_trains(bars, tmp_path, monkeypatch):
    config = tiny(count=1, training={"epochs": 1, "batch_size": 6, "augment": "none"})
    train_teachers(bars, config, cache_dir=tmp_path, quiet=True)
    kept = len(list(tmp_path.iterdir()))
    monkeypatch.setattr("snn_core.distillation.teachers.training_code_version", lambda: "other")
    train_teachers(bars, config, cache_dir=tmp_path, quiet=True)
    assert len(list(tmp_path.iterdir())) == 2 * kept


def test_hash_of_sources(tmp_path):
    """Every source counts by name and content, whatever else lies there; the training's is the same every time."""
    (tmp_path / "part").mkdir()
    sources = [tmp_path / "module.py", tmp_path / "part" / "a.py", tmp_path / "part" / "b.cpp"]
    for source in sources:
        source.write_text("1")
    places = [tmp_path / "module.py", tmp_path / "part"]
    before = sources_hash(places)
    (tmp_path / "part" / "a.pyc").write_text("2")
    assert sources_hash(places) == before
    for source in sources:
        source.write_text("2")
        assert sources_hash(places) != before
        source.write_text("1")
    sources[1].rename(tmp_path / "part" / "c.py")
    assert sources_hash(places) != before
    assert training_code_version() == training_code_version.__wrapped__()


def test_one_of_a_pool_has_its_own_seconds(bars):
    pool = train_teachers(bars, tiny(), use_cache=False, quiet=True)
    alone = pool.only(2)
    assert alone.hashes == [pool.hashes[2]]
    assert alone.seconds == pytest.approx(pool[3].seconds / 2)
    assert pool[1].seconds + pool[3].seconds == pytest.approx(pool.seconds)


def test_training_is_repeatable_without_the_cache(bars):
    first = train_teachers(bars, tiny(count=1), use_cache=False, quiet=True)
    assert first.hashes == train_teachers(bars, tiny(count=1), use_cache=False, quiet=True).hashes


def test_a_damaged_cache_file_is_replaced_with_a_warning(bars, tmp_path):
    first = train_teachers(bars, tiny(count=1), cache_dir=tmp_path, quiet=True)
    victim = sorted(tmp_path.iterdir())[0]
    content = bytearray(victim.read_bytes())
    content[-3] ^= 0xFF
    victim.write_bytes(bytes(content))
    with pytest.warns(UserWarning, match="trained again"):
        again = train_teachers(bars, tiny(count=1), cache_dir=tmp_path, quiet=True)
    assert again.hashes == first.hashes
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train_teachers(bars, tiny(count=1), cache_dir=tmp_path, quiet=True)


def interrupt_training(bars, folder, monkeypatch) -> None:
    """Stop the training of ``tiny()`` after 8 steps: after the first teacher's first snapshot, before its second."""
    original, calls = SnapshotHook.step, []

    def interrupting(self):
        original(self)
        calls.append(1)
        if len(calls) == 8:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(SnapshotHook, "step", interrupting)
        with pytest.raises(InterruptedRunError):
            train_teachers(bars, tiny(), cache_dir=folder, quiet=True)
    assert len(calls) == 8


def test_an_interrupted_teacher_goes_on_where_it_stopped(bars, tmp_path, monkeypatch):
    whole = train_teachers(bars, tiny(), use_cache=False, quiet=True)
    interrupt_training(bars, tmp_path, monkeypatch)
    resumed = train_teachers(bars, tiny(), cache_dir=tmp_path, quiet=True)
    assert resumed.hashes == whole.hashes
    assert all(path.is_file() for path in tmp_path.iterdir())


def test_a_damaged_state_of_an_interrupted_teacher_is_dropped_with_a_warning(bars, tmp_path, monkeypatch):
    whole = train_teachers(bars, tiny(), use_cache=False, quiet=True)
    interrupt_training(bars, tmp_path, monkeypatch)
    (state,) = tmp_path.glob("training-*/*.safetensors")
    state.write_bytes(state.read_bytes()[:100])
    with pytest.warns(UserWarning, match="from the start"):
        again = train_teachers(bars, tiny(), cache_dir=tmp_path, quiet=True)
    assert again.hashes == whole.hashes
    assert all(path.is_file() for path in tmp_path.iterdir())


def test_hash_sees_parameters_and_buffers():
    first, second = torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3)
    assert model_hash(first) == model_hash(second)
    second.running_mean[1] = 1e-6
    assert model_hash(first) != model_hash(second)


def test_bad_settings_are_named(bars):
    with pytest.raises(ValueError, match=r"training\n.*epoch_count"):
        tiny(training={"epoch_count": 3})
    unchecked = tiny().model_copy(update={"training": {"epoch_count": 3}})
    with pytest.raises(ConfigError, match=r"teachers\.training.*\n*.*epoch_count"):
        train_teachers(bars, unchecked, use_cache=False, quiet=True)
    with pytest.raises(ArgumentError, match="backbone"):
        train_teachers(bars, tiny(backbone="no-such"), use_cache=False, quiet=True)
    with pytest.raises(ArgumentError, match="at least one teacher"):
        TeacherPool.from_models({})


def test_a_pool_of_two_backbones_is_cached_and_named(bars, tmp_path):
    narrow = tiny(count=1, snapshots=(1.0,))
    wide = narrow.model_copy(update={"backbone_options": {**narrow.backbone_options, "channels": [5]}})
    config = narrow.model_copy(update={"also": (wide,)})
    pool = train_teachers(bars, config, cache_dir=tmp_path, quiet=True)
    assert [teacher.name for teacher in pool] == ["0/1", "1.0/1"]
    alone = train_teachers(bars, wide, cache_dir=tmp_path, quiet=True)
    assert pool.hashes[1:] == alone.hashes
    assert pool.hashes[0] != pool.hashes[1]
