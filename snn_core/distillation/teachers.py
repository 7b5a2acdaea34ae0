"""A pool of frozen teachers: several seeds, each kept at several moments of its training, cached on disk.

The cache is keyed by content: the data's key, the backbone, every training setting, the seed, the snapshot, and the
sources of the code that trains. So a changed setting or training never meets a stale teacher, and a second run trains
nothing. Teachers are frozen with batch norm in
evaluation mode: one synthetic sample per class is no batch to take statistics from.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

import snn_core
from snn_core.backbones import create
from snn_core.datasets import FrameDataset, cache_root
from snn_core.distillation.config import TeacherConfig
from snn_core.distillation.training_code import training_code_version
from snn_core.errors import ArgumentError, CheckpointError, ConfigError
from snn_core.files import sha256_json
from snn_core.seeding import derive_seed
from snn_core.training import TrainConfig, TrainResult, load_model, save_checkpoint, train_classifier
from snn_core.training.loop import STATE_FILE

CACHE_VERSION = 2


def model_hash(model: nn.Module) -> str:
    """SHA-256 (hex) over names, shapes and values of a model's parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Teacher:
    """A frozen network, its name (``seed/snapshot``) and the SHA-256 of its parameters.

    ``seconds``: what training it took, up to its snapshot.
    """

    name: str
    model: nn.Module
    hash: str
    seconds: float = 0.0


@dataclass(frozen=True)
class TeacherPool:
    """Frozen teachers. ``seconds``: what training them took (also when they came from the cache)."""

    teachers: list[Teacher]
    seconds: float = 0.0

    @classmethod
    def from_models(cls, models: dict[str, nn.Module]) -> TeacherPool:
        """A pool of networks trained elsewhere, by name; they are frozen in place.

        Raises:
            ArgumentError: no network.
        """
        if not models:
            raise ArgumentError("models: empty, a pool needs at least one teacher")
        return cls([Teacher(name, freeze(model), model_hash(model)) for name, model in models.items()])

    def only(self, index: int) -> TeacherPool:
        """One of the teachers as a pool, with the seconds that it alone took."""
        return TeacherPool([self.teachers[index]], self.teachers[index].seconds)

    @property
    def hashes(self) -> list[str]:
        """SHA-256 of every teacher, for provenance."""
        return [teacher.hash for teacher in self.teachers]

    def to(self, device: str | torch.device) -> TeacherPool:
        """Move all networks, in place."""
        for teacher in self.teachers:
            teacher.model.to(device)
        return self

    def __len__(self) -> int:
        return len(self.teachers)

    def __iter__(self) -> Iterator[Teacher]:
        return iter(self.teachers)

    def __getitem__(self, index: int) -> Teacher:
        return self.teachers[index]


def freeze(model: nn.Module) -> nn.Module:
    """Evaluation mode (batch norm included) and no parameter gradients, in place; returns the model."""
    return model.eval().requires_grad_(False)


class SnapshotHook:
    """A training hook that keeps copies of the model at given fractions of the training.

    After the training ``snapshots[i]`` is the state at ``fractions[i]``: parameters and buffers by name.
    """

    def __init__(self, fractions: tuple[float, ...]) -> None:
        self.fractions = fractions
        self.snapshots: list[dict[str, Tensor]] = []
        self._done = 0

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer, total_steps: int) -> None:
        """Fix the steps at which copies are taken."""
        self._model = model
        self._at = [max(1, round(fraction * total_steps)) for fraction in self.fractions]
        self._taken: dict[int, dict[str, Tensor]] = {}

    def step(self) -> None:
        """Take a copy when this step is one of the chosen."""
        self._done += 1
        for index, position in enumerate(self._at):
            if position == self._done:
                self._taken[index] = {name: value.clone() for name, value in self._model.state_dict().items()}

    def end(self) -> None:
        """Put the copies in order."""
        self.snapshots = [self._taken[index] for index in range(len(self.fractions))]

    def metrics(self) -> dict[str, float]:
        """Nothing to log."""
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """Copies taken so far and the number of steps seen."""
        taken = {f"{index}/{name}": value for index, copy in self._taken.items() for name, value in copy.items()}
        return {"done": torch.tensor(self._done), **taken}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self._done = int(state["done"])
        self._taken = {}
        for key, value in state.items():
            if key != "done":
                index, name = key.split("/", 1)
                self._taken.setdefault(int(index), {})[name] = value


def network_options(dataset: FrameDataset, options: dict[str, Any]) -> dict[str, Any]:
    """Backbone options completed by what the data decides: channels, classes and frame size."""
    width, height, channels = dataset.sensor_size
    fixed = {"in_channels": channels, "num_classes": dataset.num_classes, "input_size": [height, width]}
    return {**options, **fixed}


def make_train_config(values: dict[str, Any], name: str, **fixed: Any) -> TrainConfig:
    """A TrainConfig of ``values`` and ``fixed``. Raises ConfigError naming the section and the wrong key."""
    try:
        return TrainConfig.model_validate({**values, **fixed})
    except ValidationError as error:
        raise ConfigError(f"{name}: {error}") from error


