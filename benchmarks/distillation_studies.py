"""The studies of distillation.py: on which data, with which settings and how often the methods are compared.

A study is a few settings under a name; ``python benchmarks/distillation.py --show NAME`` prints one as JSON, and a JSON
file of that form is a study too. Tuning uses folds of the training split alone, and other ones than the reported
cross-validation.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from studies import BaseStudy, Settings, find_study

from snn_core.distillation import DistillConfig, EvaluationConfig
from snn_core.errors import ArgumentError
from snn_core.training import TrainConfig

#: What every IPC is compared with, and what IPC 1 alone is.
MAIN = ("pace", "pace/multi", "random", "herding", "dm/time-mean", "dm/time-mean-sdr")
OTHERS = ("k-centre", "forgetting", "dc", "dc/time-mean", "dm", "dm/sdr", "ncfm", "ncfm/time-mean")
ABLATIONS = (
    "pace/no-sdr", "pace/amplitude-only", "pace/no-coherence", "pace/no-dft", "pace/no-cf", "pace/no-peqn",
    "pace/no-decoder", "pace/no-decoder-matching",
)  # fmt: skip

#: Other networks than a study's "same": name -> (backbone, options). "average-pooling" is the default teachers' form;
#: the others took no part in distillation.
OTHER_NETWORKS: dict[str, tuple[str, Settings]] = {
    "wider": ("conv-snn", {"channels": [32, 64, 64], "norm_gain": 1.0}),
    "average-pooling": ("conv-snn", {"channels": [16, 32, 32], "pool": "avg", "norm_gain": 1.0}),
    "vgg": ("spiking_vgg9", {"width": 0.25, "norm": "bn", "pools": 3}),
    "resnet": ("sew_resnet18", {"channels": [16, 32, 64, 64], "stem": "events"}),
    "spikformer": ("spikformer", {"depth": 2, "embed_dim": 64, "num_heads": 4}),
}
TRANSFERRED = ("pace", "random")


@dataclass(frozen=True)
class Study(BaseStudy):
    """What a comparison is made on.

    Attributes beside those of :class:`studies.BaseStudy`:
        class_limit: the first classes alone.
        pairs: classes 2 i and 2 i + 1 are a pair: accuracy of the pair, and within it, are reported too.
        grid: IPC (as text) -> methods. sets: distilled sets of a method; networks: fresh ones a set.
        full_networks: networks of the full-data reference.
        cross_validated: methods that the reported run, beside the test split, cross-validates at IPC 1.
        folds: parts of the training split. held_folds: so many of them, the first, are not reported: tuning has their
            samples alone and cuts them into ``folds`` of its own. Where nothing is cross-validated, tuning has all of
            the training split. tuning_folds: how many folds are used for tuning.
        first_seed: of the reported sets; tuning has those from 0 on.
        distill: settings of DistillConfig, for all methods; distill_at: changes for an IPC; methods: for one method
            alone; methods_at: of these, at an IPC. formation: clips in a sample of "pace/multi", which is
            reported apart.
        evaluate: of EvaluationConfig; evaluate_at: changes for an IPC. full: of TrainConfig, for all data.
        networks_also: names of OTHER_NETWORKS for transfer; transferred: methods that are; other_networks: fresh ones
            a set; full_also: whether these are trained on all data too.
        curve_points: points of accuracy against training time. device: of everything.
    """

    class_limit: int | None = None
    pairs: bool = False
    grid: dict[str, tuple[str, ...]] = field(default_factory=lambda: {"1": MAIN})
    sets: int = 3
    networks: int = 3
    full_networks: int = 3
    folds: int = 5
    held_folds: int = 2
    tuning_folds: int = 1
    cross_validated: tuple[str, ...] = ()
    first_seed: int = 100
    distill: Settings = field(default_factory=dict)
    distill_at: dict[str, Settings] = field(default_factory=dict)
    methods: dict[str, Settings] = field(default_factory=dict)
    methods_at: dict[str, dict[str, Settings]] = field(default_factory=dict)
    formation: Settings = field(default_factory=lambda: {"formation_space": 2})
    evaluate: Settings = field(default_factory=dict)
    evaluate_at: dict[str, Settings] = field(default_factory=dict)
    full: Settings = field(default_factory=dict)
    networks_also: tuple[str, ...] = tuple(OTHER_NETWORKS)
    transferred: tuple[str, ...] = TRANSFERRED
    other_networks: int = 2
    full_also: bool = False
    curve_points: int = 12
    device: str = "cpu"

    def fold_names(self, tuning: bool) -> list[int | str]:
        """Where sets are tested: on folds of their own for tuning, else on "test" and perhaps the folds not held."""
        if tuning:
            return list(range(self.tuning_folds))
        return ["test", *(range(self.held_folds, self.folds) if self.cross_validated else ())]

    def distill_config(self, method: str, ipc: int) -> DistillConfig:
        """Of a method: the study's, then those of "METHOD" and of "METHOD/FORM"."""
        base = method.partition("/")[0]
        own = merged(merged(self.distill, self.distill_at.get(str(ipc), {})), self.methods.get(base, {}))
        own = merged(own, self.methods_at.get(str(ipc), {}).get(base, {}))
        if method == "pace/multi":
            own |= self.formation
        return DistillConfig.model_validate(merged(own, self.methods.get(method, {})) | {"ipc": ipc})

    def evaluation_config(self, ipc: int, network: str) -> EvaluationConfig:
        """Of a network: "same", or one of OTHER_NETWORKS. ``ipc`` 0: all data, trained with ``full``."""
        values = merged(self.evaluate, self.evaluate_at.get(str(ipc), {}))
        if network == "same":
            return EvaluationConfig.model_validate(values | {"networks": self.networks})
        backbone, options = OTHER_NETWORKS[network]
        values |= {"backbone": backbone, "backbone_options": options, "networks": self.other_networks}
        return EvaluationConfig.model_validate(values)

    def data_settings(self) -> Settings:
        """What decides the samples."""
        own = asdict(self)
        names = ("data", "T", "data_options", "train_limit", "test_limit", "class_limit", "folds")
        return {name: own[name] for name in names} | {"held_folds": self.held_folds if self.cross_validated else 0}

    def check(self) -> None:
        """Refuse wrong settings before anything runs (pydantic's errors name the key)."""
        for ipc, methods in self.grid.items():
            for method in methods:
                self.distill_config(method, int(ipc))
        for network in ("same", *self.networks_also):
            if network != "same" and network not in OTHER_NETWORKS:
                raise ArgumentError(f"networks_also: {network!r} is unknown; there are {', '.join(OTHER_NETWORKS)}")
            self.evaluation_config(1, network)
        TrainConfig.model_validate(self.full)
        if self.cross_validated and not 1 <= self.held_folds < self.folds:
            raise ArgumentError(f"held_folds: got {self.held_folds}, need 1 .. {self.folds - 1} of {self.folds} folds")


