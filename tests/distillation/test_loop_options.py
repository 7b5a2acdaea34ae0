"""Options of the loop: micro-batches and processes change nothing, learned frequencies resume, shared views, starts."""

import itertools
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from snn_core.distillation import PEQN, choose_views, distill, shared_augmentation
from snn_core.distillation.initial import initial_frames
from snn_core.errors import ArgumentError
from tests.distillation.conftest import make_bars, make_config, make_pool

RICH = {"time_matching": "coherent", "dm_weight": 0.5, "dm_beta": 0.0, "sigma": "auto", "iterations": 4}


def test_micro_batches_give_the_same_frames(bars, pool):
    config = make_config(ipc=2, draws=2, **RICH)
    whole = distill(bars, pool, config, quiet=True)
    parts = distill(bars, pool, config.model_copy(update={"micro_batch": 5}), quiet=True)
    torch.testing.assert_close(parts.canvas, whole.canvas, rtol=1e-3, atol=1e-3)
    assert parts.history[0]["loss"] == pytest.approx(whole.history[0]["loss"], rel=1e-5)


def test_learned_frequencies_resume_bit_for_bit(bars, pool, tmp_path):
    config = make_config(frequencies="learned", checkpoint_every=3, iterations=6, mu=0.0)
    whole = distill(bars, pool, config, quiet=True)
    random = distill(bars, pool, make_config(iterations=6, mu=0.0), quiet=True)
    assert not torch.equal(whole.canvas, random.canvas)

    class Stop(Exception):
        pass

    from snn_core.distillation import condense

    original, calls = condense._Run.step, []

    def stopping(run):
        if len(calls) == 4:
            raise Stop
        calls.append(1)
        return original(run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(condense._Run, "step", stopping)
        with pytest.raises(Stop):
            distill(bars, pool, config, state_path=tmp_path / "s", quiet=True)
    resumed = distill(bars, pool, config, state_path=tmp_path / "s", resume=True, quiet=True)
    assert torch.equal(resumed.canvas, whole.canvas)
    assert resumed.history == whole.history


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    config = make_config(frequencies="learned", checkpoint_every=2, **RICH)
    result = distill(make_bars(), make_pool(), config, state_path=Path(folder) / "state", quiet=True)
    torch.save([result.canvas, [record["loss"] for record in result.history]], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_that_share_the_classes_give_the_result_of_one(bars, pool, tmp_path):
    # forked: a fresh interpreter would need seconds to import torch
    multiprocessing.start_processes(_process, (str(tmp_path),), nprocs=2, start_method="fork")
    one = distill(bars, pool, make_config(frequencies="learned", checkpoint_every=2, **RICH), quiet=True)
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][0], one.canvas, rtol=1e-3, atol=1e-3)
    assert results[0][1] == pytest.approx([record["loss"] for record in one.history], rel=1e-4)
    assert os.path.isfile(tmp_path / "state")


def test_views_are_shared_seeded_and_start_plain():
    augmentation = shared_augmentation(flip=True, polarity=True, time_shift=0.5, drop=0.3)
    frames = torch.rand(4, 3, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    shifts = [(0, 0), (1, 0), (0, -1), (1, 1)]
    first, again = (
        choose_views(shifts, augmentation, (6, 6), generator=torch.Generator().manual_seed(5)) for _ in range(2)
    )
    assert torch.equal(first[0].apply(frames), frames)
    for one, other in zip(first[1:], again[1:], strict=True):
        seen = one.apply(frames)
        assert torch.equal(seen, other.apply(frames))
        assert torch.equal(seen[:, :1], one.apply(frames[:, :1]))  # the same for every sample, whatever the batch
        assert not torch.equal(seen, frames)
    assert shared_augmentation() is None


def test_augmented_runs_differ_and_are_repeatable(bars, pool):
    plain, first, again = (
        distill(bars, pool, make_config(iterations=4, **options), seed=2, quiet=True).canvas
        for options in ({}, {"polarity": True, "drop": 0.5}, {"polarity": True, "drop": 0.5})
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, plain)


@pytest.mark.parametrize("init", ["herding", "k-centre"])
def test_coreset_starts_are_real_samples_of_their_class(bars, pool, init):
    start = initial_frames(
        bars, make_config(init=init, ipc=2), generator=torch.Generator().manual_seed(0), teachers=pool
    )
    for index, frames in enumerate(start.to(torch.uint8)):
        matches = [i for i, own in enumerate(bars.frames) if torch.equal(own, frames)]
        assert {int(bars.labels[i]) for i in matches} == {index // 2}
    with pytest.raises(ArgumentError, match="teachers: init"):
        initial_frames(bars, make_config(init=init), generator=torch.Generator())


def test_quantizer_without_a_draw():
    initial, generator = torch.tensor([0.4, 1.6, 14.9]), torch.Generator()
    for quantize, expected in (("round", [0.0, 2.0, 15.0]), ("none", [0.4, 1.6, 14.9])):
        quantizer = PEQN(initial, 15, generator=generator, quantize=quantize)
        frames = quantizer()
        torch.testing.assert_close(frames.detach(), torch.tensor(expected))
        frames.sum().backward()
        assert quantizer.canvas.grad.tolist() == [1.0, 1.0, 1.0]
        assert quantizer.export().tolist() == [0, 2, 15]
    with pytest.raises(ArgumentError, match="quantize"):
        PEQN(initial, generator=generator, quantize="floor")


def test_the_rate_falls_to_its_end_without_reaching_nothing(bars, pool):
    from snn_core.distillation.condense import _Run

    for low in (0.0, 0.1):
        config = make_config(iterations=50, learning_rate=1.0, final_learning_rate=low)
        run = _Run(bars, pool, config, 0, torch.device("cpu"), None)
        rates = []
        for run.iteration in range(50):
            rates.append(run._learning_rate())
        assert rates[0] == 1.0
        assert all(later < earlier for earlier, later in itertools.pairwise(rates))
        assert low < rates[-1] < low + 0.01
