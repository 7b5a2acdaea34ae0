"""Methods beside PACE: their losses by hand, selections by hand, what an ablation changes, resume of DC."""

from __future__ import annotations

import dataclasses
import os
import signal

import pytest
import torch

from snn_core.distillation import (
    TeacherPool,
    create_method,
    distill,
    list_methods,
    select_by_score,
    select_k_centre,
)
from snn_core.distillation.methods import CharacteristicMatching, DistributionMatching, gradient_matching
from snn_core.distillation.methods.forgetting import ForgettingHook
from snn_core.distillation.methods.gradient_matching import gradient_distance
from snn_core.distillation.methods.matched import MatchedMethod
from snn_core.errors import ArgumentError, CheckpointError, DataError, InterruptedRunError
from tests.distillation.conftest import make_bars, make_config, make_pool

LABELS = torch.tensor([0, 0, 0, 0, 1, 1])
TEACHERS = {"backbone_options": {"channels": [4]}, "count": 1, "training": {"epochs": 3}}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def streams(T: int = 4, K: int = 3, real: int = 5, synthetic: int = 2, D: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    draw = generator(1)
    return torch.rand(T, K, real, D, generator=draw), torch.rand(T, K, synthetic, D, generator=draw)


def test_distribution_matching_is_the_distance_of_means():
    real, synthetic = streams()
    terms = DistributionMatching()(real, synthetic, generator=generator())
    mean, own = real.mean(2), synthetic.mean(2)
    wanted = [((mean - own)[:, k] ** 2).sum() / (mean**2).sum() * 3 for k in range(3)]
    assert torch.allclose(terms.per_class["dm"], torch.stack(wanted))
    assert torch.allclose(terms.total, torch.stack(wanted).mean())
    silent = DistributionMatching()(real, torch.zeros_like(synthetic), generator=generator())
    assert silent.total.item() == pytest.approx(1)


def test_what_the_timeless_forms_see_of_time():
    """Steps in another order: seen by DM at every step, by nothing that averages over time or takes a bag."""
    real, _ = streams(real=4, synthetic=4)
    backwards = real.flip(0)
    seen = DistributionMatching()(real, backwards, generator=generator()).total.item()
    assert seen > 0.01
    timeless = (DistributionMatching(time_mean=True), CharacteristicMatching(), CharacteristicMatching(time_mean=True))
    for loss in timeless:
        terms = loss(real, backwards, generator=generator(3))
        assert terms.total.item() == pytest.approx(loss(real, real, generator=generator(3)).total.item(), abs=1e-3)
        other = loss(real, real * 0.3 + 0.5, generator=generator(3))
        assert other.total.item() > terms.total.item() + 0.01


def test_the_bag_tells_what_the_mean_does_not():
    """One step of 2 and one of 0 have the time mean of two steps of 1."""
    steps = torch.tensor([[2.0, 0.0], [0.0, 2.0]]).view(2, 1, 1, 2)
    even = torch.ones(2, 1, 1, 2)
    options = {"normalise": False, "sigma": 1.0}
    bag, mean = CharacteristicMatching(**options), CharacteristicMatching(time_mean=True, **options)
    assert mean(steps, even, generator=generator()).total.item() < 1e-3
    assert bag(steps, even, generator=generator()).total.item() > 0.1


def test_losses_refuse_what_does_not_fit():
    real, synthetic = streams()
    for loss in (DistributionMatching(), CharacteristicMatching()):
        with pytest.raises(ArgumentError, match="synthetic"):
            loss(real, synthetic[:, :2], generator=generator())


def test_a_comparison_is_the_loop_of_pace_with_its_loss(bars):
    config = make_config(beta=0.5)
    product = create_method("dm/time-mean-sdr")(bars, config, teachers=make_pool(), seed=3, quiet=True)
    own = distill(bars, make_pool(), config, seed=3, matching=DistributionMatching(time_mean=True), quiet=True)
    assert torch.equal(product.frames, own.frames)
    assert product.provenance.config["beta"] == 0.5


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("pace", {}),
        ("pace/no-sdr", {"beta": 0.0}),
        ("pace/amplitude-only", {"alpha": 1.0, "gamma": 0.0}),
        ("pace/no-dft", {"mu": 0.0}),
        ("pace/no-cf", {"cf_weight": 0.0}),
        ("pace/no-peqn", {"quantize": "none"}),
        ("pace/no-decoder", {}),
        ("pace/no-decoder-matching", {}),
        ("dm/time-mean", {"beta": 0.0}),
        ("ncfm", {"beta": 0.0}),
        ("dm/sdr", {}),
    ],
)
def test_what_an_ablation_changes(name, changed):
    config = make_config()
    method = create_method(name)
    assert isinstance(method, MatchedMethod)
    before, after = config.model_dump(), method.config_of(config).model_dump()
    assert {key: value for key, value in after.items() if value != before[key]} == changed


