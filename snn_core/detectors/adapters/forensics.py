"""Forgery experts that are always on, adversary experts that a light detector switches on: ForensicsSAM's form.

Source: ForensicsSAM, of whose abstract this takes: a frozen image encoder of SAM; forgery experts in every transformer
block; adversary experts in the layers with global attention and in the MLPs, which an adversary detector in RGB
activates. Our choices: every expert is low-rank (LoRA beside ``attn.qkv``, a bottleneck beside the MLP); the detector
is three convolutions; while training it switches softly, in evaluation at one half.
"""

from __future__ import annotations

from torch import Tensor, nn

from snn_core.detectors.adapters.base import Adapter, Host, Pass, adapter_form, beside, features_of, positive
from snn_core.detectors.adapters.bottleneck import Bottleneck
from snn_core.detectors.adapters.lora import LoRA
from snn_core.errors import ArgumentError

#: The detector's first answer is that a picture is clean.
CLEAN = -2.0


class AdversaryDetector(nn.Module):
    """Whether a picture was altered to mislead the network. Its answer goes to ``state.adversary`` and ``state.gate``.

    Args:
        in_channels: of the picture.
        hidden: channels of the convolutions.
        state: of the network.
    """

    def __init__(self, in_channels: int, hidden: int, state: Pass) -> None:
        super().__init__()
        self.state = state
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, hidden, 3, padding=1), nn.GELU(),
            nn.Conv2d(hidden, hidden, 3, stride=2, padding=1), nn.GELU(),
            nn.Conv2d(hidden, hidden, 3, stride=2, padding=1), nn.GELU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(hidden, 1),
        )  # fmt: skip
        nn.init.constant_(self.layers[-1].bias, CLEAN)  # type: ignore[arg-type]

    def forward(self, picture: Tensor) -> None:
        """``[B, C, H, W]``; the logits ``[B]`` are left in the state."""
        logits = self.layers(picture).squeeze(-1)
        self.state.adversary = logits
        self.state.gate = logits.sigmoid() if self.training else (logits > 0).to(logits.dtype)


class Switched(Adapter):
    """An expert times the detector's answer.

    Args:
        expert: any adapter.
        state: where the answer is.
    """

    def __init__(self, expert: Adapter, state: Pass) -> None:
        super().__init__()
        self.expert, self.state = expert, state

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """As the expert."""
        gate = self.state.gate
        if gate is None:
            raise ArgumentError("adapters: an adversary expert was called outside its network, which has the detector")
        delta: Tensor = self.expert(x, y)
        # Windows of one picture are neighbours in the batch.
        gate = gate.repeat_interleave(len(delta) // len(gate))
        return delta * gate.view(-1, *(1,) * (delta.ndim - 1))


@adapter_form("forensics")
def attach_forensics(host: Host, rank: int = 8, hidden: int = 16, detector: int = 8) -> nn.Module:
    """Forgery experts in every block, adversary experts beside global attention and the MLPs, and their detector.

    Args:
        host: the network.
        rank: of the experts beside ``attn.qkv``.
        hidden: channels of those beside ``mlp``.
        detector: channels of the adversary detector.
    """
    positive("rank", rank), positive("hidden", hidden), positive("detector", detector)
    for block in host.blocks.children():
        shape = features_of(block, "attn.qkv", "forensics")
        beside(host, block, "attn.qkv", LoRA(*shape, rank), "forensics")
        beside(host, block, "mlp", Bottleneck(host.width, hidden), "forensics")
        if not getattr(block, "window_size", 0):
            beside(host, block, "attn.qkv", Switched(LoRA(*shape, rank), host.state), "forensics")
        beside(host, block, "mlp", Switched(Bottleneck(host.width, hidden), host.state), "forensics")
    return AdversaryDetector(host.in_channels, detector, host.state)
