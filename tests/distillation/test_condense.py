"""The loop: the loss falls, resuming equals not stopping bit for bit, and bad input is named."""

import os
import signal

import pytest
import torch

from snn_core.backbones import create
from snn_core.distillation import DistillConfig, MatchingTerms, SpatioTemporalMatching, TeacherPool, distill
from snn_core.distillation.augment import View
from snn_core.distillation.condense import unit_gradients_
from snn_core.distillation.initial import initial_frames
from snn_core.distillation.real_features import FeatureStore, RealFeatures, shared_features
from snn_core.errors import ArgumentError, CheckpointError, DataError, InterruptedRunError, NonFiniteError
from tests.distillation.conftest import make_bars, make_config, make_pool


class Recorder:
    """Wraps ST-SM and does something at a given call."""

    def __init__(self, at, action):
        self.inner, self.at, self.action, self.calls = SpatioTemporalMatching(num_frequencies=16), at, action, 0

    def __call__(self, real, synthetic, *, generator):
        self.calls += 1
        terms = self.inner(real, synthetic, generator=generator)
        return self.action(terms) if self.calls == self.at else terms

    def __repr__(self):
        return "recorder"


def test_result_is_sorted_integer_frames_and_history(bars, pool):
    result = distill(bars, pool, make_config(ipc=2), quiet=True)
    assert result.frames.shape == (6, 3, 2, 10, 10)
    assert result.frames.dtype == torch.uint8
    assert result.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert result.frames.max() <= 15
    assert len(result.history) == 8
    assert set(result.history[0]) == {"loss"} | {
        f"blocks.{block}.neuron/{term}" for block in (0, 1) for term in ("cf", "dft")
    }
    parts = sum(value for name, value in result.history[3].items() if name != "loss")
    assert result.history[3]["loss"] == pytest.approx(parts, rel=1e-5)


def test_loss_falls_from_noise(bars):
    config = make_config(init="noise", iterations=60, learning_rate=0.2, num_shifts=1)
    history = distill(bars, make_pool(1), config, quiet=True).history
    first = sum(record["loss"] for record in history[:5])
    last = sum(record["loss"] for record in history[-5:])
    assert last < 0.6 * first


def test_same_seed_same_frames_and_no_global_randomness(bars, pool):
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first = distill(bars, pool, make_config(), seed=3, quiet=True)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    assert torch.equal(first.canvas, distill(bars, pool, make_config(), seed=3, quiet=True).canvas)
    assert not torch.equal(first.canvas, distill(bars, pool, make_config(), seed=4, quiet=True).canvas)


@pytest.mark.parametrize("cache_megabytes", [0, 64])
def test_resuming_after_an_interrupt_equals_an_uninterrupted_run(bars, pool, tmp_path, cache_megabytes):
    config = make_config(cache_megabytes=cache_megabytes, draws=2)
    whole = distill(bars, pool, config, matching=Recorder(0, None), quiet=True)

    def interrupt(terms):
        os.kill(os.getpid(), signal.SIGINT)
        return terms

    # call 5 is the first layer of iteration 3: the iteration is finished before the run stops
    with pytest.raises(InterruptedRunError, match=r"after iteration 3 of 8; state saved in .*state"):
        distill(bars, pool, config, state_path=tmp_path / "state", matching=Recorder(5, interrupt), quiet=True)
    resumed = distill(
        bars, pool, config, state_path=tmp_path / "state", resume=True, matching=Recorder(0, None), quiet=True
    )
    assert torch.equal(resumed.canvas, whole.canvas)
    assert torch.equal(resumed.frames, whole.frames)
    assert resumed.history == whole.history


def test_resuming_a_finished_run_gives_its_result_again(bars, pool, tmp_path):
    first = distill(bars, pool, make_config(), state_path=tmp_path / "s", quiet=True)
    again = distill(bars, pool, make_config(), state_path=tmp_path / "s", resume=True, quiet=True)
    assert torch.equal(first.canvas, again.canvas)
    assert first.history == again.history


