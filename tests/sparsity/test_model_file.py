"""Compressed model files: bit-identical logits in a new process, and a clear error for every kind of damage."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from snn_core.errors import ArgumentError, CheckpointError, StorageError
from snn_core.seeding import seeded
from snn_core.sparsity import check_nm, load_compressed, nm_mask_by_magnitude, read_compressed, save_compressed
from snn_core.sparsity.model_file import _checksum

PATTERNS = {"1": "2:4", "3": "1:8"}


def make_model(seed=0, width=16):
    with seeded(seed):
        return nn.Sequential(
            nn.Conv2d(2, width, 3), nn.Conv2d(width, 16, 3), nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8)
        ).eval()


def prune(model, patterns=PATTERNS):
    masks = {}
    for name, pattern in patterns.items():
        layer = model.get_submodule(name)
        masks[name] = nm_mask_by_magnitude(layer.weight, pattern)
        layer.weight.data.masked_fill_(~masks[name], 0)
    return masks


def test_round_trip_into_a_model(tmp_path):
    model = make_model()
    masks = prune(model)
    written = save_compressed(tmp_path / "m.safetensors", model, PATTERNS, masks, {"accuracy": 0.5})
    loaded = load_compressed(tmp_path / "m.safetensors", make_model(seed=1))
    x = torch.rand(3, 2, 6, 6, generator=torch.Generator().manual_seed(2))
    assert torch.equal(loaded(x), model(x))
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), model.state_dict().values(), strict=True)
    )
    assert read_compressed(tmp_path / "m.safetensors").metadata == {"accuracy": 0.5}
    assert sum(w.nbytes for w in written.weights.values()) < sum(
        model.get_submodule(name).weight.nbytes for name in PATTERNS
    )


def test_backbone_reloads_in_a_new_process_with_identical_logits(tmp_path):
    backbones = pytest.importorskip("snn_core.backbones")
    with seeded(3):
        model = backbones.create("conv-snn", num_classes=10, input_size=(12, 12), channels=(8, 16, 16)).eval()
    patterns = {
        name: "2:4"
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d) and layer.in_channels % 4 == 0
    }
    assert patterns
    prune(model, patterns)
    save_compressed(tmp_path / "model.safetensors", model, patterns)
    frames = torch.randint(0, 4, (3, 5, 2, 12, 12), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    with torch.no_grad():
        logits = model(frames)
    save_file({"frames": frames}, tmp_path / "frames.safetensors")
    script = (
        "import sys, torch; from safetensors.torch import load_file, save_file\n"
        "from snn_core.sparsity import load_compressed\n"
        "model = load_compressed(sys.argv[1]); frames = load_file(sys.argv[2])['frames']\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"
        "with torch.no_grad(): save_file({'logits': model(frames)}, sys.argv[3])\n"
    )
    names = [str(tmp_path / f"{name}.safetensors") for name in ("model", "frames", "logits")]
    subprocess.run([sys.executable, "-c", script, *names], check=True, timeout=120)
    with safe_open(names[2], framework="pt") as source:
        assert torch.equal(source.get_tensor("logits"), logits)
    assert float(logits.abs().max()) > 0
    assert all(check_nm(model.get_submodule(name).weight, "2:4") == 0 for name in patterns)


@pytest.fixture
def saved(tmp_path):
    model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4))
    prune(model, {"0": "2:4"})
    path = tmp_path / "small.safetensors"
    save_compressed(path, model, {"0": "2:4"}, metadata={"note": "x"})
    return path, model


def test_every_flipped_bit_is_an_error_or_harmless(saved):
    path, model = saved
    original = path.read_bytes()
    expected = model.state_dict()
    refused = 0
    for position in range(len(original)):
        damaged = bytearray(original)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        try:
            state = read_compressed(path).state_dict()
        except CheckpointError:
            refused += 1
        else:
            assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert refused > 0.95 * len(original)


def test_truncated_files_are_refused(saved):
    path, _ = saved
    original = path.read_bytes()
    for length in range(0, len(original), 37):
        path.write_bytes(original[:length])
        with pytest.raises(CheckpointError, match=r"small\.safetensors"):
            read_compressed(path)


def rewrite(path, header=None, content=None, tensors=None):
    """The same file with parts replaced and a *correct* checksum: only the structural checks can refuse it."""
    with safe_open(path, framework="pt") as source:
        metadata, values = dict(source.metadata()), {name: source.get_tensor(name) for name in list(source.keys())}
    values |= tensors or {}
    values = {name: value for name, value in values.items() if value is not None}
    metadata |= header or {}
    described = json.loads(metadata["content"])
    described |= content or {}
    metadata["content"] = json.dumps(described)
    metadata["sha256"] = _checksum(metadata["content"], values)
    save_file(values, path, metadata=metadata)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"header": {"format_version": "99"}}, "version '99'"),
        ({"header": {"format": "other"}}, "not a compressed model"),
        ({"tensors": {"0.weight:indices": torch.full((4,), 255, dtype=torch.uint8)}}, r"0\.weight: indices"),
        ({"tensors": {"0.weight:values": torch.zeros(8, 3)}}, r"0\.weight: values"),
        ({"tensors": {"0.weight:values": None}}, "promises"),
        ({"content": {"compressed": {"0.weight": {"pattern": "2:4", "shape": [4, 9]}}}}, r"\[4, 9\]"),
        ({"content": {"compressed": {"0.weight": {"pattern": "9:4", "shape": [4, 8]}}}}, "9:4"),
        ({"content": {"compressed": {"0.weight": {"pattern": "2:4", "shape": "no"}}}}, "promises"),
        ({"content": {"compressed": 3}}, "promises"),
    ],
)
def test_wrong_content_with_a_right_checksum(saved, changes, word):
    path, _ = saved
    rewrite(path, **changes)
    with pytest.raises(CheckpointError, match=word):
        read_compressed(path)


def test_files_that_do_not_fit_the_model(saved):
    path, _ = saved
    with pytest.raises(CheckpointError, match="does not name a backbone"):
        load_compressed(path)
    with pytest.raises(CheckpointError, match=r"0\.bias is"):
        load_compressed(path, nn.Sequential(nn.Linear(8, 5), nn.BatchNorm1d(5)))
    with pytest.raises(CheckpointError, match="unknown"):
        load_compressed(path, nn.Sequential(nn.Linear(8, 4)))
    with pytest.raises(CheckpointError, match="float64"):
        load_compressed(path, nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4)).double())
    rewrite(path, content={"model": {"name": "no-such-net", "options": {}}})
    with pytest.raises(CheckpointError, match="no-such-net"):
        load_compressed(path)
    with pytest.raises(CheckpointError, match="no such file"):
        load_compressed(path.with_name("absent.safetensors"))


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"patterns": {"7": "2:4"}}, "'7'"),
        ({"patterns": {"1": "1:4"}}, "layer '1'"),
        ({"patterns": {"1": "2:4"}, "masks": {"3": torch.ones(8, 64, dtype=torch.bool)}}, "no pattern"),
        ({"patterns": {"1": "2:4"}, "metadata": {"when": object()}}, "JSON"),
    ],
)
def test_bad_arguments_leave_no_file(tmp_path, arguments, word):
    model = make_model()
    prune(model)
    with pytest.raises(ArgumentError, match=word):
        save_compressed(tmp_path / "m.safetensors", model, **arguments)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(saved, monkeypatch):
    path, model = saved
    before = path.read_bytes()

    def full_disk(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full_disk)
    with pytest.raises(StorageError, match="No space left"):
        save_compressed(path, model, {"0": "2:4"})
    assert path.read_bytes() == before
    assert len(list(path.parent.iterdir())) == 1
