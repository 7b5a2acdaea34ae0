"""Evaluation and methods: fresh networks on the product only; same product format whatever the method."""

import statistics

import pytest
import torch

from snn_core.datasets import load_frames
from snn_core.distillation import (
    DistilledDataset,
    EvaluationConfig,
    compare,
    create_method,
    distill,
    evaluate_full,
    evaluate_product,
    list_methods,
    train_teachers,
    write_product,
)
from snn_core.errors import ArgumentError, ConfigError, DataError
from tests.distillation.conftest import make_bars, make_config, make_pool

TINY = EvaluationConfig(
    backbone_options={"channels": [4]}, networks=2, steps=40, training={"learning_rate": 0.02, "augment": "none"}
)


def test_every_method_gives_the_same_kind_of_product(tmp_path):
    bars = make_bars(per_class=8)  # pace/multi starts two samples of four clips each from eight recordings of a class
    for name in list_methods():
        product = create_method(name)(bars, make_config(ipc=2), teachers=make_pool(), seed=5, quiet=True)
        assert product.frames.shape == (6, 3, 2, 10, 10)
        assert product.labels.tolist() == [0, 0, 1, 1, 2, 2]
        assert (product.provenance.method, product.provenance.ipc, product.provenance.seed) == (name, 2, 5)
        assert product.provenance.source_content_key == bars.content_key
        assert product.simulated
        write_product(tmp_path / f"{name}.h5", product)
        assert torch.equal(DistilledDataset.load(tmp_path / f"{name}.h5").frames, product.frames)


def test_selections_are_real_samples_of_the_right_class(bars):
    for name in ("random", "herding"):
        product = create_method(name)(bars, make_config(ipc=3), teachers=make_pool(), seed=1)
        for frames, label in product:
            assert any(torch.equal(frames, bars.frames[i]) for i in torch.nonzero(bars.labels == label).flatten())


def test_random_depends_on_the_seed(bars):
    method = create_method("random")
    assert torch.equal(method(bars, make_config(), seed=1).frames, method(bars, make_config(), seed=1).frames)
    products = {bytes(method(bars, make_config(), seed=seed).frames.numpy().tobytes()) for seed in range(5)}
    assert len(products) > 1


def test_methods_refuse_what_they_cannot_do(bars):
    with pytest.raises(ArgumentError, match=r"'coreset' is unknown; there are dc, .*herding, .*random"):
        create_method("coreset")
    with pytest.raises(ArgumentError, match="teachers"):
        create_method("pace")(bars, make_config())
    with pytest.raises(DataError, match="class 0 has 6 samples"):
        create_method("random")(bars, make_config(ipc=7))


def test_evaluation_learns_bars_and_reports_sizes(bars, tmp_path):
    product = create_method("random")(bars, make_config(ipc=2), seed=0)
    write_product(tmp_path / "p.h5", product)
    test_set = make_bars(seed=9)
    result = evaluate_product(product, test_set, config=TINY, path=tmp_path / "p.h5", quiet=True)
    assert len(result.accuracies) == 2
    assert result.mean == statistics.fmean(result.accuracies)
    assert result.mean > 0.8
    assert (result.samples, result.frame_bytes, result.steps, result.test_samples) == (6, 6 * 600, 40, 18)
    assert result.file_bytes == (tmp_path / "p.h5").stat().st_size
    full = evaluate_full(bars, test_set, config=TINY, training={"epochs": 20, "augment": "none"}, quiet=True)
    assert full.steps == 20
    beside = compare(result, full)
    assert beside["samples_ratio"] == 3
    assert beside["frame_bytes_ratio"] == 3
    assert beside["fraction_of_full"] == pytest.approx(result.mean / full.mean)


def test_evaluation_is_repeatable_and_networks_differ(bars):
    product = create_method("random")(bars, make_config(), seed=0)
    hard = make_bars(seed=3, per_class=10)
    hard.frames = (hard.frames + torch.randint(0, 4, hard.frames.shape, dtype=torch.uint8)).clamp(max=9)
    short = TINY.model_copy(update={"steps": 3})
    first = evaluate_product(product, hard, networks=4, config=short, seed=2, quiet=True)
    assert first.accuracies == evaluate_product(product, hard, networks=4, config=short, seed=2, quiet=True).accuracies
    assert len(set(first.accuracies)) > 1


def test_evaluation_refuses_sets_that_do_not_fit(bars):
    with pytest.raises(ArgumentError, match="must be equal"):
        evaluate_product(bars, make_bars(T=4), config=TINY, quiet=True)
    with pytest.raises(ArgumentError, match="no samples"):
        evaluate_product(bars.subset([]), bars, config=TINY, quiet=True)
    with pytest.raises(ArgumentError, match="networks"):
        evaluate_product(bars, bars, networks=0, config=TINY, quiet=True)
    with pytest.raises(ValueError, match=r"training\n.*rate: Extra"):
        EvaluationConfig(training={"rate": 1})
    with pytest.raises(ConfigError, match=r"evaluation\.training"):
        evaluate_full(bars, bars, config=TINY, training={"rate": 1}, quiet=True)


def test_a_missing_product_file_is_refused_before_any_training(bars, tmp_path, monkeypatch):
    monkeypatch.setattr("snn_core.distillation.evaluate.train_classifier", None)
    for path in (tmp_path / "none.h5", tmp_path):
        with pytest.raises(ArgumentError, match="path"):
            evaluate_product(bars, bars, config=TINY, path=path, quiet=True)


def test_end_to_end_on_digits_dvs(tmp_path):
    """Simulated digits, tiny teachers, few iterations: the matching loss falls and the product loads."""
    train_set = load_frames("digits-dvs", "train", T=2, limit=60, cache_dir=tmp_path, quiet=True)
    config = make_config(
        init="noise",
        iterations=40,
        real_batch=6,
        num_frequencies=32,
        num_shifts=1,
        learning_rate=0.2,
        teachers={"backbone_options": {"channels": [8, 8]}, "count": 1, "training": {"epochs": 4}},
    )
    pool = train_teachers(train_set, config.teachers, cache_dir=tmp_path, quiet=True)
    result = distill(train_set, pool, config, quiet=True)
    first, last = (sum(record["loss"] for record in part) for part in (result.history[:8], result.history[-8:]))
    assert last < 0.9 * first
    product = create_method("pace")(train_set, config, teachers=pool, quiet=True)
    assert torch.equal(product.frames, result.frames)
    write_product(tmp_path / "digits.h5", product)
    assert DistilledDataset.load(tmp_path / "digits.h5").provenance.teacher_hashes == pool.hashes