def test_an_ablation_of_a_loss_in_stages_leaves_no_part_without_a_term():
    config = make_config(cf_weight=0.0, dm_weight=1.0, dm_stage=(0, 0.5), dft_stage=(0.5, 1))
    loss = create_method("pace/no-dft").config_of(config).loss()
    assert (loss.weights["dft"], loss.stages["dm"]) == (0.0, (0.0, 1.0))
    kept = create_method("pace/no-cf").config_of(config)
    assert (kept.dm_stage, kept.dft_stage) == ((0.0, 0.5), (0.5, 1.0))


def test_augmentation_that_no_view_would_do_is_refused():
    with pytest.raises(ValueError, match="num_shifts of at least 2"):
        make_config(num_shifts=1, max_shift=0, drop=0.5)


def test_k_centre_starts_in_the_middle_and_takes_the_farthest():
    features = torch.tensor([[0.0], [4.0], [5.0], [9.5], [1.0], [3.0]])
    # class 0: mean 4.6 -> 5 (index 2), farthest 0 (index 0), then 9.5 (index 3); class 1: mean 2, ties to the lower
    assert select_k_centre(features, LABELS, 2, 1).tolist() == [2, 4]
    assert select_k_centre(features, LABELS, 2, 2).tolist() == [2, 0, 4, 5]
    assert select_k_centre(torch.zeros(6, 1), LABELS, 2, 2).tolist() == [0, 1, 4, 5]
    with pytest.raises(DataError, match="class 1 has 2 samples, 3"):
        select_k_centre(features, LABELS, 2, 3)
    with pytest.raises(ArgumentError, match="features"):
        select_k_centre(features[:3], LABELS, 2, 1)


def test_largest_scores_win_and_ties_are_drawn():
    scores = torch.tensor([1, 3, 3, 3, 0, 2])
    picks = {tuple(select_by_score(scores, LABELS, 2, 1, generator=generator(seed)).tolist()) for seed in range(40)}
    assert picks == {(1, 5), (2, 5), (3, 5)}
    with pytest.raises(ArgumentError, match="scores"):
        select_by_score(scores[:2], LABELS, 2, 1, generator=generator())
    with pytest.raises(ArgumentError, match="ipc"):
        select_by_score(scores, LABELS, 2, 0, generator=generator())


def test_forgetting_counts_right_then_wrong(bars, monkeypatch):
    told = torch.tensor([[1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 0]])  # epochs x samples
    data = bars.subset(range(4))
    answers = iter(told)

    def predict(model, dataset):
        right = next(answers).bool()
        return torch.nn.functional.one_hot(torch.where(right, dataset.labels, (dataset.labels + 1) % 3), 3).float()

    monkeypatch.setattr("snn_core.distillation.methods.forgetting.predict_logits", predict)
    hook = ForgettingHook(data, batch_size=3)
    hook.begin(torch.nn.Identity(), None, 10)
    for step in range(10):
        if step == 5:  # interrupted and taken up
            saved, hook = hook.state_dict(), ForgettingHook(data, batch_size=3)
            hook.begin(torch.nn.Identity(), None, 10)
            hook.load_state_dict(saved)
        hook.step()
    hook.end()
    assert hook.counts.tolist() == [0, 2, 1, 5]


def test_gradient_distance_counts_output_units():
    a = [torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([3.0, 4.0])]
    b = [torch.tensor([[2.0, 0.0], [0.0, -1.0]]), torch.tensor([-4.0, 3.0])]
    assert gradient_distance(a, a).item() == pytest.approx(0, abs=1e-5)
    assert gradient_distance(a, b).item() == pytest.approx(0 + 2 + 1, abs=1e-5)


