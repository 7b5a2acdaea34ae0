"""N-Caltech101: Caltech101 seen by a moving ATIS, 8,709 recordings of 100 objects and a background class.

Layouts: ``<class>/image_<number>.bin`` (the authors' 40-bit events), or the same with .npz (SpikingJelly's
``events_np``). Recordings differ in size and lie in the top left corner of 240 x 180 pixels; tonic moves each so that
its lowest x and y are 0, here they are as recorded.
"""

from __future__ import annotations

import functools
import re
import shutil
from pathlib import Path

from snn_core.datasets.dataset_info import DatasetInfo, RegisteredDataset
from snn_core.datasets.folder_source import FolderSource
from snn_core.datasets.nmnist_format import read_nmnist
from snn_core.datasets.readers import read_events
from snn_core.datasets.roots import download_with_tonic, folders_in, missing
from snn_core.datasets.source import Recording
from snn_core.errors import ArgumentError, DataError

#: Recordings of each class, in the order of the labels; their numbers go from 1 to that without a gap.
COUNTS = {
    "BACKGROUND_Google": 467, "Faces_easy": 435, "Leopards": 200, "Motorbikes": 798, "accordion": 55,
    "airplanes": 800, "anchor": 42, "ant": 42, "barrel": 47, "bass": 54, "beaver": 46, "binocular": 33,
    "bonsai": 128, "brain": 98, "brontosaurus": 43, "buddha": 85, "butterfly": 91, "camera": 50, "cannon": 43,
    "car_side": 123, "ceiling_fan": 47, "cellphone": 59, "chair": 62, "chandelier": 107, "cougar_body": 47,
    "cougar_face": 69, "crab": 73, "crayfish": 70, "crocodile": 50, "crocodile_head": 51, "cup": 57,
    "dalmatian": 67, "dollar_bill": 52, "dolphin": 65, "dragonfly": 68, "electric_guitar": 75, "elephant": 64,
    "emu": 53, "euphonium": 64, "ewer": 85, "ferry": 67, "flamingo": 67, "flamingo_head": 45, "garfield": 34,
    "gerenuk": 34, "gramophone": 51, "grand_piano": 99, "hawksbill": 100, "headphone": 42, "hedgehog": 54,
    "helicopter": 88, "ibis": 80, "inline_skate": 31, "joshua_tree": 64, "kangaroo": 86, "ketch": 114, "lamp": 61,
    "laptop": 81, "llama": 78, "lobster": 41, "lotus": 66, "mandolin": 43, "mayfly": 40, "menorah": 87,
    "metronome": 32, "minaret": 76, "nautilus": 55, "octopus": 35, "okapi": 39, "pagoda": 47, "panda": 38,
    "pigeon": 45, "pizza": 53, "platypus": 34, "pyramid": 57, "revolver": 82, "rhino": 59, "rooster": 49,
    "saxophone": 40, "schooner": 63, "scissors": 39, "scorpion": 84, "sea_horse": 57, "snoopy": 35,
    "soccer_ball": 64, "stapler": 45, "starfish": 86, "stegosaurus": 59, "stop_sign": 64, "strawberry": 35,
    "sunflower": 85, "tick": 49, "trilobite": 86, "umbrella": 75, "watch": 239, "water_lilly": 37, "wheelchair": 59,
    "wild_cat": 34, "windsor_chair": 56, "wrench": 39, "yin_yang": 60,
}  # fmt: skip
CLASS_NAMES = tuple(COUNTS)
SENSOR_SIZE = (240, 180, 2)
#: The only split that is offered, our own since there is no official one: the test part is every fifth of each class.
SPLIT_NAME, EVERY = "every-fifth", 5
TEST = sum(count // EVERY for count in COUNTS.values())
SUFFIXES = {".bin": "", ".npz": "SpikingJelly's events"}
FOLDERS = (
    "NCALTECH101/Caltech101", "NCALTECH101/N-Caltech101-archive/Caltech101",
    "NCaltech101/Caltech101", "N-Caltech101/Caltech101", "N-Caltech101", "NCaltech101",
    "ncaltech101", "Caltech101", "extract/Caltech101", "NCaltech101/extract/Caltech101", "events_np",
    "NCaltech101/events_np",
)  # fmt: skip

INFO = DatasetInfo(
    name="ncaltech101",
    title="N-Caltech101",
    class_names=CLASS_NAMES,
    sensor_size=SENSOR_SIZE,
    splits={SPLIT_NAME: {"train": sum(COUNTS.values()) - TEST, "test": TEST}},
    split_rules={SPLIT_NAME: "test: the recordings of each class whose number is divisible by 5; our own"},
    licence="CC BY 4.0",
    citation=(
        "G. Orchard, A. Jayawant, G. K. Cohen, N. Thakor: Converting Static Image Datasets to Spiking Neuromorphic "
        "Datasets Using Saccades. Frontiers in Neuroscience 9, 437 (2015). doi:10.3389/fnins.2015.00437"
    ),
    home_page="https://www.garrickorchard.com/datasets/n-caltech101",
    how_to_get=(
        "Get Caltech101.zip by the links on https://www.garrickorchard.com/datasets/n-caltech101 (doi "
        "10.17632/cy6cvx3ryv), unpack it, and name the folder around it as root or in the environment variable "
        "SNN_DATA. With a network, download=True fetches it through tonic."
    ),
    where_to_put="Caltech101/<class>/image_<number>.bin in the root",
)


def open_ncaltech101(root: Path | None = None, *, download: bool = False, split_name: str = SPLIT_NAME) -> FolderSource:
    """N-Caltech101 in a folder.

    Args:
        root: the folder that holds the class folders, or the folder around it; by default $SNN_DATA.
        download: let tonic download it when it is not found.
        split_name: "every-fifth", the only one.

    Raises:
        ArgumentError: another ``split_name``.
        DataError: not there, or files that do not fit the layout.
    """
    if split_name != SPLIT_NAME:
        raise ArgumentError(f"split_name must be {SPLIT_NAME}, got {split_name!r}")
    found = _find(root)
    if found is None and download:
        download_with_tonic(INFO, root, _download)
        found = _find(root)
    if found is None:
        raise missing(INFO, root)
    folder, suffix, files = found
    splits: dict[str, list[Recording]] = {"train": [], "test": []}
    for (label, number), path in sorted(files.items()):
        if not 1 <= number <= COUNTS[CLASS_NAMES[label]]:
            raise DataError(
                f"{path}: number {number}; {CLASS_NAMES[label]} has 1 to {COUNTS[CLASS_NAMES[label]]} in N-Caltech101"
            )
        recording = Recording(f"{CLASS_NAMES[label]}/{number:04d}", label, path.relative_to(folder).as_posix())
        splits["train" if number % EVERY else "test"].append(recording)
    decode = functools.partial(read_nmnist, sensor_size=SENSOR_SIZE) if suffix == ".bin" else read_events
    return FolderSource(folder, INFO, splits, decode, split_name=split_name, form=SUFFIXES[suffix])


def _find(root: Path | None) -> tuple[Path, str, dict[tuple[int, int], Path]] | None:
    """The first folder with recordings of at least two classes, their suffix, and the files by label and number."""
    for folder in folders_in(root, FOLDERS):
        for suffix in SUFFIXES:
            files = {}
            for label, name in enumerate(CLASS_NAMES):
                for path in (folder / name).glob(f"image_*{suffix}"):
                    if number := re.fullmatch(r"image_(\d{4})", path.stem):
                        files[label, int(number.group(1))] = path
            if len({label for label, _ in files}) > 1:
                return folder, suffix, files
    return None


def _download(folder: str) -> None:
    from tonic.datasets import NCALTECH101

    NCALTECH101(save_to=folder)
    # What is downloaded is an archive of archives, of which tonic 1.7 unpacks the outer one.
    for archive in sorted(Path(folder).glob("NCALTECH101/**/Caltech101.zip")):
        if not archive.with_suffix("").is_dir():
            shutil.unpack_archive(archive, archive.parent)


DATASET = RegisteredDataset(INFO, open_ncaltech101)
