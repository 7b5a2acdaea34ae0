"""Fused networks give the outputs of the masked dense network."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snn_core import IF, LIF, PLIF, reset_net
from snn_core.backbones import create
from snn_core.datasets import FrameDataset
from snn_core.errors import ArgumentError
from snn_core.kernels.native import cpu_library
from snn_core.pruning import create_pruner
from snn_core.sparsity import CompressedLayer, compress, fuse, kept_layers, make_nm, nm_mask_by_magnitude
from snn_core.sparsity.fused import Pool, ReadOut, SpikingLayer, Synapses, Unpack
from snn_core.sparsity.inference import FusedRun

BACKENDS = ["reference", pytest.param("auto", marks=pytest.mark.skipif(
    not cpu_library().available, reason=cpu_library().reason))]  # fmt: skip


def make_exact(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights that are multiples of 1/16, and norms that scale by powers of two: all sums are exact in float32, so that
    outputs do not depend on the order in which they are formed and can be compared bit for bit."""
    generator = torch.Generator().manual_seed(seed)

    def draw(like: Tensor, largest: int, unit: float) -> Tensor:
        return torch.randint(-largest, largest + 1, like.shape, generator=generator) * unit

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                module.weight.copy_(draw(module.weight, 12, 1 / 16))
                if module.bias is not None:
                    module.bias.copy_(draw(module.bias, 8, 1 / 16))
            elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                if module.running_mean is None or module.running_var is None:
                    continue
                module.eps = 0.0
                module.running_mean.copy_(draw(module.running_mean, 8, 1 / 8))
                module.running_var.copy_(4.0 ** torch.randint(-1, 2, module.running_var.shape, generator=generator))
                module.weight.copy_(2.0 ** torch.randint(-1, 2, module.weight.shape, generator=generator))
                module.bias.copy_(draw(module.bias, 8, 1 / 8) + 0.25)
    return model.eval()


def counts(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.poisson(torch.full(shape, 0.3), generator=generator).to(torch.uint8)


def rates_of(model: nn.Module, x: Tensor) -> list[float]:
    """Firing rate of every neuron module, so that a test on silent or saturated neurons fails."""
    rates: list[float] = []
    hooks = [
        module.register_forward_hook(lambda _, args, output: rates.append(float(output.mean())))
        for module in model.modules()
        if hasattr(module, "v_threshold")
    ]
    model(x)
    for hook in hooks:
        hook.remove()
    return rates


def pruned_convnet(**options: Any) -> nn.Module:
    """A masked conv-snn: its first layer and its read-out are dense, the others 2:4."""
    defaults = {"input_transform": "none", "input_size": (18, 18), "channels": (8, 16, 24)}
    model = make_exact(create("conv-snn", **(defaults | options)))
    names = [f"blocks.{index}.conv" for index in range(1, len(model.blocks))]
    return make_nm(model, "2:4", include=names, inplace=True).eval()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"neuron": "if"},
        {"neuron": "plif"},
        {"pool": "avg"},
        {"channels": (12, 12, 20)},
        {"channels": (8, 8), "stem_kernel": 3, "stem_stride": 1},
        {"channels": (8,), "input_size": (5, 7)},
        {"in_channels": 8, "channels": (8, 16), "input_size": (9, 9)},
    ],
    ids=str,
)
@torch.no_grad()
def test_fused_convnet_is_bit_for_bit_the_masked_dense_network(options: dict[str, Any], backend: str) -> None:
    model = pruned_convnet(**options) if len(options.get("channels", "abc")) > 1 else make_exact(
        create("conv-snn", input_transform="none", **options)
    )  # fmt: skip
    x = counts(5, 3, model.in_channels, *model.input_size)
    expected = model.forward_steps(x)
    assert all(0.02 < rate < 0.9 for rate in rates_of(model, x))
    small = compress(model) if any(hasattr(module, "mask") for module in model.modules()) else model
    fast = fuse(small, backend=backend)
    assert torch.equal(fast.forward_steps(x), expected)
    assert torch.equal(fast(x), model(x))
    assert torch.equal(fast.forward_steps(x.float()), expected)
    assert torch.equal(fuse(model, backend=backend).forward_steps(x), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int8])
