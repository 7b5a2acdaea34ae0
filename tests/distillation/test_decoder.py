"""The learned decoder: shapes, what it learns, its draws, and its way through distillation and product file."""

from pathlib import Path

import h5py
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from snn_core.distillation import (
    ClipDecoder,
    DistilledDataset,
    Formation,
    create_method,
    distill,
    evaluate_product,
    learn_decoder,
    write_product,
)
from snn_core.distillation.methods.matched import MatchedMethod
from snn_core.errors import ArgumentError, CheckpointError
from snn_core.seeding import seeded
from tests.distillation.conftest import make_bars, make_config, make_pool
from tests.distillation.test_product import change_product

BINARY = {"formation_space": 2, "formation_digits": 8, "formation_gain": 3, "quantize": "round"}
LEARNED = BINARY | {"decoder": "learned", "decoder_iterations": 12, "decoder_width": 4}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("space", "time"), [(1, 1), (2, 1), (3, 2)])
def test_every_code_cell_moves_its_own_frame_cells_most(space, time):
    with seeded(0):
        decoder = ClipDecoder(2, space, time, width=8)
    codes = torch.zeros(2, 3, 2, 4, 5)
    rates = decoder(codes)
    assert rates.shape == (2, 3 * time, 2, 4 * space, 5 * space)
    assert float(rates.detach().min()) > 0
    # Two 3 x 3 x 3 convolutions: what a cell says reaches two cells around it, and never further.
    codes[0, 0, 1, 0, 0] = 1.0
    changed = (decoder(codes) - rates).detach().abs() > 0
    assert changed[0, : 3 * time, :, : 3 * space, : 3 * space].any()
    assert not changed[1].any()
    assert not changed[0, :, :, 3 * space :].any()
    assert not changed[0, ..., 3 * space :].any()


def test_the_places_of_enlarged_cells_are_those_of_take_apart_and_unfold():
    formation = Formation(space=2, time=2)
    decoder = ClipDecoder(2, 2, 2, width=4)
    with torch.no_grad():  # rates of the last layer's own number alone
        for parameter in decoder.parameters():
            parameter.zero_()
        decoder.last.bias.copy_(torch.arange(16.0) * 3)
    frame = decoder(torch.zeros(1, 1, 2, 1, 1))
    wanted = torch.nn.functional.softplus(torch.arange(16.0) * 3 - 1).view(1, 2, 2, 2, 2)  # time, polarity, row, column
    assert torch.equal(frame, wanted)
    clips = torch.randint(0, 4, (8, 2, 2, 6, 4))
    assert formation.take_apart(formation.encode(clips)).shape == (8, 1, 2, 3, 2)


def test_codes_are_what_is_stored_of_each_clip():
    formation = Formation(space=2, digits=8, gain=3)
    clips = make_bars(per_class=32).frames[:32]
    stored = formation.pack(formation.encode(clips).round().clamp(max=formation.levels))
    assert torch.equal(formation.take_apart(formation.unpack(stored)).float(), formation.codes(clips))
    assert formation.codes(clips[:5]).shape == (5, 3, 2, 5, 5)


def test_learning_finds_the_mean_count_given_the_code():
    data, formation = make_bars(per_class=20), Formation(space=2, digits=8, gain=3)
    with seeded(0):
        decoder = ClipDecoder(2, 2, width=8)
    losses = learn_decoder(decoder, data, formation, generator=generator(), iterations=150, quiet=True)
    assert sum(losses[-20:]) < 0.9 * sum(losses[:20])
    with torch.no_grad():
        rates = decoder(formation.codes(data.frames))
    real = data.frames.float()
    assert float(rates.mean()) == pytest.approx(float(real.mean()), rel=0.1)
    repeated = formation.codes(data.frames).repeat_interleave(2, 3).repeat_interleave(2, 4) * 3
    assert float((rates - real).square().mean()) < 0.5 * float((repeated - real).square().mean())


def test_draws_are_whole_unbiased_and_pass_the_gradient():
    decoder = ClipDecoder(1, width=1)
    rates = torch.full((20000,), 0.3, requires_grad=True)
    counts = decoder.draw(rates, generator=generator())
    assert set(counts.unique().tolist()) == {0.0, 1.0}
    assert float(counts.detach().mean()) == pytest.approx(0.3, abs=0.02)
    counts.sum().backward()
    assert torch.equal(rates.grad, torch.ones(20000))
    rounded = ClipDecoder(1, width=1, draw="round").draw(torch.tensor([0.3, 1.7, 400.0]), generator=generator())
    assert rounded.tolist() == pytest.approx([0.0, 2.0, 255.0])


def test_wrong_arguments_are_named():
    with pytest.raises(ArgumentError, match="width"):
        ClipDecoder(width=0)
    with pytest.raises(ArgumentError, match="draw"):
        ClipDecoder(draw="dither")
    with pytest.raises(ArgumentError, match="decoder"):
        create_method("dc")(make_bars(per_class=32), make_config(**LEARNED))


@pytest.mark.parametrize("matching", [0.0, 0.05])
def test_distilling_with_a_decoder_is_repeatable_and_resumes(tmp_path, matching):
    data, pool = make_bars(per_class=32), make_pool()
    config = make_config(**LEARNED, decoder_matching=matching, iterations=4, checkpoint_every=2)
    whole = distill(data, pool, config, seed=3, quiet=True, state_path=tmp_path / "a")
    again = distill(data, pool, config, seed=3, quiet=True)
    assert whole.frames.equal(again.frames)
    assert whole.decoder is not None
    assert again.decoder is not None
    for name, value in whole.decoder.state_dict().items():
        assert value.equal(again.decoder.state_dict()[name])
        assert value.equal(value.half().float())
    resumed = distill(data, pool, config, seed=3, quiet=True, state_path=tmp_path / "a", resume=True)
    assert resumed.frames.equal(whole.frames)
    assert resumed.decoder is not None
    assert resumed.decoder.first.weight.equal(whole.decoder.first.weight)


