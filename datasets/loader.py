"""Batches of frames for training: made in background threads, the same for any number of them, resumable exactly."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from snn_core.datasets.augment import Augmentation, Mix, one_hot, policy
from snn_core.datasets.disk_frames import DiskFrameDataset
from snn_core.datasets.event_frames_dataset import EventFrameDataset
from snn_core.datasets.frame_dataset import FrameDataset
from snn_core.errors import ArgumentError, CheckpointError
from snn_core.seeding import make_generator

Batch = tuple[Tensor, Tensor]
#: What a loader takes batches from.
Frames = FrameDataset | DiskFrameDataset | EventFrameDataset


class FrameLoader:
    """Iterates over the batches of an epoch: frames, ready for a network, and labels.

    Reading from disk, decompression and augmentation run in threads; all three leave the interpreter free, so no
    process has to be started and nothing is copied between processes. What is random belongs to a seed, the epoch and
    the number of the batch. So batches do not depend on the number of threads, nor on where an earlier run stopped.

    A ``for`` loop goes through what is left of the epoch, and the next one through the next epoch. After a ``break``
    the next loop goes on behind the last batch that was handed out, or with the next epoch if that was the last of all;
    :meth:`set_epoch` begins an epoch afresh.

    Args:
        dataset: frames in memory or on disk, or events that are augmented and binned batch by batch.
        batch_size: samples a batch; the last batch of an epoch may be smaller.
        shuffle: a new order in every epoch; otherwise that of the data set.
        generator: a seed, or a generator from which one seed is drawn now.
        augment: an :class:`Augmentation`, the name of a policy, or None. Integer counts are augmented as such.
        mix: mixes samples of a batch after that, see :class:`CutMix`; labels are then float32 [B, K].
        time_first: frames [T, B, C, H, W], as networks take them; otherwise [B, T, C, H, W]. Contiguous either way, but
            for pictures (``FrameDataset.static``): all T frames of a sample are one in memory, with stride 0, unless an
            augmentation or ``mix`` made them differ.
        dtype: of the frames; None keeps what is there (uint8, unless the augmentation interpolates).
        drop_last: leave out a last batch that is smaller.
        prefetch: batches that are made ahead; 0 makes each when it is asked for, without a thread.
        threads: that make them, on one core each. One is enough where a batch is made faster than it is used.
        device: of the batches. They are moved as they are stored, and augmented there.

    Raises:
        ArgumentError: a number out of range, or a policy of no such name. In the iteration: what the augmentation
            raises, and DataError for a file damaged since it was opened, at the batch they belong to.
    """

    def __init__(
        self,
        dataset: Frames,
        batch_size: int,
        *,
        shuffle: bool = True,
        generator: torch.Generator | int = 0,
        augment: Augmentation | str | None = None,
        mix: Mix | None = None,
        time_first: bool = True,
        dtype: torch.dtype | None = torch.float32,
        drop_last: bool = False,
        prefetch: int = 2,
        threads: int = 1,
        device: str | torch.device = "cpu",
    ) -> None:
        for name, value, least in (("batch_size", batch_size, 1), ("prefetch", prefetch, 0), ("threads", threads, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ArgumentError(f"{name} must be an integer of at least {least}, got {value!r}")
        kinds = (
            ("dataset", dataset, Frames),
            ("augment", augment, Augmentation | str | None),
            ("mix", mix, Mix | None),
        )
        for name, given, kind in kinds:
            if not isinstance(given, kind):
                raise ArgumentError(f"{name} must be {kind}, got {type(given).__name__}")
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.augment = policy(augment) if isinstance(augment, str) else augment
        self.mix = mix
        self.time_first = time_first
        self.dtype = dtype
        self.drop_last = drop_last
        self.prefetch = prefetch
        self.threads = threads
        self.device = torch.device(device)
        self.seed = _seed(generator)
        self.epoch = 0
        self._position = 0
        self._iteration = 0
        self._pool: ThreadPoolExecutor | None = None
        self._owner = 0

    def __len__(self) -> int:
        """Batches an epoch."""
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def order(self, epoch: int) -> Tensor:
        """Indices int64 [num] of the samples in the order of that epoch."""
        if not self.shuffle:
            return torch.arange(len(self.dataset))
        return torch.randperm(len(self.dataset), generator=make_generator(self.seed, "order", epoch))

    def batch(self, epoch: int, step: int, order: Tensor | None = None) -> Batch:
        """Batch ``step`` of ``epoch``, made here and now; the position stays. ``order``: that of the epoch, if known.

        Raises:
            ArgumentError: no such batch.
        """
        if not 0 <= step < len(self):
            raise ArgumentError(f"step must lie in 0..{len(self) - 1}, got {step}")
        order = self.order(epoch) if order is None else order
        frames, labels = self._fetch(order[step * self.batch_size : (step + 1) * self.batch_size], epoch, step)
        frames, labels = frames.to(self.device).transpose(0, 1), labels.to(self.device)
        size = (frames.shape[4], frames.shape[3])
        once = _static(self.dataset) and self.mix is None and (self.augment is None or self.augment.alike_over_time())
        if _static(self.dataset) and not once:
            frames = _over_time(frames, self.dataset.T).contiguous()
        if self.augment is not None:
            generator = make_generator(self.seed, "augment", epoch, step)
            draw = self.augment.draw(generator, len(labels), size)
            frames, labels = self.augment.apply(frames, draw), self.augment.relabel(labels, draw)
            size = (frames.shape[4], frames.shape[3])
        if self.mix is not None:
            draw = self.mix.draw(make_generator(self.seed, "mix", epoch, step), len(labels), size)
            frames, labels = self.mix.apply(frames, one_hot(labels, self.dataset.num_classes), draw)
        if not self.time_first:
            frames = frames.transpose(0, 1)
        # One pass for the type and the layout.
        frames = frames.to(self.dtype or frames.dtype, memory_format=torch.contiguous_format).contiguous()
        return _over_time(frames, self.dataset.T, int(not self.time_first)) if once else frames, labels

    def _fetch(self, indices: Tensor, epoch: int, step: int) -> Batch:
        """Frames [B, T, C, H, W] and labels [B]; [B, 1, C, H, W] of pictures."""
        dataset = self.dataset
        if isinstance(dataset, FrameDataset):
            frames = dataset.frames[:, :1] if dataset.static else dataset.frames
            # A tenth of the time of frames[indices], measured for uint8.
            return frames.index_select(0, indices), dataset.labels[indices]
        plain: list[int] = indices.tolist()
        if isinstance(dataset, EventFrameDataset):
            return dataset.batch(plain, make_generator(self.seed, "events", epoch, step))
        return dataset.batch(plain)

    def __iter__(self) -> Iterator[Batch]:
        if self._position >= len(self) > 0:  # the last loop ended behind its last batch without knowing
            self.epoch, self._position = self.epoch + 1, 0
        self._iteration += 1
        iteration, epoch = self._iteration, self.epoch
        for step, batch in self._batches(epoch, self._position):
            if self._iteration != iteration or self.epoch != epoch:
                raise ArgumentError("this loader was used again, or its state changed, while an iteration was going on")
            self._position = step + 1
            yield batch
        if self._iteration == iteration and self.epoch == epoch:
            self.epoch, self._position = epoch + 1, 0

    def _batches(self, epoch: int, first: int) -> Iterator[tuple[int, Batch]]:
        order, steps = self.order(epoch), range(first, len(self))
        if self.prefetch == 0:
            for step in steps:
                with one_torch_thread():
                    batch = self.batch(epoch, step, order)
                yield step, batch
            return
        pool = self._threads()
        waiting: deque[tuple[int, Future[Batch]]] = deque()
        try:
            for step in steps:
                waiting.append((step, pool.submit(self.batch, epoch, step, order)))
                if len(waiting) > self.prefetch:
                    done, future = waiting.popleft()
                    yield done, future.result()
            while waiting:
                done, future = waiting.popleft()
                yield done, future.result()
        finally:
            for _, future in waiting:
                future.cancel()

    def _threads(self) -> ThreadPoolExecutor:
        # Threads do not go with a fork.
        if self._pool is None or self._owner != os.getpid():
            self._pool = ThreadPoolExecutor(self.threads, "snn_core-loader")
            self._owner = os.getpid()
            start_threads(self._pool, self.threads)
        return self._pool

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pool": None, "_owner": 0}

    def set_epoch(self, epoch: int, step: int = 0) -> None:
        """Go to a batch of an epoch, both counted from 0. ArgumentError for negative ones."""
        for name, value in (("epoch", epoch), ("step", step)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ArgumentError(f"{name} must be an integer of at least 0, got {value!r}")
        self.epoch, self._position = epoch, step
        self._iteration += 1

    def endless(self) -> Iterator[Batch]:
        """The batches of this epoch and of all that follow."""
        while len(self):
            yield from self

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch is, and what it depends on: numbers and strings, fit for JSON."""
        epoch, position = self.epoch, self._position
        if position >= len(self) > 0:
            epoch, position = epoch + 1, 0
        return {"seed": self.seed, "epoch": epoch, "position": position} | self._identity()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken: the batches that follow are those that would have followed.

        Raises:
            CheckpointError: the state is damaged, or of another data set, batch size, order or augmentation.
        """
        mine = self._identity()
        if not isinstance(state, dict):
            raise CheckpointError(f"the loader's state is damaged: it is {type(state).__name__}, not dict")
        different = [name for name in mine if state.get(name) != mine[name]]
        if different:
            raise CheckpointError(
                f"the loader's state does not fit this loader: {different[0]} is {state.get(different[0])!r} there and "
                f"{mine[different[0]]!r} here"
            )
        numbers = [state.get(name) for name in ("seed", "epoch", "position")]
        if any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in numbers):
            raise CheckpointError(f"the loader's state is damaged: seed, epoch and position are {numbers}")
        seed, epoch, position = (int(n) for n in numbers if n is not None)
        if position > len(self):
            raise CheckpointError(f"the loader's state is damaged: position {position} of {len(self)} batches")
        self.seed, self.epoch, self._position = seed, epoch, position
        self._iteration += 1

    def _identity(self) -> dict[str, Any]:
        return {
            "data": self.dataset.content_key,
            "samples": len(self.dataset),
            "batch_size": self.batch_size,
            "shuffle": self.shuffle,
            "drop_last": self.drop_last,
            "augment": repr(self.augment),
            "mix": repr(self.mix),
        }

    def __repr__(self) -> str:
        return (
            f"FrameLoader({self.dataset!r}, batch_size={self.batch_size}, shuffle={self.shuffle}, "
            f"augment={self.augment!r}, mix={self.mix!r}, prefetch={self.prefetch}, threads={self.threads})"
        )


def _static(dataset: Frames) -> bool:
    return isinstance(dataset, FrameDataset) and dataset.static


def _over_time(frames: Tensor, steps: int, axis: int = 0) -> Tensor:
    """Frames whose time ``axis`` has one step at all steps, without a copy."""
    sizes = [-1] * frames.ndim
    sizes[axis] = steps
    return frames.expand(sizes)


def start_threads(pool: ThreadPoolExecutor, count: int) -> None:
    """Start the threads of a pool, each with one torch thread: they share the cores with training.

    The number of torch threads belongs to the thread that sets it, but threads that are yet to come inherit what was
    set last; so it is set again here.
    """
    barrier = threading.Barrier(count + 1)

    def begin() -> None:
        torch.get_num_threads()  # takes over what others set, once a thread: before, not after, the next line
        torch.set_num_threads(1)
        barrier.wait()

    mine = torch.get_num_threads()
    for _ in range(count):
        pool.submit(begin)
    barrier.wait()
    torch.set_num_threads(mine)


@contextlib.contextmanager
def one_torch_thread() -> Iterator[None]:
    """One torch thread inside: many small operators that each wait for a second one can take seconds on busy cores."""
    mine = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(mine)


def _seed(generator: torch.Generator | int) -> int:
    if isinstance(generator, torch.Generator):
        return int(torch.randint(0, 2**63 - 1, (1,), generator=generator))
    if isinstance(generator, bool) or not isinstance(generator, int) or generator < 0:
        raise ArgumentError(f"generator must be a torch.Generator or a seed of at least 0, got {generator!r}")
    return generator