def test_resume_refuses_nothing_and_other_runs(bars, pool, tmp_path):
    with pytest.raises(CheckpointError, match="nothing to resume"):
        distill(bars, pool, make_config(), state_path=tmp_path / "s", resume=True, quiet=True)
    with pytest.raises(CheckpointError, match="nothing to resume"):
        distill(bars, pool, make_config(), resume=True, quiet=True)
    distill(bars, pool, make_config(), state_path=tmp_path / "s", quiet=True)
    for name, run in {
        "config.sigma": lambda: distill(
            bars, pool, make_config(sigma=2.0), state_path=tmp_path / "s", resume=True, quiet=True
        ),
        "seed": lambda: distill(bars, pool, make_config(), seed=1, state_path=tmp_path / "s", resume=True, quiet=True),
        "teachers": lambda: distill(
            bars, make_pool(1), make_config(), state_path=tmp_path / "s", resume=True, quiet=True
        ),
        "data": lambda: distill(
            make_bars(seed=5), pool, make_config(), state_path=tmp_path / "s", resume=True, quiet=True
        ),
    }.items():
        with pytest.raises(CheckpointError, match=name):
            run()


def test_resume_refuses_another_setting_of_the_loss(bars, pool, tmp_path):
    options = {"state_path": tmp_path / "s", "quiet": True}
    distill(bars, pool, make_config(), matching=SpatioTemporalMatching(alpha=0.5), **options)
    with pytest.raises(CheckpointError, match="matching"):
        distill(bars, pool, make_config(), matching=SpatioTemporalMatching(alpha=0.6), resume=True, **options)


class Bare:
    """A loss without a repr of its own: object's tells an address, another one in every process."""

    def __call__(self, real, synthetic, *, generator):
        return MatchingTerms(total=(real.mean() - synthetic.mean()).square(), per_class={})


class OtherBare(Bare):
    pass


def test_a_loss_without_its_own_repr_resumes_by_its_name(bars, pool, tmp_path):
    def function(real, synthetic, *, generator):
        return Bare()(real, synthetic, generator=generator)

    for number, (matching, same) in enumerate([(Bare(), Bare()), (function, function)]):
        options = {"state_path": tmp_path / str(number), "quiet": True}
        first = distill(bars, pool, make_config(), matching=matching, **options)
        again = distill(bars, pool, make_config(), matching=same, resume=True, **options)
        assert torch.equal(first.canvas, again.canvas)
        assert b" at 0x" not in (tmp_path / str(number)).read_bytes()
        with pytest.raises(CheckpointError, match="matching"):
            distill(bars, pool, make_config(), matching=OtherBare(), resume=True, **options)


def test_teachers_of_different_depth_are_refused_at_the_start(bars):
    options = {"num_classes": 3, "input_size": [10, 10]}
    models = {str(n): create("conv-snn", channels=[4] * n, **options) for n in (2, 1)}
    mixed = TeacherPool.from_models(models)

    def never(*args, **options):
        raise AssertionError("the run has begun")

    with pytest.raises(ArgumentError, match="teachers: 1 has 1 spiking layers to match, 2 has 2"):
        distill(bars, mixed, make_config(), matching=never, quiet=True)
    assert len(distill(bars, mixed, make_config(layers=[0]), quiet=True).history) == 8


def test_non_finite_loss_names_layer_term_and_class_and_keeps_the_state(bars, pool, tmp_path):
    def poison(terms):
        values = terms.per_class["dft"].clone()
        values[1] = float("nan")
        return MatchingTerms(total=terms.total + values.sum(), per_class={**terms.per_class, "dft": values})

    config = make_config(checkpoint_every=2)
    with pytest.raises(NonFiniteError, match=r"term dft of layer blocks\.1\.neuron .* class bar 1 in iteration 4 of 8"):
        distill(bars, pool, config, state_path=tmp_path / "s", matching=Recorder(8, poison), quiet=True)
    resumed = distill(
        bars, pool, config, state_path=tmp_path / "s", resume=True, matching=Recorder(0, None), quiet=True
    )
    assert torch.equal(resumed.canvas, distill(bars, pool, config, matching=Recorder(0, None), quiet=True).canvas)