def _process(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    config = make_config(**LEARNED, iterations=2)
    result = distill(make_bars(per_class=32), make_pool(), config, seed=3, quiet=True)
    assert result.decoder is not None
    torch.save([result.canvas, result.decoder.state_dict()], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_share_one_decoder(tmp_path):
    # forked: a fresh interpreter would need seconds to import torch
    multiprocessing.start_processes(_process, (str(tmp_path),), nprocs=2, start_method="fork")
    one = distill(make_bars(per_class=32), make_pool(), make_config(**LEARNED, iterations=2), seed=3, quiet=True)
    assert one.decoder is not None
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for name, value in one.decoder.state_dict().items():
        assert torch.equal(results[0][1][name], results[1][1][name])
        torch.testing.assert_close(results[0][1][name], value, rtol=1e-2, atol=1e-2)
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][0], one.canvas, rtol=1e-2, atol=1e-2)


def test_the_loss_changes_what_the_decoder_learns():
    data, pool = make_bars(per_class=32), make_pool()
    learned = [
        distill(data, pool, make_config(**LEARNED | values, iterations=0), quiet=True).decoder
        for values in ({"decoder_matching": 0.0}, {"decoder_matching": 0.5}, {"decoder_matching": 0.5, "gamma": 0.0})
    ]
    weights = [decoder.first.weight for decoder in learned if decoder is not None]
    assert len(weights) == 3
    assert not weights[0].equal(weights[1])
    assert not weights[1].equal(weights[2])


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("pace/no-peqn", {"quantize": "none", "decoder_draw": "round"}),
        ("pace/no-decoder", {"decoder": "repeat"}),
        ("pace/no-decoder-matching", {"decoder_matching": 0.0}),
    ],
)
def test_what_an_ablation_changes_with_a_decoder(name, changed):
    config = make_config(**LEARNED)
    method = create_method(name)
    assert isinstance(method, MatchedMethod)
    before, after = config.model_dump(), method.config_of(config).model_dump()
    assert {key: value for key, value in after.items() if value != before[key]} == changed


def product(**values: object) -> DistilledDataset:
    config = make_config(**LEARNED | values, iterations=0)
    return create_method("pace")(make_bars(per_class=32), config, teachers=make_pool(), seed=5, quiet=True)


def test_without_steps_the_codes_are_those_of_real_clips():
    learned, plain = product(), product(decoder="repeat")
    assert learned.frames.equal(plain.frames)
    assert plain.decoder is None
    assert plain.num_bytes == plain.frames.numel()
    assert learned.decoder is not None
    assert learned.num_bytes == plain.num_bytes + 2 * sum(p.numel() for p in learned.decoder.parameters())


def test_a_product_keeps_its_decoder(tmp_path):
    made = product()
    write_product(tmp_path / "p.h5", made)
    loaded = DistilledDataset.load(tmp_path / "p.h5")
    assert loaded.content_key == made.content_key != product(decoder_matching=0.0).content_key
    clips = loaded.decoded()
    assert clips.frames.equal(made.decoded().frames)
    assert clips.frames.shape == (96, 3, 2, 10, 10)
    assert clips.frames.dtype == torch.uint8
    assert clips.labels.tolist() == [0] * 32 + [1] * 32 + [2] * 32
    # near the real events in number, which zeros or noise would not be
    real = make_bars(per_class=32).frames.float().mean()
    assert 0.5 * real < clips.frames.float().mean() < 2 * real
    write_product(tmp_path / "q.h5", loaded)
    assert (tmp_path / "q.h5").read_bytes() == (tmp_path / "p.h5").read_bytes()
    result = evaluate_product(loaded, make_bars(per_class=4, seed=1), networks=1, quiet=True,
                              config=None, path=tmp_path / "p.h5")  # fmt: skip
    assert result.samples == 96
    assert result.frame_bytes == made.num_bytes


def _change_a_weight(file: h5py.File) -> None:
    file["decoder/first.bias"][0] += 1


def _drop_a_weight(file: h5py.File) -> None:
    del file["decoder/first.bias"]


def _other_shape(file: h5py.File) -> None:
    del file["decoder/last.weight"]
    file["decoder/last.weight"] = torch.zeros(8, 5, 1, 1, 1).half().numpy()


def _nan_weight(file: h5py.File) -> None:
    file["decoder/first.bias"][0] = float("nan")


def _huge_width(file: h5py.File) -> None:
    del file["decoder/first.weight"]
    file.create_dataset("decoder/first.weight", shape=(10**6, 0, 3, 3, 3), dtype="<f2")


def _other_planes(file: h5py.File) -> None:
    frames = file["frames"][:, :, :1]
    del file["frames"]
    file["frames"] = frames


def _a_version_without(file: h5py.File) -> None:
    file.attrs["format_version"] = 1


@pytest.mark.parametrize(
    "change",
    [
        _change_a_weight,
        _drop_a_weight,
        _other_shape,
        _nan_weight,
        _huge_width,
        _other_planes,
        _a_version_without,
    ],
)
def test_a_file_with_a_wrong_decoder_is_refused(tmp_path: Path, change):
    path = tmp_path / "p.h5"
    write_product(path, product())
    change_product(path, change, seal=True)
    with pytest.raises(CheckpointError, match=r"p\.h5"):
        DistilledDataset.load(path)
