"""Augmentations by name, as data sets are usually trained with."""

from __future__ import annotations

from collections.abc import Callable

from snn_core.datasets.augment.base import Augmentation
from snn_core.datasets.augment.combine import Compose, Identity, OneOf
from snn_core.datasets.augment.counts import DropEvents
from snn_core.datasets.augment.space import Affine, DropArea, Flip, PadCrop, Roll, Shift
from snn_core.datasets.augment.time import DropTime
from snn_core.errors import ArgumentError

#: Class of the mirror image of each class of DVS128 Gesture, in the order of its labels: hand clapping, right and left
#: hand wave, right arm clockwise and counter-clockwise, left arm clockwise and counter-clockwise, arm roll, air drums,
#: air guitar, other.
GESTURE_MIRROR = (0, 2, 1, 6, 5, 4, 3, 7, 8, 9, 10)


def event_drop() -> OneOf:
    """EventDrop (Gu et al. 2021): nothing, or a drop by time, by area or at random; each equally often.

    The ranges are those of its authors' program, drawn without steps.
    """
    return OneOf([Identity(), DropTime((0.1, 0.9)), DropArea((0.05, 0.25)), DropEvents((0.1, 0.9))])


def nda(*, flip: bool = True, magnitude: int = 2, side: int = 48) -> Compose:
    """NDA (Li et al. 2022): the mirror image or not, then a roll, a rotation, a cutout or a shear, without CutMix.

    Args:
        flip: whether mirror images keep their labels.
        magnitude: N of the paper: rolls to 2 N + 1 pixels, rotations to 15 N degrees, a cutout of 8 N of 48 pixels.
        side: of the frames in pixels; there it is 48, and rolls grow with it.

    The shear, to 15 degrees, is that of the authors' policy for N-Caltech101. See :class:`CutMix` for the rest.
    """
    if not 1 <= magnitude <= 6:
        raise ArgumentError(f"magnitude must lie in 1 .. 6, got {magnitude}")
    nearest = {"scale": 0.0, "pixels": 0.0}
    moves = OneOf(
        [
            Roll(round((2 * magnitude + 1) * side / 48)),
            Affine(15.0 * magnitude, **nearest, interpolation="nearest"),
            Affine(0.0, **nearest, shear=15.0, interpolation="nearest"),
            DropArea((magnitude / 6, magnitude / 6)),
        ]
    )
    return Compose([Flip(0.5), moves] if flip else [moves])


POLICIES: dict[str, Callable[[], Augmentation]] = {
    "none": Identity,
    "affine": Affine,
    "shift": Shift,
    "nmnist": Affine,
    "dvs-gesture": lambda: nda(flip=False, magnitude=1),
    "dvs-gesture-mirror": lambda: Compose([Flip(0.5, classes=GESTURE_MIRROR), nda(flip=False, magnitude=1)]),
    "cifar10-dvs": nda,
    "event-drop": event_drop,
    "shd": lambda: Shift(40),
    "crop-flip": lambda: Compose([PadCrop(), Flip(0.5)]),
}


def policy(name: str) -> Augmentation:
    """The augmentation of that name.

    - "none"
    - "affine", "nmnist": rotation to 10 degrees, scale to 12 %, shift to 2 pixels, bilinear. What this project's
      N-MNIST figures were measured with.
    - "shift": whole pixels, at most 2.
    - "cifar10-dvs": :func:`nda`.
    - "dvs-gesture": NDA of magnitude 1 without mirror images, whose gestures are of other classes.
    - "dvs-gesture-mirror": the same with mirror images, relabelled by GESTURE_MIRROR.
    - "event-drop": :func:`event_drop`.
    - "shd": a shift by at most 40 of the 700 channels, as a higher or lower voice. (Nowotny et al. 2022 found shifts
      of frequency to help; the amount is ours.)
    - "crop-flip": pictures padded by an eighth of their side and cut back (:class:`PadCrop`), half of them mirrored, as
      is usual for CIFAR-10. Not for digits.

    Raises:
        ArgumentError: no such name.
    """
    if name not in POLICIES:
        raise ArgumentError(f"augment must be one of {', '.join(POLICIES)}, got {name!r}")
    return POLICIES[name]()
