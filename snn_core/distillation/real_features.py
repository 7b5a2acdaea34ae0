"""Features of the real data, from every teacher in every view: kept in memory as far as they fit.

Real features do not change during distillation. With few teachers and a small set of views each is computed once
instead of at every iteration.
"""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterator, Sequence
from contextvars import ContextVar

import torch
from torch import Tensor

from snn_core.datasets import FrameDataset
from snn_core.distillation.augment import View
from snn_core.distillation.densify import collect_features
from snn_core.distillation.teachers import Teacher, TeacherPool
from snn_core.errors import ArgumentError

_CELLS = 50 * 34 * 34 * 8  # of (sample, step, pixel) a forward pass: bounds the memory of maps before pooling


class FeatureStore:
    """Features of whole (teacher, view) pairs that several runs share, the longest unused ones dropped first.

    Args:
        megabytes: what they may take together.
    """

    def __init__(self, megabytes: int) -> None:
        self.most = megabytes * 2**20
        self._pairs: dict[Hashable, list[Tensor]] = {}

    def get(self, key: Hashable) -> list[Tensor] | None:
        """What is stored under ``key``, or None."""
        found = self._pairs.pop(key, None)
        if found is not None:
            self._pairs[key] = found
        return found

    def put(self, key: Hashable, layers: list[Tensor]) -> None:
        """Store under ``key``, and drop what has then no room; more than all of the room is not stored."""
        self._pairs[key] = layers
        while self.bytes > self.most:
            del self._pairs[next(iter(self._pairs))]

    @property
    def bytes(self) -> int:
        """What is stored."""
        return sum(layer.numel() * layer.element_size() for pair in self._pairs.values() for layer in pair)


_shared: ContextVar[FeatureStore | None] = ContextVar("shared features", default=None)


@contextlib.contextmanager
def shared_features(megabytes: int) -> Iterator[FeatureStore]:
    """Inside, runs of this process on the same data, teachers and views compute real features once for all of them.

    For searches, in which little but the loss changes. The frames of a run are those it has alone, but for rounding.
    """
    store = FeatureStore(megabytes)
    token = _shared.set(store)
    try:
        yield store
    finally:
        _shared.reset(token)


