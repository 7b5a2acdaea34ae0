"""Multi-formation: several small clips stored in one synthetic sample, taken apart and enlarged on use.

Source: Kim et al., "Dataset Condensation via Efficient Synthetic-Data Parameterization" (IDC), ICML 2022: pictures
that hold smaller pictures; time is this project's addition. At the same bytes a class has more, coarser samples.

    space = 2: four clips, one in each quadrant, every pixel of which becomes 2 x 2 pixels
    time = n:  n clips one after the other, every step of which becomes n steps
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from snn_core.errors import ArgumentError


@dataclass(frozen=True)
class Formation:
    """How clips lie in a stored sample.

    Args:
        space: clips along either side of a frame. time: clips along time. 1 and 1: a sample is one clip.

    Raises:
        ArgumentError: a number below 1.
    """

    space: int = 1
    time: int = 1

    def __post_init__(self) -> None:
        if self.space < 1 or self.time < 1:
            raise ArgumentError(f"space ({self.space}) and time ({self.time}) must be at least 1")

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Formation:
        """That of a configuration's plain values (a product's provenance holds them); one clip where they say nothing.

        Raises:
            ArgumentError: values that are no whole numbers of at least 1.
        """
        values = [config.get(name, 1) for name in ("formation_space", "formation_time")]
        if not all(isinstance(value, int) and not isinstance(value, bool) for value in values):
            raise ArgumentError(f"formation_space and formation_time must be whole numbers, got {values}")
        return cls(*values)

    @property
    def clips(self) -> int:
        """Clips in a stored sample."""
        return self.space**2 * self.time

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

    def decode(self, frames: Tensor) -> Tensor:
        """Stored ``[N, T, P, H, W]`` -> clips ``[N * clips, T, P, H, W]``, those of a sample side by side.

        Any dtype; differentiable. Counts are repeated, so integers stay integers.

        Raises:
            ArgumentError: frames that cannot be divided.
        """
        if self.clips == 1:
            return frames
        self.check(frames)
        number, steps, planes, height, width = frames.shape
        s, n = self.space, self.time
        parts = frames.reshape(number, n, steps // n, planes, s, height // s, s, width // s)
        clips = parts.permute(0, 1, 4, 6, 2, 3, 5, 7).reshape(-1, steps // n, planes, height // s, width // s)
        return clips.repeat_interleave(n, 1).repeat_interleave(s, 3).repeat_interleave(s, 4)

    def encode(self, clips: Tensor) -> Tensor:
        """Whole clips ``[N * clips, T, P, H, W]`` -> float stored frames ``[N, T, P, H, W]``, averaged as they shrink.

        What :meth:`decode` gave comes back as it was.

        Raises:
            ArgumentError: a number of clips that does not fill samples, or frames that cannot be divided.
        """
        if self.clips == 1:
            return clips.float()
        self.check(clips)
        if len(clips) % self.clips:
            raise ArgumentError(f"clips: got {len(clips)}, need a multiple of {self.clips}")
        steps, planes, height, width = clips.shape[1:]
        s, n = self.space, self.time
        small = F.avg_pool2d(clips.float().flatten(0, 1), s).unflatten(0, (len(clips), steps // n, n)).mean(2)
        parts = small.reshape(-1, n, s, s, steps // n, planes, height // s, width // s)
        return parts.permute(0, 1, 4, 5, 2, 6, 3, 7).reshape(-1, steps, planes, height, width)