@torch.no_grad()
def test_stored_dtypes(dtype: torch.dtype, backend: str) -> None:
    model = pruned_convnet()
    x = counts(4, 2, 2, 18, 18)
    small = compress(model, dtype=dtype)
    dense = copy.deepcopy(model)
    for name, layer in small.named_modules():
        if isinstance(layer, CompressedLayer):
            dense.get_submodule(name).weight.copy_(layer.weight.to_dense(torch.float32))
    # int8: the scales are no powers of two, so sums are rounded, but no potential here comes near its threshold.
    torch.testing.assert_close(fuse(small, backend=backend)(x), dense(x), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_real_recordings_and_weights(digits_small_test: FrameDataset) -> None:
    """Sums in another order: potentials agree to rounding, and hardly any spike falls on the other side."""
    model = create("conv-snn", channels=[16, 32, 32], norm_gain=4.0)
    x = digits_small_test.frames[:30].transpose(0, 1)
    for _ in range(10):
        model.train()(x)
    model = make_nm(model.eval(), "2:4", include=["blocks.1*", "blocks.2*"])
    assert all(0.02 < rate < 0.9 for rate in rates_of(model, x))
    expected, logits = model.forward_steps(x), fuse(compress(model)).forward_steps(x)
    near = torch.isclose(logits, expected, rtol=1e-5, atol=1e-5).all(-1)
    assert near.float().mean() > 0.95
    torch.testing.assert_close(logits, expected, rtol=0, atol=0.2)


@torch.no_grad()
def test_parts_of_a_fused_network() -> None:
    fast = fuse(compress(pruned_convnet()), strict=True)
    (run,) = [module for module in fast.modules() if isinstance(module, FusedRun)]
    kinds = [type(part).__name__ for part in run.parts]
    assert kinds == ["SpikingLayer", "Pool", "SpikingLayer", "Pool", "SpikingLayer", "Pool", "Flat", "ReadOut"]
    assert kept_layers(fast) == ()
    assert not any(parameter.requires_grad for parameter in fast.parameters())


@torch.no_grad()
def test_compressed_weights_are_shared_and_small() -> None:
    small = compress(pruned_convnet(channels=(8, 64, 64)), dtype=torch.bfloat16)
    fast = fuse(small)
    layers = [module for module in small.modules() if isinstance(module, CompressedLayer)]
    synapses = [module for module in fast.modules() if isinstance(module, Synapses) and module.pattern is not None]
    assert len(synapses) == len(layers) == 2
    for layer, part in zip(layers, synapses, strict=True):
        assert part.values.data_ptr() == layer.values.data_ptr()
        tensors = (part.values, part.indices, part.scale)
        resident = sum(tensor.nbytes for tensor in tensors if tensor is not None)
        assert resident <= 0.6 * 2 * torch.Size(layer.shape).numel()


# ---- other chains ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_plain_sequential_keeps_its_state_until_reset(backend: str) -> None:
    model = make_exact(nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), LIF(v_reset=None), nn.MaxPool2d(3, 2, 1),
        nn.Sequential(nn.Conv2d(8, 16, 3, stride=2, dilation=2, bias=False), nn.Identity(), IF(v_threshold=2.0)),
        nn.Flatten(), nn.Linear(16 * 9, 24), nn.Dropout(0.5), PLIF(), nn.Linear(24, 8), LIF(decay_input=False),
    ))  # fmt: skip
    x = counts(7, 2, 19, 19).float()
    fast = fuse(model, backend=backend, strict=True)
    rates = rates_of(model, x)
    assert all(0.02 < rate < 0.95 for rate in rates), rates
    reset_net(model)
    first = [model(x), model(x[:3])]
    assert not torch.equal(first[0][:3], first[1])
    assert torch.equal(fast(x), first[0])
    assert torch.equal(fast(x[:3]), first[1])
    assert torch.equal(copy.deepcopy(fast)(x), copy.deepcopy(model)(x))
    reset_net(fast)
    assert torch.equal(fast(x), first[0])


