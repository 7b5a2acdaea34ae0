"""The adapter forms: no change at the start, what trains, what each is said to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snn_core.detectors import FrozenViT, footprint, list_adapters, load_trained, trained_state
from snn_core.detectors.adapters import Adapter, Pass
from snn_core.detectors.adapters.base import as_maps, as_tokens
from snn_core.detectors.adapters.forensics import AdversaryDetector, Switched
from snn_core.detectors.adapters.histogram import HistogramAdapter
from snn_core.detectors.adapters.lora import LoRA
from snn_core.detectors.adapters.mixture import ConvExperts, LoRAExperts, Router
from snn_core.errors import ArgumentError, CheckpointError
from tests.detectors.networks import pictures, tiny, tiny_sam


@pytest.mark.parametrize("make", [tiny, tiny_sam])
@pytest.mark.parametrize("form", list_adapters())
def test_a_new_form_changes_nothing_and_all_of_it_trains(form: str, make: Any) -> None:
    # All experts serve: of one that does not, nothing would be learned in the one step here.
    spec = {"form": form, "ranks": (2, 2, 2), "top_k": 3} if form == "mixture" else form
    plain, vit = make(num_classes=0), make(num_classes=0, adapters=spec)
    x = pictures() if make is tiny else torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(plain.eval()(x), vit.eval()(x))
    first = footprint(plain), footprint(vit)
    assert first[0].trained == 0 < first[1].trained
    optimizer = torch.optim.SGD([p for p in vit.parameters() if p.requires_grad], lr=0.5)
    features, more = vit.train().forward_detector(x)
    # Both losses: of the features, and what the form leaves beside them.
    loss = sum(f.square().mean() for f in features) + more["balance"] + more.get("adversary", x.new_zeros(1)).sum()
    loss.backward()
    optimizer.step()
    assert not torch.allclose(plain(x), vit.eval()(x))
    vit.train()
    optimizer.zero_grad()
    sum(f.square().mean() for f in vit.forward_features(x)).backward()
    # Behind a zero nothing learns at first; after one step everything but a router that serves alone does.
    silent = [name for name, p in vit.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not silent, silent


def test_forms_stand_together_and_are_copied_and_saved() -> None:
    forms = list_adapters()
    vit, again = tiny(adapters=forms), tiny(adapters=forms, seed=7)
    with torch.no_grad():
        for value in trained_state(vit).values():
            assert value.device.type == "cpu"
        for parameter in vit.parameters():
            parameter.add_(0.05 if parameter.requires_grad else 0)
    x, state = pictures(), trained_state(vit)
    assert not torch.equal(vit.eval()(x), again.eval()(x))
    again.load_state_dict(vit.state_dict() | {})
    assert torch.equal(vit(x), again(x))
    other = tiny(adapters=forms)
    load_trained(other, state)
    assert torch.equal(vit(x), other.eval()(x))
    with pytest.raises(CheckpointError, match=r"missing: vit\.head\.bias"):
        load_trained(other, {k: v for k, v in state.items() if k != "vit.head.bias"})
    with pytest.raises(CheckpointError, match="unexpected: more"):
        load_trained(other, state | {"more": x})
    with pytest.raises(CheckpointError, match=r"vit.head.bias is \[2\], the model's \[10\]"):
        load_trained(other, state | {"vit.head.bias": torch.zeros(2)})


def test_lora_is_a_change_of_the_weight() -> None:
    layer, x = LoRA(6, 4, 2, 0.5), torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0))
    nn.init.normal_(layer.up)
    torch.testing.assert_close(layer(x, x), F.linear(x, 0.5 * layer.up @ layer.down))
    vit = tiny(adapters={"form": "lora", "rank": 2, "alpha": 6.0, "targets": ["mlp.fc2"]})
    (one, two) = [module for module in vit.modules() if isinstance(module, LoRA)]
    assert one.scaling == two.scaling == 3.0
    assert one.down.shape == (2, 128)


def test_router_takes_the_top_k_and_balances() -> None:
    state = Pass()
    router = Router(4, 3, 2, state)
    x = torch.randn(50, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    nn.init.normal_(router.linear.weight, generator=torch.Generator().manual_seed(1))
    gates = router(x)
    probability = router.linear(x.mean((1, 2))).softmax(-1)
    assert ((gates > 0).sum(1) == 2).all()
    smallest = F.one_hot(probability.argmin(1), 3).bool()
    torch.testing.assert_close(gates, probability.masked_fill(smallest, 0))
    share = (gates > 0).float().mean(0) / 2
    torch.testing.assert_close(state.losses[0], 3 * (share * probability.mean(0)).sum())
    router.eval()(x)
    assert len(state.losses) == 1


def test_balance_loss_spreads_the_pictures() -> None:
    state, generator = Pass(), torch.Generator().manual_seed(0)
    router, x = Router(4, 4, 1, state), torch.randn(64, 1, 4, generator=generator)
    with torch.no_grad():
        router.linear.bias[0] = 5.0
    optimizer = torch.optim.Adam(router.parameters(), lr=0.3)
    assert (router(x) > 0).float().mean(0).max() > 0.9
    for _ in range(60):
        state.losses.clear()
        router(x)
        optimizer.zero_grad()
        state.losses[0].backward()
        optimizer.step()
    assert (router(x) > 0).float().mean(0).max() < 0.6


def test_lora_experts_are_the_weighted_sum_of_each() -> None:
    experts = LoRAExperts(6, 4, (1, 2, 3), 2, Pass())
    nn.init.normal_(experts.up)
    x = torch.randn(5, 7, 6, generator=torch.Generator().manual_seed(0))
    gates = experts.router(x)
    total, at = torch.zeros(5, 7, 4), 0
    for number, rank in enumerate((1, 2, 3)):
        part = slice(at, at + rank)
        total += gates[:, number].view(-1, 1, 1) * F.linear(F.linear(x, experts.down[part]), experts.up[:, part])
        at += rank
    torch.testing.assert_close(experts(x, x), total)


def test_conv_experts_see_neighbours_only_as_far_as_their_kernel() -> None:
    state = Pass()
    state.begin(1, (5, 5))
    for kernel, reach in ((1, 1), (3, 9), (5, 25)):
        experts = ConvExperts(4, 2, (kernel,), 1, state)
        nn.init.normal_(experts.up.weight)
        x = torch.zeros(1, 26, 4, requires_grad=True)
        experts(x, x)[0, 1 + 12].sum().backward()  # the middle
        assert x.grad is not None
        # The router sees all tokens, but serves alone: its gate is 1 whatever it sees.
        assert (x.grad[0].abs().sum(1) > 0).sum() == reach
        assert experts(x, x)[:, 0].abs().sum() == 0


def test_adversary_experts_are_switched_by_the_detector() -> None:
    vit = tiny(adapters="forensics", num_classes=0)
    detector = next(module for module in vit.modules() if isinstance(module, AdversaryDetector))
    switched = [module for module in vit.modules() if isinstance(module, Switched)]
    plain = vit.eval()(pictures())
    with torch.no_grad():
        for module in switched:
            for parameter in module.parameters():
                parameter.fill_(0.1)
    assert torch.equal(vit(pictures()), plain)  # clean by its first answer
    with torch.no_grad():
        detector.layers[-1].bias.fill_(5.0)
    assert not torch.allclose(vit(pictures()), plain)
    assert (vit.forward_detector(pictures())[1]["adversary"] > 0).all()
    # SAM: only the block of global attention has one beside attention; both have one beside the MLP.
    sam = tiny_sam(adapters="forensics")
    names = [name for name, module in sam.named_modules() if isinstance(module, Switched)]
    assert ["attn" in name for name in names].count(True) == 1
    assert all("blocks.1" in name for name in names if "attn" in name)
    assert len(names) == 3
    with pytest.raises(ArgumentError, match="outside its network"):
        switched[0](torch.zeros(1, 2, 32), torch.zeros(1, 2, 96))


def test_gate_of_a_picture_reaches_its_windows() -> None:
    class One(Adapter):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.ones_like(y)

    state = Pass()
    state.gate = torch.tensor([0.0, 1.0])
    y = torch.zeros(6, 3, 3, 2)
    assert Switched(One(), state)(y, y).amax((1, 2, 3)).tolist() == [0, 0, 0, 1, 1, 1]


def test_histograms_count_the_neighbourhood() -> None:
    adapter = HistogramAdapter(4, 1, 3, Pass())  # centres -1, 0, 1
    maps = torch.full((1, 1, 3, 3), -1.0)
    maps[..., 2] = 1.0
    counts = adapter.histograms(maps)[0, :, 1, 1]
    assert counts[0] > 2 / 3 - 1e-6
    torch.testing.assert_close(counts[0] - counts[2], torch.tensor((6 - 3) / 9 * (1 - torch.tensor(-4.0).exp().item())))
    torch.testing.assert_close(adapter.histograms(maps.flip(-1)), adapter.histograms(maps).flip(-1))


def test_tokens_and_maps() -> None:
    state = Pass()
    state.begin(2, (2, 3))
    tokens = torch.randn(4, 8, 5)
    maps, prefix = as_maps(tokens, state)
    assert maps[1, :, 1, 2].equal(tokens[1, 2 + 5])
    assert as_tokens(maps, prefix, tokens).equal(tokens)
    windows = torch.randn(4, 2, 3, 5)
    assert as_tokens(*as_maps(windows, state), windows).equal(windows)
    assert as_maps(tokens[:, 2:], state)[1] is None
    with pytest.raises(ArgumentError, match="7 tokens are no grid of 2 x 3 and 2"):
        as_maps(tokens[:, 1:], state)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("lorra", "did you mean lora"),
        ({"form": "lora", "rnk": 1}, "no option 'rnk'.*did you mean rank"),
        ({"rank": 1}, "form is None"),
        ({"form": "lora", "alpha": "2"}, "lora: alpha is '2'; it must be a finite number or None"),
        ({"form": "lora", "rank": 0}, "rank is 0"),
        ({"form": "lora", "targets": ["attn.qvk"]}, "beside 'attn.qvk'.*nearest: attn.qkv"),
        ({"form": "lora", "targets": ["mlp"]}, "beside linear layers, and 'mlp' is a Mlp"),
        ({"form": "bottleneck", "hidden": 1.5}, "hidden is 1.5"),
        ({"form": "mixture", "top_k": 5}, "top_k is 5; allowed: 1 to the 4"),
        ({"form": "mixture", "kernels": [2]}, "odd"),
        ({"form": "mixture", "kernels": [], "ranks": []}, "no expert"),
    ],
)
def test_bad_specifications_are_explained(spec: Any, said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        tiny(adapters=spec)


def test_a_refused_form_leaves_the_network_as_it_was() -> None:
    vit = tiny()
    before = [name for name, _ in vit.named_modules()]
    with pytest.raises(ArgumentError):
        vit.adapt({"form": "lora", "targets": ["attn.qkv", "no"]})
    assert isinstance(vit, FrozenViT)
    assert [name for name, _ in vit.named_modules()] == before
