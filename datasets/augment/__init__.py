"""Augmentation of event frames and of raw events: the same transforms, explicit generators, draws that can be shared.

Example::

    augment = Compose([Shift(2), Sometimes(DropTime((0.1, 0.3)), 0.5)])
    frames = augment(frames, generator)                       # [T, B, 2, H, W], a draw for every sample
    events = augment(events, generator, sensor_size)          # one recording

    draw = augment.draw(generator, 1, (34, 34))               # one draw, for real and synthetic frames
    real, synthetic = augment.apply(real, draw), augment.apply(synthetic, draw)
"""

from snn_core.datasets.augment.base import Augmentation, Draw
from snn_core.datasets.augment.combine import Compose, Identity, OneOf, Sometimes
from snn_core.datasets.augment.counts import DropEvents, Noise, PolarityFlip
from snn_core.datasets.augment.mix import CutMix, EventMix, Mix, one_hot
from snn_core.datasets.augment.policies import GESTURE_MIRROR, POLICIES, event_drop, nda, policy
from snn_core.datasets.augment.space import Affine, Crop, DropArea, Flip, PadCrop, Roll, Shift, SpatialJitter
from snn_core.datasets.augment.time import DropTime, TimeJitter, TimeReverse, TimeShift, TimeWarp

__all__ = [
    "GESTURE_MIRROR",
    "POLICIES",
    "Affine",
    "Augmentation",
    "Compose",
    "Crop",
    "CutMix",
    "Draw",
    "DropArea",
    "DropEvents",
    "DropTime",
    "EventMix",
    "Flip",
    "Identity",
    "Mix",
    "Noise",
    "OneOf",
    "PadCrop",
    "PolarityFlip",
    "Roll",
    "Shift",
    "Sometimes",
    "SpatialJitter",
    "TimeJitter",
    "TimeReverse",
    "TimeShift",
    "TimeWarp",
    "event_drop",
    "nda",
    "one_hot",
    "policy",
]
