"""The motions of ``motion-sim``: where the picture is at every time, drawn at random for each recording.

Six motions, each forwards and backwards: the second class of a pair is the first played from its end to its start. All
paths are closed, so that both cover the same points at the same speeds, and only the order in time tells them apart.
What else could is drawn at random, from the same distribution for all classes: place, size, width and tilt of the path,
where it begins (of circles and figure-eights), a smooth warp of time, a tremor, whether the picture is bright or dark,
and a second, fainter picture that goes round a circle of its own (the distractor). All of these distributions stay the
same when time runs backwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from snn_core.seeding import derive_seed

CLASS_NAMES: tuple[str, ...] = (
    "circle clockwise",
    "circle counter-clockwise",
    "figure-eight forwards",  # out below the middle, back above it, on both sides
    "figure-eight backwards",
    "wave right-left",  # from the middle to the right, to the left, and back to the middle
    "wave left-right",
    "wave down-up",
    "wave up-down",
    "roll clockwise",
    "roll counter-clockwise",
    "shake faster",
    "shake slower",
)
CIRCLE, EIGHT, WAVE_ACROSS, WAVE_DOWN, ROLL, SHAKE = range(6)

#: Lengths below are in pixels of a sensor of this many; larger sensors see everything in proportion.
NOMINAL_PIXELS = 34
SHAKES = 3  # there and back
SHAKE_AMPLITUDE = 0.45  # of the amplitude of other motions
CHIRP = 0.6  # a shake's speed rises from 1 - CHIRP to 1 + CHIRP, or falls back
TREMOR_CYCLES = (5, 6, 7, 8, 9)  # whole numbers, so that paths stay closed

#: Name of each drawn parameter -> range; angles and phases in turns. The order is that of the draws: append only.
RANGES: dict[str, tuple[float, float]] = {
    "size": (14.0, 20.0),  # side of the whole 28 x 28 picture; its ink covers about two thirds
    "amplitude": (4.5, 7.5),
    "centre_x": (-2.0, 2.0),  # from the sensor's middle
    "centre_y": (-2.0, 2.0),
    "aspect": (0.6, 1.0),  # the path's height beside its width
    "tilt": (-1 / 30, 1 / 30),
    "start": (0.0, 1.0),
    "wave_start": (-0.08, 0.08),
    "direction": (0.0, 1.0),  # of shakes
    "pivot": (2.0, 4.0),  # of rolls: from the picture's middle
    "pivot_angle": (0.0, 1.0),
    "warp": (0.0, 0.1),
    "warp_phase": (0.0, 1.0),
    "tremor": (0.0, 0.3),
    "tremor_cycles_x": (0.0, 1.0),
    "tremor_cycles_y": (0.0, 1.0),
    "tremor_phase_x": (0.0, 1.0),
    "tremor_phase_y": (0.0, 1.0),
    "contrast": (0.6, 1.0),
    "distractor_x": (-10.5, 10.5),
    "distractor_y": (-10.5, 10.5),
    "distractor_radius": (1.0, 4.0),
    "distractor_start": (0.0, 1.0),
    "distractor_sense": (0.0, 1.0),  # below 0.5 it goes round the other way
    "distractor_size": (6.0, 10.0),
    "distractor_contrast": (0.3, 0.5),
    "dark": (0.0, 1.0),  # below 0.5 the pictures are dark on a bright ground
}

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Motions:
    """Parameters of a batch of motions: ``label`` int64 [num], ``drawn`` name of RANGES -> float64 [num]."""

    label: NDArray[np.int64]
    drawn: dict[str, Floats]


def draw_motions(labels: list[int], names: list[str], seed: int) -> Motions:
    """The motion of each recording; its parameters depend on its name and the seed, not on its label."""
    uniform = np.array([np.random.default_rng(derive_seed(seed, "motion", name)).random(len(RANGES)) for name in names])
    uniform = uniform.reshape(len(names), len(RANGES))
    drawn = {name: low + (high - low) * uniform[:, column] for column, (name, (low, high)) in enumerate(RANGES.items())}
    return Motions(np.array(labels, np.int64), drawn)


def place(motions: Motions, fractions: Floats) -> tuple[Floats, Floats, Floats]:
    """Where the pictures are: x, y [times, num] from the sensor's middle in nominal pixels, and their angle in radians.

    ``fractions`` [times], 0 .. 1 of the recording's duration. x points right, y down; angles are clockwise as seen.
    """
    d, motion = motions.drawn, motions.label // 2
    time = np.where(motions.label % 2 == 0, fractions[:, None], 1 - fractions[:, None])
    progress = _progress(motions, time)
    waves = (motion == WAVE_ACROSS) | (motion == WAVE_DOWN)
    turn = 2 * np.pi * (progress + np.where(waves, d["wave_start"], d["start"]))
    eights = np.flatnonzero(motion == EIGHT)
    for column in eights.tolist():
        turn[:, column] = _even_turn(progress[:, column] + d["start"][column], d["aspect"][column])
    shake = 2 * np.pi * SHAKES * progress + np.where(d["start"] < 0.5, np.pi, 0.0)
    amplitude, zero = d["amplitude"], np.zeros_like(turn)
    along = np.select(
        [motion == CIRCLE, (motion == EIGHT) | (motion == WAVE_ACROSS), motion == SHAKE],
        [amplitude * np.cos(turn), amplitude * np.sin(turn), SHAKE_AMPLITUDE * amplitude * np.sin(shake)],
        zero,
    )
    across = np.select(
        [motion == CIRCLE, motion == EIGHT, motion == WAVE_DOWN],
        [d["aspect"] * amplitude * np.sin(turn), d["aspect"] * amplitude * np.sin(2 * turn), amplitude * np.sin(turn)],
        zero,
    )
    tilt = 2 * np.pi * np.where(motion == SHAKE, d["direction"], d["tilt"])
    x, y = along * np.cos(tilt) - across * np.sin(tilt), along * np.sin(tilt) + across * np.cos(tilt)
    angle = np.where(motion == ROLL, turn, 0.0)
    pivot = np.where(motion == ROLL, d["pivot"], 0.0)
    x = x + pivot * np.cos(angle + 2 * np.pi * d["pivot_angle"])
    y = y + pivot * np.sin(angle + 2 * np.pi * d["pivot_angle"])
    return x + d["centre_x"] + _tremor(d, "x", time), y + d["centre_y"] + _tremor(d, "y", time), angle


def place_of_distractor(motions: Motions, fractions: Floats) -> tuple[Floats, Floats]:
    """Where the distractors are, as in :func:`place`; they go round once, whichever way."""
    d = motions.drawn
    sense = np.where(d["distractor_sense"] < 0.5, -1.0, 1.0)
    turn = 2 * np.pi * (sense * fractions[:, None] + d["distractor_start"])
    x = d["distractor_x"] + d["distractor_radius"] * np.cos(turn)
    return x, d["distractor_y"] + d["distractor_radius"] * np.sin(turn)


def _even_turn(progress: Floats, aspect: float) -> Floats:
    """Phase, in radians, of the point of a figure-eight that lies ``progress`` (in rounds) along its length.

    At even speed. At even phase the picture would be slow on the lobes and fast through the middle: it would come slow
    and leave fast where the backward class comes fast and leaves slow, and a refractory pixel loses more of a fast
    change. That alone told the two apart in time-averaged frames.
    """
    rounds = np.linspace(0, 1, 1025)
    lengths = np.hypot(np.diff(np.sin(2 * np.pi * rounds)), aspect * np.diff(np.sin(4 * np.pi * rounds)))
    along = np.concatenate([[0.0], np.cumsum(lengths)]) / lengths.sum()
    whole = np.floor(progress)
    return 2 * np.pi * (whole + np.interp(progress - whole, along, rounds))


def _progress(motions: Motions, time: Floats) -> Floats:
    """0 .. 1: how much of its path a picture has covered; smooth and rising."""
    d, phase = motions.drawn, 2 * np.pi * motions.drawn["warp_phase"]
    warped = time + d["warp"] * (np.sin(2 * np.pi * time + phase) - np.sin(phase))
    # Shakes are told apart by their speed: their warp has two periods, and takes as long in either half.
    chirped = (1 - CHIRP) * time + CHIRP * time**2
    chirped = chirped + d["warp"] / 4 * (np.sin(4 * np.pi * time + phase) - np.sin(phase))
    return np.where(motions.label // 2 == SHAKE, chirped, warped)


def _tremor(d: dict[str, Floats], axis: str, time: Floats) -> Floats:
    choice = np.minimum(d[f"tremor_cycles_{axis}"] * len(TREMOR_CYCLES), len(TREMOR_CYCLES) - 1).astype(np.int64)
    turn = np.array(TREMOR_CYCLES)[choice] * time + d[f"tremor_phase_{axis}"]
    return d["tremor"] * np.sin(2 * np.pi * turn)
