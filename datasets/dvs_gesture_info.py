"""What is known of DVS128 Gesture; its official split, of ``trials_to_train.txt`` and ``trials_to_test.txt``."""

from __future__ import annotations

from snn_core.datasets.dataset_info import DatasetInfo

INFO = DatasetInfo(
    name="dvs-gesture",
    title="DVS128 Gesture",
    class_names=(
        "hand_clapping",
        "right_hand_wave",
        "left_hand_wave",
        "right_arm_clockwise",
        "right_arm_counter_clockwise",
        "left_arm_clockwise",
        "left_arm_counter_clockwise",
        "arm_roll",
        "air_drums",
        "air_guitar",
        "other_gestures",
    ),
    sensor_size=(128, 128, 2),
    splits={"official": {"train": 1176, "test": 288}},
    split_rules={
        "official": "users 1 to 23 train, 24 to 29 test (trials_to_train.txt, trials_to_test.txt); "
        "tonic's extraction has 1,077 and 264 of them"
    },
    licence="CC BY 4.0",
    citation=(
        "A. Amir, B. Taba, D. Berg, T. Melano, J. McKinstry, C. Di Nolfo, T. Nayak, A. Andreopoulos, G. Garreau, M. "
        "Mendoza, J. Kusnitz, M. Debole, S. Esser, T. Delbruck, M. Flickner, D. Modha: A Low Power, Fully Event-Based "
        "Gesture Recognition System. IEEE Conference on Computer Vision and Pattern Recognition (2017)"
    ),
    home_page="https://research.ibm.com/interactive/dvsgesture/",
    how_to_get=(
        "Get DvsGesture.tar.gz from https://research.ibm.com/interactive/dvsgesture/ and unpack it, then name the "
        "folder around DvsGesture/ as root or in the environment variable SNN_DATA. With a network, download=True "
        "fetches tonic's extraction of it."
    ),
    where_to_put=(
        "DvsGesture/<trial>.aedat and <trial>_labels.csv; or events_np/{train,test}/<label>/<trial>_<n>.npz "
        "(SpikingJelly); or ibmGestureTrain/<trial>/<label>.npy and ibmGestureTest/... (tonic)"
    ),
)

LIGHTS = {"f": "fluorescent", "F": "fluorescent_led", "a": "lab", "l": "led", "n": "natural"}
#: Users 1 to 23 train, 24 to 29 test; and under which lights there is a trial of each.
FIRST_TEST_USER = 24
_LIGHTS_OF_USER = {
    1: "fFaln", 2: "fFaln", 3: "fFln", 4: "fFln", 5: "fFaln", 6: "fFaln", 7: "fFal", 8: "fFal", 9: "fFaln", 10: "fFal",
    11: "fFn", 12: "Fl", 13: "fFaln", 14: "fFln", 15: "fFaln", 16: "faln", 17: "fFaln", 18: "fFal", 19: "fFaln",
    20: "fFl", 21: "fFan", 22: "fFaln", 23: "fFal", 24: "fFl", 25: "fl", 26: "fFaln", 27: "fFln", 28: "fFaln",
    29: "fFaln",
}  # fmt: skip


def trials(split: str) -> list[str]:
    """Names of the trials of "train" (98) or "test" (24), in the order of the official list: "user01_fluorescent"."""
    return [
        f"user{user:02d}_{LIGHTS[light]}"
        for user, lights in _LIGHTS_OF_USER.items()
        for light in lights
        if (user >= FIRST_TEST_USER) == (split == "test")
    ]


SPLIT_OF_TRIAL = {trial: split for split in ("train", "test") for trial in trials(split)}
