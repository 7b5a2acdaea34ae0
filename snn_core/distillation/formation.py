"""Multi-formation: several small clips stored in one synthetic sample, taken apart and enlarged on use.

Source: Kim et al., "Dataset Condensation via Efficient Synthetic-Data Parameterization" (IDC), ICML 2022: pictures
that hold smaller pictures; time and digits are this project's additions. At the same bytes a class has more, coarser
samples.

    space = 2:  four clips, one in each quadrant, every pixel of which becomes 2 x 2 pixels
    time = n:   n clips one after the other, every step of which becomes n steps
    digits = n: n clips in the digits of the counts, sum_i digit_i base^i, base = floor(256^(1/n)): eight binary ones,
                or four of counts to 3. Event frames are 0 nearly everywhere, and of small counts where they are not.

Before digits are put together the clips of a digit lie in a *sheet*, which is what is optimised:

    clips [N * clips, T, P, H, W]  - encode, unfold -  sheets [N * digits, ...]  - pack, unpack -  stored [N, ...]

``decode`` goes from what is stored to clips.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from snn_core.errors import ArgumentError

MAX_DIGITS = 8  # bits of the uint8 counts that are stored
_BISECTIONS = 24


@dataclass(frozen=True)
class Formation:
    """How clips lie in a stored sample.

    Args:
        space: clips along either side of a frame. time: clips along time. digits: clips in the digits of a count, 1 to
            8. gain: what a stored count is multiplied by on use. 1 each: a sample is one clip, as it is.

    Raises:
        ArgumentError: a number below 1, more than 8 digits, or counts that a frame (uint8) would not hold.
    """

    space: int = 1
    time: int = 1
    digits: int = 1
    gain: int = 1

    def __post_init__(self) -> None:
        if min(self.space, self.time, self.digits, self.gain) < 1 or self.digits > MAX_DIGITS:
            raise ArgumentError(
                f"space ({self.space}), time ({self.time}), digits ({self.digits}) and gain ({self.gain}) must be at "
                f"least 1, digits at most {MAX_DIGITS}"
            )
        if self.gain > 1 and self.gain * self.levels > 255:
            raise ArgumentError(f"gain: {self.gain} times the largest count of {self.digits} digits is more than 255")

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Formation:
        """That of a configuration's plain values (a product's provenance holds them); one clip where they say nothing.

        Raises:
            ArgumentError: values that are no whole numbers of at least 1.
        """
        names = [f"formation_{name}" for name in ("space", "time", "digits", "gain")]
        values = [config.get(name, 1) for name in names]
        if not all(isinstance(value, int) and not isinstance(value, bool) for value in values):
            raise ArgumentError(f"{', '.join(names)} must be whole numbers, got {values}")
        return cls(*values)

    @property
    def base(self) -> int:
        """Of the digits: the largest whole number whose power fits uint8."""
        return max(base for base in range(2, 257) if base**self.digits <= 256)

    @property
    def levels(self) -> int:
        """Largest count of a digit."""
        return self.base - 1

    @property
    def clips(self) -> int:
        """Clips in a stored sample."""
        return self.space**2 * self.time * self.digits

    @property
    def plain(self) -> bool:
        """Whether what is stored is one clip, as it is."""
        return self.clips == 1 and self.gain == 1

    def check(self, frames: Tensor) -> None:
        """Raise ArgumentError unless stored frames ``[N, T, P, H, W]`` can be divided into clips of equal size."""
        if frames.ndim != 5:
            raise ArgumentError(f"frames must be [N, T, P, H, W], got {list(frames.shape)}")
        steps, height, width = frames.shape[1], frames.shape[3], frames.shape[4]
        if steps % self.time or height % self.space or width % self.space:
            raise ArgumentError(
                f"frames of T = {steps} and {width} x {height} pixels cannot be divided by time={self.time} and "
                f"space={self.space}"
            )

    def pack(self, sheets: Tensor) -> Tensor:
        """Sheets ``[N * digits, T, P, H, W]`` of whole counts -> stored uint8 ``[N, T, P, H, W]``.

        Raises:
            ArgumentError: a number of sheets that does not fill samples, or counts beyond :attr:`levels`.
        """
        if self.digits == 1:
            return sheets.to(torch.uint8)
        if len(sheets) % self.digits:
            raise ArgumentError(f"sheets: got {len(sheets)}, need a multiple of {self.digits}")
        if sheets.numel() and int(sheets.max()) > self.levels:
            raise ArgumentError(f"sheets: counts to {int(sheets.max())}, {self.digits} digits hold {self.levels}")
        stored = torch.zeros_like(sheets[:: self.digits], dtype=torch.uint8)
        for digit in range(self.digits):
            stored += sheets[digit :: self.digits].to(torch.uint8) * self.base**digit
        return stored

    def unpack(self, frames: Tensor) -> Tensor:
        """Stored integers ``[N, T, P, H, W]`` -> sheets ``[N * digits, T, P, H, W]`` of the same dtype."""
        if self.digits == 1:
            return frames
        digits = [frames // self.base**digit % self.base for digit in range(self.digits)]
        return torch.stack(digits, 1).flatten(0, 1)

    def unfold(self, sheets: Tensor) -> Tensor:
        """Sheets ``[N * digits, T, P, H, W]`` -> clips ``[N * clips, T, P, H, W]``, those of a sample side by side.

        Any dtype; differentiable. Counts are repeated, so integers stay integers.

        Raises:
            ArgumentError: frames that cannot be divided.
        """
        codes = self.take_apart(sheets * self.gain if self.gain > 1 else sheets)
        s, n = self.space, self.time
        if s == n == 1:
            return codes
        return codes.repeat_interleave(n, 1).repeat_interleave(s, 3).repeat_interleave(s, 4)

    def take_apart(self, sheets: Tensor) -> Tensor:
        """Sheets ``[N * digits, T, P, H, W]`` -> codes ``[N * clips, T / time, P, H / space, W / space]``: the clips as
        small as they are stored, without the gain. Any dtype; differentiable.

        Raises:
            ArgumentError: frames that cannot be divided.
        """
        if self.space == self.time == 1:
            return sheets
        self.check(sheets)
        number, steps, planes, height, width = sheets.shape
        s, n = self.space, self.time
        parts = sheets.reshape(number, n, steps // n, planes, s, height // s, s, width // s)
        return parts.permute(0, 1, 4, 6, 2, 3, 5, 7).reshape(-1, steps // n, planes, height // s, width // s)

    def decode(self, frames: Tensor) -> Tensor:
        """Stored ``[N, T, P, H, W]`` -> clips ``[N * clips, T, P, H, W]``; see :meth:`unfold`."""
        return self.unfold(self.unpack(frames))

    def encode(self, clips: Tensor) -> Tensor:
        """Whole clips ``[N * clips, T, P, H, W]`` -> float sheets ``[N * digits, T, P, H, W]``.

        Averaged as they shrink: what :meth:`unfold` gave comes back as it was, where digits and gain are 1. Else each
        clip is scaled so that, rounded, it has as many events as it had (as near as a factor can bring it); counts
        beyond :attr:`levels` are cut.

        Raises:
            ArgumentError: a number of clips that does not fill samples, or frames that cannot be divided.
        """
        if self.plain:
            return clips.float()
        if len(clips) % self.clips:
            raise ArgumentError(f"clips: got {len(clips)}, need a multiple of {self.clips}")
        small = self._shrunk(clips)
        steps, planes, height, width = clips.shape[1:]
        s, n = self.space, self.time
        parts = small.reshape(-1, n, s, s, steps // n, planes, height // s, width // s)
        return parts.permute(0, 1, 4, 5, 2, 6, 3, 7).reshape(-1, steps, planes, height, width)

    def codes(self, clips: Tensor) -> Tensor:
        """What would be stored of each of any number of clips ``[B, T, P, H, W]``, on its own: float whole counts
        ``[B, T / time, P, H / space, W / space]``, as :meth:`take_apart` gives them.

        Raises:
            ArgumentError: frames that cannot be divided.
        """
        return self._shrunk(clips).round().clamp(max=self.levels)

    def _shrunk(self, clips: Tensor) -> Tensor:
        """Clips averaged to the size they are stored in; scaled, where counts are coarse. Not rounded yet."""
        self.check(clips)
        steps = clips.shape[1]
        s, n = self.space, self.time
        small = F.avg_pool2d(clips.float().flatten(0, 1), s).unflatten(0, (len(clips), steps // n, n)).mean(2)
        if self.digits > 1 or self.gain > 1:
            small = _event_preserving(small, self.gain, self.levels)
        return small


def _event_preserving(clips: Tensor, gain: int, levels: int) -> Tensor:
    """Each clip ``[B, ...]`` times the factor at which it has as many events when rounded and multiplied by ``gain``.

    Plain rounding would lose most of a clip whose averaged counts are below a half.
    """
    wanted = clips.flatten(1).sum(1)
    shape = (-1,) + (1,) * (clips.ndim - 1)

    def events(power: Tensor) -> Tensor:
        counts = (clips * power.exp2().view(shape)).round().clamp(max=levels)
        return counts.flatten(1).sum(1) * gain

    low, high = torch.full_like(wanted, -12.0), torch.full_like(wanted, 12.0)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        fewer = events(middle) < wanted
        low, high = torch.where(fewer, middle, low), torch.where(fewer, high, middle)
    # Cells of equal counts cross the edge together: the nearer side.
    nearer = torch.where(wanted - events(low) < events(high) - wanted, low, high)
    return (clips * nearer.exp2().view(shape)).clamp(max=levels)