def merged(base: Settings, changes: Settings) -> Settings:
    """``base`` with ``changes``; dictionaries inside (``teachers``, ``training``) are merged too."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def get_study(name: str) -> Study:
    """A study by name, or from a JSON file. ArgumentError: neither, or keys that a study does not have."""
    return find_study(name, STUDIES, lambda fields: Study(**fields))


_SMALL = (*MAIN, *OTHERS, *ABLATIONS)
_AVERAGE = {"channels": [16, 32, 32], "pool": "avg", "norm_gain": 1.0}
#: Start from real clips and leave them what they are but for what the loss asks for most (docs/notes/pace.md).
GENTLE: Settings = {
    "time_matching": "coherent", "cf_weight": 0.0, "dm_weight": 1.0, "quantize": "round", "gradient_floor": 3.0,
    "learning_rate": 0.06, "iterations": 40, "real_batch": 48,
}  # fmt: skip
#: Real clips chosen by herding, stored small and coarse; what is learned is the decoder, by ST-SM on spikes.
DECODED: Settings = {
    "init": "herding", "iterations": 0, "decoder": "learned", "beta": 0.0, "dm_weight": 0.0,
}  # fmt: skip
#: 1,176 / 288 recordings of 128 x 128 pixels in 11 classes: a stem of stride 4 first.
_GESTURE_NET = {"stem_stride": 4, "channels": [32, 64, 64, 64], "norm_gain": 1.0}


def _recorded(data: str, about: str, *, T: int, batch_size: int, teacher_epochs: int, **more: Any) -> Study:
    """The large grid on recordings of 128 x 128 pixels, augmented by the policy that has the data's name."""
    training = {"batch_size": batch_size, "learning_rate": 3e-3, "augment": data}
    return Study(
        data, about, data, T=T, grid={"1": _SMALL, "10": MAIN}, sets=5, networks=5, full_networks=5,
        full=training | {"epochs": 100},
        evaluate={"backbone_options": _GESTURE_NET, "steps": 600, "training": {"augment": data}},
        distill={
            "iterations": 1000, "max_shift": 8, "num_shifts": 12, "real_batch": 16,
            "teachers": {
                "backbone_options": _GESTURE_NET | {"pool": "avg"}, "training": training | {"epochs": teacher_epochs},
            },
        },
        networks_also=(), device="cuda", **more,
    )  # fmt: skip