@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_linear_layers_take_any_batch_dimensions(backend: str) -> None:
    model = make_exact(nn.Sequential(nn.Linear(20, 32), LIF(), nn.Linear(32, 12, bias=False), LIF(), nn.Linear(12, 4)))
    model = make_nm(model, "2:4", include=["0", "2"])
    fast = fuse(compress(model), backend=backend)
    for shape in ((6, 20), (6, 3, 20), (6, 2, 3, 20), (6, 0, 20)):
        for binary in (False, True):  # spikes into a compressed layer are packed
            x = counts(*shape)
            x = (x > 0).float() if binary else x.float()
            reset_net(model), reset_net(fast)
            assert torch.equal(fast(x), model(x))


@torch.no_grad()
def test_single_steps() -> None:
    model = make_exact(nn.Sequential(nn.Conv2d(8, 16, 3), LIF(step_mode="s"), nn.Conv2d(16, 8, 3), LIF(step_mode="s")))
    fast = fuse(model)
    for step in (counts(6, 3, 8, 9, 9) > 0).float():
        assert torch.equal(fast(step), model(step))


@torch.no_grad()
def test_compressed_linear_behind_images() -> None:
    """Its blocks follow the order (C, H, W), the bits lie as (H, W, C)."""
    model = make_exact(nn.Sequential(nn.Conv2d(2, 8, 3), LIF(), nn.Flatten(), nn.Linear(8 * 25, 16), LIF()))
    model = make_nm(model, "2:4", include=["3"])
    x = counts(4, 2, 7, 7).float()
    assert torch.equal(fuse(compress(model), strict=True)(x), model(x))


