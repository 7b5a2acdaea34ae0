"""The product: a small HDF5 file of frames that trains a network, with everything needed to make it again.

Layout: datasets ``frames`` uint8 [num, T, 2, H, W] and ``labels`` int64 [num] (sorted by class); every field of
:class:`Provenance` is an attribute (dictionaries and lists as JSON), beside ``format``, ``format_version`` and
``checksum``, a SHA-256 over shape and content of frames and labels. A learned decoder's weights (float16) lie in the
group ``decoder``; the checksum covers them, and the version is 2: a reader of version 1 would decode wrongly. A second
SHA-256, over the whole file, stands before the HDF5 content (:mod:`snn_core.datasets.hdf5`) and is verified before
anything is parsed. One line loads it::

    train_set = DistilledDataset.load("distilled.h5")        # with multi-formation: .decoded()
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from snn_core.datasets import FrameDataset
from snn_core.datasets.hdf5 import read_hdf5, write_hdf5
from snn_core.distillation.decoder import ClipDecoder
from snn_core.distillation.formation import Formation
from snn_core.errors import ArgumentError, CheckpointError
from snn_core.files import sha256_json
from snn_core.seeding import make_generator

FORMAT = "snn_core.distilled"
#: Without and with a learned decoder.
PLAIN_VERSION, DECODER_VERSION = 1, 2
_READ_ERRORS = (OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError, MemoryError)
_MOST_COMPRESSED = 1032  # no DEFLATE stream holds more bytes a byte
#: Group of the decoder's weights in a file.
DECODER = "decoder"
PathLike = str | os.PathLike[str]
Loaded = TypeVar("Loaded", bound="DistilledDataset")


class Provenance(BaseModel):
    """Where a product comes from.

    ``source_name``, ``source_content_key``, ``source_description``, ``source_samples``: the real set; ``simulated``:
    whether its recordings come from a simulated sensor; ``method``: "pace", "random", ...; ``config``: of the method;
    ``teacher_hashes``: SHA-256 of each teacher's parameters; ``seconds``: wall-clock of making it, without teachers;
    ``teacher_seconds``: of training the teachers (what it took when they were trained); ``measured``: results of
    evaluations, added later.
    """

    model_config = ConfigDict(extra="forbid")

    method: str
    source_name: str
    source_content_key: str
    source_description: str = ""
    source_samples: int
    simulated: bool
    class_names: list[str]
    ipc: int
    seed: int
    config: dict[str, Any] = Field(default_factory=dict)
    teacher_hashes: list[str] = Field(default_factory=list)
    package_version: str
    seconds: float = 0.0
    teacher_seconds: float = 0.0
    measured: dict[str, Any] = Field(default_factory=dict)


def frames_checksum(frames: Tensor, labels: Tensor, decoder: ClipDecoder | None = None) -> str:
    """SHA-256 (hex) over shape and content of ``frames`` (uint8), ``labels`` (int64) and a decoder's weights."""
    digest = hashlib.sha256(f"{list(frames.shape)}".encode())
    digest.update(frames.cpu().contiguous().numpy().tobytes())
    digest.update(labels.cpu().numpy().astype("<i8").tobytes())
    for name, value in sorted(decoder.half_tensors().items()) if decoder is not None else ():
        digest.update(f"{name} {list(value.shape)}".encode())
        digest.update(value.numpy().astype("<f2").tobytes())
    return digest.hexdigest()