def test_non_finite_gradient_names_the_class(bars, pool):
    class Spike(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, *gradients):
            return gradients[0] * float("inf")

    def poison(terms):
        return MatchingTerms(total=Spike.apply(terms.total), per_class=terms.per_class)

    with pytest.raises(NonFiniteError, match="gradient of the frames of class bar 0, bar 1, bar 2"):
        distill(bars, pool, make_config(), matching=Recorder(2, poison), quiet=True)


def test_cache_does_not_change_the_result_beyond_rounding(bars, pool):
    kept = distill(bars, pool, make_config(cache_megabytes=64), quiet=True)
    computed = distill(bars, pool, make_config(cache_megabytes=0), quiet=True)
    torch.testing.assert_close(kept.canvas, computed.canvas, rtol=1e-2, atol=1e-2)


def test_initial_frames(bars):
    generator = torch.Generator().manual_seed(0)
    real = initial_frames(bars, make_config(ipc=2), generator=generator)
    sources = {bytes(frames.numpy().tobytes()) for frames in bars.frames}
    assert all(frames.to(torch.uint8).numpy().tobytes() in sources for frames in real)
    noise = initial_frames(bars, make_config(ipc=4, init="noise"), generator=generator)
    assert noise.shape == (12, 3, 2, 10, 10)
    assert noise.min() >= 0
    assert noise.mean().item() == pytest.approx(bars.frames.float().mean().item(), rel=0.1)


def test_a_floor_keeps_cells_with_little_gradient_where_they_are():
    """Plain Adam moves all cells alike in its first step; with a floor it is by gradient / (gradient + floor)."""
    canvas = torch.zeros(2, 1, 1, 1, 2, requires_grad=True)
    canvas.grad = torch.tensor([[3.0, 0.03], [0.0, 0.0]]).view(2, 1, 1, 1, 2)
    unit_gradients_(canvas)
    expected = torch.tensor([2**0.5, 0.01 * 2**0.5])
    assert torch.allclose(canvas.grad[0].flatten(), expected, rtol=1e-4)
    assert canvas.grad[1].abs().max() == 0
    optimizer = torch.optim.Adam([canvas], lr=1.0, betas=(0.5, 0.9), eps=3.0)
    optimizer.step()
    assert torch.allclose(canvas.detach()[0].flatten(), -expected / (expected + 3), rtol=1e-3)


def test_with_a_floor_fewer_cells_change(bars, pool):
    changed = {}
    for floor in (0.0, 3.0):
        config = make_config(iterations=3, learning_rate=0.3, gradient_floor=floor, quantize="round")
        canvas = distill(bars, pool, config, quiet=True).canvas
        changed[floor] = (canvas - canvas.round()).abs().gt(0.05).float().mean().item()
    assert 0 < changed[3.0] < 0.7 * changed[0.0]


def test_bad_inputs_are_named(bars, pool):
    with pytest.raises(ArgumentError, match="asks for 5 time steps, the data has 3"):
        distill(bars, pool, make_config(T=5), quiet=True)
    with pytest.raises(DataError, match="class 0 has 6 samples, 7"):
        distill(bars, pool, make_config(ipc=7), quiet=True)
    with pytest.raises(ArgumentError, match=r"teacher 0 does not take frames of shape \[3, 2, 10, 10\]"):
        distill(bars, make_pool(size=12), make_config(), quiet=True)
    with pytest.raises(ArgumentError, match="knows 4 classes, the data has 3"):
        distill(bars, make_pool(num_classes=4), make_config(), quiet=True)
    with pytest.raises(ArgumentError, match="layers: 'nowhere'"):
        distill(bars, pool, make_config(layers=["nowhere"]), quiet=True)
    with pytest.raises(ArgumentError, match="empty"):
        distill(bars, TeacherPool([]), make_config(), quiet=True)


