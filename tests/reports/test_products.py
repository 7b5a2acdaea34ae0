"""What attention multiplies is counted: accumulations of spikes, multiplications of anything else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snn_core.backbones import create
from snn_core.reports import AC_PICOJOULE, MAC_PICOJOULE, measure_energy

T, B, TOKENS = 2, 3, 4


class Attention(nn.Module):
    """Of what it is given; ``fused``: torch's own, with softmax."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused, self.out = fused, nn.Linear(8, 2, bias=False)
        self.inner = nn.Identity()

    def forward(self, x_seq: Tensor) -> Tensor:
        x = self.inner(x_seq)
        y = F.scaled_dot_product_attention(x, x, x) if self.fused else (x @ x.mT) @ x
        return self.out(y)


def test_accumulations_are_those_where_both_factors_are_spikes() -> None:
    spikes = torch.rand(T, B, TOKENS, 8, generator=torch.Generator().manual_seed(0)).lt(0.4).float()
    report = measure_energy(Attention(fused=False), [spikes[:, :2], spikes[:, 2:]])
    (product,) = report.products
    counts = spikes @ spikes.mT
    first = counts.sum().item()  # one for each pair of spikes that meet
    second = sum(
        float((counts[t, b, i, j] != 0) * spikes[t, b, j].sum())
        for t in range(T) for b in range(B) for i in range(TOKENS) for j in range(TOKENS)
    )  # fmt: skip
    assert product.acs == pytest.approx((first + second) / B)
    assert product.macs == 0
    assert product.dense_macs == 2 * T * TOKENS * TOKENS * 8
    assert product.input_rate == pytest.approx(product.acs / product.dense_macs)
    assert report.synops == sum(layer.acs for layer in report.layers) + product.acs
    everything = [*report.layers, product]
    picojoule = sum(AC_PICOJOULE * layer.acs + MAC_PICOJOULE * layer.macs for layer in everything)
    assert report.energy_microjoule == pytest.approx(picojoule * 1e-6)
    assert report.as_dict()["products"][0]["acs"] == product.acs


@pytest.mark.parametrize("fused", [True, False])
def test_other_values_are_multiplied(fused: bool) -> None:
    x = torch.rand(T, B, TOKENS, 8, generator=torch.Generator().manual_seed(0)) + 0.1
    report = measure_energy(Attention(fused), [x])
    (product,) = report.products
    assert product.macs == product.dense_macs == 2 * T * TOKENS * TOKENS * 8
    assert product.acs == 0


def test_attention_of_backbones() -> None:
    frames = torch.randint(0, 6, (T, B, 2, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    model = create("spikformer", embed_dim=16, depth=2, num_heads=2, norm_gain=2.0)
    report = measure_energy(model, [frames])
    assert [layer.name for layer in report.products] == ["blocks.0.attention", "blocks.1.attention"]
    # 16 patches, heads of 8 channels: of the two orders that with 8 x 8 products.
    assert all(layer.dense_macs == 2 * T * 2 * 16 * 8 * 8 for layer in report.products)
    assert all(layer.macs == 0 for layer in report.products)
    assert measure_energy(create("conv-snn", channels=[4], input_size=[16, 16]), [frames]).products == []


def test_a_vision_transformer_is_measured_by_pictures() -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    options: dict[str, Any] = {"patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2}
    vit = create("vit-tiny", in_channels=1, image_size=16, model_options=options, adapters={"form": "lora", "rank": 2})
    for name, parameter in vit.named_parameters():
        if name.endswith(".up"):  # zeros at the start
            nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    report = measure_energy(vit, [torch.rand(5, 1, 16, 16, generator=torch.Generator().manual_seed(0))])
    assert report.samples == 5
    found = {layer.name.removeprefix("vit.blocks.0."): layer for layer in report.products}
    assert found["attn"].macs == 2 * 17 * 17 * 32  # 16 patches and the class token
    assert found["attn.qkv.adapters.0"].macs == 17 * 2 * (32 + 96)  # weights that no layer holds
    assert {layer.name: layer.kept for layer in report.layers}["vit.blocks.0.mlp.fc1"] == 0.5