class DistilledDataset(FrameDataset):
    """A product in memory: a :class:`snn_core.datasets.FrameDataset` that knows its provenance.

    Args:
        frames: uint8 [K * ipc, T, 2, H, W]. labels: int64 [K * ipc]. provenance: where they come from.
        decoder: learned, of the stored clips; its weights are rounded to float16 here, as a file holds them.

    Raises:
        ArgumentError: shapes, dtypes or labels that do not fit together.
    """

    def __init__(
        self, frames: Tensor, labels: Tensor, provenance: Provenance, decoder: ClipDecoder | None = None
    ) -> None:
        if decoder is not None:
            decoder.store_as_half_()
        super().__init__(
            frames,
            labels,
            [f"{provenance.method}/{provenance.class_names[label]}/{i}" for i, label in enumerate(labels.tolist())],
            class_names=provenance.class_names,
            name=f"{provenance.source_name}, {provenance.method}, {provenance.ipc} per class",
            simulated=provenance.simulated,
            content_key=frames_checksum(frames, labels, decoder),
            description=provenance.source_description,
        )
        self.provenance = provenance
        self.decoder = decoder

    @classmethod
    def load(cls: type[Loaded], path: PathLike) -> Loaded:
        """Read a product and verify it.

        Raises:
            CheckpointError: no such file, not a product, of another version, truncated, changed (checksum), or one that
                claims more data than it holds.
        """
        path = Path(path)
        if not path.is_file():
            raise CheckpointError(f"product {path} does not exist")
        try:
            frames, labels, weights, attributes = _read(path)
        # The checksum comes as DataError, a ValueError; files made to harm can make h5py raise any of the others.
        except _READ_ERRORS as error:
            raise CheckpointError(f"{path}: not a readable product file ({error})") from error
        found = (attributes.pop("format", None), attributes.pop("format_version", None))
        if not _known(*found):
            raise CheckpointError(
                f"{path}: holds {found[0]} version {found[1]}, need {FORMAT} version {PLAIN_VERSION} or "
                f"{DECODER_VERSION}"
            )
        checksum = attributes.pop("checksum", None)
        try:
            provenance = Provenance.model_validate(attributes)
            decoder = _decoder_of(weights, provenance, frames.shape[2] if frames is not None and frames.ndim > 2 else 0)
            if frames is None or labels is None or checksum != frames_checksum(frames, labels, decoder):
                raise CheckpointError(f"{path}: frames or labels are missing or changed (the checksum does not match)")
            return cls(frames, labels, provenance, decoder)
        except (ValidationError, ArgumentError, IndexError) as error:
            raise CheckpointError(f"{path}: its attributes or frames do not fit a product: {error}") from error

    @property
    def formation(self) -> Formation:
        """How clips lie in a stored sample; from the attribute ``config``, so it travels with the file."""
        return Formation.of(self.provenance.config)

    def decoded(self) -> FrameDataset:
        """What a network trains on: every stored clip as a sample of its own, or this set where a sample is one clip.

        A learned decoder draws counts from a generator of the provenance's seed, so they are the same every time (but
        for a rate that another machine rounds otherwise).

        Raises:
            ArgumentError: frames that the formation of the attributes cannot divide.
        """
        formation = self.formation
        if formation.plain and self.decoder is None:
            return self
        ids = [f"{name}/{clip}" for name in self.ids for clip in range(formation.clips)]
        if self.decoder is None:
            frames = formation.decode(self.frames)
        else:
            codes = formation.take_apart(formation.unpack(self.frames))
            frames = self.decoder.decode(codes, generator=make_generator(self.provenance.seed, "decode"))
        return FrameDataset(
            frames,
            self.labels.repeat_interleave(formation.clips),
            ids,
            class_names=self.class_names,
            name=self.name,
            simulated=self.simulated,
            content_key=sha256_json([self.content_key, "decoded", *asdict(formation).values()]),
            description=self.description,
        )

    @property
    def num_bytes(self) -> int:
        """Bytes of the frames, uncompressed, and of the decoder's weights."""
        return self.frames.numel() + (self.decoder.num_bytes if self.decoder is not None else 0)


