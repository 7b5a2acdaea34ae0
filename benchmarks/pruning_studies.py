"""The studies of pruning.py: on which data, with which network, training and settings the methods are compared.

A study is a few settings under a name; ``python benchmarks/pruning.py --show NAME`` prints one as JSON, and a JSON file
of that form is a study too. Seeds below ``first_seed`` are for tuning: they never see the test set, see ``fold_names``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from studies import BaseStudy, Settings, find_study

from snn_core.pruning import PruneConfig
from snn_core.training import TrainConfig

#: Changes of SpikeNM's settings that take one of its parts away: run as method "spikenm/NAME".
ABLATIONS: dict[str, Settings] = {
    "no-eid": {"eid_weight": 0.0},
    "no-noise": {"eta": 0.0},
    "no-decay": {"mask_decay": 0.0},
    "no-logits": {"logit_learning_rate": 0.0},
    "no-sampler": {"logit_learning_rate": 0.0, "eta": 0.0, "eid_weight": 0.0},
    "no-anchor": {"rho": 0.0},
    # Not without one of its parts, but with relaxed draws in the place of exact ones, as steep at the end as hard ones.
    "relaxed": {"draws": "relaxed", "temperature": 5.0, "temperature_final": 0.1},
}


@dataclass(frozen=True)
class Study(BaseStudy):
    """What a comparison is made on.

    Attributes beside those of :class:`studies.BaseStudy`:
        train_size: training samples of a run, a stratified part of the training split drawn by the run's seed.
        folds: parts of a cross-validation on the training split; 0: none.
        on_test: whether runs are tested on the test split (beside the folds).
        model: options of conv-snn, or of the backbone ``name``.
        train: settings of TrainConfig. prune: of PruneConfig, for all methods; methods: for one method alone.
        patterns: N:M. first_seed, seeds: the reported seeds are first_seed .. first_seed + seeds - 1.
        device: where it is trained. keep_state: whether an interrupted run goes on from its last epoch.
    """

    train_size: int | None = None
    folds: int = 0
    on_test: bool = True
    model: Settings = field(default_factory=dict)
    train: Settings = field(default_factory=dict)
    prune: Settings = field(default_factory=dict)
    methods: dict[str, Settings] = field(default_factory=dict)
    patterns: tuple[str, ...] = ("2:4", "1:4", "2:8", "1:8", "1:16")
    first_seed: int = 100
    seeds: int = 10
    device: str = "cpu"
    keep_state: bool = False

    def fold_names(self, seed: int) -> list[int | str]:
        """Where a run of that seed is tested: its folds, "test", or "validation" where the seed is one for tuning.

        The validation part is a fifth of the training split, on which no run of a tuning seed trains; cross-validation
        of tuning seeds cuts other folds.
        """
        last: list[int | str] = ["test"] if self.on_test else []
        if seed < self.first_seed:
            last = [] if self.folds else ["validation"]
        return [*range(self.folds), *last]

    def train_config(self, seed: int = 0) -> TrainConfig:
        """Of a run."""
        return TrainConfig(**(self.train | {"seed": seed}))

    def prune_config(self, method: str) -> PruneConfig:
        """Of a method, or of an ablation "spikenm/NAME"."""
        base, _, ablation = method.partition("/")
        changes = ABLATIONS[ablation] if ablation else {}
        return PruneConfig(**(self.prune | self.methods.get(base, {}) | changes | self.methods.get(method, {})))

    def cell_settings(self, method: str) -> Settings:
        """All that a run of this method depends on, beside seed, pattern and fold."""
        own = asdict(self)
        keep = ("data", "T", "data_options", "train_limit", "test_limit", "train_size", "folds", "model", "device")
        prune = None if method == "dense" else self.prune_config(method).model_dump(mode="json")
        for name in ("seed", "pattern"):
            (prune or {}).pop(name, None)
        train = self.train_config().model_dump(mode="json")
        del train["seed"]
        return {name: own[name] for name in keep} | {"train": train, "prune": prune, "keep_state": self.keep_state}


def get_study(name: str) -> Study:
    """A study by name, or from a JSON file. ArgumentError: neither, or keys that a study does not have."""
    return find_study(name, STUDIES, _from_json)


def _from_json(fields: Settings) -> Study:
    return Study(**(fields | {"patterns": tuple(fields.get("patterns", Study.patterns))}))


_PICTURES = {
    "in_channels": 3, "input_transform": "standardise", "stem_kernel": 3, "stem_stride": 1, "dropout": 0.0,
}  # fmt: skip
#: 8 epochs of 12,500 pictures in batches of 50 are 2,000 steps.
_CIFAR_TRAINING = {
    "epochs": 8, "batch_size": 50, "learning_rate": 3e-3, "weight_decay": 1e-2, "warmup": 0.05, "hold": 0.5,
    "tet_weight": 0.0, "augment": "crop-flip",
}  # fmt: skip
_VGG = {
    "channels": [64, 128, 128, 256, 256, 512, 512, 512], "strides": [1] * 8, "pools": [1, 2, 1, 2, 1, 2, 1, 4],
    "dropout": 0.1,
}  # fmt: skip

STUDIES: dict[str, Study] = {
    study.name: study
    for study in (
        Study(
            "nmnist", "N-MNIST, real recordings: cross-validation on the training split, and the official test split",
            "nmnist", T=3, folds=5, model={"channels": [32, 64, 64]}, train={"label_smoothing": 0.1}, seeds=3,
        ),
        Study(
            "cifar10-small", "CIFAR-10 at 16 x 16: 12,500 pictures drawn by the seed, 2,000 steps, all test pictures",
            "cifar10", T=2, data_options={"size": 16}, train_size=12_500,
            model=_PICTURES | {"channels": [32, 32, 64, 64], "strides": [1, 2, 2, 1], "pools": [1, 1, 1, 1]},
            train=_CIFAR_TRAINING, first_seed=101,  # 100 was looked at with half of these steps
        ),
        Study(
            "motion-sim", "motion-sim (simulated): classes that differ in their motion alone",
            "motion-sim", T=8, train_limit=6000, test_limit=1200, train_size=2000,
            model={"channels": [16, 32, 32]}, train={"epochs": 16, "batch_size": 50, "augment": "none"},
        ),
        Study(
            "nmnist-sim", "nmnist-sim (simulated): MNIST's pictures before a simulated sensor, 1,000 recordings a run",
            "nmnist-sim", T=3, train_limit=10_000, test_limit=2000, train_size=1000,
            model={"channels": [16, 32, 32]}, train={"epochs": 25},
        ),
        Study(
            "cifar10-gpu", "all of CIFAR-10 at 32 x 32, a spiking VGG, 120 epochs on a GPU",
            "cifar10", T=4, model=_PICTURES | _VGG,
            train={"epochs": 120, "batch_size": 128, "learning_rate": 2e-3, "weight_decay": 2e-2, "warmup": 0.04,
                   "hold": 0.3, "tet_weight": 0.5, "label_smoothing": 0.1, "augment": "crop-flip",
                   "precision": "bfloat16"},
            patterns=("2:4", "1:8", "1:16"), seeds=3, device="cuda", keep_state=True,
        ),
        Study(
            "dvs-gesture", "DVS128 Gesture, real recordings, where they are",
            "dvs-gesture", T=16, model={"num_classes": 11, "stem_stride": 4, "channels": [32, 64, 64, 64]},
            train={"epochs": 60, "batch_size": 16, "learning_rate": 3e-3, "augment": "dvs-gesture"}, seeds=5,
            keep_state=True,
        ),
        Study(
            "cifar10-dvs", "CIFAR10-DVS, real recordings, where they are, in SpikingJelly's split",
            "cifar10-dvs", T=8, data_options={"split_name": "spikingjelly"},
            model={"stem_stride": 4, "channels": [32, 64, 64, 64]},
            train={"epochs": 60, "batch_size": 32, "learning_rate": 3e-3, "augment": "cifar10-dvs"}, seeds=5,
            keep_state=True,
        ),
        Study(
            "digits", "digits-dvs (simulated): a few seconds a run, to see that everything works",
            "digits-dvs", T=3, train_limit=200, test_limit=100, model={"channels": [8, 16, 16]},
            train={"epochs": 2}, patterns=("2:4", "1:8"), seeds=2,
        ),
    )
}  # fmt: skip
