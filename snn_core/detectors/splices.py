"""Pictures with spliced patches, made from any pictures: a task for detectors whose truth is known to the pixel."""

from __future__ import annotations

import torch
from torch import Tensor

from snn_core.errors import ArgumentError
from snn_core.seeding import make_generator


def with_texture(pictures: Tensor, seed: int, strength: float = 0.25) -> Tensor:
    """Pictures, each with a grating (direction, wavelength, phase) and a lightness of its own over it.

    It stands for what a camera leaves in a picture: the same everywhere, another one in a patch from elsewhere.
    Digits on black have nothing of the kind.

    Args:
        pictures: ``[N, C, H, W]`` of 0 to 1.
        seed: of gratings and lightness.
        strength: amplitude of the grating, and of the lightness.

    Returns:
        ``[N, C, H, W]`` float32.
    """
    generator = make_generator(seed, "texture")
    count, _, height, width = _checked(pictures).shape
    angle, phase, wavelength, light = torch.rand(4, count, 1, 1, generator=generator).unbind()
    angle, phase, wavelength, light = angle * torch.pi, phase * 2 * torch.pi, 3 + 3 * wavelength, 2 * light - 1
    rows = torch.arange(height, dtype=torch.float32).view(1, -1, 1)
    columns = torch.arange(width, dtype=torch.float32).view(1, 1, -1)
    along = rows * angle.sin() + columns * angle.cos()
    return pictures.float() + strength * ((2 * torch.pi * along / wavelength + phase).sin() + light).unsqueeze(1)


def spliced(
    pictures: Tensor, seed: int, sides: tuple[int, int] | None = None, share: float = 0.5
) -> tuple[Tensor, Tensor, Tensor]:
    """Into a share of the pictures, a rectangle of another one is pasted, taken from another place of it.

    Args:
        pictures: ``[N, C, H, W]``.
        seed: of which, where and from where.
        sides: least and largest side of a rectangle, in pixels; default a third and a half of the shorter side.
        share: of the pictures that are spliced.

    Returns:
        Pictures ``[N, C, H, W]`` float32, forged ``[N]`` and masks ``[N, 1, H, W]``, float32 0 or 1.

    Raises:
        ArgumentError: fewer than two pictures, or sides that do not fit.
    """
    generator = make_generator(seed, "splices")
    count, _, height, width = _checked(pictures).shape
    low, high = sides or (min(height, width) // 3, min(height, width) // 2)
    if count < 2 or not 1 <= low <= high <= min(height, width):
        raise ArgumentError(f"sides ({low}, {high}) for {count} pictures of {height} x {width}: no splice can be made")
    result, masks = pictures.float().clone(), torch.zeros(count, 1, height, width)
    forged = (torch.rand(count, generator=generator) < share).float()

    def draw(limit: int) -> int:
        return int(torch.randint(limit, (), generator=generator))

    for index in forged.nonzero().flatten().tolist():
        other = (index + 1 + draw(count - 1)) % count
        tall, wide = low + draw(high - low + 1), low + draw(high - low + 1)
        top, left, from_top, from_left = (draw(extent + 1) for extent in 2 * (height - tall, width - wide))
        patch = pictures[other, :, from_top : from_top + tall, from_left : from_left + wide]
        result[index, :, top : top + tall, left : left + wide] = patch.float()
        masks[index, :, top : top + tall, left : left + wide] = 1
    return result, forged, masks


def scores(image: Tensor, mask: Tensor, forged: Tensor, truth: Tensor) -> dict[str, float]:
    """How well splices are found.

    Args:
        image, mask: logits ``[N]`` and ``[N, 1, H, W]``.
        forged, truth: what :func:`spliced` gave.

    Returns:
        ``accuracy`` of pictures, ``auc`` (of picking the forged one of a real and a forged picture), and ``f1`` and
        ``iou`` of the pixels of all pictures together; 0 to 1.
    """
    positive, negative = image[forged > 0.5], image[forged < 0.5]
    # Half a point where both have the same logit, so that a constant answer has 0.5.
    right = (positive[:, None] - negative).sign().double().add(1).div(2)
    found, there = mask > 0, truth > 0.5
    hit, either = (found & there).sum().item(), (found | there).sum().item()
    return {
        "accuracy": ((image > 0) == (forged > 0.5)).double().mean().item(),
        "auc": right.mean().item(),  # NaN without one of the two kinds
        "f1": 2 * hit / max(hit + either, 1),
        "iou": hit / max(either, 1),
    }


def _checked(pictures: Tensor) -> Tensor:
    if pictures.ndim != 4:
        raise ArgumentError(f"pictures have shape {list(pictures.shape)}; expected [N, C, H, W]")
    return pictures
