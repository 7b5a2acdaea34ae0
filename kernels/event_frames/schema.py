"""The operator ``snn_core::event_frames`` of torch.library: schema and fake kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from snn_core.kernels.native.library import LIBRARY

#: How events find their frame, the operator's ``by``: equal time or equal count of each recording, or from a given
#: ``start`` in steps of ``step``: microseconds for TIME_FROM; for INDEX_FROM events, of which ``start`` came before.
EQUAL_TIME, EQUAL_COUNT, TIME_FROM, INDEX_FROM = range(4)

# frames [B, T, 2, H, W] uint8, int16 or int32, contiguous, are added to; events: B tensors uint8 [number of events,
# bytes of an event], any first stride; fields: offset and type (see layout.py) of t, x, y and p, once or for each
# recording; rest: the last frame takes all events behind it. Results: report int64 [B, 2], the number of clipped cells
# of each recording and 1 + the index of its first event that cannot be counted (0: none; else frames are undefined);
# and clipped int64 [sum of the former], their flat indices into frames.
LIBRARY.define(
    "event_frames(Tensor(a!) frames, Tensor[] events, int[] fields, int by, int start, int step, bool rest)"
    " -> (Tensor report, Tensor clipped)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.register_fake("snn_core::event_frames", lib=LIBRARY)
def _fake(
    frames: Tensor, events: list[Tensor], fields: list[int], by: int, start: int, step: int, rest: bool
) -> tuple[Tensor, Tensor]:
    size = torch.library.get_ctx().new_dynamic_size()
    return frames.new_empty(len(events), 2, dtype=torch.int64), frames.new_empty(size, dtype=torch.int64)
