"""A learned decoder of small clips: from coarse codes of few bits to rates of events, drawn as whole counts.

Several clips in the digits of one sample (:mod:`snn_core.distillation.formation`) are small and coarse; repeating their
cells gives blocks that no sensor makes, and a network trained on them meets other frames than it is tested on. Here two
three-dimensional convolutions, learned once for the whole set on the real data, say what rate of events a code stands
for, and PEQ-N draws counts from the rates::

    r = softplus(W3 * relu(W2 * relu(W1 * code)) - 1)           [T, 2, H, W], events a cell
    L = mean(r - x log r) + w L_ST-SM(features(x), features(PEQ-N(r)))

for every real clip ``x`` and its own code: the negative log-likelihood of Poisson counts (whose minimum is the mean
count given the code), and ST-SM between the features of the two, clip by clip. A few thousand weights serve all classes
and cannot hold any clip. The decoder is this project's addition; learned decoders of condensed sets that share what
samples have in common are known from HaBa (Liu et al., "Dataset Distillation via Factorization", NeurIPS 2022).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snn_core.datasets import FrameDataset
from snn_core.distillation.formation import Formation
from snn_core.distillation.quantizer import MAX_LEVELS, probabilistic_quantize
from snn_core.errors import ArgumentError, InterruptedRunError, NonFiniteError
from snn_core.interrupt import deferred_interrupt
from snn_core.progress import progress

Draw = Literal["probabilistic", "round"]
#: Real clips [B, T, P, H, W] and whole counts drawn for the same clips (with gradient) -> scalar loss.
PairedLoss = Callable[[Tensor, Tensor], Tensor]
#: Real clips a step.
DECODER_BATCH = 24
_KERNEL = 3
_CHUNK = 50  # clips a pass
_TINY = 1e-6
#: Of softplus: what silent weights say is a rate of .31, not .69; frames are nearly empty.
_SHIFT = 1.0


class ClipDecoder(nn.Module):
    """Codes ``[N, T / time, P, H / space, W / space]`` of small counts -> rates ``[N, T, P, H, W]``, at least 0.

    Args:
        planes: P, polarities. space, time: how many times smaller a code is, as in :class:`Formation`.
        width: channels of the two hidden layers. draw: how :meth:`draw` makes counts of rates: PEQ-N, or rounding.

    Raises:
        ArgumentError: a number below 1, an unknown ``draw``.
    """

    def __init__(
        self, planes: int = 2, space: int = 1, time: int = 1, *, width: int = 16, draw: Draw = "probabilistic"
    ) -> None:
        super().__init__()
        if min(planes, space, time, width) < 1:
            raise ArgumentError(
                f"planes ({planes}), space ({space}), time ({time}) and width ({width}) must be at least 1"
            )
        if draw not in get_args(Draw):
            raise ArgumentError(f"draw is {draw!r}; allowed: {', '.join(get_args(Draw))}")
        self.planes, self.space, self.time, self.how = planes, space, time, draw
        self.first = nn.Conv3d(planes, width, _KERNEL, padding=_KERNEL // 2)
        self.second = nn.Conv3d(width, width, _KERNEL, padding=_KERNEL // 2)
        self.last = nn.Conv3d(width, time * planes * space**2, 1)

    def forward(self, codes: Tensor) -> Tensor:
        """Rates of float ``codes``; differentiable in both."""
        hidden = F.relu(self.second(F.relu(self.first(codes.transpose(1, 2)))))
        values = self.last(hidden)  # [N, time * P * space^2, T / time, h, w]
        n, s = self.time, self.space
        number, _, steps, height, width = values.shape
        values = values.reshape(number, n, self.planes, s, s, steps, height, width)
        values = values.permute(0, 5, 1, 2, 6, 3, 7, 4).reshape(number, steps * n, self.planes, height * s, width * s)
        return F.softplus(values - _SHIFT)

    def draw(self, rates: Tensor, *, generator: torch.Generator, rows_of: tuple[int, int] | None = None) -> Tensor:
        """Whole counts of at most 255 for ``rates``, with a straight-through gradient.

        ``rows_of``: as :func:`snn_core.distillation.probabilistic_quantize`.
        """
        if self.how == "probabilistic":
            return probabilistic_quantize(rates, MAX_LEVELS, generator=generator, rows_of=rows_of)
        return rates + (rates.detach().round().clamp(max=MAX_LEVELS) - rates.detach())

    @torch.no_grad()
    def decode(self, codes: Tensor, *, generator: torch.Generator) -> Tensor:
        """Codes of any dtype -> uint8 frames ``[N, T, P, H, W]``, a few clips at a time."""
        parts = [self.draw(self(part.float()), generator=generator).to(torch.uint8) for part in codes.split(_CHUNK)]
        return torch.cat(parts)

    @torch.no_grad()
    def store_as_half_(self) -> None:
        """Round all weights to what float16 holds: a product stores them so, and decodes as the loop did."""
        for parameter in self.parameters():
            parameter.copy_(parameter.half())

    def half_tensors(self) -> dict[str, Tensor]:
        """Weights by name, float16 on the CPU."""
        return {name: value.detach().half().cpu() for name, value in self.state_dict().items()}

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights as they are stored."""
        return 2 * sum(parameter.numel() for parameter in self.parameters())

    def extra_repr(self) -> str:
        return f"planes={self.planes}, space={self.space}, time={self.time}, draw={self.how}"


def learn_decoder(
    decoder: ClipDecoder,
    dataset: FrameDataset,
    formation: Formation,
    *,
    generator: torch.Generator,
    iterations: int = 600,
    batch_size: int = DECODER_BATCH,
    learning_rate: float = 3e-3,
    paired_loss: PairedLoss | None = None,
    quiet: bool = False,
    device: torch.device | str = "cpu",
) -> list[float]:
    """Fit ``decoder`` to all clips of ``dataset`` and their codes under ``formation``, in place.

    Args:
        decoder: on ``device``. dataset: real clips. formation: makes the codes (:meth:`Formation.codes`).
        generator: of batches and draws, on the CPU. iterations, batch_size, learning_rate: of Adam, whose rate falls
            linearly to 0. paired_loss: added to the likelihood, already weighed; None: the likelihood alone.

    Returns:
        The loss of every iteration.

    Raises:
        NonFiniteError: the loss is not finite; the message says where. InterruptedRunError: Ctrl-C or SIGTERM.
    """
    optimizer = torch.optim.Adam(decoder.parameters(), learning_rate)
    losses: list[float] = []
    with deferred_interrupt() as interrupted:
        for step in progress(range(iterations), description="decoder", quiet=quiet):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * (1 - step / iterations)
            picks = torch.randint(len(dataset), (batch_size,), generator=generator)
            clips = dataset.frames[picks]
            real, codes = clips.to(device).float(), formation.codes(clips).to(device)
            rates = decoder(codes)
            loss = (rates - real * (rates + _TINY).log()).mean()
            if paired_loss is not None:
                loss = loss + paired_loss(real, decoder.draw(rates, generator=generator))
            losses.append(loss.item())
            if not torch.isfinite(loss):
                raise NonFiniteError(f"decoder: the loss is not finite in iteration {step + 1} of {iterations}")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if interrupted:
                raise InterruptedRunError(
                    f"decoder: interrupted after iteration {step + 1} of {iterations}; nothing of it is kept"
                )
    return losses
