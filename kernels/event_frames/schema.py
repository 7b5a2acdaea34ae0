"""The operator ``snn_core::event_frames`` of torch.library: schema and fake kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from snn_core.kernels.native.library import LIBRARY

#: How events find their frame, the operator's ``by``: equal time or equal count of each recording, or from a given
#: ``start`` in steps of ``step``: microseconds for TIME_FROM; for INDEX_FROM events, of which ``start`` came before.
EQUAL_TIME, EQUAL_COUNT, TIME_FROM, INDEX_FROM = range(4)

# frames [B, T, 2, H, W] uint8, int16 or int32, contiguous, are added to; events: B tensors uint8 [number of events,
# bytes of an event], any first stride; fields: int64 [1 or B, 8], offset and type (see layout.py) of t, x, y and p;
# rest: the last frame takes all events behind it. The result, int64 [2 B + k], holds the number of clipped cells of
# each recording, 1 + the index of its first event that cannot be counted (0: none; else frames are undefined), and the
# flat indices of all k clipped cells into frames.
LIBRARY.define(
    "event_frames(Tensor(a!) frames, Tensor[] events, Tensor fields, int by, int start, int step, bool rest) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.register_fake("snn_core::event_frames", lib=LIBRARY)
def _fake(frames: Tensor, events: list[Tensor], fields: Tensor, by: int, start: int, step: int, rest: bool) -> Tensor:
    return frames.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)
