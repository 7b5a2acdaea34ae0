"""Spikformer and Spike-driven Transformer: published sizes, and the papers' equations written out plainly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from snn_core.backbones import create
from snn_core.backbones.spikformer import spiking_attention
from snn_core.errors import ArgumentError

TINY: dict[str, dict[str, Any]] = {
    "spikformer": {"embed_dim": 16, "depth": 2, "num_heads": 2, "norm_gain": 2.0},
    "sdt": {"embed_dim": 16, "depth": 2, "norm_gain": 2.0},
}
NAMES = sorted(TINY)


def frames(steps: int = 3, channels: int = 2, size: tuple[int, int] = (16, 12)) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 6, (steps, 2, channels, *size), generator=generator, dtype=torch.uint8)


def settle(model: torch.nn.Module, x: Tensor) -> None:
    """Batch norms take the statistics of ``x``; evaluation mode."""
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = 1.0
    model.train()(x)
    model.eval()


# ---- parameters: the papers' tables, in millions, and the official code, exactly ------------------------------------

#: name: (classes, input channels, parameters the official code calls in its forward, millions in the paper's tables).
PUBLISHED = {
    "spikformer_4_256": (10, 3, 4155178, 4.15),
    "spikformer_2_384": (10, 3, 5765050, 5.76),
    "spikformer_4_384": (10, 3, 9324730, 9.32),
    "spikformer_8_384": (1000, 3, 16816024, 16.81),
    "spikformer_6_512": (1000, 3, 23373352, 23.37),
    "spikformer_8_512": (1000, 3, 29689384, 29.68),
    "spikformer_10_512": (1000, 3, 36005416, 36.01),
    "spikformer_8_768": (1000, 3, 66338632, 66.34),
    "sdt_8_384": (1000, 3, 16816024, 16.81),
    "sdt_8_512": (1000, 3, 29689384, 29.68),
    "sdt_10_512": (1000, 3, 36005416, 36.01),
    "sdt_8_768": (1000, 3, 66338632, 66.34),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name: str) -> None:
    classes, channels, exact, millions = PUBLISHED[name]
    # Nothing is initialised on the meta device: the large ones cost nothing.
    with torch.device("meta"):
        model = create(name, in_channels=channels, num_classes=classes)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == exact
    assert abs(count / 1e6 - millions) < 0.01  # some of the tables' figures are rounded, some cut off


def test_parameters_for_event_frames() -> None:
    """The paper says 2.59 million; its code registers a position embedding and norms that it never calls."""
    with torch.device("meta"):
        model = create("spikformer_2_256", in_channels=2, num_classes=10)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == 2566666
    unused = 64 * 256 + 2 * 256 + 2 * 2 * 2 * 256
    assert round((count + unused) / 1e6, 2) == 2.59


# ---- the equations ---------------------------------------------------------------------------------------------------


def lif(current: Tensor, threshold: float = 1.0) -> Tensor:
    """SpikingJelly's LIF, tau 2, hard reset."""
    v, spikes = torch.zeros_like(current[0]), []
    for x in current:
        v = v + (x - v) / 2
        spikes.append((v >= threshold).to(x.dtype))
        v = v * (1 - spikes[-1])
    return torch.stack(spikes)