class Residual(nn.Module):
    """A model with a forward of its own: sums of spikes are no spikes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), LIF())
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), LIF())
        self.alone = nn.Conv2d(8, 8, 1)
        self.head = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8 * 16, 5))

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.stem(x)
        return self.head(self.alone(self.body(spikes + self.body(spikes))))


@torch.no_grad()
def test_what_does_not_fit_runs_as_it_did() -> None:
    model = make_nm(make_exact(Residual()), "2:4", include=["body*", "alone"])
    x = counts(4, 2, 8, 8).float()
    fast = fuse(compress(model))
    assert torch.equal(fast(x), model(x))
    assert isinstance(fast.stem, FusedRun)
    assert isinstance(fast.body, FusedRun)
    assert [layer.name for layer in kept_layers(fast)] == ["alone", "head.2"]
    with pytest.raises(ArgumentError, match="alone"):
        fuse(model, strict=True)


@torch.no_grad()
def test_layers_that_cannot_be_folded_end_a_run() -> None:
    """Norms without running statistics, other poolings, neurons whose potentials are asked for."""
    for middle, kept in (
        ([nn.BatchNorm2d(8, track_running_stats=False), LIF()], ["0", "2"]),
        ([LIF(store_v_seq=True)], ["0", "1"]),
        ([nn.GroupNorm(2, 8), LIF()], ["0", "2"]),
    ):
        layers = [nn.Conv2d(2, 8, 3), *middle, nn.Conv2d(8, 8, 3), LIF(), nn.MaxPool2d(2, ceil_mode=True)]
        model = make_exact(nn.Sequential(*layers))
        x = counts(3, 2, 9, 9).float()
        fast = fuse(model)
        assert [layer.name for layer in kept_layers(fast)] == kept
        assert torch.equal(fast(x), model(x))


@torch.no_grad()
def test_spikingjelly_networks() -> None:
    pytest.importorskip("spikingjelly")
    from spikingjelly.activation_based import functional, layer, neuron

    model: Any = make_exact(nn.Sequential(
        layer.Conv2d(2, 8, 3, padding=1, bias=False), layer.BatchNorm2d(8), neuron.LIFNode(), layer.MaxPool2d(2),
        layer.Conv2d(8, 16, 3, padding=1), layer.BatchNorm2d(16), neuron.IFNode(v_reset=None), layer.MaxPool2d(2, 2),
        layer.Flatten(), layer.Dropout(0.5), layer.Linear(16 * 4, 12), neuron.ParametricLIFNode(), layer.Linear(12, 3),
    ))  # fmt: skip
    functional.set_step_mode(model, "m")
    x = counts(5, 3, 2, 8, 8).float()
    for index in (4, 10):
        model[index].weight.mul_(nm_mask_by_magnitude(model[index].weight, "2:4"))
    fast = fuse(compress(model, {"4": "2:4", "10": "2:4"}), strict=True)
    expected = model_outputs(model, x, functional)
    assert all(torch.equal(a, b) for a, b in zip(model_outputs(fast, x, functional), expected, strict=True))
    assert not torch.equal(expected[0], expected[1])


def model_outputs(model: nn.Module, x: Tensor, functional: Any) -> list[Tensor]:
    """Two calls with the state of the first, one after a reset."""
    outputs = [model(x), model(x)]
    functional.reset_net(model)
    return [*outputs, model(x)]


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_hooks_are_not_fused_away() -> None:
    model = create("conv-snn", channels=[8, 16, 16])
    create_pruner("random", model)
    fast = fuse(model)
    assert {layer.name for layer in kept_layers(fast)} >= {"blocks.1.conv", "blocks.1.neuron"}
    assert "pruner" in kept_layers(fast)[0].reason
    x = counts(2, 2, 2, 34, 34)
    with torch.no_grad():
        assert torch.allclose(fast(x), model.eval()(x), atol=1e-5)


@pytest.mark.parametrize(
    ("model", "word"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.ReLU()), "0 .Linear."),
        (nn.Identity(), "no layers"),
        (nn.Sequential(nn.Conv1d(4, 4, 1), LIF()), "LIF"),
        ("net", "model is a str"),
    ],
)
def test_nothing_to_fuse_is_said(model: Any, word: str) -> None:
    with pytest.raises(ArgumentError, match=word):
        fuse(model)


def test_bad_calls() -> None:
    fast = fuse(nn.Sequential(nn.Conv2d(2, 8, 3), LIF()))
    with pytest.raises(ArgumentError, match="must be"):
        fast(torch.zeros(3, 2, 2, 9, 9))
    fast(torch.zeros(3, 2, 9, 9))
    with pytest.raises(ArgumentError, match="reset_net"):
        fast(torch.zeros(3, 2, 8, 8))
    with pytest.raises(ArgumentError, match="dtypes"):
        fast.half()
    assert fast.to("cpu")(torch.zeros(3, 2, 9, 9)).shape == (3, 8, 7, 7)
    with pytest.raises(ArgumentError, match="expected"):
        fuse(create("conv-snn", channels=[8]))(torch.zeros(2, 2, 2, 9, 9, dtype=torch.uint8))
    with pytest.raises(ArgumentError, match="backend"):
        fuse(nn.Sequential(nn.Conv2d(2, 8, 3), LIF()), backend="fast")


def test_the_model_is_left_as_it_was() -> None:
    model = pruned_convnet().train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    x = counts(3, 2, 2, 18, 18)
    fuse(model)(x)
    assert model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(block.neuron.v is None for block in model.blocks)
    assert {Pool, ReadOut, SpikingLayer, Unpack} & {type(module) for module in model.modules()} == set()