def write_product(path: PathLike, product: DistilledDataset) -> None:
    """Write ``product`` as HDF5, atomically; the same product gives the same bytes.

    Raises:
        StorageError: the disk refuses; an earlier file of that name is intact.
    """
    attributes: dict[str, Any] = {
        "format": FORMAT,
        "format_version": PLAIN_VERSION if product.decoder is None else DECODER_VERSION,
        "checksum": product.content_key,
    }
    for name, value in product.provenance.model_dump().items():
        attributes[name] = json.dumps(value, sort_keys=True) if isinstance(value, dict | list) else value

    def fill(file: Any) -> None:
        file.create_dataset("frames", data=product.frames.numpy(), compression="gzip", compression_opts=9)
        file["labels"] = product.labels.numpy().astype("<i8")
        for name, value in product.decoder.half_tensors().items() if product.decoder is not None else ():
            file[f"{DECODER}/{name}"] = value.numpy().astype("<f2")
        for name, value in sorted(attributes.items()):
            file.attrs[name] = value

    write_hdf5(path, fill)


def record_measurement(path: PathLike, name: str, value: dict[str, Any]) -> DistilledDataset:
    """Add the result of an evaluation under ``measured[name]`` to the product at ``path``; returns the product.

    Raises:
        CheckpointError: the file is no valid product. StorageError: it cannot be written; it is then unchanged.
    """
    product = DistilledDataset.load(path)
    product.provenance.measured[name] = json.loads(json.dumps(value))
    write_product(path, product)
    return product


def _known(name: Any, version: Any) -> bool:
    return name == FORMAT and version in (PLAIN_VERSION, DECODER_VERSION)


def _decoder_of(weights: dict[str, Tensor], provenance: Provenance, planes: int) -> ClipDecoder | None:
    """The decoder of these weights, for frames of so many polarities.

    Raises:
        ArgumentError: weights that are none of such a decoder and of the provenance's formation, or not finite.
    """
    if not weights:
        return None
    formation, config = Formation.of(provenance.config), provenance.config
    try:
        width = len(weights["first.weight"])
        with torch.device("meta"):  # no memory before the shapes are known to fit
            decoder = ClipDecoder(
                planes, formation.space, formation.time, width=width, draw=config.get("decoder_draw", "probabilistic")
            )
        decoder.load_state_dict({name: value.float() for name, value in weights.items()}, assign=True)
    except (KeyError, ValueError, RuntimeError) as error:
        raise ArgumentError(f"decoder: these weights are not of a decoder of this formation: {error}") from error
    if not all(bool(torch.isfinite(value).all()) for value in weights.values()):
        raise ArgumentError("decoder: its weights are not finite")
    return decoder.requires_grad_(False)


def _read(path: Path) -> tuple[Tensor | None, Tensor | None, dict[str, Tensor], dict[str, Any]]:
    with read_hdf5(path) as file:
        attributes = {name: _plain(value) for name, value in file.attrs.items()}
        if not _known(attributes.get("format"), attributes.get("format_version")):
            return None, None, {}, attributes
        frames = _read_array(file["frames"], np.dtype(np.uint8))
        labels = _read_array(file["labels"], np.dtype(np.int64))
        weights = {}
        if attributes["format_version"] == DECODER_VERSION:
            group = file[DECODER]
            weights = {name: torch.from_numpy(_read_array(group[name], np.dtype("<f2"))) for name in group}
    for name, field in Provenance.model_fields.items():
        if isinstance(attributes.get(name), str) and field.annotation is not str:
            attributes[name] = json.loads(attributes[name])
    return torch.from_numpy(frames), torch.from_numpy(labels), weights, attributes


def _read_array(dataset: Any, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """All of an HDF5 data set; its declared type and size are checked before memory is taken for them."""
    if dataset.dtype != dtype:
        raise ValueError(f"{dataset.name} is {dataset.dtype}, need {dtype}")
    # More filters than one could multiply their ratios, and virtual or external data lies outside this file.
    if dataset.is_virtual or dataset.external or dataset.id.get_create_plist().get_nfilters() > 1:
        raise ValueError(f"{dataset.name} is stored in a way that products do not use")
    stored = dataset.id.get_storage_size()
    if dataset.nbytes > _MOST_COMPRESSED * stored:
        raise ValueError(f"{dataset.name} declares shape {dataset.shape}, but the file holds only {stored} bytes of it")
    content: np.ndarray[Any, Any] = dataset[...]
    return content


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