@pytest.mark.parametrize(
    "values",
    [
        {"ipc": 0},
        {"unknown": 1},
        {"levels": 256},
        {"betas": [0.5, 1.0]},
        {"betas": [-0.1, 0.9]},
        {"betas": [0.5, float("nan")]},
        {"iterations": "many"},
        {"mu": 0, "cf_weight": 0},
        {"num_shifts": 10, "max_shift": 1},
        {"teachers": {"snapshots": []}},
        {"teachers": {"snapshots": [1.5]}},
    ],
)
def test_bad_configs_are_refused(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        DistillConfig.model_validate(values)


def test_training_of_the_teachers_is_checked_with_the_config():
    with pytest.raises(ValueError, match=r"teachers\.training(.|\n)*epochs: Input(.|\n)*epoch_count: Extra inputs"):
        DistillConfig.model_validate({"teachers": {"training": {"epoch_count": 3, "epochs": 0}}})
    kept = DistillConfig.model_validate({"teachers": {"training": {"epochs": 3}}})
    assert kept.teachers.training == {"epochs": 3}


def kept_features(data, pool, **values):
    options = {"layers": None, "beta": 1.0, "feature_pool": 2, "cache_megabytes": 64}
    return RealFeatures(data, pool, [View(), View((1, 0))], **(options | values))


def test_the_cache_of_real_features_is_bounded():
    """As many pairs as fit are kept, of the samples that will be asked for alone, where that saves anything."""
    data, pool = make_bars(per_class=40, size=20), make_pool(size=20)
    every = kept_features(data, pool)
    assert every.kept_pairs == 4
    own = torch.arange(40, 80)  # of one class: what a process keeps that has one of three
    mine = kept_features(data, pool, samples=own)
    picks = torch.tensor([[40, 79], [41, 41]])
    for pair in ((0, 0), (1, 1)):
        for a, b in zip(every(*pair, picks), mine(*pair, picks), strict=True):
            torch.testing.assert_close(a, b)
            assert a.shape[1:3] == (2, 2)
    assert mine.kept_bytes == every.kept_bytes / 3 > 0
    a_pair = every.kept_bytes // 2
    assert [kept_features(data, pool, draws=draws).kept_pairs for draws in (479, 480)] == [0, 4]
    many = kept_features(make_bars(per_class=40 * (2**20 // a_pair + 1) // 2, size=20), pool, cache_megabytes=1)
    assert 0 < many.kept_pairs < 4
    for pair in ((0, 0), (0, 1), (1, 0), (1, 1)):
        many(*pair, picks)
    assert many.kept_bytes <= 2**20


def test_runs_that_share_features_give_what_each_gives_alone(bars, pool, monkeypatch):
    """The second one computes none: only its own loss differs, or the SDR weight, which is another key."""
    alone = [distill(bars, pool, make_config(gamma=gamma), quiet=True).canvas for gamma in (1.0, 0.5)]
    with shared_features(64) as store:
        first = distill(bars, pool, make_config(gamma=1.0), quiet=True).canvas
        stored = store.bytes
        assert stored > 0
        with monkeypatch.context() as patch:
            patch.setattr(RealFeatures, "_compute", None)
            second = distill(bars, pool, make_config(gamma=0.5), quiet=True).canvas
        distill(bars, pool, make_config(beta=0.5), quiet=True)
        assert store.bytes == 2 * stored
    torch.testing.assert_close([first, second], alone, rtol=1e-2, atol=1e-2)


def test_the_store_drops_what_was_not_used_for_longest():
    store = FeatureStore(1)
    third = [torch.zeros(2**20 // 12)]
    for key in "abc":
        store.put(key, third)
    assert store.get("a") is not None
    store.put("d", third)
    assert [store.get(key) is not None for key in "abcd"] == [True, False, True, True]
    store.put("e", [torch.zeros(2**19)])
    assert store.bytes == 0


@pytest.mark.parametrize(("values", "betas"), [({"dm_beta": 0.5}, (None,)), ({"dm_beta": 0.0}, (None, 0.0))])
def test_features_are_collected_once_for_an_equal_weight(values, betas):
    assert make_config(beta=0.5, dm_weight=1.0, **values).loss().betas == betas