def train_teachers(
    dataset: FrameDataset,
    config: TeacherConfig | None = None,
    *,
    seed: int = 0,
    cache_dir: str | os.PathLike[str] | None = None,
    use_cache: bool = True,
    quiet: bool = False,
    device: str | torch.device = "cpu",
) -> TeacherPool:
    """Train the pool, or take from the cache what is there.

    Args:
        dataset: the real training set.
        config: networks, snapshots and training settings.
        seed: teacher ``i`` uses a seed derived from it and ``i``.
        cache_dir: by default ``teachers`` in the package's cache folder (see :func:`snn_core.datasets.cache_root`).
        use_cache: False neither reads nor writes; an interrupted training then cannot be resumed.
        quiet: no progress bars. device: where to train; the pool stays there.

    Returns:
        ``config.count * len(config.snapshots)`` frozen teachers, then those of ``config.also``.

    Raises:
        ConfigError: ``config.training`` has a key that TrainConfig does not know. ArgumentError: unknown backbone or
        option. InterruptedRunError: Ctrl-C; the teacher in training is saved, the next run goes on from there.
    """
    config = config or TeacherConfig()
    folder = Path(cache_dir).expanduser() if cache_dir is not None else cache_root() / "teachers"
    teachers: list[Teacher] = []
    seconds = 0.0
    for prefix, kind in _kinds(config):
        for number in range(kind.count):
            member = _Member(dataset, kind, number, derive_seed(seed, "teacher", number), folder if use_cache else None)
            trained, needed = member.load() or member.train(quiet, device)
            teachers += [
                Teacher(f"{prefix}{number}/{part:g}", model, model_hash(model), part * needed)
                for part, model in zip(kind.snapshots, trained, strict=True)
            ]
            seconds += needed
    return TeacherPool(teachers, seconds).to(device)


def _kinds(config: TeacherConfig) -> list[tuple[str, TeacherConfig]]:
    """The configuration and those in its ``also``, each with what its teachers' names begin with."""
    others = [(f"{i}.{name}", kind) for i, more in enumerate(config.also, 1) for name, kind in _kinds(more)]
    return [("", config), *others]


class _Member:
    """One seed of the pool: its training, and its snapshots in the cache."""

    def __init__(
        self, dataset: FrameDataset, config: TeacherConfig, number: int, seed: int, folder: Path | None
    ) -> None:
        self.dataset, self.number, self.seed, self.folder = dataset, number, seed, folder
        self.backbone, self.fractions = config.backbone, config.snapshots
        self.options = network_options(dataset, config.backbone_options)
        self.training = make_train_config(config.training, "teachers.training", seed=seed)
        self.description = {
            "cache_version": CACHE_VERSION,
            "package_version": snn_core.__version__,
            "code": training_code_version(),
            "data": dataset.content_key,
            "backbone": self.backbone,
            "options": self.options,
            "training": self.training.model_dump(),
            "snapshots": list(self.fractions),
        }
        self.key = sha256_json(self.description)

    def _file(self, snapshot: int) -> Path:
        assert self.folder is not None
        return self.folder / f"teacher-{self.key[:32]}-{snapshot}.safetensors"

    def load(self) -> tuple[list[nn.Module], float] | None:
        """Snapshots and training seconds from the cache; None when one is not there or is damaged (then a warning)."""
        if self.folder is None or not all(self._file(i).is_file() for i in range(len(self.fractions))):
            return None
        models, seconds = [], 0.0
        for index in range(len(self.fractions)):
            try:
                model, metadata = load_model(self._file(index))
                if metadata.get("key") != self.key or metadata.get("hash") != model_hash(model):
                    raise CheckpointError(f"{self._file(index)}: content differs from its hash")
            except CheckpointError as error:
                warnings.warn(f"cached teacher is unusable ({error}); it is trained again", stacklevel=4)
                return None
            models.append(freeze(model))
            seconds = float(metadata["seconds"])
        return models, seconds

    def train(self, quiet: bool, device: str | torch.device) -> tuple[list[nn.Module], float]:
        """Train from the beginning, or from where an interrupted run stopped; fill the cache.

        A state of the interrupted run that cannot be read is removed with a warning, as a damaged teacher is.
        """
        running = self.folder / f"training-{self.key[:32]}" if self.folder is not None else None
        resume = running is not None and (running / STATE_FILE).is_file()
        try:
            hook, result = self._run(running, resume, quiet, device)
        except CheckpointError as error:
            if running is None or not resume:
                raise
            warnings.warn(
                f"interrupted teacher cannot be resumed ({error}); it is trained from the start", stacklevel=3
            )
            shutil.rmtree(running, ignore_errors=True)
            hook, result = self._run(running, False, quiet, device)
        models = []
        for index, snapshot in enumerate(hook.snapshots):
            kept = self._new()
            kept.load_state_dict(snapshot)
            models.append(freeze(kept))
            if self.folder is not None:
                metadata = {"key": self.key, "hash": model_hash(kept), "seconds": result.seconds, **self.description}
                save_checkpoint(self._file(index), kept, metadata)
        if running is not None:
            shutil.rmtree(running, ignore_errors=True)
        return models, result.seconds

    def _run(
        self, running: Path | None, resume: bool, quiet: bool, device: str | torch.device
    ) -> tuple[SnapshotHook, TrainResult]:
        """One training with a fresh network and hook; ``running`` is the folder of its resumable state."""
        hook = SnapshotHook(self.fractions)
        result = train_classifier(
            self._new(),
            self.dataset,
            self.training,
            hooks=[hook],
            output=running,
            resume=resume,
            name=f"teacher {self.number + 1}",
            quiet=quiet,
            device=device,
        )
        return hook, result

    def _new(self) -> nn.Module:
        return create(self.backbone, seed=self.seed, **self.options)
