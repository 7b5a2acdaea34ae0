"""The operators ``snn_core::event_sensor_*`` of torch.library: schemas and fake kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from snn_core.kernels.native.library import LIBRARY

#: An event as one int64, a key: time above pixel above polarity; pixel_sensor.h has the same.
PIXEL_BITS, TIME_BITS = 16, 30
#: Coordinates on a picture are whole numbers of 2**-16 of its pixels; 2**8 phases choose the weights; as in picture.h.
FRACTION_BITS, PHASE_BITS = 16, 8
#: ``blind_until`` of a pixel that is not blind.
SEEING = 2**31 - 1

# All tensors are contiguous. before, after: float32 [B, P], log brightness at start and end (microseconds); reference
# float32 and blind_until int32 [B, P] are the state; threshold_on, threshold_off float32 and refractory int32 [P];
# noise: keys, ascending within each recording, those of recording b from noise_bounds[b] on (int64 [B + 1]); those that
# are not after start and not beyond end are left out. The result, int64 [B + n]: number of events of each, then keys.
LIBRARY.define(
    "event_sensor_step(Tensor before, Tensor after, Tensor(a!) reference, Tensor(b!) blind_until, Tensor threshold_on, "
    "Tensor threshold_off, Tensor refractory, Tensor noise, Tensor noise_bounds, int start, int end) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
# pictures uint8 [B, h, w]; x, y int32 [B, S]: where on the picture pixel (0, 0) looks at times int64 [S]; its neighbour
# looks stride_x (stride_y) further; taps float32 [2**8, K], brightness float32 [256], response float32 [levels + 1];
# leak float32 [P]: rise of log brightness a second. The result: EVENT_DTYPE as bytes, uint8 [n, 13], and int64 [B].
LIBRARY.define(
    "event_sensor_pictures(Tensor pictures, Tensor x, Tensor y, Tensor times, int width, int height, int stride_x, "
    "int stride_y, Tensor taps, Tensor brightness, Tensor response, Tensor threshold_on, Tensor threshold_off, "
    "Tensor refractory, Tensor leak, Tensor noise, Tensor noise_bounds) -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.register_fake("snn_core::event_sensor_step", lib=LIBRARY)
def _fake_step(before: Tensor, *_: Any) -> Tensor:
    return before.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


@torch.library.register_fake("snn_core::event_sensor_pictures", lib=LIBRARY)
def _fake_pictures(pictures: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    events = pictures.new_empty((torch.library.get_ctx().new_dynamic_size(), 13))
    return events, pictures.new_empty((pictures.shape[0],), dtype=torch.int64)
