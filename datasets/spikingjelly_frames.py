"""Folders of frames that SpikingJelly wrote, as a FrameDataset.

Layout (``NeuromorphicDatasetFolder``): ``frames_number_<T>_split_by_<time|number>/[train|test/]<class>/<name>.npz``, or
``duration_<us>/...`` with recordings of different length; each file holds ``frames`` [T, P, H, W].
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from snn_core.datasets.frame_dataset import FrameDataset
from snn_core.datasets.plain_arrays import read_npz
from snn_core.datasets.source import check_split
from snn_core.errors import ArgumentError, DataError
from snn_core.files import sha256_json
from snn_core.progress import progress

SPLITS = ("train", "test")
MAX_COUNT = 255


def load_spikingjelly_frames(
    folder: str | os.PathLike[str],
    split: str = "train",
    *,
    T: int | None = None,
    class_names: Sequence[str] | None = None,
    name: str | None = None,
    simulated: bool = False,
    quiet: bool = False,
) -> FrameDataset:
    """Frames that SpikingJelly integrated, in memory.

    Args:
        folder: the one that holds train/ and test/, or, where SpikingJelly does not split (CIFAR10DVS, NCaltech101),
            the class folders themselves.
        split: "train", "test" or "all"; without train/ and test/ only "all".
        T: frames a recording; None: all have the same number. Of longer recordings the rest is cut off, to shorter ones
            empty frames are added (``duration_*`` folders).
        class_names: in the order of the labels, each the name of a folder or, for folders that are whole numbers, of
            label 0, 1, ...; by default the folders' names.
        name: of the data set, by default the folder's.
        simulated: whether the recordings come from a simulated sensor; ``name`` then has to say so.
        quiet: no progress bar.

    Returns:
        A FrameDataset. Labels are the numbers of the folders where all are whole numbers (SpikingJelly itself sorts
        them as text, so that its label 2 of DVS128 Gesture is folder "10"), else their places in ``class_names``.
        Counts above 255 are clipped, and counted in ``saturated``.

    Raises:
        ArgumentError: a bad ``split``, ``T``, ``class_names`` or ``name``.
        DataError: not such a folder; a damaged file; frames that are no counts, or of another shape than the first.
    """
    check_split(split)
    root = Path(folder).expanduser()
    if T is not None and (isinstance(T, bool) or not isinstance(T, (int, np.integer)) or T < 1):
        raise ArgumentError(f"T must be an integer of at least 1 or None, got {T!r}")
    if simulated and "simulated" not in (name or ""):
        raise ArgumentError(f"name of a simulated data set must say 'simulated', got {name!r}")
    files = _files(root, split)
    labels_of, names = _labels(root, {path.parent.name for path in files}, class_names)
    frames, saturated, digest = _read(files, T, root, quiet)
    ids = [path.relative_to(root).with_suffix("").as_posix() for path in files]
    labels = [labels_of[path.parent.name] for path in files]
    return FrameDataset(
        torch.from_numpy(frames),
        torch.tensor(labels, dtype=torch.int64),
        ids,
        class_names=names,
        name=name or root.name,
        simulated=simulated,
        content_key=sha256_json({"spikingjelly_frames": digest, "ids": ids, "labels": labels, "T": frames.shape[1]}),
        saturated=saturated,
        description=f"{split}, SpikingJelly's {root.name}",
    )


def _files(root: Path, split: str) -> list[Path]:
    """The .npz files of the split, by split, class and name."""
    parts = [part for part in SPLITS if (root / part).is_dir()]
    if not parts and split != "all":
        raise DataError(
            f"{root}: neither train/ nor test/ in it, so there is no split {split!r}: SpikingJelly does not split this "
            "data set. Load split='all' and take subset(...)"
        )
    wanted = [part for part in SPLITS if split in (part, "all")] if parts else [""]
    files = [path for part in wanted for path in sorted((root / part).glob("*/*.npz"))]
    if not files:
        raise DataError(f"{root}: no recordings for split {split!r}; expected <class>/<name>.npz in train/ and test/")
    return files


def _labels(root: Path, folders: set[str], class_names: Sequence[str] | None) -> tuple[dict[str, int], list[str]]:
    """Label of each folder, and the names of the classes."""
    parts = [part for part in SPLITS if (root / part).is_dir()] or [""]
    beside = {path.name for part in parts for path in (root / part).glob("*/") if path.is_dir()}
    numbered = all(name.isdecimal() and name.isascii() for name in folders)
    if class_names is None:
        # A class with recordings in the other split alone is a class all the same.
        known = sorted(folders | {name for name in beside if name.isdecimal() or not numbered})
        if not numbered:
            return {name: label for label, name in enumerate(known)}, known
        class_names = [str(label) for label in range(max(int(name) for name in known) + 1)]
    names = list(class_names)
    labels = {name: int(name) if numbered else names.index(name) if name in names else -1 for name in folders}
    strange = sorted(name for name, label in labels.items() if not 0 <= label < len(names))
    if strange:
        raise ArgumentError(f"class_names has {len(names)} names, none for the folder {strange[0]!r} in {root}")
    return labels, names


def _read(files: list[Path], T: int | None, root: Path, quiet: bool) -> tuple[NDArray[np.uint8], int, str]:
    """Frames uint8 [num, T, P, H, W], how many counts were clipped, and a hash of the frames."""
    digest = hashlib.sha256()
    frames: NDArray[np.uint8] | None = None
    saturated = 0
    for index, path in enumerate(progress(files, description=f"frames of {root.name}", total=len(files), quiet=quiet)):
        sample, clipped = _counts(path)
        if frames is None:
            shape = (len(files), len(sample) if T is None else int(T), *sample.shape[1:])
            try:
                frames = np.zeros(shape, np.uint8)
            except MemoryError as error:
                raise ArgumentError(f"folder: frames of shape {list(shape)} do not fit in memory: {error}") from error
        if sample.shape[1:] != frames.shape[2:] or (T is None and len(sample) != frames.shape[1]):
            hint = "" if sample.shape[1:] != frames.shape[2:] else "; give T to cut and fill them to one length"
            raise DataError(
                f"{path}: frames {list(sample.shape)}, but the first file has {list(frames.shape[1:])}{hint}"
            )
        kept = min(len(sample), frames.shape[1])
        frames[index, :kept] = sample[:kept]
        saturated += int(clipped[:kept].sum())
        digest.update(frames[index].tobytes())
    assert frames is not None
    return frames, saturated, digest.hexdigest()


def _counts(path: Path) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Frames [T, P, H, W], and how many cells of each frame [T] were clipped."""
    frames = read_npz(path, "frames")
    if frames.ndim != 4 or frames.shape[1] not in (1, 2) or 0 in frames.shape:
        raise DataError(f"{path}: expected frames [T, 1 or 2, H, W], got {list(frames.shape)}")
    if frames.dtype != np.uint8 and not (np.isfinite(frames) & (frames >= 0) & (frames == np.floor(frames))).all():
        raise DataError(f"{path}: its frames are no event counts (whole numbers from 0 on)")
    clipped = (frames > MAX_COUNT).sum(axis=(1, 2, 3))
    return np.minimum(frames, MAX_COUNT).astype(np.uint8), clipped