def _motion(name: str, about: str, *, distill: Settings | None = None, **more: Any) -> Study:
    """On motion-sim. All that trains (networks on all data and on products, teachers) is augmented alike."""
    training = {"epochs": 16, "batch_size": 50, "augment": "shift"}
    return Study(
        name, about, "motion-sim", T=8, train_limit=3000, test_limit=1200, pairs=True, sets=4, full=training,
        # A motion is learned late: 600 steps, where N-MNIST's digits need 200.
        evaluate={"backbone_options": _AVERAGE, "steps": 600, "training": {"augment": "shift"}},
        distill={"teachers": {"training": training}} | (distill or {}), **more,
    )  # fmt: skip


STUDIES: dict[str, Study] = {
    study.name: study
    for study in (
        Study(
            "nmnist", "N-MNIST, 750 / 100 real recordings: the test split, and five-fold cross-validation on the 750",
            "nmnist", T=6, grid={"1": _SMALL, "10": MAIN}, sets=4, cross_validated=("pace", "random", "herding"),
        ),
        Study(
            "nmnist-sim", "nmnist-sim (simulated): all of MNIST before a simulated sensor, 60,000 / 10,000",
            "nmnist-sim", T=6, grid={"1": ("pace", "pace/multi", "random", "herding", "dm/time-mean")}, full_networks=2,
            full={"epochs": 5, "batch_size": 100}, distill={"teachers": {"training": {"epochs": 2, "batch_size": 50}}},
            networks_also=(), curve_points=0,  # every point is a test on 10,000
        ),
        _motion(
            "motion-sim", "motion-sim (simulated): classes that differ in their motion alone, in pairs; several "
            "small clips in a sample, whatever the method: the formation in which real clips did best on tuning folds",
            grid={"1": _SMALL, "10": MAIN}, formation={},
            distill=GENTLE | {"formation_space": 2, "formation_digits": 5, "formation_gain": 2},
            # There are 250 recordings a class: 40 clips of full size, not 200 small ones.
            distill_at={"10": {"formation_space": 1, "formation_digits": 4, "formation_gain": 1}},
            # With a decoder the small ones are better there, too.
            methods={"pace": DECODED},
            methods_at={"10": {"pace": {"formation_space": 2, "formation_digits": 5, "formation_gain": 2}}},
        ),
        _motion(
            "motion-sim-single", "motion-sim (simulated), one clip a sample",
            grid={"1": (*MAIN, "pace/amplitude-only")},
        ),
        Study(
            "digits", "digits-dvs (simulated): a minute, to see that everything works",
            "digits-dvs", T=3, train_limit=200, test_limit=100, grid={"1": (*MAIN, *OTHERS), "2": ("pace", "random")},
            sets=2, networks=2, full_networks=2, full={"epochs": 6}, evaluate={"steps": 40},
            distill={"iterations": 30, "teachers": {"count": 1, "training": {"epochs": 4}}},
            networks_also=("wider",), curve_points=6,
        ),
        Study(
            "gesture-size", "for --cost: as many recordings of 128 x 128 pixels and T = 20 as DVS128 Gesture has for "
            "training, from motion-sim (simulated)",
            "motion-sim", T=20, data_options={"size": 128}, train_limit=1176, test_limit=288, pairs=True,
            grid={"1": ("pace",), "10": ("pace",)},
            evaluate={"backbone_options": _GESTURE_NET}, networks_also=(),
            distill={"teachers": {"backbone_options": _GESTURE_NET | {"pool": "avg"}}},
        ),
        _recorded("dvs-gesture", "DVS128 Gesture, real recordings, where they are; on a GPU", T=16, batch_size=16,
                  teacher_epochs=60),
        _recorded("cifar10-dvs", "CIFAR10-DVS, real recordings, where they are, in SpikingJelly's split; on a GPU",
                  T=8, batch_size=32, teacher_epochs=40, data_options={"split_name": "spikingjelly"}),
        Study(
            "nmnist-sim-gpu", "nmnist-sim (simulated), all of MNIST, every method and IPC; on a GPU",
            "nmnist-sim", T=6, grid={"1": _SMALL, "10": MAIN, "50": MAIN}, sets=5, networks=20, full_networks=5,
            full={"epochs": 20, "batch_size": 128},
            distill={"iterations": 1000, "teachers": {"count": 5, "training": {"epochs": 10, "batch_size": 128}}},
            device="cuda",
        ),
    )
}  # fmt: skip