def test_gradient_matching_resumes_exactly(bars, tmp_path, monkeypatch):
    monkeypatch.setattr(gradient_matching, "EPISODE", 3)
    config = make_config(iterations=8, init="noise", teachers=TEACHERS)
    method, state = create_method("dc"), tmp_path / "dc.safetensors"
    whole = method(bars, config, seed=4, quiet=True, state_path=tmp_path / "other.safetensors")

    match, calls = gradient_matching._Run._match, []

    def stop_at_the_fifth(run, *arguments):
        calls.append(match(run, *arguments))
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(gradient_matching._Run, "_match", stop_at_the_fifth)
    with pytest.raises(InterruptedRunError, match="last whole episode"):
        method(bars, config, seed=4, quiet=True, state_path=state)
    resumed = method(bars, config, seed=4, quiet=True, state_path=state, resume=True)
    assert len(calls) == 5 + 5
    assert torch.equal(resumed.frames, whole.frames)
    with pytest.raises(CheckpointError, match="seed"):
        method(bars, config, seed=5, quiet=True, state_path=state, resume=True)


def test_gradient_matching_brings_gradients_together(bars, monkeypatch):
    monkeypatch.setattr(gradient_matching, "EPISODE", 30)
    monkeypatch.setattr(gradient_matching, "NETWORK_STEPS", 0)
    teachers = TEACHERS | {"backbone_options": {"channels": [8], "pool": "avg"}}
    config = make_config(
        init="noise", iterations=30, real_batch=12, num_shifts=1, max_shift=0, learning_rate=0.2, teachers=teachers
    )
    run = gradient_matching._Run(bars, config, 0, torch.device("cpu"), True)
    run.episode(0, False)
    assert sum(run.losses[-5:]) < 0.8 * sum(run.losses[:5])


def test_gradient_matching_sees_the_views_that_the_others_see(bars):
    options = {"iterations": 3, "init": "noise", "num_shifts": 5, "teachers": TEACHERS}
    plain, seen = (
        create_method("dc")(bars, make_config(**options, **more), quiet=True) for more in ({}, {"drop": 1.0})
    )
    assert not torch.equal(plain.frames, seen.frames)


def test_every_method_is_refused_too_few_samples(bars):
    for name in list_methods():
        with pytest.raises(DataError, match=r"6 samples, (7|28)"):  # 28: four clips a sample
            create_method(name)(bars, make_config(ipc=7, teachers=TEACHERS), teachers=make_pool(1), quiet=True)
    with pytest.raises(ArgumentError, match="T: the config asks for 9"):
        create_method("dc")(bars, make_config(T=9, teachers=TEACHERS), quiet=True)
    with pytest.raises(ArgumentError, match=r"did you mean 'k-centre'"):
        create_method("k_center")


def test_forgetting_is_repeatable(bars):
    config = make_config(ipc=2, teachers=TEACHERS)
    data = make_bars(per_class=4)
    first, again = (create_method("forgetting")(data, config, seed=1, quiet=True) for _ in range(2))
    assert torch.equal(first.frames, again.frames)


def test_selections_say_by_what_they_chose(bars):
    """And are charged with the one teacher that they used."""
    pool = make_pool(3)
    pool = TeacherPool([dataclasses.replace(teacher, seconds=float(10**i)) for i, teacher in enumerate(pool)], 111.0)
    for name in ("herding", "k-centre"):
        made = create_method(name)(bars, make_config(layers=[-1]), teachers=pool, seed=1, quiet=True).provenance
        assert made.config == {"ipc": 1, "layers": ["blocks.1.neuron"], "feature_pool": 2, "teacher": "1"}
        assert (made.teacher_hashes, made.teacher_seconds) == ([pool.hashes[1]], 10.0)
    assert create_method("random")(bars, make_config(), quiet=True).provenance.config == {"ipc": 1}
    config = make_config(teachers=TEACHERS)
    forgetting = create_method("forgetting")(bars, config, quiet=True).provenance
    assert forgetting.config == {"ipc": 1, "backbone": "conv-snn", "backbone_options": {"channels": [4]},
                                 "training": {"epochs": 3}}  # fmt: skip


def test_pace_multi_is_pace_with_several_clips(bars):
    for values, clips in (({}, 4), ({"formation_time": 3}, 3)):
        config = make_config(iterations=2, **values)
        made = create_method("pace/multi")(bars, config, teachers=make_pool(), quiet=True)
        assert made.formation.clips == clips
        assert made.frames.shape == (3, 3, 2, 10, 10)
        assert len(made.decoded()) == 3 * clips