class Plain:
    """The weights of a network under their names, used in the official codes' layouts and loops."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.state = model.state_dict()

    def norm(self, name: str, x: Tensor) -> Tensor:
        """Batch norm of ``[..., C]``."""
        mean, var, gain, shift = (
            self.state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / torch.sqrt(var + 1e-5) * gain + shift

    def conv(self, name: str, norm: str, x_seq: Tensor) -> Tensor:
        """3 x 3 convolution and norm of ``[T, B, C, H, W]``."""
        y = torch.stack([F.conv2d(x, self.state[f"{name}.weight"], padding=1) for x in x_seq])
        return self.norm(norm, y.movedim(2, -1)).movedim(-1, 2)

    def linear(self, name: str, norm: str, x: Tensor) -> Tensor:
        """A linear layer and norm of ``[T, B, N, C]``."""
        bias = self.state.get(f"{name}.bias", torch.zeros(()))
        return self.norm(norm, x @ self.state[f"{name}.weight"].flatten(1).T + bias)

    def neurons(self, name: str, x: Tensor) -> Tensor:
        """Linear, norm, neurons."""
        return lif(self.linear(f"{name}.conv", f"{name}.norm", x))


def pooled(x_seq: Tensor) -> Tensor:
    return torch.stack([F.max_pool2d(x, 3, 2, 1) for x in x_seq])


def tokens(x_seq: Tensor) -> Tensor:
    return x_seq.flatten(3).transpose(-1, -2)


def plain_spikformer(model: torch.nn.Module, x: Tensor, heads: int, scale: float) -> Tensor:
    plain = Plain(model)
    for stage in range(4):
        name = f"stem.stages.{stage}"
        x = lif(plain.conv(f"{name}.conv", f"{name}.norm", x))
        x = pooled(x) if stage > 1 else x
    x = tokens(x + lif(plain.conv("stem.position.conv", "stem.position.norm", x)))
    for block in range(len(model.blocks)):
        attention = f"blocks.{block}.attention"
        q, k, v = (plain.neurons(f"{attention}.{part}", x) for part in ("query", "key", "value"))
        out = torch.zeros_like(q)
        for head in range(heads):
            part = slice(head * q.shape[-1] // heads, (head + 1) * q.shape[-1] // heads)
            out[..., part] = (q[..., part] @ k[..., part].transpose(-1, -2) * scale) @ v[..., part]
        x = x + plain.neurons(f"{attention}.projection", lif(out, 0.5))
        x = x + plain.neurons(f"blocks.{block}.fc2", plain.neurons(f"blocks.{block}.fc1", x))
    return x.mean(2).mean(0) @ plain.state["readout.weight"].T + plain.state["readout.bias"]


def plain_sdt(model: torch.nn.Module, x: Tensor) -> Tensor:
    plain = Plain(model)
    for stage in range(3):
        name = f"stem.stages.{stage}"
        x = lif(plain.conv(f"{name}.conv", f"{name}.norm", x))
        x = pooled(x) if stage > 1 else x
    x = pooled(plain.conv("stem.last.conv", "stem.last.norm", x))
    x = tokens(x + plain.conv("stem.position.conv", "stem.position.norm", lif(x)))
    for block in range(len(model.blocks)):
        attention, spikes = f"blocks.{block}.attention", lif(x)
        q, k, v = (plain.neurons(f"{attention}.{part}", spikes) for part in ("query", "key", "value"))
        masked = q * lif((k * v).sum(2, keepdim=True), 0.5)
        x = x + plain.linear(f"{attention}.projection.conv", f"{attention}.projection.norm", masked)
        hidden = plain.linear(f"blocks.{block}.fc1.conv", f"blocks.{block}.fc1.norm", lif(x))
        x = x + plain.linear(f"blocks.{block}.fc2.conv", f"blocks.{block}.fc2.norm", lif(hidden))
    spikes = lif(x.mean(2))
    return (spikes @ plain.state["readout.weight"].T + plain.state["readout.bias"]).mean(0)


@pytest.mark.parametrize("name", NAMES)
def test_the_papers_equations(name: str) -> None:
    torch.manual_seed(0)
    model = create(name, input_transform="none", **TINY[name]).double()
    settle(model, frames().double())
    for parameter in model.parameters():  # biases that are not 0
        parameter.data += 0.05 * torch.randn_like(parameter)
    x = frames().double() / 2
    expected = plain_spikformer(model, x, 2, 0.125) if name == "spikformer" else plain_sdt(model, x)
    assert expected.std() > 0.01
    torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("patches", [3, 20])
def test_both_orders_of_the_attention_product_give_the_same_bits(patches: int) -> None:
    """Of spikes, which both orders only count; d = 8 channels, so 3 patches take one and 20 the other."""
    generator = torch.Generator().manual_seed(2)
    q, k, v = (torch.rand(2, 3, 8, patches, generator=generator).lt(0.4).float() for _ in range(3))
    expected = torch.einsum("...dn,...dm,...em->...en", q, k, v) * 0.125
    assert expected.max() > 0.2
    assert torch.equal(spiking_attention(q, k, v, 0.125), expected)


# ---- features, options -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("stem", "strides"), [("cifar", [1, 2, 4]), ("dvs", [2, 4, 8, 16])])
def test_one_map_a_stride(name: str, stem: str, strides: list[int]) -> None:
    """Of a picture that no stride divides, too."""
    model = create(name, stem=stem, **TINY[name])
    maps = model.forward_features(frames(2, size=(17, 30)))
    assert [info.stride for info in model.feature_info] == strides
    assert [info.channels for info in model.feature_info] == [2, 4, 8, 16][-len(strides) :]
    for info, features in zip(model.feature_info, maps, strict=True):
        assert features.shape == (2, 2, info.channels, -(-17 // info.stride), -(-30 // info.stride))
        assert model.get_submodule(info.name) is not None
    assert model.logits_of(maps[-1]).mean(0).shape == (2, 10)


def test_only_the_first_convolution_of_sdt_sees_anything_but_spikes() -> None:
    model = create("sdt", **TINY["sdt"])
    seen: dict[str, set[float]] = {}
    for name, part in model.named_modules():
        if isinstance(part, (torch.nn.Conv2d, torch.nn.Linear)):
            part.register_forward_pre_hook(
                lambda _, args, name=name: seen.update({name: set(args[0].unique().tolist())})
            )
    model(frames())
    assert len(seen) == 18
    assert [name for name, values in seen.items() if not values <= {0.0, 1.0}] == ["stem.stages.0.conv"]
    assert all(len(values) == 2 for values in list(seen.values())[1:])


@pytest.mark.parametrize("name", NAMES)
def test_pictures_that_are_one_in_memory(name: str) -> None:
    model = create(name, in_channels=3, input_transform="standardise", **TINY[name])
    picture = frames(1, channels=3) * 40
    settle(model, picture.repeat(3, 1, 1, 1, 1))
    expected = model(picture.repeat(3, 1, 1, 1, 1))
    torch.testing.assert_close(model(picture.expand(3, -1, -1, -1, -1)), expected, rtol=1e-5, atol=1e-6)
    assert expected.std() > 0


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("spikformer", {"num_heads": 5}, "num_heads is 5; it must divide embed_dim, 16"),
        ("spikformer", {"stem": "imagenet"}, "stem is 'imagenet'; allowed: cifar, dvs"),
        ("spikformer", {"embed_dim": 12}, "embed_dim is 12; it must be a multiple of 8"),
        ("sdt", {"embed_dim": "16"}, "embed_dim is '16'"),
        ("sdt", {"depth": 0}, "depth is 0"),
        ("sdt", {"mlp_ratio": 0}, "mlp_ratio is 0"),
        ("sdt", {"num_heads": 2}, "no option num_heads"),
    ],
)
def test_bad_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        create(name, **(TINY[name] | options))


@pytest.mark.parametrize("name", NAMES)
def test_a_frame_smaller_than_a_patch(name: str) -> None:
    with pytest.raises(ArgumentError, match="16"):
        create(name, stem="dvs", **TINY[name])(frames(size=(12, 16)))