class RealFeatures:
    """SDR features of a data set's samples.

    Args:
        dataset: the real samples. teachers: the pool. views: the allowed shared views.
        layers, beta, feature_pool: as in :class:`snn_core.distillation.FeatureCollector`.
        chunk: samples a forward pass; None: as many as hold about half a million cells, at least one.
        cache_megabytes: features of so many (teacher, view) pairs as fit in that are kept, each once it is computed:
            the first ones, so that a resumed run does as the one it goes on with. 0 keeps none.
        samples: int64, ascending, the only samples that will be asked for (of a process's own classes); None: all.
        draws: how many samples' features will be asked for in all; where that is less than keeping would compute,
            nothing is kept. None: unknown.

    Raises:
        ArgumentError: a teacher that does not take these frames or has another number of classes.
    """

    def __init__(
        self,
        dataset: FrameDataset,
        teachers: TeacherPool,
        views: Sequence[View],
        *,
        layers: Sequence[str | int] | None,
        beta: float | Sequence[float],
        feature_pool: int,
        cache_megabytes: int,
        chunk: int | None = None,
        device: str | torch.device = "cpu",
        samples: Tensor | None = None,
        draws: int | None = None,
    ) -> None:
        self.dataset, self.teachers, self.views = dataset, teachers, list(views)
        self.layers, self.beta, self.feature_pool, self.device = layers, beta, feature_pool, torch.device(device)
        width, height, _ = dataset.sensor_size
        self.chunk = chunk or max(1, _CELLS // (dataset.T * width * height))
        #: Features of each layer, for each teacher.
        self.widths = [self._probe(teacher) for teacher in teachers]
        self.samples = torch.arange(len(dataset)) if samples is None else samples
        #: Pairs ``teacher * len(views) + view`` below this are kept.
        self.kept_pairs = self._fitting(cache_megabytes * 2**20)
        if draws is not None and draws < len(self.samples) * len(teachers) * len(self.views):
            self.kept_pairs = 0
        self._kept: dict[int, list[Tensor]] = {}
        # A view's chance draws have no text that tells them apart: only plain shifts are shared.
        plain = all(view.augmentation is None for view in self.views)
        self._store = _shared.get() if plain else None

    def __call__(self, teacher: int, view: int, indices: Tensor) -> list[Tensor]:
        """Features of the samples ``indices`` (int64, any shape ``[...]``): ``[T, ..., D]``, one tensor a layer."""
        pair = teacher * len(self.views) + view
        if self._store is not None:
            return [layer[:, torch.searchsorted(self.samples, indices)] for layer in self._stored(teacher, view)]
        if pair >= self.kept_pairs:
            features = self._compute(teacher, view, indices.flatten())
            return [layer.unflatten(1, tuple(indices.shape)) for layer in features]
        if pair not in self._kept:
            self._kept[pair] = self._compute(teacher, view, self.samples)
        places = torch.searchsorted(self.samples, indices)
        return [layer[:, places] for layer in self._kept[pair]]

    def _stored(self, teacher: int, view: int) -> list[Tensor]:
        """Features of :attr:`samples`, from the store that runs share."""
        assert self._store is not None
        key = (self.dataset.content_key, self.teachers[teacher].hash, repr(self.views[view]), repr(self.layers),
               repr(self.beta), self.feature_pool, str(self.device), tuple(self.samples.tolist()))  # fmt: skip
        found = self._store.get(key)
        if found is None:
            found = self._compute(teacher, view, self.samples)
            self._store.put(key, found)
        return found

    @property
    def kept_bytes(self) -> int:
        """What is kept by now."""
        return sum(layer.numel() * layer.element_size() for pair in self._kept.values() for layer in pair)

    def _fitting(self, most: int) -> int:
        """How many pairs, from the first one on, have room in ``most`` bytes."""
        count = 0
        for widths in self.widths:
            for _ in self.views:
                most -= sum(widths) * 4 * self.dataset.T * len(self.samples)
                if most < 0:
                    return count
                count += 1
        return count

    @torch.no_grad()
    def _compute(self, teacher: int, view: int, indices: Tensor) -> list[Tensor]:
        chunks = []
        for part in indices.split(self.chunk):
            frames = self.dataset.frames[part].transpose(0, 1).to(self.device).float()
            chunks.append(self.collect(self.teachers[teacher], self.views[view].apply(frames)))
        return [torch.cat(layer, 1) for layer in zip(*chunks, strict=True)]

    def collect(self, teacher: Teacher, frames: Tensor) -> list[Tensor]:
        """Features of float frames ``[T, B, 2, H, W]``: ``[T, B, D]``, one tensor a layer, in the autograd graph."""
        return collect_features(teacher.model, frames, self.layers, beta=self.beta, feature_pool=self.feature_pool)

    @torch.no_grad()
    def _probe(self, teacher: Teacher) -> list[int]:
        """Feature width of a teacher's layers; one sample shows whether it takes this data at all."""
        frames = self.dataset.frames[:1].transpose(0, 1).to(self.device).float()
        try:
            logits = teacher.model(frames)
        except (RuntimeError, ValueError) as error:
            raise ArgumentError(
                f"teacher {teacher.name} does not take frames of shape {list(self.dataset.frames.shape[1:])}: {error}"
            ) from error
        if logits.shape[-1] != self.dataset.num_classes:
            raise ArgumentError(
                f"teacher {teacher.name} knows {logits.shape[-1]} classes, the data has {self.dataset.num_classes}"
            )
        return [layer.shape[-1] for layer in self.collect(teacher, frames)]
